//! The guest behind a vhost-user front-end: frames lie in the guest's own memory, and queues in it tell where.

pub mod ring;

pub mod intake;

pub mod outlet;

pub mod message;

mod regions;

pub mod session;
