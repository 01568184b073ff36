//! What makes a process a daemon: PID file, identity, and the fork.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::{
        fd::AsFd,
        unix::{
            fs::{FileTypeExt, OpenOptionsExt},
            net::UnixStream,
        },
    },
    path::Path,
    process,
};

use caps::{CapSet, Capability, CapsHashSet, errors::CapsError};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        prctl::set_keepcaps,
        signal::{SigSet, Signal, kill, raise},
        signalfd::{SfdFlags, SignalFd},
        wait::waitpid,
    },
    unistd::{
        Gid, Pid, Uid, User, chdir, dup2_stderr, dup2_stdin, dup2_stdout, setgid, setgroups,
        setsid, setuid,
    },
};

use super::leftover::Leftovers;
use crate::{
    config::Identity,
    sys::{
        process::{Forked, fork, is_ignored},
        reason,
    },
};

/// Milliseconds until it is asked again whether somebody reads a FIFO.
const ASK_AGAIN: u8 = 100;

/// A PID file, opened while the caller's rights are still ours.
#[derive(Debug)]
pub struct PidFile(File);

impl PidFile {
    /// Opens the file, which may exist already. Waits until somebody reads, if it is a FIFO.
    ///
    /// # Errors
    /// One line: it cannot be opened.
    pub fn open(path: &Path, leftovers: &Leftovers) -> Result<Self, String> {
        let mut options = OpenOptions::new();
        options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(libc::O_NONBLOCK);
        let file = open_patiently(path, leftovers, |path| options.open(path));
        // Writing waits.
        let file = file.and_then(|file| {
            fcntl(&file, FcntlArg::F_SETFL(OFlag::empty()))?;
            Ok(file)
        });
        file.map(Self).map_err(|error| {
            format!(
                "Couldn't open PID file {}: {}",
                path.display(),
                reason(&error)
            )
        })
    }

    /// Writes a process's number and a newline.
    ///
    /// # Errors
    /// Those of write(2).
    pub fn write(&mut self, pid: u32) -> io::Result<()> {
        self.0.write_all(format!("{pid}\n").as_bytes())
    }
}

/// Opens what may be a FIFO that nobody reads yet: `open` does not wait for who does (fifo(7)) and is called again. Who is
/// told to stop meanwhile takes away what the start would leave behind, and ends by that signal.
///
/// # Errors
/// Those of `open` and signalfd(2).
pub fn open_patiently<T>(
    path: &Path,
    leftovers: &Leftovers,
    open: impl Fn(&Path) -> io::Result<T>,
) -> io::Result<T> {
    let is_fifo = || fs::metadata(path).is_ok_and(|data| data.file_type().is_fifo());
    loop {
        match open(path) {
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) && is_fifo() => {}
            opened => return opened,
        }
        let stops = listen_for(&stops())?;
        // Interrupted, it only asks sooner.
        let _ = poll(
            &mut [PollFd::new(stops.as_fd(), PollFlags::POLLIN)],
            ASK_AGAIN,
        );
        if let Some(stop) = heard(&stops)? {
            leftovers.remove();
            end_by(stop);
        }
    }
}

