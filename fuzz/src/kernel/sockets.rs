//! What the scripted kernel knows of its sockets.

use std::{cell::RefCell, collections::VecDeque};

use libc::{c_int, socklen_t};

/// The first descriptor of ours.
pub(super) const BASE: c_int = 1 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Link,
    Tcp,
    Udp,
    Echo,
    Listener,
}

/// What waits at a socket to be received or accepted.
#[derive(Debug, Clone, Copy)]
pub struct Waiting {
    /// The sender's.
    pub port: u16,
    /// Octets; several datagrams in one if `segment` is less, and not zero.
    pub len: u16,
    pub segment: u16,
    pub ttl: u8,
    pub tos: u8,
    /// Whether it came before the socket was connected.
    pub stray: bool,
}

#[derive(Debug)]
pub struct Socket {
    pub kind: Kind,
    pub(super) v6: bool,
    /// Whether connect(2) was called and, for TCP, whether it is done.
    pub connecting: bool,
    /// TCP: octets read and thrown away, the peek offset behind them, and how many octets there are in all.
    pub(super) read: u64,
    pub(super) peek: Option<u64>,
    pub sent_by_peer: u64,
    pub ended: bool,
    pub error: c_int,
    /// Octets this socket takes before EAGAIN.
    pub room: usize,
    /// Octets it has taken.
    pub taken: u64,
    pub(super) shut: bool,
    /// Datagrams or connections that wait.
    pub waiting: VecDeque<Waiting>,
    /// Whether several datagrams may be received as one (UDP_GRO).
    pub(super) together: bool,
    /// Errors in the error queue: type and code.
    pub errors: VecDeque<(u8, u8)>,
    pub(super) peer: [u8; 28],
}

#[derive(Debug, Default)]
pub struct Kernel {
    pub(super) sockets: Vec<Option<Socket>>,
    /// What decides how calls end, last octet first.
    pub(super) script: Vec<u8>,
    /// Octets from the guest that wait to be read, and those that came to it.
    pub from_guest: Vec<u8>,
    pub to_guest: Vec<u8>,
    /// Octets the link takes before EAGAIN.
    pub link_room: usize,
    pub link_closed: bool,
    /// Whether what goes into TCP sockets is the test stream.
    pub checks_upload: bool,
    pub(super) port: u16,
}

thread_local! {
    static KERNEL: RefCell<Kernel> = RefCell::default();
}

/// Changes or asks the kernel of this thread.
pub fn with<T>(act: impl FnOnce(&mut Kernel) -> T) -> T {
    KERNEL.with(|kernel| act(&mut kernel.borrow_mut()))
}

impl Kernel {
    /// A new kernel whose calls end as `script` says, or well when it is used up.
    pub fn start(script: &[u8]) {
        with(|kernel| {
            *kernel = Self {
                script: script.to_vec(),
                link_room: 1 << 20,
                ..Self::default()
            };
        });
    }

    /// From now on calls end as `script` says, last octet first, or well when it is used up.
    pub fn script(&mut self, script: &[u8]) {
        self.script = script.to_vec();
    }

    /// From now on calls succeed, if they can.
    pub fn behave(&mut self) {
        self.script.clear();
        self.link_room = usize::MAX / 2;
    }

    /// A new descriptor of the guest's link.
    pub fn link(&mut self) -> c_int {
        self.add(Kind::Link, false)
    }

    pub fn socket(&mut self, fd: c_int) -> Option<&mut Socket> {
        let slot = usize::try_from(fd - BASE).ok()?;
        self.sockets.get_mut(slot)?.as_mut()
    }

    /// Descriptors that are open, listeners and link left out.
    pub fn flows(&self) -> Vec<c_int> {
        let numbered = (BASE..).zip(&self.sockets);
        let open = numbered.filter_map(|(fd, socket)| Some((fd, socket.as_ref()?.kind)));
        open.filter(|(_, kind)| !matches!(kind, Kind::Link | Kind::Listener))
            .map(|(fd, _)| fd)
            .collect()
    }

