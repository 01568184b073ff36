//! What of the host is forwarded to the guest.

use passt_rs::{cli::Parsed, config::Rule, host::ephemeral_ports, net::Protocol};

use super::{failure, parse, rule, words};

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
