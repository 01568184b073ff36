//! The table of options.

use std::net::IpAddr;

use super::{
    draft::{Draft, Show},
    opt::{Opt, flag, pasta, path, text},
    values,
};
use crate::{
    config::{LinkChoice, Verbosity, VhostFeatures},
    net::Protocol,
};

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

/// Sets a switch.
macro_rules! switch_on {
    ($field:ident) => {
        |draft| draft.config.$field = true
    };
}

/// Switches a service off.
macro_rules! switch_off {
    ($field:ident) => {
        |draft| draft.config.serve.$field = false
    };
}

/// Options upstream does not have; they make no abbreviation of its options ambiguous.
pub(super) const OURS: &[&str] = &[
    "vhost-features",
    "require-sandbox",
    "print-sandbox",
    "no-multicast",
    "multicast-ports",
    "strict-source",
    "queues",
    "busy-poll",
];

/// Every option, in the order of the help text, which leaves out those of pasta.
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
        "vhost-user",
        None,
        switch_on!(vhost_user),
        "Be a vhost-user back end at the socket",
    ),
    text(
        "vhost-features",
        None,
        "LIST",
        |draft, text| {
            draft.config.vhost_features =
                VhostFeatures::parse(text).map_err(|word| match word {
                    "all" | "none" => format!("Vhost-user feature {word} stands alone"),
                    _ => format!("Invalid vhost-user feature: {word}"),
                })?;
            Ok(())
        },
        "Offer these virtio features only, or all but those behind a ~ (default: all)",
    ),
    text(
        "queues",
        None,
        "NUM",
        set!(values::queues, queues),
        "Serve up to this many queue pairs, 1 to 16, each by a thread (default: the processors, up to 4)",
    ),
    text(
        "busy-poll",
        None,
        "USEC",
        set!(values::busy_poll, busy_poll),
        "Look for more for so many microseconds before sleeping, up to 1000000 (default: 0)",
    ),
    path(
        "repair-path",
        None,
        "PATH",
        |draft, path| {
            draft.config.repair_path = values::repair_path(path)?;
            Ok(())
        },
        "Where passt-repair connects; 'none' for nowhere (default: the socket's path with .repair)",
    ),
    flag(
        "migrate-exit",
        None,
        switch_on!(migrate_exit),
        "Quit once the guest has migrated elsewhere (deprecated)",
    ),
    flag(
        "migrate-no-linger",
        None,
        switch_on!(migrate_no_linger),
        "Close TCP sockets once the guest has migrated elsewhere (deprecated)",
    ),
    flag(
        "one-off",
        Some('1'),
        switch_on!(one_off),
        "Quit when the first client leaves",
    ),
    flag(
        "foreground",
        Some('f'),
        switch_on!(foreground),
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
    text(
        "stats",
        None,
        "DELAY",
        set!(values::stats, stats),
        "Show counters of events, at most every so many seconds",
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
    path(
        "conf-path",
        Some('c'),
        "PATH",
        |draft, path| {
            draft.config.conf_path = Some(values::conf_path(path)?);
            Ok(())
        },
        "Let pesto change forwards at run time, at this socket",
    ),
    flag(
        "chroot-fallback",
        None,
        |_| {},
        "Has no effect (always done where needed)",
    ),
    flag(
        "require-sandbox",
        None,
        switch_on!(require_sandbox),
        "Do not start unless sandboxed in full",
    ),
    flag(
        "print-sandbox",
        None,
        switch_on!(print_sandbox),
        "Show how the process would be sandboxed and quit",
    ),
    flag(
        "stderr",
        Some('e'),
        |draft| draft.warn("--stderr will be dropped soon"),
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
        switch_on!(freebind),
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
    flag(
        "no-multicast",
        None,
        switch_off!(multicast),
        "Carry no multicast and broadcast",
    ),
    text(
        "multicast-ports",
        None,
        "PORTS",
        set!(values::multicast_ports, multicast_ports),
        "Ports heard of the guest's multicast groups, separated by commas, or 'none' (default: 5353,1900,5355,3702)",
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
        "strict-source",
        None,
        switch_on!(strict_source),
        "Serve the guest at no addresses but those it was given",
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
        "print-capabilities",
        None,
        |draft| draft.show = Some(Show::Capabilities),
        "Show the capabilities of a vhost-user back end in JSON and quit",
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
    pasta("ns-ifname", Some('I'), Some("NAME")),
    pasta("tcp-ns", Some('T'), Some("SPEC")),
    pasta("udp-ns", Some('U'), Some("SPEC")),
    pasta("host-lo-to-ns-lo", None, None),
    pasta("userns", None, Some("SPEC")),
    pasta("netns", None, Some("SPEC")),
    pasta("netns-only", None, None),
    pasta("no-netns-quit", None, None),
    pasta("no-pidns", None, None),
    pasta("config-net", None, None),
    pasta("no-copy-routes", None, None),
    pasta("no-copy-addrs", None, None),
    pasta("ns-mac-addr", None, Some("ADDR")),
    pasta("no-splice", None, None),
    pasta("splice-only", None, None),
    pasta("dhcp-dns", None, None),
    pasta("dhcp-search", None, None),
];
