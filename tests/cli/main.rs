//! The command line as other programs write it: what becomes of it, and what is said of mistakes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod any_words;
mod completions;
mod forwards;
mod print_out;
mod process;
mod refusals;
mod spelling;

use std::ffi::OsString;

use passt_rs::{
    cli::{self, Parsed},
    config::{
        Config, DnsServers, Identity, LinkChoice, MapChoice, RepairPath, Rule, SearchList,
        Verbosity,
    },
    net::{Mac, PortMap, Protocol, Span},
};

fn parse(args: &[&str]) -> Parsed {
    cli::parse(["passt"].iter().chain(args).map(OsString::from))
}

/// The configuration of a command line without fault or warning.
fn config(args: &[&str]) -> Config {
    match parse(args) {
        Parsed::Run(config, warnings) => {
            assert!(warnings.is_empty(), "{args:?}: {warnings:?}");
            *config
        }
        other => panic!("{args:?}: {other:?}"),
    }
}

fn words(line: &str) -> Config {
    config(&line.split_whitespace().collect::<Vec<_>>())
}

fn failure(args: &[&str]) -> String {
    match parse(args) {
        Parsed::Fail(line) => line,
        other => panic!("{args:?}: {other:?}"),
    }
}

/// A rule of the option for every address.
fn rule(option: &str, ports: (u16, u16), to: u16) -> Rule {
    let tcp = option.starts_with("-t");
    Rule {
        protocol: if tcp { Protocol::Tcp } else { Protocol::Udp },
        addr: None,
        interface: None,
        first: ports.0,
        last: ports.1,
        map: PortMap::new(ports.0, to),
        target: None,
        best_effort: false,
        option: option.to_owned(),
    }
}

#[test]
fn nothing_asked_is_the_default() {
    assert_eq!(config(&[]), Config::default());
}

/// What a command line changes, written as a change of the default.
type Change = fn(&mut Config);

