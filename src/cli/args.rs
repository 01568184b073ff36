//! The options, as a table: how each is spelled, what it takes, what it does to the configuration, and its line of help.
//!
//! They are applied in the order of the command line, so the last one wins by itself.

use std::{ffi::OsStr, net::IpAddr, ops::RangeInclusive, path::Path};

use super::values;
use crate::{
    config::{Config, DnsServers, Enabled, Forwards, LinkChoice, MapChoice, SearchList, Verbosity},
    host::ephemeral_ports,
    net::Protocol,
};

/// The configuration while the command line is read.
#[derive(Debug, Default)]
pub(super) struct Draft {
    config: Config,
    warnings: Vec<String>,
    show: Option<Show>,
    /// `--netmask`, and whether an address brought its own prefix length.
    netmask: Option<u8>,
    own_prefix: [bool; 2],
    no_map_gw: bool,
    forwards: Forwards,
    /// The host's ephemeral ports, once needed.
    ephemeral: Option<RangeInclusive<u16>>,
}

/// What is wanted instead of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Show {
    Help,
    Version,
}

/// One option.
pub(super) struct Opt {
    pub(super) long: &'static str,
    pub(super) alias: Option<&'static str>,
    pub(super) short: Option<char>,
    pub(super) take: Take,
    pub(super) help: &'static str,
}

