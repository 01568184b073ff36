//! Front-ends and drivers that lie: the connection ends with one line, and the next front-end is served.

use std::{io::Write, os::fd::AsRawFd};

use nix::unistd::ftruncate;

use crate::{
    Scene, arp_request, assert_works,
    guest::Tcp,
    lab::{
        LONG,
        front_end::{
            Driver, EVENT_IDX, FrontEnd, INDIRECT_DESC, LINUX, MEMORY, TX, USER, VERSION_1, request,
        },
        wait_until,
        world::INTERNET4,
    },
    offload::connect,
};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// What a front-end does.
type Deed<'a> = &'a dyn Fn(&mut FrontEnd);

/// How the line begins.
const LINE: &str = "vhost-user: ";

/// Each of the deeds ends its connection with a line that says `why`, and harms nobody else.
fn assert_refused(deeds: &[(&str, Deed<'_>)]) {
    // Lines that are much alike are held back after some: each few deeds have a process of their own.
    for few in deeds.chunks(3) {
        let Some(mut scene) = Scene::new(&[]) else {
            return;
        };
        for (why, deed) in few {
            let before = scene.translator.log().len();
            let mut guest = scene.guest(Driver::new(LINUX));
            assert_works(&mut guest);
            deed(&mut guest);
            assert!(guest.closes(), "{why}");
            let said = || scene.translator.log()[before..].to_owned();
            let told = wait_until(LONG, || said().contains(LINE));
            let said = said();
            let found: Vec<_> = said.lines().filter(|line| line.contains(LINE)).collect();
            assert!(told && found.len() == 1, "{why}: {said}");
            assert!(found[0].contains(why), "{why}: {found:?}");
        }
        let mut guest = scene.guest(Driver::new(LINUX));
        assert_works(&mut guest);
        scene.translator.assert_alive();
    }
}

#[test]
fn messages_that_cannot_be_end_the_connection() {
    let raw = |words: [u32; 3], rest: &'static [u8]| {
        move |guest: &mut FrontEnd| {
            let octets: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            guest.send_raw(&[&octets[..], rest].concat(), &[]);
        }
    };
    let word = |request: u32, words: &'static [u64]| {
        move |guest: &mut FrontEnd| guest.tell(request, words, &[])
    };
    assert_refused(&[
        ("bad message header", &raw([1, 0, 0], b"")),
        ("bad message header", &raw([1, 2, 0], b"")),
        ("bad message header", &raw([1, 1 | 1 << 2, 0], b"")),
        ("bad message header", &raw([2, 1, u32::MAX], b"")),
        ("bad message header", &raw([2, 1, 4096], b"")),
        ("unknown request 0", &raw([0, 1, 0], b"")),
        ("unknown request 4711", &raw([4711, 1, 0], b"")),
        (
            "bad payload of SetFeatures",
            &raw([request::SET_FEATURES, 1, 3], b"abc"),
        ),
        (
            "bad payload of SetFeatures",
            &word(request::SET_FEATURES, &[1 << 30, 0]),
        ),
        (
            "bad payload of SetVringNum",
            &word(request::SET_VRING_NUM, &[]),
        ),
        (
            "bad payload of SetVringKick",
            &word(request::SET_VRING_KICK, &[0]),
        ),
        (
            "bad payload of SetLogBase",
            &word(request::SET_LOG_BASE, &[4096, 0]),
        ),
        (
            "bad payload of AddMemReg",
            &word(request::ADD_MEM_REG, &[0, 0, 0, 0, 0]),
        ),
        (
            "bad value in SetFeatures",
            &word(request::SET_FEATURES, &[u64::MAX]),
        ),
        (
            "bad value in SetProtocolFeatures",
            &word(request::SET_PROTOCOL_FEATURES, &[u64::MAX]),
        ),
        (
            "bad value in SetVringNum",
            &word(request::SET_VRING_NUM, &[3 << 32]),
        ),
        (
            "bad value in SetVringNum",
            &word(request::SET_VRING_NUM, &[0x1_0000 << 32]),
        ),
        (
            "bad value in SetVringNum",
            &word(request::SET_VRING_NUM, &[9 | 64 << 32]),
        ),
        (
            "bad value in SetVringBase",
            &word(request::SET_VRING_BASE, &[0x1_0000 << 32]),
        ),
        (
            "bad value in GetVringBase",
            &word(request::GET_VRING_BASE, &[32]),
        ),
        (
            "bad value in RemMemReg",
            &word(request::REM_MEM_REG, &[0, 1, 2, 3, 4]),
        ),
        (
            "queue outside of shared memory",
            &word(request::SET_VRING_ADDR, &[0, 0, 0, 0, 0]),
        ),
        (
            "queue outside of shared memory",
            &word(
                request::SET_VRING_ADDR,
                &[1, USER + 1, USER + 0x1000, USER + 0x2000, 0],
            ),
        ),
    ]);
}