/// Regressions C07, C10, C39 and C44.
#[test]
fn each_option_does_what_it_says() {
    let cases: &[(&str, Change)] = &[
        ("-s /s", |c| c.link = LinkChoice::Socket("/s".into())),
        ("--socket /s", |c| c.link = LinkChoice::Socket("/s".into())),
        ("--socket-path=/s", |c| {
            c.link = LinkChoice::Socket("/s".into());
        }),
        ("-F 0", |c| (c.link, c.one_off) = (LinkChoice::Fd(0), true)),
        ("--fd=3", |c| {
            (c.link, c.one_off) = (LinkChoice::Fd(3), true);
        }),
        ("--vhost-user", |c| c.vhost_user = true),
        ("--vhost-user --repair-path /r", |c| {
            (c.vhost_user, c.repair_path) = (true, RepairPath::At("/r".into()));
        }),
        ("--vhost-user --queues 16", |c| {
            (c.vhost_user, c.queues) = (true, Some(16));
        }),
        ("--busy-poll 50", |c| c.busy_poll = Span(50)),
        ("--repair-path none", |c| c.repair_path = RepairPath::Off),
        ("--vhost-user --repair-path ./none", |c| {
            (c.vhost_user, c.repair_path) = (true, RepairPath::At("./none".into()));
        }),
        ("--vhost-user --migrate-exit", |c| {
            (c.vhost_user, c.migrate_exit) = (true, true);
        }),
        ("--migrate-no-linger --vhost-user", |c| {
            (c.vhost_user, c.migrate_no_linger) = (true, true);
        }),
        ("--stats 5", |c| c.stats = Some(Span::secs(5))),
        ("-c /c", |c| c.conf_path = Some("/c".into())),
        ("--conf-path /c", |c| c.conf_path = Some("/c".into())),
        ("--chroot-fallback", |_| {}),
        ("--require-sandbox", |c| c.require_sandbox = true),
        ("--print-sandbox", |c| c.print_sandbox = true),
        ("--strict-source", |c| c.strict_source = true),
        ("-1", |c| c.one_off = true),
        ("--one-off", |c| c.one_off = true),
        ("-f", |c| c.foreground = true),
        ("--foreground", |c| c.foreground = true),
        ("-d", |c| c.verbosity = Verbosity::Debug),
        ("--debug", |c| c.verbosity = Verbosity::Debug),
        ("--trace", |c| c.verbosity = Verbosity::Trace),
        ("--trace -d", |c| c.verbosity = Verbosity::Trace),
        ("-q", |c| c.verbosity = Verbosity::Quiet),
        ("--quiet", |c| c.verbosity = Verbosity::Quiet),
        ("-l /l", |c| c.log_file = Some("/l".into())),
        ("--log-file /l", |c| c.log_file = Some("/l".into())),
        ("--log-size 40960", |c| c.log_size = 40_960),
        ("-P p", |c| c.pid_file = Some("p".into())),
        ("--pid p", |c| c.pid_file = Some("p".into())),
        ("-p c", |c| c.pcap = Some("c".into())),
        ("--pcap c", |c| c.pcap = Some("c".into())),
        ("--runas 107:5", |c| {
            c.identity = Some(Identity { uid: 107, gid: 5 });
        }),
        ("--runas root", |c| {
            c.identity = Some(Identity { uid: 0, gid: 0 });
        }),
        ("-m 1500", |c| c.mtu = Some(1500)),
        ("--mtu 0", |c| c.mtu = Some(0)),
        ("-m 0x5dc", |c| c.mtu = Some(1500)),
        ("-m 65521", |c| c.mtu = Some(65_521)),
        ("-a 10.0.0.2", |c| c.addr4 = Some([10, 0, 0, 2].into())),
        ("--address fd00::2", |c| {
            c.addr6 = Some("fd00::2".parse().unwrap());
        }),
        ("-a 10.0.0.2/24", |c| {
            (c.addr4, c.prefix4) = (Some([10, 0, 0, 2].into()), Some(24));
        }),
        ("-a 10.0.0.2/0", |c| c.addr4 = Some([10, 0, 0, 2].into())),
        ("-a fd00::2/48", |c| {
            c.addr6 = Some("fd00::2".parse().unwrap());
        }),
        ("-n 24", |c| c.prefix4 = Some(24)),
        ("--netmask 255.255.240.0", |c| c.prefix4 = Some(20)),
        ("-n 255.255.255.255", |c| c.prefix4 = Some(32)),
        ("-n 0", |c| c.prefix4 = None),
        ("-M 02:00:00:00:00:0a", |c| c.mac = Mac([2, 0, 0, 0, 0, 10])),
        ("--mac-addr 2:0:0:0:0:A", |c| {
            c.mac = Mac([2, 0, 0, 0, 0, 10]);
        }),
        ("-g 10.0.0.1", |c| c.gateway4 = Some([10, 0, 0, 1].into())),
        ("--gateway fe80::1", |c| {
            c.gateway6 = Some("fe80::1".parse().unwrap());
        }),
        ("-i eth0", |c| c.interface = Some("eth0".into())),
        ("--interface eth0", |c| c.interface = Some("eth0".into())),
        ("-o 127.0.0.1", |c| {
            c.outbound.addr4 = Some([127, 0, 0, 1].into());
        }),
        ("--outbound fd00::2", |c| {
            c.outbound.addr6 = Some("fd00::2".parse().unwrap());
        }),
        ("--outbound-if4 enp0s31f6a1b2c3", |c| {
            c.outbound.interface4 = Some("enp0s31f6a1b2c3".into());
        }),
        ("--outbound-if6 eth1", |c| {
            c.outbound.interface6 = Some("eth1".into());
        }),
        ("-D none", |c| c.dns_servers = DnsServers::Given(vec![])),
        ("--dns= --dns 1.1.1.1 -D ::1", |c| {
            c.dns_servers =
                DnsServers::Given(vec!["1.1.1.1".parse().unwrap(), "::1".parse().unwrap()]);
        }),
        ("-D 1.1.1.1 -D none", |c| {
            c.dns_servers = DnsServers::Given(vec![]);
        }),
        ("-S none", |c| c.search = SearchList::Given(vec![])),
        ("-S a.example -S b.example.", |c| {
            c.search = SearchList::Given(vec!["a.example".into(), "b.example".into()]);
        }),
        ("-S a --search none", |c| {
            c.search = SearchList::Given(vec![]);
        }),
        ("-H h", |c| c.hostname = Some("h".into())),
        ("--hostname h", |c| c.hostname = Some("h".into())),
        ("--fqdn h.example", |c| c.fqdn = Some("h.example".into())),
        ("--fqdn h --fqdn=", |c| c.fqdn = None),
        ("--dns-forward 10.0.0.3", |c| {
            c.dns_forward4 = Some([10, 0, 0, 3].into());
        }),
        ("--dns-forward fd00::3", |c| {
            c.dns_forward6 = Some("fd00::3".parse().unwrap());
        }),
        ("--dns-host 127.0.0.53", |c| {
            c.dns_host4 = Some([127, 0, 0, 53].into());
        }),
        ("--dns-host ::1", |c| {
            c.dns_host6 = Some("::1".parse().unwrap());
        }),
        ("--no-tcp", |c| c.serve.tcp = false),
        ("--no-udp", |c| c.serve.udp = false),
        ("--no-icmp", |c| {
            (c.serve.icmp, c.serve.ndp) = (false, false);
        }),
        ("--no-dhcp", |c| c.serve.dhcp = false),
        ("--no-ndp", |c| c.serve.ndp = false),
        ("--no-dhcpv6", |c| c.serve.dhcpv6 = false),
        ("--no-ra", |c| c.serve.ra = false),
        ("--no-dhcp-dns", |c| c.serve.dhcp_dns = false),
        ("--no-dhcp-search", |c| c.serve.dhcp_search = false),
        ("--no-map-gw", |c| {
            (c.map_host_loopback4, c.map_host_loopback6) = (MapChoice::Off, MapChoice::Off);
        }),
        ("--map-host-loopback none", |c| {
            (c.map_host_loopback4, c.map_host_loopback6) = (MapChoice::Off, MapChoice::Off);
        }),
        ("--map-host-loopback 10.0.0.4", |c| {
            c.map_host_loopback4 = MapChoice::To([10, 0, 0, 4].into());
        }),
        ("--map-host-loopback 10.0.0.4 --no-map-gw", |c| {
            c.map_host_loopback4 = MapChoice::To([10, 0, 0, 4].into());
            c.map_host_loopback6 = MapChoice::Off;
        }),
        ("--map-guest-addr 10.0.0.5", |c| {
            c.map_guest_addr4 = Some([10, 0, 0, 5].into());
        }),
        ("--map-guest-addr fd00::5", |c| {
            c.map_guest_addr6 = Some("fd00::5".parse().unwrap());
        }),
        ("--map-guest-addr fd00::5 --map-guest-addr none", |_| {}),
        ("--freebind", |c| c.freebind = true),
        ("-t none -u none", |_| {}),
        ("-t 8000-9000:8001-9001", |c| {
            c.forwards = vec![rule("-t 8000-9000:8001-9001", (8000, 9000), 8001)];
        }),
        ("--udp-ports=53", |c| {
            c.forwards = vec![rule("-u 53", (53, 53), 53)];
        }),
        ("-4", |c| c.v6 = false),
        ("--ipv4-only", |c| c.v6 = false),
        ("-6", |c| c.v4 = false),
        ("--ipv6-only", |c| c.v4 = false),
    ];
    for (line, change) in cases {
        let mut wanted = Config::default();
        change(&mut wanted);
        assert_eq!(words(line), wanted, "{line}");
    }
}

