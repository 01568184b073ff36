//! How connections end: half by half, at once, or by reset; and always completely.

use std::{
    io::{ErrorKind, Read, Write},
    net::Shutdown,
    time::Duration,
};

use crate::{
    guest::{
        Peer, Scene, assert_pattern, both,
        frame::{ACK, FIN, PSH, RST},
        guest_addr, pattern,
        wire::framed,
    },
    lab::{
        LONG, QUIET,
        servers::{accept, reset, tcp_listener},
        uninterrupted,
        world::{INTERNET4, INTERNET6},
    },
};

#[test]
fn the_guest_closes_first_and_still_receives() {
    let Some(scene) = Scene::new(&[]) else { return };
    let idle = scene.translator.idle_fd_count();
    for remote in both(INTERNET4, INTERNET6, 9) {
        let listener = tcp_listener(&scene.world.outside, remote);
        let mut peer = Peer::connect(&scene.wire, guest_addr(remote, 40_000), remote);
        let mut server = accept(&listener);
        peer.send_data(b"the question");
        peer.fin();
        let mut got = Vec::new();
        server.read_to_end(&mut got).unwrap();
        assert_eq!(got, b"the question");
        server.write_all(&pattern(0, 500_000)).unwrap();
        drop(server);
        assert_pattern(0, &peer.read_to_end());
    }
    scene.translator.expect_fd_count(idle);
}

/// Regression T85.
#[test]
fn the_host_closes_first_and_still_receives() {
    let Some(scene) = Scene::new(&[]) else { return };
    let idle = scene.translator.idle_fd_count();
    for remote in both(INTERNET4, INTERNET6, 9) {
        let listener = tcp_listener(&scene.world.outside, remote);
        let mut peer = Peer::connect_with(&scene.wire, guest_addr(remote, 40_000), remote, Some(6));
        let mut server = accept(&listener);
        server.write_all(b"goodbye").unwrap();
        server.shutdown(Shutdown::Write).unwrap();
        assert_eq!(peer.read_to_end(), b"goodbye");
        let reading = std::thread::spawn(move || {
            let mut got = Vec::new();
            server.read_to_end(&mut got).unwrap();
            got
        });
        peer.upload(0, 500_000, LONG);
        peer.fin();
        peer.expect_acked();
        let got = reading.join().unwrap();
        assert_eq!(got.len(), 500_000);
        assert_pattern(0, &got);
    }
    scene.translator.expect_fd_count(idle);
}

/// Regression T16: nothing else would tell the guest that it need not send again.
#[test]
fn a_fin_acknowledges_all_that_came_before() {
    let Some(scene) = Scene::new(&[]) else { return };
    let remote = (INTERNET4, 9).into();
    let listener = tcp_listener(&scene.world.outside, remote);
    let mut peer = Peer::connect(&scene.wire, guest_addr(remote, 40_000), remote);
    let mut server = accept(&listener);
    peer.send_data(b"a question");
    server.read_exact(&mut [0; 10]).unwrap();
    drop(server);
    let fin = peer.expect("FIN", |s| s.has(FIN));
    assert_eq!(fin.ack, peer.snd_nxt);
}

#[test]
fn both_close_at_once() {
    let Some(scene) = Scene::new(&[]) else { return };
    let idle = scene.translator.idle_fd_count();
    let remote = (INTERNET4, 9).into();
    let listener = tcp_listener(&scene.world.outside, remote);
    for port in 40_000..40_020 {
        let mut peer = Peer::connect(&scene.wire, guest_addr(remote, port), remote);
        let server = accept(&listener);
        peer.fin();
        drop(server);
        assert_eq!(peer.read_to_end(), b"");
        peer.ack();
    }
    scene.translator.expect_fd_count(idle);
}

#[test]
fn a_fin_may_carry_data() {
    let Some(scene) = Scene::new(&[]) else { return };
    let remote = (INTERNET4, 9).into();
    let listener = tcp_listener(&scene.world.outside, remote);
    let mut peer = Peer::connect(&scene.wire, guest_addr(remote, 40_000), remote);
    let mut server = accept(&listener);
    peer.send(ACK | PSH | FIN, b"last words");
    let mut got = Vec::new();
    server.read_to_end(&mut got).unwrap();
    assert_eq!(got, b"last words");
    peer.expect_acked();
}

