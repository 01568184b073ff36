//! Watches the resolver configuration, from a process that still sees the host's files.
//!
//! A descriptor of /etc kept from before would not do in the sandbox: it shows what lies below a file mounted there, as
//! container engines mount resolv.conf, and not what its name leads to. So a small process stays outside and tells of
//! changes: the whole file, one packet each time.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        inotify::{AddWatchFlags, InitFlags, Inotify},
        socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair},
    },
};

use super::resolv::parse;
use crate::config::Resolver;

/// Octets of the file that count.
const FILE_MOST: u64 = 64 * 1024;

/// Symbolic links followed from the file's name (path_resolution(7) allows 40).
const LINKS_MOST: usize = 40;

/// Whoever writes the file may do it in several steps; these milliseconds are left to finish.
const SETTLE: u16 = 50;

/// How often, in milliseconds, the file is read where the kernel will not tell of changes.
const ASK: u16 = 2_000;

/// The reader's end.
#[derive(Debug)]
pub struct Reader {
    socket: OwnedFd,
    /// Where packets are received.
    packet: Vec<u8>,
}

/// What the watching process said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    Nothing,
    Changed(Resolver),
    /// It has ended, and says nothing any more.
    Ended,
}

/// The watching process's end.
#[derive(Debug)]
pub struct Watcher(OwnedFd);

/// Both ends of the line between the processes.
///
/// # Errors
/// Those of socketpair(2).
pub fn pair() -> io::Result<(Reader, Watcher)> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
    let reader = Reader {
        socket: ours,
        packet: Vec::new(),
    };
    Ok((reader, Watcher(theirs)))
}

impl Reader {
    /// The newest of what was said since.
    pub fn read(&mut self) -> Said {
        let mut said = Said::Nothing;
        self.packet.resize(FILE_MOST as usize + 1, 0);
        loop {
            // The first octet is there so that no packet is empty: that would look like the end.
            match recv(self.socket.as_raw_fd(), &mut self.packet, MsgFlags::empty()) {
                Ok(0) => return Said::Ended,
                Ok(len) => said = Said::Changed(parse(self.packet.get(1..len).unwrap_or_default())),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return said,
                Err(_) => return Said::Ended,
            }
        }
    }
}

impl AsFd for Reader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsFd for Watcher {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Watcher {
    /// Tells of the file at `path` as it is and of every change, until the reader is gone. `mounts` is from [`mounts`].
    pub fn watch(&self, path: &Path, mounts: Option<&File>) {
        let mut said = None;
        loop {
            // First the watches, then the file: what changes in between is seen the next time round.
            let watches = watches(path);
            if let Some(text) = contents(path)
                && said.as_ref() != Some(&text)
            {
                if !self.say(&text) {
                    return;
                }
                said = Some(text);
            }
            let timeout = if watches.is_some() && mounts.is_some() {
                PollTimeout::NONE
            } else {
                ASK.into()
            };
            let mut fds = vec![PollFd::new(self.0.as_fd(), PollFlags::empty())];
            fds.extend(
                watches
                    .iter()
                    .map(|watches| PollFd::new(watches.as_fd(), PollFlags::POLLIN)),
            );
            // proc_pid_mountinfo(5): mounts come and go with POLLPRI.
            fds.extend(
                mounts
                    .iter()
                    .map(|mounts| PollFd::new(mounts.as_fd(), PollFlags::POLLPRI)),
            );
            let _ = poll(&mut fds, timeout);
            let mut line = [PollFd::new(self.0.as_fd(), PollFlags::empty())];
            let cut = poll(&mut line, PollTimeout::from(SETTLE));
            if cut.is_ok_and(|ready| ready > 0) {
                return;
            }
        }
    }

    /// `false` once nobody listens.
    fn say(&self, text: &[u8]) -> bool {
        let packet = [b"=", text].concat();
        match send(self.0.as_raw_fd(), &packet, MsgFlags::MSG_NOSIGNAL) {
            Ok(_) => true,
            // A reader that does not read will not miss one of many states.
            Err(error) => error == Errno::EAGAIN,
        }
    }
}

/// The list of mounts, which tells of mounts that come and go; `None` without a /proc.
pub fn mounts() -> Option<File> {
    File::open("/proc/self/mountinfo").ok()
}

/// The folders that have to be read to follow the file at `path`, by the links there are now.
pub fn folders(path: &Path) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    follow(path, |name| {
        let mut above = name.ancestors().skip(1);
        folders.extend(above.find(|folder| folder.is_dir()).map(Path::to_owned));
        true
    });
    folders
}

