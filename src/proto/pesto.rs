//! The protocol of pesto(1), which shows and changes the forwards of a passt that runs, from passt's end: version 2, as
//! upstream's speaks it. Integers are big-endian, IPv4 addresses are mapped into IPv6 (RFC 4291, section 2.5.5.2), names end
//! with zeros.
//!
//! ```text
//! ours   = "basil:s" 0, version u32, octets of a table's name u32, octets of an interface's name u32, {table}, 0
//! table  = number u8, name [128], what can be in it u32, count u32, {rule}
//! theirs = {number u8, count u32, {rule}} 0
//! rule   = address [16], guest's address [16], interface [16], first port u16, last port u16, guest's first port u16,
//!          protocol u8, flags u8
//! ```
//!
//! There is one table here, of what is forwarded to the guest. Who only looks says nothing. Who says something says all: what
//! is not among it is forwarded no more. Nothing comes back, but an end of the connection.

use std::net::{IpAddr, Ipv6Addr};

use crate::{
    config::{Enabled, Forwards, INTERFACE_MAX, RULES_MAX, Rule, is_interface_name},
    net::{PortMap, Protocol},
};

/// The only version there is of it: the first was never in a release.
const VERSION: u32 = 2;

const MAGIC: &[u8; 8] = b"basil:s\0";

/// Octets of names.
const TABLE_NAME: usize = 128;
const INTERFACE_NAME: usize = INTERFACE_MAX + 1;

/// The table of what is forwarded to the guest, and what ends the list of tables.
const HOST: u8 = 1;
const END: u8 = 0;

/// Octets of a rule, and those of a table before its rules in what clients say.
const RULE: usize = 56;
const HEAD: usize = 5;

/// Octets of a client's message at most.
pub const MESSAGE_MAX: usize = HEAD + RULE * RULES_MAX + 1;

/// What can be in a table.
const CAN_IPV4: u32 = 1;
const CAN_IPV6: u32 = 2;
const CAN_TCP: u32 = 4;
const CAN_UDP: u32 = 8;
const CAN_NAME_INTERFACES: u32 = 32;

/// Flags of a rule: at every address of both families; what cannot be bound is left out.
const EVERYWHERE: u8 = 1;
const BEST_EFFORT: u8 = 2;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// What is said to each client first: these rules, where so much can be forwarded.
pub fn greeting(rules: &[Rule], enabled: Enabled) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    for number in [VERSION, TABLE_NAME as u32, INTERFACE_NAME as u32] {
        out.extend(number.to_be_bytes());
    }
    out.push(HOST);
    extend_padded(&mut out, b"HOST", TABLE_NAME);
    let can = [
        (enabled.v4, CAN_IPV4),
        (enabled.v6, CAN_IPV6),
        (enabled.tcp, CAN_TCP),
        (enabled.udp, CAN_UDP),
        (true, CAN_NAME_INTERFACES),
    ];
    let can = can.iter().filter(|(on, _)| *on);
    let can = can.fold(0, |all, (_, bit)| all | bit);
    out.extend(u32::to_be_bytes(can));
    out.extend(u32::to_be_bytes(rules.len() as u32));
    for rule in rules {
        extend_rule(&mut out, rule, enabled);
    }
    out.push(END);
    out
}

/// What a client has said by now: the rules it wants served from now on, as far as `enabled` goes, once they are complete.
///
/// # Errors
/// One line for a person: it is no such message, or what it asks for cannot be.
pub fn read(said: &[u8], enabled: Enabled) -> Result<Option<Vec<Rule>>, String> {
    let Some(records) = records(said)? else {
        return Ok(None);
    };
    let mut forwards = Forwards::default();
    for record in records.chunks_exact(RULE) {
        forwards.take(read_rule(record)?)?;
    }
    let (rules, _) = forwards.finish(enabled)?;
    Ok(Some(rules))
}

/// The rules of a message that is complete, as they came.
fn records(said: &[u8]) -> Result<Option<&[u8]>, String> {
    let (records, rest) = match said {
        [] => return Ok(None),
        [END, rest @ ..] => (&[][..], rest),
        [HOST, a, b, c, d, rest @ ..] => {
            let count = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
            if count > RULES_MAX {
                return Err(format!("{count} rules (at most {RULES_MAX})"));
            }
            match rest.split_at_checked(count * RULE) {
                Some((records, [END, rest @ ..])) => (records, rest),
                Some((_, [number, ..])) => return Err(unknown(*number)),
                Some((_, [])) | None => return Ok(None),
            }
        }
        [HOST, ..] => return Ok(None),
        [number, ..] => return Err(unknown(*number)),
    };
    if rest.is_empty() {
        Ok(Some(records))
    } else {
        Err("more follows than was announced".to_owned())
    }
}

fn unknown(number: u8) -> String {
    format!("no table {number} to be changed")
}

