//! Messages, in every order that front-ends have.

use std::{
    fs::File,
    io::Read,
    os::{fd::AsRawFd, unix::fs::FileExt},
};

use nix::{
    sys::{
        memfd::{MFdFlags, memfd_create},
        signal::Signal,
    },
    unistd::ftruncate,
};

use crate::{
    Scene, arp_request, assert_works, is_arp_reply,
    lab::front_end::{
        CSUM, Driver, EVENT_IDX, FrontEnd, GUEST_CSUM, INDIRECT_DESC, IPXE, LINUX, LOG_ALL,
        MRG_RXBUF, RX, TX, USER, VERSION_1, request,
    },
};

#[test]
fn the_messages_of_qemu_end_in_a_link_that_works() {
    let Some(scene) = Scene::new(&[]) else { return };
    let mut guest = scene.guest(Driver::new(LINUX));
    assert_eq!(guest.driver.features & LINUX, LINUX);
    assert_works(&mut guest);
    // A link that rests is woken.
    for _ in 0..300 {
        assert_works(&mut guest);
    }
}

/// Regression V02.
#[test]
fn a_driver_without_mergeable_buffers_is_served_and_told_of_one_buffer() {
    let Some(scene) = Scene::new(&[]) else { return };
    let mut driver = Driver::new(IPXE);
    (driver.entries, driver.buffers) = (32, 16);
    let mut guest = scene.guest(driver);
    for _ in 0..100 {
        guest.transmit(&[0; 12], &arp_request(), 2);
        guest.expect("ARP reply", |arrival| {
            assert_eq!(arrival.header[10..], [1, 0]);
            is_arp_reply(arrival)
        });
    }
}

#[test]
fn each_feature_of_the_rings_may_be_missing() {
    let Some(scene) = Scene::new(&[]) else { return };
    for features in [
        0,
        VERSION_1,
        MRG_RXBUF,
        VERSION_1 | EVENT_IDX,
        VERSION_1 | INDIRECT_DESC,
        LINUX & !EVENT_IDX,
        LINUX & !INDIRECT_DESC,
        LINUX & !MRG_RXBUF,
        VERSION_1 | CSUM | GUEST_CSUM,
    ] {
        let mut driver = Driver::new(features);
        (driver.entries, driver.buffers) = (64, 16);
        let mut guest = scene.guest(driver);
        for pieces in 1..=4 {
            let header = vec![0; driver.header()];
            guest.transmit(&header, &arp_request(), pieces);
            guest.expect("ARP reply", is_arp_reply);
        }
    }
}

#[test]
fn what_the_command_line_leaves_out_is_not_offered() {
    let Some(scene) = Scene::new(&["--vhost-features", "~mrg-rxbuf,~event-idx"]) else {
        return;
    };
    let mut guest = scene.guest(Driver::new(LINUX));
    assert_eq!(guest.offered & (MRG_RXBUF | EVENT_IDX), 0);
    assert_eq!(guest.offered & (CSUM | INDIRECT_DESC), CSUM | INDIRECT_DESC);
    assert_works(&mut guest);
}

/// Regression V04.
#[test]
fn one_queue_pair_is_one_queue_pair() {
    let Some(scene) = Scene::new(&["--queues", "1"]) else {
        return;
    };
    let guest = FrontEnd::greet(scene.translator.connect(), Driver::new(LINUX));
    assert_eq!(guest.ask(request::GET_QUEUE_NUM, &[]), [1]);
}

/// Regressions V05 and V07: a guest's reboot, and the announcement of its address.
#[test]
fn rings_that_were_stopped_start_again() {
    let Some(scene) = Scene::new(&[]) else { return };
    let mut guest = scene.guest(Driver::new(LINUX));
    for round in 0..3 {
        assert_works(&mut guest);
        guest.told(request::SEND_RARP, &[0x5634_1200_5452], &[]);
        let at = guest.stop_rings();
        assert!(at[TX] > 0);
        guest.reset_driver();
        // Firmware comes first.
        guest.driver.features = if round == 1 { IPXE } else { LINUX };
        guest.share_memory();
        guest.start_rings(0, 0);
    }
    // Stopped and continued in the middle (`stop` and `cont` of QEMU's monitor).
    let [rx, tx] = guest.stop_rings();
    guest.start_rings(rx, tx);
    assert_works(&mut guest);
}

#[test]
fn a_front_end_that_comes_back_is_served_again() {
    let Some(mut scene) = Scene::new(&[]) else {
        return;
    };
    for _ in 0..3 {
        let idle = scene.translator.idle_fd_count();
        let mut guest = scene.guest(Driver::new(LINUX));
        assert_works(&mut guest);
        drop(guest);
        scene.translator.expect_fd_count(idle);
    }
    scene.translator.assert_alive();
}

#[test]
fn descriptors_are_replaced_and_not_kept() {
    let Some(scene) = Scene::new(&[]) else { return };
    let mut guest = scene.guest(Driver::new(LINUX));
    assert_works(&mut guest);
    let before = scene.translator.idle_fd_count();
    for _ in 0..20 {
        let [rx, tx] = guest.stop_rings();
        guest.start_rings(rx, tx);
        guest.share_table(&[
            [0, 16 << 20, 0x7f12_0000_0000, 0],
            [1 << 32, 16 << 20, 0x7f12_0100_0000, 16 << 20],
        ]);
    }
    assert_works(&mut guest);
    scene.translator.expect_fd_count(before);
}

