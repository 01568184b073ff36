//! Where messages go: standard error until we are in the background (for ever in the foreground), the system log, or a log
//! file instead of that. No destination's trouble is ours: what cannot be written is lost.

use std::{
    io,
    os::{fd::AsFd, unix::net::UnixDatagram},
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use log::{Level, LevelFilter, Log, Metadata, Record};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::log_file::{LogFile, Stamp, say};
use crate::config::{Config, Verbosity};

/// Where the system log listens (syslog(3)).
const SYSLOG: &str = "/dev/log";

/// How long a start may wait for a system log with a full queue, in all: the print-out alone has more lines than the ten
/// that fit where nobody asked for more.
const PATIENCE: Duration = Duration::from_millis(500);

/// Facility "daemon" (RFC 3164, section 4.1.1), in the place of the severity's upper bits.
const FACILITY: u8 = 3 << 3;

/// The destinations of all messages of this process.
#[derive(Debug)]
pub struct Destinations {
    start: Instant,
    level: LevelFilter,
    /// Whether standard error still is somebody's.
    stderr: AtomicBool,
    syslog: Option<Syslog>,
    file: Option<LogFile>,
}

/// Opens the destinations the configuration names and takes all messages from here on.
///
/// # Errors
/// One line for a person: the log file cannot be opened. A system log that is not there is none.
pub fn init(config: &Config) -> Result<&'static Destinations, String> {
    let start = Instant::now();
    let level = match config.verbosity {
        Verbosity::Quiet => LevelFilter::Warn,
        Verbosity::Info => LevelFilter::Info,
        Verbosity::Debug => LevelFilter::Debug,
        Verbosity::Trace => LevelFilter::Trace,
    };
    let file = config.log_file.as_ref();
    let file = file
        .map(|path| LogFile::open(path, config.log_size, start))
        .transpose()?;
    let wants_syslog = file.is_none() && level <= LevelFilter::Info;
    let destinations: &'static Destinations = Box::leak(Box::new(Destinations {
        start,
        level,
        stderr: AtomicBool::new(true),
        syslog: wants_syslog
            .then(|| Syslog::open(Path::new(SYSLOG), PATIENCE))
            .flatten(),
        file,
    }));
    log::set_logger(destinations).map_err(|error| error.to_string())?;
    log::set_max_level(level);
    Ok(destinations)
}

impl Destinations {
    /// Begins the log file, if there is one: to be called once this process is the one that stays. `pid` is its number as
    /// the caller sees it.
    pub fn begin(&self, pid: u32) {
        if let Some(file) = &self.file {
            file.begin(pid);
        }
    }

    /// Leaves standard error alone from now on: it is about to become /dev/null.
    pub fn leave_stderr(&self) {
        self.stderr.store(false, Ordering::Relaxed);
    }

    /// From now on there is a guest to serve, and nothing waits for the system log.
    pub fn wait_no_more(&self) {
        if let Some(syslog) = &self.syslog {
            syslog.patience.store(0, Ordering::Relaxed);
        }
    }
}

impl Log for Destinations {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Libraries have no say here.
        metadata.level() <= self.level && metadata.target().starts_with("passt")
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let message = record.args().to_string();
        if self.stderr.load(Ordering::Relaxed) {
            let stamp = match self.level {
                LevelFilter::Debug | LevelFilter::Trace => Stamp(self.start.elapsed()).to_string(),
                _ => String::new(),
            };
            say(io::stderr(), format!("{stamp}{message}\n").as_bytes());
        }
        if let Some(syslog) = &self.syslog {
            syslog.send(record.level(), &message);
        }
        if let Some(file) = &self.file {
            file.append(label(record.level()), &message);
        }
    }

    fn flush(&self) {}
}

const fn label(level: Level) -> &'static str {
    match level {
        Level::Error => "ERROR:   ",
        Level::Warn => "WARNING: ",
        Level::Info => "info:    ",
        Level::Debug | Level::Trace => "         ",
    }
}

/// The system log. Not by libc's client, which would wait for ever for a daemon that is slow.
#[derive(Debug)]
struct Syslog {
    socket: UnixDatagram,
    path: &'static Path,
    /// Microseconds that may still be waited.
    patience: AtomicU64,
}

