//! passt-repair: sets and clears repair mode on sockets for a passt that has not the right to. It connects to passt's socket,
//! then owns nothing but that connection and CAP_NET_ADMIN, and does as it is told until passt closes it.

use std::{
    ffi::OsStr,
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::FileTypeExt, net::UnixStream},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use caps::{CapSet, Capability};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        inotify::{AddWatchFlags, InitFlags, Inotify},
        prctl::{set_dumpable, set_no_new_privs},
    },
};

use super::{landlock, sandbox::drop_capabilities, seccomp};
use crate::{
    proto::repair::Command,
    sys::{reason, repair, rights},
};

/// Between bind(2), which shows in the folder, and listen(2) nobody answers at a socket. This often it is tried again.
const KNOCKS: u32 = 100;
/// In ms.
const BETWEEN_KNOCKS: u8 = 10;

/// The same, in ms too, in a folder when that was in vain: whoever is slow is rare, and what was left behind stays.
const BETWEEN_LATER_KNOCKS: u16 = 1000;

/// What `--help` says.
pub const HELP: &str = "Usage: passt-repair PATH

Sets and clears repair mode on TCP sockets for passt, so that connections can
migrate. PATH is the socket of a passt (--repair-path), or a folder in which a
socket that ends in .repair is waited for. Takes CAP_NET_ADMIN. Ends when passt
closes the connection.";

/// Why the helper ends early: one line for a person.
#[derive(Debug)]
pub enum Failure {
    /// The path is not one to be given.
    Usage(String),
    /// Anything else.
    Run(String),
}

impl From<String> for Failure {
    fn from(line: String) -> Self {
        Self::Run(line)
    }
}

/// Connects to the socket at `path`, or to the first that appears in that folder, and serves it to its end.
///
/// # Errors
/// One line for a person.
pub fn run(path: &Path) -> Result<(), Failure> {
    let socket = connect(path)?;
    confine()?;
    Ok(serve(&socket.into())?)
}

fn connect(path: &Path) -> Result<UnixStream, Failure> {
    let found = fs::metadata(path)
        .map_err(|error| format!("Can't stat {}: {}", path.display(), reason(&error)))?;
    if found.is_dir() {
        return Ok(appearing(path)?);
    }
    if !found.file_type().is_socket() {
        return Err(Failure::Usage(format!(
            "{} is not a socket",
            path.display()
        )));
    }
    let connected = knock(path);
    Ok(connected.map_err(|error| {
        format!(
            "Failed to connect to {}: {}",
            path.display(),
            reason(&error)
        )
    })?)
}

/// Connects, and does so again for a while if nobody listens yet.
fn knock(path: &Path) -> io::Result<UnixStream> {
    for _ in 1..KNOCKS {
        match UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::thread::sleep(Duration::from_millis(BETWEEN_KNOCKS.into()));
            }
            connected => return connected,
        }
    }
    UnixStream::connect(path)
}

/// Connects to the first socket of a folder that ends in `.repair` and has somebody behind it, those there already included.
fn appearing(folder: &Path) -> Result<UnixStream, String> {
    let failed =
        |error: io::Error| format!("Failed to watch {}: {}", folder.display(), reason(&error));
    let watcher = Inotify::init(InitFlags::IN_CLOEXEC).map_err(|error| failed(error.into()))?;
    let events = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_ONLYDIR;
    watcher
        .add_watch(folder, events)
        .map_err(|error| failed(error.into()))?;
    let mut doors = candidates(folder).map_err(failed)?;
    let mut knocks = KNOCKS;
    loop {
        let open = doors.iter().find_map(|path| UnixStream::connect(path).ok());
        if let Some(socket) = open {
            return Ok(socket);
        }
        let patience = match knocks {
            _ if doors.is_empty() => PollTimeout::NONE,
            0 => BETWEEN_LATER_KNOCKS.into(),
            _ => BETWEEN_KNOCKS.into(),
        };
        if !wait(&watcher, patience)? {
            knocks = knocks.saturating_sub(1);
            if knocks == 0 {
                doors.retain(|path| path.exists());
            }
            continue;
        }
        let events = watcher
            .read_events()
            .map_err(|error| failed(error.into()))?;
        for event in events {
            if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                return Err(failed(io::ErrorKind::NotFound.into()));
            }
            if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                // What came after those that were kept shows in the folder only.
                knocks = KNOCKS;
                doors = candidates(folder).map_err(failed)?;
            }
            if let Some(path) = event.name.and_then(|name| candidate(folder, &name)) {
                knocks = KNOCKS;
                if !doors.contains(&path) {
                    doors.push(path);
                }
            }
        }
    }
}

