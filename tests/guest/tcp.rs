//! One end of a TCP connection, played by hand: it does what it is told and nothing else.

use std::{
    io::Read,
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::{
    Tcp, Wire,
    frame::{ACK, FIN, PSH, RST, SYN},
    pattern,
};
use crate::lab::LONG;

/// A connection from the guest, by hand.
#[derive(Debug)]
pub struct Peer<'w> {
    wire: &'w Wire,
    pub local: SocketAddr,
    pub remote: SocketAddr,
    /// The next sequence number to send.
    pub snd_nxt: u32,
    /// The next one expected.
    pub rcv_nxt: u32,
    /// The window field of every segment sent.
    pub window: u16,
    /// The other side's window, in octets from the last acknowledgement, as [`Self::upload`] last saw it.
    pub snd_wnd: u32,
    /// Shift of the windows received: the other side's, if both sides announced one.
    pub scale: u8,
    /// Octets received in order that nobody has read.
    inbox: Vec<u8>,
    /// Segments received that brought nothing new although they held data.
    pub repeated: usize,
}

/// Options of a SYN: this MSS, and this window scale, if any.
pub fn syn_options(mss: u16, scale: Option<u8>) -> Vec<u8> {
    let [a, b] = mss.to_be_bytes();
    let mut options = vec![2, 4, a, b];
    if let Some(scale) = scale {
        options.extend_from_slice(&[1, 3, 3, scale]);
    }
    options
}

impl<'w> Peer<'w> {
    /// A connection that was not begun yet; its SYN will have number `iss`.
    pub fn new(wire: &'w Wire, local: SocketAddr, remote: SocketAddr, iss: u32) -> Self {
        Self {
            wire,
            local,
            remote,
            snd_nxt: iss,
            rcv_nxt: 0,
            window: 0xffff,
            snd_wnd: 0,
            scale: 0,
            inbox: Vec::new(),
            repeated: 0,
        }
    }

    /// Waits for a SYN to this port and takes the connection.
    pub fn accept(wire: &'w Wire, port: u16) -> Self {
        let syn = Self::expect_syn(wire, port);
        Self::answer(wire, &syn)
    }

    /// Waits for a SYN to this port.
    pub fn expect_syn(wire: &Wire, port: u16) -> Tcp {
        let syn = wire.expect("SYN", |frame| {
            Tcp::of_frame(frame).filter(|s| s.dst.port() == port && s.has(SYN))
        });
        assert_eq!((syn.flags, syn.ack, syn.len()), (SYN, 0, 1));
        syn
    }

    /// Answers a SYN, with an MSS for 1500 octets and window scale 0, and sees the answer acknowledged.
    pub fn answer(wire: &'w Wire, syn: &Tcp) -> Self {
        let mut peer = Self::new(wire, syn.dst, syn.src, 0x7fff_fff0);
        peer.rcv_nxt = syn.seq.wrapping_add(1);
        let mut segment = peer.segment(SYN | ACK, &[]);
        segment.options = syn_options(1460, Some(0));
        wire.send(&segment.frame());
        peer.snd_nxt = peer.snd_nxt.wrapping_add(1);
        let ack = peer.expect_acked();
        assert!(!ack.has(SYN));
        peer.scale = syn.option(3).map_or(0, |value| value[0]);
        peer
    }

    /// Connects, with an MSS for 1500 octets and window scale 0.
    pub fn connect(wire: &'w Wire, local: SocketAddr, remote: SocketAddr) -> Self {
        Self::connect_with(wire, local, remote, Some(0))
    }

