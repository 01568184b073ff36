//! Segments that do not fit the connection, or belong to none (RFC 9293 3.10.7, RFC 5961).

use std::io::{ErrorKind, Read};

use crate::{
    guest::{
        Peer, Scene, Tcp, both,
        frame::{ACK, FIN, PSH, RST, SYN},
        guest_addr,
    },
    lab::{
        QUIET,
        servers::{TcpServer, accept, tcp_listener},
        uninterrupted,
        world::{INTERNET4, INTERNET6},
    },
};

#[test]
fn segments_of_no_connection_are_reset() {
    let Some(scene) = Scene::new(&[]) else { return };
    for remote in both(INTERNET4, INTERNET6, 9) {
        let mut peer = Peer::new(&scene.wire, guest_addr(remote, 40_000), remote, 1000);
        peer.rcv_nxt = 0x1234_5678;
        for flags in [ACK, ACK | PSH, ACK | FIN, ACK | SYN] {
            scene.wire.send(&peer.segment(flags, &[]).frame());
            let reset = peer.recv();
            assert_eq!(
                (reset.flags, reset.seq),
                (RST, 0x1234_5678),
                "to flags {flags:#x}"
            );
        }
        // Without ACK: number 0, everything sent acknowledged.
        scene.wire.send(&peer.segment(FIN, b"hello").frame());
        let reset = peer.recv();
        assert_eq!((reset.flags, reset.seq, reset.ack), (RST | ACK, 0, 1006));
    }
}

#[test]
fn a_reset_of_no_connection_gets_no_answer() {
    let Some(scene) = Scene::new(&[]) else { return };
    let remote = (INTERNET4, 9).into();
    let peer = Peer::new(&scene.wire, guest_addr(remote, 40_000), remote, 1000);
    scene.wire.send(&peer.segment(RST, &[]).frame());
    scene.wire.send(&peer.segment(RST | ACK, &[]).frame());
    peer.expect_quiet(QUIET, "segment", |_| true);
}

/// X09: only the very next number closes; within the window it is challenged, beyond it ignored.
#[test]
fn a_reset_with_a_wild_number_is_not_believed() {
    let Some(scene) = Scene::new(&[]) else { return };
    let remote = (INTERNET4, 7).into();
    let _server = TcpServer::echo(&scene.world.outside, remote);
    let mut peer = Peer::connect(&scene.wire, guest_addr(remote, 40_000), remote);
    for (off, challenged) in [
        (100, true),
        (1_u32 << 30, false),
        (0_u32.wrapping_sub(100_000), false),
    ] {
        let wild = Tcp {
            seq: peer.snd_nxt.wrapping_add(off),
            ..peer.segment(RST, &[])
        };
        scene.wire.send(&wild.frame());
        if challenged {
            let challenge = peer.recv();
            assert_eq!(
                (challenge.flags & (ACK | RST), challenge.ack),
                (ACK, peer.snd_nxt)
            );
        } else {
            assert_eq!(peer.recv_within(QUIET), None);
        }
        peer.send_data(b"still there");
        assert_eq!(peer.read(11), b"still there");
    }
}

/// X18.
#[test]
fn a_segment_outside_the_window_is_acknowledged_and_dropped() {
    let Some(scene) = Scene::new(&[]) else { return };
    let remote = (INTERNET4, 9).into();
    let listener = tcp_listener(&scene.world.outside, remote);
    let peer = Peer::connect(&scene.wire, guest_addr(remote, 40_000), remote);
    let mut server = accept(&listener);
    server.set_read_timeout(Some(QUIET)).unwrap();
    for off in [1_u32 << 30, 0_u32.wrapping_sub(5000)] {
        let wild = Tcp {
            seq: peer.snd_nxt.wrapping_add(off),
            ..peer.segment(ACK | PSH, b"from nowhere")
        };
        scene.wire.send(&wild.frame());
        let answer = peer.recv();
        assert_eq!(
            (answer.flags & (ACK | RST), answer.ack),
            (ACK, peer.snd_nxt)
        );
        let error = uninterrupted(|| server.read(&mut [0; 99])).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
    }
}

/// RFC 5961, section 5: an acknowledgement of what was never sent.
#[test]
fn an_acknowledgement_of_the_future_is_challenged() {
    let Some(scene) = Scene::new(&[]) else { return };
    let remote = (INTERNET4, 7).into();
    let _server = TcpServer::echo(&scene.world.outside, remote);
    let mut peer = Peer::connect(&scene.wire, guest_addr(remote, 40_000), remote);
    let wild = Tcp {
        ack: peer.rcv_nxt.wrapping_add(100_000),
        ..peer.segment(ACK, &[])
    };
    scene.wire.send(&wild.frame());
    let challenge = peer.recv();
    assert_eq!(
        (challenge.flags & (ACK | RST), challenge.ack),
        (ACK, peer.snd_nxt)
    );
    peer.send_data(b"still there");
    assert_eq!(peer.read(11), b"still there");
}
