//! What programs on a host do with the network: ask, download, ping, be refused. Each attempt ends.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};

use super::{Host, LONG, servers::TcpServer, uninterrupted, wait_until};

/// How long one attempt to connect or to be answered may take.
const ATTEMPT: Duration = Duration::from_secs(5);

/// Octets of a download that more than fills every buffer on its way.
pub const DOWNLOAD: usize = 8 << 20;

/// A server that greets with `name` and the client's address as it sees it.
pub fn greeter(host: &Host, addr: impl Into<SocketAddr>, name: &'static str) -> TcpServer {
    TcpServer::start(host, addr, move |mut stream| {
        if let Ok(peer) = stream.peer_addr() {
            let _ = write!(stream, "{name} greets {}", peer.ip().to_canonical());
        }
    })
}

/// A server that sends [`DOWNLOAD`] octets of the stream that [`download`] expects.
pub fn file_server(host: &Host, addr: impl Into<SocketAddr>) -> TcpServer {
    TcpServer::start(host, addr, |mut stream| {
        let _ = stream.write_all(&file());
    })
}

/// Connects on `host` to `remote` and reads what the server there has to say.
pub fn ask(host: &Host, remote: impl Into<SocketAddr>) -> io::Result<String> {
    let mut stream = connect(host, remote)?;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    Ok(said)
}

/// Asks `remote` until it says `greeting`, which must happen soon.
pub fn expect_greeting(host: &Host, remote: impl Into<SocketAddr>, greeting: &str) {
    let remote = remote.into();
    let mut last = Ok(String::new());
    let greeted = wait_until(LONG, || {
        last = ask(host, remote);
        last.as_ref().is_ok_and(|said| said == greeting)
    });
    assert!(greeted, "{remote} never said {greeting:?}: {last:?}");
}

/// Fetches what [`file_server`] sends; the test fails if it is not that.
pub fn download(host: &Host, remote: impl Into<SocketAddr>) {
    let mut stream = connect(host, remote).expect("connect");
    let mut got = Vec::new();
    stream.read_to_end(&mut got).expect("download");
    assert_eq!(got.len(), DOWNLOAD);
    assert!(got == file(), "not what was sent");
}

/// The test fails unless `remote` refuses a connection from `host`.
pub fn expect_refusal(host: &Host, remote: impl Into<SocketAddr>) {
    let remote = remote.into();
    let answer = connect(host, remote).map(drop).map_err(|e| e.kind());
    assert_eq!(answer, Err(io::ErrorKind::ConnectionRefused), "{remote}");
}

/// Sends a datagram to `remote`, again until it is answered, and returns the answer.
pub fn ask_udp(host: &Host, remote: impl Into<SocketAddr>, text: &str) -> String {
    let remote = remote.into();
    let any: SocketAddr = if remote.is_ipv4() {
        ([0; 4], 0).into()
    } else {
        ([0_u16; 8], 0).into()
    };
    let socket = host.run(|| UdpSocket::bind(any)).expect("bind");
    socket.connect(remote).expect("connect");
    let pause = Some(Duration::from_millis(500));
    socket.set_read_timeout(pause).expect("timeout");
    let mut answer = vec![0; 1 << 16];
    let mut len = None;
    wait_until(LONG, || {
        let _ = socket.send(text.as_bytes());
        len = uninterrupted(|| socket.recv(&mut answer)).ok();
        len.is_some()
    });
    let len = len.unwrap_or_else(|| panic!("{remote} did not answer"));
    String::from_utf8_lossy(&answer[..len]).into_owned()
}

/// The test fails unless `remote` answers an echo request from `host`, which may use ping sockets.
pub fn ping(host: &Host, remote: impl Into<IpAddr>) {
    let remote = remote.into();
    let (domain, protocol, request) = match remote {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 8),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 128),
    };
    let mut socket = host
        .run(|| Socket::new(domain, Type::DGRAM, Some(protocol)))
        .expect("ping socket");
    let pause = Some(Duration::from_millis(500));
    socket.set_read_timeout(pause).expect("timeout");
    let mut sequence = 0;
    let answered = wait_until(LONG, || {
        sequence += 1;
        let message = [request, 0, 0, 0, 0, 0, 0, sequence, b'?'];
        let mut reply = [0; 64];
        socket
            .connect(&SocketAddr::from((remote, 0)).into())
            .is_ok()
            && socket.send(&message).is_ok()
            && uninterrupted(|| socket.read(&mut reply)).is_ok_and(|len| len == message.len())
            && matches!(reply[0], 0 | 129)
    });
    assert!(answered, "{remote} answers no ping");
}

fn connect(host: &Host, remote: impl Into<SocketAddr>) -> io::Result<TcpStream> {
    let remote = remote.into();
    let stream = host.run(|| TcpStream::connect_timeout(&remote, ATTEMPT))?;
    stream.set_read_timeout(Some(LONG))?;
    stream.set_write_timeout(Some(LONG))?;
    Ok(stream)
}

/// No stretch of it looks like another at the wrong place.
fn file() -> Vec<u8> {
    let words = (0..DOWNLOAD as u64 / 8).map(|i| (i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    words.flat_map(u64::to_le_bytes).collect()
}