/// The paths in `folder` that a socket for us may have.
fn candidates(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let there = fs::read_dir(folder)?.flatten();
    Ok(there
        .filter_map(|entry| candidate(folder, &entry.file_name()))
        .collect())
}

/// The path of a name that a socket for us may have, if there is one.
fn candidate(folder: &Path, name: &OsStr) -> Option<PathBuf> {
    if !name.as_bytes().ends_with(b".repair") {
        return None;
    }
    let path = folder.join(name);
    let found = fs::symlink_metadata(&path).ok()?;
    found.file_type().is_socket().then_some(path)
}

/// Gives up everything but the right over sockets that are handed to us. What a kernel has not to offer is left out.
fn confine() -> Result<(), String> {
    if !caps::has_cap(None, CapSet::Effective, Capability::CAP_NET_ADMIN).unwrap_or(true) {
        eprintln!("CAP_NET_ADMIN is missing: connections cannot be put into repair mode");
    }
    let failed = |what: &str, error: io::Error| format!("Couldn't {what}: {}", reason(&error));
    drop_capabilities(Some(Capability::CAP_NET_ADMIN))
        .map_err(|error| failed("drop capabilities", error))?;
    set_dumpable(false).map_err(|error| failed("forbid core dumps", error.into()))?;
    set_no_new_privs().map_err(|error| failed("give up new privileges", error.into()))?;
    // Landlock is younger than the oldest kernel we serve, and seccomp allows no file to be opened either.
    let _ = landlock::confine(&[]);
    seccomp::load_for_helper()
        .map(drop)
        .map_err(|error| failed("load seccomp filter", error))
}

/// Does what comes over the socket, until it is closed.
fn serve(socket: &OwnedFd) -> Result<(), String> {
    let mut sockets = Vec::with_capacity(256);
    loop {
        wait(socket, PollTimeout::NONE)?;
        let mut octet = [0];
        match rights::receive(socket.as_fd(), &mut octet, &mut sockets) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            // A passt that was killed with something of ours unread.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(format!("Failed to receive message: {}", reason(&error))),
        }
        let command = Command::from_octet(octet[0])
            .ok_or_else(|| format!("Unsupported command {:#04x}", octet[0]))?;
        if sockets.is_empty() {
            return Err("Command without sockets".to_owned());
        }
        for socket in sockets.drain(..) {
            let mode = command.value();
            repair::set_repair(socket.as_fd(), mode.into()).map_err(|error| {
                format!("Setting TCP_REPAIR to {mode} on socket: {}", reason(&error))
            })?;
        }
        match repair::send_with(socket.as_fd(), octet[0], &[]) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => {
                return Err(format!(
                    "Reply to command {}: {}",
                    command.value(),
                    reason(&error)
                ));
            }
        }
    }
}

/// Waits for something to read; `false` if there may be nothing.
fn wait(fd: &impl AsFd, patience: PollTimeout) -> Result<bool, String> {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    match poll(&mut fds, patience) {
        Ok(ready) => Ok(ready > 0),
        Err(nix::Error::EINTR) => Ok(false),
        Err(error) => Err(format!("Failed to wait: {}", reason(&error.into()))),
    }
}
