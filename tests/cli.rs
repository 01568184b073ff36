//! The command line as other programs write it: what becomes of it, and what is said of mistakes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

use passt_rs::{
    cli::{self, Parsed},
    config::{
        Config, DnsServers, Facts, Identity, LinkChoice, MapChoice, Rule, SearchList, Verbosity,
        resolve,
    },
    host::ephemeral_ports,
    net::{Mac, PortMap, Protocol},
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
fn options_are_spelled_as_getopt_long_allows() {
    assert_eq!(
        words("--foregr --sock /s --mt 1500"),
        words("-f -s /s -m 1500")
    );
    assert_eq!(words("-f1qm1500"), words("-f -1 -q -m 1500"));
    assert_eq!(words("-fs/s"), words("-f -s /s"));
    assert_eq!(words("--no-dhcp"), words("--no-dhcp --no-dhcp"));
    assert_eq!(words("--outbound 10.0.0.2 -f"), words("-f -o 10.0.0.2"));
    // A value is a value, whatever it begins with.
    assert_eq!(config(&["-i", "-f"]).interface.as_deref(), Some("-f"));
    assert_eq!(config(&["-P", "--pid"]).pid_file, Some("--pid".into()));
    assert_eq!(config(&["-S", "a b  c"]), words("-S a -S b -S c"));
    assert_eq!(config(&["--dns", ""]), words("--dns none"));
    assert_eq!(config(&["-S", ""]), words("-S none"));
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
        "--foreground --socket S -4 -a 10.0.0.2 -n 24 -g 10.0.0.1 --map-host-loopback 10.0.0.1 -D 1.1.1.1",
        "--socket S --foreground --no-map-gw --map-host-loopback none --map-guest-addr none \
         --address 10.200.0.2/24 --gateway 10.200.0.1 --dns 1.1.1.1",
    ] {
        words(line);
    }
    let kubevirt = parse(&["--runas", "107", "-e"]);
    let Parsed::Run(config, warnings) = kubevirt else {
        panic!("{kubevirt:?}");
    };
    assert_eq!(config.identity, Some(Identity { uid: 107, gid: 107 }));
    assert_eq!(warnings, ["--stderr will be dropped soon"]);
}

#[test]
fn the_forwards_libvirt_asks_for_are_what_its_documentation_promises() {
    let config = words(
        "--one-off --socket S --pid P --interface eth42 --log-file F --hostname hostname1 \
         --fqdn hostname1.test.local --address 172.17.2.0 --netmask 24 --address 2001:db8:ac10:fd01::feed \
         --tcp-ports 2001:db8:ac10:fd01::1:10/22:2022,1000-1050,~1020,~1030-1040 \
         --udp-ports 1.2.3.4%eth0/5000-5020:6000-6020,~5010-5015 --tcp-ports 80 --tcp-ports 443:344",
    );
    let tcp = "-t 2001:db8:ac10:fd01::1:10/22:2022,1000-1050,~1020,~1030-1040";
    let at_v6 = |ports, to| Rule {
        addr: Some("2001:db8:ac10:fd01::1:10".parse().unwrap()),
        ..rule(tcp, ports, to)
    };
    let at_v4 = |ports, to| Rule {
        addr: Some("1.2.3.4".parse().unwrap()),
        interface: Some("eth0".to_owned()),
        ..rule("-u 1.2.3.4%eth0/5000-5020:6000-6020,~5010-5015", ports, to)
    };
    let wanted = [
        at_v6((22, 22), 2022),
        at_v6((1000, 1019), 1000),
        at_v6((1021, 1029), 1021),
        at_v6((1041, 1050), 1041),
        at_v4((5000, 5009), 6000),
        at_v4((5016, 5020), 6016),
        rule("-t 80", (80, 80), 80),
        rule("-t 443:344", (443, 443), 344),
    ];
    assert_eq!(config.forwards, wanted);
}

/// Regression C25.
#[test]
fn all_ports_are_those_the_host_does_not_need_itself() {
    let ephemeral = ephemeral_ports();
    let forwards = words("-t all -u ~1-1000").forwards;
    assert!(forwards.iter().all(|rule| rule.best_effort));
    let of = |protocol| forwards.iter().filter(move |r| r.protocol == protocol);
    let ports = |protocol| {
        of(protocol)
            .flat_map(|r| r.first..=r.last)
            .collect::<Vec<_>>()
    };
    let free = |first: u16| (first..=u16::MAX).filter(|port| !ephemeral.contains(port));
    assert_eq!(ports(Protocol::Tcp), free(1).collect::<Vec<_>>());
    assert_eq!(ports(Protocol::Udp), free(1001).collect::<Vec<_>>());
}