fn read_rule(record: &[u8]) -> Result<Rule, String> {
    let invalid = || "incomplete rule".to_owned();
    let mut rest = record;
    let addr = take(&mut rest).map(addr).ok_or_else(invalid)?;
    let target = take(&mut rest).map(addr_if_any).ok_or_else(invalid)?;
    let name: [u8; INTERFACE_NAME] = take(&mut rest).ok_or_else(invalid)?;
    let mut port = || take(&mut rest).map(u16::from_be_bytes).ok_or_else(invalid);
    let (first, last, to) = (port()?, port()?, port()?);
    let [protocol, flags] = take(&mut rest).ok_or_else(invalid)?;
    let protocol = match protocol {
        TCP => Protocol::Tcp,
        UDP => Protocol::Udp,
        other => return Err(format!("protocol {other} cannot be forwarded")),
    };
    if flags & !(EVERYWHERE | BEST_EFFORT) != 0 {
        return Err(format!("flags {flags:#04x} of a rule are not served"));
    }
    let everywhere = flags & EVERYWHERE != 0;
    if everywhere && !addr.is_unspecified() {
        return Err(format!("a rule for every address and for {addr}"));
    }
    Ok(Rule {
        protocol,
        addr: (!everywhere).then_some(addr),
        interface: interface(&name)?,
        first,
        last,
        map: PortMap::new(first, to),
        target,
        best_effort: flags & BEST_EFFORT != 0,
        option: String::new(),
    })
}

/// Takes so many octets off the beginning.
fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, left) = rest.split_first_chunk()?;
    *rest = left;
    Some(*taken)
}

fn addr(octets: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(octets).to_canonical()
}

fn addr_if_any(octets: [u8; 16]) -> Option<IpAddr> {
    (octets != [0; 16]).then(|| addr(octets))
}

fn interface(octets: &[u8; INTERFACE_NAME]) -> Result<Option<String>, String> {
    let end = octets.iter().position(|&octet| octet == 0);
    match octets.split_at_checked(end.unwrap_or(INTERFACE_NAME)) {
        Some(([], _)) => Ok(None),
        Some((name, _)) => std::str::from_utf8(name)
            .ok()
            .filter(|name| is_interface_name(name))
            .map(|name| Some(name.to_owned()))
            .ok_or_else(|| "no name of an interface".to_owned()),
        None => Ok(None),
    }
}

fn extend_rule(out: &mut Vec<u8>, rule: &Rule, enabled: Enabled) {
    let addr = rule.host_addr(enabled.v4, enabled.v6);
    out.extend(addr.map_or([0; 16], mapped));
    out.extend(rule.target.map_or([0; 16], mapped));
    let name = rule.interface.as_deref().unwrap_or_default();
    extend_padded(out, name.as_bytes(), INTERFACE_NAME);
    for port in [rule.first, rule.last, rule.map.guest(rule.first)] {
        out.extend(port.to_be_bytes());
    }
    let everywhere = if addr.is_none() { EVERYWHERE } else { 0 };
    let best_effort = if rule.best_effort { BEST_EFFORT } else { 0 };
    out.push(match rule.protocol {
        Protocol::Tcp => TCP,
        Protocol::Udp | Protocol::Echo => UDP,
    });
    out.push(everywhere | best_effort);
}

fn mapped(addr: IpAddr) -> [u8; 16] {
    match addr {
        IpAddr::V4(addr) => addr.to_ipv6_mapped().octets(),
        IpAddr::V6(addr) => addr.octets(),
    }
}

