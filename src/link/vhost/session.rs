//! What front-end and back end agree upon, message by message, and the queues that run by it. Front-ends differ in what they
//! say first: a queue runs as soon as all it needs was said, whatever the order, and is started anew when any of it changes.

use std::{os::fd::OwnedFd, sync::Arc};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::{
    intake::Intake,
    message::{Channel, Message, Next, Refused, Request},
    outlet::{Abilities, Outlet},
    regions,
    ring::{Ring, SIZE_MAX, Shape},
};
use crate::{
    config::{VhostFeatures, vhost_bits as bits},
    sys::guestmem::{DirtyLog, GuestMemory},
    wire::vnet,
};

/// Protocol features (VHOST_USER_PROTOCOL_F_*, vhost-user specification).
mod protocol {
    pub const MQ: u64 = 1;
    pub const LOG_SHMFD: u64 = 1 << 1;
    pub const RARP: u64 = 1 << 2;
    pub const REPLY_ACK: u64 = 1 << 3;
    pub const RESET_DEVICE: u64 = 1 << 13;
    pub const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
    pub const STATUS: u64 = 1 << 16;
    pub const DEVICE_STATE: u64 = 1 << 19;
    /// Those that are always offered; MQ where there are several queue pairs.
    pub const OFFERED: u64 =
        LOG_SHMFD | RARP | REPLY_ACK | RESET_DEVICE | CONFIGURE_MEM_SLOTS | STATUS | DEVICE_STATE;
}

/// The receive and the transmit queue of a pair, as the driver sees them.
pub const RECEIVE: usize = 0;
pub const TRANSMIT: usize = 1;

/// In a descriptor message: no descriptor comes with it.
const NO_DESCRIPTOR: u64 = 1 << 8;

/// Messages taken at a time.
const TURN: usize = 64;

/// In SET_VRING_ADDR: writes to the used ring are logged.
const LOG_USED: u64 = 1;

/// Where the running queues of a pair live.
#[derive(Debug)]
pub struct Halves<'a> {
    pub intake: &'a mut Option<Intake>,
    pub outlet: &'a mut Option<Outlet>,
}

/// What is to be polled, or not any more: values, carried out in order.
#[derive(Debug)]
pub enum Watch {
    /// Tell when the driver kicks this queue: pairs follow each other.
    Kick(Arc<OwnedFd>, usize),
    /// Tell no more, and close.
    Close(Arc<OwnedFd>, usize),
}

/// The guest's state is to be written to, or read from, a pipe of the front-end's up to its end.
#[derive(Debug)]
pub enum Transfer {
    Save(OwnedFd),
    Load(OwnedFd),
}

/// How a turn went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// There may be more messages.
    More,
    Waits,
    /// The front-end has left.
    Left,
}

/// What a front-end that knows of it has said of a queue (vhost-user, "Ring states").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Enabled {
    /// Not since it was stopped, or the guest is paused: what the driver has sent waits until it is.
    #[default]
    NotYet,
    Yes,
    /// No more, though the guest goes on with others: what the driver still sends is taken, and goes nowhere.
    NoMore,
}

#[derive(Debug, Default)]
struct Queue {
    size: u16,
    /// Descriptor table, available ring, used ring.
    addresses: Option<(u64, u64, u64)>,
    log: Option<u64>,
    /// The entry of the available ring that comes next.
    next: u16,
    enabled: Enabled,
    kick: Option<Arc<OwnedFd>>,
    /// While it runs, its ring has it.
    call: Option<OwnedFd>,
}

/// One front-end's connection.
#[derive(Debug)]
pub struct Session {
    channel: Channel,
    offered: u64,
    features: u64,
    protocol: u64,
    status: u64,
    memory: Arc<GuestMemory>,
    log: Option<Arc<DirtyLog>>,
    queues: Vec<Queue>,
    watches: Vec<Watch>,
    transfer: Option<Transfer>,
    transferred: bool,
    /// It has asked how many queue pairs there may be, and no driver has begun since.
    counts_queues: bool,
}

