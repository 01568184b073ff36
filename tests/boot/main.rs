//! A machine without a disk: the firmware of its network card (iPXE, which takes one buffer a frame and no offload) gets a
//! lease from us, fetches a kernel over HTTP and starts it, and that kernel's driver takes the same card over.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../lab/mod.rs"]
mod lab;

mod machine;

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
};

use lab::{Translator, World, janitor::TempDir, servers::TcpServer, world::INTERNET4};
use machine::{Link, Machine};

const PORT: u16 = 8080;

/// What the firmware is told to do, and how long a text it may be told: longer than one frame.
const COMMENT: &str = "# as many octets as make the stream consist of more than a few segments\n";

/// What the web server outside has.
struct Files {
    kernel: Vec<u8>,
    image: Vec<u8>,
    script: Vec<u8>,
}

impl Files {
    /// `None`, with a word about it, where there is no kernel for a guest.
    fn find() -> Option<Self> {
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/demo");
        let found = Command::new(demo.join("kernel")).output().ok()?;
        let found = String::from_utf8(found.stdout).ok()?;
        let mut lines = found.lines();
        let (Some(kernel), Some(modules)) = (lines.next(), lines.next()) else {
            println!("skipped: needs a guest kernel (contrib/setup.sh)");
            return None;
        };
        let folder = TempDir::new();
        let image: PathBuf = folder.path().join("image");
        let init = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/boot/guest-init");
        let made = Command::new(demo.join("image"))
            .env("INIT", init)
            .arg(modules)
            .arg(&image)
            .status();
        if !made.is_ok_and(|made| made.success()) {
            println!("skipped: no image for a guest can be made (contrib/setup.sh)");
            return None;
        }
        let at = format!("http://{INTERNET4}:{PORT}");
        let script = format!(
            "#!ipxe\n{}echo the script is whole\n\
             kernel {at}/kernel console=ttyS0 quiet panic=-1 no_timer_check image={at}/image\n\
             initrd {at}/image\nboot\n",
            COMMENT.repeat(500)
        );
        Some(Self {
            kernel: fs::read(kernel).unwrap(),
            image: fs::read(image).unwrap(),
            script: script.into_bytes(),
        })
    }

    /// One request, one answer (RFC 1945).
    fn serve(&self, stream: TcpStream) {
        let mut lines = BufReader::new(&stream).lines();
        let Some(Ok(request)) = lines.next() else {
            return;
        };
        while lines
            .next()
            .is_some_and(|line| line.is_ok_and(|l| !l.is_empty()))
        {}
        let file = match request.split(' ').nth(1) {
            Some("/kernel") => &self.kernel,
            Some("/image") => &self.image,
            Some("/script") => &self.script,
            _ => return,
        };
        let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", file.len());
        let _ = (&stream).write_all(head.as_bytes());
        let _ = (&stream).write_all(file);
    }
}

fn sum(octets: &[u8]) -> String {
    let file = TempDir::new();
    let path = file.path().join("octets");
    fs::write(&path, octets).unwrap();
    let output = Command::new("sha256sum").arg(path).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.split(' ').next().unwrap().to_owned()
}

fn boot_over(link: Link) {
    if !machine::can_run(link) {
        return;
    }
    let Some(files) = Files::find() else { return };
    let Some(world) = World::pod() else { return };
    let image = sum(&files.image);
    let _server = TcpServer::start(&world.outside, (INTERNET4, PORT), move |stream| {
        files.serve(stream);
    });
    let translator = Translator::start(&world.pod, link.args());
    let mut machine = Machine::start(translator.socket(), link);
    machine.expect("10.233.70.50/255.255.255.0 gw 10.233.70.1");
    // Left to itself it has no file to boot; its shell is asked for as often as it takes.
    machine.expect("Nothing to boot");
    machine.open_shell();
    machine.type_line(&format!("dhcp && chain http://{INTERNET4}:{PORT}/script"));
    machine.expect("the script is whole");
    assert_eq!(machine.line("ADDRESS "), "ADDRESS 10.233.70.50/24");
    assert!(
        machine.line("SUM ").contains(&image),
        "{}",
        machine.console()
    );
}

#[test]
fn firmware_boots_a_kernel_over_the_stream_link() {
    boot_over(Link::Stream);
}

#[test]
fn firmware_without_mergeable_buffers_boots_a_kernel_over_vhost_user() {
    boot_over(Link::VhostUser);
}
