//! Kernel: system calls the crates do not wrap, or not without an allocation. The only home of `unsafe`; every function
//! here is safe to call.

#![allow(unsafe_code)]

mod vanish;

pub mod guestmem;

mod iovec;

mod error;

pub mod zeroed;

mod cmsg;

pub mod errqueue;

pub mod msg;

pub mod process;

pub mod rights;

pub mod sockopt;

pub mod repair;

pub(crate) use cmsg::Control;
pub use cmsg::Marks;
pub use error::{is_shortage, reason};
pub use iovec::{Gather, Iovecs, Part, Scatter};