/// Regression C27.
#[test]
fn the_last_of_several_wins() {
    assert_eq!(words("-m 1500 --mtu 1400").mtu, Some(1400));
    assert_eq!(words("-s /a -s /b").link, LinkChoice::Socket("/b".into()));
    assert!(!words("-6 -4").v6 && words("-6 -4").v4);
    assert!(!words("-4 -6").v4 && words("-4 -6").v6);
    assert!(!words("-4 -6 -4").v6);
    assert_eq!(words("-d -q").verbosity, Verbosity::Quiet);
    assert_eq!(words("-q -d").verbosity, Verbosity::Debug);
    assert_eq!(words("--trace -q").verbosity, Verbosity::Quiet);
    let twice = words("-a 10.0.0.2/24 -a 10.0.0.3");
    assert_eq!(
        (twice.addr4, twice.prefix4),
        (Some([10, 0, 0, 3].into()), None)
    );
}

/// Regressions X02 and C08.
#[test]
fn the_last_of_socket_and_fd_wins() {
    let fd = words("-s /s -F 3");
    assert_eq!((fd.link, fd.one_off), (LinkChoice::Fd(3), true));
    let socket = words("-F 3 -s /s");
    assert_eq!(
        (socket.link, socket.one_off),
        (LinkChoice::Socket("/s".into()), false)
    );
    assert_eq!(words("-a 10.0.0.2 --fd 3").link, LinkChoice::Fd(3));
}