impl Session {
    /// Of a front-end that may use so many queue pairs.
    pub fn new(socket: OwnedFd, offered: VhostFeatures, pairs: usize) -> Self {
        let several = if pairs > 1 { bits::MQ } else { 0 };
        Self {
            channel: Channel::new(socket),
            offered: offered.bits() | several,
            features: 0,
            protocol: 0,
            status: 0,
            memory: Arc::default(),
            log: None,
            queues: (0..2 * pairs).map(|_| Queue::default()).collect(),
            watches: Vec::new(),
            transfer: None,
            transferred: true,
            counts_queues: false,
        }
    }

    /// What is to be polled since this was last asked.
    pub fn watches(&mut self) -> impl Iterator<Item = Watch> {
        self.watches.drain(..)
    }

    /// Takes notice of a kick. Its counter is read, so that the front-end does not find it when the device is stopped.
    pub fn kicked(&self, queue: usize) {
        if let Some(kick) = self.queues.get(queue).and_then(|queue| queue.kick.as_ref()) {
            hear(kick);
        }
    }

    const fn protocol(&self) -> u64 {
        let several = if self.queues.len() > 2 {
            protocol::MQ
        } else {
            0
        };
        protocol::OFFERED | several
    }

    /// Whether the memory is still what it was.
    ///
    /// # Errors
    /// `Refused::Vanished`.
    pub fn check(&self) -> Result<(), Refused> {
        let log = self.log.as_ref().is_some_and(|log| log.has_vanished());
        if log || self.memory.has_vanished() {
            return Err(Refused::Vanished);
        }
        Ok(())
    }

