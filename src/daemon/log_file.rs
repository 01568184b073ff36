//! A log file of bounded size: when it is full, the oldest third or so makes room. Or a FIFO, a terminal and the like, which
//! has no size.

use std::{
    env, fmt,
    fs::{File, OpenOptions},
    io::{self, Seek, SeekFrom, Write},
    os::{
        fd::AsFd,
        unix::fs::{FileExt, OpenOptionsExt},
    },
    path::Path,
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::sys::reason;

/// The part of the size, in percent, that goes when the file is full.
const CUT_PERCENT: u64 = 30;

/// The longest message that is kept whole, in octets.
const MESSAGE_MAX: usize = 8_192;

/// The open file.
#[derive(Debug)]
pub(super) struct LogFile {
    file: File,
    /// Whether it is a regular file, in which one can go back.
    regular: bool,
    /// How the first line begins.
    title: String,
    /// The number of the process that stays, as the caller sees it.
    pid: AtomicU32,
    start: Instant,
    /// Octets the file may have.
    limit: u64,
    /// Octets of the first line, 0 until there is one.
    header: AtomicU64,
    /// Held while one thread writes: lines stay whole and sorted.
    busy: AtomicBool,
}

impl LogFile {
    /// Opens or creates the file with mode 0600 and empties it. Timestamps count from `start`.
    ///
    /// # Errors
    /// One line for a person.
    pub(super) fn open(path: &Path, limit: u64, start: Instant) -> Result<Self, String> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path)
            .map_err(|error| {
                format!(
                    "Couldn't open log file {}: {}",
                    path.display(),
                    reason(&error)
                )
            })?;
        Ok(Self {
            regular: file.metadata().is_ok_and(|data| data.is_file()),
            file,
            title: title(),
            pid: AtomicU32::new(0),
            start,
            limit,
            header: AtomicU64::new(0),
            busy: AtomicBool::new(false),
        })
    }

    /// Writes the header: who we are, now that the process has the number it keeps, which is `pid`. What was said before
    /// moves below it, if it can. A full disk is no error, the log stays empty then.
    pub(super) fn begin(&self, pid: u32) {
        self.pid.store(pid, Ordering::Relaxed);
        let header = format!("{} ({pid})\n", self.title);
        if !self.regular {
            return say(&self.file, header.as_bytes());
        }
        let mut text = header.clone().into_bytes();
        let mut early = vec![0; self.end().unwrap_or(0) as usize];
        if self.file.read_exact_at(&mut early, 0).is_ok() {
            text.append(&mut early);
        }
        if self.file.write_all_at(&text, 0).is_ok() {
            self.header.store(octets(&header), Ordering::Relaxed);
        }
    }

    /// Adds a message with the time and its label. What cannot be written is lost: there is nobody to tell.
    pub(super) fn append(&self, label: &str, message: &str) {
        while self.busy.swap(true, Ordering::Acquire) {
            thread::yield_now();
        }
        let end = message.floor_char_boundary(MESSAGE_MAX);
        let stamp = Stamp(self.start.elapsed());
        let line = format!("{stamp}{label}{}\n", &message[..end]);
        let _ = self.append_line(stamp, line.as_bytes());
        self.busy.store(false, Ordering::Release);
    }

    fn append_line(&self, stamp: Stamp, line: &[u8]) -> io::Result<()> {
        if !self.regular {
            say(&self.file, line);
            return Ok(());
        }
        let mut len = self.end()?;
        if len + line.len() as u64 > self.limit {
            len = self.cut(stamp, len)?;
        }
        if let Err(error) = self.file.write_all_at(line, len) {
            // No half lines.
            self.file.set_len(len)?;
            return Err(error);
        }
        Ok(())
    }

    /// Where the file ends now: others may write to it, or empty it. By lseek(2), which the sandbox allows.
    fn end(&self) -> io::Result<u64> {
        (&self.file).seek(SeekFrom::End(0))
    }

    /// Moves the newest lines to the front, below a new header, and returns the new length.
    fn cut(&self, stamp: Stamp, len: u64) -> io::Result<u64> {
        let pid = self.pid.load(Ordering::Relaxed);
        let cut_at = stamp.bare();
        let header = format!("{} ({pid}) - log truncated at {cut_at}\n", self.title);
        let old_header = self.header.load(Ordering::Relaxed);
        let excess = len.saturating_sub(self.limit) + self.limit * CUT_PERCENT / 100;
        let mut from = self.next_line(old_header + excess, len)?;
        let mut to = octets(&header);
        let mut block = [0; 8_192];
        while from < len {
            let read = self.file.read_at(&mut block, from)?;
            if read == 0 {
                break;
            }
            self.file.write_all_at(&block[..read], to)?;
            from += read as u64;
            to += read as u64;
        }
        self.file.write_all_at(header.as_bytes(), 0)?;
        self.file.set_len(to)?;
        self.header.store(octets(&header), Ordering::Relaxed);
        Ok(to)
    }

    /// The start of the first line at or after `at`, or `end`.
    fn next_line(&self, mut at: u64, end: u64) -> io::Result<u64> {
        let mut block = [0; 512];
        // From the octet before: it may be the very end of a line.
        at = at.saturating_sub(1);
        while at < end {
            let read = self.file.read_at(&mut block, at)?;
            if read == 0 {
                break;
            }
            if let Some(newline) = block[..read].iter().position(|&b| b == b'\n') {
                return Ok(at + newline as u64 + 1);
            }
            at += read as u64;
        }
        Ok(end)
    }
}

