//! Everything that changes while flows are carried, in one place and owned by one reactor.

use std::{
    collections::VecDeque,
    hash::{BuildHasher, RandomState},
    num::NonZeroU64,
    sync::{Arc, atomic::AtomicU32},
};

use super::{
    backlog::Backlog,
    company::Company,
    flow::{Burst, Flow, UdpFlow},
    group_state::Groups,
    limit::{OncePerMinute, RateLimit},
    migrating::Away,
    reassembly::Reassembly,
    request::Request,
    run::Run,
    share::Share,
    waiting::Waiting,
};
use crate::{
    config::Net,
    flow::{
        self, Census, Guest, Id, Key, Neighbours, Pool, Spare, Table, Turnover, Visitors, Wheel,
    },
    host::{ends::Peer, listen::Ports, socket::Features},
    link::Passed,
    net::{Drops, Now, Protocol, Seq, Span, Why},
    proto::tcp::{Disorder, Origin, SynRetries},
    service::Note,
    sys::Iovecs,
    wire::headers::Template,
};

/// Octets of the largest datagrams, and read and thrown away at a time where a kernel has no peek offset.
pub(super) const LARGE: usize = 64 * 1024;

/// Octets of a block of the spill pool, a page: most flows that spill at all spill little.
pub(super) const SPILL_BLOCK: usize = 4096;

/// Connections whose streams may have gaps at a time; the others do with less knowledge of what was lost.
const DISORDERS: usize = 1024;

/// Octets all connections together may send to the guest in a turn of the loop, before frames, timers and services have theirs.
const BUDGET: usize = 1 << 20;

/// Flows the guest may begin in a turn, and looks at forwarded ports: a dozen system calls each.
const BEGINNINGS: usize = 32;
const LOOKS: usize = 4;

/// Errors that reading a socket of datagrams may bring, each of an earlier datagram, before it is left alone for a while.
pub const FAILURES: usize = 16;

/// Datagrams of others that may lie in a socket between bind(2) and connect(2).
pub const STRAYS: usize = 256;

/// Flows that wait to follow their frames; others have it noted again.
pub const DRIFTERS: usize = 64;

/// Requests one burst of frames may give rise to: as many flows ended as begun.
const REQUESTS: usize = 2 * 8192;

/// What a relay may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Flows at a time.
    pub flows: usize,
    /// Octets held for sockets that would not take what they promised.
    pub spill: usize,
    /// How long a UDP flow lives after its last datagram, and one that has seen datagrams go back and forth.
    pub udp: Span,
    pub udp_stream: Span,
}

#[cfg(test)]
impl Limits {
    /// Of a test with so many flows.
    pub const fn few(flows: usize) -> Self {
        Self {
            flows,
            spill: 4096,
            udp: Span::secs(30),
            udp_stream: Span::secs(120),
        }
    }
}

