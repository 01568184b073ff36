//! What moves with a guest, and what stays behind.

use std::os::fd::OwnedFd;

use crate::{
    flow::{Id, Key},
    wire::headers::TcpFields,
};

/// Connections in migration.
#[derive(Debug, Default)]
pub struct Away {
    /// The guest stands still, and its state is handed over: nothing may change it.
    pub on_the_way: bool,
    /// Connections that move: silent, and in repair mode.
    pub flows: Vec<Id>,
    /// Sockets of connections that have moved, until the next guest comes. As long as they are there the kernel resets nobody who
    /// still sends here.
    pub silent: Vec<OwnedFd>,
    /// Resets for connections that could not come along, until the guest takes them.
    pub farewells: Vec<(Key, TcpFields)>,
}
