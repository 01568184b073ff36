//! Messages of the vhost-user protocol (QEMU's docs/interop/vhost-user.rst), as they stand on the socket.

use std::{
    fmt, io,
    os::fd::{AsFd, OwnedFd},
};

use crate::sys::{Gather, Iovecs, msg, rights};

/// Octets of a header: request, flags, payload's length, each a number of the host's.
const HEADER: usize = 12;

/// The longest payload: as many memory regions as a table can have, and more.
const PAYLOAD_MAX: usize = 2048;

/// The most descriptors of one message.
const DESCRIPTORS_MAX: usize = 32;

/// Flags: the version in the lowest two bits, whether it is a reply, whether one is wanted.
const VERSION_MASK: u32 = 3;
const VERSION: u32 = 1;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;

/// Requests of a front-end, by their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    GetFeatures,
    SetFeatures,
    SetOwner,
    ResetOwner,
    SetMemTable,
    SetLogBase,
    SetLogFd,
    SetVringNum,
    SetVringAddr,
    SetVringBase,
    GetVringBase,
    SetVringKick,
    SetVringCall,
    SetVringErr,
    GetProtocolFeatures,
    SetProtocolFeatures,
    GetQueueNum,
    SetVringEnable,
    SendRarp,
    ResetDevice,
    GetMaxMemSlots,
    AddMemReg,
    RemMemReg,
    SetStatus,
    GetStatus,
    SetDeviceStateFd,
    CheckDeviceState,
}

impl Request {
    const fn of(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::GetFeatures,
            2 => Self::SetFeatures,
            3 => Self::SetOwner,
            4 => Self::ResetOwner,
            5 => Self::SetMemTable,
            6 => Self::SetLogBase,
            7 => Self::SetLogFd,
            8 => Self::SetVringNum,
            9 => Self::SetVringAddr,
            10 => Self::SetVringBase,
            11 => Self::GetVringBase,
            12 => Self::SetVringKick,
            13 => Self::SetVringCall,
            14 => Self::SetVringErr,
            15 => Self::GetProtocolFeatures,
            16 => Self::SetProtocolFeatures,
            17 => Self::GetQueueNum,
            18 => Self::SetVringEnable,
            19 => Self::SendRarp,
            34 => Self::ResetDevice,
            36 => Self::GetMaxMemSlots,
            37 => Self::AddMemReg,
            38 => Self::RemMemReg,
            39 => Self::SetStatus,
            40 => Self::GetStatus,
            42 => Self::SetDeviceStateFd,
            43 => Self::CheckDeviceState,
            _ => return None,
        })
    }
}

/// A message of the front-end's.
#[derive(Debug)]
pub struct Message {
    pub request: Request,
    number: u32,
    /// Whether success is to be told, if the front-end and we have agreed upon that.
    pub wants_reply: bool,
    payload: Vec<u8>,
    pub descriptors: Vec<OwnedFd>,
}

/// Why the connection cannot go on.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused {
    /// A message of another version, a reply, or of a length none has.
    Header,
    Unknown(u32),
    /// A payload or descriptors that do not go with the request.
    Payload(Request),
    /// A value that was not offered or cannot be.
    Value(Request),
    /// Memory that cannot be mapped.
    Memory(io::ErrorKind),
    /// Shared memory whose file was cut off.
    Vanished,
    /// A queue that is not in shared memory.
    Ring,
    /// The socket does not work any more.
    Socket,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header => f.write_str("bad message header"),
            Self::Unknown(number) => write!(f, "unknown request {number}"),
            Self::Payload(request) => write!(f, "bad payload of {request:?}"),
            Self::Value(request) => write!(f, "bad value in {request:?}"),
            Self::Memory(kind) => write!(f, "cannot map memory: {kind}"),
            Self::Vanished => f.write_str("shared memory has vanished"),
            Self::Ring => f.write_str("queue outside of shared memory"),
            Self::Socket => f.write_str("connection broken"),
        }
    }
}

impl Message {
    /// The payload as numbers of 64 bits; exactly `N` of them.
    pub fn words<const N: usize>(&self) -> Result<[u64; N], Refused> {
        let (words, rest) = self.payload.as_chunks::<8>();
        match <&[[u8; 8]; N]>::try_from(words) {
            Ok(words) if rest.is_empty() => Ok(words.map(u64::from_ne_bytes)),
            _ => Err(Refused::Payload(self.request)),
        }
    }

    /// The payload as numbers of 64 bits, however many: an error unless its length is a multiple of eight.
    pub fn all_words(&self) -> Result<impl Iterator<Item = u64>, Refused> {
        let (words, rest) = self.payload.as_chunks::<8>();
        if rest.is_empty() {
            Ok(words.iter().map(|word| u64::from_ne_bytes(*word)))
        } else {
            Err(Refused::Payload(self.request))
        }
    }

