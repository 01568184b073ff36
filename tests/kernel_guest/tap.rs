//! The TAP device: one frame per `read` and per `write`, with no header of the kernel's in front of it, or virtio-net's.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::fs::OpenOptionsExt,
    },
};

use crate::lab::front_end::{CSUM, HOST_ECN, HOST_TSO4, HOST_TSO6, HOST_USO};

/// Where the kernel hands out TAP devices.
const CLONE_DEVICE: &str = "/dev/net/tun";

/// linux/if_tun.h: _IOW('T', 208, unsigned int), and its flags for checksums, TSO over IPv4 and TSO over IPv6.
const TUNSETOFFLOAD: libc::Ioctl = 0x4004_54d0;
const OFFLOADS: libc::c_ulong = 0x01 | 0x02 | 0x04;

#[derive(Debug)]
pub struct Tap(File);

impl Tap {
    /// Create the device `name` in the network namespace of the calling thread. It goes away with the last descriptor.
    pub fn create(name: &str) -> io::Result<Self> {
        Self::with_flags(name, libc::IFF_TAP | libc::IFF_NO_PI)
    }

    /// The same with virtio-net's header before each frame, as so many queues: each flow keeps to one of them.
    pub(super) fn create_virtio(name: &str, queues: usize) -> io::Result<Vec<Self>> {
        (0..queues)
            .map(|_| Self::create_queue(name, queues > 1))
            .collect()
    }

    fn create_queue(name: &str, one_of_many: bool) -> io::Result<Self> {
        let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        if one_of_many {
            flags |= libc::IFF_MULTI_QUEUE;
        }
        let tap = Self::with_flags(name, flags)?;
        let size: libc::c_int = 12;
        // SAFETY: the kernel reads one int, which outlives the call.
        if unsafe { libc::ioctl(tap.0.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const size) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(tap)
    }

    /// The same, but frames have the header of linux/virtio_net.h before them, and may be as large as the kernel likes them,
    /// with checksums left to be computed.
    pub fn create_offloading(name: &str) -> io::Result<Self> {
        let tap = Self::with_flags(name, libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR)?;
        // SAFETY: the argument is a number.
        if unsafe { libc::ioctl(tap.0.as_raw_fd(), TUNSETOFFLOAD, OFFLOADS) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(tap)
    }

    fn with_flags(name: &str, flags: libc::c_int) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(CLONE_DEVICE)?;
        if name.len() >= libc::IFNAMSIZ {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        // SAFETY: all bytes zero are a valid ifreq.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        // SAFETY: the kernel reads and writes one ifreq, which outlives the call.
        if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self(file))
    }

    /// Has the guest's kernel leave to others what these virtio features let it.
    pub(super) fn offload(&self, features: u64) -> io::Result<()> {
        let pairs = [
            (CSUM, libc::TUN_F_CSUM),
            (HOST_TSO4, libc::TUN_F_TSO4),
            (HOST_TSO6, libc::TUN_F_TSO6),
            (HOST_ECN, libc::TUN_F_TSO_ECN),
            (HOST_USO, libc::TUN_F_USO4 | libc::TUN_F_USO6),
        ];
        let flags = pairs.into_iter().filter(|(bit, _)| features & bit != 0);
        let flags = flags.fold(0, |all, (_, flag)| all | flag);
        // SAFETY: the argument is a number.
        if unsafe {
            libc::ioctl(
                self.0.as_raw_fd(),
                libc::TUNSETOFFLOAD,
                libc::c_ulong::from(flags),
            )
        } < 0
        {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Read one frame into a list of memory.
    pub(super) fn read_to(&self, room: &mut [libc::iovec]) -> io::Result<usize> {
        // SAFETY: whoever made the list vouches for it: it is memory of the process, mapped for as long as this takes.
        let len = unsafe { libc::readv(self.0.as_raw_fd(), room.as_ptr(), room.len() as _) };
        usize::try_from(len).map_err(|_| io::Error::last_os_error())
    }

    /// Hand one frame in a list of memory to the guest's stack.
    pub(super) fn write_from(&self, frame: &[libc::iovec]) -> io::Result<()> {
        // SAFETY: as for `read_to`.
        let len = unsafe { libc::writev(self.0.as_raw_fd(), frame.as_ptr(), frame.len() as _) };
        usize::try_from(len)
            .map(drop)
            .map_err(|_| io::Error::last_os_error())
    }

    /// Read one frame; `WouldBlock` if there is none.
    pub fn read(&self, frame: &mut [u8]) -> io::Result<usize> {
        (&self.0).read(frame)
    }

    /// Hand one frame to the guest's stack.
    pub fn write(&self, frame: &[u8]) -> io::Result<()> {
        (&self.0).write(frame).map(drop)
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
