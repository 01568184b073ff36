//! Memory: what is remembered of guest and flows, without knowing any protocol.

#[cfg(test)]
mod fixture;
mod guest;
mod key;

mod claims;
mod lru;

mod drift;

mod census;
mod visitors;

mod nat;
mod neighbours;
mod pool;
mod quota;
pub mod ring;
mod spare;
mod table;
mod turnover;
mod wheel;

pub use census::Census;
pub use claims::{ClaimSlot, Claims};
pub use drift::Drift;
pub use guest::Guest;
pub use key::{Id, Key};
pub use nat::{Target, check_source, error_source, inbound_source, is_group, means_us4, outbound};
pub use neighbours::{Neighbour, Neighbours};
pub use pool::{Chain, Pool};
pub use quota::Quota;
pub use spare::{Lent, Spare};
pub use table::Table;
pub use turnover::Turnover;
pub use visitors::Visitors;
pub use wheel::Wheel;
