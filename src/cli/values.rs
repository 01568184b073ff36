//! Words of the command line turned into checked values; each refusal is one line for a person.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::{fd::RawFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
};

use nix::unistd::{Group, User};

use crate::{
    config::{HEARD_MOST, INTERFACE_MAX, Identity, QUEUES_MAX, RepairPath, SOCKET_PATH_MAX},
    net::{Class, Mac, Span, class, is_link_local6, unbracketed},
};

/// The largest MTU whose frames fit 65,535 octets: with an Ethernet header of 14.
pub(super) const MTU_MAX: u16 = 65_521;

/// The smallest log file: enough for the header and a few thousand characters of recent past.
pub(super) const LOG_SIZE_MIN: u64 = 40_960;

/// Microseconds of `--busy-poll`.
const BUSY_POLL_MAX: u64 = 1_000_000;

/// A host name in all, and one label of it (RFC 1035, section 2.3.4; written out, without the root's dot).
const NAME_MAX: usize = 253;
const LABEL_MAX: usize = 63;

pub(super) fn socket_path(path: &Path) -> Result<PathBuf, String> {
    unix_path("socket path", path)
}

pub(super) fn queues(text: &str) -> Result<usize, String> {
    number(text)
        .and_then(|number| usize::try_from(number).ok())
        .filter(|number| (1..=QUEUES_MAX).contains(number))
        .ok_or_else(|| format!("Invalid number of queue pairs: {text} (1 to {QUEUES_MAX})"))
}

/// A time, in whole microseconds up to a second.
pub(super) fn busy_poll(text: &str) -> Result<Span, String> {
    number(text)
        .filter(|&micros| micros <= BUSY_POLL_MAX)
        .map(Span)
        .ok_or_else(|| {
            format!("Invalid --busy-poll: {text} (microseconds, at most {BUSY_POLL_MAX})")
        })
}

pub(super) fn conf_path(path: &Path) -> Result<PathBuf, String> {
    unix_path("configuration path", path)
}

pub(super) fn repair_path(path: &Path) -> Result<RepairPath, String> {
    if path == Path::new("none") {
        return Ok(RepairPath::Off);
    }
    unix_path("passt-repair path", path).map(RepairPath::At)
}

fn unix_path(what: &str, path: &Path) -> Result<PathBuf, String> {
    let length = path.as_os_str().as_bytes().len();
    if (1..=SOCKET_PATH_MAX).contains(&length) {
        return Ok(path.to_owned());
    }
    Err(format!(
        "Invalid {what}: {} (1 to {SOCKET_PATH_MAX} octets)",
        path.display()
    ))
}

pub(super) fn descriptor(text: &str) -> Result<RawFd, String> {
    number(text)
        .and_then(|n| RawFd::try_from(n).ok())
        .ok_or_else(|| format!("Invalid --fd: {text}"))
}

pub(super) fn mtu(text: &str) -> Result<u16, String> {
    let mtu = number(text).ok_or_else(|| format!("Invalid MTU: {text}"))?;
    u16::try_from(mtu)
        .ok()
        .filter(|&mtu| mtu <= MTU_MAX)
        .ok_or_else(|| format!("MTU {mtu} too large (max {MTU_MAX})"))
}

pub(super) fn log_size(text: &str) -> Result<u64, String> {
    number(text)
        .filter(|size| (LOG_SIZE_MIN..=u64::MAX / 2).contains(size))
        .ok_or_else(|| format!("Invalid --log-size: {text} (at least {LOG_SIZE_MIN})"))
}

/// A delay between two print-outs, in whole seconds.
pub(super) fn stats(text: &str) -> Result<Span, String> {
    number(text)
        .and_then(|seconds| u32::try_from(seconds).ok())
        .filter(|&seconds| seconds > 0)
        .map(|seconds| Span::secs(seconds.into()))
        .ok_or_else(|| format!("Invalid --stats delay: {text} (whole seconds, at least 1)"))
}

/// An unsigned number as strtoul(3) reads it with base 0: decimal, 0x hexadecimal or 0 octal; no sign, no blanks.
fn number(text: &str) -> Option<u64> {
    let (digits, radix) =
        if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
            (hex, 16)
        } else if text.len() > 1 && text.starts_with('0') {
            (&text[1..], 8)
        } else {
            (text, 10)
        };
    let plain = digits.bytes().all(|b| b.is_ascii_alphanumeric());
    plain
        .then(|| u64::from_str_radix(digits, radix).ok())
        .flatten()
}

