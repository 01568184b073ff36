//! A machine of QEMU's with a network card that has its firmware, and a serial console.

use std::{
    io::Write,
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    time::Duration,
};

use crate::lab::{Log, janitor, wait_until};

/// Firmware and kernel start by emulation, on a machine that others use.
const PATIENCE: Duration = Duration::from_secs(150);

/// Where distributions keep the card's firmware.
const ROMS: [&str; 3] = [
    "/usr/lib/ipxe/qemu/efi-virtio.rom",
    "/usr/share/ipxe/qemu/efi-virtio.rom",
    "/usr/share/qemu/efi-virtio.rom",
];

/// Octet of Ctrl-B, and the word that the firmware's shell says when it listens.
const CTRL_B: &[u8] = b"\x02";
const PROMPT: &str = "iPXE> ";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    Stream,
    VhostUser,
}

impl Link {
    /// What the translator is told.
    pub fn args(self) -> &'static [&'static str] {
        match self {
            Self::Stream => &[],
            Self::VhostUser => &["--vhost-user"],
        }
    }
}

/// Whether such machines can be had here. Before QEMU 8 firmware behind vhost-user hangs, whatever is behind it.
pub fn can_run(link: Link) -> bool {
    let version = Command::new("qemu-system-x86_64").arg("--version").output();
    let text = version.map_or(String::new(), |out| {
        String::from_utf8_lossy(&out.stdout).into()
    });
    let major = text
        .split_once("version ")
        .and_then(|(_, rest)| rest.split('.').next())
        .and_then(|major| major.parse::<u32>().ok());
    let least = if link == Link::VhostUser { 8 } else { 7 };
    let missing = if major.is_none_or(|major| major < least) {
        Some(format!("QEMU {least}"))
    } else if !ROMS.iter().any(|rom| Path::new(rom).exists()) {
        Some("firmware of virtio-net (ipxe-qemu)".to_owned())
    } else {
        None
    };
    if let Some(missing) = &missing {
        println!("skipped: needs {missing}");
    }
    missing.is_none()
}

pub struct Machine {
    process: Child,
    keyboard: ChildStdin,
    console: Log,
}

impl Machine {
    pub fn start(socket: &Path, link: Link) -> Self {
        let socket = socket.display();
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-accel", "tcg", "-cpu", "max", "-m", "256"])
            .args(["-nodefaults", "-no-user-config", "-no-reboot"])
            .args(["-display", "none", "-serial", "stdio"])
            .args([
                "-object",
                "memory-backend-memfd,id=memory,size=256M,share=on",
            ])
            // Without graphics the console of the firmware is the serial port.
            .args(["-machine", "pc,graphics=off,memory-backend=memory"]);
        match link {
            Link::Stream => command.arg("-netdev").arg(format!(
                "stream,id=net0,server=off,addr.type=unix,addr.path={socket}"
            )),
            Link::VhostUser => command
                .arg("-chardev")
                .arg(format!("socket,id=link,path={socket}"))
                .args(["-netdev", "vhost-user,id=net0,chardev=link"]),
        };
        let mut process = command
            .args(["-device", "virtio-net-pci,netdev=net0,bootindex=1"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        janitor::watch_pid(process.id());
        let console = Log::follow(process.stdout.take().unwrap());
        Self {
            keyboard: process.stdin.take().unwrap(),
            process,
            console,
        }
    }

    pub fn console(&self) -> String {
        self.console.text()
    }

    /// Waits for this on the console.
    pub fn expect(&self, text: &str) {
        self.console.expect(PATIENCE, text);
    }

    /// The line that begins so, once it is whole.
    pub fn line(&self, beginning: &str) -> String {
        self.console.line(PATIENCE, beginning)
    }

    /// Has the firmware listen to what is typed: it looks for Ctrl-B for two seconds before and after it tries to boot.
    pub fn open_shell(&mut self) {
        let mut open = false;
        for _ in 0..PATIENCE.as_millis() / 200 {
            self.press(CTRL_B);
            open = wait_until(Duration::from_millis(200), || {
                self.console().ends_with(PROMPT)
            });
            if open {
                break;
            }
        }
        assert!(open, "no shell\n{}", self.console());
    }

    /// Types a line as fast as it is echoed: the firmware remembers few keys.
    pub fn type_line(&mut self, line: &str) {
        for typed in 1..=line.len() {
            self.press(&line.as_bytes()[typed - 1..typed]);
            let echoed = wait_until(PATIENCE, || self.console().ends_with(&line[..typed]));
            assert!(echoed, "{line}\n{}", self.console());
        }
        self.press(b"\r");
    }

    fn press(&mut self, key: &[u8]) {
        self.keyboard.write_all(key).unwrap();
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