impl Syslog {
    fn open(path: &'static Path, patience: Duration) -> Option<Self> {
        let socket = UnixDatagram::unbound().ok()?;
        socket.set_nonblocking(true).ok()?;
        // A log daemon that is absent may come later; every message tries again.
        let _ = socket.connect(path);
        Some(Self {
            socket,
            path,
            patience: AtomicU64::new(micros(patience)),
        })
    }

    fn send(&self, level: Level, message: &str) {
        for line in message.lines().filter(|line| !line.is_empty()) {
            let datagram = datagram(level, line);
            let sent = self.deliver(datagram.as_bytes());
            let gone = sent.is_err_and(|error| error.kind() != io::ErrorKind::WouldBlock);
            if gone && self.socket.connect(self.path).is_ok() {
                let _ = self.deliver(datagram.as_bytes());
            }
        }
    }

    fn deliver(&self, datagram: &[u8]) -> io::Result<usize> {
        loop {
            match self.socket.send(datagram) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && self.room() => {}
                sent => return sent,
            }
        }
    }

    /// Waits for room as long as there is patience: whether there seems to be some.
    fn room(&self) -> bool {
        let patience = Duration::from_micros(self.patience.load(Ordering::Relaxed));
        let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::ZERO);
        let start = Instant::now();
        let mut writable = [PollFd::new(self.socket.as_fd(), PollFlags::POLLOUT)];
        let ready = !patience.is_zero() && poll(&mut writable, timeout).is_ok_and(|n| n > 0);
        // Each time some: room that others take first is waited for no longer.
        let left = patience.saturating_sub(start.elapsed().max(Duration::from_micros(1)));
        self.patience.store(micros(left), Ordering::Relaxed);
        ready
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn datagram(level: Level, line: &str) -> String {
    // LOG_ERR, LOG_WARNING, LOG_INFO, LOG_DEBUG of syslog(3).
    let severity = match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    };
    format!("<{}>passt: {line}", FACILITY | severity)
}

#[cfg(test)]
mod tests {
    use std::{env, fs, process, thread};

    use super::*;

    /// More than any queue of datagrams holds.
    const MANY: usize = 5_000;

    /// A system log with nobody reading yet, and our end.
    fn syslog(name: &str, patience: Duration) -> (UnixDatagram, Syslog) {
        let path = env::temp_dir().join(format!("passt-syslog-{name}-{}", process::id()));
        let path: &'static Path = Box::leak(path.into_boxed_path());
        let reader = UnixDatagram::bind(path).unwrap();
        let ours = Syslog::open(path, patience).unwrap();
        fs::remove_file(path).unwrap();
        (reader, ours)
    }

    /// Numbered lines.
    fn send_many(syslog: &Syslog) {
        for n in 0..MANY {
            syslog.send(Level::Info, &n.to_string());
        }
    }

    #[test]
    fn a_start_waits_for_a_system_log_with_a_full_queue() {
        let long = Duration::from_secs(60);
        let (reader, ours) = syslog("waits", long);
        reader.set_read_timeout(Some(long)).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| send_many(&ours));
            let mut line = [0; 100];
            for n in 0..MANY {
                let length = reader.recv(&mut line).unwrap();
                let wanted = format!("<30>passt: {n}");
                assert_eq!(String::from_utf8_lossy(&line[..length]), wanted);
            }
        });
    }

    #[test]
    fn a_system_log_that_nobody_reads_is_not_waited_for_longer_than_that() {
        for patience in [Duration::ZERO, Duration::from_millis(20)] {
            let (_reader, ours) = syslog("ignored", patience);
            send_many(&ours);
            assert_eq!(ours.patience.load(Ordering::Relaxed), 0);
        }
    }

    #[test]
    fn syslog_datagrams_name_facility_severity_and_program() {
        assert_eq!(datagram(Level::Error, "a"), "<27>passt: a");
        assert_eq!(datagram(Level::Warn, "a"), "<28>passt: a");
        assert_eq!(datagram(Level::Info, "a"), "<30>passt: a");
        assert_eq!(datagram(Level::Trace, "a"), "<31>passt: a");
    }
}
