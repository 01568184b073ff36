//! What a process says, collected while it runs.

use std::{
    io::Read,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use super::wait_until;

/// A pipe's text so far.
#[derive(Debug, Default)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    pub fn follow(mut from: impl Read + Send + 'static) -> Self {
        let log = Self::default();
        let text = Arc::clone(&log.0);
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(n @ 1..) = from.read(&mut bytes) {
                text.lock().expect("log").extend_from_slice(&bytes[..n]);
            }
        });
        log
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().expect("log")).into_owned()
    }

    /// Waits for this, at most for so long.
    pub fn expect(&self, patience: Duration, text: &str) {
        let said = wait_until(patience, || self.text().contains(text));
        assert!(said, "never said {text:?}\n{}", self.text());
    }

    /// Waits for a line that begins so to be whole, at most for so long; without its end.
    pub fn line(&self, patience: Duration, beginning: &str) -> String {
        let mut line = None;
        let said = wait_until(patience, || {
            let text = self.text();
            let mut whole = text.split_inclusive('\n').filter(|l| l.ends_with('\n'));
            line = whole
                .find(|l| l.starts_with(beginning))
                .map(|l| l.trim_end().to_owned());
            line.is_some()
        });
        assert!(said, "{beginning}\n{}", self.text());
        line.unwrap()
    }
}