/// What an option takes, with what it does.
pub(super) enum Take {
    Nothing(fn(&mut Draft)),
    /// The name of the value in the help text first.
    Path(&'static str, fn(&mut Draft, &Path) -> Result<(), String>),
    Text(&'static str, fn(&mut Draft, &str) -> Result<(), String>),
}

impl Opt {
    /// Does what the option says.
    ///
    /// # Errors
    /// One line for a person: the value is no good.
    pub(super) fn apply(&self, draft: &mut Draft, value: Option<&OsStr>) -> Result<(), String> {
        let value = value.unwrap_or_default();
        match self.take {
            Take::Nothing(set) => {
                set(draft);
                Ok(())
            }
            Take::Path(_, set) => set(draft, Path::new(value)),
            // What is no UTF-8 is no valid value of these either, and is refused with a question mark in the message.
            Take::Text(_, set) => set(draft, &value.to_string_lossy()),
        }
    }
}

impl Draft {
    pub(super) const fn show(&self) -> Option<Show> {
        self.show
    }

    /// The configuration with its warnings, once all options are applied.
    ///
    /// # Errors
    /// One line for a person: two options contradict each other.
    pub(super) fn finish(mut self) -> Result<(Config, Vec<String>), String> {
        if let Some(prefix) = self.netmask {
            if self.own_prefix.contains(&true) {
                return Err("Redundant prefix length specification".to_owned());
            }
            self.config.prefix4 = Some(prefix);
        }
        self.config.prefix4 = self.config.prefix4.filter(|&prefix| prefix > 0);
        if matches!(self.config.link, LinkChoice::Fd(_)) {
            self.config.one_off = true;
        }
        if self.no_map_gw {
            off_by_default(&mut self.config.map_host_loopback4);
            off_by_default(&mut self.config.map_host_loopback6);
        }
        let config = &mut self.config;
        let enabled = Enabled {
            v4: config.v4,
            v6: config.v6,
            tcp: config.serve.tcp,
            udp: config.serve.udp,
        };
        let (rules, warnings) = self.forwards.finish(enabled)?;
        config.forwards = rules;
        self.warnings.extend(warnings);
        Ok((self.config, self.warnings))
    }

    fn forward(&mut self, protocol: Protocol, text: &str) -> Result<(), String> {
        let ephemeral = self.ephemeral.get_or_insert_with(ephemeral_ports);
        self.forwards.add(protocol, text, ephemeral)
    }

    fn address(&mut self, text: &str) -> Result<(), String> {
        let (addr, prefix) = values::guest_address(text)?;
        let config = &mut self.config;
        match addr {
            IpAddr::V4(v4) => (config.addr4, config.prefix4) = (Some(v4), prefix),
            IpAddr::V6(v6) => config.addr6 = Some(v6),
        }
        self.own_prefix[usize::from(addr.is_ipv6())] = prefix.is_some();
        Ok(())
    }

    fn dns(&mut self, text: &str) -> Result<(), String> {
        let servers = &mut self.config.dns_servers;
        if matches!(text, "" | "none") {
            *servers = DnsServers::Given(Vec::new());
            return Ok(());
        }
        let server = values::dns_server(text)?;
        match servers {
            DnsServers::Given(list) => list.push(server),
            DnsServers::FromHost => *servers = DnsServers::Given(vec![server]),
        }
        Ok(())
    }

    fn search(&mut self, text: &str) -> Result<(), String> {
        let mut domains = match &mut self.config.search {
            SearchList::Given(domains) => std::mem::take(domains),
            SearchList::FromHost => Vec::new(),
        };
        if matches!(text, "" | "none") {
            domains.clear();
        } else {
            for domain in text.split_whitespace() {
                if domains.len() == SEARCH_MAX {
                    return Err(format!("Cannot use DNS search domain {domain}"));
                }
                domains.push(values::search_domain(domain)?);
            }
        }
        self.config.search = SearchList::Given(domains);
        Ok(())
    }

    fn map_host_loopback(&mut self, text: &str) -> Result<(), String> {
        let config = &mut self.config;
        if text == "none" {
            config.map_host_loopback4 = MapChoice::Off;
            config.map_host_loopback6 = MapChoice::Off;
            return Ok(());
        }
        match values::remapped(text)? {
            IpAddr::V4(v4) => config.map_host_loopback4 = MapChoice::To(v4),
            IpAddr::V6(v6) => config.map_host_loopback6 = MapChoice::To(v6),
        }
        Ok(())
    }

    fn map_guest_addr(&mut self, text: &str) -> Result<(), String> {
        let config = &mut self.config;
        if text == "none" {
            (config.map_guest_addr4, config.map_guest_addr6) = (None, None);
            return Ok(());
        }
        match values::remapped(text)? {
            IpAddr::V4(v4) => config.map_guest_addr4 = Some(v4),
            IpAddr::V6(v6) => config.map_guest_addr6 = Some(v6),
        }
        Ok(())
    }
}

/// Most search domains that may be given.
const SEARCH_MAX: usize = 6;

fn off_by_default<A>(choice: &mut MapChoice<A>) {
    if matches!(choice, MapChoice::Default) {
        *choice = MapChoice::Off;
    }
}

const fn flag(
    long: &'static str,
    short: Option<char>,
    set: fn(&mut Draft),
    help: &'static str,
) -> Opt {
    Opt {
        long,
        alias: None,
        short,
        take: Take::Nothing(set),
        help,
    }
}

const fn path(
    long: &'static str,
    short: Option<char>,
    value: &'static str,
    set: fn(&mut Draft, &Path) -> Result<(), String>,
    help: &'static str,
) -> Opt {
    Opt {
        long,
        alias: None,
        short,
        take: Take::Path(value, set),
        help,
    }
}

const fn text(
    long: &'static str,
    short: Option<char>,
    value: &'static str,
    set: fn(&mut Draft, &str) -> Result<(), String>,
    help: &'static str,
) -> Opt {
    Opt {
        long,
        alias: None,
        short,
        take: Take::Text(value, set),
        help,
    }
}

/// Sets the field of the address's family.
macro_rules! per_family {
    ($check:path, $($v4:ident).+, $($v6:ident).+) => {
        |draft, text| {
            match $check(text)? {
                IpAddr::V4(v4) => draft.config.$($v4).+ = Some(v4),
                IpAddr::V6(v6) => draft.config.$($v6).+ = Some(v6),
            }
            Ok(())
        }
    };
}

/// Sets a field to what the check makes of the text.
macro_rules! set {
    ($check:path, $($field:ident).+) => {
        |draft, text| {
            draft.config.$($field).+ = $check(text)?.into();
            Ok(())
        }
    };
}

/// Sets a field to the path.
macro_rules! set_path {
    ($field:ident) => {
        |draft, path| {
            draft.config.$field = Some(path.to_owned());
            Ok(())
        }
    };
}

/// Switches a service off.
macro_rules! switch_off {
    ($field:ident) => {
        |draft| draft.config.serve.$field = false
    };
}

/// Every option, in the order of the help text.
pub(super) const OPTIONS: &[Opt] = &[
    Opt {
        alias: Some("socket-path"),
        ..path(
            "socket",
            Some('s'),
            "PATH",
            |draft, path| {
                draft.config.link = LinkChoice::Socket(values::socket_path(path)?);
                Ok(())
            },
            "Listen on this UNIX domain socket (default: first free of /tmp/passt_1.socket to _64)",
        )
    },
    text(
        "fd",
        Some('F'),
        "FD",
        |draft, text| {
            draft.config.link = LinkChoice::Fd(values::descriptor(text)?);
            Ok(())
        },
        "Use this inherited, connected socket; implies --one-off",
    ),
    flag(
        "one-off",
        Some('1'),
        |draft| draft.config.one_off = true,
        "Quit when the first client leaves",
    ),
    flag(
        "foreground",
        Some('f'),
        |draft| draft.config.foreground = true,
        "Stay in the foreground",
    ),
    flag(
        "debug",
        Some('d'),
        |draft| {
            let verbosity = &mut draft.config.verbosity;
            *verbosity = (*verbosity).max(Verbosity::Debug);
        },
        "Say what happens, on standard error and not in the system log",
    ),
    flag(
        "trace",
        None,
        |draft| draft.config.verbosity = Verbosity::Trace,
        "Say even more; implies --debug",
    ),
    flag(
        "quiet",
        Some('q'),
        |draft| draft.config.verbosity = Verbosity::Quiet,
        "Say nothing but warnings and errors",
    ),
    path(
        "log-file",
        Some('l'),
        "PATH",
        set_path!(log_file),
        "Log to this file and not to the system log",
    ),
    text(
        "log-size",
        None,
        "BYTES",
        set!(values::log_size, log_size),
        "Largest size of the log file (default: 1048576)",
    ),
    path(
        "pid",
        Some('P'),
        "FILE",
        set_path!(pid_file),
        "Write the process ID to this file",
    ),
    path(
        "pcap",
        Some('p'),
        "FILE",
        set_path!(pcap),
        "Capture the guest's traffic to this file",
    ),
    text(
        "runas",
        None,
        "UID[:GID]",
        set!(values::identity, identity),
        "Run as this user and group, by number or name (default when root: nobody)",
    ),
    flag(
        "stderr",
        Some('e'),
        |draft| {
            let dropped = "--stderr will be dropped soon".to_owned();
            if !draft.warnings.contains(&dropped) {
                draft.warnings.push(dropped);
            }
        },
        "Has no effect (deprecated)",
    ),
    text(
        "mtu",
        Some('m'),
        "MTU",
        set!(values::mtu, mtu),
        "MTU told to the guest, 0 for none (default: 65520)",
    ),
    text(
        "address",
        Some('a'),
        "ADDR[/LEN]",
        Draft::address,
        "Address of the guest, once per family (default: the host's)",
    ),
    text(
        "netmask",
        Some('n'),
        "MASK",
        |draft, text| {
            draft.netmask = Some(values::netmask(text)?);
            Ok(())
        },
        "IPv4 netmask, dotted or in bits (default: the host's)",
    ),
    text(
        "mac-addr",
        Some('M'),
        "MAC",
        set!(values::mac, mac),
        "Our MAC address (default: 9a:55:9a:55:9a:55)",
    ),
    text(
        "gateway",
        Some('g'),
        "ADDR",
        per_family!(values::gateway, gateway4, gateway6),
        "Router told to the guest, once per family (default: the host's)",
    ),
    text(
        "interface",
        Some('i'),
        "NAME",
        |draft, text| {
            draft.config.interface = Some(text.to_owned());
            Ok(())
        },
        "Take addresses and routes from this interface (default: the one of the default route)",
    ),
    text(
        "outbound",
        Some('o'),
        "ADDR",
        per_family!(values::outbound_address, outbound.addr4, outbound.addr6),
        "Bind outbound sockets to this address, once per family",
    ),
    text(
        "outbound-if4",
        None,
        "NAME",
        set!(values::interface, outbound.interface4),
        "Bind outbound IPv4 sockets to this interface",
    ),
    text(
        "outbound-if6",
        None,
        "NAME",
        set!(values::interface, outbound.interface6),
        "Bind outbound IPv6 sockets to this interface",
    ),
    text(
        "tcp-ports",
        Some('t'),
        "SPEC",
        |draft, text| draft.forward(Protocol::Tcp, text),
        "Forward these TCP ports of the host to the guest, repeatable: none, all or a list (default: none)",
    ),
    text(
        "udp-ports",
        Some('u'),
        "SPEC",
        |draft, text| draft.forward(Protocol::Udp, text),
        "Forward these UDP ports of the host to the guest, like --tcp-ports",
    ),
    flag(
        "freebind",
        None,
        |draft| draft.config.freebind = true,
        "Forward ports of addresses the host may get later, too",
    ),
    text(
        "dns",
        Some('D'),
        "ADDR",
        Draft::dns,
        "Nameserver told to the guest, repeatable; 'none' for none (default: the host's)",
    ),
    text(
        "search",
        Some('S'),
        "LIST",
        Draft::search,
        "Search domains told to the guest, separated by blanks; 'none' for none (default: the host's)",
    ),
    text(
        "hostname",
        Some('H'),
        "NAME",
        set!(values::hostname, hostname),
        "Host name told to the guest",
    ),
    text(
        "fqdn",
        None,
        "NAME",
        set!(values::fqdn, fqdn),
        "Fully qualified domain name told to the guest",
    ),
    text(
        "dns-forward",
        None,
        "ADDR",
        per_family!(values::dns_forward, dns_forward4, dns_forward6),
        "Forward the guest's queries to this address to the nameserver of --dns-host",
    ),
    text(
        "dns-host",
        None,
        "ADDR",
        per_family!(values::dns_host, dns_host4, dns_host6),
        "Nameserver for forwarded queries (default: the host's first)",
    ),
    flag("no-tcp", None, switch_off!(tcp), "Do not carry TCP"),
    flag("no-udp", None, switch_off!(udp), "Do not carry UDP"),
    flag(
        "no-icmp",
        None,
        |draft| {
            draft.config.serve.icmp = false;
            draft.config.serve.ndp = false;
        },
        "Do not carry ICMP and ICMPv6; implies --no-ndp",
    ),
    flag("no-dhcp", None, switch_off!(dhcp), "No DHCP server"),
    flag("no-ndp", None, switch_off!(ndp), "No neighbour discovery"),
    flag("no-dhcpv6", None, switch_off!(dhcpv6), "No DHCPv6 server"),
    flag("no-ra", None, switch_off!(ra), "No router advertisements"),
    flag(
        "no-dhcp-dns",
        None,
        switch_off!(dhcp_dns),
        "Tell the guest no nameservers",
    ),
    flag(
        "no-dhcp-search",
        None,
        switch_off!(dhcp_search),
        "Tell the guest no search domains",
    ),
    flag(
        "no-map-gw",
        None,
        |draft| draft.no_map_gw = true,
        "Do not let the router's address stand for the host",
    ),
    text(
        "map-host-loopback",
        None,
        "ADDR",
        Draft::map_host_loopback,
        "Address that stands for the host's loopback; 'none' for none (default: the router's)",
    ),
    text(
        "map-guest-addr",
        None,
        "ADDR",
        Draft::map_guest_addr,
        "Address that stands for the host at the guest's own address; 'none' for none (default: none)",
    ),
    flag(
        "ipv4-only",
        Some('4'),
        |draft| (draft.config.v4, draft.config.v6) = (true, false),
        "IPv4 only",
    ),
    flag(
        "ipv6-only",
        Some('6'),
        |draft| (draft.config.v4, draft.config.v6) = (false, true),
        "IPv6 only",
    ),
    flag(
        "version",
        None,
        |draft| draft.show = Some(Show::Version),
        "Show the version and quit",
    ),
    flag(
        "help",
        Some('h'),
        |draft| draft.show = Some(Show::Help),
        "Show this help and quit",
    ),
];