/// The flows of a guest, and what carrying them takes.
#[derive(Debug)]
pub struct Relay {
    pub(super) net: Net,
    pub(super) guest: Guest,
    /// Who else is on the host's link.
    pub(super) neighbours: Neighbours,
    /// Whether any frame has come from a guest.
    pub(super) met: bool,
    /// What the guest has sent.
    pub(super) passed: Passed,
    pub(super) features: Features,
    pub(super) flows: Table<Flow>,
    /// Whose they are, and which can make room.
    pub(super) census: Census,
    pub(super) turnover: Turnover,
    pub(super) limits: Limits,
    /// How many datagram flows have sockets bound to each port, as the guest is.
    pub(super) sharing: Box<[u16]>,
    /// By the pairs of a port of the host and a peer that they have.
    pub(super) pairs: Table<Id>,
    /// Those that have sockets at forwarded ports.
    pub(super) visitors: Visitors,
    /// How many of them have sockets that hold more than is usual.
    pub(super) roomy: usize,
    pub(super) wheel: Wheel,
    pub(super) pool: Pool,
    pub(super) disorders: Spare<Disorder>,
    pub(super) burst: Burst<Id>,
    pub(super) run: Run,
    pub(super) groups: Groups,
    pub(super) reassembly: Reassembly,
    pub(super) backlog: Backlog,
    /// Tells packets apart that we fragment; one count for all relays of the guest, as it cannot know which one a packet is of.
    pub(super) fragment_ids: Arc<AtomicU32>,
    /// The flow found last: frames of one flow come in rows.
    pub(super) last: Option<(Key, Id)>,
    pub(super) company: Company,
    /// Flows that had something for the guest when the link was full, first come first.
    pub(super) starved: VecDeque<Id>,
    /// Connections whose acknowledgements wait for an answer, and since when, the earliest first.
    pub(super) postponed: VecDeque<(Id, Now)>,
    /// The host's ports that are forwarded.
    pub(super) ports: Ports,
    /// Those with something to take, first come first.
    pub(super) knocks: VecDeque<u32>,
    /// Those that rest, as nothing could be taken for want of descriptors or memory.
    pub(super) resting: Vec<u32>,
    /// Datagram flows that rest for the same reason.
    pub(super) weary: Vec<Id>,
    /// Until when these rest.
    pub(super) rested: Option<Now>,
    pub(super) syn_retries: SynRetries,
    /// Flows in the making, whose sockets may hold what is of others.
    pub(super) fresh: Vec<Id>,
    /// What waits until the guest is found.
    pub(super) waiting: Waiting,
    pub(super) requests: Vec<Request>,
    pub(super) drops: Drops,
    pub(super) iovecs: Iovecs,
    /// Room for the largest datagrams, and for octets read to be thrown away.
    pub(super) large: Box<[u8]>,
    /// A frame in the making.
    pub(super) scratch: Vec<u8>,
    /// A packet to be quoted in an error.
    pub(super) quote: Vec<u8>,
    /// A message received.
    pub(super) message: Box<[u8]>,
    /// Keys initial sequence numbers, offsets of timestamps and flow labels.
    secret: RandomState,
    /// Whether the guest was told in the log that echo requests cannot be carried.
    pub(super) echo_warned: bool,
    pub(super) away: Away,
    /// When it was last warned of want of descriptors or room in the table, of too many new flows in place of others, of peers
    /// with too many flows, and of sockets that cannot be watched.
    pub(super) warned_full: OncePerMinute,
    pub(super) warned_turnover: OncePerMinute,
    pub(super) warned_share: OncePerMinute,
    pub(super) warned_unwatched: OncePerMinute,
    /// Word of a client's MAC address.
    pub(super) sighted: RateLimit,
    /// When a flow was last given up for want of what the system allows, and how many there were when descriptors ran out.
    pub(super) gave_up: Option<Now>,
    pub(super) scarce: Option<usize>,
    /// The time of the current turn of the loop.
    pub(super) turn: Now,
    /// Octets that connections may send to the guest in what is left of it.
    pub(super) budget: usize,
    /// Flows the guest may begin in it, and looks at forwarded ports.
    pub(super) beginnings: usize,
    pub(super) looks: usize,
    /// What services say, by [`Note::kind`](crate::service::Note::kind).
    pub(super) said: [RateLimit; Note::KINDS],
    /// This relay's part, where several serve the guest, and flows that are to go to others of these.
    pub(super) share: Option<Share>,
    pub(super) drifters: Vec<(Key, usize)>,
}

impl Relay {
    pub fn new(net: Net, features: Features, limits: Limits) -> Self {
        let guest = Guest::new(
            net.v4.as_ref().map(|v4| v4.addr),
            net.v6.as_ref().and_then(|v6| v6.addr),
        );
        Self {
            net,
            guest,
            neighbours: Neighbours::default(),
            met: false,
            passed: Passed::default(),
            features,
            flows: Table::new(limits.flows),
            census: Census::new(limits.flows),
            turnover: Turnover::default(),
            limits,
            sharing: vec![0; 1 << 16].into_boxed_slice(),
            pairs: Table::new(limits.flows),
            visitors: Visitors::new(limits.flows),
            roomy: 0,
            wheel: Wheel::new(limits.flows),
            pool: Pool::new(limits.spill / SPILL_BLOCK, SPILL_BLOCK),
            disorders: Spare::new(DISORDERS.min(limits.flows)),
            burst: Burst::new(),
            run: Run::new(),
            groups: Groups::new(),
            reassembly: Reassembly::new(),
            backlog: Backlog::new(),
            fragment_ids: Arc::new(AtomicU32::new(RandomState::new().hash_one(()) as u32)),
            last: None,
            company: Company::default(),
            starved: VecDeque::with_capacity(longest_line(limits.flows)),
            postponed: VecDeque::with_capacity(limits.flows),
            ports: Ports::default(),
            knocks: VecDeque::new(),
            resting: Vec::new(),
            weary: Vec::with_capacity(limits.flows),
            rested: None,
            syn_retries: SynRetries::default(),
            fresh: Vec::with_capacity(STRAYS + 1),
            waiting: Waiting::new(),
            requests: Vec::with_capacity(REQUESTS),
            drops: Drops::new(),
            iovecs: Iovecs::new(),
            large: vec![0; LARGE].into_boxed_slice(),
            scratch: Vec::with_capacity(70_000),
            quote: Vec::with_capacity(2048),
            message: vec![0; LARGE].into_boxed_slice(),
            secret: RandomState::new(),
            echo_warned: false,
            away: Away::default(),
            warned_full: OncePerMinute::default(),
            warned_turnover: OncePerMinute::default(),
            warned_share: OncePerMinute::default(),
            warned_unwatched: OncePerMinute::default(),
            gave_up: None,
            scarce: None,
            sighted: RateLimit::default(),
            turn: Now(0),
            budget: BUDGET,
            beginnings: BEGINNINGS,
            looks: LOOKS,
            said: [RateLimit::default(); Note::KINDS],
            share: None,
            drifters: Vec::with_capacity(DRIFTERS),
        }
    }