/// Adds a text, and zeros up to `len` octets in all.
fn extend_padded(out: &mut Vec<u8>, text: &[u8], len: usize) {
    let zeros = std::iter::repeat(&0);
    out.extend(text.iter().chain(zeros).take(len));
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Enabled = Enabled {
        v4: true,
        v6: true,
        tcp: true,
        udp: true,
    };

    fn rules(specs: &[(Protocol, &str)], enabled: Enabled) -> Vec<Rule> {
        let mut forwards = Forwards::default();
        for (protocol, text) in specs {
            forwards.add(*protocol, text, &(32768..=60999)).unwrap();
        }
        forwards.finish(enabled).unwrap().0
    }

    /// A message as pesto would send it after this greeting: the same rules.
    fn reply(greeting: &[u8]) -> Vec<u8> {
        let mut out = vec![HOST];
        out.extend(&greeting[20 + 1 + TABLE_NAME + 4..]);
        out
    }

    fn same(a: &[Rule], b: &[Rule]) -> bool {
        let bare = |rule: &Rule| Rule {
            option: String::new(),
            ..rule.clone()
        };
        a.iter().map(bare).eq(b.iter().map(bare))
    }

    /// What upstream's passt of October 2026 sends with `-t 80:8080 -u 192.0.2.2/53`.
    #[test]
    fn a_greeting_is_upstreams_to_the_octet() {
        let asked = [(Protocol::Tcp, "80:8080"), (Protocol::Udp, "192.0.2.2/53")];
        let out = greeting(&rules(&asked, ALL), ALL);
        let mut expected = b"basil:s\0\0\0\0\x02\0\0\0\x80\0\0\0\x10\x01HOST".to_vec();
        expected.resize(0x95, 0);
        expected.extend([0, 0, 0, 0x2f, 0, 0, 0, 2]);
        expected.extend([0; 48]);
        expected.extend([0, 80, 0, 80, 0x1f, 0x90, 6, 1]);
        expected.extend([0; 10]);
        expected.extend([0xff, 0xff, 192, 0, 2, 2]);
        expected.extend([0; 32]);
        expected.extend([0, 53, 0, 53, 0, 53, 17, 0, 0]);
        assert_eq!(out, expected);
    }

    #[test]
    fn what_was_said_comes_back_the_same() {
        let asked = [
            (Protocol::Tcp, "22"),
            (Protocol::Tcp, "%eth0/1000-1009:2000-2009"),
            (Protocol::Tcp, "192.0.2.1%eth0/5000:10.0.0.7/22"),
            (Protocol::Udp, "2001:db8::1/53,54:[2001:db8::2]/5353"),
            (Protocol::Udp, "0.0.0.0/all"),
        ];
        let rules = rules(&asked, ALL);
        let said = reply(&greeting(&rules, ALL));
        assert!(same(&read(&said, ALL).unwrap().unwrap(), &rules));
        for end in 0..said.len() {
            assert_eq!(read(&said[..end], ALL), Ok(None), "{end}");
        }
        assert!(said.len() <= MESSAGE_MAX);
    }

    /// There every address is one of a family, and pesto calls it that.
    #[test]
    fn every_address_of_one_family_goes_by_its_unspecified_one() {
        for (v4, v6, any) in [(true, false, "0.0.0.0"), (false, true, "::")] {
            let enabled = Enabled { v4, v6, ..ALL };
            let rules = rules(&[(Protocol::Tcp, "80")], enabled);
            let said = reply(&greeting(&rules, enabled));
            let back = read(&said, enabled).unwrap().unwrap();
            assert_eq!(back[0].addr, Some(any.parse().unwrap()));
        }
    }

    #[test]
    fn a_message_of_no_table_clears_it() {
        assert_eq!(read(&[END], ALL), Ok(Some(Vec::new())));
        assert_eq!(read(&[HOST, 0, 0, 0, 0, END], ALL), Ok(Some(Vec::new())));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let message = |change: &dyn Fn(&mut Vec<u8>)| {
            let one = rules(&[(Protocol::Tcp, "80-89")], ALL);
            let mut said = reply(&greeting(&one, ALL));
            change(&mut said);
            read(&said, ALL)
        };
        assert!(message(&|_| {}).unwrap().is_some());
        let ports = HEAD + 48;
        let put = |at: usize, port: u16| {
            move |said: &mut Vec<u8>| said[at..at + 2].copy_from_slice(&port.to_be_bytes())
        };
        for (what, refused) in [
            ("the table", message(&|said| said[0] = 2)),
            (
                "a further table",
                message(&|said| *said.last_mut().unwrap() = 2),
            ),
            ("the number of rules", message(&|said| said[1] = 1)),
            ("more after the end", message(&|said| said.push(0))),
            ("port 0", message(&put(ports, 0))),
            ("the order", message(&put(ports + 2, 79))),
            ("to port 0", message(&put(ports + 4, 0))),
            ("beyond the last port", message(&put(ports + 4, 65_530))),
            ("the protocol", message(&|said| said[ports + 6] = 132)),
            ("pasta's flag", message(&|said| said[ports + 7] |= 4)),
            (
                "an address beside every",
                message(&|said| said[HEAD] = 0x20),
            ),
            ("no guest's address", message(&|said| said[HEAD + 31] = 1)),
            (
                "an interface's name",
                message(&|said| said[HEAD + 32] = b' '),
            ),
            (
                "no zero",
                message(&|said| said[HEAD + 32..][..16].fill(b'a')),
            ),
        ] {
            assert!(refused.is_err(), "{what}: {refused:?}");
        }
        let twice = rules(&[(Protocol::Tcp, "80")], ALL);
        let twice = [twice.clone(), twice].concat();
        let refused = read(&reply(&greeting(&twice, ALL)), ALL).unwrap_err();
        assert_eq!(refused, "Overlapping port specifier -t 80");
        let udp = greeting(&rules(&[(Protocol::Udp, "80")], ALL), ALL);
        let no_udp = Enabled { udp: false, ..ALL };
        assert!(read(&reply(&udp), no_udp).is_err());
    }
}