/// Regressions C04, C19 and C21.
#[test]
fn the_order_of_options_does_not_matter_to_forwards() {
    let orders = |a: &str, b: &str| {
        let line: Vec<&str> = a.split(' ').chain(b.split(' ')).collect();
        let turned: Vec<&str> = b.split(' ').chain(a.split(' ')).collect();
        assert_eq!(parse(&line), parse(&turned));
        parse(&line)
    };
    let Parsed::Run(config, _) = orders("-D 1.1.1.1", "-t 80") else {
        panic!("both are fine");
    };
    assert_eq!(config.forwards, [rule("-t 80", (80, 80), 80)]);
    for (a, b, said) in [
        (
            "-t 80",
            "--no-tcp",
            "Can't add TCP forwarding rule, TCP not enabled",
        ),
        (
            "-u all",
            "--no-udp",
            "Can't add UDP forwarding rule, UDP not enabled",
        ),
        (
            "-6",
            "-t 192.0.2.1/80",
            "IPv4 forward, but IPv4 not enabled",
        ),
        ("-4", "-u ::1/80", "IPv6 forward, but IPv6 not enabled"),
    ] {
        let Parsed::Fail(line) = orders(a, b) else {
            panic!("{a} {b}");
        };
        assert!(line.starts_with(said), "{line}");
    }
    assert_eq!(words("-t none --no-tcp").forwards, []);
}

/// The words of tp-libvirt's configurations.
#[test]
fn port_mistakes_are_named_in_the_words_callers_look_for() {
    for (line, said) in [
        ("--tcp-ports 65536", "Invalid port specifier 65536"),
        (
            "--tcp-ports 8000-9000 --tcp-ports 8001",
            "Overlapping port specifier 8001",
        ),
        ("-u 0", "Can't forward port 0 for option '-u 0'"),
        ("-t 22 -t none", "-t none conflicts with previous options"),
        (
            "-u auto",
            "'auto' port forwarding is only allowed for pasta",
        ),
    ] {
        assert_eq!(failure(&line.split(' ').collect::<Vec<_>>()), said);
    }
}

