use super::super::super::{fixture, request::Ready};
use super::*;
use crate::wire::tcp::Flags;
use socket2::SockRef;
use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

const NOW: Now = Now(1_000_000);

/// What the guest may send.
const WINDOW: usize = 30_000;

/// A segment of the guest's comes, alone in its burst.
fn take(relay: &mut Relay, outbox: &mut Outbox, from: u32, octets: usize) {
    take_with_window(relay, outbox, from, octets, 65_535);
}

/// The same, with a window of the guest's.
fn take_with_window(relay: &mut Relay, outbox: &mut Outbox, from: u32, octets: usize, window: u16) {
    let mut inbox = Inbox::holding();
    hear(relay, &mut inbox, outbox, from, octets, window);
    end(relay, &inbox, outbox);
}

/// The segment is heard, and its burst not over.
fn hear(
    relay: &mut Relay,
    inbox: &mut Inbox,
    outbox: &mut Outbox,
    from: u32,
    octets: usize,
    window: u16,
) {
    inbox.hold(&vec![7; 54 + octets]);
    let frame = inbox.frame(0).unwrap().whole;
    let flags = Flags::ACK | Flags::PSH;
    let mut segment = fixture::segment(fixture::IRS + 1 + from, fixture::ISS + 1, flags);
    (segment.payload, segment.window) = (54..54 + octets, window);
    let _ = relay.tcp_segment(&fixture::ip(true), &segment, frame, inbox, outbox, NOW);
}

fn end(relay: &mut Relay, inbox: &Inbox, outbox: &mut Outbox) {
    relay.end_touched(inbox, outbox, NOW);
    relay.resume(outbox, NOW);
}

/// Fills a connection whose peer does not read.
fn fill(socket: &impl AsFd) {
    let socket = SockRef::from(socket);
    socket.set_send_buffer_size(1).unwrap();
    while socket.send(&[0; 4096]).is_ok() {}
}

/// Regression: the guest would ask ever more seldom, and nobody would tell it.
#[test]
fn a_promise_that_cannot_be_kept_is_taken_back_and_given_again() {
    let (mut outbox, mut guest) = fixture::link();
    let mut relay = fixture::relay(16);
    let (id, mut peer) = fixture::connection(&mut relay, NOW);
    relay.acknowledge(id, &mut outbox, NOW);
    let Some(Flow::Tcp(flow)) = relay.flows.get_mut(id) else {
        panic!("no connection");
    };
    fill(&flow.socket);
    flow.space = None;
    take(&mut relay, &mut outbox, 0, WINDOW);
    assert_eq!(relay.drops().of(Why::PromiseBroken), 1);
    take(&mut relay, &mut outbox, 0, WINDOW);
    if let Some(Flow::Tcp(flow)) = relay.flows.get_mut(id) {
        let socket = SockRef::from(&flow.socket);
        socket.set_send_buffer_size(1 << 17).unwrap();
    }
    empty(&mut peer);
    let ready = Ready {
        readable: false,
        writable: true,
        ended: false,
        error: false,
        urgent: false,
    };
    relay.from_host(id, ready, &mut outbox, NOW);
    guest.read_all(&mut outbox);
    let told: Vec<_> = guest
        .frames(outbox)
        .iter()
        .map(|frame| read(frame))
        .collect();
    assert!(
        matches!(told[..], [(0, 1..), (4096, 0), (4096, 0), (4096, 1..)]),
        "{told:?}"
    );
}

/// It would write into nothing for as long as it likes, and each octet be acknowledged.
#[test]
fn a_guest_that_does_not_read_hears_that_what_it_sends_is_lost() {
    let (mut outbox, guest) = fixture::link();
    let mut relay = fixture::relay(16);
    let (id, mut peer) = fixture::connection(&mut relay, NOW);
    relay.acknowledge(id, &mut outbox, NOW);
    take_with_window(&mut relay, &mut outbox, 0, 0, 0);
    peer.write_all(&[7; 10]).unwrap();
    SockRef::from(&peer)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(peer);
    let ready = Ready {
        readable: true,
        writable: true,
        ended: true,
        error: true,
        urgent: false,
    };
    relay.from_host(id, ready, &mut outbox, NOW);
    assert!(relay.flows.get(id).is_some());
    take_with_window(&mut relay, &mut outbox, 0, 1000, 0);
    assert!(relay.flows.get(id).is_none());
    let frames = guest.frames(outbox);
    let flags = frames.last().unwrap()[47];
    assert_eq!(flags & 0x04, 0x04, "{flags:#x}");
}

/// What the guest throws away then, nobody has.
#[test]
fn nothing_is_acknowledged_with_what_comes_again_before_it_is_handed_on() {
    let (mut outbox, mut guest) = fixture::link();
    let mut relay = fixture::relay(16);
    let (id, mut peer) = fixture::connection(&mut relay, NOW);
    relay.acknowledge(id, &mut outbox, NOW);
    peer.write_all(&[7; 1000]).unwrap();
    let ready = Ready {
        readable: true,
        writable: true,
        ended: false,
        error: false,
        urgent: false,
    };
    relay.from_host(id, ready, &mut outbox, NOW);
    let Some(Flow::Tcp(flow)) = relay.flows.get_mut(id) else {
        panic!("no connection");
    };
    fill(&flow.socket);
    let mut inbox = Inbox::holding();
    hear(&mut relay, &mut inbox, &mut outbox, 0, WINDOW, 65_535);
    relay.guest_error(true, (3, 4), &too_large(600));
    end(&mut relay, &inbox, &mut outbox);
    assert_eq!(relay.drops().of(Why::PromiseBroken), 1);
    guest.read_all(&mut outbox);
    let told: Vec<_> = guest
        .frames(outbox)
        .iter()
        .map(|frame| read(frame).0)
        .collect();
    assert!(told.len() > 3 && told.is_sorted(), "{told:?}");
}

/// An error's start: the first segment to the guest does not fit a link of `mtu` octets.
fn too_large(mtu: u16) -> Vec<u8> {
    let mut packet = vec![0; 20 + 8];
    (packet[0], packet[9]) = (0x45, 6);
    packet[12..16].copy_from_slice(&fixture::REMOTE.octets());
    packet[16..20].copy_from_slice(&fixture::GUEST.octets());
    packet[20..24].copy_from_slice(&[0, 53, 0, 80]);
    packet[24..].copy_from_slice(&(fixture::ISS + 1).0.to_be_bytes());
    [&[0, 0, 0, 0, 0, 0], &mtu.to_be_bytes()[..], &packet].concat()
}

/// The peer reads all there is.
fn empty(peer: &mut TcpStream) {
    peer.set_nonblocking(true).unwrap();
    while peer.read(&mut [0; 65_536]).is_ok_and(|octets| octets > 0) {}
}

/// Octets acknowledged, and the window.
fn read(frame: &[u8]) -> (u32, u16) {
    let number = u32::from_be_bytes(frame[42..46].try_into().unwrap());
    let window = u16::from_be_bytes([frame[48], frame[49]]);
    (number.wrapping_sub(fixture::IRS.0 + 1), window)
}
