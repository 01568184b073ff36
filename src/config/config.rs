//! What this run was told: complete, checked value by value, and read-only.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::RawFd,
    path::{Path, PathBuf},
};

use super::{forward::Rule, ports::Enabled, vhost::VhostFeatures};
use crate::net::{Mac, Span};

/// The longest path of a UNIX socket, in octets without the zero at its end (unix(7)).
pub const SOCKET_PATH_MAX: usize = 107;

/// The MAC address we have on the guest's link unless `--mac-addr` says otherwise.
pub const OUR_MAC: Mac = Mac([0x9a, 0x55, 0x9a, 0x55, 0x9a, 0x55]);

/// The link MTU unless `--mtu` says otherwise: the largest whose frames fit 65,535 octets and whose TCP segments are whole
/// multiples of four octets in both families.
pub const DEFAULT_MTU: u16 = 65_520;

/// What finds services: mDNS (RFC 6762), SSDP (UPnP), LLMNR (RFC 4795), WS-Discovery.
pub const MULTICAST_PORTS: [u16; 4] = [5353, 1900, 5355, 3702];

/// The most queue pairs a guest may have, and the most unless asked for: each takes most of a MiB, used or not.
pub const QUEUES_MAX: usize = 16;
pub const QUEUES_DEFAULT: usize = 4;

/// Everything the command line says.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "one switch an option, each independent"
)]
pub struct Config {
    pub link: LinkChoice,
    /// Be a vhost-user back end instead of speaking QEMU's stream protocol.
    pub vhost_user: bool,
    /// What such a back end offers to the guest's driver.
    pub vhost_features: VhostFeatures,
    /// The most queue pairs of its guest that are served; none: one for each processor, up to [`QUEUES_DEFAULT`].
    pub queues: Option<usize>,
    /// How long to look for more after there was something, before sleeping.
    pub busy_poll: Span,
    /// Where `passt-repair` finds us during a migration.
    pub repair_path: RepairPath,
    /// Quit once migrated away from (`--migrate-exit`, deprecated).
    pub migrate_exit: bool,
    /// Close the sockets of TCP connections that have migrated when the front-end leaves, not when the next one comes
    /// (`--migrate-no-linger`, deprecated).
    pub migrate_no_linger: bool,
    /// Exit when the client leaves (`--one-off`, implied by `--fd`).
    pub one_off: bool,
    pub foreground: bool,
    pub verbosity: Verbosity,
    pub log_file: Option<PathBuf>,
    /// Octets the log file may grow to.
    pub log_size: u64,
    /// The least time between two print-outs of statistics; none without.
    pub stats: Option<Span>,
    pub pid_file: Option<PathBuf>,
    pub pcap: Option<PathBuf>,
    /// Our address on the guest's link.
    pub mac: Mac,
    /// As given: `None` is the default, `Some(0)` the default but not announced.
    pub mtu: Option<u16>,
    pub v4: bool,
    pub v6: bool,
    /// The guest's addresses, where not the host's.
    pub addr4: Option<Ipv4Addr>,
    pub prefix4: Option<u8>,
    pub addr6: Option<Ipv6Addr>,
    /// The routers told to the guest, where not the host's.
    pub gateway4: Option<Ipv4Addr>,
    pub gateway6: Option<Ipv6Addr>,
    /// The interface to take addresses and routes from.
    pub interface: Option<String>,
    pub outbound: Outbound,
    /// What of the host is forwarded to the guest (`--tcp-ports`, `--udp-ports`).
    pub forwards: Vec<Rule>,
    /// Whether forwarded ports may be bound at addresses the host does not have (yet).
    pub freebind: bool,
    pub dns_servers: DnsServers,
    pub search: SearchList,
    pub dns_forward4: Option<Ipv4Addr>,
    pub dns_forward6: Option<Ipv6Addr>,
    pub dns_host4: Option<Ipv4Addr>,
    pub dns_host6: Option<Ipv6Addr>,
    pub hostname: Option<String>,
    pub fqdn: Option<String>,
    pub serve: Serve,
    /// Ports heard of every group the guest is in, and sent to of the link's own groups (`--multicast-ports`).
    pub multicast_ports: Vec<u16>,
    pub map_host_loopback4: MapChoice<Ipv4Addr>,
    pub map_host_loopback6: MapChoice<Ipv6Addr>,
    pub map_guest_addr4: Option<Ipv4Addr>,
    pub map_guest_addr6: Option<Ipv6Addr>,
    /// Whom to become after start (`--runas`).
    pub identity: Option<Identity>,
    /// Whether the guest may use no addresses but those it was given (`--strict-source`).
    pub strict_source: bool,
    /// The socket at which forwards can be changed at run time.
    pub conf_path: Option<PathBuf>,
    /// Whether not to start unless sandboxed in full.
    pub require_sandbox: bool,
    /// Whether to show how we would be sandboxed, instead of a run.
    pub print_sandbox: bool,
}