/// Regressions C13, C14, C29, C43, C54 and X16.
#[test]
fn bad_values_are_refused_in_one_line() {
    let long = "a".repeat(300);
    let label = "a".repeat(64);
    let path = format!("/{}", "x".repeat(107));
    let cases: &[(&[&str], &str)] = &[
        (&["-s", ""], "Invalid socket path: "),
        (&["-s", &path], &format!("Invalid socket path: {path}")),
        (&["-F", "foo"], "Invalid --fd: foo"),
        (&["-F", "-1"], "Invalid --fd: -1"),
        (&["-F", ""], "Invalid --fd: "),
        (&["-F", "2147483648"], "Invalid --fd: 2147483648"),
        (&["--log-size", "40959"], "Invalid --log-size: 40959"),
        (&["--log-size", "foo"], "Invalid --log-size: foo"),
        (&["--runas", "x5"], "Invalid --runas option: x5"),
        (&["--runas", "5:abc"], "Invalid --runas option: 5"),
        (&["--runas", ""], "Invalid --runas option: "),
        (&["-m", "xyz"], "Invalid MTU: xyz"),
        (&["-m", ""], "Invalid MTU: "),
        (&["-m", "-1"], "Invalid MTU: -1"),
        (&["-m", "65522"], "MTU 65522 too large (max 65521)"),
        (&["-m", "65535"], "MTU 65535 too large (max 65521)"),
        (
            &["-m", "4294968796"],
            "MTU 4294968796 too large (max 65521)",
        ),
        (&["-a", "300.1.1.1"], "Invalid guest address: 300.1.1.1"),
        (&["-a", "0.0.0.0"], "Invalid guest address: 0.0.0.0"),
        (&["-a", "::"], "Invalid guest address: ::"),
        (&["-a", "127.0.0.1"], "Invalid guest address: 127.0.0.1"),
        (&["-a", "::1"], "Invalid guest address: ::1"),
        (&["-a", "224.0.0.1"], "Invalid guest address: 224.0.0.1"),
        (&["-a", "ff02::1"], "Invalid guest address: ff02::1"),
        (
            &["-a", "255.255.255.255"],
            "Invalid guest address: 255.255.255.255",
        ),
        (
            &["-a", "::ffff:1.2.3.4"],
            "Invalid guest address: ::ffff:1.2.3.4",
        ),
        (&["-a", "fe80::1"], "Invalid guest address: fe80::1"),
        (
            &["-a", "guest.example"],
            "Invalid guest address: guest.example",
        ),
        (&["-a", "10.0.0.1/33"], "Invalid prefix length: 10.0.0.1/33"),
        (&["-a", "10.0.0.1/"], "Invalid prefix length: 10.0.0.1/"),
        (&["-a", "fd00::1/129"], "Invalid prefix length: fd00::1/129"),
        (
            &["-a", "10.0.0.1/24", "-n", "24"],
            "Redundant prefix length specification",
        ),
        (
            &["-n", "24", "-a", "fd00::1/64"],
            "Redundant prefix length specification",
        ),
        (&["-n", "33"], "Invalid prefix length: 33"),
        (&["-n", "+8"], "Invalid prefix length: +8"),
        (&["-n", "255.0.255.0"], "Invalid prefix length: 255.0.255.0"),
        (&["-n", "foo"], "Invalid prefix length: foo"),
        (&["-M", "1:2:3"], "Invalid MAC address: 1:2:3"),
        (
            &["-M", "00-11-22-33-44-55"],
            "Invalid MAC address: 00-11-22-33-44-55",
        ),
        (
            &["-M", "01:00:5e:00:00:01"],
            "Invalid MAC address: 01:00:5e:00:00:01",
        ),
        (
            &["-M", "00:00:00:00:00:00"],
            "Invalid MAC address: 00:00:00:00:00:00",
        ),
        (&["-g", "127.0.0.1"], "Invalid gateway address: 127.0.0.1"),
        (&["-g", "0.0.0.0"], "Invalid gateway address: 0.0.0.0"),
        (&["-g", "foo"], "Invalid gateway address: foo"),
        (&["-o", "foo"], "Invalid or redundant outbound address: foo"),
        (
            &["-o", "224.0.0.1"],
            "Invalid or redundant outbound address: 224.0.0.1",
        ),
        (&["--outbound-if4", ""], "Invalid interface name: "),
        (
            &["--outbound-if6", "abcdefghijklmnop"],
            "Invalid interface name: abcdefghijklmnop",
        ),
        (&["-D", "foo"], "Cannot use DNS address foo"),
        (&["-D", "0.0.0.0"], "Cannot use DNS address 0.0.0.0"),
        (&["-S", "a..b"], "Cannot use DNS search domain a..b"),
        (
            &["-S", &label],
            &format!("Cannot use DNS search domain {label}"),
        ),
        (
            &["-S", &long],
            &format!("Cannot use DNS search domain {long}"),
        ),
        (&["-S", "a b c d e f g"], "Cannot use DNS search domain g"),
        (&["-H", &long], &format!("Invalid hostname: {long}")),
        (&["-H", "a b"], "Invalid hostname: a b"),
        (&["--fqdn", &long], &format!("Invalid FQDN: {long}")),
        (
            &["--dns-forward", "127.0.0.1"],
            "Invalid DNS forwarding address: 127.0.0.1",
        ),
        (
            &["--dns-forward", "none"],
            "Invalid DNS forwarding address: none",
        ),
        (
            &["--dns-host", "0.0.0.0"],
            "Invalid host nameserver address: 0.0.0.0",
        ),
        (
            &["--map-host-loopback", "127.0.0.1"],
            "Invalid address to remap to host: 127.0.0.1",
        ),
        (
            &["--map-guest-addr", "foo"],
            "Invalid address to remap to host: foo",
        ),
        (&["foo"], "Extra non-option argument: foo"),
        (
            &["-f", "foo", "-q", "bar"],
            "Extra non-option argument: foo",
        ),
        (&["--", "-f"], "Extra non-option argument: -f"),
        (&["-"], "Extra non-option argument: -"),
    ];
    for (args, line) in cases {
        assert_eq!(failure(args), *line, "{args:?}");
    }
    let junk = cli::parse(
        [b"passt".to_vec(), b"-m\xff".to_vec()]
            .map(OsString::from_vec)
            .into_iter(),
    );
    assert_eq!(junk, Parsed::Fail("Invalid MTU: \u{fffd}".to_owned()));
}

#[test]
fn of_several_mistakes_the_first_is_named() {
    assert_eq!(failure(&["-m", "x", "-a", "y"]), "Invalid MTU: x");
    assert_eq!(failure(&["-a", "y", "-m", "x"]), "Invalid guest address: y");
}

#[test]
fn unknown_options_are_named_as_getopt_long_names_them() {
    for (args, text) in [
        (&["--bogus"][..], "unrecognized option '--bogus'"),
        (&["--bogus=3"], "unrecognized option '--bogus"),
        (
            &["--map-guest-address", "x"],
            "unrecognized option '--map-guest-address'",
        ),
        (&["-Z"], "invalid option -- 'Z'"),
        (&["-fZ"], "invalid option -- 'Z'"),
        (&["--mtu"], "option '--mtu' requires an argument"),
        (&["--mt"], "option '--mtu' requires an argument"),
        (&["-m"], "option requires an argument -- 'm'"),
        (&["-fm"], "option requires an argument -- 'm'"),
        (
            &["--one-off=3"],
            "option '--one-off' doesn't allow an argument",
        ),
        (
            &["--no-d"],
            "option '--no-d' is ambiguous; possibilities: '--no-dhcp' '--no-dhcpv6' '--no-dhcp-dns' '--no-dhcp-search'",
        ),
    ] {
        let said = failure(args);
        let (line, usage) = said.split_once('\n').unwrap_or((&said, ""));
        assert!(
            line.starts_with(&format!("passt: {text}")),
            "{args:?}: {line}"
        );
        let known = text.contains("argument");
        assert_eq!(
            usage.starts_with("Usage: passt [OPTION]..."),
            !known,
            "{usage}"
        );
    }
}

