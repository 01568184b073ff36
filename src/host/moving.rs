//! Connections that leave this kernel for another, or come from one.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use nix::sys::socket::{MsgFlags, recv, send};
use socket2::{Domain, Protocol, SockAddr, SockFilter, SockRef, Socket, TcpKeepalive, Type};

use super::socket::{self, canonical};
use crate::{
    proto::state::{Carried, HostSide, KEEPALIVE_MAX, QUEUE_MAX, SocketOptions},
    sys::{
        repair::{self, Agreed, Info, Queue},
        sockopt,
    },
};

/// States of a connection (linux/tcp_states.h).
const FIN_WAIT1: u8 = 4;
const FIN_WAIT2: u8 = 5;
const TIME_WAIT: u8 = 6;
const CLOSE: u8 = 7;
const CLOSE_WAIT: u8 = 8;
const LAST_ACK: u8 = 9;
const CLOSING: u8 = 11;

/// What TCP_MAXSEG takes at most (MAX_TCP_WINDOW in net/tcp.h).
const MAXSEG_MAX: u32 = 32_767;

/// Keeps everything from a socket that comes for it, as if it were lost on the way: neither is it acknowledged nor does it
/// meet a reset.
///
/// # Errors
/// Those of setsockopt(2).
pub fn silence(socket: &impl AsFd) -> io::Result<()> {
    // BPF_RET of no octet. Some kernels want privileges for a filter.
    let _ = SockRef::from(socket).attach_filter(&[SockFilter::new(0x06, 0, 0, 0)]);
    // The rest of the world sends with 64, 128, or has come through a router at least.
    sockopt::set_least_ttl(socket.as_fd(), u8::MAX)
}

/// Undoes [`silence`].
pub fn listen(socket: &impl AsFd) {
    let _ = SockRef::from(socket).detach_filter();
    let _ = sockopt::set_least_ttl(socket.as_fd(), 0);
}

/// What the kernel knows of a silent connection in repair mode. `held` are octets of the guest's that it would not take.
///
/// # Errors
/// Those of getsockopt(2) and recv(2); `InvalidData` if a queue is too long.
pub fn take(socket: &impl AsFd, held: &[u8]) -> io::Result<HostSide> {
    let fd = socket.as_fd();
    // A peek starts at the front now.
    let _ = sockopt::set_peek_offset(fd, -1);
    let info = repair::info(fd)?;
    if info.state == CLOSE {
        return over(socket, held);
    }
    let address = |address: io::Result<SockAddr>| {
        let address = address?.as_socket().ok_or(io::ErrorKind::InvalidData)?;
        Ok::<_, io::Error>(canonical(address))
    };
    let (local, peer) = (
        address(SockRef::from(socket).local_addr())?,
        address(SockRef::from(socket).peer_addr())?,
    );
    let window = repair::window(fd)?;
    // Repair mode does not stop what is paced: with the peer's window shut nothing leaves that was not sent when queues are read.
    // Should the guest stay, the peer says its window when it is asked as repair mode ends.
    let [wl1, _, most, ours, edge] = window;
    let _ = repair::set_window(fd, [wl1, 0, most, ours, edge]);
    let taken = queues(fd, info);
    repair::choose(fd, Queue::None)?;
    let (receive_seq, received, send_seq, unacked, mut unsent) = taken?;
    unsent.extend(held);
    Ok(HostSide::Open(Box::new(Carried {
        local,
        peer,
        send_seq,
        receive_seq,
        mss: repair::segment_size(fd)?,
        scales: info.scales,
        sack: info.sack,
        timestamp: match info.timestamps {
            true => Some(marked(repair::timestamp(fd)?, info.micros)),
            false => None,
        },
        window,
        ended: matches!(info.state, CLOSE_WAIT | LAST_ACK | CLOSING | TIME_WAIT),
        shut: has_shut(info.state),
        options: told(socket, peer.ip())?,
        unacked,
        unsent,
        received,
    })))
}

/// What the socket was told of its packets and of silence.
fn told(socket: &impl AsFd, peer: IpAddr) -> io::Result<SocketOptions> {
    let v6 = peer.is_ipv6();
    let (fd, options) = (socket.as_fd(), SockRef::from(socket));
    let seconds = |time: io::Result<Duration>| {
        let seconds = u16::try_from(time?.as_secs()).unwrap_or(KEEPALIVE_MAX);
        Ok::<_, io::Error>(seconds.clamp(1, KEEPALIVE_MAX))
    };
    Ok(SocketOptions {
        ttl: sockopt::ttl(fd, v6)?.max(1),
        // The rest is congestion's, which the kernel works out anew.
        tos: sockopt::tos(fd, v6)? & !3,
        keepalive: match options.keepalive()? {
            true => Some((
                seconds(options.tcp_keepalive_time())?,
                seconds(options.tcp_keepalive_interval())?,
            )),
            false => None,
        },
        device: socket::device(socket, peer),
    })
}