    /// Requests made since they were last taken, in order.
    pub fn requests(&mut self) -> &mut Vec<Request> {
        &mut self.requests
    }

    /// How long a packet of the guest's may wait for its last part, over IPv4 and IPv6; `None` leaves it as it is.
    pub fn set_fragment_timeouts(&mut self, (v4, v6): (Option<Span>, Option<Span>)) {
        let patience = &mut self.reassembly.patience;
        *patience = (v4.unwrap_or(patience.0), v6.unwrap_or(patience.1));
    }

    /// Keeps connections from outside to the addresses given with `--address`.
    pub const fn pin_guest(&mut self, v4: bool, v6: bool) {
        self.guest.pin(v4, v6);
    }

    pub const fn drops(&self) -> &Drops {
        &self.drops
    }

    /// Takes numbers of connections, of packets and flow labels as another relay of the guest does: a flow may go from one to
    /// the other.
    pub fn number_as(&mut self, other: &Self) {
        self.secret = other.secret.clone();
        self.fragment_ids = Arc::clone(&other.fragment_ids);
    }

    /// Where numbers of a connection begin: at a keyed hash of its ends, and sequence numbers a clock of four microseconds
    /// further (RFC 6528, section 3).
    pub(super) fn origin(&self, key: &Key, now: Now) -> Origin {
        let hash = self.secret.hash_one(key);
        Origin {
            iss: Seq((hash as u32).wrapping_add((now.0 / 4) as u32)),
            clock: (hash >> 32) as u32,
        }
    }

    /// Headers of frames to the guest for a flow, from the address the guest knows its peer by.
    pub(super) fn template(&self, key: &Key) -> Template {
        // IPv6 wants a label that is stable for the flow and not zero (RFC 6437).
        let label = if key.guest.addr.is_ipv6() {
            self.secret.hash_one(key) as u32 | 1
        } else {
            0
        };
        let source = self.neighbours.source(&self.net, key.remote.addr);
        let mac = self.guest.mac_at(key.guest.addr);
        Template::new(source, mac, key.remote, key.guest, label)
    }

    /// Whether a protocol is served at all.
    pub(super) const fn served(&self, protocol: Protocol) -> Result<(), Why> {
        let served = match protocol {
            Protocol::Tcp => self.net.serve.tcp,
            Protocol::Udp => self.net.serve.udp,
            Protocol::Echo => self.net.serve.icmp,
        };
        if served { Ok(()) } else { Err(Why::Disabled) }
    }

    pub(super) fn count(&mut self, why: Why) {
        self.drops.count(why);
    }

    /// Makes sure the wheel wakes a flow no later than `at`; `armed` remembers when it will.
    pub(super) fn arm(wheel: &mut Wheel, id: Id, armed: &mut Option<NonZeroU64>, at: Now) {
        if armed.is_none_or(|earlier| at.0 < earlier.get()) {
            wheel.arm(id.slot, at);
            *armed = NonZeroU64::new(at.0);
        }
    }

    /// How long this flow may be idle.
    pub(super) const fn udp_timeout(&self, flow: &UdpFlow) -> Span {
        if flow.is_stream() {
            self.limits.udp_stream
        } else {
            self.limits.udp
        }
    }

    /// Begins a turn of the loop.
    pub(super) const fn begin_turn(&mut self, now: Now) {
        (self.turn, self.budget) = (now, BUDGET);
        (self.beginnings, self.looks) = (BEGINNINGS, LOOKS);
    }

