//! Guest side: frames in, frame slots out.

mod capture;

pub use capture::Capture;
