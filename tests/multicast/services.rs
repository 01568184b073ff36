//! Services found as programs find them: mDNS and SSDP at their groups and ports, in their own words.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use super::{MDNS4, MDNS6, SSDP4, furnish, heard, member, to};
use crate::lab::{
    LONG,
    servers::TcpServer,
    uninterrupted,
    world::{GATEWAY4, POD4},
};

/// Types of DNS records (RFC 1035, RFC 2782), and the class Internet.
const A: u16 = 1;
const PTR: u16 = 12;
const SRV: u16 = 33;
const IN: u16 = 1;

const SERVICE: &str = "_http._tcp.local";

/// A name as DNS writes it (RFC 1035, section 3.1).
fn name(text: &str) -> Vec<u8> {
    let mut name = Vec::new();
    for label in text.split('.') {
        name.push(label.len() as u8);
        name.extend(label.as_bytes());
    }
    name.push(0);
    name
}

/// A message of mDNS (RFC 6762, section 18): a question, or an answer and what belongs to it.
fn message(flags: u16, questions: u16, answers: u16, more: u16, body: &[Vec<u8>]) -> Vec<u8> {
    let head = [0, flags, questions, answers, 0, more];
    [
        head.map(u16::to_be_bytes).as_flattened(),
        body.concat().as_slice(),
    ]
    .concat()
}

fn question() -> Vec<u8> {
    let tail = [PTR, IN].map(u16::to_be_bytes);
    message(0, 1, 0, 0, &[name(SERVICE), tail.as_flattened().to_vec()])
}

fn record(owner: &str, kind: u16, data: &[u8]) -> Vec<u8> {
    let fields = [kind, IN, 0, 120, data.len() as u16].map(u16::to_be_bytes);
    [name(owner).as_slice(), fields.as_flattened(), data].concat()
}

/// All of a service: its instance, where that is, and the address of that (RFC 6763, section 12.1).
fn answer(host: &str, addr: Ipv4Addr) -> Vec<u8> {
    let instance = format!("{host}.{SERVICE}");
    let machine = format!("{host}.local");
    let place = [
        [0_u16, 0, 80].map(u16::to_be_bytes).as_flattened(),
        &name(&machine),
    ]
    .concat();
    let records = [
        record(SERVICE, PTR, &name(&instance)),
        record(&instance, SRV, &place),
        record(&machine, A, &addr.octets()),
    ];
    message(0x8400, 0, 1, 2, &records)
}

/// Answers every question for the service in its group until told to stop.
fn respond(socket: &UdpSocket, group: SocketAddr, answer: &[u8], stop: &AtomicBool) {
    let mut bytes = [0; 9000];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((len, from)) = uninterrupted(|| socket.recv_from(&mut bytes))
            && bytes[..len] == question()
        {
            assert_eq!(
                from.port(),
                5353,
                "RFC 6762, section 6.7: others get no answer here"
            );
            let _ = socket.send_to(answer, group);
        }
    }
}

/// A service of either side is found by the other, at the real group and port, by what mDNS really says.
#[test]
fn services_are_found_by_mdns_from_both_sides() {
    let Some((world, guest, _translator)) = furnish(&["--no-map-gw"]) else {
        return;
    };
    for group in [IpAddr::from(MDNS4), MDNS6.into()] {
        let inside = member(guest.host(), "eth0", group, 5353);
        let outside = member(&world.outside, "pod0", group, 5353);
        let outward = to(guest.host(), "eth0", group, 5353);
        let inward = to(&world.outside, "pod0", group, 5353);
        for (asker, asks, responder, tells, host, addr) in [
            (&inside, outward, &outside, inward, "printer", GATEWAY4),
            (&outside, inward, &inside, outward, "guest", POD4),
        ] {
            let answer = answer(host, addr);
            let stop = AtomicBool::new(false);
            thread::scope(|scope| {
                scope.spawn(|| respond(responder, tells, &answer, &stop));
                let ask = || drop(asker.send_to(&question(), asks));
                let from = heard(ask, asker, &answer);
                stop.store(true, Ordering::Relaxed);
                assert_eq!(from.port(), 5353);
                if group.is_ipv4() {
                    assert_eq!(from.ip(), addr);
                }
            });
        }
    }
}

const SEARCH: &str = "M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\n\
                      ST: upnp:rootdevice\r\n\r\n";
const FOUND: &str = "HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=1800\r\nEXT:\r\nLOCATION: http://10.233.70.1:49152/d.xml\r\n\
                     SERVER: Linux UPnP/1.1 lab/1\r\nST: upnp:rootdevice\r\nUSN: uuid:1::upnp:rootdevice\r\n\r\n";

/// UPnP Device Architecture 1.1, section 1.3: asked in the group, answered to the asker alone, who then fetches what it was
/// told of.
#[test]
fn a_device_is_found_by_ssdp_and_its_description_fetched() {
    let Some((world, guest, _translator)) = furnish(&["--no-map-gw"]) else {
        return;
    };
    let device = member(&world.outside, "pod0", SSDP4.into(), 1900);
    let _description = TcpServer::start(&world.outside, (GATEWAY4, 49152), |mut stream| {
        let mut request = [0; 1024];
        let len = uninterrupted(|| stream.read(&mut request)).unwrap();
        assert!(request[..len].starts_with(b"GET /d.xml HTTP/1.0\r\n"));
        stream.write_all(b"HTTP/1.0 200 OK\r\n\r\n<root/>").unwrap();
    });
    let inside = guest.host().run(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    let patience = Some(Duration::from_millis(50));
    inside.set_read_timeout(patience).unwrap();
    let ask = || drop(inside.send_to(SEARCH.as_bytes(), (SSDP4, 1900)));
    let from = heard(ask, &device, SEARCH.as_bytes());
    let tell = || drop(device.send_to(FOUND.as_bytes(), from));
    let teller = heard(tell, &inside, FOUND.as_bytes());
    assert_eq!(teller, (GATEWAY4, 1900).into());
    let mut stream = guest
        .host()
        .run(|| TcpStream::connect((GATEWAY4, 49152)).unwrap());
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream.write_all(b"GET /d.xml HTTP/1.0\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.ends_with("<root/>"), "{text}");
}
