//! Where log lines go: to stderr until the start is complete, then to stderr, the system log, or a file of bounded size.

use std::{
    fmt::Write as _,
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::{fs::OpenOptionsExt, net::UnixDatagram},
    path::Path,
    process,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::{config::Verbosity, sys::reason};

/// The system log's socket (syslog(3)).
const SYSLOG: &str = "/dev/log";

/// Facility "daemon" (RFC 3164, section 4.1.1), in the place of the severity's upper bits.
const FACILITY: u8 = 3 << 3;

/// The least size of a log file, in octets: less would be cut all the time.
pub const FILE_LEAST: u64 = 40_960;

/// A full log file loses this share of its oldest lines, in percent.
const CUT: u64 = 30;

/// What follows the start.
#[derive(Debug)]
pub enum Destination {
    Stderr,
    Syslog(UnixDatagram),
    File(LogFile),
}

impl Destination {
    /// The system log; silence where there is none.
    pub fn syslog() -> Self {
        let socket = UnixDatagram::unbound().and_then(|socket| {
            socket.set_nonblocking(true)?;
            // A log daemon that is absent now is not waited for.
            let _ = socket.connect(SYSLOG);
            Ok(socket)
        });
        socket.map_or(Self::Stderr, Self::Syslog)
    }
}

/// The process's logger, made once.
#[derive(Debug)]
pub struct Logger {
    start: Instant,
    verbosity: Verbosity,
    destination: Mutex<Destination>,
}

impl Logger {
    /// Makes the logger, for stderr at first.
    pub fn install(verbosity: Verbosity) -> &'static Self {
        let logger: &'static Self = Box::leak(Box::new(Self {
            start: Instant::now(),
            verbosity,
            destination: Mutex::new(Destination::Stderr),
        }));
        // Only a second logger could be refused, and there is none.
        let _ = log::set_logger(logger);
        log::set_max_level(match verbosity {
            Verbosity::Quiet => LevelFilter::Warn,
            Verbosity::Info => LevelFilter::Info,
            Verbosity::Debug => LevelFilter::Debug,
            Verbosity::Trace => LevelFilter::Trace,
        });
        logger
    }

    /// Sends what follows elsewhere.
    pub fn redirect(&self, to: Destination) {
        *self
            .destination
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = to;
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let micros = self.start.elapsed().as_micros();
        let mut destination = self
            .destination
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // A message that cannot be written anywhere is lost: nobody could be told.
        let _ = match &mut *destination {
            Destination::Stderr => to_stderr(record, micros, self.verbosity),
            Destination::Syslog(socket) => to_syslog(socket, record),
            Destination::File(file) => file.record(record, micros),
        };
    }

    fn flush(&self) {}
}

fn to_stderr(record: &Record<'_>, micros: u128, verbosity: Verbosity) -> io::Result<()> {
    let mut line = String::new();
    if verbosity >= Verbosity::Debug {
        let _ = write!(
            line,
            "{}.{:04}: ",
            micros / 1_000_000,
            micros % 1_000_000 / 100
        );
    }
    let _ = writeln!(line, "{}", record.args());
    io::stderr().write_all(line.as_bytes())
}

fn to_syslog(socket: &UnixDatagram, record: &Record<'_>) -> io::Result<()> {
    let severity = match record.level() {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    };
    let line = format!("<{}>passt: {}", FACILITY | severity, record.args());
    socket.send(line.as_bytes()).map(drop).or_else(|_| {
        socket.connect(SYSLOG)?;
        socket.send(line.as_bytes()).map(drop)
    })
}

/// A log file that keeps to its size by losing its oldest lines.
#[derive(Debug)]
pub struct LogFile {
    file: File,
    size: u64,
    limit: u64,
    /// The first line, kept for ever.
    header: String,
}