#[test]
fn command_lines_of_known_callers_are_understood() {
    for line in [
        "--one-off --socket S --pid P --mtu 1400 --interface eth42 --log-file F --hostname h --fqdn f \
         --address 172.17.2.0 --netmask 24 --address 2001:db8:ac10:fd01::feed",
        "--one-off --socket S --mac-addr 52:54:00:f8:03:a6 --pid P --interface eth0 --log-file F",
        "--quiet --mtu 1500 --address 10.0.0.2 --netmask 255.255.255.0 --mac-addr 52:54:00:00:00:01 \
         --gateway 10.0.0.1 --interface eth0 --outbound 10.9.0.1 --outbound-if4 a --outbound-if6 b \
         --dns 1.1.1.1 --fqdn f --no-dhcp-dns --no-dhcp-search --map-host-loopback 10.0.0.3 \
         --map-guest-addr 10.0.0.4 --dns-forward 10.0.0.5 --dns-host 127.0.0.53 --no-tcp --no-udp \
         --no-icmp --no-dhcp --no-ndp --no-dhcpv6 --no-ra --ipv6-only --ipv4-only --search d1 \
         --pid /tmp/passt-XXXXXX.pid --fd 3",
        "-q -f --fd 3 -t 8000-8010:9000-9010 -u 10.0.0.1/53-53:5353-5353",
        "-f --fd 4",
        "-t all -u all --no-dhcp-dns --no-map-gw --fd 5",
        "--one-off --socket S --pid P --tcp-ports 18080,18100-18110:8100-8110,~18105 --udp-ports 127.0.0.1/15353:53",
        "-t ~15000,~15001,~15004,~15006,~15008,~15009,~15020,~15021,~15053,~15090,3389,443 -u all",
        "--one-off --socket S --pid P --address 169.254.2.15 --netmask 16 \
         --mac-addr 52:56:00:00:00:02 --gateway 169.254.2.2",
        "--vhost-user --foreground --socket S --repair-path none -4 -a 10.0.0.2 -n 24 -g 10.0.0.1 \
         --map-host-loopback 10.0.0.1 -D 1.1.1.1",
        "--vhost-user --socket S --foreground --pid P --log-file F --ipv4-only --mtu 1500 --address 10.0.0.2 \
         --netmask 24 --gateway 10.0.0.1 --dns 1.1.1.1 --dns-forward 10.0.0.3 --no-map-gw --tcp-ports none \
         --udp-ports none",
        "--vhost-user --socket S --repair-path none --foreground --no-map-gw --map-host-loopback none \
         --map-guest-addr none -t none -u none --address 10.200.0.2/24 --gateway 10.200.0.1",
        "--vhost-user --one-off --socket S --pid P --interface eth0 --log-file F --address 10.0.2.2 --netmask 24 \
         --address fd10:0:2::2 --tcp-ports all --udp-ports all",
        "--socket S --foreground --no-map-gw --map-host-loopback none --map-guest-addr none \
         --address 10.200.0.2/24 --gateway 10.200.0.1 --dns 1.1.1.1",
    ] {
        words(line);
    }
    let kubevirt = parse(&["--runas", "107", "-e", "-t", "all", "-u", "all"]);
    let Parsed::Run(config, warnings) = kubevirt else {
        panic!("{kubevirt:?}");
    };
    assert_eq!(config.identity, Some(Identity { uid: 107, gid: 107 }));
    assert_eq!(warnings, ["--stderr will be dropped soon"]);
}

/// Regression C48: whether a path is within reach is seen when it is opened, as whom we were started.
#[test]
fn no_path_is_touched_while_options_are_read() {
    let config =
        words("--runas 107 -l /root/no/log -P /root/no/pid -p /root/no/pcap -s /root/no/socket");
    assert_eq!(config.identity, Some(Identity { uid: 107, gid: 107 }));
    assert_eq!(config.pid_file, Some("/root/no/pid".into()));
}
