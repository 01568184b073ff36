//! Listens at the host's ports that are forwarded to the guest: a bound socket a port, for both families where it can be.

mod change;

use change::Before;
use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
};

use nix::{
    net::if_::if_nametoindex,
    sys::socket::{
        setsockopt,
        sockopt::{Ipv4PacketInfo, Ipv6RecvPacketInfo},
    },
};
use socket2::{Domain, SockAddr, Socket, Type};

use super::{group::keep_to_members, socket::prepare_tcp};
use crate::{
    config::Rule,
    net::Protocol,
    proto::tcp::SynRetries,
    sys::{is_shortage, reason, sockopt},
};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// What listening needs to know besides the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// The families served.
    pub v4: bool,
    pub v6: bool,
    /// Whether addresses may be bound that the host does not have (IP_FREEBIND, ip(7)).
    pub freebind: bool,
    /// The most sockets that rules of best effort may open, so that descriptors are left for flows.
    pub most: usize,
}

/// The forwarded ports.
#[derive(Debug, Default)]
pub struct Ports {
    rules: Vec<Rule>,
    /// The index of each rule's interface, 0 for those of all interfaces.
    indexes: Vec<u32>,
    /// Whether ports of each rule could not be had when its interface returned.
    incomplete: Vec<bool>,
    ports: Vec<Port>,
    /// How many of them have sockets, or will when their interface is complete again.
    open: usize,
    /// The UDP ports, in order, and their places.
    udp: Vec<(u16, u32)>,
    options: Options,
}

/// One forwarded port.
#[derive(Debug)]
struct Port {
    /// None while its interface has returned and the port could not be had yet, and where it is not forwarded any more.
    socket: Option<OwnedFd>,
    port: u16,
    /// [`NO_RULE`] where it is not forwarded any more.
    rule: u16,
    protocol: Protocol,
    /// Whether it waits for its turn.
    queued: bool,
}

/// No rule has this number.
const NO_RULE: u16 = u16::MAX;

/// What stands behind a forwarded port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    pub protocol: Protocol,
    /// The host's port, and the guest's.
    pub host: u16,
    pub guest: u16,
    /// The guest's address, where the rule names one.
    pub target: Option<IpAddr>,
}

/// The sockets one rule wants for each of its ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum At {
    /// Every address of both families, by one socket.
    Both,
    One(IpAddr),
}

impl Ports {
    /// Opens what the rules ask for: first the ports that must be had, then of the others as many as fit, lowest first. The
    /// second value is a warning for the log.
    ///
    /// # Errors
    /// One line: a port that must be had cannot be bound, or nothing of a rule can.
    pub fn open(rules: &[Rule], options: Options) -> Result<(Self, Option<String>), String> {
        let indexes = rules.iter().map(index_of).collect();
        let mut ports = Self::of(rules, indexes, options);
        let warning = ports.open_all(&mut Before::default())?;
        Ok((ports, warning))
    }

    /// None of their ports is open yet.
    fn of(rules: &[Rule], indexes: Vec<u32>, options: Options) -> Self {
        Self {
            rules: rules.to_vec(),
            indexes,
            incomplete: vec![false; rules.len()],
            ports: Vec::new(),
            open: 0,
            udp: Vec::new(),
            options,
        }
    }

    /// Opens what is not there from `before`.
    fn open_all(&mut self, before: &mut Before) -> Result<Option<String>, String> {
        for index in 0..self.rules.len() {
            let named = |rule: &&Rule| !rule.best_effort;
            let Some(rule) = self.rules.get(index).filter(named).cloned() else {
                continue;
            };
            for port in rule.first..=rule.last {
                self.listen(index, port, before)
                    .map_err(|error| refusal(&rule, port, unprivileged_port_start(), &error))?;
            }
        }
        let warning = self.open_what_fits(before)?;
        self.ports.shrink_to_fit();
        self.udp = self.udp_places();
        Ok(warning)
    }

    fn udp_places(&self) -> Vec<(u16, u32)> {
        let of_port = |(place, port): (u32, &Port)| {
            let rule = self.rules.get(usize::from(port.rule))?;
            (rule.protocol == Protocol::Udp).then_some((port.port, place))
        };
        let mut places: Vec<_> = (0..).zip(&self.ports).filter_map(of_port).collect();
        places.sort_unstable();
        places
    }

