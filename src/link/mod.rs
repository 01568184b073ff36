//! Guest side: frames in, frame slots out.

mod capture;

pub mod listen;

mod inbox;

mod outbox;

pub use inbox::{FRAME_MAX, Frame, Inbox, Received, Slot};
pub use outbox::{Flushed, Outbox, Piece, Room};
