//! passt-repair as a process, beside a translator.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use super::{Host, LONG, Translator, janitor, wait_until};

/// A helper at work.
#[derive(Debug)]
pub struct Repair(Child);

impl Repair {
    /// Ours.
    pub fn ours() -> &'static OsStr {
        env!("CARGO_BIN_EXE_passt-repair").as_ref()
    }

    /// Where a translator waits for one.
    pub fn path(of: &Translator) -> PathBuf {
        format!("{}.repair", of.socket().display()).into()
    }

    /// Starts one for the socket at `path`, or for the one that appears in that folder.
    pub fn start(host: &Host, path: &Path, binary: &OsStr) -> Self {
        let child = host.run(|| {
            Command::new(binary)
                .arg(path)
                .stdin(Stdio::null())
                .spawn()
                .unwrap()
        });
        janitor::watch_pid(child.id());
        Self(child)
    }

    /// The same, and returns once it is connected, which is when it shuts itself in.
    pub fn connected(host: &Host, path: &Path, binary: &OsStr) -> Self {
        let helper = Self::start(host, path, binary);
        let status = format!("/proc/{}/status", helper.pid());
        let ready = || fs::read_to_string(&status).is_ok_and(|text| text.contains("Seccomp:\t2"));
        assert!(wait_until(LONG, ready));
        helper
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// How it ended when it was sent away.
    pub fn end(mut self) -> Option<i32> {
        assert!(wait_until(LONG, || self.0.try_wait().unwrap().is_some()));
        self.0.try_wait().unwrap().unwrap().code()
    }
}

impl Drop for Repair {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
        janitor::gone(self.0.id());
    }
}
