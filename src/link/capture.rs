//! A capture of what passes the link, for `tcpdump -r` and the like.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::{fd::AsFd, unix::fs::OpenOptionsExt},
    path::Path,
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::wire::pcap;

/// Octets collected before they are written; also the largest record.
const BUFFER: usize = 256 << 10;

/// How long the end waits for who reads at a time, and in all.
const PATIENCE: Duration = Duration::from_millis(500);
const PATIENCE_MOST: Duration = Duration::from_secs(2);

/// A capture file. Records are buffered whole and written whole: the file can be read at any time, even if the disk is
/// full or we are killed, and lacks at most the last records. A FIFO and the like gets what it takes at once, and whole
/// records are left out while the buffer is full of what it does not.
#[derive(Debug)]
pub struct Capture {
    /// None once writing has failed.
    file: Option<File>,
    /// Records, but for what of the first one a FIFO took already.
    buffer: Vec<u8>,
    /// Octets in a file, which are those of whole records.
    written: u64,
    /// Records that were left out.
    missing: u64,
}

impl Capture {
    /// Creates the file for its owner alone, or empties one that exists. A FIFO that nobody reads is `ENXIO`.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)?;
        let mut capture = Self {
            file: Some(file),
            buffer: Vec::with_capacity(BUFFER),
            written: 0,
            missing: 0,
        };
        capture.buffer.extend_from_slice(&pcap::file_header());
        capture.flush()?;
        Ok(capture)
    }

    /// Adds a frame, given in pieces. The first error turns the capture off; later calls do nothing and succeed.
    pub fn record(&mut self, time_of_day: Duration, pieces: &[&[u8]]) -> io::Result<()> {
        if self.file.is_none() {
            return Ok(());
        }
        let len: usize = pieces.iter().map(|piece| piece.len()).sum();
        let header = pcap::record_header(time_of_day, u32::try_from(len).unwrap_or(u32::MAX));
        let mut left = len.min(pcap::SNAPLEN as usize);
        if self.buffer.len() + header.len() + left > BUFFER {
            self.flush()?;
        }
        if self.buffer.len() + header.len() + left > BUFFER {
            self.leave_out();
            return Ok(());
        }
        self.buffer.extend_from_slice(&header);
        for piece in pieces {
            let kept = &piece[..piece.len().min(left)];
            self.buffer.extend_from_slice(kept);
            left -= kept.len();
        }
        Ok(())
    }

    fn leave_out(&mut self) {
        if self.missing == 0 {
            log::warn!("Capture: nobody reads it as fast, frames are left out");
        }
        self.missing += 1;
    }

    /// Writes what is buffered, as far as it is taken at once. The first error turns the capture off; later calls do nothing
    /// and succeed.
    pub fn flush(&mut self) -> io::Result<()> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        match write_some(file, &self.buffer) {
            Ok(len) => {
                self.written += len as u64;
                self.buffer.drain(..len);
                Ok(())
            }
            Err(error) => {
                // Half a record at the end would make readers complain; a pipe cannot be cut, and stays as it is.
                let _ = file.set_len(self.written);
                self.file = None;
                self.buffer.clear();
                Err(error)
            }
        }
    }

    /// Writes the rest to who reads it, slowly even, but not as slowly as they please.
    fn finish(&mut self) -> io::Result<()> {
        let end = Instant::now() + PATIENCE_MOST;
        self.flush()?;
        while let Some(file) = self.file.as_ref().filter(|_| !self.buffer.is_empty()) {
            let left = end.saturating_duration_since(Instant::now());
            let patience = PollTimeout::try_from(left.min(PATIENCE)).unwrap_or(PollTimeout::ZERO);
            let mut writable = [PollFd::new(file.as_fd(), PollFlags::POLLOUT)];
            if left.is_zero() || poll(&mut writable, patience)? == 0 {
                break;
            }
            self.flush()?;
        }
        Ok(())
    }
}

