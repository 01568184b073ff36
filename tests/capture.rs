//! `--pcap`: everything on the link, in both directions.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod guest;
mod lab;

use std::{
    fs::{self, File},
    io::Read,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
    process::Command,
    time::Duration,
};

use guest::{
    Udp, Wire,
    dhcp::{Dhcp, REQUEST},
    guest_addr, pattern,
};
use lab::{LONG, Setup, Translator, World, servers::UdpEcho, wait_until, world::INTERNET4};
use nix::{
    sys::{signal::Signal, stat::Mode},
    unistd::mkfifo,
};

/// The frames of a capture file with microsecond timestamps, in either byte order.
fn frames(file: &[u8]) -> Vec<Vec<u8>> {
    let little = match file[..4] {
        [0xd4, 0xc3, 0xb2, 0xa1] => true,
        [0xa1, 0xb2, 0xc3, 0xd4] => false,
        _ => panic!("not a capture file: {:02x?}", &file[..4]),
    };
    let word = |at: usize| {
        let bytes = *file[at..].first_chunk::<4>().unwrap();
        if little {
            u32::from_le_bytes(bytes)
        } else {
            u32::from_be_bytes(bytes)
        }
    };
    let snaplen = word(16);
    assert_eq!(word(20), 1, "Ethernet");
    let mut frames = Vec::new();
    let mut at = 24;
    while at < file.len() {
        let (micros, len, original) = (word(at + 4), word(at + 8), word(at + 12));
        assert!(micros < 1_000_000 && len <= snaplen && len == original.min(snaplen));
        let start = at + 16;
        at = start + len as usize;
        frames.push(file[start..at].to_vec());
    }
    frames
}

#[test]
fn a_capture_holds_both_directions_and_tcpdump_reads_it() {
    let Some(world) = World::pod() else { return };
    let server = UdpEcho::start(&world.outside, (INTERNET4, 7));
    let setup = Setup::new(&[]);
    let path = setup.dir().join("capture.pcap");
    let setup = setup.arg("--pcap").arg(path.to_str().unwrap());
    let mut translator = setup.start(&world.pod);
    let wire = Wire::new(translator.connect());
    let local = guest_addr(server.addr(), 5000);
    let mut wanted = Vec::new();
    for len in [0, 100, 1400] {
        let request = Udp::new(local, server.addr(), &pattern(0, len)).frame();
        wire.send(&request);
        wanted.push(request);
        let reply = wire.expect("echo", |frame| Udp::of_frame(frame).map(|_| frame.to_vec()));
        wanted.push(reply);
    }
    // What was begun is written when it ends (C53).
    assert_eq!(translator.stop(), 0);
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "S11");
    let captured = frames(&fs::read(&path).unwrap());
    let ours: Vec<_> = captured
        .iter()
        .filter(|frame| Udp::of_frame(frame).is_some())
        .collect();
    assert_eq!(ours, wanted.iter().collect::<Vec<_>>());
    let tcpdump = Command::new("tcpdump")
        .args(["-nn", "-r", "-"])
        .stdin(File::open(&path).unwrap())
        .output();
    let Ok(output) = tcpdump else {
        println!("no tcpdump here: its view was not tested");
        return;
    };
    let [text, errors] = [&output.stdout, &output.stderr].map(|said| String::from_utf8_lossy(said));
    if errors.contains("Couldn't change to") {
        println!("tcpdump wants an identity this user namespace has not: its view was not tested");
        return;
    }
    assert!(output.status.success(), "{errors}");
    for line in [
        "10.233.70.50.5000 > 198.51.100.1.7: UDP, length 100",
        "198.51.100.1.7 > 10.233.70.50.5000: UDP, length 1400",
    ] {
        assert!(text.contains(line), "{text}");
    }
}

/// A translator that captures to a FIFO, its link, and the FIFO.
fn capturing(world: &World) -> (Translator, Wire, File) {
    let setup = Setup::new(&[]);
    let path = setup.dir().join("fifo");
    let fifo = fifo(&path);
    let setup = setup.arg("--pcap").arg(path.to_str().unwrap());
    let translator = setup.start(&world.pod);
    let wire = Wire::new(translator.connect());
    (translator, wire, fifo)
}

/// A FIFO has room for 64 KiB, and the capture for 256 KiB more.
#[test]
fn a_reader_that_stops_holds_nobody_up_and_finds_whole_frames_later() {
    let Some(world) = World::pod() else { return };
    let (mut translator, wire, mut fifo) = capturing(&world);
    let ask = || {
        wire.send(&Dhcp::new(REQUEST).frame());
        wire.expect("DHCP message", |frame| {
            Dhcp::of_frame(frame).map(|_| frame.to_vec())
        })
    };
    let nothing = [&[2; 12][..], &[0x88, 0xb5], &[7; 1_400]].concat();
    for _ in 0..400 {
        wire.send(&nothing);
    }
    let mut captured = Vec::new();
    let mut last = ask();
    translator.expect_log("Capture: nobody reads it as fast, frames are left out");
    let caught_up = (0..200).any(|_| {
        // Each time there is room for as much as was read.
        let _ = fifo.read_to_end(&mut captured);
        let all = captured.ends_with(&last);
        last = ask();
        all
    });
    assert!(caught_up);
    assert_eq!(translator.stop(), 0);
    let _ = fifo.read_to_end(&mut captured);
    let captured = frames(&captured);
    let nothings = captured.iter().filter(|frame| **frame == nothing).count();
    assert!((180..400).contains(&nothings), "{nothings}");
}

#[test]
fn a_reader_that_stops_for_good_does_not_keep_it_from_its_end() {
    let Some(world) = World::pod() else { return };
    let (mut translator, wire, _fifo) = capturing(&world);
    for _ in 0..150 {
        wire.send(&[3; 1_400]);
    }
    wire.send(&Dhcp::new(REQUEST).frame());
    wire.expect("DHCP message", Dhcp::of_frame);
    assert_eq!(translator.stop(), 0);
}

/// It would take more than 20 seconds to read it all.
#[test]
fn a_reader_that_is_too_slow_does_not_keep_it_from_its_end() {
    let Some(world) = World::pod() else { return };
    let (mut translator, wire, mut fifo) = capturing(&world);
    for _ in 0..200 {
        wire.send(&[3; 1_400]);
    }
    wire.send(&Dhcp::new(REQUEST).frame());
    wire.expect("DHCP message", Dhcp::of_frame);
    translator.signal(Signal::SIGTERM);
    let ended = (0..25).any(|_| {
        let _ = fifo.read(&mut [0; 4_096]);
        wait_until(Duration::from_millis(400), || translator.has_ended())
    });
    assert!(ended);
    assert_eq!(translator.wait(LONG), 0);
}

/// Held open by nobody but us.
fn fifo(path: &Path) -> File {
    mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o666)).unwrap();
    let mut open = File::options();
    open.read(true).write(true).custom_flags(libc::O_NONBLOCK);
    open.open(path).unwrap()
}
