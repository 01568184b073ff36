//! Words: the small values every layer speaks in.

mod addr;
mod drop;
pub mod number;
mod ports;
mod seq;
mod time;

pub use addr::{Class, Endpoint, Mac, Protocol, class, is_link_local6, mask4, unbracketed};
pub use drop::{Drops, Why};
pub use ports::{PortMap, PortSet};
pub use seq::Seq;
pub use time::{Now, Span};