/// To be asked while files can be found.
fn title() -> String {
    let program = env::current_exe().unwrap_or_default();
    let version = env!("CARGO_PKG_VERSION");
    format!("passt {version}: {}", program.display())
}

fn octets(text: &str) -> u64 {
    text.len() as u64
}

/// Writes a message, unless that would wait for a reader who does not read: a pipe that is writable takes PIPE_BUF octets at
/// once (pipe(7)).
pub(super) fn say(mut to: impl Write + AsFd, message: &[u8]) {
    for piece in message.chunks(libc::PIPE_BUF) {
        let mut writable = [PollFd::new(to.as_fd(), PollFlags::POLLOUT)];
        if poll(&mut writable, PollTimeout::ZERO) == Ok(0) {
            return;
        }
        let _ = to.write_all(piece);
    }
}

/// Time since the start, in seconds and tenths of milliseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stamp(pub(super) Duration);

impl Stamp {
    fn bare(self) -> String {
        format!("{}.{:04}", self.0.as_secs(), self.0.subsec_micros() / 100)
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.bare())
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Read, os::unix::fs::PermissionsExt, path::PathBuf, process};

    use nix::{sys::stat::Mode, unistd::mkfifo};

    use super::*;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            Self(env::temp_dir().join(format!("passt-log-{name}-{}", process::id())))
        }

        fn log(&self, limit: u64) -> LogFile {
            let log = LogFile::open(&self.0, limit, Instant::now()).unwrap();
            log.begin(process::id());
            log
        }

        fn lines(&self) -> Vec<String> {
            let text = fs::read_to_string(&self.0).unwrap();
            text.lines().map(str::to_owned).collect()
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    fn stamp(line: &str) -> f64 {
        line.split(':').next().unwrap().parse().unwrap()
    }

    /// Regressions S11 and C45.
    #[test]
    fn an_old_file_is_emptied_and_a_new_one_is_private() {
        let scratch = Scratch::new("fresh");
        scratch.log(50_000);
        let mode = fs::metadata(&scratch.0).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::write(&scratch.0, "old and long ".repeat(1_000)).unwrap();
        let log = scratch.log(50_000);
        log.append("ERROR:   ", "it burns");
        let [header, line] = &scratch.lines()[..] else {
            panic!("{:?}", scratch.lines());
        };
        assert!(header.starts_with("passt ") && header.ends_with(&format!("({})", process::id())));
        assert!(line.ends_with(": ERROR:   it burns"), "{line}");
    }

    /// Regression C58.
    #[test]
    fn a_full_file_loses_its_oldest_lines_keeps_its_header_and_stays_sorted() {
        let scratch = Scratch::new("full");
        let limit = 50_000;
        let log = scratch.log(limit);
        let mut cuts = 0;
        let mut before = 0;
        for n in 0..10_000 {
            log.append("info:    ", &format!("message {n} {}", "x".repeat(n % 90)));
            let len = fs::metadata(&scratch.0).unwrap().len();
            assert!(len <= limit, "{len} at {n}");
            if len < before {
                cuts += 1;
                assert!(len > limit / 2, "only {len} left");
            }
            before = len;
        }
        assert!(cuts > 5);
        let lines = scratch.lines();
        assert!(lines[0].starts_with("passt ") && lines[0].contains(" - log truncated at "));
        let stamps: Vec<f64> = lines[1..].iter().map(|line| stamp(line)).collect();
        assert!(stamps.is_sorted());
        for (line, n) in lines[1..].iter().rev().zip((0..10_000).rev()) {
            assert!(line.contains(&format!("message {n} ")), "{line} for {n}");
        }
    }

    #[test]
    fn lines_of_several_threads_stay_whole() {
        let scratch = Scratch::new("threads");
        let log = scratch.log(50_000);
        thread::scope(|scope| {
            for letter in ["a", "b", "c"] {
                let log = &log;
                scope.spawn(move || {
                    for _ in 0..1_000 {
                        log.append("", &letter.repeat(40));
                    }
                });
            }
        });
        let lines = scratch.lines();
        let stamps: Vec<f64> = lines[1..].iter().map(|line| stamp(line)).collect();
        assert!(stamps.is_sorted());
        for line in &lines[1..] {
            let text = line.split_once(": ").unwrap().1;
            let letter = &text[..1];
            assert_eq!(text, letter.repeat(40));
        }
    }

    #[test]
    fn a_message_longer_than_the_file_is_cut() {
        let scratch = Scratch::new("long");
        let log = scratch.log(40_960);
        log.append("", &"ü".repeat(100_000));
        assert!(fs::metadata(&scratch.0).unwrap().len() < 40_960);
    }

    #[test]
    fn a_full_disk_is_no_reason_to_fail() {
        let log = LogFile::open(Path::new("/dev/full"), 50_000, Instant::now()).unwrap();
        log.append("", "too early");
        log.begin(process::id());
        log.append("", "lost");
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_named_with_the_reason() {
        let path = Path::new("/nonexistent/log");
        assert_eq!(
            LogFile::open(path, 50_000, Instant::now()).unwrap_err(),
            "Couldn't open log file /nonexistent/log: No such file or directory"
        );
    }

    /// Nobody reads standard error of a start that went well.
    #[test]
    fn what_was_said_before_the_header_stands_below_it() {
        let scratch = Scratch::new("early");
        let log = LogFile::open(&scratch.0, 50_000, Instant::now()).unwrap();
        log.append("WARNING: ", "first");
        log.append("WARNING: ", "second");
        log.begin(17);
        log.append("info:    ", "third");
        let [header, lines @ ..] = &scratch.lines()[..] else {
            panic!("empty");
        };
        assert!(
            header.starts_with("passt ") && header.ends_with(" (17)"),
            "{header}"
        );
        for (line, word) in lines.iter().zip(["first", "second", "third"]) {
            assert!(line.ends_with(word), "{line}");
        }
        assert_eq!(lines.len(), 3);
    }

    /// What was said before the header is gone by then. Nobody waits for a reader who stops.
    #[test]
    fn a_fifo_takes_header_and_lines_and_holds_nobody_up() {
        let scratch = Scratch::new("fifo");
        mkfifo(&scratch.0, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        let mut open = OpenOptions::new();
        open.read(true).custom_flags(libc::O_NONBLOCK);
        let mut reader = open.open(&scratch.0).unwrap();
        let log = LogFile::open(&scratch.0, 50_000, Instant::now()).unwrap();
        log.append("WARNING: ", "first");
        log.begin(17);
        log.append("info:    ", "second");
        let mut text = vec![0; 10_000];
        let read = reader.read(&mut text).unwrap();
        let text = String::from_utf8_lossy(&text[..read]).into_owned();
        let [first, header, second] = &text.lines().collect::<Vec<_>>()[..] else {
            panic!("{text}");
        };
        assert!(first.ends_with(": WARNING: first"), "{first}");
        assert!(
            header.starts_with("passt ") && header.ends_with(" (17)"),
            "{header}"
        );
        assert!(second.ends_with(": info:    second"), "{second}");
        for _ in 0..1_000 {
            log.append("", &"x".repeat(1_000));
        }
    }

    /// By logrotate(8) with copytruncate, or by hand.
    #[test]
    fn a_file_that_somebody_emptied_goes_on_from_its_start() {
        let scratch = Scratch::new("emptied");
        let log = scratch.log(50_000);
        log.append("info:    ", "before");
        File::options()
            .write(true)
            .open(&scratch.0)
            .and_then(|file| file.set_len(0))
            .unwrap();
        log.append("info:    ", "after");
        let [line] = &scratch.lines()[..] else {
            panic!("{:?}", scratch.lines());
        };
        assert!(
            line.ends_with(": info:    after") && !line.contains('\0'),
            "{line:?}"
        );
    }

    #[test]
    fn two_processes_may_share_a_file() {
        let scratch = Scratch::new("shared");
        let limit = 50_000;
        let [one, other] = [10 * limit, limit].map(|limit| scratch.log(limit));
        for n in 0..10 {
            one.append("", &format!("one {n}"));
            other.append("", &format!("other {n}"));
        }
        let lines = scratch.lines();
        for n in 0..10 {
            for name in ["one", "other"] {
                let end = format!(": {name} {n}");
                assert!(lines.iter().any(|line| line.ends_with(&end)), "{end}");
            }
        }
        // Whoever has the smaller limit keeps to it, however much there is.
        for _ in 0..1_000 {
            one.append("", &"x".repeat(100));
        }
        other.append("", "last");
        assert!(fs::metadata(&scratch.0).unwrap().len() <= limit);
        assert!(scratch.lines().last().unwrap().ends_with(": last"));
    }

    /// Regression C51.
    #[test]
    fn the_lines_of_a_message_have_one_stamp_and_one_label() {
        let scratch = Scratch::new("lines");
        let log = scratch.log(50_000);
        log.append("info:    ", "Flows: 2\n    TCP: 1\n    UDP: 1");
        let [_, first, second, third] = &scratch.lines()[..] else {
            panic!("{:?}", scratch.lines());
        };
        assert!(first.ends_with(": info:    Flows: 2"), "{first}");
        assert_eq!(
            (second.as_str(), third.as_str()),
            ("    TCP: 1", "    UDP: 1")
        );
    }

    /// Regression C52; the clock itself is the monotonic one.
    #[test]
    fn stamps_carry_into_the_next_second() {
        let of = |micros| Stamp(Duration::from_micros(micros)).to_string();
        assert_eq!(of(99), "0.0000: ");
        assert_eq!(of(999_999), "0.9999: ");
        assert_eq!(of(1_000_000), "1.0000: ");
        assert_eq!(of(61_002_300), "61.0023: ");
    }
}
