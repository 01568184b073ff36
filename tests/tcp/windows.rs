//! Windows that were shut, as the host would take no more, open when it does: by an event, as nobody asks.
//!
//! The guests here send whole segments or nothing, and nothing at all while they wait: no probe finds out for them.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use crate::{
    guest::{
        Peer, Scene, Tcp, assert_pattern, both,
        frame::{ACK, PSH, RST},
        guest_addr, pattern,
    },
    lab::{
        LONG, QUIET,
        servers::{accept, tcp_listener},
        world::{INTERNET4, INTERNET6},
    },
};

/// A segment as large as the link's default MTU lets it be.
const LARGE: usize = 65_480;

/// tcp_wmem of the translator's host: least, first and most octets.
const SMALL: &str = "4096 16384 65536";
const BUFFERS: [&str; 4] = [
    SMALL,
    "4096 16384 262144",
    "4096 131072 131072",
    "4096 16384 4194304",
];

/// A connection whose guest sends segments of one size, and the server it reaches.
struct Stream<'w> {
    peer: Peer<'w>,
    server: TcpStream,
    segment: usize,
    sent: usize,
    acked: usize,
    read: usize,
}

impl<'w> Stream<'w> {
    fn open(scene: &'w Scene, listener: &TcpListener, port: u16, segment: usize) -> Self {
        let remote = listener.local_addr().unwrap();
        let peer = Peer::connect_with(&scene.wire, guest_addr(remote, port), remote, Some(6));
        Self {
            peer,
            server: accept(listener),
            segment,
            sent: 0,
            acked: 0,
            read: 0,
        }
    }

    /// Octets that the guest may send.
    fn window(&self) -> usize {
        (self.acked + self.peer.snd_wnd as usize).saturating_sub(self.sent)
    }

    fn is_open(&self) -> bool {
        self.window() >= self.segment
    }

    fn send(&mut self, len: usize) {
        self.peer.send(ACK | PSH, &pattern(self.sent as u64, len));
        self.sent += len;
    }

    fn hear(&mut self, segment: &Tcp) {
        assert!(segment.has(ACK) && !segment.has(RST), "{segment:?}");
        self.acked = self.sent - self.peer.snd_nxt.wrapping_sub(segment.ack) as usize;
        self.peer.snd_wnd = u32::from(segment.window) << self.peer.scale;
    }

    /// The server reads.
    fn read(&mut self, len: usize) {
        let mut got = vec![0; len];
        self.server.read_exact(&mut got).unwrap();
        assert_pattern(self.read as u64, &got);
        self.read += len;
    }

    fn read_all(&mut self) {
        self.read(self.sent - self.read);
    }
}

/// A world whose servers hold little unread, and listeners of both families.
fn furnish() -> Option<(Scene, [TcpListener; 2])> {
    let scene = Scene::new(&[])?;
    let outside = &scene.world.outside;
    outside.sysctl("ipv4/tcp_rmem", "4096 65536 131072");
    let remotes: [SocketAddr; 2] = both(INTERNET4, INTERNET6, 9);
    let listeners = remotes.map(|remote| tcp_listener(outside, remote));
    Some((scene, listeners))
}

