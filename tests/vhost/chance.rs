//! Messages, rings and memory by chance: whatever they say, the process lives, keeps no descriptor, and serves the next.
//! `VHOST_ROUNDS` sets how many rounds are played (300).

use std::{env, os::fd::AsRawFd, time::Duration};

use crate::{
    Scene, arp_request, assert_works,
    guest::{
        Tcp, Udp,
        frame::{ACK, RST, SYN},
        guest_addr, pattern,
    },
    lab::{
        front_end::{Driver, FrontEnd, INDIRECT_DESC, LINUX, MEMORY, RX, TX, USER, request},
        world::INTERNET4,
    },
};

/// xorshift64*: the same numbers in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    fn below(&mut self, end: u64) -> u64 {
        self.roll() % end
    }

    /// A number that is likely to matter.
    fn word(&mut self) -> u64 {
        match self.below(8) {
            0 => 0,
            1 => u64::MAX - self.below(9),
            2 => USER + self.below(2 * MEMORY),
            3 => self.below(2 * MEMORY),
            4 => 1 << self.below(64),
            5 => self.below(5) | self.below(2048) << 32,
            6 => (1 << 32) + self.below(MEMORY),
            _ => self.roll(),
        }
    }
}

/// One message of any kind, with any words and descriptors.
fn any_message(guest: &FrontEnd, dice: &mut Dice) {
    let request = match dice.below(8) {
        0 => dice.below(50) as u32,
        1 => request::SET_MEM_TABLE,
        2 => request::SET_VRING_ADDR,
        3 => request::SET_LOG_BASE,
        4 => request::ADD_MEM_REG,
        _ => request::SET_VRING_NUM + dice.below(12) as u32,
    };
    let words: Vec<u64> = (0..dice.below(10)).map(|_| dice.word()).collect();
    let fds = vec![guest.memory.as_raw_fd(); dice.below(4) as usize];
    let flags = if dice.below(16) == 0 {
        dice.roll() as u32
    } else {
        1 | (dice.below(2) as u32) << 3
    };
    guest.send(request, flags, &words, &fds);
}

/// Any descriptors, in chains and loops and tables, and any indices.
fn any_ring(guest: &mut FrontEnd, dice: &mut Dice) {
    let queue = if dice.below(3) == 0 { RX } else { TX };
    let queue = queue + 2 * dice.below(guest.driver.pairs as u64) as usize;
    let [table, available, used] = guest.places(queue);
    match dice.below(6) {
        0 => {
            let at = [table, available, used][dice.below(3) as usize] + dice.below(0x1000);
            let octets: Vec<u8> = (0..dice.below(64)).map(|_| dice.roll() as u8).collect();
            guest.poke(at, &octets);
        }
        1 => guest.jump(queue, dice.below(300) as u16),
        _ => {
            for _ in 0..dice.below(12) {
                let addr = match dice.below(4) {
                    0 => dice.word(),
                    1 => table + 16 * dice.below(256),
                    _ => FrontEnd::guest(dice.below(MEMORY)),
                };
                let len = match dice.below(4) {
                    0 => dice.roll() as u32,
                    1 => 16 * dice.below(64) as u32,
                    _ => dice.below(70_000) as u32,
                };
                let (index, flags, next) = (dice.below(260), dice.below(8), dice.below(260));
                guest.describe(table, index as u16, addr, len, flags as u16, next as u16);
            }
            guest.offer(queue, dice.below(260) as u16);
        }
    }
    guest.kick(queue);
}

/// A frame of one of a few flows, by any queue.
fn any_flow(guest: &mut FrontEnd, dice: &mut Dice) {
    let pair = dice.below(guest.driver.pairs as u64) as usize;
    let remote = (INTERNET4, 7 + dice.below(2) as u16).into();
    let local = guest_addr(remote, 40_000 + dice.below(4) as u16);
    let frame = match dice.below(3) {
        0 => Tcp::new(local, remote, [SYN, ACK, RST][dice.below(3) as usize]).frame(),
        _ => Udp::new(local, remote, &pattern(0, dice.below(1400) as usize)).frame(),
    };
    guest.post_by(pair, &[0; 12], &frame, 1);
}

#[test]
fn whatever_is_said_and_written_nobody_else_suffers() {
    let rounds = env::var("VHOST_ROUNDS").map_or(300, |n| n.parse().unwrap());
    let Some(mut scene) = Scene::new(&["--queues", "2"]) else {
        return;
    };
    let mut dice = Dice(0x5eed_0f7a_11d1_ce55);
    let idle = scene.translator.idle_fd_count();
    for round in 0..rounds {
        let features = LINUX & !if round % 2 == 0 { INDIRECT_DESC } else { 0 };
        let mut guest = scene.guest(match round % 3 {
            0 => Driver::new(features),
            _ => Driver::twice(features),
        });
        for _ in 0..dice.below(20) {
            match dice.below(8) {
                0 => any_message(&guest, &mut dice),
                1 => guest.post(&[0; 12], &arp_request(), 1),
                2 => any_flow(&mut guest, &mut dice),
                _ => any_ring(&mut guest, &mut dice),
            }
        }
        // Half of them leave before all of it is seen.
        if dice.below(2) == 0 {
            guest.wait(RX, None::<&std::fs::File>, Duration::from_millis(2));
        }
        drop(guest);
        // Who comes while another is still there is turned away.
        scene.translator.expect_fd_count(idle);
        if round % 50 == 49 {
            scene.translator.assert_alive();
            assert_works(&mut scene.guest(Driver::new(LINUX)));
            scene.translator.expect_fd_count(idle);
        }
    }
    scene.translator.expect_fd_count(idle);
    assert_works(&mut scene.guest(Driver::new(LINUX)));
    scene.translator.assert_alive();
}