/// Tells a socket what another was told.
fn tell(socket: &impl AsFd, v6: bool, told: &SocketOptions) -> io::Result<()> {
    let fd = socket.as_fd();
    sockopt::set_ttl(fd, v6, told.ttl)?;
    sockopt::set_tos(fd, v6, told.tos)?;
    if let Some((silence, pause)) = told.keepalive {
        let [silence, pause] = [silence, pause].map(|s| Duration::from_secs(s.into()));
        let often = TcpKeepalive::new().with_time(silence).with_interval(pause);
        SockRef::from(socket).set_tcp_keepalive(&often)?;
    }
    Ok(())
}

/// What is left of a connection that the kernel is done with.
fn over(socket: &impl AsFd, held: &[u8]) -> io::Result<HostSide> {
    let fd = socket.as_fd();
    let options = SockRef::from(socket);
    if let Some(error) = options.take_error()? {
        return Err(error);
    }
    let (incoming, _) = repair::queued(fd)?;
    repair::choose(fd, Queue::Receive)?;
    let received = peek(fd, incoming)?;
    repair::choose(fd, Queue::None)?;
    if held.is_empty() {
        Ok(HostSide::Over(received))
    } else {
        Err(io::ErrorKind::NotConnected.into())
    }
}

/// A timestamp as kernels that can count microseconds tell them: odd if they do. Others tell any, and time goes forward.
const fn marked(timestamp: u32, micros: bool) -> u32 {
    if micros {
        timestamp | 1
    } else {
        timestamp.wrapping_add(1) & !1
    }
}

/// Whether our FIN is sent, or in the queue.
const fn has_shut(state: u8) -> bool {
    matches!(state, FIN_WAIT1 | FIN_WAIT2 | CLOSING | LAST_ACK)
}

/// Numbers and octets of both queues: the number behind what was received, that; the number of the first octet not
/// acknowledged, those that were sent, those that were not.
type Queues = (u32, Vec<u8>, u32, Vec<u8>, Vec<u8>);

fn queues(socket: BorrowedFd<'_>, info: Info) -> io::Result<Queues> {
    let (incoming, outgoing) = repair::queued(socket)?;
    repair::choose(socket, Queue::Receive)?;
    let receive_seq = repair::sequence(socket)?;
    let received = peek(socket, incoming)?;
    repair::choose(socket, Queue::Send)?;
    let end = repair::sequence(socket)?;
    let mut unacked = peek(socket, outgoing)?;
    let fin = u32::from(has_shut(info.state));
    let send_seq = end.wrapping_sub(fin).wrapping_sub(unacked.len() as u32);
    let unsent = info.unsent.saturating_sub(fin) as usize;
    let unsent = unacked.split_off(unacked.len().saturating_sub(unsent));
    Ok((receive_seq, received, send_seq, unacked, unsent))
}

/// The octets of the queue chosen, which are no more than `octets`.
fn peek(socket: BorrowedFd<'_>, octets: usize) -> io::Result<Vec<u8>> {
    use std::os::fd::AsRawFd;
    // The memory of a queue is more than what is in it.
    let mut buffer = vec![0; octets.min(QUEUE_MAX + 1)];
    if octets > 0 {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        let read = match recv(socket.as_raw_fd(), &mut buffer, flags) {
            // Nothing but a FIN.
            Err(nix::Error::EAGAIN | nix::Error::ENOTCONN) => 0,
            read => read?,
        };
        buffer.truncate(read);
    }
    if buffer.len() > QUEUE_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    buffer.shrink_to_fit();
    Ok(buffer)
}

/// A socket for a connection that comes from elsewhere; next it must be set to repair mode. It is [silent](silence) until it
/// is all that the connection was.
///
/// # Errors
/// Those of socket(2) and setsockopt(2).
pub fn open(peer: SocketAddr) -> io::Result<OwnedFd> {
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::for_address(peer), kind, Some(Protocol::TCP))?;
    silence(&socket)?;
    Ok(socket.into())
}

/// A socket from which these octets and the end of the stream can be read, and no more: what is left of a connection whose
/// peer is gone. It is a loopback connection of this host.
///
/// # Errors
/// Those of socket(2), bind(2), connect(2) and send(2): `WouldBlock` if this host does not hold that much.
pub fn remains(received: &[u8]) -> io::Result<OwnedFd> {
    let stream = || {
        let kind = Type::STREAM.nonblocking().cloexec();
        Socket::new(Domain::IPV4, kind, Some(Protocol::TCP))
    };
    let (listener, reader) = (stream()?, stream()?);
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
    listener.listen(1)?;
    if !received.is_empty() {
        sockopt::set_least_readable(reader.as_fd(), received.len())?;
        sockopt::set_least_readable(reader.as_fd(), 1)?;
    }
    match reader.connect(&listener.local_addr()?) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
        _ => {}
    }
    // Somebody else may have knocked.
    let writer = loop {
        let (writer, from) = listener.accept()?;
        if from.as_socket() == reader.local_addr()?.as_socket() {
            break writer;
        }
    };
    writer.set_send_buffer_size((2 * received.len()).max(64 * 1024))?;
    fill(writer.as_fd(), received)?;
    writer.shutdown(std::net::Shutdown::Write)?;
    Ok(reader.into())
}