    /// Connects, with this window scale, if any.
    pub fn connect_with(
        wire: &'w Wire,
        local: SocketAddr,
        remote: SocketAddr,
        scale: Option<u8>,
    ) -> Self {
        let mut peer = Self::new(wire, local, remote, 0xffff_f000);
        let syn = Tcp {
            options: syn_options(1400, scale),
            ..peer.segment(SYN, &[])
        };
        peer.wire.send(&syn.frame());
        peer.snd_nxt = peer.snd_nxt.wrapping_add(1);
        // The connection that had these ports before may end twice.
        let answer = peer.expect("SYN,ACK", |s| !s.has(FIN));
        assert!(answer.has(SYN | ACK), "SYN,ACK wanted, not {answer:?}");
        assert_eq!(answer.ack, peer.snd_nxt);
        peer.rcv_nxt = answer.seq.wrapping_add(1);
        peer.snd_wnd = answer.window.into();
        peer.scale = answer.option(3).map_or(0, |value| value[0]);
        assert_eq!(answer.option(3).is_some(), scale.is_some());
        peer.ack();
        peer
    }

    /// A segment with the current numbers.
    pub fn segment(&self, flags: u8, payload: &[u8]) -> Tcp {
        Tcp {
            seq: self.snd_nxt,
            ack: if flags & ACK != 0 { self.rcv_nxt } else { 0 },
            window: self.window,
            payload: payload.to_vec(),
            ..Tcp::new(self.local, self.remote, flags)
        }
    }

    /// Sends a segment and counts it as sent.
    pub fn send(&mut self, flags: u8, payload: &[u8]) {
        let segment = self.segment(flags, payload);
        self.snd_nxt = self.snd_nxt.wrapping_add(segment.len());
        self.wire.send(&segment.frame());
    }

    /// Sends data in segments of at most 1400 octets, without waiting.
    pub fn send_data(&mut self, data: &[u8]) {
        for chunk in data.chunks(1400) {
            self.send(ACK | PSH, chunk);
        }
    }

    pub fn ack(&mut self) {
        self.send(ACK, &[]);
    }

    /// Announces this window, and waits until it is known: what the server writes then must fit it.
    pub fn announce(&mut self, window: u16, server: &mut impl Read) {
        self.window = window;
        self.send_data(b"!");
        server
            .read_exact(&mut [0])
            .expect("what the guest has sent");
    }

    pub fn fin(&mut self) {
        self.send(ACK | FIN, &[]);
    }

    pub fn rst(&mut self) {
        self.send(RST, &[]);
    }

    /// Sends octets `from..from + len` of the test stream as fast as the other side's window allows, each once, and waits
    /// until they are acknowledged. When nothing moves for `patience` and all was, or for [`LONG`] and it was not, it returns
    /// early with how many were acknowledged and how many sent.
    pub fn upload(&mut self, from: usize, len: usize, patience: Duration) -> (usize, usize) {
        const BURST: usize = 32;
        let first = self.snd_nxt;
        let (mut sent, mut acked) = (0, 0);
        while acked < len {
            let mut burst = 0;
            while burst < BURST && sent < len {
                let size = 1400.min(len - sent);
                if sent + size > acked + self.snd_wnd as usize {
                    break;
                }
                self.send(ACK | PSH, &pattern((from + sent) as u64, size));
                sent += size;
                burst += 1;
            }
            let may_go_on = burst == BURST;
            let wait = match (may_go_on, acked == sent) {
                (true, _) => Duration::ZERO,
                (false, true) => patience,
                (false, false) => LONG,
            };
            let Some(segment) = self.recv_within(wait) else {
                if may_go_on {
                    continue;
                }
                break;
            };
            assert!(!segment.has(RST), "reset after {acked} octets");
            // Regression T62: those that only open the window too.
            assert!(segment.has(ACK));
            acked = segment.ack.wrapping_sub(first) as usize;
            assert!(acked <= sent, "acknowledged more than was sent");
            self.snd_wnd = u32::from(segment.window) << self.scale;
        }
        (acked, sent)
    }

    /// What belongs to this connection.
    pub fn mine(&self, frame: &[u8]) -> Option<Tcp> {
        Tcp::of_frame(frame).filter(|s| s.src == self.remote && s.dst == self.local)
    }

