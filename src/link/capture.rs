//! A capture of everything on the link, in the order it passed.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufWriter, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use crate::wire::pcap;

/// A capture file. Where it cannot be written any more (a full disk, say) it ends, and nothing else does.
#[derive(Debug)]
pub struct Capture {
    file: Option<BufWriter<File>>,
}

impl Capture {
    /// Begins a new capture; readable by the owner alone, what the file held before is gone.
    ///
    /// # Errors
    /// Those of open(2) and write(2).
    pub fn create(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path)?;
        let mut file = BufWriter::with_capacity(256 * 1024, file);
        file.write_all(&pcap::file_header())?;
        file.flush()?;
        Ok(Self { file: Some(file) })
    }

    /// Records one frame, given in pieces.
    pub(super) fn record(&mut self, pieces: &[&[u8]]) {
        let Some(file) = &mut self.file else { return };
        // A clock before 1970 is as good as none.
        let at = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let len = pieces.iter().map(|piece| piece.len()).sum();
        let mut write = || -> io::Result<()> {
            file.write_all(&pcap::record_header(at, len))?;
            pieces.iter().try_for_each(|piece| file.write_all(piece))
        };
        if let Err(error) = write() {
            log::warn!("Capture ends here: {error}");
            self.file = None;
        }
    }

    /// Brings the file up to date.
    pub(super) fn flush(&mut self) {
        if let Some(Err(error)) = self.file.as_mut().map(Write::flush) {
            log::warn!("Capture ends here: {error}");
            self.file = None;
        }
    }
}
