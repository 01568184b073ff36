//! The TAP device: one frame per `read` and per `write`, no header of the kernel's in front of it.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::fs::OpenOptionsExt,
    },
};

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