impl LogFile {
    /// Begins a new log of at most `limit` octets, readable by its owner alone.
    ///
    /// # Errors
    /// One line: the file cannot be opened.
    pub fn create(path: &Path, limit: u64) -> Result<Self, String> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path);
        let file = file.map_err(|error| {
            format!(
                "Couldn't open log file {}: {}",
                path.display(),
                reason(&error)
            )
        })?;
        let executable = std::env::current_exe()
            .map_or_else(|_| "passt".into(), |path| path.display().to_string());
        let header = format!("passt {}: {executable}", env!("CARGO_PKG_VERSION"));
        Ok(Self {
            file,
            size: 0,
            limit,
            header,
        })
    }

    /// Writes the first line; by now the process has the number it keeps.
    ///
    /// # Errors
    /// Those of write(2).
    pub fn begin(&mut self) -> io::Result<()> {
        let _ = write!(self.header, " ({})", process::id());
        let header = format!("{}\n", self.header);
        self.append(&header)
    }

    fn record(&mut self, record: &Record<'_>, micros: u128) -> io::Result<()> {
        let name = match record.level() {
            Level::Error => "ERROR:   ",
            Level::Warn => "WARNING: ",
            Level::Info => "info:    ",
            Level::Debug | Level::Trace => "         ",
        };
        let line = format!(
            "{}.{:04}: {name}{}\n",
            micros / 1_000_000,
            micros % 1_000_000 / 100,
            record.args()
        );
        if self.size + line.len() as u64 > self.limit {
            self.cut(micros)?;
        }
        self.append(&line)
    }

    fn append(&mut self, text: &str) -> io::Result<()> {
        self.file.write_all(text.as_bytes())?;
        self.size += text.len() as u64;
        Ok(())
    }

    /// Drops the oldest lines behind the header.
    fn cut(&mut self, micros: u128) -> io::Result<()> {
        let mut text = Vec::new();
        self.file.seek(SeekFrom::Start(0))?;
        self.file.read_to_end(&mut text)?;
        let from = (self.limit * CUT / 100).min(text.len() as u64) as usize;
        let rest = text.get(from..).unwrap_or_default();
        let line = rest
            .iter()
            .position(|&octet| octet == b'\n')
            .map_or(rest.len(), |at| at + 1);
        let kept = rest.get(line..).unwrap_or_default();
        self.file.seek(SeekFrom::Start(0))?;
        self.file.set_len(0)?;
        self.size = 0;
        let header = format!(
            "{} - log truncated at {}.{:04}\n",
            self.header,
            micros / 1_000_000,
            micros % 1_000_000 / 100
        );
        self.append(&header)?;
        self.file.write_all(kept)?;
        self.size += kept.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// C58.
    #[test]
    fn a_log_file_keeps_its_size_its_header_and_its_order() {
        let path = std::env::temp_dir().join(format!("passt-log-test-{}", process::id()));
        let mut log = LogFile::create(&path, FILE_LEAST).unwrap();
        log.begin().unwrap();
        for n in 0..5_000_u128 {
            let args = format_args!("message {n}");
            log.record(
                &Record::builder().args(args).level(Level::Info).build(),
                n * 1_000,
            )
            .unwrap();
        }
        let text = fs::read_to_string(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert!(
            text.len() as u64 <= FILE_LEAST && text.len() as u64 > FILE_LEAST / 2,
            "{}",
            text.len()
        );
        let mut lines = text.lines();
        let header = lines.next().unwrap();
        assert!(
            header.starts_with("passt ")
                && header.contains(&format!("({}) - log truncated at", process::id())),
            "{header}"
        );
        let times: Vec<f64> = lines
            .map(|line| line.split(':').next().unwrap().parse().unwrap())
            .collect();
        assert!(times.is_sorted());
        assert!(text.ends_with("4.9990: info:    message 4999\n"));
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_named_with_the_reason() {
        let error = LogFile::create(Path::new("/nowhere/log"), 1 << 20).unwrap_err();
        assert_eq!(
            error,
            "Couldn't open log file /nowhere/log: No such file or directory"
        );
    }
}
