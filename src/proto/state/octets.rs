//! Values as octets: integers in network order, lists behind their length.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use crate::net::{Endpoint, Seq};

/// Values, written one behind the other.
#[derive(Debug, Default)]
pub struct Writer(pub Vec<u8>);

impl Writer {
    pub fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    pub fn u16(&mut self, value: u16) {
        self.0.extend(value.to_be_bytes());
    }

    pub fn u32(&mut self, value: u32) {
        self.0.extend(value.to_be_bytes());
    }

    pub fn u64(&mut self, value: u64) {
        self.0.extend(value.to_be_bytes());
    }

    pub fn flag(&mut self, value: bool) {
        self.u8(value.into());
    }

    pub fn seq(&mut self, value: Seq) {
        self.u32(value.0);
    }

    /// A value that may be missing.
    pub fn option<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) {
        self.flag(value.is_some());
        if let Some(value) = value {
            write(self, value);
        }
    }

    pub fn v4(&mut self, addr: Ipv4Addr) {
        self.0.extend(addr.octets());
    }

    pub fn v6(&mut self, addr: Ipv6Addr) {
        self.0.extend(addr.octets());
    }

    pub fn addr(&mut self, addr: IpAddr) {
        match addr {
            IpAddr::V4(v4) => {
                self.u8(4);
                self.v4(v4);
            }
            IpAddr::V6(v6) => {
                self.u8(6);
                self.v6(v6);
            }
        }
    }

    pub fn endpoint(&mut self, endpoint: Endpoint) {
        self.addr(endpoint.addr);
        self.u16(endpoint.port);
    }

    /// Address and port. What interface a link-local address belongs to means nothing elsewhere.
    pub fn socket(&mut self, addr: SocketAddr) {
        self.addr(addr.ip());
        self.u16(addr.port());
    }

    pub fn list(&mut self, octets: &[u8]) {
        self.u32(octets.len() as u32);
        self.0.extend(octets);
    }
}

/// Values, read one behind the other; `None` where there are no more, or none that make sense.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub fn take(&mut self, octets: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(octets)?;
        self.0 = rest;
        Some(taken)
    }

    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub fn u8(&mut self) -> Option<u8> {
        Some(u8::from_be_bytes(self.array()?))
    }

    pub fn u16(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.array()?))
    }

    pub fn u32(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.array()?))
    }

    pub fn u64(&mut self) -> Option<u64> {
        Some(u64::from_be_bytes(self.array()?))
    }

    pub fn flag(&mut self) -> Option<bool> {
        match self.u8()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    pub fn seq(&mut self) -> Option<Seq> {
        self.u32().map(Seq)
    }

    pub fn option<T>(&mut self, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<Option<T>> {
        if self.flag()? {
            read(self).map(Some)
        } else {
            Some(None)
        }
    }

    pub fn v4(&mut self) -> Option<Ipv4Addr> {
        Some(Ipv4Addr::from(self.array::<4>()?))
    }

    pub fn v6(&mut self) -> Option<Ipv6Addr> {
        Some(Ipv6Addr::from(self.array::<16>()?))
    }

    pub fn addr(&mut self) -> Option<IpAddr> {
        match self.u8()? {
            4 => self.v4().map(IpAddr::V4),
            6 => self.v6().map(IpAddr::V6),
            _ => None,
        }
    }

    pub fn endpoint(&mut self) -> Option<Endpoint> {
        Some(Endpoint::new(self.addr()?, self.u16()?))
    }

    pub fn socket(&mut self) -> Option<SocketAddr> {
        let (addr, port) = (self.addr()?, self.u16()?);
        Some(match addr {
            IpAddr::V4(_) => SocketAddr::new(addr, port),
            IpAddr::V6(v6) => SocketAddrV6::new(v6, port, 0, 0).into(),
        })
    }

    /// A list of at most so many octets.
    pub fn list(&mut self, most: usize) -> Option<&'a [u8]> {
        let len = self.u32()? as usize;
        if len > most {
            return None;
        }
        self.take(len)
    }
}