#[test]
fn a_fin_before_its_data_waits_for_it() {
    let Some(scene) = Scene::new(&[]) else { return };
    let remote = (INTERNET4, 9).into();
    let listener = tcp_listener(&scene.world.outside, remote);
    let mut peer = Peer::connect(&scene.wire, guest_addr(remote, 40_000), remote);
    let mut server = accept(&listener);
    let mut fin = peer.segment(ACK | FIN, &[]);
    fin.seq = fin.seq.wrapping_add(5);
    scene.wire.send(&fin.frame());
    server.set_read_timeout(Some(QUIET)).unwrap();
    let mut got = [0; 9];
    assert_eq!(
        uninterrupted(|| server.read(&mut got)).unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    server.set_read_timeout(Some(LONG)).unwrap();
    peer.send(ACK | PSH, b"hello");
    assert_eq!(uninterrupted(|| server.read(&mut got)).unwrap(), 5);
    // Whoever does not keep the early FIN gets it again.
    scene.wire.send(&fin.frame());
    assert_eq!(uninterrupted(|| server.read(&mut got)).unwrap(), 0);
}

#[test]
fn a_lost_fin_is_sent_again() {
    let Some(scene) = Scene::new(&[]) else { return };
    let remote = (INTERNET4, 9).into();
    let listener = tcp_listener(&scene.world.outside, remote);
    let peer = Peer::connect(&scene.wire, guest_addr(remote, 40_000), remote);
    drop(accept(&listener));
    let first = peer.expect("FIN", |s| s.has(FIN));
    let second = peer.expect("second FIN", |s| s.has(FIN));
    assert_eq!(first.seq, second.seq);
}

#[test]
fn a_reset_of_the_guest_reaches_the_host() {
    let Some(scene) = Scene::new(&[]) else { return };
    let idle = scene.translator.idle_fd_count();
    for remote in both(INTERNET4, INTERNET6, 9) {
        let listener = tcp_listener(&scene.world.outside, remote);
        let mut peer = Peer::connect(&scene.wire, guest_addr(remote, 40_000), remote);
        let mut server = accept(&listener);
        peer.rst();
        let error = uninterrupted(|| server.read(&mut [0; 9])).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
    scene.translator.expect_fd_count(idle);
}

/// Both in one burst: a server of the guest answers and closes, with octets it never read.
#[test]
fn what_came_right_before_a_reset_is_read_before_it() {
    let Some(scene) = Scene::new(&[]) else { return };
    let idle = scene.translator.idle_fd_count();
    for remote in both(INTERNET4, INTERNET6, 9) {
        let listener = tcp_listener(&scene.world.outside, remote);
        let mut peer = Peer::connect(&scene.wire, guest_addr(remote, 40_000), remote);
        let mut server = accept(&listener);
        let answer = peer.segment(ACK | PSH, b"too large");
        peer.snd_nxt = peer.snd_nxt.wrapping_add(answer.len());
        let reset = peer.segment(RST, &[]);
        let burst = [answer, reset].map(|segment| framed(&segment.frame()));
        scene.wire.send_raw(&burst.concat());
        let mut got = [0; 9];
        server.read_exact(&mut got).expect("what came before");
        assert_eq!(&got, b"too large");
        let error = uninterrupted(|| server.read(&mut got)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
    scene.translator.expect_fd_count(idle);
}

#[test]
fn a_reset_of_the_host_reaches_the_guest() {
    let Some(scene) = Scene::new(&[]) else { return };
    let idle = scene.translator.idle_fd_count();
    for remote in both(INTERNET4, INTERNET6, 9) {
        let listener = tcp_listener(&scene.world.outside, remote);
        let peer = Peer::connect(&scene.wire, guest_addr(remote, 40_000), remote);
        reset(accept(&listener));
        peer.expect_reset();
    }
    scene.translator.expect_fd_count(idle);
}

/// The host has closed for good, so what the guest still writes goes nowhere: it must hear of that, as a process on the
/// host would.
#[test]
fn writes_after_the_hosts_close_are_reset() {
    let Some(scene) = Scene::new(&[]) else { return };
    let idle = scene.translator.idle_fd_count();
    let remote = (INTERNET4, 9).into();
    let listener = tcp_listener(&scene.world.outside, remote);
    let mut peer = Peer::connect(&scene.wire, guest_addr(remote, 40_000), remote);
    let mut server = accept(&listener);
    server.write_all(b"goodbye").unwrap();
    drop(server);
    assert_eq!(peer.read_to_end(), b"goodbye");
    peer.ack();
    let reset = (0..5).any(|_| {
        peer.send_data(b"anybody?");
        std::iter::from_fn(|| peer.recv_within(Duration::from_millis(400)))
            .any(|segment| segment.has(RST))
    });
    assert!(reset, "the guest never hears that its octets go nowhere");
    scene.translator.expect_fd_count(idle);
}

/// A guest forgets a connection some time after it has closed both ways, or starts anew: what it sent was acknowledged, so
/// the host gets all of it, and its end.
#[test]
fn what_a_guest_sent_before_its_fin_survives_its_reset() {
    const SENT: usize = 4 << 20;
    let Some(scene) = Scene::new(&[]) else { return };
    let idle = scene.translator.idle_fd_count();
    let remote = (INTERNET4, 9).into();
    let listener = tcp_listener(&scene.world.outside, remote);
    let mut peer = Peer::connect(&scene.wire, guest_addr(remote, 40_000), remote);
    let mut server = accept(&listener);
    server.write_all(b"never read").unwrap();
    peer.expect("data", |s| !s.payload.is_empty());
    // As much as the host's buffers take while nobody reads.
    let (sent, _) = peer.upload(0, SENT, QUIET);
    assert!(sent > 100_000, "{sent}");
    peer.fin();
    peer.expect_acked();
    peer.rst();
    scene.translator.expect_fd_count(idle);
    let mut got = Vec::new();
    server.read_to_end(&mut got).unwrap();
    assert_eq!(got.len(), sent);
    assert_pattern(0, &got);
}

/// Regression T69: both in one burst.
#[test]
fn a_syn_right_behind_a_reset_opens_anew() {
    let Some(scene) = Scene::new(&[]) else { return };
    let remote = (INTERNET4, 9).into();
    let listener = tcp_listener(&scene.world.outside, remote);
    let mut old = Peer::connect(&scene.wire, guest_addr(remote, 40_000), remote);
    drop(accept(&listener));
    old.expect("FIN", |s| s.has(FIN));
    old.rst();
    let mut new = Peer::connect(&scene.wire, guest_addr(remote, 40_000), remote);
    let mut server = accept(&listener);
    new.send_data(b"again");
    let mut got = [0; 5];
    server.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"again");
}

/// The guest asks for more answers than the link holds, and reads none of them until it has sent its last FIN.
#[test]
fn the_last_fin_is_acknowledged_though_the_link_was_full() {
    /// More than the line of frames and the link's buffer hold.
    const ANSWERS: usize = 60_000;
    let Some(scene) = Scene::new(&[]) else { return };
    let idle = scene.translator.idle_fd_count();
    let remote = (INTERNET4, 9).into();
    let listener = tcp_listener(&scene.world.outside, remote);
    let mut other = Peer::connect(&scene.wire, guest_addr(remote, 40_000), remote);
    let asking = accept(&listener);
    let mut peer = Peer::connect(&scene.wire, guest_addr(remote, 40_001), remote);
    let mut server = accept(&listener);
    server.shutdown(Shutdown::Write).unwrap();
    assert_eq!(peer.read_to_end(), b"");
    peer.ack();
    // Each is behind what was acknowledged, and so is answered at once.
    let mut old = other.segment(ACK | PSH, b"x");
    old.seq = old.seq.wrapping_sub(1);
    let old = old.frame();
    for _ in 0..ANSWERS {
        scene.wire.send(&old);
    }
    peer.fin();
    let mut got = Vec::new();
    server.read_to_end(&mut got).unwrap();
    peer.expect("acknowledgement", |segment| {
        assert!(!segment.has(RST), "{segment:?}");
        segment.ack == peer.snd_nxt
    });
    other.rst();
    drop(asking);
    scene.translator.expect_fd_count(idle);
}
