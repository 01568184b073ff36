//! Memory: what is remembered of guest and flows, without knowing any protocol.

mod guest;
mod key;

mod claims;
mod lru;
mod nat;
mod neighbours;
mod pool;
pub mod ring;
mod spare;
mod table;
mod wheel;

pub use claims::{Claims, Slot as ClaimSlot};
pub use guest::Guest;
pub use key::{Id, Key};
pub use lru::Lru;
pub use nat::{Target, check_source, error_source, inbound_source, is_group, outbound};
pub use neighbours::{Neighbour, Neighbours};
pub use pool::{Chain, Pool};
pub use spare::{Lent, Spare};
pub use table::Table;
pub use wheel::Wheel;