    /// The payload as a queue's number and a value.
    pub fn state(&self) -> Result<(u32, u32), Refused> {
        let [word] = self.words()?;
        let octets = word.to_ne_bytes();
        let half = |at: usize| {
            octets
                .get(at..at + 4)
                .and_then(<[u8]>::first_chunk)
                .map_or(0, |octets| u32::from_ne_bytes(*octets))
        };
        Ok((half(0), half(4)))
    }

    /// The one descriptor that came with it.
    pub fn descriptor(&mut self) -> Result<OwnedFd, Refused> {
        let only = self.descriptors.len() == 1;
        self.descriptors
            .pop()
            .filter(|_| only)
            .ok_or(Refused::Payload(self.request))
    }

    /// Writes the reply: these words.
    pub fn reply(&self, words: &[u64]) -> Vec<u8> {
        let len = (8 * words.len()) as u32;
        [self.number, VERSION | REPLY, len]
            .iter()
            .flat_map(|field| field.to_ne_bytes())
            .chain(words.iter().flat_map(|word| word.to_ne_bytes()))
            .collect()
    }
}

/// The socket that messages come over, read piece by piece as they arrive.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
    /// Octets of the message in the making, and how many there are.
    octets: Box<[u8]>,
    have: usize,
    descriptors: Vec<OwnedFd>,
}

/// What a read brought.
#[derive(Debug)]
pub enum Next {
    Message(Message),
    /// Nothing more until the socket is readable again.
    Nothing,
    /// The front-end has left.
    End,
}

impl Channel {
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            octets: vec![0; HEADER + PAYLOAD_MAX].into_boxed_slice(),
            have: 0,
            descriptors: Vec::new(),
        }
    }

    /// The next whole message. Reads never reach beyond its end, so descriptors are those of this message.
    pub fn next(&mut self) -> Result<Next, Refused> {
        loop {
            let want = self.wanted()?;
            if self.have == want && want >= HEADER && self.header().2 + HEADER == self.have {
                return self.finish().map(Next::Message);
            }
            let free = self
                .octets
                .get_mut(self.have..want)
                .ok_or(Refused::Header)?;
            match rights::receive(self.socket.as_fd(), free, &mut self.descriptors) {
                Ok(0) => return Ok(Next::End),
                Ok(octets) => self.have += octets,
                Err(error) => {
                    return match error.kind() {
                        io::ErrorKind::WouldBlock => Ok(Next::Nothing),
                        io::ErrorKind::Interrupted => continue,
                        io::ErrorKind::ConnectionReset => Ok(Next::End),
                        _ => Err(Refused::Socket),
                    };
                }
            }
            if self.descriptors.len() > DESCRIPTORS_MAX {
                return Err(Refused::Header);
            }
        }
    }

    /// How many octets there should be before it goes on: a header, then all of the message.
    fn wanted(&self) -> Result<usize, Refused> {
        if self.have < HEADER {
            return Ok(HEADER);
        }
        let (_, flags, len) = self.header();
        if flags & VERSION_MASK != VERSION || flags & REPLY != 0 || len > PAYLOAD_MAX {
            return Err(Refused::Header);
        }
        Ok(HEADER + len)
    }

    fn header(&self) -> (u32, u32, usize) {
        let field = |at: usize| {
            let octets = self.octets.get(at..).and_then(<[u8]>::first_chunk);
            octets.map_or(0, |octets| u32::from_ne_bytes(*octets))
        };
        (field(0), field(4), field(8) as usize)
    }

    fn finish(&mut self) -> Result<Message, Refused> {
        let (number, flags, len) = self.header();
        let payload = self.octets.get(HEADER..HEADER + len).unwrap_or_default();
        let payload = payload.to_vec();
        self.have = 0;
        let descriptors = std::mem::take(&mut self.descriptors);
        Ok(Message {
            request: Request::of(number).ok_or(Refused::Unknown(number))?,
            number,
            wants_reply: flags & NEED_REPLY != 0,
            payload,
            descriptors,
        })
    }

    /// Sends a reply, whole: replies are few and short, who does not read them is not waited for.
    pub fn send(&self, octets: &[u8]) -> Result<(), Refused> {
        let mut iovecs = Iovecs::new();
        let mut gather: Gather<'_, '_> = iovecs.gather();
        let listed = gather.push(octets);
        match msg::send(self.socket.as_fd(), &gather) {
            Ok(sent) if listed && sent == octets.len() => Ok(()),
            _ => Err(Refused::Socket),
        }
    }
}