#[test]
fn memory_that_cannot_be_ends_the_connection() {
    let table = |regions: &'static [[u64; 4]], fds: usize| {
        move |guest: &mut FrontEnd| {
            let words: Vec<u64> = std::iter::once(regions.len() as u64)
                .chain(regions.iter().flatten().copied())
                .collect();
            let fds = vec![guest.memory.as_raw_fd(); fds];
            guest.tell(request::SET_MEM_TABLE, &words, &fds);
        }
    };
    assert_refused(&[
        (
            "bad payload of SetMemTable",
            &table(&[[0, MEMORY, USER, 0]], 0),
        ),
        (
            "bad payload of SetMemTable",
            &table(&[[0, MEMORY, USER, 0]], 2),
        ),
        ("cannot map memory", &table(&[[0, 0, USER, 0]], 1)),
        ("cannot map memory", &table(&[[0, MEMORY + 1, USER, 0]], 1)),
        (
            "cannot map memory",
            &table(&[[0, MEMORY, USER, u64::MAX - 7]], 1),
        ),
        (
            "cannot map memory",
            &table(&[[u64::MAX - 7, MEMORY, USER, 0]], 1),
        ),
        (
            "cannot map memory",
            &table(
                &[[0, 1 << 20, USER, 0], [4096, 1 << 20, USER + MEMORY, 0]],
                2,
            ),
        ),
        (
            "cannot map memory",
            &table(
                &[[0, 1 << 20, USER, 0], [1 << 30, 1 << 20, USER + 4096, 0]],
                2,
            ),
        ),
        // Rings that run lose what they stand in.
        (
            "queue outside of shared memory",
            &table(&[[1 << 40, 4096, 1 << 40, 0]], 1),
        ),
    ]);
}

#[test]
fn memory_that_vanishes_ends_the_connection_and_nothing_else() {
    assert_refused(&[
        ("shared memory has vanished", &|guest| {
            ftruncate(&guest.memory, 0).unwrap();
            guest.kick(TX);
        }),
        ("shared memory has vanished", &|guest| {
            // The rings are still there, and what they speak of is not.
            guest.describe(guest.table(TX), 9, FrontEnd::guest(MEMORY - 64), 64, 0, 0);
            ftruncate(&guest.memory, (MEMORY / 2).cast_signed()).unwrap();
            guest.offer(TX, 9);
            guest.kick(TX);
        }),
    ]);
}

#[test]
fn descriptors_that_lie_end_the_connection() {
    let chain = |queue: usize, descriptors: &'static [(u16, u64, u32, u16, u16)], head: u16| {
        move |guest: &mut FrontEnd| {
            for &(index, addr, len, flags, next) in descriptors {
                guest.describe(guest.table(queue), index, addr, len, flags, next);
            }
            guest.offer(queue, head);
            guest.kick(queue);
        }
    };
    let jump = |queue: usize, by: u16| {
        move |guest: &mut FrontEnd| {
            guest.jump(queue, by);
            guest.kick(queue);
        }
    };
    const AT: u64 = 2 << 20;
    assert_refused(&[
        ("descriptor number out of range", &chain(TX, &[], 256)),
        ("descriptor number out of range", &chain(TX, &[], u16::MAX)),
        (
            "descriptor number out of range",
            &chain(TX, &[(3, AT, 20, NEXT, 999)], 3),
        ),
        (
            "descriptors form a loop",
            &chain(TX, &[(3, AT, 20, NEXT, 3)], 3),
        ),
        (
            "descriptors form a loop",
            &chain(TX, &[(3, AT, 20, NEXT, 4), (4, AT, 0, NEXT, 3)], 3),
        ),
        (
            "descriptor outside of shared memory",
            &chain(TX, &[(3, 1 << 50, 20, 0, 0)], 3),
        ),
        (
            "descriptor outside of shared memory",
            &chain(TX, &[(3, u64::MAX - 3, 20, 0, 0)], 3),
        ),
        (
            "descriptor outside of shared memory",
            &chain(TX, &[(3, AT, u32::MAX, 0, 0)], 3),
        ),
        (
            "descriptor of the wrong direction",
            &chain(TX, &[(3, AT, 20, WRITE, 0)], 3),
        ),
        (
            "bad indirect descriptor",
            &chain(TX, &[(3, AT, 17, INDIRECT, 0)], 3),
        ),
        (
            "bad indirect descriptor",
            &chain(TX, &[(3, AT, 0, INDIRECT, 0)], 3),
        ),
        (
            "bad indirect descriptor",
            &chain(TX, &[(3, AT, 32, INDIRECT | NEXT, 4)], 3),
        ),
        (
            "bad indirect descriptor",
            &chain(TX, &[(3, AT, 16 << 20, INDIRECT, 0)], 3),
        ),
        ("available index out of range", &jump(TX, 257)),
        ("available index out of range", &jump(TX, 0x8000)),
    ]);
}