    fn open_what_fits(&mut self, before: &mut Before) -> Result<Option<String>, String> {
        let wanted: Vec<(usize, Rule)> = self
            .rules
            .iter()
            .cloned()
            .enumerate()
            .filter(|(_, rule)| rule.best_effort)
            .collect();
        let (Some(first), Some(last)) = (
            wanted.iter().map(|(_, rule)| rule.first).min(),
            wanted.iter().map(|(_, rule)| rule.last).max(),
        ) else {
            return Ok(None);
        };
        let mut opened: Vec<(&str, bool)> = Vec::new();
        let mut end = None;
        'ports: for port in first..=last {
            for (index, rule) in &wanted {
                if !(rule.first..=rule.last).contains(&port) {
                    continue;
                }
                match self.listen(*index, port, before) {
                    Err(error) if is_shortage(&error) => {
                        end = Some((port, error));
                        break 'ports;
                    }
                    bound => note(&mut opened, &rule.option, bound.is_ok()),
                }
            }
        }
        if let Some((port, error)) = end {
            if self.is_empty() {
                let why = reason(&error);
                return Ok(Some(format!("No ports are forwarded: {why}")));
            }
            return Ok(Some(format!(
                "Forwarding ports below {port} only, {} sockets in all: {}",
                self.open,
                reason(&error)
            )));
        }
        match opened.iter().find(|(_, any)| !any) {
            Some((option, _)) => Err(format!("Failed to bind any port for '{option}'")),
            None => Ok(None),
        }
    }

    /// Opens the socket of one port of a rule, if it is not there from `before`.
    fn listen(&mut self, index: usize, port: u16, before: &mut Before) -> io::Result<()> {
        let Some(rule) = self.rules.get(index) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        if before.has(index, port) {
            return Ok(());
        }
        if rule.best_effort && self.open >= self.options.most {
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        let protocol = rule.protocol;
        before.make_way(protocol, port);
        let shares = before.shares(protocol, port);
        let socket = match self.socket(index, port, shares) {
            Err(error) if is_shortage(&error) && before.close_unwanted() => {
                self.socket(index, port, shares)?
            }
            opened => opened?,
        };
        let opened = Port {
            socket: Some(socket.into()),
            port,
            rule: index as u16,
            protocol,
            queued: false,
        };
        self.open += 1;
        before.enter(&mut self.ports, opened);
        Ok(())
    }

    /// `shares` is whether flows of ours have the port already.
    fn socket(&self, index: usize, port: u16, shares: bool) -> io::Result<Socket> {
        let (Some(rule), Some(&scope)) = (self.rules.get(index), self.indexes.get(index)) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let options = self.options;
        let at = match rule.addr {
            Some(addr) => At::One(addr),
            None if options.v4 && options.v6 => At::Both,
            None if options.v6 => At::One(Ipv6Addr::UNSPECIFIED.into()),
            None => At::One(Ipv4Addr::UNSPECIFIED.into()),
        };
        let how = How {
            port,
            scope,
            freebind: options.freebind,
            shares,
        };
        match open(rule, at, how) {
            // A host without IPv6.
            Err(error)
                if at == At::Both
                    && matches!(
                        error.raw_os_error(),
                        Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)
                    ) =>
            {
                open(rule, At::One(Ipv4Addr::UNSPECIFIED.into()), how)
            }
            opened => opened,
        }
    }

    /// Every socket with its place.
    pub fn sockets(&self) -> impl Iterator<Item = (u32, RawFd)> + '_ {
        let socket = |(place, port): (u32, &Port)| Some((place, port.socket.as_ref()?.as_raw_fd()));
        (0..).zip(&self.ports).filter_map(socket)
    }

    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// How many ports are forwarded.
    pub const fn len(&self) -> usize {
        self.open
    }

    pub const fn is_empty(&self) -> bool {
        self.open == 0
    }

    /// The socket at a place, and what it forwards to.
    pub fn get(&self, place: u32) -> Option<(&OwnedFd, Forward)> {
        let port = self.ports.get(place as usize)?;
        let rule = self.rules.get(usize::from(port.rule))?;
        Some((
            port.socket.as_ref()?,
            Forward {
                protocol: rule.protocol,
                host: port.port,
                guest: rule.map.guest(port.port),
                target: rule.target,
            },
        ))
    }

    /// The places that take datagrams for a port of the host, each with its rule.
    fn udp_at(&self, port: u16) -> impl Iterator<Item = (u32, &Rule)> {
        let start = self.udp.partition_point(|&(other, _)| other < port);
        let from = self.udp.get(start..).unwrap_or_default();
        from.iter()
            .take_while(move |&&(other, _)| other == port)
            .filter_map(|&(_, place)| {
                let rule = usize::from(self.ports.get(place as usize)?.rule);
                Some((place, self.rules.get(rule)?))
            })
    }

    /// Whether any place does.
    pub fn takes_udp(&self, port: u16) -> bool {
        self.udp_at(port).next().is_some()
    }

    /// The place that takes datagrams for this address of the host, those that listen on one interface included or not.
    pub fn udp_place(&self, to: SocketAddr, interfaces: bool) -> Option<u32> {
        let of = |wanted: Option<IpAddr>| {
            self.udp_at(to.port())
                .filter(|(_, rule)| interfaces || rule.interface.is_none())
                .find(|(_, rule)| rule.addr == wanted)
                .map(|(place, _)| place)
        };
        let any = match to {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        of(Some(to.ip()))
            .or_else(|| of(Some(any)))
            .or_else(|| of(None))
    }

    /// Notes that a port waits for its turn; `false` if it does already.
    pub fn queue(&mut self, place: u32) -> bool {
        self.ports
            .get_mut(place as usize)
            .is_some_and(|port| !std::mem::replace(&mut port.queued, true))
    }

    /// Notes that a port has had its turn.
    pub fn unqueue(&mut self, place: u32) {
        if let Some(port) = self.ports.get_mut(place as usize) {
            port.queued = false;
        }
    }

    /// The interface that the socket at a place listens at, where not all.
    pub fn interface(&self, place: u32) -> Option<&str> {
        let rule = usize::from(self.ports.get(place as usize)?.rule);
        self.rules.get(rule)?.interface.as_deref()
    }

    /// Whether flows may be bound to addresses the host does not have.
    pub const fn freebind(&self) -> bool {
        self.options.freebind
    }
}