/// Gives the next segment to whom it belongs, if one comes in time.
fn hear(scene: &Scene, streams: &mut [Stream<'_>], patience: Duration) -> bool {
    let Some(frame) = scene.wire.recv(patience) else {
        return false;
    };
    for stream in streams {
        if let Some(segment) = stream.peer.mine(&frame) {
            stream.hear(&segment);
        }
    }
    true
}

/// Each guest sends this much first, if its window allows, and then whole segments for as long as it does.
fn fill(scene: &Scene, streams: &mut [Stream<'_>], lead: usize) {
    for stream in &mut *streams {
        if lead > 0 && lead <= stream.window() {
            stream.send(lead);
        }
    }
    loop {
        for stream in &mut *streams {
            while stream.is_open() {
                stream.send(stream.segment);
            }
        }
        let all_taken = streams.iter().all(|stream| stream.acked == stream.sent);
        if !hear(scene, streams, if all_taken { QUIET } else { LONG }) {
            break;
        }
    }
    for stream in streams {
        assert_eq!(stream.acked, stream.sent, "promised, and not taken");
    }
}

/// No guest does anything until it may send a segment.
fn expect_open(scene: &Scene, streams: &mut [Stream<'_>], what: &str) {
    while let Some(at) = streams.iter().position(|stream| !stream.is_open()) {
        let (window, segment) = (streams[at].window(), streams[at].segment);
        assert!(
            hear(scene, streams, LONG),
            "{what}: the guest may send {window} octets, and waits to send {segment}"
        );
    }
}

/// Whatever of the window is left when it stops, and however large the buffers are.
#[test]
fn a_guest_may_send_a_whole_segment_as_soon_as_all_before_are_read() {
    const LEADS: [usize; 9] = [0, 1, 9_000, 20_000, 25_000, 33_000, 40_000, 60_000, 65_000];
    const SEGMENTS: [usize; 3] = [LARGE, 30_000, 1400];
    let Some((scene, listeners)) = furnish() else {
        return;
    };
    let mut ports = 40_000..;
    for buffers in BUFFERS {
        scene.world.pod.sysctl("ipv4/tcp_wmem", buffers);
        let each = listeners
            .iter()
            .flat_map(|listener| SEGMENTS.map(|segment| (listener, segment)));
        let mut streams: Vec<_> = each
            .zip(&mut ports)
            .map(|((listener, segment), port)| Stream::open(&scene, listener, port, segment))
            .collect();
        for lead in LEADS {
            fill(&scene, &mut streams, lead);
            streams.iter_mut().for_each(Stream::read_all);
            let what = format!("buffers of {buffers}, {lead} octets first");
            expect_open(&scene, &mut streams, &what);
        }
        streams.iter_mut().for_each(|stream| stream.peer.rst());
    }
}

/// `net.ipv4.tcp_notsent_lowat` has sockets take no more than that though they have room: windows tell of room.
#[test]
fn a_host_that_wants_little_unsent_takes_what_was_promised() {
    let Some((scene, listeners)) = furnish() else {
        return;
    };
    scene.world.pod.sysctl("ipv4/tcp_notsent_lowat", "16384");
    let mut streams: Vec<_> = listeners
        .iter()
        .zip(40_000..)
        .map(|(listener, port)| Stream::open(&scene, listener, port, 1400))
        .collect();
    for lead in [0, 1000] {
        fill(&scene, &mut streams, lead);
        streams.iter_mut().for_each(Stream::read_all);
        expect_open(&scene, &mut streams, "little unsent");
    }
    streams.iter_mut().for_each(|stream| stream.peer.rst());
}

/// Silly windows (RFC 9293, section 3.8.6.2): what is announced is worth a segment, and comes before all is read.
#[test]
fn a_window_opens_well_while_little_after_little_is_read() {
    const LITTLE: usize = 2000;
    let Some((scene, listeners)) = furnish() else {
        return;
    };
    for (listener, port) in listeners.iter().zip(40_000..) {
        let mut streams = [Stream::open(&scene, listener, port, LARGE)];
        for _ in 0..3 {
            fill(&scene, &mut streams, 0);
            let shut = streams[0].window();
            while streams[0].sent - streams[0].read >= LITTLE && !streams[0].is_open() {
                streams[0].read(LITTLE);
                // What is on its way is waited for where nothing is left to read.
                let _ = hear(&scene, &mut streams, Duration::from_millis(1));
                let last = streams[0].sent - streams[0].read < 2 * LITTLE;
                while last && !streams[0].is_open() && hear(&scene, &mut streams, LONG) {}
                let window = streams[0].window();
                assert!(
                    window == shut || streams[0].is_open(),
                    "from {shut} to {window} octets"
                );
            }
            assert!(streams[0].is_open(), "not before all was read");
            streams[0].read_all();
        }
        streams[0].peer.rst();
    }
}

/// Where many wait, each of which is owed part of a segment by what the translator keeps for them.
#[test]
fn windows_of_many_guests_open_together() {
    let Some((scene, listeners)) = furnish() else {
        return;
    };
    scene.world.pod.sysctl("ipv4/tcp_wmem", SMALL);
    let mut streams: Vec<_> = (10_000..10_100)
        .flat_map(|port| listeners.iter().map(move |listener| (listener, port)))
        .map(|(listener, port)| Stream::open(&scene, listener, port, LARGE))
        .collect();
    for lead in [0, 40_000] {
        fill(&scene, &mut streams, lead);
        streams.iter_mut().for_each(Stream::read_all);
        expect_open(&scene, &mut streams, "one of many");
    }
    streams.iter_mut().for_each(|stream| stream.peer.rst());
}

/// Octets wait in the same socket for a guest that takes none.
#[test]
fn a_window_opens_though_the_guest_has_shut_its_own() {
    let Some((scene, listeners)) = furnish() else {
        return;
    };
    for (listener, port) in listeners.iter().zip(40_000..) {
        let mut streams = [Stream::open(&scene, listener, port, LARGE)];
        streams[0].peer.window = 0;
        streams[0].peer.ack();
        streams[0].server.write_all(&pattern(0, 50_000)).unwrap();
        // The first octet of what waits may come as a probe, and is not taken.
        fill(&scene, &mut streams, 9_000);
        streams[0].read_all();
        expect_open(&scene, &mut streams, "both windows shut");
        streams[0].peer.rst();
    }
}
