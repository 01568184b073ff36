use super::*;
use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
};

fn outbox() -> (Outbox, UnixStream) {
    let (guest, ours) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let mut outbox = Outbox::new();
    outbox.attach(Some(ours.into()));
    (outbox, guest)
}

fn read_frame(guest: &mut UnixStream) -> Vec<u8> {
    let mut prefix = [0; PREFIX];
    guest.read_exact(&mut prefix).unwrap();
    let mut frame = vec![0; u32::from_be_bytes(prefix) as usize];
    guest.read_exact(&mut frame).unwrap();
    frame
}

fn source(octets: &[u8]) -> UnixStream {
    let (mut writer, reader) = UnixStream::pair().unwrap();
    writer.write_all(octets).unwrap();
    reader
}

/// Fills a room from a socket and commits it as frames with a header of their offset.
fn send(outbox: &mut Outbox, octets: &[u8], cut: usize) {
    let room = outbox.reserve(octets.len(), cut).unwrap();
    let mut iovecs = Iovecs::new();
    let mut scatter = iovecs.scatter();
    assert!(outbox.scatter(&room, &mut scatter));
    let len = msg::receive(source(octets).as_fd(), &mut scatter).unwrap();
    outbox.commit(room, len, cut, |part, headers| {
        headers[..54].fill(7);
        headers[..4].copy_from_slice(&(part.at as u32).to_be_bytes());
        54
    });
}

#[test]
fn one_read_becomes_frames_with_headers_of_their_own() {
    let (mut outbox, mut guest) = outbox();
    let octets: Vec<u8> = (0..2500_u32).map(|i| i as u8).collect();
    send(&mut outbox, &octets, 1000);
    assert_eq!(outbox.flush(), Flushed::Done);
    for (at, len) in [(0, 1000), (1000, 1000), (2000, 500)] {
        let frame = read_frame(&mut guest);
        assert_eq!(frame[..4], (at as u32).to_be_bytes());
        assert_eq!(frame[54..], octets[at..at + len]);
    }
}

#[test]
fn short_frames_are_padded_to_sixty_octets() {
    let (mut outbox, mut guest) = outbox();
    send(&mut outbox, b"x", 1000);
    outbox
        .bare(|headers| {
            headers[..54].fill(9);
            54
        })
        .unwrap();
    outbox.copy(&[5; 70]).unwrap();
    assert_eq!(outbox.flush(), Flushed::Done);
    let frame = read_frame(&mut guest);
    assert_eq!(
        (frame.len(), frame[54], &frame[55..]),
        (60, b'x', &[0; 5][..])
    );
    assert_eq!(read_frame(&mut guest)[53..], [9, 0, 0, 0, 0, 0, 0]);
    assert_eq!(read_frame(&mut guest), [5; 70]);
}

#[test]
fn a_slow_reader_gets_every_frame_whole() {
    let (mut outbox, mut guest) = outbox();
    let octets: Vec<u8> = (0..100_000_u32).map(|i| (i / 7) as u8).collect();
    let mut rounds = 0;
    loop {
        send(&mut outbox, &octets, 60_000);
        rounds += 1;
        if outbox.flush() == Flushed::Blocked {
            break;
        }
    }
    // It is not tried again for nothing.
    assert_eq!(outbox.flush(), Flushed::Blocked);
    for frame in 0..2 * rounds {
        let want = if frame % 2 == 0 {
            &octets[..60_000]
        } else {
            &octets[60_000..]
        };
        if frame + 2 >= 2 * rounds {
            outbox.stirred();
            assert_eq!(outbox.flush(), Flushed::Done);
        }
        assert_eq!(&read_frame(&mut guest)[54..], want);
    }
}

#[test]
fn flows_find_no_room_before_services_do() {
    let (mut outbox, _guest) = outbox();
    while let Some(room) = outbox.reserve(1, 1) {
        outbox.commit(room, 1, 1, |_, _| 54);
    }
    assert_eq!(outbox.copy(&[0; 1500]), Ok(()));
    while outbox.bare(|_| 54).is_ok() {}
    assert_eq!(outbox.copy(&[0; 1500]), Err(Why::LinkFull));
    outbox.attach(None);
    assert_eq!(outbox.copy(&[0; 60]), Err(Why::NoGuest));
    assert!(outbox.reserve(1, 1).is_none());
}