/// Has a socket in repair mode stand where the connection stood that was taken elsewhere: from now on the kernel resets no
/// peer that sends already. Next it is to be [restored](restore). `scope` is the interface of link-local addresses.
///
/// # Errors
/// Those of bind(2), where the address is not the host's, connect(2) and setsockopt(2).
pub fn claim(socket: &OwnedFd, carried: &Carried, scope: u32) -> io::Result<()> {
    let fd = socket.as_fd();
    let options = SockRef::from(socket);
    repair::choose(fd, Queue::Send)?;
    repair::set_sequence(fd, carried.send_seq)?;
    repair::choose(fd, Queue::Receive)?;
    let received = carried.received.len() as u32;
    repair::set_sequence(fd, carried.receive_seq.wrapping_sub(received))?;
    // The kernel works out its segments here and hardly ever again; what is agreed on later does not make it.
    let mss = u32::from(carried.mss).min(MAXSEG_MAX);
    let _ = options.set_tcp_mss(mss);
    socket::bind_again(socket, carried.options.device.as_deref());
    options.bind(&SockAddr::from(scoped(carried.local, scope)))?;
    options.connect(&SockAddr::from(scoped(carried.peer, scope)))
}

/// Makes a socket that was [claimed](claim) the connection that was taken elsewhere.
///
/// # Errors
/// Those of setsockopt(2) and send(2): `WouldBlock` and ENOMEM if the queues are longer than this host allows.
pub fn restore(socket: &OwnedFd, carried: &Carried) -> io::Result<()> {
    let fd = socket.as_fd();
    let options = SockRef::from(socket);
    make_room(socket, carried)?;
    repair::set_agreed(
        fd,
        Agreed {
            mss: carried.mss,
            scales: carried.scales,
            sack: carried.sack,
            timestamps: carried.timestamp.is_some(),
        },
    )?;
    if let Some(timestamp) = carried.timestamp {
        repair::set_timestamp(fd, timestamp)?;
    }
    repair::choose(fd, Queue::Receive)?;
    fill(fd, &carried.received)?;
    repair::choose(fd, Queue::Send)?;
    fill(fd, &carried.unacked)?;
    repair::set_window(fd, carried.window)?;
    repair::choose(fd, Queue::None)?;
    options.set_tcp_nodelay(true)?;
    socket::prepare_tcp(socket)?;
    tell(socket, carried.peer.is_ipv6(), &carried.options)?;
    listen(socket);
    Ok(())
}

/// Fresh sockets have small buffers. Overhead is the kernel's, which doubles what is asked for.
fn make_room(socket: &OwnedFd, carried: &Carried) -> io::Result<()> {
    let options = SockRef::from(socket);
    let (received, sent) = (
        carried.received.len(),
        carried.unacked.len() + carried.unsent.len(),
    );
    if received > 0 {
        // Goes as far as autotuning does (tcp_rmem), where SO_RCVBUF ends at rmem_max and stops it (Linux 4.17).
        sockopt::set_least_readable(socket.as_fd(), received)?;
        sockopt::set_least_readable(socket.as_fd(), 1)?;
    }
    if sent > 0 {
        options.set_send_buffer_size((2 * sent).max(64 * 1024))?;
        // Where the kernel is too old for it the buffer stays as large as that.
        let _ = repair::unlock_buffers(socket.as_fd());
    }
    Ok(())
}

const fn scoped(mut addr: SocketAddr, scope: u32) -> SocketAddr {
    if let SocketAddr::V6(v6) = &mut addr
        && crate::net::is_link_local6(*v6.ip())
    {
        v6.set_scope_id(scope);
    }
    addr
}

/// Puts octets into the queue chosen: as many at once as the kernel takes.
fn fill(socket: BorrowedFd<'_>, mut octets: &[u8]) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let mut at_once = octets.len();
    while !octets.is_empty() {
        let now = octets.get(..at_once).unwrap_or(octets);
        match send(socket.as_raw_fd(), now, flags) {
            Ok(written) => octets = octets.get(written..).unwrap_or_default(),
            Err(nix::Error::ENOMEM | nix::Error::ENOBUFS) if at_once > 4096 => at_once /= 2,
            Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn milliseconds_of_an_old_kernel_are_not_taken_for_microseconds() {
        assert_eq!([6, 7, u32::MAX].map(|ms| marked(ms, false)), [6, 8, 0]);
        assert_eq!([6, 7].map(|us| marked(us, true)), [7, 7]);
    }
}