/// What the file says; `None` if it cannot be told.
fn contents(path: &Path) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    match File::open(path) {
        Ok(file) => file
            .take(FILE_MOST)
            .read_to_end(&mut text)
            .ok()
            .map(|_| text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Some(text),
        Err(_) => None,
    }
}

/// Watches the folders that a new file may appear in: the name's, and those of every link on the way; and the file.
fn watches(path: &Path) -> Option<Inotify> {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).ok()?;
    let in_folder = AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_MOVE
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_DELETE_SELF
        | AddWatchFlags::IN_MOVE_SELF
        | AddWatchFlags::IN_ONLYDIR;
    // What is mounted over a name is another file than the folder's, and tells only of itself.
    let in_file =
        AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_ATTRIB | AddWatchFlags::IN_DELETE_SELF;
    let last = follow(path, |name| {
        // A folder that is not there yet appears in another.
        let mut above = name.ancestors().skip(1);
        above.any(|folder| inotify.add_watch(folder, in_folder).is_ok())
    })?;
    let _ = inotify.add_watch(&last, in_file);
    Some(inotify)
}

/// Visits the name and then what each link leads to that it is, each before it is read. Returns the last, unless a visit
/// was in vain.
fn follow(path: &Path, mut visit: impl FnMut(&Path) -> bool) -> Option<PathBuf> {
    let mut here = path.to_owned();
    for _ in 0..LINKS_MOST {
        if !visit(&here) {
            return None;
        }
        match fs::read_link(&here) {
            Ok(target) => here = here.parent().unwrap_or_else(|| Path::new("/")).join(target),
            Err(_) => break,
        }
    }
    Some(here)
}

#[cfg(test)]
mod tests {
    use std::{
        net::Ipv4Addr,
        os::unix::fs::symlink,
        process, thread,
        time::{Duration, Instant},
    };

    use super::*;

    /// Waits for the state of the file that names this server, and none if the last octet is 0.
    fn hears(reader: &mut Reader, last: u8) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Said::Changed(resolver) = reader.read() {
                let want = [Ipv4Addr::new(192, 0, 2, last)];
                if resolver.servers4 == want || last == 0 && resolver.servers4.is_empty() {
                    return;
                }
            }
            assert!(Instant::now() < deadline, "never heard of {last}");
            let mut fds = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
            let _ = poll(&mut fds, PollTimeout::from(100_u16));
        }
    }

    #[test]
    fn every_way_to_change_the_file_is_noticed_and_the_end_too() {
        let dir = std::env::temp_dir().join(format!("passt-watch-{}", process::id()));
        fs::create_dir_all(dir.join("etc")).unwrap();
        let path = dir.join("etc/resolv.conf");
        let server = |last: u8| format!("nameserver 192.0.2.{last}\n");
        let (mut reader, watcher) = pair().unwrap();
        let name = path.clone();
        let watching = thread::spawn(move || watcher.watch(&name, mounts().as_ref()));
        hears(&mut reader, 0);
        fs::write(&path, server(1)).unwrap();
        hears(&mut reader, 1);
        fs::write(&path, server(2)).unwrap();
        hears(&mut reader, 2);
        fs::write(dir.join("new"), server(3)).unwrap();
        fs::rename(dir.join("new"), &path).unwrap();
        hears(&mut reader, 3);
        fs::remove_file(&path).unwrap();
        hears(&mut reader, 0);
        // As systemd-resolved does it, and started only later.
        symlink("../run/systemd/resolve/stub-resolv.conf", &path).unwrap();
        let run = dir.join("run/systemd/resolve");
        fs::create_dir_all(&run).unwrap();
        fs::write(run.join("stub-resolv.conf"), server(4)).unwrap();
        hears(&mut reader, 4);
        fs::write(run.join("new"), server(5)).unwrap();
        fs::rename(run.join("new"), run.join("stub-resolv.conf")).unwrap();
        hears(&mut reader, 5);
        drop(reader);
        watching.join().unwrap();
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn the_end_of_the_watching_process_is_told() {
        let (mut reader, watcher) = pair().unwrap();
        assert_eq!(reader.read(), Said::Nothing);
        drop(watcher);
        assert_eq!(reader.read(), Said::Ended);
    }
}