    pub const fn net(&self) -> &Net {
        &self.net
    }

    /// Whether a guest is here, as far as it was heard.
    pub fn hears_guest(&self) -> bool {
        self.guest.is_heard()
    }

    /// Whether a guest was ever here: then it may have been told of the network.
    pub const fn has_met_guest(&self) -> bool {
        self.met
    }

    /// From now on guest and flows are told this. Flows there are keep their sockets, but for those of datagrams with another
    /// target now.
    pub fn set_net(&mut self, net: Net) {
        let addr4 = net.v4.as_ref().map(|v4| v4.addr);
        let addr6 = net.v6.as_ref().and_then(|v6| v6.addr);
        if self.met {
            self.guest.addr4 = self.guest.addr4.or(addr4);
            self.guest.addr6 = self.guest.addr6.or(addr6);
        } else {
            (self.guest.addr4, self.guest.addr6) = (addr4, addr6);
        }
        let before = std::mem::replace(&mut self.net, net);
        self.leave_targets(&before);
    }

    /// Whether what begins anything is to wait for its turn.
    pub(super) fn is_late(&self) -> bool {
        // What is worked off was here before what is in line.
        let in_line = self.backlog.held.is_some() && !self.backlog.is_empty();
        in_line || self.beginnings == 0
    }

    /// Whether the guest may begin this flow, which leads to the peer returned, and now.
    ///
    /// # Errors
    /// Why it leads nowhere, which takes nobody's turn; or as [`Relay::begin`].
    pub(super) fn begin_toward(&mut self, key: &Key, now: Now) -> Result<Peer, Why> {
        self.check_source(key.guest.addr)?;
        let target = flow::outbound(&self.net, key.protocol, key.remote)?;
        if key.guest.port == 0 && key.protocol != Protocol::Echo {
            return Err(Why::PortZero);
        }
        self.begin(key, now)?;
        Ok(target.into())
    }

    /// Whether the guest may begin this flow now, for which it has one beginning less.
    ///
    /// # Errors
    /// [`Why::Backlog`] where the packet is to wait for its turn, [`Why::Turnover`] where it is to be sent again.
    pub(super) fn begin(&mut self, key: &Key, now: Now) -> Result<(), Why> {
        if self.is_late() {
            return Err(Why::Backlog);
        }
        if self.is_full() && !self.may_replace(key, now) {
            return Err(Why::Turnover);
        }
        self.beginnings -= 1;
        Ok(())
    }
}

/// How many flows may be in line for room on the link, of so many there can be: those that have ended leave it late.
pub const fn longest_line(flows: usize) -> usize {
    2 * flows
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{self, GUEST};
    use super::*;
    use crate::{
        link::Inbox,
        net::number::{ICMP, UDP},
        wire::checksum::Sum,
    };
    use std::net::Ipv4Addr;

    /// A datagram without payload, or an echo request, to the host's loopback.
    fn to_loopback(protocol: u8, number: u16) -> Vec<u8> {
        let mut ip = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, protocol, 0, 0];
        ip.extend(
            [GUEST, Ipv4Addr::LOCALHOST]
                .map(|addr| addr.octets())
                .as_flattened(),
        );
        let sum = Sum::new().bytes(&ip).finish();
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        let mut upper = match protocol {
            UDP => [number, 53, 8, 0],
            _ => [0x0800, 0, number, 1],
        };
        if protocol == ICMP {
            let sum = Sum::new().bytes(upper.map(u16::to_be_bytes).as_flattened());
            upper[1] = sum.finish();
        }
        let mut frame = vec![2; 12];
        frame.extend([8, 0]);
        frame.extend(ip);
        frame.extend(upper.map(u16::to_be_bytes).as_flattened());
        frame
    }

    /// A guest may go on with it for ever, as one does that does not know that its IPv6 leads nowhere.
    #[test]
    fn what_leads_nowhere_takes_nobodys_turn() {
        let (mut outbox, _guest) = fixture::link();
        let mut inbox = Inbox::holding();
        for protocol in [UDP, ICMP] {
            let mut relay = fixture::relay(16);
            for number in 1..=100 {
                inbox.hold(&to_loopback(protocol, number));
                relay.from_guest(&inbox, &mut outbox, Now(1));
            }
            assert_eq!(relay.drops().of(Why::Destination), 100);
            assert_eq!(relay.beginnings, BEGINNINGS);
        }
    }
}
