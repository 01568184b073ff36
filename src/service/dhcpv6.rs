//! DHCPv6 (RFC 8415): one guest, one address, for ever. Nothing is remembered between messages.

use std::net::{IpAddr, Ipv6Addr};

use super::note::{Answer, Note};
use crate::{
    config::{Net, Net6},
    net::{Class, Mac, Why, class},
    wire::{
        build::{Ends, HOPS, IPV6_LEN, Ip6, UDP_LEN, udp6},
        dhcpv6::{
            ALL_SERVERS, Association, CLIENT_PORT, INFINITY, Message, MessageType, SERVER_PORT,
            Status, Writer, code, duid, write_addr, write_fqdn, write_status,
        },
        name,
    },
};

/// Answers the payload of a datagram to the DHCPv6 server port.
pub fn answer(
    from: Mac,
    src: Ipv6Addr,
    dst: Ipv6Addr,
    payload: &[u8],
    net: &Net,
    out: &mut Vec<u8>,
) -> Answer {
    let Some(v6) = net.v6.as_ref().filter(|_| net.serve.dhcpv6) else {
        return Answer::Silent(Why::Disabled);
    };
    if dst != ALL_SERVERS && dst != v6.ours {
        return Answer::Silent(Why::Unanswered);
    }
    if !matches!(class(IpAddr::V6(src)), Class::Global | Class::LinkLocal) {
        return Answer::Silent(Why::Source);
    }
    let Some(message) = Message::parse(payload) else {
        return Answer::Silent(Why::Malformed);
    };
    let server = duid(net.mac);
    if !is_valid(&message, &server) {
        return Answer::Silent(Why::Unanswered);
    }
    let reply = if dst == ALL_SERVERS {
        Reply::to(&message, v6)
    } else {
        Reply::to_unicast(message.kind)
    };
    let Some(reply) = reply else {
        return Answer::Silent(Why::Unanswered);
    };
    let ends = Ends {
        src: net.mac,
        dst: from,
    };
    let ip = Ip6 {
        src: v6.ours,
        dst: src,
        hop_limit: HOPS,
        flow_label: 0,
    };
    udp6(out, ends, ip, (SERVER_PORT, CLIENT_PORT), |out| {
        reply.write(&message, &server, net, v6, out);
    });
    Answer::Reply(Some(reply.note))
}

/// Whether a client may send this to us: which identifiers must be there and which must not (RFC 8415, section 16).
fn is_valid(message: &Message<'_>, ours: &[u8]) -> bool {
    let client = message.option(code::CLIENT_ID);
    // Two octets of type, then 1 to 128 (RFC 8415, section 11.1).
    let client_valid = client.is_some_and(|duid| (3..=130).contains(&duid.len()));
    let server = message.option(code::SERVER_ID);
    match message.kind {
        MessageType::Solicit | MessageType::Confirm | MessageType::Rebind => {
            client_valid && server.is_none()
        }
        MessageType::Request | MessageType::Renew | MessageType::Release | MessageType::Decline => {
            client_valid && server == Some(ours)
        }
        MessageType::InformationRequest => {
            let mut options = message.options;
            let association = |code| matches!(code, code::IA_NA | code::IA_TA | code::IA_PD);
            (client.is_none() || client_valid)
                && server.is_none_or(|server| server == ours)
                && !options.any(|(code, _)| association(code))
        }
        MessageType::Advertise | MessageType::Reply => false,
    }
}

/// What is in a reply besides the identifiers.
#[derive(Debug, Clone, Copy)]
struct Reply {
    kind: MessageType,
    status: Option<Status>,
    rapid_commit: bool,
    /// How identity associations are answered, if at all.
    grant: Option<Grant>,
    /// Whether nameservers and names are told.
    settings: bool,
    note: Note,
}

/// What to do about addresses in an identity association that are not the guest's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Grant {
    /// They are hints, and ignored (RFC 8415, section 18.3.1).
    Offer,
    /// The association gets nothing but the status `NotOnLink` (section 18.3.2).
    Refuse,
    /// They come back with lifetime 0, beside the right one (sections 18.3.4 and 18.3.5).
    Replace,
}

impl Reply {
    /// The reply to a valid message (RFC 8415, section 18.3); none if RFC or reason ask for silence.
    fn to(message: &Message<'_>, v6: &Net6) -> Option<Self> {
        let mut wanted = requested(message);
        let full = |grant, note| Self {
            kind: MessageType::Reply,
            status: None,
            rapid_commit: false,
            grant,
            settings: true,
            note: Note::Dhcpv6(note),
        };
        Some(match message.kind {
            MessageType::Solicit if is_rapid(message, v6) => Self {
                rapid_commit: true,
                ..full(
                    Some(Grant::Offer),
                    "received SOLICIT, sending REPLY (Rapid Commit)",
                )
            },
            MessageType::Solicit => Self {
                kind: MessageType::Advertise,
                ..full(Some(Grant::Offer), "received SOLICIT, sending ADVERTISE")
            },
            MessageType::Request => {
                let foreign = wanted.find(|addr| Some(*addr) != v6.addr);
                let reply = full(Some(Grant::Refuse), "received REQUEST, sending REPLY");
                Self {
                    note: foreign.map_or(reply.note, not_on_link),
                    ..reply
                }
            }
            MessageType::Renew => full(Some(Grant::Replace), "received RENEW, sending REPLY"),
            MessageType::Rebind => full(Some(Grant::Replace), "received REBIND, sending REPLY"),
            MessageType::InformationRequest => {
                full(None, "received INFORMATION-REQUEST, sending REPLY")
            }
            MessageType::Confirm => {
                let mut wanted = wanted.peekable();
                // Nothing to confirm: the RFC wants no reply.
                wanted.peek()?;
                if wanted.all(|addr| Some(addr) == v6.addr) {
                    Self::status(Status::Success, "received CONFIRM, sending REPLY")
                } else {
                    Self::status(Status::NotOnLink, NOT_CONFIRMED)
                }
            }
            MessageType::Release => {
                Self::status(Status::Success, "received RELEASE, sending REPLY")
            }
            MessageType::Decline => {
                Self::status(Status::Success, "received DECLINE, sending REPLY")
            }
            MessageType::Advertise | MessageType::Reply => return None,
        })
    }