impl Config {
    /// What can be forwarded to the guest.
    pub const fn enabled(&self) -> Enabled {
        Enabled {
            v4: self.v4,
            v6: self.v6,
            tcp: self.serve.tcp,
            udp: self.serve.udp,
        }
    }

    /// Where `passt-repair` is to find us, given where the guest's socket is.
    ///
    /// # Errors
    /// A warning: it cannot, as a path that nobody chose has no room.
    pub fn repair_path(&self, socket: Option<&Path>) -> Result<Option<PathBuf>, String> {
        match (&self.repair_path, socket) {
            _ if !self.vhost_user => Ok(None),
            (RepairPath::Off, _) | (RepairPath::Default, None) => Ok(None),
            (RepairPath::At(path), _) => Ok(Some(path.clone())),
            (RepairPath::Default, Some(socket)) => {
                let mut path = socket.as_os_str().to_owned();
                path.push(".repair");
                if path.len() > SOCKET_PATH_MAX {
                    return Err(format!(
                        "passt-repair cannot connect: {} has no room for .repair behind it",
                        socket.display()
                    ));
                }
                Ok(Some(path.into()))
            }
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            link: LinkChoice::Probe,
            vhost_user: false,
            vhost_features: VhostFeatures::default(),
            queues: None,
            busy_poll: Span(0),
            repair_path: RepairPath::Default,
            migrate_exit: false,
            migrate_no_linger: false,
            one_off: false,
            foreground: false,
            verbosity: Verbosity::Info,
            log_file: None,
            log_size: 1 << 20,
            stats: None,
            pid_file: None,
            pcap: None,
            mac: OUR_MAC,
            mtu: None,
            v4: true,
            v6: true,
            addr4: None,
            prefix4: None,
            addr6: None,
            gateway4: None,
            gateway6: None,
            interface: None,
            outbound: Outbound::default(),
            forwards: Vec::new(),
            freebind: false,
            dns_servers: DnsServers::FromHost,
            search: SearchList::FromHost,
            dns_forward4: None,
            dns_forward6: None,
            dns_host4: None,
            dns_host6: None,
            hostname: None,
            fqdn: None,
            serve: Serve::default(),
            multicast_ports: MULTICAST_PORTS.to_vec(),
            map_host_loopback4: MapChoice::Default,
            map_host_loopback6: MapChoice::Default,
            map_guest_addr4: None,
            map_guest_addr6: None,
            identity: None,
            strict_source: false,
            conf_path: None,
            require_sandbox: false,
            print_sandbox: false,
        }
    }
}

/// How the guest reaches us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkChoice {
    /// Listen at the first free of `/tmp/passt_1.socket` to `/tmp/passt_64.socket`.
    Probe,
    /// Listen at this path.
    Socket(PathBuf),
    /// Use this inherited, connected socket.
    Fd(RawFd),
}

/// Where `passt-repair` connects to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RepairPath {
    /// The path of our socket with `.repair` at its end.
    Default,
    Off,
    At(PathBuf),
}

/// How much is logged, least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    Quiet,
    Info,
    Debug,
    Trace,
}

/// Where outbound sockets are bound.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outbound {
    pub addr4: Option<Ipv4Addr>,
    pub addr6: Option<Ipv6Addr>,
    pub interface4: Option<String>,
    pub interface6: Option<String>,
}

/// The nameservers announced to the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DnsServers {
    FromHost,
    /// `--dns none` gives the empty list. One that names servers of one family leaves the other to the host.
    Given(Vec<IpAddr>),
}

impl DnsServers {
    /// Those of the family whose addresses `of` returns; none if they are the host's.
    pub fn given<A>(&self, of: impl Fn(IpAddr) -> Option<A>) -> Option<Vec<A>> {
        let Self::Given(servers) = self else {
            return None;
        };
        let family: Vec<A> = servers.iter().copied().filter_map(of).collect();
        (servers.is_empty() || !family.is_empty()).then_some(family)
    }
}

/// The search domains announced to the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SearchList {
    FromHost,
    /// `--search none` gives the empty list.
    Given(Vec<String>),
}

/// An address mapping that has a default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MapChoice<A> {
    Default,
    Off,
    To(A),
}

/// What is served at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "one switch an option, each independent"
)]
pub struct Serve {
    pub tcp: bool,
    pub udp: bool,
    pub icmp: bool,
    /// Multicast and broadcast, besides what services answer.
    pub multicast: bool,
    pub dhcp: bool,
    pub ndp: bool,
    pub dhcpv6: bool,
    pub ra: bool,
    /// Whether DHCP, DHCPv6 and RA announce nameservers.
    pub dhcp_dns: bool,
    /// Whether they announce search domains.
    pub dhcp_search: bool,
}

impl Default for Serve {
    fn default() -> Self {
        Self {
            tcp: true,
            udp: true,
            icmp: true,
            multicast: true,
            dhcp: true,
            ndp: true,
            dhcpv6: true,
            ra: true,
            dhcp_dns: true,
            dhcp_search: true,
        }
    }
}

/// A user and group to run as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
}