/// The address we have on the link: a frame's source can be neither a group nor nobody.
pub(super) fn mac(text: &str) -> Result<Mac, String> {
    text.parse()
        .ok()
        .filter(|&mac: &Mac| !mac.is_multicast() && mac != Mac::ZERO)
        .ok_or_else(|| format!("Invalid MAC address: {text}"))
}

/// An address with what follows the slash, if anything does. A prefix of 0 is none.
pub(super) fn guest_address(text: &str) -> Result<(IpAddr, Option<u8>), String> {
    let (bare, prefix) = text
        .split_once('/')
        .map_or((text, None), |(a, p)| (a, Some(p)));
    let addr = unbracketed(bare)
        .parse()
        .ok()
        .filter(|&addr| is_usable(addr) && !matches!(addr, IpAddr::V6(v6) if is_link_local6(v6)))
        .ok_or_else(|| format!("Invalid guest address: {text}"))?;
    let bits = if addr.is_ipv4() { 32 } else { 128 };
    let prefix = prefix
        .map(|prefix| small(prefix).filter(|&prefix| prefix <= bits))
        .map(|prefix| prefix.ok_or_else(|| format!("Invalid prefix length: {text}")))
        .transpose()?;
    Ok((addr, prefix))
}

/// An IPv4 netmask, dotted or as a number of bits.
pub(super) fn netmask(text: &str) -> Result<u8, String> {
    let dotted = |mask: Ipv4Addr| {
        let bits = mask.to_bits();
        let ones = bits.leading_ones();
        (bits.count_ones() == ones)
            .then(|| u8::try_from(ones).ok())
            .flatten()
    };
    let bits = || u8::try_from(number(text)?).ok();
    text.parse()
        .map_or_else(|_| bits(), dotted)
        .filter(|&prefix| prefix <= 32)
        .ok_or_else(|| format!("Invalid prefix length: {text}"))
}

