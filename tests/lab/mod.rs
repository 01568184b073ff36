//! The laboratory: the real binary in network namespaces of its own, with servers around it.
//!
//! Everything made here disappears with the test: namespaces have no names, only descriptors; processes and folders are
//! removed on drop, and by the [`janitor`] if the test process itself is killed.
#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used
)]

pub mod capture;
pub mod front_end;
pub mod janitor;
pub mod log;
pub mod netns;
pub mod nodes;
pub mod numbers;
pub mod path;
pub mod pesto;
pub mod programs;
pub mod repair;
pub mod servers;
pub mod session;
pub mod traffic;
pub mod translator;
pub mod world;

pub use capture::Capture;
pub use log::Log;
pub use netns::Host;
pub use nodes::Nodes;
pub use repair::Repair;
pub use translator::{Setup, Translator};
pub use world::World;

use std::{
    env, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// More than anything here may take on a loaded machine.
pub const LONG: Duration = Duration::from_secs(20);

/// The same for a machine without hardware acceleration, which boots or moves.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// How long to watch for something that must not happen.
pub const QUIET: Duration = Duration::from_millis(300);

/// The binary of this name of another make: beside `PASST_PEER`, which is `/tmp/peer/passt` by default. `None` if it is not at
/// hand, which is said.
pub fn peer(name: &str) -> Option<PathBuf> {
    let passt = env::var_os("PASST_PEER").unwrap_or_else(|| "/tmp/peer/passt".into());
    let path = Path::new(&passt).with_file_name(name);
    let found = path.exists();
    if !found {
        println!("skipped: no {}", path.display());
    }
    found.then_some(path)
}

/// The result of `call`, made again where it ended early: on a socket with a timeout it does so with `EINTR` when the process is
/// stopped and goes on, as under a debugger or a freezer of processes (signal(7)).
pub fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Asks until `condition` holds, at most for `patience`; `false` when that ran out.
pub fn wait_until(patience: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(5));
    }
}
