//! Values that are no good.

use std::{ffi::OsString, os::unix::ffi::OsStringExt};

use passt_rs::cli::{self, Parsed};

use super::failure;

/// Regressions C13, C14, C29, C43, C54 and X16.
#[test]
fn bad_values_are_refused_in_one_line() {
    let long = "a".repeat(300);
    let label = "a".repeat(64);
    let path = format!("/{}", "x".repeat(107));
    let cases: &[(&[&str], &str)] = &[
        (&["-s", ""], "Invalid socket path:  (1 to 107 octets)"),
        (
            &["-s", &path],
            &format!("Invalid socket path: {path} (1 to 107 octets)"),
        ),
        (&["-F", "foo"], "Invalid --fd: foo"),
        (&["-F", "-1"], "Invalid --fd: -1"),
        (&["-F", ""], "Invalid --fd: "),
        (&["-F", "2147483648"], "Invalid --fd: 2147483648"),
        (
            &["--stats", "x"],
            "Invalid --stats delay: x (whole seconds, at least 1)",
        ),
        (
            &["--stats", "0"],
            "Invalid --stats delay: 0 (whole seconds, at least 1)",
        ),
        (
            &["--stats", "-1"],
            "Invalid --stats delay: -1 (whole seconds, at least 1)",
        ),
        (
            &["--stats", "1.5"],
            "Invalid --stats delay: 1.5 (whole seconds, at least 1)",
        ),
        (
            &["--stats", "4294967296"],
            "Invalid --stats delay: 4294967296 (whole seconds, at least 1)",
        ),
        (
            &["--queues", "0"],
            "Invalid number of queue pairs: 0 (1 to 16)",
        ),
        (
            &["--queues", "17"],
            "Invalid number of queue pairs: 17 (1 to 16)",
        ),
        (
            &["--busy-poll", "x"],
            "Invalid --busy-poll: x (microseconds, at most 1000000)",
        ),
        (
            &["--busy-poll", "1000001"],
            "Invalid --busy-poll: 1000001 (microseconds, at most 1000000)",
        ),
        (
            &["-c", ""],
            "Invalid configuration path:  (1 to 107 octets)",
        ),
        (
            &["-c", &path],
            &format!("Invalid configuration path: {path} (1 to 107 octets)"),
        ),
        (
            &["--vhost-user", "--repair-path", &path],
            &format!("Invalid passt-repair path: {path} (1 to 107 octets)"),
        ),
        (
            &["--log-size", "40959"],
            "Invalid --log-size: 40959 (at least 40960)",
        ),
        (
            &["--log-size", "foo"],
            "Invalid --log-size: foo (at least 40960)",
        ),
        (&["--runas", "x5"], "Invalid --runas option: x5"),
        (&["--runas", "5:abc"], "Invalid --runas option: 5:abc"),
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
fn options_of_vhost_user_are_refused_without_it() {
    for (args, option) in [
        (&["--repair-path", "/r"][..], "--repair-path"),
        (&["--queues", "2"], "--queues"),
        (&["--migrate-exit"], "--migrate-exit"),
        (&["--migrate-no-linger", "-f"], "--migrate-no-linger"),
        (&["--vhost-features", "~mrg-rxbuf"], "--vhost-features"),
    ] {
        let said = format!("{option} is for vhost-user mode only");
        assert_eq!(failure(args), said);
    }
}

#[test]
fn options_of_pasta_are_refused_by_name() {
    for (line, option) in [
        ("-I tap0", "-I"),
        ("--ns-ifname=tap0", "-I"),
        ("-T none", "-T"),
        ("--udp-ns auto", "-U"),
        ("-f --userns /u", "--userns"),
        ("--netns /n", "--netns"),
        ("--netns-only", "--netns-only"),
        ("--no-netns-quit", "--no-netns-quit"),
        ("--no-pidns", "--no-pidns"),
        ("--config-net", "--config-net"),
        ("--no-copy-routes", "--no-copy-routes"),
        ("--no-copy-addrs", "--no-copy-addrs"),
        ("--ns-mac-addr 2:0:0:0:0:1", "--ns-mac-addr"),
        ("--no-splice", "--no-splice"),
        ("--splice-only", "--splice-only"),
        ("--host-lo-to-ns-lo", "--host-lo-to-ns-lo"),
        ("--dhcp-dns", "--dhcp-dns"),
        ("--dhcp-search", "--dhcp-search"),
    ] {
        let said = failure(&line.split(' ').collect::<Vec<_>>());
        assert_eq!(said, format!("{option} is for pasta mode only"));
    }
}

#[test]
fn what_is_quoted_does_not_break_the_line() {
    assert_eq!(failure(&["-m", "a\nb\x1b[1m"]), "Invalid MTU: a?b?[1m");
    assert_eq!(failure(&["a\nb"]), "Extra non-option argument: a?b");
}

#[test]
fn of_several_mistakes_the_first_is_named() {
    assert_eq!(failure(&["-m", "x", "-a", "y"]), "Invalid MTU: x");
    assert_eq!(failure(&["-a", "y", "-m", "x"]), "Invalid guest address: y");
}