fn small(text: &str) -> Option<u8> {
    let plain = text.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

pub(super) fn gateway(text: &str) -> Result<IpAddr, String> {
    usable(text).ok_or_else(|| format!("Invalid gateway address: {text}"))
}

/// Loopback is fine here: then the guest is not meant to get far.
pub(super) fn outbound_address(text: &str) -> Result<IpAddr, String> {
    host_side(text).ok_or_else(|| format!("Invalid or redundant outbound address: {text}"))
}

/// Given to the guest as it is, so loopback means the guest itself.
pub(super) fn dns_server(text: &str) -> Result<IpAddr, String> {
    host_side(text).ok_or_else(|| format!("Cannot use DNS address {text}"))
}

pub(super) fn dns_forward(text: &str) -> Result<IpAddr, String> {
    usable(text).ok_or_else(|| format!("Invalid DNS forwarding address: {text}"))
}

pub(super) fn dns_host(text: &str) -> Result<IpAddr, String> {
    host_side(text).ok_or_else(|| format!("Invalid host nameserver address: {text}"))
}

pub(super) fn remapped(text: &str) -> Result<IpAddr, String> {
    usable(text).ok_or_else(|| format!("Invalid address to remap to host: {text}"))
}

/// An address a host on the guest's network could have.
fn usable(text: &str) -> Option<IpAddr> {
    text.parse().ok().filter(|&addr| is_usable(addr))
}

fn is_usable(addr: IpAddr) -> bool {
    matches!(class(addr), Class::Global | Class::LinkLocal) && !is_mapped(addr)
}

/// An address a socket of the host could have or talk to.
fn host_side(text: &str) -> Option<IpAddr> {
    text.parse().ok().filter(|&addr: &IpAddr| {
        is_usable(addr) || matches!(class(addr), Class::Loopback) && !is_mapped(addr)
    })
}

/// An IPv4 address in the clothes of an IPv6 one (RFC 4291, section 2.5.5.2).
fn is_mapped(addr: IpAddr) -> bool {
    matches!(addr, IpAddr::V6(v6) if Ipv6Addr::to_ipv4_mapped(&v6).is_some())
}

/// Ports separated by commas, each once.
pub(super) fn multicast_ports(text: &str) -> Result<Vec<u16>, String> {
    let mut ports = Vec::new();
    for item in text.split(',').filter(|_| text != "none") {
        let port = Some(item)
            .filter(|item| item.bytes().all(|b| b.is_ascii_digit()))
            .and_then(|item| item.parse().ok())
            .filter(|&port: &u16| port > 0)
            .ok_or_else(|| format!("Invalid multicast port: {item} (1 to 65535, or none)"))?;
        if !ports.contains(&port) {
            ports.push(port);
        }
    }
    if ports.len() > HEARD_MOST {
        return Err(format!(
            "Too many multicast ports: {text} (max {HEARD_MOST})"
        ));
    }
    Ok(ports)
}

pub(super) fn interface(text: &str) -> Result<String, String> {
    if (1..=INTERFACE_MAX).contains(&text.len()) {
        Ok(text.to_owned())
    } else {
        Err(format!("Invalid interface name: {text}"))
    }
}

pub(super) fn hostname(text: &str) -> Result<Option<String>, String> {
    optional_name(text).ok_or_else(|| format!("Invalid hostname: {text}"))
}

pub(super) fn fqdn(text: &str) -> Result<Option<String>, String> {
    optional_name(text).ok_or_else(|| format!("Invalid FQDN: {text}"))
}

/// The empty name is none.
fn optional_name(text: &str) -> Option<Option<String>> {
    match text {
        "" => Some(None),
        _ => name(text).map(Some),
    }
}

pub(super) fn search_domain(text: &str) -> Result<String, String> {
    name(text).ok_or_else(|| format!("Cannot use DNS search domain {text}"))
}

/// A name that can be written as DNS labels; the root's dot at its end goes.
fn name(text: &str) -> Option<String> {
    let bare = text.strip_suffix('.').unwrap_or(text);
    let label = |label: &str| {
        (1..=LABEL_MAX).contains(&label.len()) && label.bytes().all(|b| b.is_ascii_graphic())
    };
    (bare.len() <= NAME_MAX && bare.split('.').all(label)).then(|| bare.to_owned())
}

/// A user, with a group after a colon if it is not the user's own. For a number without group, the group has the same
/// number.
pub(super) fn identity(text: &str) -> Result<Identity, String> {
    let (user, group) = text
        .split_once(':')
        .map_or((text, None), |(u, g)| (u, Some(g)));
    let refused = || format!("Invalid --runas option: {text}");
    let (uid, own_gid) = match id(user) {
        Some(uid) => (uid, uid),
        None => User::from_name(user)
            .ok()
            .flatten()
            .map(|found| (found.uid.as_raw(), found.gid.as_raw()))
            .ok_or_else(refused)?,
    };
    let gid = match group {
        None => own_gid,
        Some(group) => id(group)
            .or_else(|| Some(Group::from_name(group).ok()??.gid.as_raw()))
            .ok_or_else(refused)?,
    };
    Ok(Identity { uid, gid })
}

/// A numeric user or group; all ones is the system calls' "leave as it is".
fn id(text: &str) -> Option<u32> {
    let id = u32::try_from(number(text)?).ok();
    id.filter(|&id| id != u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_with_their_radix() {
        assert_eq!(number("1500"), Some(1500));
        assert_eq!(number("0x5dC"), Some(1500));
        assert_eq!(number("010"), Some(8));
        assert_eq!(number("0"), Some(0));
        for bad in [
            "",
            "-1",
            "+1",
            " 1",
            "1 ",
            "0x",
            "08",
            "1k",
            "99999999999999999999",
        ] {
            assert_eq!(number(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_user_may_bring_a_group() {
        assert_eq!(identity("107"), Ok(Identity { uid: 107, gid: 107 }));
        assert_eq!(identity("107:5"), Ok(Identity { uid: 107, gid: 5 }));
        assert_eq!(identity("root"), Ok(Identity { uid: 0, gid: 0 }));
        assert_eq!(identity("root:7"), Ok(Identity { uid: 0, gid: 7 }));
        for bad in [
            "",
            ":5",
            "5:",
            "4294967295",
            "4294967296",
            "-1",
            "no such user",
        ] {
            assert_eq!(identity(bad), Err(format!("Invalid --runas option: {bad}")));
        }
    }
}