#[test]
fn memory_comes_and_goes_in_slots() {
    let Some(scene) = Scene::new(&[]) else { return };
    let driver = Driver::new(LINUX);
    let mut guest = FrontEnd::greet(scene.translator.connect(), driver);
    guest.tell(request::SET_PROTOCOL_FEATURES, &[0x1_800e], &[]);
    assert!(guest.ask(request::GET_MAX_MEM_SLOTS, &[])[0] >= 8);
    guest.driver.features = LINUX & guest.offered | 1 << 30;
    guest.told(request::SET_FEATURES, &[guest.driver.features], &[]);
    let memory = guest.memory.as_raw_fd();
    let slots = [
        [0, 0, 16 << 20, 0x7f12_0000_0000, 0],
        [0, 1 << 32, 16 << 20, 0x7f12_0100_0000, 16 << 20],
    ];
    for slot in &slots {
        guest.told(request::ADD_MEM_REG, slot, &[memory]);
    }
    guest.start_rings(0, 0);
    assert_works(&mut guest);
    let more = [0, 1 << 40, 1 << 20, 0x7f22_0000_0000, 0];
    guest.told(request::ADD_MEM_REG, &more, &[memory]);
    guest.told(request::REM_MEM_REG, &more, &[]);
    assert_works(&mut guest);
}

/// What is written during a migration is marked, page by page: frames to the guest, and the used rings.
#[test]
fn written_pages_are_marked_while_they_are_logged() {
    const PAGES: u64 = ((1 << 32) + (16 << 20)) / 4096;
    /// Of one buffer.
    const MOST: usize = 16;
    let Some(scene) = Scene::new(&[]) else { return };
    let mut guest = scene.guest(Driver {
        buffers: 128,
        buffer: 16 * 4096,
        ..Driver::new(LINUX)
    });
    assert_works(&mut guest);
    let log = memfd_create("log", MFdFlags::MFD_CLOEXEC).unwrap();
    ftruncate(&log, (PAGES / 8).cast_signed()).unwrap();
    let log: File = log.into();
    let base = [PAGES / 8, 0];
    let flags = 1 | 1 << 3;
    guest.send(request::SET_LOG_BASE, flags, &base, &[log.as_raw_fd()]);
    let mut reply = [0; 20];
    (&guest.socket).read_exact(&mut reply).unwrap();
    let marked = |page: u64| {
        let mut octet = [0];
        log.read_exact_at(&mut octet, page / 8).unwrap();
        octet[0] >> (page % 8) & 1 == 1
    };
    let pages = |from: u64, len: u64| from / 4096..(from + len).div_ceil(4096);
    let [_, _, used] = guest.places(RX);
    let buffers = 1 << 20..16 << 20;
    let any = |range: std::ops::Range<u64>| range.into_iter().any(marked);
    assert_works(&mut guest);
    assert!(!any(pages(0, 16 << 20)), "marked before it was asked for");

    let features = guest.driver.features | LOG_ALL;
    guest.told(request::SET_FEATURES, &[features], &[]);
    for queue in [RX, TX] {
        let [descriptors, available, used] = guest.places(queue);
        let words = [
            queue as u64 | 1 << 32,
            USER + descriptors,
            USER + used,
            USER + available,
            used,
        ];
        // As QEMU does: what is sent behind an unanswered message may be served before it.
        guest.told(request::SET_VRING_ADDR, &words, &[]);
    }
    assert_works(&mut guest);
    assert!(any(pages(used, 4096)), "used ring");
    assert!(any(pages(guest.places(TX)[2], 4096)), "the other used ring");
    // A small frame has not written all of its buffer.
    let buffers = pages(buffers.start, buffers.end - buffers.start);
    let written = buffers.filter(|&page| marked(page)).count();
    assert!((1..MOST).contains(&written), "{written} pages of buffers");
    // What is only read is not marked: the descriptors, and frames from the guest.
    assert!(!any(pages(guest.places(TX)[0], 4096)));
    assert!(!any(pages(1 << 32, 16 << 20)));
    guest.told(request::SET_FEATURES, &[features & !LOG_ALL], &[]);
    assert_works(&mut guest);
}

/// Regression V09.
#[test]
fn a_descriptor_serves_as_the_connection() {
    let Some(world) = crate::World::pod() else {
        return;
    };
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut translator = crate::Setup::new(&["--vhost-user"])
        .fd(theirs)
        .start(&world.pod);
    let mut guest = FrontEnd::start(ours, Driver::new(LINUX));
    assert_works(&mut guest);
    drop(guest);
    assert_eq!(translator.wait(crate::lab::LONG), 0);
}

#[test]
fn one_kick_tells_of_all_frames_that_follow_until_they_are_looked_at() {
    let Some(scene) = Scene::new(&[]) else { return };
    let mut guest = scene.guest(Driver::new(LINUX));
    assert_works(&mut guest);
    scene.translator.idle_fd_count();
    let before = guest.kicks(TX);
    scene.translator.stand_still();
    for _ in 0..64 {
        guest.post(&[0; 12], &arp_request(), 1);
    }
    assert_eq!(guest.kicks(TX) - before, 1);
    scene.translator.signal(Signal::SIGCONT);
    for _ in 0..64 {
        guest.expect("ARP reply", is_arp_reply);
    }
}
