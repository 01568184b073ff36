//! What the guest does.

use passt_rs::{link::Received, wire::frame::classify};

use super::{
    Guest, Play,
    script::{Conn, Script},
};
use crate::{
    guest,
    kernel::{self, filling, stream},
};

impl Play {
    pub(super) fn put(&mut self, frame: &[u8]) {
        trace!(
            "guest: {:?}",
            classify(frame, frame.len()).map(|read| read.body)
        );
        if self.queue_frame(frame) {
            return;
        }
        kernel::with(|kernel| {
            kernel.from_guest.extend((frame.len() as u32).to_be_bytes());
            kernel.from_guest.extend(frame);
        });
    }

    pub(super) fn conn(&mut self, script: &mut Script<'_>) -> &mut Conn {
        let count = self.conns.len();
        &mut self.conns[usize::from(script.byte()) % count]
    }

    pub(super) fn syn(&mut self, script: &mut Script<'_>) {
        let how = script.byte();
        let options: &[u8] = match how & 3 {
            0 => &[],
            1 => &[2, 4, 5, 180],
            2 => &[
                2, 4, 5, 180, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7,
            ],
            _ => &[2, 4, 0, 1, 1, 3, 3, 14],
        };
        let conn = self.conn(script);
        if how & 4 != 0 {
            // Another life, far from the last.
            conn.iss = conn.iss.wrapping_add(0x4000_0000);
            (conn.next, conn.most, conn.irs) = (0, 0, None);
        }
        let mut segment = conn.segment();
        (segment.flags, segment.seq) = (2, conn.iss);
        (segment.options, segment.window) = (options, 0xffff);
        if how & 8 != 0 {
            segment.flags |= 0x10;
        }
        let frame = guest::tcp(conn.pair(), segment);
        self.put(&frame);
    }

    /// The guest's stream goes on.
    pub(super) fn data(&mut self, script: &mut Script<'_>) {
        let octets = script.number().min(1400);
        let count = script.byte() % 8 + 1;
        let conn = self.conn(script);
        let mut frames = Vec::new();
        for n in 0..count {
            let payload: Vec<u8> = stream(conn.next.into(), octets as usize)
                .collect::<Vec<_>>()
                .concat();
            let mut segment = conn.segment();
            (segment.flags, segment.payload) = (0x18, &payload);
            // One in the middle may be lost, so that there is a gap.
            if !(count > 3 && n == 1) {
                frames.push(guest::tcp(conn.pair(), segment));
            }
            conn.next += octets;
            conn.most = conn.most.max(conn.next);
        }
        for frame in frames {
            self.put(&frame);
        }
    }

    /// Any segment: flags, sequence number, acknowledgement and window near what they should be, or not.
    pub(super) fn segment(&mut self, script: &mut Script<'_>) {
        let (flags, how) = (script.byte(), script.byte());
        let (by, window) = (script.number(), script.number());
        let octets = if how & 1 == 0 {
            0
        } else {
            script.number().min(1400)
        };
        let sack = [script.number(), script.number()];
        let honest = self.guest != Guest::Anything;
        let conn = self.conn(script);
        let start = match how >> 1 & 3 {
            0 => conn.next,
            1 => conn.next.saturating_sub(by),
            2 => conn.next.saturating_add(by % 100_000),
            _ => 0,
        };
        let payload: Vec<u8> = stream(start.into(), octets as usize)
            .collect::<Vec<_>>()
            .concat();
        let mut options = Vec::new();
        if how & 0x80 != 0 {
            let [a, b] = sack.map(|n| conn.expected.wrapping_add(n));
            options.extend([1, 1, 5, 10]);
            options.extend(a.to_be_bytes());
            options.extend(b.to_be_bytes());
        }
        if how & 0x40 != 0 {
            options.extend([1, 1, 8, 10]);
            options.extend(by.to_be_bytes());
            options.extend(window.to_be_bytes());
        }
        let mut segment = conn.segment();
        segment.seq = conn.iss.wrapping_add(1).wrapping_add(start);
        segment.ack = match how >> 3 & 7 {
            0..=3 => conn.expected,
            4 => conn.expected.wrapping_sub(by),
            5 => conn.expected.wrapping_add(by),
            _ => conn.irs.unwrap_or(0).wrapping_add(1),
        };
        // A SYN elsewhere than at the stream's begin would shift all octets; a FIN would end a stream that goes on.
        segment.flags = if honest { flags & 0x1c | 0x10 } else { flags };
        segment.window = window as u16;
        (segment.options, segment.payload) = (&options, &payload);
        conn.most = conn.most.max(start + octets);
        let frame = guest::tcp(conn.pair(), segment);
        self.put(&frame);
    }

    /// Acknowledges all, as a guest does; or ends.
    pub(super) fn answer(&mut self, script: &mut Script<'_>) {
        let how = script.byte();
        let conn = self.conn(script);
        let mut segment = conn.segment();
        segment.flags = match how % 8 {
            0 => 0x11,
            1 => 0x14,
            2 if conn.irs.is_some() => 0x12,
            _ => 0x10,
        };
        if segment.flags == 0x12 {
            segment.seq = conn.iss;
        }
        let frame = guest::tcp(conn.pair(), segment);
        self.put(&frame);
    }

