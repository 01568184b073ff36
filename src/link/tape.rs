//! What passes the link, for its capture, if there is one.

use std::{
    io,
    time::{SystemTime, UNIX_EPOCH},
};

use super::capture::Capture;
use crate::{sys::reason, wire::vnet};

/// A capture, and the frame that is recorded.
#[derive(Debug, Default)]
pub struct Tape {
    capture: Option<Capture>,
    frame: Vec<u8>,
}

impl Tape {
    /// Captures what passes from now on.
    pub fn set(&mut self, capture: Option<Capture>) {
        self.capture = capture;
    }

    /// Whether anything is captured.
    pub const fn is_on(&self) -> bool {
        self.capture.is_some()
    }

    /// Records the frame that `write` puts down, as it is once its checksum was computed, if that was left out: from where on,
    /// and where behind that it goes.
    pub fn record(&mut self, checksum: Option<(u16, u16)>, write: impl FnOnce(&mut Vec<u8>)) {
        let Some(capture) = &mut self.capture else {
            return;
        };
        self.frame.clear();
        write(&mut self.frame);
        if let Some(place) = checksum {
            vnet::complete_checksum(&mut self.frame, place);
        }
        // A clock before 1970 is as good as none.
        let at = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let recorded = capture.record(at, &[&self.frame]);
        self.note(recorded);
    }

    /// Writes what was recorded.
    pub fn flush(&mut self) {
        if let Some(capture) = &mut self.capture {
            let written = capture.flush();
            self.note(written);
        }
    }

    /// A capture ends with its first error.
    fn note(&mut self, done: io::Result<()>) {
        if let Err(error) = done {
            log::warn!("Capture ends here: {}", reason(&error));
            self.capture = None;
        }
    }
}