    /// Takes messages, some at most, and answers them.
    ///
    /// # Errors
    /// Why the connection cannot go on.
    pub fn serve(&mut self, halves: &mut [Halves<'_>]) -> Result<Served, Refused> {
        for _ in 0..TURN {
            let message = match self.channel.next()? {
                Next::Message(message) => message,
                Next::Nothing => return Ok(Served::Waits),
                Next::End => return Ok(Served::Left),
            };
            self.take(message, halves)?;
            // Whoever asked for it next asks how it went.
            if self.transfer.is_some() {
                break;
            }
        }
        Ok(Served::More)
    }

    /// The transfer that is to be made now; its end is to be told by [`Session::transferred`].
    pub const fn transfer(&mut self) -> Option<Transfer> {
        self.transfer.take()
    }

    /// Notes how a transfer went.
    pub const fn transferred(&mut self, well: bool) {
        self.transferred = well;
    }

    /// Queue pairs that there may be.
    const fn pairs(&self) -> usize {
        self.queues.len() / 2
    }

    /// How many queue pairs there may be, if the front-end has asked and not begun to use any: it may want more.
    pub fn refused_pairs(&self) -> Option<usize> {
        self.counts_queues.then_some(self.pairs())
    }

    /// Stops all queues and lets go of what they were made of.
    pub fn end(&mut self, halves: &mut [Halves<'_>]) {
        for index in 0..self.queues.len() {
            self.reset(index, halves);
        }
    }

    fn take(&mut self, mut message: Message, halves: &mut [Halves<'_>]) -> Result<(), Refused> {
        log::debug!("vhost-user: {:?}", message.request);
        match self.carry_out(&mut message, halves)? {
            Some(words) => self.channel.send(&message.reply(&words)),
            None if message.wants_reply && self.protocol & protocol::REPLY_ACK != 0 => {
                self.channel.send(&message.reply(&[0]))
            }
            None => Ok(()),
        }
    }

    /// Carries out a request; what the reply says, if it has one of its own.
    fn carry_out(
        &mut self,
        message: &mut Message,
        halves: &mut [Halves<'_>],
    ) -> Result<Option<Vec<u64>>, Refused> {
        let answer = match message.request {
            Request::GetFeatures => vec![self.offered],
            Request::GetProtocolFeatures => vec![self.protocol()],
            Request::GetQueueNum => {
                self.counts_queues = true;
                vec![self.pairs() as u64]
            }
            Request::GetMaxMemSlots => vec![regions::MOST as u64],
            Request::GetStatus => vec![self.status],
            Request::GetVringBase => vec![self.get_base(message, halves)?],
            Request::SetLogBase => {
                self.set_log(message, halves)?;
                vec![0]
            }
            Request::SetDeviceStateFd => {
                self.set_transfer(message)?;
                // We have no better descriptor to offer.
                vec![NO_DESCRIPTOR]
            }
            Request::CheckDeviceState => vec![u64::from(!self.transferred)],
            Request::SetVringKick | Request::SetVringCall | Request::SetVringErr => {
                self.set_descriptor(message, halves)?;
                return Ok(None);
            }
            Request::SetVringNum
            | Request::SetVringAddr
            | Request::SetVringBase
            | Request::SetVringEnable => {
                self.set_queue(message, halves)?;
                return Ok(None);
            }
            _ => {
                self.set_device(message, halves)?;
                return Ok(None);
            }
        };
        Ok(Some(answer))
    }

    /// Requests about all of the device.
    fn set_device(
        &mut self,
        message: &mut Message,
        halves: &mut [Halves<'_>],
    ) -> Result<(), Refused> {
        match message.request {
            Request::SetFeatures => {
                let [features] = message.words()?;
                if features & !self.offered != 0 {
                    return Err(Refused::Value(message.request));
                }
                self.counts_queues = false;
                self.change(halves, |session| session.features = features)
            }
            Request::SetProtocolFeatures => {
                let [protocol] = message.words()?;
                if protocol & !self.protocol() != 0 {
                    return Err(Refused::Value(message.request));
                }
                self.protocol = protocol;
                Ok(())
            }
            Request::SetMemTable => {
                let memory = regions::table(message)?;
                self.change(halves, |session| session.memory = Arc::new(memory))
            }
            Request::AddMemReg => {
                let [_, region @ ..] = message.words::<5>()?;
                let file = message.descriptor()?;
                if self.memory.regions() == regions::MOST {
                    return Err(Refused::Value(message.request));
                }
                let memory = regions::add(&self.memory, region, &file)?;
                self.change(halves, |session| session.memory = Arc::new(memory))
            }
            Request::RemMemReg => {
                let [_, region @ ..] = message.words::<5>()?;
                let memory = self.memory.without(regions::info(region));
                let memory = memory.ok_or(Refused::Value(message.request))?;
                self.change(halves, |session| session.memory = Arc::new(memory))
            }
            Request::ResetOwner | Request::ResetDevice => {
                for index in 0..self.queues.len() {
                    self.reset(index, halves);
                    self.queue(index as u32, message.request)?.enabled = Enabled::NotYet;
                }
                self.features = 0;
                self.status = 0;
                Ok(())
            }
            Request::SetStatus => {
                let [status] = message.words()?;
                self.status = status;
                Ok(())
            }
            // No RARP is sent for a guest that moved: the network knows the host's addresses, not its. Who asks an error
            // descriptor of a log never hears of one.
            _ => Ok(()),
        }
    }

    fn set_log(&mut self, message: &mut Message, halves: &mut [Halves<'_>]) -> Result<(), Refused> {
        let [len, offset] = message.words()?;
        let file = message.descriptor()?;
        let log = DirtyLog::new(std::os::fd::AsFd::as_fd(&file), offset, len)
            .map_err(|error| Refused::Memory(error.kind()))?;
        self.change(halves, |session| session.log = Some(Arc::new(log)))
    }

    fn set_transfer(&mut self, message: &mut Message) -> Result<(), Refused> {
        let pipe = message.descriptor()?;
        // Direction and phase, of which there is one: the device stands still.
        self.transfer = match message.state()? {
            (0, 0) => Some(Transfer::Save(pipe)),
            (1, 0) => Some(Transfer::Load(pipe)),
            _ => return Err(Refused::Value(message.request)),
        };
        Ok(())
    }

    fn queue(&mut self, index: u32, request: Request) -> Result<&mut Queue, Refused> {
        self.queues
            .get_mut(index as usize)
            .ok_or(Refused::Value(request))
    }

    /// Requests about a queue.
    fn set_queue(&mut self, message: &Message, halves: &mut [Halves<'_>]) -> Result<(), Refused> {
        let request = message.request;
        if request == Request::SetVringAddr {
            let [first, descriptors, used, available, log] = message.words()?;
            let octets = first.to_ne_bytes();
            let [a, b, c, d, e, f, g, h] = octets;
            let index = u32::from_ne_bytes([a, b, c, d]);
            let flags = u64::from(u32::from_ne_bytes([e, f, g, h]));
            self.queue(index, request)?;
            self.stop(index as usize, halves);
            let queue = self.queue(index, request)?;
            queue.addresses = Some((descriptors, available, used));
            queue.log = (flags & LOG_USED != 0).then_some(log);
            return self.start(index as usize, halves);
        }
        let (index, value) = message.state()?;
        let wrong = Refused::Value(request);
        self.queue(index, request)?;
        let ran = self.stop(index as usize, halves);
        let first = self.queues.get(TRANSMIT).map(|queue| queue.enabled);
        let goes_on = index > TRANSMIT as u32 && first == Some(Enabled::Yes);
        let queue = self.queue(index, request)?;
        match request {
            Request::SetVringNum => {
                queue.size = u16::try_from(value)
                    .ok()
                    .filter(|size| size.is_power_of_two() && *size <= SIZE_MAX)
                    .ok_or(wrong)?;
            }
            Request::SetVringBase => queue.next = u16::try_from(value).map_err(|_| wrong)?,
            _ => {
                queue.enabled = match value {
                    0 if ran && goes_on => Enabled::NoMore,
                    0 => Enabled::NotYet,
                    _ => Enabled::Yes,
                };
            }
        }
        self.start(index as usize, halves)
    }

    /// Stops a queue for good; where it stood.
    fn get_base(&mut self, message: &Message, halves: &mut [Halves<'_>]) -> Result<u64, Refused> {
        let (index, _) = message.state()?;
        self.queue(index, message.request)?;
        self.reset(index as usize, halves);
        let next = self.queue(index, message.request)?.next;
        let [a, b, c, d] = index.to_ne_bytes();
        let [e, f, g, h] = u32::from(next).to_ne_bytes();
        Ok(u64::from_ne_bytes([a, b, c, d, e, f, g, h]))
    }

    fn set_descriptor(
        &mut self,
        message: &mut Message,
        halves: &mut [Halves<'_>],
    ) -> Result<(), Refused> {
        let request = message.request;
        let [word] = message.words()?;
        let descriptor = if word & NO_DESCRIPTOR == 0 {
            let descriptor = message.descriptor()?;
            // It is shared with the front-end, but nobody waits at it by reading.
            let _ = fcntl(&descriptor, FcntlArg::F_SETFL(OFlag::O_NONBLOCK));
            Some(descriptor)
        } else {
            None
        };
        let index = (word & 0xff) as usize;
        self.queue(index as u32, request)?;
        if request == Request::SetVringErr {
            return Ok(());
        }
        self.stop(index, halves);
        let queue = self.queue(index as u32, request)?;
        if request == Request::SetVringCall {
            queue.call = descriptor;
        } else {
            // Without kicks the queue would have to be polled all the time.
            let kick = Arc::new(descriptor.ok_or(Refused::Value(request))?);
            if let Some(old) = queue.kick.replace(Arc::clone(&kick)) {
                self.watches.push(Watch::Close(old, index));
            }
            self.watches.push(Watch::Kick(kick, index));
        }
        self.start(index, halves)
    }

    /// Changes what all queues depend on.
    fn change(
        &mut self,
        halves: &mut [Halves<'_>],
        change: impl FnOnce(&mut Self),
    ) -> Result<(), Refused> {
        let running: Vec<usize> = (0..self.queues.len())
            .filter(|&index| self.stop(index, halves))
            .collect();
        change(self);
        // Where memory was missing, the queue starts now.
        for index in 0..self.queues.len() {
            self.start(index, halves)?;
            let runs = halves.get(index / 2).is_some_and(|halves| match index % 2 {
                RECEIVE => halves.outlet.is_some(),
                _ => halves.intake.is_some(),
            });
            if running.contains(&index) && !runs {
                return Err(Refused::Ring);
            }
        }
        Ok(())
    }

    /// Stops a queue and forgets its descriptors.
    fn reset(&mut self, index: usize, halves: &mut [Halves<'_>]) {
        self.stop(index, halves);
        if let Some(queue) = self.queues.get_mut(index) {
            queue.call = None;
            if queue.enabled == Enabled::NoMore {
                queue.enabled = Enabled::NotYet;
            }
            if let Some(kick) = queue.kick.take() {
                self.watches.push(Watch::Close(kick, index));
            }
        }
    }

    /// Stops a queue, if it runs.
    fn stop(&mut self, index: usize, halves: &mut [Halves<'_>]) -> bool {
        let Some(halves) = halves.get_mut(index / 2) else {
            return false;
        };
        let ring = if index % 2 == RECEIVE {
            halves.outlet.take().map(Outlet::into_ring)
        } else {
            halves.intake.take().map(Intake::into_ring)
        };
        let (Some(ring), Some(queue)) = (ring, self.queues.get_mut(index)) else {
            return false;
        };
        (queue.next, queue.call) = ring.stop();
        true
    }

    /// Starts a queue, if all it needs was said.
    fn start(&mut self, index: usize, halves: &mut [Halves<'_>]) -> Result<(), Refused> {
        let features = self.features;
        let has = |bit: u64| features & bit != 0;
        let (Some(queue), Some(halves)) = (self.queues.get_mut(index), halves.get_mut(index / 2))
        else {
            return Ok(());
        };
        let Some((descriptors, available, used)) = queue.addresses else {
            return Ok(());
        };
        let enabled = if has(bits::PROTOCOL_FEATURES) {
            queue.enabled
        } else {
            Enabled::Yes
        };
        let discards = enabled == Enabled::NoMore && index % 2 == TRANSMIT;
        let runs = queue.kick.is_some()
            && queue.size > 0
            && (enabled == Enabled::Yes || discards)
            && self.memory.regions() > 0;
        if !runs {
            return Ok(());
        }
        let shape = Shape {
            size: queue.size,
            descriptors,
            available,
            used,
            log: queue.log,
            next: queue.next,
            event_index: has(bits::EVENT_IDX),
            indirect: has(bits::INDIRECT_DESC),
        };
        let log = self.log.clone().filter(|_| has(bits::LOG_ALL));
        let ring = Ring::new(shape, Arc::clone(&self.memory), log, queue.call.take())
            .ok_or(Refused::Ring)?;
        let header = if has(bits::VERSION_1) || has(bits::MRG_RXBUF) {
            vnet::LEN
        } else {
            vnet::LEN_LEGACY
        };
        if index % 2 == TRANSMIT {
            *halves.intake = Some(Intake::new(ring, header, discards));
        } else {
            let abilities = Abilities {
                header,
                mergeable: has(bits::MRG_RXBUF),
                checksum: has(bits::GUEST_CSUM),
                segments4: has(bits::GUEST_TSO4),
                segments6: has(bits::GUEST_TSO6),
                datagrams: has(bits::GUEST_USO4) && has(bits::GUEST_USO6),
            };
            *halves.outlet = Some(Outlet::new(ring, abilities));
        }
        Ok(())
    }
}

/// Takes notice of what a kick's counter says.
pub fn hear(kick: &OwnedFd) {
    let _ = nix::unistd::read(kick, &mut [0; 8]);
}
