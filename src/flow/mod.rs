//! Memory: what is remembered of guest and flows, without knowing any protocol.

mod guest;
mod pool;
mod table;
mod wheel;

pub use guest::Guest;