    /// The reply to a message that should have been multicast: we never said that unicast is welcome (RFC 8415, section 18.4).
    const fn to_unicast(kind: MessageType) -> Option<Self> {
        match kind {
            MessageType::Request
            | MessageType::Renew
            | MessageType::Release
            | MessageType::Decline => Some(Self::status(
                Status::UseMulticast,
                "received unicast, sending UseMulticast status in REPLY",
            )),
            _ => None,
        }
    }

    /// A reply that is a status and nothing else.
    const fn status(status: Status, note: &'static str) -> Self {
        Self {
            kind: MessageType::Reply,
            status: Some(status),
            rapid_commit: false,
            grant: None,
            settings: false,
            note: Note::Dhcpv6(note),
        }
    }

    fn write(&self, message: &Message<'_>, server: &[u8], net: &Net, v6: &Net6, out: &mut Vec<u8>) {
        let limit = usize::from(net.mtu.max(1280)) - IPV6_LEN - UDP_LEN;
        let mut writer = Writer::new(out, limit, self.kind, message.transaction);
        if let Some(client) = message.option(code::CLIENT_ID) {
            writer.option(code::CLIENT_ID, |out| out.extend(client));
        }
        writer.option(code::SERVER_ID, |out| out.extend(server));
        if self.rapid_commit {
            writer.option(code::RAPID_COMMIT, |_| {});
        }
        if let Some(status) = self.status {
            writer.status(status);
        }
        if let Some(grant) = self.grant {
            write_associations(grant, message, v6.addr, &mut writer);
        }
        if self.settings {
            write_settings(message, net, v6, &mut writer);
        }
    }
}

const NOT_CONFIRMED: &str =
    "received CONFIRM with inappropriate IA, sending NotOnLink status in REPLY";

const fn not_on_link(addr: Ipv6Addr) -> Note {
    Note::NotOnLink {
        service: "DHCPv6",
        addr: IpAddr::V6(addr),
    }
}

/// Whether a SOLICIT may be answered with a committed address at once (RFC 8415, section 18.3.1).
fn is_rapid(message: &Message<'_>, v6: &Net6) -> bool {
    message.option(code::RAPID_COMMIT).is_some()
        && message.option(code::IA_NA).is_some()
        && v6.addr.is_some()
}

/// All addresses in all associations of a message.
fn requested<'a>(message: &Message<'a>) -> impl Iterator<Item = Ipv6Addr> + use<'a> {
    message
        .options
        .filter_map(|(code, value)| Association::parse(code, value))
        .flat_map(Association::addrs)
}

/// Answers each association in turn: the first for addresses that has a right to it gets ours, the others hear that there is
/// none left.
fn write_associations(
    grant: Grant,
    message: &Message<'_>,
    addr: Option<Ipv6Addr>,
    writer: &mut Writer<'_>,
) {
    let mut free = addr;
    for (code, value) in message.options {
        let Some(association) = Association::parse(code, value) else {
            continue;
        };
        let foreign = || association.addrs().filter(|asked| Some(*asked) != addr);
        let outcome = match code {
            code::IA_PD => Err(Status::NoPrefixAvail),
            code::IA_TA => Err(Status::NoAddrsAvail),
            _ if grant == Grant::Refuse && foreign().next().is_some() => Err(Status::NotOnLink),
            _ => free.take().ok_or(Status::NoAddrsAvail),
        };
        writer.option(code, |out| {
            out.extend(association.iaid);
            if code != code::IA_TA {
                // T1 and T2: never, or the client's choice where nothing is given.
                let renewal = if outcome.is_ok() { INFINITY } else { 0 };
                out.extend(renewal.to_be_bytes());
                out.extend(renewal.to_be_bytes());
            }
            match outcome {
                Ok(addr) => write_addr(out, addr, INFINITY),
                Err(status) => write_status(out, status),
            }
            if grant == Grant::Replace && code != code::IA_PD {
                foreign().for_each(|addr| write_addr(out, addr, 0));
            }
        });
    }
}

fn write_settings(message: &Message<'_>, net: &Net, v6: &Net6, writer: &mut Writer<'_>) {
    if net.serve.dhcp_dns && !v6.dns.is_empty() {
        writer.option(code::DNS, |out| {
            out.extend(v6.dns.iter().flat_map(Ipv6Addr::octets));
        });
    }
    let mut names = Vec::new();
    for domain in net.dns.search.iter().filter(|_| net.serve.dhcp_search) {
        name::encode(domain, &mut names);
    }
    if !names.is_empty() {
        writer.option(code::DOMAIN_SEARCH, |out| out.extend(names));
    }
    if let Some(fqdn) = &net.dns.fqdn {
        // O says that the client's wish for updates (S) is not followed (RFC 4704, section 6).
        let wish = message.option(code::FQDN).and_then(<[u8]>::first);
        let flags = if wish.is_some_and(|flags| flags & 0x01 != 0) {
            0x02
        } else {
            0
        };
        writer.option(code::FQDN, |out| write_fqdn(out, flags, fqdn));
    }
}

#[cfg(test)]
mod tests;