    pub(super) fn add(&mut self, kind: Kind, v6: bool) -> c_int {
        let socket = Socket {
            kind,
            v6,
            connecting: false,
            read: 0,
            peek: None,
            sent_by_peer: 0,
            ended: false,
            error: 0,
            room: 64 * 1024,
            taken: 0,
            shut: false,
            waiting: VecDeque::new(),
            together: false,
            errors: VecDeque::new(),
            peer: [0; 28],
        };
        // As the real one does: the lowest number that is free.
        let slot = self.sockets.iter().position(Option::is_none);
        let slot = slot.unwrap_or_else(|| {
            self.sockets.push(None);
            self.sockets.len() - 1
        });
        self.sockets[slot] = Some(socket);
        BASE + slot as c_int
    }

    /// How the next call ends: one in eight octets of the script makes it fail, with one of `errors`.
    pub(super) fn verdict(&mut self, errors: &[c_int]) -> Result<(), c_int> {
        match self.script.pop() {
            Some(octet @ 0xe0..) if !errors.is_empty() => {
                let errno = errors[usize::from(octet & 0x1f) % errors.len()];
                trace!("a call fails: {}", std::io::Error::from_raw_os_error(errno));
                Err(errno)
            }
            _ => Ok(()),
        }
    }
}

impl Socket {
    /// Between bind(2) and connect(2) a socket hears everybody.
    pub(super) fn hear_strays(&mut self) -> bool {
        self.waiting.extend([0x9001, 0x9003].map(|port| Waiting {
            port,
            len: 20,
            segment: 0,
            ttl: 60,
            tos: 0,
            stray: true,
        }));
        true
    }

    /// Writes the address of the peer, or one that is told apart by `port`.
    pub(super) fn name(&self, port: u16) -> [u8; 28] {
        let mut name = [0; 28];
        let family = if self.v6 {
            libc::AF_INET6
        } else {
            libc::AF_INET
        } as u16;
        name[..2].copy_from_slice(&family.to_ne_bytes());
        name[2..4].copy_from_slice(&port.to_be_bytes());
        if self.v6 && self.kind == Kind::Listener && port & 1 == 0 {
            // An IPv4 peer at a socket for both families.
            name[18..24].copy_from_slice(&[0xff, 0xff, 203, 0, 113, 9]);
        } else if self.v6 {
            name[8..24]
                .copy_from_slice(&[0x20, 1, 0xd, 0xb8, 0, 0x99, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
        } else {
            name[4..8].copy_from_slice(&[203, 0, 113, 9]);
        }
        name
    }

    pub(super) fn name_len(&self) -> socklen_t {
        if self.v6 { 28 } else { 16 }
    }
}

pub(super) fn is_ours(fd: c_int) -> bool {
    fd >= BASE
}

pub(super) fn fail(errno: c_int) -> c_int {
    // SAFETY: the C library gives each thread an errno of its own.
    unsafe { *libc::__errno_location() = errno };
    -1
}

pub(super) fn outcome<T: From<i8>>(result: Result<T, c_int>) -> T {
    result.unwrap_or_else(|errno| {
        fail(errno);
        T::from(-1)
    })
}

/// A call on one of our sockets.
pub(super) fn on<T>(fd: c_int, act: impl FnOnce(&mut Socket) -> T) -> T {
    with(|kernel| match kernel.socket(fd) {
        Some(socket) => act(socket),
        None => die("a call on a descriptor that is closed"),
    })
}

/// A panic must not cross the C library's frames.
pub(super) fn die(why: &str) -> ! {
    eprintln!(
        "finding: {why}\n{}",
        std::backtrace::Backtrace::force_capture()
    );
    std::process::abort();
}

pub(super) fn judge(errors: &[c_int]) -> Result<(), c_int> {
    with(|kernel| kernel.verdict(errors))
}