/// Writes all, or as much of it as would not have us wait for who reads: how much that was.
fn write_some(mut file: &File, octets: &[u8]) -> io::Result<usize> {
    let mut rest = octets;
    while !rest.is_empty() {
        match file.write(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(len) => rest = rest.get(len..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(octets.len() - rest.len())
}

impl Drop for Capture {
    fn drop(&mut self) {
        // Nobody is left to be told of an error.
        let _ = self.finish();
        if self.missing > 0 {
            log::warn!("Capture: {} frames were left out", self.missing);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        fs,
        io::Read,
        os::unix::fs::PermissionsExt,
        path::PathBuf,
        process::{self, Command},
        thread,
    };

    use nix::{sys::stat::Mode, unistd::mkfifo};

    /// A path of this test's own, removed when dropped.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let name = format!("passt-rs-capture-{}-{name}.pcap", process::id());
            Self(std::env::temp_dir().join(name))
        }

        /// The frames in the file, with their time in microseconds and their length on the link.
        fn frames(&self) -> Vec<(u64, u32, Vec<u8>)> {
            let octets = fs::read(&self.0).unwrap();
            let (header, mut rest) = octets.split_at(24);
            assert_eq!(header, pcap::file_header());
            let mut frames = Vec::new();
            while !rest.is_empty() {
                let (header, after) = rest.split_at(16);
                let field = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
                let (frame, after) = after.split_at(field(8) as usize);
                let micros = u64::from(field(0)) * 1_000_000 + u64::from(field(4));
                frames.push((micros, field(12), frame.to_vec()));
                rest = after;
            }
            frames
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    /// An ARP request for 10.0.0.1 from 10.0.0.2.
    const ARP: &[u8] = b"\xff\xff\xff\xff\xff\xff\x02\0\0\0\0\x01\x08\x06\
        \0\x01\x08\0\x06\x04\0\x01\x02\0\0\0\0\x01\x0a\0\0\x02\0\0\0\0\0\0\x0a\0\0\x01";

    /// C53: nothing is lost at the end. S11: nobody else may read it.
    #[test]
    fn frames_are_in_the_file_when_the_capture_is_dropped() {
        let path = Scratch::new("drop");
        let mut capture = Capture::open(&path.0).unwrap();
        let time = Duration::from_micros(1_700_000_000_000_007);
        capture
            .record(time, &[&ARP[..14], &[], &ARP[14..]])
            .unwrap();
        assert_eq!(path.frames(), []);
        capture.flush().unwrap();
        capture.record(time, &[&[7; 100_000]]).unwrap();
        drop(capture);
        let micros = time.as_micros() as u64;
        let long = vec![7; pcap::SNAPLEN as usize];
        assert_eq!(
            path.frames(),
            [(micros, 42, ARP.to_vec()), (micros, 100_000, long)]
        );
        let mode = fs::metadata(&path.0).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn more_frames_than_the_buffer_holds() {
        let path = Scratch::new("many");
        fs::write(&path.0, [0xff; 100_000]).unwrap();
        let mut capture = Capture::open(&path.0).unwrap();
        for n in 0..1_000_u32 {
            let frame = vec![n as u8; 1_514];
            capture
                .record(Duration::from_micros(n.into()), &[&frame])
                .unwrap();
        }
        assert!(capture.buffer.capacity() == BUFFER);
        drop(capture);
        let frames = path.frames();
        assert_eq!(frames.len(), 1_000);
        for (n, (micros, len, frame)) in (0..).zip(frames) {
            assert_eq!((micros, len), (n, 1_514));
            assert!(frame.iter().all(|&octet| octet == n as u8));
        }
    }

    /// It is slower than we end.
    #[test]
    fn who_reads_a_fifo_slowly_finds_all_when_the_capture_is_dropped() {
        let path = Scratch::new("fifo");
        mkfifo(&path.0, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        assert!(Capture::open(&path.0).is_err());
        // Open both ways, so that nobody waits for the other end.
        let both = File::options().read(true).write(true).open(&path.0);
        let mut fifo = File::open(&path.0).unwrap();
        let mut capture = Capture::open(&path.0).unwrap();
        drop(both);
        let reader = thread::spawn(move || {
            let mut octets = Vec::new();
            while (&mut fifo).take(4_096).read_to_end(&mut octets).unwrap() > 0 {
                thread::sleep(Duration::from_millis(1));
            }
            octets.len()
        });
        for _ in 0..100 {
            capture.record(Duration::ZERO, &[&[7; 1_514]]).unwrap();
        }
        drop(capture);
        assert_eq!(reader.join().unwrap(), 24 + 100 * (16 + 1_514));
    }

    #[test]
    fn a_full_disk_turns_the_capture_off_after_one_error() {
        assert!(Capture::open(Path::new("/dev/full")).is_err());
        let mut capture = Capture {
            file: Some(OpenOptions::new().write(true).open("/dev/full").unwrap()),
            buffer: Vec::new(),
            written: 0,
            missing: 0,
        };
        capture.record(Duration::ZERO, &[ARP]).unwrap();
        let error = capture.flush().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        capture.record(Duration::ZERO, &[ARP]).unwrap();
        capture.flush().unwrap();
        assert!(capture.buffer.is_empty());
    }

    /// Only where tcpdump is installed; the format itself is checked above without it.
    #[test]
    fn tcpdump_reads_it() {
        let path = Scratch::new("tcpdump");
        let mut capture = Capture::open(&path.0).unwrap();
        capture
            .record(Duration::from_micros(1_700_000_000_000_007), &[ARP])
            .unwrap();
        drop(capture);
        // From standard input: tcpdump may run under a user that cannot read the file.
        let Ok(output) = Command::new("tcpdump")
            .args(["-n", "-tt", "-r", "-"])
            .stdin(File::open(&path.0).unwrap())
            .output()
        else {
            return;
        };
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            text.starts_with("1700000000.000007 ARP, Request who-has 10.0.0.1 tell 10.0.0.2"),
            "{text}"
        );
    }
}