#[test]
fn help_and_version_are_printed() {
    for args in [&["--version"][..], &["-f", "--version", "-m", "x"]] {
        let Parsed::Print(text) = parse(args) else {
            panic!("{args:?}");
        };
        let first = format!("passt {}", env!("CARGO_PKG_VERSION"));
        assert_eq!(text.lines().next(), Some(&first[..]));
        assert!(text.contains("Apache-2.0"));
    }
    for args in [["-h"], ["--help"]] {
        let Parsed::Print(text) = parse(&args) else {
            panic!("{args:?}");
        };
        for spelling in cli::spellings() {
            assert!(text.contains(&spelling), "{spelling} is missing:\n{text}");
        }
    }
}

#[test]
fn pasta_is_declined_in_one_line() {
    for name in ["pasta", "/usr/bin/pasta", "pasta.avx2"] {
        let parsed = cli::parse([name, "--config-net"].iter().map(OsString::from));
        let Parsed::Fail(line) = parsed else {
            panic!("{parsed:?}");
        };
        assert_eq!(line, "pasta: network namespaces are not served yet");
    }
    let elsewhere = cli::parse(["/home/pasta/passt"].iter().map(OsString::from));
    assert!(matches!(elsewhere, Parsed::Run(..)), "{elsewhere:?}");
}

#[test]
fn the_print_out_lists_what_the_guest_is_told() {
    let config = words(
        "-a 10.0.0.2/24 -g 10.0.0.1 -D 1.1.1.1 -D 2606::1 -S a -S b -o 10.9.0.1 --outbound-if6 e1",
    );
    let resolved = resolve(&config, &Facts::default()).unwrap();
    let page = cli::summary(&resolved, &config, Some(Path::new("/tmp/p.socket")));
    assert_eq!(
        page,
        "UNIX domain socket bound at /tmp/p.socket\n\
         Outbound interface: e1 (IPv6)\n\
         Outbound IPv4 address: 10.9.0.1\n\
         MAC:\n\
         \x20   host: 9a:55:9a:55:9a:55\n\
         \x20   NAT to host 127.0.0.1: 10.0.0.1\n\
         DHCP:\n\
         \x20   assign: 10.0.0.2\n\
         \x20   mask: 255.255.255.0\n\
         \x20   router: 10.0.0.1\n\
         DNS:\n\
         \x20   1.1.1.1\n\
         DNS search list:\n\
         \x20   a\n\
         \x20   b\n\
         \x20   NAT to host ::1: fe80::1\n\
         NDP:\n\
         \x20   assign: ::\n\
         \x20   router: fe80::1\n\
         \x20   our link-local: fe80::1\n\
         DNS:\n\
         \x20   2606::1\n\
         DNS search list:\n\
         \x20   a\n\
         \x20   b\n\
         \n\
         You can now start qemu (>= 7.2, with commit 13c6be96618c):\n\
         \x20   kvm ... -device virtio-net-pci,netdev=s -netdev stream,id=s,server=off,addr.type=unix,addr.path=/tmp/p.socket\n"
    );
}

#[test]
fn the_print_out_leaves_out_what_is_off() {
    let config = words("--fd 3 --no-map-gw --no-dhcp --no-ndp --no-dhcpv6 -D none -S none");
    let mut resolved = resolve(&config, &Facts::default()).unwrap();
    resolved.template4 = Some("eth0".to_owned());
    resolved.template6 = Some("eth1".to_owned());
    assert_eq!(
        cli::summary(&resolved, &config, None),
        "Template interface: eth0 (IPv4), eth1 (IPv6)\nMAC:\n    host: 9a:55:9a:55:9a:55\n"
    );
}

/// The options a line of the manual's list names: `.It Fl s , Fl -socket Ar path`.
fn documented(page: &str) -> BTreeSet<String> {
    let heads = page.lines().filter_map(|line| line.strip_prefix(".It Fl "));
    heads
        .flat_map(|head| head.split(" , Fl "))
        .map(|option| format!("-{}", option.split_whitespace().next().unwrap()))
        .map(|option| option.replace("\\-", "-"))
        .collect()
}

#[test]
fn the_manual_page_names_every_option_and_no_other() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("man/passt.1");
    let page = fs::read_to_string(path).unwrap();
    let options: BTreeSet<String> = cli::spellings().collect();
    assert_eq!(documented(&page), options);
}
