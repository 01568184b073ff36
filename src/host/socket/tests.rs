use super::*;
use std::{
    collections::VecDeque,
    net::{TcpListener, UdpSocket},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    thread,
    time::Instant,
};

fn peer(addr: SocketAddr) -> Peer {
    Peer {
        endpoint: addr.into(),
        scope: 0,
    }
}

#[test]
fn a_listening_port_connects_and_a_closed_one_refuses() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let open = listener.local_addr().unwrap();
    let (socket, connected) = tcp(peer(open), &Outbound::default(), Manner::default()).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    assert!(connected || outcome(&socket).is_ok());
    drop((listener, accepted));
    let refused = tcp(peer(open), &Outbound::default(), Manner::default());
    let error = refused
        .and_then(|(socket, _)| outcome(&socket))
        .unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
}

#[test]
fn what_flows_are_to_leave_by_and_is_gone_is_a_network_out_of_reach() {
    let no_address = Outbound {
        addr4: Some([192, 0, 2, 77].into()),
        ..Outbound::default()
    };
    let no_interface = Outbound {
        interface4: Some("none-such".into()),
        ..Outbound::default()
    };
    let peer = peer(([198, 51, 100, 1], 9).into());
    for outbound in [no_address, no_interface] {
        let refused = [
            tcp(peer, &outbound, Manner::default()).unwrap_err(),
            udp(peer, &outbound, 0, false).unwrap_err(),
        ];
        let errors = refused.map(|error| error.raw_os_error());
        assert_eq!(errors, [Some(libc::ENETUNREACH); 2]);
    }
}

#[test]
fn flows_from_one_port_share_it() {
    let (a, b) = (
        UdpSocket::bind("127.0.0.1:0").unwrap(),
        UdpSocket::bind("127.0.0.1:0").unwrap(),
    );
    let port = UdpSocket::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    for (server, beside) in [(&a, false), (&b, true)] {
        let peer = peer(server.local_addr().unwrap());
        let socket = udp(peer, &Outbound::default(), port, beside).unwrap();
        assert_eq!(UdpSocket::from(socket).local_addr().unwrap().port(), port);
    }
}

/// Whoever looks for a port's socket in the kernel's tables finds it, though others of that port come and go: no
/// datagram is lost, whichever socket has it.
#[test]
fn a_port_is_there_all_the_time_while_sockets_come_beside_it() {
    const ROUNDS: usize = 1000;
    const BURST: usize = 32;
    let listener = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)).unwrap();
    listener.set_reuse_address(true).unwrap();
    let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    listener.bind(&SockAddr::from(any)).unwrap();
    let listener = UdpSocket::from(listener);
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let silent = peer(silent.local_addr().unwrap());
    let strays = AtomicUsize::new(0);
    let read = |socket: &UdpSocket| std::iter::from_fn(|| socket.recv(&mut [0; 8]).ok()).count();
    let missing = thread::scope(|scope| {
        let sending = scope.spawn(|| {
            let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
            let mut heard = 0;
            (1..=ROUNDS).find(|round| {
                for _ in 0..BURST {
                    sender.send_to(b"here", ("127.0.0.1", port)).unwrap();
                }
                let start = Instant::now();
                loop {
                    heard += read(&listener);
                    let missing = round * BURST - heard - strays.load(Relaxed);
                    if missing == 0 {
                        return false;
                    }
                    if start.elapsed() > Duration::from_secs(2) {
                        return true;
                    }
                }
            })
        });
        let mut beside = VecDeque::new();
        while !sending.is_finished() {
            let socket = udp(silent, &Outbound::default(), port, true).unwrap();
            beside.push_back(UdpSocket::from(socket));
            for socket in &beside {
                strays.fetch_add(read(socket), Relaxed);
            }
            if beside.len() > 64 {
                beside.pop_front();
            }
        }
        sending.join().unwrap()
    });
    assert_eq!(missing, None, "round in which a datagram was lost");
}
