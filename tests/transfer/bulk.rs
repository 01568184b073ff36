//! Uploads and downloads over a wire that is sound, and over one that is not.

use std::{
    fs,
    io::{self, BufRead, BufReader, Write},
    net::{IpAddr, TcpListener, TcpStream},
    process::Command,
    sync::atomic::Ordering,
    thread,
    time::Duration,
};

use crate::{
    PATIENCE, furnish,
    kernel_guest::KernelGuest,
    lab::{
        Translator, World,
        janitor::TempDir,
        world::{INTERNET4, INTERNET6},
    },
    stream::{Noise, Server, carry, connect, transfer},
};

/// A transfer over a wire that loses frames, and how long it may stand still.
const LOSSY_BYTES: u64 = 32 << 20;
const STALL: Duration = Duration::from_secs(1);

const DOWNLOADS: u64 = 200;

/// Body of one download: enough to need many turns, and to overlap with the others.
const BODY: u64 = 1024 * 1024;

#[test]
fn a_bulk_download_arrives_whole() {
    let Some((world, guest, _translator)) = furnish(65520) else {
        return;
    };
    transfer(&guest, &Server::remote(&world, INTERNET4), false);
}

#[test]
fn a_bulk_upload_arrives_whole_and_nothing_is_sent_twice() {
    let Some((world, guest, _translator)) = furnish(65520) else {
        return;
    };
    transfer(&guest, &Server::remote(&world, INTERNET4), true);
    assert_eq!(guest.retransmissions(), 0);
}

/// X14: a reader on the translator's own host is slower than the guest, and has the largest window.
#[test]
fn a_bulk_upload_to_the_host_itself_needs_no_retransmission() {
    let Some((world, guest, _translator)) = furnish(1500) else {
        return;
    };
    transfer(&guest, &Server::on_the_host(&world), true);
    assert_eq!(guest.retransmissions(), 0);
}

#[test]
fn bulk_transfers_arrive_whole_at_an_ethernet_mtu_over_ipv6() {
    let Some((world, guest, _translator)) = furnish(1500) else {
        return;
    };
    let server = Server::remote(&world, INTERNET6);
    transfer(&guest, &server, true);
    assert_eq!(guest.retransmissions(), 0);
    transfer(&guest, &server, false);
    assert_eq!(guest.dropped_at_device(), 0);
}

/// Regression T60. No packet scheduler that loses is needed for it: the wire is ours.
#[test]
fn a_wire_that_loses_one_frame_in_a_hundred_stalls_nobody() {
    for (mtu, address) in [
        (1500, IpAddr::from(INTERNET4)),
        (65520, IpAddr::from(INTERNET6)),
    ] {
        let Some(world) = World::pod() else { return };
        let translator = Translator::start(&world.pod, &["--mtu", &mtu.to_string()]);
        let Some(guest) = KernelGuest::plug(&translator, mtu) else {
            return;
        };
        guest.number();
        let server = Server::remote(&world, address);
        for up in [true, false] {
            // A handshake whose end is lost waits a second for its timer (RFC 6298, section 2.1), with any stack.
            let (near, far) = connect(&guest, &server);
            let (from, to) = if up { (&near, &far) } else { (&far, &near) };
            guest.counters().loss.store(10_000, Ordering::Relaxed);
            let gap = carry(from, to, LOSSY_BYTES);
            guest.counters().loss.store(0, Ordering::Relaxed);
            println!("mtu {mtu}, up {up}: at most {gap:?} without progress");
            assert!(gap < STALL, "{gap:?} without progress, mtu {mtu}, up {up}");
        }
    }
}

#[test]
fn two_hundred_parallel_downloads_succeed() {
    let Some((world, guest, mut translator)) = furnish(65520) else {
        return;
    };
    let Server { listener, target } = Server::remote(&world, INTERNET4);
    let idle = translator.idle_fd_count();
    thread::spawn(move || serve_http(&listener));
    let dir = TempDir::new();
    let output = guest.host().run(|| {
        Command::new("curl")
            .args(["--silent", "--show-error", "--fail", "--max-time", "120"])
            .args(["--parallel", "--parallel-immediate", "--parallel-max"])
            .arg(DOWNLOADS.to_string())
            .args(["--output", "#1"])
            .arg(format!("http://{target}/[1-{DOWNLOADS}]"))
            .current_dir(dir.path())
            .output()
            .expect("curl")
    });
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{said}", output.status);
    for number in 1..=DOWNLOADS {
        let mut expected = Vec::new();
        Noise::new(number).copy(BODY, &mut expected).unwrap();
        let body = fs::read(dir.path().join(number.to_string())).unwrap();
        assert!(body == expected, "download {number} is not what was sent");
    }
    translator.assert_alive();
    translator.expect_fd_count(idle);
}

/// Answers `GET /NUMBER` with noise grown from the number, one request a connection.
fn serve_http(listener: &TcpListener) {
    for stream in listener.incoming().flatten() {
        thread::spawn(move || answer(stream));
    }
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut lines = BufReader::new(&stream).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    while lines
        .next()
        .transpose()?
        .is_some_and(|line| !line.is_empty())
    {}
    let number = request
        .strip_prefix("GET /")
        .and_then(|rest| rest.split(' ').next()?.parse().ok())
        .ok_or(io::ErrorKind::InvalidInput)?;
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Length: {BODY}\r\nConnection: close\r\n\r\n"
    )?;
    Noise::new(number).copy(BODY, &mut stream)
}
