//! A kernel that does what the input says: the socket calls of the C library, defined here and therefore taken instead of the
//! real ones by everything linked into a target: std, nix, socket2 and our own `sys`.
//!
//! Production code knows nothing of it, so what is searched is what is shipped. Descriptors made here have numbers that no
//! real one has; a call on any other goes to the real kernel. Each call may be made to fail by the script, as its manual page
//! allows. A call on a descriptor that is closed ends the run: that is a finding.

mod stream;

mod sockets;

mod transfer;

mod calls;

pub use sockets::{Kernel, Kind, Waiting, with};
pub use stream::{is_stream, stream};
pub use transfer::filling;
