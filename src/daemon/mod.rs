//! The loop: start-up, reactor, log.

mod event;

mod reactor;

pub use reactor::{Ending, Entrance, Reactor};
