//! Memory: what is remembered of guest and flows, without knowing any protocol.

mod guest;

mod key;

mod pool;

mod table;

mod wheel;

pub mod nat;

pub use guest::Guest;
pub use key::{Id, Key};
pub use pool::{Chain, Pool};
pub use table::Table;
pub use wheel::Wheel;