fn listen_for(signals: &SigSet) -> nix::Result<SignalFd> {
    SignalFd::with_flags(signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
}

fn heard(signals: &SignalFd) -> nix::Result<Option<Signal>> {
    let Some(info) = signals.read_signal()? else {
        return Ok(None);
    };
    let signal = i32::try_from(info.ssi_signo).unwrap_or_default();
    Signal::try_from(signal).map(Some)
}

/// The signals that end us.
fn stops() -> SigSet {
    SigSet::from_iter([Signal::SIGTERM, Signal::SIGQUIT])
}

/// Those that end a start as well: what the caller's terminal sends reaches only the process that waits. Whoever ignores or
/// holds them back means the start to go on; held back by us, even ignored ones would be heard.
fn callers_stops(held: &SigSet) -> SigSet {
    let theirs = [Signal::SIGINT, Signal::SIGHUP].into_iter();
    let theirs = theirs.filter(|signal| !held.contains(*signal) && !is_ignored(*signal));
    stops().iter().chain(theirs).collect()
}

/// The background process's word to the one that waits for it in the foreground.
#[derive(Debug)]
pub struct Ready {
    waiting: UnixStream,
    null: File,
    pid: u32,
}

impl Ready {
    /// This process's number as the caller sees it; in a PID namespace of our own it has another.
    pub const fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether somebody waits still.
    ///
    /// # Errors
    /// `EPIPE` if not: the waiting process was killed, or told to stop.
    pub fn check(&self) -> io::Result<()> {
        let mut waiting = [PollFd::new(self.waiting.as_fd(), PollFlags::empty())];
        match poll(&mut waiting, PollTimeout::ZERO)? {
            0 => Ok(()),
            _ => Err(Errno::EPIPE.into()),
        }
    }

    /// Everything is set up: the waiting process may exit with success. Standard descriptors go to /dev/null, so that
    /// whoever reads them sees their end.
    ///
    /// # Errors
    /// Those of dup2(2), and `EPIPE` as above: it does not exit by itself before it hears.
    pub fn tell(mut self) -> io::Result<()> {
        dup2_stdin(self.null.as_fd())?;
        dup2_stdout(self.null.as_fd())?;
        dup2_stderr(self.null.as_fd())?;
        self.waiting.write_all(&[0])
    }
}

/// Goes to the background. Only the new process returns from here; the old one waits until it hears that all is ready, and
/// exits with 0, or with 1 once the new process has ended before; then it takes away what the start would leave behind. So it
/// does if it is told to stop, then or while signals were held back before, and ends by that signal.
///
/// # Errors
/// Those of open(2), socketpair(2), sigprocmask(2), signalfd(2), fork(2), setsid(2) and chdir(2).
pub fn detach(leftovers: &Leftovers) -> io::Result<Ready> {
    let null = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    let (waiting, mut telling) = UnixStream::pair()?;
    let held_before = SigSet::thread_get_mask()?;
    let stops = callers_stops(&held_before);
    stops.thread_block()?;
    let stops = listen_for(&stops)?;
    match fork()? {
        Forked::Parent { child } => {
            drop(telling);
            see_off(child, waiting, &stops, leftovers)
        }
        Forked::Child => {
            drop((waiting, stops));
            held_before.thread_set_mask()?;
            setsid()?;
            chdir("/")?;
            let mut pid = [0; 4];
            telling.read_exact(&mut pid)?;
            Ok(Ready {
                waiting: telling,
                null,
                pid: u32::from_ne_bytes(pid),
            })
        }
    }
}

/// The rest of the old process.
fn see_off(child: Pid, mut waiting: UnixStream, stops: &SignalFd, leftovers: &Leftovers) -> ! {
    let told = waiting.write_all(&child.as_raw().to_ne_bytes());
    let outcome = told.and_then(|()| hear(&mut waiting, stops));
    let stop = match outcome {
        Ok(None) => process::exit(0),
        Ok(stop) => stop,
        Err(_) => None,
    };
    if stop.is_some() {
        // It may be held up by anything, and serves nobody yet. Where a policy forbids that, it ends once it would serve, as
        // nobody waits.
        let _ = kill(child, Signal::SIGKILL);
    }
    drop(waiting);
    // Whoever waits for our end reads then why: it is not written yet.
    let _ = waitpid(child, None);
    leftovers.remove();
    stop.map_or_else(|| process::exit(1), end_by)
}

/// Waits until all is ready, or for a signal to stop.
fn hear(waiting: &mut UnixStream, stops: &SignalFd) -> io::Result<Option<Signal>> {
    let mut sources =
        [stops.as_fd(), waiting.as_fd()].map(|source| PollFd::new(source, PollFlags::POLLIN));
    while poll(&mut sources, PollTimeout::NONE) == Err(Errno::EINTR) {}
    if let Some(stop) = heard(stops)? {
        return Ok(Some(stop));
    }
    waiting.read_exact(&mut [0])?;
    Ok(None)
}

/// Ends as if the signal had never been held back, for whoever asks why.
fn end_by(signal: Signal) -> ! {
    let _ = SigSet::from_iter([signal]).thread_unblock();
    let _ = raise(signal);
    // The first process of a PID namespace outlives it (pid_namespaces(7)).
    process::exit(128 + signal as i32)
}

/// Becomes whom the caller wants; unless told otherwise, the machine's root becomes nobody, where it may. To be called once
/// everything that takes rights is open.
///
/// # Errors
/// One line: the system would not let us be whom the caller wants.
pub fn leave_root(wanted: Option<Identity>) -> Result<(), String> {
    if let Some(identity) = wanted {
        return assume(identity);
    }
    if Uid::effective().is_root() && in_initial_namespace() {
        log::warn!("Started as root, will change to nobody.");
        // A root that may not do so is root over little, as in containers without capabilities.
        if let Err(why) = assume(nobody()) {
            log::warn!("{why}, continuing as root");
        }
    }
    Ok(())
}

fn nobody() -> Identity {
    let nobody = User::from_name("nobody").ok().flatten();
    nobody.map_or(
        Identity {
            uid: 65_534,
            gid: 65_534,
        },
        |user| Identity {
            uid: user.uid.as_raw(),
            gid: user.gid.as_raw(),
        },
    )
}

/// Becomes the given user and group, and leaves all others.
fn assume(identity: Identity) -> Result<(), String> {
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    let groups = setgroups(&[]);
    if (uid, gid) == (Uid::effective(), Gid::effective()) {
        return Ok(());
    }
    // Who may not change groups may not change users either, but for one's own.
    let is_root = Uid::effective().is_root();
    let groups = groups.or_else(|error| if is_root { Err(error) } else { Ok(()) });
    // Where it fails, there is nothing to keep.
    let _ = set_keepcaps(true);
    let done = groups.and_then(|()| setgid(gid)).and_then(|()| setuid(uid));
    let _ = keep_capabilities();
    done.map_err(|error| {
        format!(
            "Can't change to user {} and group {}: {}",
            identity.uid,
            identity.gid,
            error.desc()
        )
    })
}

/// Keeps what builds the sandbox where there are no user namespaces, and opens low ports anew; the sandbox takes it.
fn keep_capabilities() -> Result<(), CapsError> {
    let permitted = caps::read(None, CapSet::Permitted)?;
    let kept = [
        Capability::CAP_NET_BIND_SERVICE,
        Capability::CAP_SETPCAP,
        Capability::CAP_SYS_ADMIN,
        Capability::CAP_SYS_CHROOT,
    ];
    let kept: CapsHashSet = kept
        .into_iter()
        .filter(|capability| permitted.contains(capability))
        .collect();
    caps::set(None, CapSet::Effective, &kept)?;
    caps::set(None, CapSet::Permitted, &kept)
}

/// Whether everybody is themselves here (user_namespaces(7)): root of any other user namespace is root over little.
fn in_initial_namespace() -> bool {
    fs::read_to_string("/proc/self/uid_map").map_or(true, |map| maps_everybody(&map))
}

fn maps_everybody(map: &str) -> bool {
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// Regressions C45 and S11.
    #[test]
    fn a_pid_file_may_exist_and_is_rewritten_whole() {
        let path = std::env::temp_dir().join(format!("passt-pid-{}", process::id()));
        PidFile::open(&path, &Leftovers::default()).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        fs::write(&path, "4294967295\nrubbish\n").unwrap();
        PidFile::open(&path, &Leftovers::default())
            .unwrap()
            .write(17)
            .unwrap();
        let text = fs::read_to_string(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!((text.as_str(), mode & 0o777), ("17\n", 0o600));
    }

    #[test]
    fn a_pid_file_that_cannot_be_opened_is_named_with_the_reason() {
        assert_eq!(
            PidFile::open(Path::new("/nonexistent/pid"), &Leftovers::default()).unwrap_err(),
            "Couldn't open PID file /nonexistent/pid: No such file or directory"
        );
    }

    #[test]
    fn roots_of_user_namespaces_are_told_apart() {
        assert!(maps_everybody("         0          0 4294967295\n"));
        assert!(!maps_everybody("         0       1000          1\n"));
        assert!(!maps_everybody("0 0 1\n1 100000 65536\n"));
    }
}
