//! DHCPv4 (RFC 2131) and BOOTP (RFC 951): one guest, one address, for ever. No lease is remembered, as there is nothing to
//! choose: a client may have the guest's address or is told no.

use std::{
    iter, mem,
    net::{IpAddr, Ipv4Addr},
};

use super::note::{Answer, Note};
use crate::{
    config::{Net, Net4},
    net::{Class, Mac, Why, class, mask4},
    wire::{
        build::{Ends, HOPS, IPV4_LEN, Ip4, UDP_LEN, udp4},
        dhcp::{
            CLIENT_PORT, FIXED, MAGIC, MIN_MESSAGE, MessageType, Request, SERVER_PORT, code,
            option_len, write_fixed, write_option, write_route,
        },
        name,
    },
};

/// The IPv4 datagram that every host takes (RFC 791), and so every DHCP client (RFC 2131, section 2).
const MIN_DATAGRAM: usize = 576;

/// What is before the message in a datagram.
const HEADERS: usize = IPV4_LEN + UDP_LEN;

/// What a lease is no use without, most important first.
const INDISPENSABLE: [u8; 9] = [
    code::MESSAGE_TYPE,
    code::SERVER_ID,
    code::LEASE_TIME,
    code::RAPID_COMMIT,
    code::SUBNET_MASK,
    code::ROUTER,
    code::CLIENT_ID,
    code::CLASSLESS_ROUTES,
    code::DNS,
];

/// Answers the payload of a datagram to the DHCP server port that came from this MAC address.
pub fn answer(from: Mac, payload: &[u8], net: &Net, out: &mut Vec<u8>) -> Answer {
    let Some(net4) = net.v4.as_ref().filter(|_| net.serve.dhcp) else {
        return Answer::Silent(Why::Disabled);
    };
    let Some(request) = Request::parse(payload) else {
        return Answer::Silent(Why::Malformed);
    };
    let kind = match decide(from, &request, net4) {
        Ok(kind) => kind,
        Err(answer) => return answer,
    };
    let reply = Reply {
        kind,
        request,
        net,
        net4,
    };
    let (to, dst, port) = reply.destination(from);
    let ends = Ends {
        src: net.mac,
        dst: to,
    };
    let ip = Ip4 {
        src: net4.ours,
        dst,
        ttl: HOPS,
    };
    udp4(out, ends, ip, (SERVER_PORT, port), |out| reply.write(out));
    Answer::Reply(Some(Note::Dhcp {
        said: kind.said(),
        client: from,
    }))
}

/// What kind of reply a request deserves (RFC 2131, section 4.3), or why there is none.
fn decide(from: Mac, request: &Request<'_>, net4: &Net4) -> Result<Kind, Answer> {
    let asked = match request.option(code::MESSAGE_TYPE) {
        None => return Ok(Kind::Bootp),
        Some(value) => value.first().copied().and_then(MessageType::from_octet),
    };
    let heard = |said| Answer::Noted(Note::Dhcp { said, client: from });
    match asked {
        Some(MessageType::Discover) if request.option(code::RAPID_COMMIT).is_some() => {
            Ok(Kind::RapidAck)
        }
        Some(MessageType::Discover) => Ok(Kind::Offer),
        Some(MessageType::Request) => decide_request(request, net4),
        Some(MessageType::Inform) => Ok(Kind::Informed),
        Some(MessageType::Decline) => Err(heard("DHCP: client declines address")),
        Some(MessageType::Release) => Err(heard("DHCP: client releases address")),
        Some(MessageType::Offer | MessageType::Ack | MessageType::Nak) => {
            Err(Answer::Silent(Why::Unanswered))
        }
        None => Err(Answer::Silent(Why::Malformed)),
    }
}

/// A request names the address in an option when the client selects or reboots, in `ciaddr` when it renews or rebinds.
fn decide_request(request: &Request<'_>, net4: &Net4) -> Result<Kind, Answer> {
    if request
        .addr(code::SERVER_ID)
        .is_some_and(|id| id != net4.ours)
    {
        // It took another server's offer.
        return Err(Answer::Silent(Why::Unanswered));
    }
    let foreign = iter::once(request.client_addr())
        .chain(request.addr(code::REQUESTED_ADDRESS))
        .any(|addr| !addr.is_unspecified() && addr != net4.addr);
    Ok(if foreign { Kind::Nak } else { Kind::Ack })
}

/// What a reply is, seen from the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Offer,
    Ack,
    /// An acknowledgement of a DISCOVER (RFC 4039).
    RapidAck,
    /// An acknowledgement of an INFORM, which grants no lease.
    Informed,
    Nak,
    Bootp,
}

impl Kind {
    const fn message_type(self) -> Option<MessageType> {
        match self {
            Self::Offer => Some(MessageType::Offer),
            Self::Ack | Self::RapidAck | Self::Informed => Some(MessageType::Ack),
            Self::Nak => Some(MessageType::Nak),
            Self::Bootp => None,
        }
    }

