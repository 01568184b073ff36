//! The loop: start-up, reactor, log.

pub mod log;

pub mod background;

mod event;

mod reactor;

pub use reactor::{Ending, Entrance, Reactor};
