//! Guest side: frames in, frames out.

mod capture;

mod tape;

mod slot;

mod vhost;

mod inbox;

mod queued;

mod outbox;

pub mod listen;

pub use capture::Capture;
pub use inbox::{Frame, Inbox, Received};
pub use outbox::{Flushed, Outbox, Room, Rooms};
pub use slot::{FRAME_MAX, Passed, Portion, Slot};
pub use vhost::{
    ring::Broken,
    session::{Halves, RECEIVE, Served, Session, TRANSMIT, Transfer, Watch, hear},
};