    const fn said(self) -> &'static str {
        match self {
            Self::Offer => "DHCP: offer to discover",
            Self::Ack => "DHCP: ack to request",
            Self::RapidAck => "DHCP: ack to discover (Rapid Commit)",
            Self::Informed => "DHCP: ack to inform",
            Self::Nak => "DHCP: nak to request",
            Self::Bootp => "BOOTP: ack to request",
        }
    }

    const fn leases(self) -> bool {
        matches!(self, Self::Offer | Self::Ack | Self::RapidAck)
    }
}

/// A reply and all that its content rests on.
struct Reply<'a> {
    kind: Kind,
    request: Request<'a>,
    net: &'a Net,
    net4: &'a Net4,
}

impl Reply<'_> {
    /// Link-layer address, address and port to send to (RFC 2131, section 4.1).
    fn destination(&self, from: Mac) -> (Mac, Ipv4Addr, u16) {
        let relay = self.request.relay_addr();
        if !relay.is_unspecified() {
            return (from, relay, SERVER_PORT);
        }
        // Clients that know no better than zeros are found where their frame came from.
        let client = Some(self.request.client_mac())
            .filter(|mac| !mac.is_multicast() && *mac != Mac::ZERO)
            .unwrap_or(from);
        let held = self.request.client_addr();
        let unicast = match self.kind {
            Kind::Nak => None,
            Kind::Informed => Some(held).filter(|addr| class(IpAddr::V4(*addr)) == Class::Global),
            _ if self.request.broadcast() && held != self.net4.addr => None,
            _ => Some(self.net4.addr),
        };
        match unicast {
            Some(addr) => (client, addr, CLIENT_PORT),
            None => (Mac::BROADCAST, Ipv4Addr::BROADCAST, CLIENT_PORT),
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        let start = out.len();
        let held = self.request.client_addr();
        let (ciaddr, yiaddr) = match self.kind {
            Kind::Offer | Kind::RapidAck => (Ipv4Addr::UNSPECIFIED, self.net4.addr),
            Kind::Ack | Kind::Bootp => (held, self.net4.addr),
            Kind::Informed => (held, Ipv4Addr::UNSPECIFIED),
            Kind::Nak => (Ipv4Addr::UNSPECIFIED, Ipv4Addr::UNSPECIFIED),
        };
        // A relay must broadcast a refusal: the client's address is not to be trusted.
        let broadcast = self.kind == Kind::Nak && !self.request.relay_addr().is_unspecified();
        write_fixed(out, &self.request, broadcast, ciaddr, yiaddr);
        self.write_options(out);
        out.push(code::END);
        out.resize(out.len().max(start + MIN_MESSAGE), 0);
    }

    /// Message type first, as some clients want it; then what the client listed, in its order (RFC 2132, section 9.8); then
    /// the rest by number.
    fn write_options(&self, out: &mut Vec<u8>) {
        let (mut chosen, routes) = self.choose();
        let mut value = Vec::new();
        for code in iter::once(code::MESSAGE_TYPE)
            .chain(self.listed())
            .chain(1..code::END)
        {
            if mem::take(&mut chosen[usize::from(code)]) && self.value(code, &mut value) {
                if code == code::CLASSLESS_ROUTES {
                    value.truncate(routes);
                }
                write_option(out, code, &value);
            }
        }
    }

    /// Which options, by code, go into the message: as many as fit, the indispensable first, then what the client listed. Of
    /// routes that do not all fit the router's go, and as many octets of others as have room behind everything else.
    fn choose(&self) -> ([bool; 256], usize) {
        let (mut seen, mut chosen) = ([false; 256], [false; 256]);
        let (mut routes, mut all_routes) = (usize::MAX, Vec::new());
        let mut room = self.room();
        let mut value = Vec::new();
        for code in INDISPENSABLE
            .into_iter()
            .chain(self.listed())
            .chain(1..code::END)
        {
            if mem::replace(&mut seen[usize::from(code)], true) || !self.value(code, &mut value) {
                continue;
            }
            if code == code::CLASSLESS_ROUTES && option_len(value.len()) > room {
                let of_router = usize::from(self.router_outside().is_some())
                    + usize::from(self.net4.router.is_some());
                // Without a router the first route has that place.
                let least = ends_of_routes(&value).nth(of_router.max(1));
                routes = least.unwrap_or(value.len());
                all_routes.clone_from(&value);
                value.truncate(routes);
            }
            if let Some(left) = room.checked_sub(option_len(value.len())) {
                chosen[usize::from(code)] = true;
                room = left;
            }
        }
        if chosen[usize::from(code::CLASSLESS_ROUTES)] && !all_routes.is_empty() {
            let room = room + option_len(routes);
            routes = ends_of_routes(&all_routes)
                .take_while(|&end| option_len(end) <= room)
                .fold(routes, usize::max);
        }
        (chosen, routes)
    }

    /// The codes of the client's parameter request list.
    fn listed(&self) -> impl Iterator<Item = u8> {
        self.request.all(code::PARAMETER_LIST).flatten().copied()
    }

    /// How many octets of options fit, the end option left aside.
    fn room(&self) -> usize {
        let vend = if self.kind == Kind::Bootp {
            // As much as the client itself sent: it may know nothing longer.
            let least = MIN_MESSAGE - FIXED;
            self.request
                .vend_len
                .clamp(least, MIN_DATAGRAM - HEADERS - FIXED)
        } else {
            let wanted = self.request.array(code::MAX_SIZE).map(u16::from_be_bytes);
            let most = usize::from(self.net.mtu).max(MIN_DATAGRAM);
            let datagram = wanted
                .map_or(MIN_DATAGRAM, usize::from)
                .clamp(MIN_DATAGRAM, most);
            datagram - HEADERS - FIXED
        };
        vend - MAGIC.len() - 1
    }

    /// Replaces `value` by that of this option; `false` if the reply does not have it.
    fn value(&self, code: u8, value: &mut Vec<u8>) -> bool {
        value.clear();
        let bootp = self.kind == Kind::Bootp;
        match code {
            code::MESSAGE_TYPE => value.extend(self.kind.message_type().map(|kind| kind as u8)),
            code::SERVER_ID if !bootp => value.extend(self.net4.ours.octets()),
            // RFC 6842, section 3.
            code::CLIENT_ID if !bootp => value.extend(self.request.all(code).flatten()),
            code::MESSAGE if self.kind == Kind::Nak => {
                value.extend(b"requested address not on link");
            }
            _ if self.kind == Kind::Nak => {}
            code::LEASE_TIME if self.kind.leases() => value.extend([0xff; 4]),
            code::RAPID_COMMIT => return self.kind == Kind::RapidAck,
            _ => self.setting(code, value),
        }
        !value.is_empty()
    }

    /// Appends the value of an option about the network.
    fn setting(&self, code: u8, value: &mut Vec<u8>) {
        let Net { dns, serve, .. } = self.net;
        match code {
            code::SUBNET_MASK => value.extend(mask4(self.net4.prefix).to_be_bytes()),
            code::ROUTER => value.extend(self.net4.router.iter().flat_map(Ipv4Addr::octets)),
            code::DNS if serve.dhcp_dns => {
                value.extend(self.net4.dns.iter().flat_map(Ipv4Addr::octets));
            }
            code::HOST_NAME => value.extend(dns.hostname.iter().flat_map(|name| name.bytes())),
            code::MTU if self.net.announce_mtu => value.extend(self.net.mtu.to_be_bytes()),
            code::FQDN => {
                if let Some(fqdn) = &dns.fqdn {
                    self.write_fqdn(fqdn, value);
                }
            }
            code::DOMAIN_SEARCH if serve.dhcp_search => name::encode_compressed(&dns.search, value),
            code::CLASSLESS_ROUTES => self.write_routes(value),
            _ => {}
        }
    }

    /// The client's name in canonical encoding (E); O says that the client's wish for updates (S) is not followed. The two
    /// octets after the flags are obsolete (RFC 4702, section 2).
    fn write_fqdn(&self, fqdn: &str, value: &mut Vec<u8>) {
        const SERVER_UPDATES: u8 = 0x01;
        const OVERRIDDEN: u8 = 0x02;
        const ENCODED: u8 = 0x04;
        let wish = self
            .request
            .array(code::FQDN)
            .is_some_and(|[flags]| flags & SERVER_UPDATES != 0);
        value.extend([ENCODED | if wish { OVERRIDDEN } else { 0 }, 255, 255]);
        if !name::encode(fqdn, value) {
            value.clear();
        }
    }

    /// The router, if it is outside of the guest's network.
    fn router_outside(&self) -> Option<Ipv4Addr> {
        let Net4 {
            addr,
            prefix,
            router,
            ..
        } = *self.net4;
        router.filter(|router| (router.to_bits() ^ addr.to_bits()) & mask4(prefix) != 0)
    }

    /// Routes, if the router option does not say it all: a router outside of the guest's network needs a route of its own. The
    /// default route is repeated, as clients that read this option ignore the router option (RFC 3442).
    fn write_routes(&self, value: &mut Vec<u8>) {
        const ON_LINK: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
        let Net4 {
            router, ref routes, ..
        } = *self.net4;
        let beyond = || routes.iter().filter(|(_, prefix, _)| *prefix > 0);
        let router_outside = self.router_outside();
        if router_outside.is_none() && beyond().next().is_none() {
            return;
        }
        if let Some(router) = router_outside {
            write_route(value, router, 32, ON_LINK);
        }
        if let Some(router) = router {
            write_route(value, Ipv4Addr::UNSPECIFIED, 0, router);
        }
        // What is on the link comes before what is reached through it.
        for through in [false, true] {
            for &(dst, prefix, via) in beyond().filter(|route| (route.2 != ON_LINK) == through) {
                write_route(value, dst, prefix, via);
            }
        }
    }
}

/// Where the first route in the value of a classless static route option begins, and where each of them ends.
fn ends_of_routes(value: &[u8]) -> impl Iterator<Item = usize> {
    iter::successors(Some(0), |&at| {
        let prefix = value.get(at)?;
        Some(at + 1 + usize::from(prefix.div_ceil(8)) + 4)
    })
}

#[cfg(test)]
mod tests;