    /// A datagram or an echo request.
    pub(super) fn datagram(&mut self, script: &mut Script<'_>) {
        let how = script.byte();
        let octets = script.number().min(1400) as usize;
        let payload = vec![filling(octets); octets];
        let pair = guest::pair(how & 1 == 1, how >> 1 & 3, how & 8 != 0);
        let frame = if how & 16 == 0 {
            let ports = (
                5000 + u16::from(how >> 5),
                [53, 69, 0, 9][usize::from(how >> 6)],
            );
            guest::udp(pair, ports, &payload)
        } else {
            guest::echo(pair, u16::from(how >> 5), 1, &payload)
        };
        self.put(&frame);
    }

    /// Datagrams of one flow in a row, most of one size.
    pub(super) fn row(&mut self, count: u8, script: &mut Script<'_>) {
        let (how, octets) = (script.byte(), script.number().min(2000) as usize);
        let pair = guest::pair(how & 1 == 1, how >> 1 & 3, false);
        for n in 0..count {
            let len = if n & 15 == 15 { octets / 2 } else { octets };
            let payload = vec![filling(len); len];
            let frame = guest::udp(pair, (5000, 53), &payload);
            self.put(&frame);
        }
    }

    /// A packet in parts, which may come in any order, repeated, or not all.
    pub(super) fn parts(&mut self, script: &mut Script<'_>) {
        let (how, octets) = (script.byte(), script.number().min(60_000) as usize);
        let size = script.number().clamp(1, 4000) as usize * 8;
        let pair = guest::pair(how & 1 == 1, how >> 1 & 3, false);
        let payload = vec![filling(octets); octets];
        let whole = if how & 16 == 0 {
            guest::udp(pair, (5000, 53), &payload)
        } else {
            guest::echo(pair, 5, 1, &payload)
        };
        self.parts = self.parts.wrapping_add(u16::from(how & 8 == 0));
        let mut frames = guest::cut(&whole, self.parts, size.max(octets / 40 / 8 * 8));
        for _ in 0..how >> 5 {
            let (a, b) = (script.byte(), script.byte());
            let count = frames.len();
            if a & 0xc0 == 0xc0 {
                frames.push(frames[usize::from(b) % count].clone());
            } else if a & 0xc0 == 0x80 && count > 1 {
                frames.remove(usize::from(b) % count);
            } else {
                frames.swap(usize::from(a) % count, usize::from(b) % count);
            }
        }
        for frame in frames {
            self.put(&frame);
        }
    }

    /// What has to do with groups: a datagram to one or to all, a report, or that it leaves one.
    pub(super) fn group(&mut self, script: &mut Script<'_>) {
        let (how, octets) = (script.byte(), script.number().min(9000) as usize);
        let v6 = how & 1 == 1;
        let pair = guest::group(v6, how >> 1 & 3);
        let frame = match how >> 3 & 3 {
            0 | 1 => {
                let payload = vec![filling(octets); octets];
                guest::udp(
                    pair,
                    (5000, [5353, 1900, 67, 9][usize::from(how >> 5 & 3)]),
                    &payload,
                )
            }
            kind => guest::report(pair, kind == 2),
        };
        self.put(&frame);
    }

    /// Any part of a packet whose octets its number tells.
    pub(super) fn part(&mut self, what: u8, script: &mut Script<'_>) {
        let (id, offset, size) = (script.byte(), script.number(), script.number());
        let pair = guest::pair(what & 1 == 1, 1, false);
        let octets = usize::from(id) * 37;
        let payload = vec![filling(octets); octets];
        let whole = guest::udp(pair, (5000, 53), &payload);
        let start = if what & 1 == 1 { 54 } else { 34 };
        let at = offset as usize * 8;
        let end = at + size as usize * if what & 2 == 2 { 1 } else { 8 };
        let upper = &whole[start..];
        let part = upper.get(at.min(upper.len())..end.min(upper.len()));
        let place = guest::Place {
            id: id.into(),
            offset: at as u16,
            more: if what & 4 == 4 {
                what & 8 == 8
            } else {
                end < upper.len()
            },
        };
        let frame = guest::part(&whole[..start], place, part.unwrap_or_default());
        self.put(&frame);
        if what & 0x30 == 0 {
            self.burst();
        }
    }

    /// Octets of the input as a frame.
    pub(super) fn raw(&mut self, script: &mut Script<'_>) {
        let how = script.byte();
        let len = usize::from(script.byte()).max(14);
        let mut frame: Vec<u8> = (0..len).map(|_| script.byte()).collect();
        if how & 1 == 0 {
            guest::repair(&mut frame);
        }
        if how & 0xf0 == 0xf0 {
            kernel::with(|kernel| kernel.from_guest.extend(&frame));
        } else {
            self.put(&frame);
        }
    }

    /// The guest's frames are taken.
    pub(super) fn burst(&mut self) {
        for _ in 0..8 {
            if self.queue.is_some() && self.inbox.intake().is_none() {
                return;
            }
            let received = self.inbox.receive();
            self.relay
                .from_guest(&self.inbox, &mut self.outbox, self.now);
            self.settle();
            self.inbox.release();
            self.outbox.flush();
            match received {
                Received::Burst | Received::Last | Received::Short => {}
                Received::Blocked => return,
                Received::Broken(_) => {
                    assert!(!self.is_sane(), "an honest driver is refused");
                    self.detach_front_end();
                    return self.attach_front_end();
                }
                Received::Closed | Received::BadLength(_) => {
                    self.relay.guest_left();
                    self.settle();
                    self.inbox.attach(None);
                    self.outbox.attach(None);
                    return self.attach();
                }
            }
            self.end_broken();
        }
    }
}
