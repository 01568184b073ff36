//! The loop: start-up, reactor, log.

mod log_file;

pub mod log;

pub mod background;
