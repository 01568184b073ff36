//! Where messages go: standard error until we are in the background (for ever in the foreground), the system log, or a log
//! file instead of that. No destination's trouble is ours: what cannot be written is lost.

use std::{
    io,
    os::unix::net::UnixDatagram,
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use log::{Level, LevelFilter, Log, Metadata, Record};

use super::log_file::{LogFile, Stamp, say};
use crate::config::{Config, Verbosity};

/// Where the system log listens (syslog(3)).
const SYSLOG: &str = "/dev/log";

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
        syslog: wants_syslog.then(Syslog::open).flatten(),
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

/// The system log. Not by libc's client, which would wait for a daemon that is slow.
#[derive(Debug)]
struct Syslog(UnixDatagram);

impl Syslog {
    fn open() -> Option<Self> {
        let socket = UnixDatagram::unbound().ok()?;
        socket.set_nonblocking(true).ok()?;
        // A log daemon that is absent may come later; every message tries again.
        let _ = socket.connect(SYSLOG);
        Some(Self(socket))
    }

    fn send(&self, level: Level, message: &str) {
        for line in message.lines().filter(|line| !line.is_empty()) {
            let datagram = datagram(level, line);
            let sent = self.0.send(datagram.as_bytes());
            let gone = sent.is_err_and(|error| error.kind() != io::ErrorKind::WouldBlock);
            if gone && self.0.connect(SYSLOG).is_ok() {
                let _ = self.0.send(datagram.as_bytes());
            }
        }
    }
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
    use super::*;

    #[test]
    fn syslog_datagrams_name_facility_severity_and_program() {
        assert_eq!(datagram(Level::Error, "a"), "<27>passt: a");
        assert_eq!(datagram(Level::Warn, "a"), "<28>passt: a");
        assert_eq!(datagram(Level::Info, "a"), "<30>passt: a");
        assert_eq!(datagram(Level::Trace, "a"), "<31>passt: a");
    }
}
