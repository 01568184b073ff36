//! A machine of QEMU's whose only card, of two queue pairs, is behind vhost-user, and which can migrate.

use std::{
    env,
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
    process::{Child, Command, Stdio},
    sync::OnceLock,
};

use crate::lab::{Log, PATIENCE, janitor, wait_until};

/// Kernel and first file system of the guest; none where this machine cannot boot it.
fn disk() -> Option<&'static (String, janitor::TempDir)> {
    static DISK: OnceLock<Option<(String, janitor::TempDir)>> = OnceLock::new();
    DISK.get_or_init(|| {
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/demo");
        let found = Command::new(demo.join("kernel")).output().ok()?;
        let found = String::from_utf8(found.stdout).ok()?;
        let mut lines = found.lines();
        let (kernel, modules) = (lines.next()?.to_owned(), lines.next()?);
        let folder = janitor::TempDir::new();
        let init = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/migration/guest-init");
        let made = Command::new(demo.join("image"))
            .env("INIT", init)
            .arg(modules)
            .arg(folder.path().join("image"))
            .status();
        made.ok()?.success().then_some((kernel, folder))
    })
    .as_ref()
}

/// Whether machines can be had here.
pub fn can_run() -> bool {
    let qemu = Command::new("qemu-system-x86_64").arg("--version").output();
    let can = qemu.is_ok() && disk().is_some();
    if !can {
        println!("skipped: needs QEMU and a guest kernel (contrib/setup.sh)");
    }
    can
}

#[derive(Debug)]
pub struct Machine {
    process: Child,
    console: Log,
    qmp: BufReader<UnixStream>,
    keyboard: std::process::ChildStdin,
    folder: janitor::TempDir,
}

impl Machine {
    /// A machine behind the translator at `socket`. It boots, or waits for a guest.
    pub fn start(socket: &Path, waits: bool) -> Self {
        let (kernel, image) = disk().expect("can_run() was asked");
        let folder = janitor::TempDir::new();
        let qmp = folder.path().join("qmp");
        let image = image.path().join("image");
        let mut command = Command::new("qemu-system-x86_64");
        // With a thread for each processor QEMU 10.0 fails an assertion of its own now and then (iotlb_to_section).
        command
            .args([
                "-accel",
                "tcg,thread=single",
                "-cpu",
                "max",
                "-smp",
                "2",
                "-m",
                "160",
                "-nodefaults",
            ])
            .args(["-no-user-config", "-no-reboot", "-display", "none"])
            .args(["-serial", "stdio"])
            .args([
                "-object",
                "memory-backend-memfd,id=memory,size=160M,share=on",
            ])
            .args(["-machine", "pc,memory-backend=memory"])
            .arg("-kernel")
            .arg(kernel)
            .arg("-initrd")
            .arg(image)
            .args([
                "-append",
                "console=ttyS0 quiet panic=-1 no_timer_check peer4=192.0.2.1 peer6=2001:db8:7::1",
            ])
            .arg("-chardev")
            .arg(format!("socket,id=link,path={}", socket.display()))
            .args(["-netdev", "vhost-user,id=net0,chardev=link,queues=2"])
            .args([
                "-device",
                "virtio-net-pci,netdev=net0,romfile=,mac=02:00:00:00:00:07,mq=on,vectors=6",
            ])
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", qmp.display()));
        if waits {
            command
                .arg("-incoming")
                .arg(format!("unix:{}", folder.path().join("incoming").display()));
        }
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        janitor::watch_pid(process.id());
        let console = Log::follow(process.stdout.take().unwrap());
        let mut stream = None;
        assert!(wait_until(PATIENCE, || {
            stream = UnixStream::connect(&qmp).ok();
            stream.is_some()
        }));
        let stream = stream.unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let keyboard = process.stdin.take().unwrap();
        let mut machine = Self {
            process,
            console,
            qmp: BufReader::new(stream),
            keyboard,
            folder,
        };
        let mut greeting = String::new();
        machine.qmp.read_line(&mut greeting).unwrap();
        machine.command(r#"{"execute":"qmp_capabilities"}"#);
        machine
    }

    /// What QEMU answers.
    pub fn command(&mut self, text: &str) -> String {
        self.qmp.get_mut().write_all(text.as_bytes()).unwrap();
        loop {
            let mut line = String::new();
            assert!(self.qmp.read_line(&mut line).unwrap() > 0, "QEMU is gone");
            if line.contains("\"return\"") || line.contains("\"error\"") {
                return line;
            }
        }
    }

    /// Moves the guest to another machine that waits for it. `false` if it stayed.
    pub fn migrate(&mut self, to: &Self) -> bool {
        let path = to.folder.path().join("incoming");
        self.migrate_to(&format!("unix:{}", path.display()))
    }

    /// Moves it to where QEMU's migration URI says.
    pub fn migrate_to(&mut self, uri: &str) -> bool {
        let answer = self.command(&format!(
            r#"{{"execute":"migrate","arguments":{{"uri":"{uri}"}}}}"#
        ));
        assert!(answer.contains("return"), "{answer}");
        let mut done = None;
        assert!(wait_until(PATIENCE, || {
            let state = self.command(r#"{"execute":"query-migrate"}"#);
            done = ["completed", "failed"]
                .into_iter()
                .find(|end| state.contains(&format!("\"status\": \"{end}\"")));
            done.is_some()
        }));
        done == Some("completed")
    }

    /// Waits for the guest to say this, which says of no failure.
    pub fn expect(&self, text: &str) {
        self.console.expect(PATIENCE, text);
        let said = self.console.text();
        assert!(!said.contains("FAIL"), "{said}");
    }

    /// The line that begins so, once the guest has ended it.
    pub fn line(&self, beginning: &str) -> String {
        self.console.line(PATIENCE, beginning)
    }

    pub fn type_line(&mut self, line: &str) {
        self.keyboard.write_all(line.as_bytes()).unwrap();
        self.keyboard.write_all(b"\n").unwrap();
        self.keyboard.flush().unwrap();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        janitor::gone(self.process.id());
    }
}
