//! Servers around the translator: each runs in threads of the test and ends with its value.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use socket2::SockRef;

use super::{Host, LONG, uninterrupted, wait_until};

/// A TCP server.
#[derive(Debug)]
pub struct TcpServer {
    addr: SocketAddr,
    listener: TcpListener,
    accepting: Option<JoinHandle<()>>,
}

impl TcpServer {
    /// Serves each connection by `serve` in a thread of its own.
    pub fn start(
        host: &Host,
        addr: impl Into<SocketAddr>,
        serve: impl Fn(TcpStream) + Send + Sync + 'static,
    ) -> Self {
        let listener = tcp_listener(host, addr.into());
        let addr = listener.local_addr().expect("bound");
        let incoming = listener.try_clone().expect("dup");
        let serve = Arc::new(serve);
        let accepting = thread::spawn(move || {
            while let Ok((stream, _)) = incoming.accept() {
                stream.set_read_timeout(Some(LONG)).expect("timeout");
                stream.set_write_timeout(Some(LONG)).expect("timeout");
                let serve = Arc::clone(&serve);
                thread::spawn(move || serve(stream));
            }
        });
        Self {
            addr,
            listener,
            accepting: Some(accepting),
        }
    }

    /// Sends back what it receives, and closes when the client has.
    pub fn echo(host: &Host, addr: impl Into<SocketAddr>) -> Self {
        Self::start(host, addr, |mut stream| {
            let mut bytes = vec![0; 1 << 16];
            while let Ok(n @ 1..) = uninterrupted(|| stream.read(&mut bytes)) {
                if stream.write_all(&bytes[..n]).is_err() {
                    break;
                }
            }
        })
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Drop for TcpServer {
    fn drop(&mut self) {
        // Wakes the thread in accept(2), which then fails.
        let _ = SockRef::from(&self.listener).shutdown(Shutdown::Both);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

/// A listening socket on `host`.
pub fn tcp_listener(host: &Host, addr: impl Into<SocketAddr>) -> TcpListener {
    let addr = addr.into();
    once_free(|| host.run(|| TcpListener::bind(addr)))
}

/// Tries until the address is free: programs that other tests are about to start hold on, until they are, to what this process
/// has closed.
pub fn once_free<T>(mut bind: impl FnMut() -> io::Result<T>) -> T {
    let mut bound = None;
    wait_until(LONG, || {
        let result = bind();
        let taken = result.as_ref().is_err_and(|error| {
            matches!(
                error.kind(),
                io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable
            )
        });
        bound = Some(result);
        !taken
    });
    bound.expect("at least once").expect("bind")
}

/// The next connection, which must come soon.
pub fn accept(listener: &TcpListener) -> TcpStream {
    SockRef::from(listener)
        .set_read_timeout(Some(LONG))
        .expect("timeout");
    let (stream, _) = listener.accept().expect("a connection");
    stream.set_read_timeout(Some(LONG)).expect("timeout");
    stream.set_write_timeout(Some(LONG)).expect("timeout");
    stream
}

/// Makes the close of `stream` a reset.
pub fn reset(stream: TcpStream) {
    SockRef::from(&stream.as_fd())
        .set_linger(Some(Duration::ZERO))
        .expect("linger");
}

/// A UDP socket on `host` whose reads end.
pub fn udp_socket(host: &Host, addr: impl Into<SocketAddr>) -> UdpSocket {
    let addr = addr.into();
    let socket = once_free(|| host.run(|| UdpSocket::bind(addr)));
    socket.set_read_timeout(Some(LONG)).expect("timeout");
    socket
}

/// A UDP server that sends each datagram back, and remembers from where it came.
#[derive(Debug)]
pub struct UdpEcho {
    addr: SocketAddr,
    clients: Arc<Mutex<Vec<SocketAddr>>>,
    stop: Arc<AtomicBool>,
    echoing: Option<JoinHandle<()>>,
}

impl UdpEcho {
    pub fn start(host: &Host, addr: impl Into<SocketAddr>) -> Self {
        let socket = udp_socket(host, addr);
        let mut echo = Self {
            addr: socket.local_addr().expect("bound"),
            clients: Arc::default(),
            stop: Arc::default(),
            echoing: None,
        };
        let (clients, stop) = (Arc::clone(&echo.clients), Arc::clone(&echo.stop));
        let pause = Some(Duration::from_millis(50));
        socket.set_read_timeout(pause).expect("timeout");
        let echoing = thread::spawn(move || {
            let mut bytes = vec![0; 1 << 16];
            while !stop.load(Ordering::Relaxed) {
                let Ok((n, from)) = socket.recv_from(&mut bytes) else {
                    continue;
                };
                clients.lock().expect("clients").push(from);
                let _ = socket.send_to(&bytes[..n], from);
            }
        });
        echo.echoing = Some(echoing);
        echo
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where each datagram so far came from.
    pub fn clients(&self) -> Vec<SocketAddr> {
        self.clients.lock().expect("clients").clone()
    }
}

impl Drop for UdpEcho {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(echoing) = self.echoing.take() {
            let _ = echoing.join();
        }
    }
}
