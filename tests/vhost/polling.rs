//! `--busy-poll`: for a while the queues are looked at without being asked to, and after that kicks are asked for again.

use std::time::{Duration, Instant};

use crate::{
    Scene, arp_request, assert_works, is_arp_reply,
    lab::front_end::{Driver, EVENT_IDX, FrontEnd, LINUX, TX},
};

fn scene(micros: &str) -> Option<Scene> {
    Scene::new(&["--busy-poll", micros])
}

fn ask(guest: &mut FrontEnd, pair: usize) {
    guest.transmit_by(pair, &[0; 12], &arp_request(), 1);
    guest.expect("ARP reply", is_arp_reply);
}

#[test]
fn who_looks_anyway_is_not_kicked() {
    let Some(scene) = scene("1000000") else {
        return;
    };
    for features in [LINUX, LINUX & !EVENT_IDX] {
        let mut guest = scene.guest(Driver::new(features));
        ask(&mut guest, 0);
        let (before, start) = (guest.kicks(TX), Instant::now());
        while start.elapsed() < Duration::from_millis(300) {
            ask(&mut guest, 0);
        }
        // Should this machine have stood still for a second, it may have slept.
        assert!(guest.kicks(TX) - before <= 1);
    }
}

/// Questions at all distances from the last one: before, after, and just when it falls asleep.
#[test]
fn no_kick_is_missed_between_looking_and_sleeping() {
    let Some(scene) = scene("100") else { return };
    for features in [LINUX, LINUX & !EVENT_IDX] {
        let mut guest = scene.guest(Driver::twice(features));
        for round in 0..1500_u64 {
            let start = Instant::now();
            while start.elapsed() < Duration::from_micros(round * 37 % 250) {
                std::hint::spin_loop();
            }
            ask(&mut guest, (round / 5 % 2) as usize);
        }
    }
}

#[test]
fn who_has_nothing_to_do_sleeps() {
    for micros in ["0", "1000"] {
        let Some(scene) = scene(micros) else { return };
        let mut guest = scene.guest(Driver::twice(LINUX));
        assert_works(&mut guest);
        ask(&mut guest, 1);
        scene.translator.idle_fd_count();
        let little = Duration::from_millis(50);
        scene.translator.assert_idle(little, micros);
        ask(&mut guest, 1);
        ask(&mut guest, 0);
    }
}