fn note<'a>(opened: &mut Vec<(&'a str, bool)>, option: &'a str, bound: bool) {
    match opened.iter_mut().find(|(seen, _)| *seen == option) {
        Some((_, any)) => *any |= bound,
        None => opened.push((option, bound)),
    }
}

/// How a port is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct How {
    port: u16,
    /// The index of its interface.
    scope: u32,
    freebind: bool,
    shares: bool,
}

fn open(rule: &Rule, at: At, how: How) -> io::Result<Socket> {
    let How {
        port,
        scope,
        freebind,
        shares,
    } = how;
    let (domain, addr) = match at {
        At::Both => (Domain::IPV6, IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
        At::One(addr @ IpAddr::V4(_)) => (Domain::IPV4, addr),
        At::One(addr @ IpAddr::V6(_)) => (Domain::IPV6, addr),
    };
    let tcp = rule.protocol == Protocol::Tcp;
    let kind = if tcp { Type::STREAM } else { Type::DGRAM };
    let socket = Socket::new(domain, kind.nonblocking().cloexec(), None)?;
    if domain == Domain::IPV6 {
        socket.set_only_v6(at != At::Both)?;
    }
    if freebind {
        let freebind = |v6| {
            if v6 {
                socket.set_freebind_v6(true)
            } else {
                socket.set_freebind_v4(true)
            }
        };
        freebind(domain == Domain::IPV6)?;
    }
    if let Some(name) = &rule.interface {
        socket.bind_device(Some(name.as_bytes()))?;
    }
    // A TCP port rests for a minute after its last connection. A UDP port would go to whoever bound it last.
    socket.set_reuse_address(tcp || shares)?;
    socket.bind(&SockAddr::from(address(addr, port, scope)))?;
    if tcp {
        prepare_tcp(&socket)?;
        socket.listen(BACKLOG)?;
    } else {
        // Now that the port is ours: each client gets a socket of its own there.
        socket.set_reuse_address(true)?;
        if at == At::Both || domain == Domain::IPV4 {
            setsockopt(&socket, Ipv4PacketInfo, &true)?;
            keep_to_members(&socket, false)?;
            sockopt::set_receive_marks(socket.as_fd(), false)?;
        }
        if domain == Domain::IPV6 {
            setsockopt(&socket, Ipv6RecvPacketInfo, &true)?;
            keep_to_members(&socket, true)?;
            sockopt::set_receive_marks(socket.as_fd(), true)?;
        }
    }
    Ok(socket)
}

/// Link-local addresses are of an interface.
fn address(addr: IpAddr, port: u16, scope: u32) -> SocketAddr {
    match addr {
        IpAddr::V6(v6) if crate::net::is_link_local6(v6) => {
            SocketAddr::V6(SocketAddrV6::new(v6, port, 0, scope))
        }
        addr => SocketAddr::new(addr, port),
    }
}

fn index_of(rule: &Rule) -> u32 {
    let name = rule.interface.as_deref();
    name.and_then(|name| if_nametoindex(name).ok()).unwrap_or(0)
}

/// Why a port that must be had cannot be, and what helps. Everybody may bind ports from `unprivileged` on.
fn refusal(rule: &Rule, port: u16, unprivileged: u16, error: &io::Error) -> String {
    if is_shortage(error) {
        return format!(
            "Can't open enough sockets for '{}': {}",
            rule.option,
            reason(error)
        );
    }
    let failed = format!(
        "Failed to bind port {port} ({}) for option '{}'",
        reason(error),
        rule.option
    );
    if error.kind() != io::ErrorKind::PermissionDenied || port >= unprivileged {
        return failed;
    }
    format!(
        "{failed}: ports below {unprivileged} take CAP_NET_BIND_SERVICE, or sysctl net.ipv4.ip_unprivileged_port_start={port}"
    )
}

/// The first port that everybody may bind (ip(7)).
fn unprivileged_port_start() -> u16 {
    fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(1024)
}

/// How often this kernel repeats its own SYN (tcp_syn_retries, tcp(7)), which is how often ours to the guest is.
pub fn syn_retries() -> SynRetries {
    let read = |name: &str| {
        let text = fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).ok()?;
        text.trim().parse().ok()
    };
    let default = SynRetries::default();
    SynRetries {
        // Kernels before 6.5 double from the start.
        linear: read("tcp_syn_linear_timeouts").unwrap_or(0),
        doubling: read("tcp_syn_retries").unwrap_or(default.doubling),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{host::socket::accept, net::PortMap};
    use socket2::SockRef;
    use std::net::TcpStream;

    fn rule(protocol: Protocol, addr: Option<IpAddr>, port: u16) -> Rule {
        Rule {
            protocol,
            addr,
            interface: None,
            first: port,
            last: port,
            map: PortMap::default(),
            target: None,
            best_effort: false,
            option: format!("-t {port}"),
        }
    }

    #[test]
    fn accepted_connections_have_what_the_listening_socket_was_told() {
        let how = How {
            port: 0,
            scope: 0,
            freebind: false,
            shares: false,
        };
        let at = At::One(Ipv4Addr::LOCALHOST.into());
        let listener = open(&rule(Protocol::Tcp, None, 0), at, how).unwrap();
        let port = listener.local_addr().unwrap().as_socket().unwrap();
        let _peer = TcpStream::connect(port).unwrap();
        let (socket, _) = accept(&listener).unwrap();
        let options = SockRef::from(&socket);
        assert!(options.out_of_band_inline().unwrap());
        assert_eq!(options.tcp_notsent_lowat().unwrap(), u32::MAX);
    }

    /// Policies of other kinds refuse ports too, and nothing about low ports helps there.
    #[test]
    fn low_ports_are_told_of_where_the_port_is_low() {
        let rule = |port| rule(Protocol::Tcp, None, port);
        let refused = io::Error::from_raw_os_error(libc::EACCES);
        assert_eq!(
            refusal(&rule(8080), 8080, 1024, &refused),
            "Failed to bind port 8080 (Permission denied) for option '-t 8080'"
        );
        let low = refusal(&rule(1023), 1023, 1024, &refused);
        assert!(low.ends_with(
            "ports below 1024 take CAP_NET_BIND_SERVICE, or sysctl net.ipv4.ip_unprivileged_port_start=1023"
        ));
    }

    #[test]
    fn a_port_of_all_addresses_of_a_family_takes_datagrams_for_each() {
        let any = [
            Ipv4Addr::UNSPECIFIED.into(),
            Ipv6Addr::UNSPECIFIED.into(),
            Ipv4Addr::LOCALHOST.into(),
        ];
        let port = |rule| Port {
            socket: None,
            port: 4000,
            rule,
            protocol: Protocol::Udp,
            queued: false,
        };
        let mut ports = Ports {
            rules: any.map(|addr| rule(Protocol::Udp, Some(addr), 4000)).into(),
            ports: (0..3).map(port).collect(),
            ..Ports::default()
        };
        ports.udp = ports.udp_places();
        let place = |addr: IpAddr| ports.udp_place((addr, 4000).into(), false);
        assert_eq!(place([192, 0, 2, 1].into()), Some(0));
        assert_eq!(place(Ipv6Addr::LOCALHOST.into()), Some(1));
        assert_eq!(place(Ipv4Addr::LOCALHOST.into()), Some(2));
    }
}
