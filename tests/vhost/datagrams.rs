//! Datagrams for guests that have no room for them, or none yet.

use std::{
    net::UdpSocket,
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use crate::{
    Scene, assert_works,
    guest::{Udp, both, fragment, guest_addr, pattern},
    lab::{
        LONG,
        front_end::{
            Driver, FrontEnd, GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, GUEST_USO4, GUEST_USO6, IPXE,
            LINUX, MRG_RXBUF,
        },
        servers::udp_socket,
        uninterrupted,
        world::{INTERNET4, INTERNET6, POD4},
    },
    offload::send_segmented,
    queues::{self, HEADER},
};

/// A driver that is left no checksum to compute.
const PLAIN: u64 = LINUX & !(GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_USO4 | GUEST_USO6);

fn client(scene: &Scene) -> UdpSocket {
    let client = udp_socket(&scene.world.outside, (INTERNET4, 0));
    client.connect((POD4, 5000)).unwrap();
    client
}

/// Knocks, and whoever is to hear of it sleeps.
fn assert_idle_at(scene: &Scene, client: &UdpSocket, when: &str) {
    scene.translator.idle_fd_count();
    let before = scene.translator.cpu();
    for n in 0..50 {
        client.send(&[n]).unwrap();
    }
    thread::sleep(Duration::from_secs(1));
    let used = scene.translator.cpu().saturating_sub(before);
    assert!(used <= Duration::from_millis(100), "{used:?} {when}");
}

fn expect(guest: &mut FrontEnd, payload: &[u8]) {
    guest.expect("datagram", |arrival| {
        Udp::of_frame(&arrival.frame).filter(|udp| udp.payload == payload)
    });
}

/// Regression U04: at each stage of a front-end's beginning.
#[test]
fn datagrams_for_a_guest_that_is_not_ready_keep_nobody_busy() {
    let Some(scene) = Scene::new(&["-u", "5000"]) else {
        return;
    };
    let client = client(&scene);
    assert_idle_at(&scene, &client, "without a front-end");
    let mut guest = FrontEnd::greet(scene.translator.connect(), Driver::new(LINUX));
    assert_idle_at(&scene, &client, "without memory");
    guest.share_memory();
    assert_idle_at(&scene, &client, "without rings");
    guest.start_rings(0, 0);
    assert_works(&mut guest);
    client.send(b"now").unwrap();
    expect(&mut guest, b"now");
    guest.stop_rings();
    assert_idle_at(&scene, &client, "without rings again");
}

/// What leaves together is as much as one list takes.
#[test]
fn datagrams_in_many_pieces_all_leave() {
    const DATAGRAMS: u64 = 64;
    const LEN: usize = 1000;
    const PIECES: usize = 40;
    let Some(scene) = Scene::new(&[]) else { return };
    let mut guest = scene.guest(Driver {
        gap: 64,
        ..Driver::new(LINUX)
    });
    assert_works(&mut guest);
    let server = udp_socket(&scene.world.outside, (INTERNET4, 7));
    let remote = server.local_addr().unwrap();
    // All of them are in one burst.
    scene.translator.stand_still();
    for n in 0..DATAGRAMS {
        let udp = Udp::new((POD4, 40_000).into(), remote, &pattern(n, LEN));
        guest.post(&[0; 12], &udp.frame(), PIECES);
    }
    scene.translator.signal(Signal::SIGCONT);
    for n in 0..DATAGRAMS {
        let mut octets = [0; 2 * LEN];
        let len = uninterrupted(|| server.recv(&mut octets)).unwrap();
        assert!(octets[..len] == pattern(n, LEN), "datagram {n}");
    }
}

/// Regression U06: nothing is received into room that is not there; what never fits is dropped, and what comes after it
/// arrives, though the driver has no buffers left to kick us with.
#[test]
fn datagrams_larger_than_all_buffers_are_dropped_and_the_next_arrives() {
    for (features, entries) in [(PLAIN & !MRG_RXBUF, 256), (PLAIN, 16)] {
        let Some(mut scene) = Scene::new(&["-u", "5000"]) else {
            return;
        };
        let client = client(&scene);
        let mut driver = Driver::new(features);
        (driver.entries, driver.buffers, driver.buffer) = (entries, entries, 300);
        let mut guest = scene.guest(driver);
        assert_works(&mut guest);
        let deadline = Instant::now() + LONG;
        for n in 0..200 {
            assert!(Instant::now() < deadline, "late at {n}");
            let what = pattern(n, 100);
            client.send(&pattern(n, 1400)).unwrap();
            client.send(&pattern(n, 9000)).unwrap();
            client.send(&what).unwrap();
            expect(&mut guest, &what);
        }
        assert_idle_at(&scene, &client, "with small buffers");
        scene.translator.signal(Signal::SIGUSR1);
        scene
            .translator
            .expect_log("larger than the guest's buffers: ");
        scene.translator.assert_alive();
    }
}

/// Packets of one peer are told apart by their numbers alone, whoever has cut them.
#[test]
fn packets_that_two_threads_cut_have_different_numbers() {
    let Some(scene) = queues::scene("2") else {
        return;
    };
    let mut guest = scene.guest(Driver::twice(LINUX));
    for remote in both(INTERNET4, INTERNET6, 7) {
        let server = udp_socket(&scene.world.outside, remote);
        let numbers = [0, 1].map(|pair| {
            let local = guest_addr(remote, 41_000 + pair as u16);
            let question = Udp::new(local, remote, b"how much?");
            guest.transmit_by(pair, &HEADER, &question.frame(), 1);
            let (_, from) = uninterrupted(|| server.recv_from(&mut [0; 9])).unwrap();
            server.send_to(&pattern(0, 4000), from).unwrap();
            guest.expect("part", |arrival| {
                let (ip, number, ..) = fragment::read(&arrival.frame)?;
                (arrival.pair == pair && ip.src == remote.ip()).then_some(number)
            })
        });
        assert_ne!(numbers[0], numbers[1]);
    }
}

/// A driver is left nothing to do that it has not agreed to (virtio 1.2, section 5.1.6.4.1), by what waited for buffers of the
/// one before it neither: a guest reboots into firmware. The others get what waited.
#[test]
fn what_waited_for_one_driver_leaves_nothing_to_the_next() {
    const LEN: usize = 1000;
    for features in [LINUX, PLAIN, IPXE] {
        let Some(scene) = Scene::new(&[]) else { return };
        let mut driver = Driver::new(LINUX);
        driver.buffers = 4;
        let mut guest = scene.guest(driver);
        let server = udp_socket(&scene.world.outside, (INTERNET4, 7));
        let question = Udp::new((POD4, 40_000).into(), (INTERNET4, 7).into(), b"how much?");
        guest.transmit(&HEADER, &question.frame(), 1);
        let (_, from) = uninterrupted(|| server.recv_from(&mut [0; 9])).unwrap();
        let send = |n| server.send_to(&pattern(n, LEN), from).unwrap();
        // A new flow's come with their checksums, until its socket is sure to hear its peer alone.
        let deadline = Instant::now() + LONG;
        while !{
            send(0);
            guest.expect("datagram", |arrival| {
                (arrival.frame.len() > LEN).then_some(arrival.header[0] == 1)
            })
        } {
            assert!(
                Instant::now() < deadline,
                "no checksum is left to the driver"
            );
        }
        (0..32).for_each(|n| {
            send(n);
        });
        send_segmented(&server, from, &pattern(0, 20 * LEN), LEN);
        // As many as there are buffers for have come; the others wait.
        scene.translator.idle_fd_count();
        guest.stop_rings();
        guest.reset_driver();
        guest.driver = Driver::new(features);
        guest.share_memory();
        guest.start_rings(0, 0);
        server.send_to(b"that much", from).unwrap();
        let mut left = 0;
        guest.expect("datagram", |arrival| {
            if arrival.header[..10] == [0; 10] {
                Udp::of_frame(&arrival.frame).expect("a datagram with its checksum");
            } else {
                left += 1;
            }
            arrival.frame[42..].starts_with(b"that much").then_some(())
        });
        assert_eq!(left > 0, features == LINUX, "{left} of {features:x}");
    }
}