/// A frame's length is the guest's to choose, and what is none is counted as too short.
#[test]
fn frames_of_any_length_are_taken() {
    let Some(scene) = Scene::new(&[]) else { return };
    let mut guest = scene.guest(Driver::new(LINUX));
    for len in [1, 2, 11, 12, 13, 25, 26, 60, 69_632, 70_000, 80_000] {
        guest.transmit(&[], &vec![0; len], 1);
        guest.transmit(&[], &vec![0xff; len], 7);
    }
    // Nothing at all, and a chain of nothings.
    guest.describe(guest.table(TX), 3, 0, 0, 0, 0);
    guest.offer(TX, 3);
    assert_works_again(&mut guest);
}

fn assert_works_again(guest: &mut FrontEnd) {
    while guest.collect(TX).is_some() {}
    guest.post(&[0; 12], &arp_request(), 1);
    guest.expect("ARP reply", crate::is_arp_reply);
}

#[test]
fn a_message_may_come_octet_by_octet() {
    let Some(scene) = Scene::new(&[]) else { return };
    let mut guest = scene.guest(Driver::new(LINUX & !EVENT_IDX & !INDIRECT_DESC));
    let word = guest.driver.features;
    let octets: Vec<u8> = [request::SET_FEATURES, 1 | 1 << 3, 8]
        .iter()
        .flat_map(|field| field.to_ne_bytes())
        .chain(word.to_ne_bytes())
        .collect();
    for octet in octets {
        guest.send_raw(&[octet], &[]);
    }
    let mut reply = [0; 20];
    std::io::Read::read_exact(&mut &guest.socket, &mut reply).unwrap();
    assert_works(&mut guest);
}

/// A driver that fills none of its buffers' rings again gets nothing more, and nobody waits for it.
#[test]
fn a_driver_without_buffers_costs_nothing() {
    let Some(scene) = Scene::new(&[]) else { return };
    let mut driver = Driver::new(LINUX);
    driver.buffers = 0;
    let mut guest = scene.guest(driver);
    for _ in 0..3000 {
        guest.transmit(&[0; 12], &arp_request(), 1);
    }
    let before = scene.translator.cpu();
    assert!(!wait_until(crate::lab::QUIET, || guest
        .try_receive()
        .is_some()));
    let spent = scene.translator.cpu() - before;
    assert!(spent < crate::lab::QUIET / 4, "{spent:?} while it waits");
    guest.driver.buffers = 256;
    guest.refill();
    guest.expect("ARP reply", crate::is_arp_reply);
}

/// Headers fit in such buffers, and not an octet behind them: a stream would wait for that, and we would look again at once.
#[test]
fn buffers_that_only_headers_fit_in_end_the_connection() {
    let Some(scene) = Scene::new(&["--mtu", "1500"]) else {
        return;
    };
    let mut driver = Driver::new(VERSION_1);
    driver.buffers = 1;
    let mut guest = scene.guest(driver);
    let (_, mut server) = connect(&scene, &mut guest, (INTERNET4, 7).into());
    // From the next frame on.
    guest.driver.buffer = 64;
    server.write_all(b"1").unwrap();
    guest.expect("octet", |arrival| {
        let octets = Tcp::of_frame(&arrival.frame)?.payload;
        (octets == b"1").then_some(())
    });
    let before = scene.translator.cpu();
    server.write_all(b"2").unwrap();
    let closes = guest.closes();
    let spent = scene.translator.cpu() - before;
    assert!(closes, "{spent:?} spent on it");
    assert!(wait_until(LONG, || scene
        .translator
        .log()
        .contains("buffer too small")));
}
