//! Guest side: frames in, frame slots out.

mod capture;

mod inbox;

mod outbox;

pub mod listen;

pub use capture::Capture;
pub use inbox::{FRAME_MAX, Frame, Inbox, Received, Slot};
pub use outbox::{Flushed, Outbox, Piece, Room, Rooms};
