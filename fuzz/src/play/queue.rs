//! The guest behind a vhost-user front-end.

use passt_rs::{
    config::{VhostFeatures, vhost_bits as bits},
    link::{Halves, Served, Session},
};

use super::{Play, script::Script};
use crate::{
    front_end::{FrontEnd, Offload},
    guest, kernel,
};

#[derive(Debug)]
pub(super) struct Queue {
    front: FrontEnd,
    session: Session,
    /// How the next frame is laid out.
    shape: u8,
}

/// What drivers agree to: much, little, and what lies between.
const DRIVERS: [u64; 4] = [
    u64::MAX,
    0,
    bits::VERSION_1 | bits::INDIRECT_DESC,
    bits::VERSION_1 | bits::MRG_RXBUF | bits::GUEST_CSUM | bits::EVENT_IDX,
];

impl Play {
    /// Another front-end comes.
    pub(super) fn attach_front_end(&mut self) {
        let offered = VhostFeatures::default();
        let driver = DRIVERS[usize::from(self.setting >> 6)] | bits::PROTOCOL_FEATURES;
        let (mut front, socket) = FrontEnd::new(offered.bits() & driver & !bits::LOG_ALL);
        front.lend(if self.setting & 0x20 == 0 { 64 } else { 4 }, 4096);
        self.queue = Some(Queue {
            front,
            session: Session::new(socket, offered, 1),
            shape: self.setting,
        });
        self.outbox.attach_queue(true);
        self.serve_front_end();
    }

    /// Takes the front-end's messages; whoever says what cannot be is shown out, and the next one comes.
    fn serve_front_end(&mut self) {
        let Some(queue) = &mut self.queue else { return };
        let served = queue.session.serve(&mut [Halves {
            intake: self.inbox.intake(),
            outlet: self.outbox.outlet(),
        }]);
        queue.front.forget_replies();
        // Kicks need not be polled: every turn looks into the queues.
        queue.session.watches().for_each(drop);
        match served {
            Ok(Served::More | Served::Waits) => {}
            Ok(Served::Left) | Err(_) => {
                assert!(
                    !queue.front.sane,
                    "an honest front-end is refused: {served:?}"
                );
                self.detach_front_end();
                self.attach_front_end();
            }
        }
    }

    pub(super) fn detach_front_end(&mut self) {
        self.relay.guest_left();
        if let Some(mut queue) = self.queue.take() {
            queue.session.end(&mut [Halves {
                intake: self.inbox.intake(),
                outlet: self.outbox.outlet(),
            }]);
            self.outbox.attach_queue(false);
        }
        self.settle();
    }

    /// A queue that the driver has broken ends the connection.
    pub(super) fn end_broken(&mut self) {
        if let Some(queue) = &self.queue
            && let Some(broken) = self.outbox.broken()
        {
            assert!(!queue.front.sane, "an honest driver is refused: {broken}");
            self.detach_front_end();
            self.attach_front_end();
        }
    }

    pub(super) fn is_sane(&self) -> bool {
        self.queue.as_ref().is_none_or(|queue| queue.front.sane)
    }

    /// Puts a frame into the queue, laid out in one way or another.
    pub(super) fn queue_frame(&mut self, frame: &[u8]) -> bool {
        let Some(queue) = &mut self.queue else {
            return false;
        };
        queue.shape = queue.shape.wrapping_mul(5).wrapping_add(0x41);
        queue.front.put([0; 12], frame, queue.shape);
        true
    }

    /// The frames that came by the queue; `None` where there is none.
    pub(super) fn collect(&mut self) -> Option<Vec<(Offload, Vec<u8>)>> {
        self.queue.as_mut().map(|queue| queue.front.collect())
    }

    /// Buffers for frames to the guest.
    pub(super) fn lend_buffers(&mut self, count: usize, size: u32) {
        if let Some(queue) = &mut self.queue {
            queue.front.lend(count, size);
        }
    }

    /// The driver or its front-end does what none would.
    pub(super) fn misbehave(&mut self, script: &mut Script<'_>) {
        let Some(queue) = &mut self.queue else { return };
        queue.front.sane = false;
        kernel::with(|kernel| kernel.checks_upload = false);
        let what = script.byte();
        let (at, count) = (script.number(), usize::from(what & 0xf) + 1);
        let octets: Vec<u8> = (0..count).map(|_| script.byte()).collect();
        match what >> 4 {
            // A frame whose header asks for something.
            0..=3 => {
                let mut header = [0; 12];
                let len = octets.len().min(12);
                header[..len].copy_from_slice(&octets[..len]);
                let pair = guest::pair(what & 1 == 1, 1, false);
                let payload = vec![what; (at % 9000) as usize];
                let frame = guest::udp(pair, (5000, 53), &payload);
                queue.front.put(header, &frame, what);
            }
            // Rings, tables and buffers.
            4..=11 => {
                let base = u64::from(what >> 4 & 7) * 0x1000;
                queue.front.write(base + u64::from(at % 0x1000), &octets);
            }
            12 => queue.front.say_raw(&octets),
            _ => {
                let [memory, kick] = queue.front.descriptors();
                let descriptors: &[_] = match at & 3 {
                    0 => &[],
                    1 => &[memory],
                    2 => &[kick],
                    _ => &[memory, kick],
                };
                let words: Vec<u64> = octets[1..].iter().map(|octet| word(*octet)).collect();
                let request = u32::from(octets[0] & 0x3f);
                queue.front.say(request, &words, descriptors);
            }
        }
        self.serve_front_end();
    }
}

/// Numbers that mean something to a back end, or hardly anything.
fn word(octet: u8) -> u64 {
    match octet {
        0..=0x7f => octet.into(),
        0x80..=0x8f => 0x7f00_0000_0000 + u64::from(octet & 0xf) * 0x1000,
        0x90..=0x9f => 0x4000_0000 + u64::from(octet & 0xf) * 0x1000,
        0xa0..=0xaf => u64::from(octet & 1) | 64 << 32,
        0xb0..=0xbf => u64::from(octet & 1) | u64::from(octet & 0xf) << 32,
        0xc0..=0xdf => 1 << (octet & 0x3f),
        _ => u64::MAX - u64::from(octet & 7),
    }
}