    /// The next segment of this connection.
    pub fn recv(&self) -> Tcp {
        self.wire.expect("TCP segment", |frame| self.mine(frame))
    }

    /// The next segment of this connection, if one comes in time.
    pub fn recv_within(&self, patience: Duration) -> Option<Tcp> {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let frame = self.wire.recv(left)?;
            if let Some(segment) = self.mine(&frame) {
                return Some(segment);
            }
        }
    }

    /// The next segment for which `wanted` holds.
    pub fn expect(&self, what: &str, wanted: impl Fn(&Tcp) -> bool) -> Tcp {
        self.wire
            .expect(what, |frame| self.mine(frame).filter(&wanted))
    }

    /// The test fails if within `patience` a segment comes for which `unwanted` holds.
    pub fn expect_quiet(&self, patience: Duration, what: &str, unwanted: impl Fn(&Tcp) -> bool) {
        self.wire
            .never(patience, what, |frame| self.mine(frame).filter(&unwanted));
    }

    /// Waits until everything sent is acknowledged.
    pub fn expect_acked(&self) -> Tcp {
        self.expect("acknowledgement", |s| s.has(ACK) && s.ack == self.snd_nxt)
    }

    /// Waits for a reset this end would believe: the number it expects next, or an acknowledgement of all it sent.
    pub fn expect_reset(&self) -> Tcp {
        let reset = self.expect("reset", |s| s.has(RST));
        assert!(
            reset.seq == self.rcv_nxt || reset.has(ACK) && reset.ack == self.snd_nxt,
            "a reset that nobody would believe: {reset:?}"
        );
        reset
    }

    /// Reads `len` octets, and acknowledges what comes.
    pub fn read(&mut self, len: usize) -> Vec<u8> {
        let fin = self.receive(|got| got.len() >= len);
        assert!(
            self.inbox.len() >= len,
            "FIN ({fin}) after {} octets",
            self.inbox.len()
        );
        self.inbox.drain(..len).collect()
    }

    /// Reads and acknowledges everything up to the FIN.
    pub fn read_to_end(&mut self) -> Vec<u8> {
        assert!(self.receive(|_| false));
        std::mem::take(&mut self.inbox)
    }

    /// Takes what is new in a segment into `data`, and says whether it held the FIN; what leaves a hole is dropped.
    pub fn take(&mut self, segment: &Tcp, data: &mut Vec<u8>) -> bool {
        let old = self.rcv_nxt.wrapping_sub(segment.seq) as usize;
        if segment.len() > 0 && old >= segment.len() as usize && old < 1 << 31 {
            self.repeated += 1;
        }
        let Some(new) = segment.payload.get(old..) else {
            return false;
        };
        data.extend_from_slice(new);
        self.rcv_nxt = self.rcv_nxt.wrapping_add(new.len() as u32);
        let fin = segment.has(FIN);
        self.rcv_nxt = self.rcv_nxt.wrapping_add(u32::from(fin));
        fin
    }

    /// Takes and acknowledges segments until there is enough, or the FIN: then `true`.
    fn receive(&mut self, enough: impl Fn(&[u8]) -> bool) -> bool {
        let (mut data, mut fin) = (std::mem::take(&mut self.inbox), false);
        while !fin && !enough(&data) {
            let segment = self.recv();
            assert!(!segment.has(RST), "reset after {} octets", data.len());
            fin = self.take(&segment, &mut data);
            if segment.len() > 0 {
                self.ack();
            }
        }
        self.inbox = data;
        fin
    }

    /// Closes this end, then waits for the other, which has nothing more to say.
    pub fn close(mut self) {
        self.fin();
        let fin = self.expect("FIN", |s| s.has(FIN));
        assert_eq!((fin.seq, fin.payload.len()), (self.rcv_nxt, 0));
        self.rcv_nxt = self.rcv_nxt.wrapping_add(1);
        self.ack();
    }
}
