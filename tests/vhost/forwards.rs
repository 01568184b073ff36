//! Ports that are forwarded from now on, to a guest with several queue pairs.

use std::net::{SocketAddr, UdpSocket};

use crate::{
    Scene,
    guest::{Udp, both, guest_addr},
    lab::{
        World,
        front_end::{Driver, FrontEnd, LINUX},
        pesto::Pesto,
        servers::udp_socket,
        uninterrupted,
        world::{INTERNET4, INTERNET6, POD4, POD6},
    },
    queues::{Connection, HEADER},
};

/// The guest's end of the port.
const PORT: u16 = 9000;

fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut octets = [0; 100];
    let (len, from) = uninterrupted(|| socket.recv_from(&mut octets)).unwrap();
    (octets[..len].to_vec(), from)
}

fn arrives(guest: &mut FrontEnd, payload: &[u8]) -> Udp {
    guest.expect("datagram", |arrival| {
        Udp::of_frame(&arrival.frame).filter(|udp| udp.payload == payload)
    })
}

/// It is another thread's by then, and clients come in at the first.
#[test]
fn a_port_that_a_flow_has_already_is_forwarded() {
    let Some(world) = World::pod() else { return };
    let args = ["--vhost-user", "--mtu", "1500", "--queues", "2"];
    let (translator, pesto) = Pesto::start(&world.pod, &args);
    let scene = Scene { translator, world };
    let mut guest = scene.guest(Driver::twice(LINUX));
    let mut beside = Connection::new(&scene, &mut guest, 1, (INTERNET4, 7).into(), 40_000);
    let remotes = both(INTERNET4, INTERNET6, 7);
    for (remote, pod) in remotes.into_iter().zip(both(POD4, POD6, PORT)) {
        let server = udp_socket(&scene.world.outside, remote);
        let say = |guest: &mut FrontEnd, to: SocketAddr, payload: &[u8]| {
            let udp = Udp::new(guest_addr(remote, PORT), to, payload);
            guest.transmit_by(1, &HEADER, &udp.frame(), 1);
        };
        say(&mut guest, remote, b"before");
        let (_, seen) = receive(&server);
        for round in 0..3_u8 {
            pesto.forward(&[("-u", "9000")]);
            server.send_to(&[round, 1], seen).unwrap();
            arrives(&mut guest, &[round, 1]);
            say(&mut guest, remote, b"after");
            assert_eq!(receive(&server), (b"after".to_vec(), seen));
            let client = udp_socket(&scene.world.outside, SocketAddr::new(remote.ip(), 0));
            client.send_to(&[round, 2], pod).unwrap();
            let asked = arrives(&mut guest, &[round, 2]);
            say(&mut guest, asked.src, b"answer");
            assert_eq!(receive(&client), (b"answer".to_vec(), pod));
            pesto.forward(&[]);
            say(&mut guest, asked.src, b"more");
            assert_eq!(receive(&client), (b"more".to_vec(), pod));
        }
    }
    beside.send(&mut guest, 1, 1000);
    assert_eq!(beside.arrive(&mut guest, 0), 1);
}
