//! Which ports are bound, and what is said when they cannot be.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};

use nix::errno::Errno;

use crate::lab::{Host, LONG, Setup, World, servers::tcp_listener, wait_until};

/// What it says when it gives up at once.
fn refused(world: &World, args: &[&str]) -> String {
    let (status, _, stderr) = Setup::new(args).run_to_end(&world.pod);
    assert_eq!(status.code(), Some(1), "{args:?}: {stderr}");
    stderr.lines().last().unwrap_or_default().to_owned()
}

fn connects(host: &Host, port: u16) -> bool {
    host.run(|| TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok())
}

/// Consumers 2.6: the words are matched.
#[test]
fn a_port_that_must_be_had_and_cannot_be_ends_the_start() {
    let Some(world) = World::pod() else { return };
    let _occupied = tcp_listener(&world.pod, (Ipv6Addr::UNSPECIFIED, 4000));
    assert_eq!(
        refused(&world, &["-t", "4000"]),
        "Failed to bind port 4000 (Address already in use) for option '-t 4000'"
    );
    assert_eq!(
        refused(&world, &["-u", "192.0.2.1/4000"]),
        "Failed to bind port 4000 (Cannot assign requested address) for option '-u 192.0.2.1/4000'"
    );
    assert_eq!(
        refused(&world, &["-t", "%eth7/4001"]),
        "Failed to bind port 4001 (No such device) for option '-t %eth7/4001'"
    );
}

/// Consumers 2.6: however many addresses of one's own one names, and whoever the other is.
#[test]
fn a_port_of_another_translator_is_not_shared_with_it() {
    let Some(world) = World::pod() else { return };
    let rules: [[&str; 4]; 4] = [
        ["-t", "127.0.0.1/4000", "-t", "127.0.0.2/4000"],
        ["-u", "127.0.0.1/4000", "-u", "127.0.0.2/4000"],
        ["-t", "127.0.0.1/4000", "-t", "::1/4000"],
        ["-u", "0.0.0.0/4000", "-u", "::/4000"],
    ];
    for args in rules {
        let mut first = Setup::new(&args).start(&world.pod);
        assert_eq!(
            refused(&world, &args),
            format!(
                "Failed to bind port 4000 (Address already in use) for option '{} {}'",
                args[0], args[1]
            )
        );
        first.assert_alive();
    }
}

/// What the rules tell apart the kernel does too.
#[test]
fn one_port_may_be_forwarded_apart_for_addresses_families_and_interfaces() {
    let Some(world) = World::pod() else { return };
    world.pod.wire("lan0", &world.outside, "lan1");
    world.pod.ip("addr add 10.77.0.1/24 dev lan0");
    let rules: [[&str; 3]; 5] = [
        ["127.0.0.1/4000", "127.0.0.2/4000", "::1/4000"],
        ["0.0.0.0/4000", "::/4000", "~1-4999"],
        ["0.0.0.0/4000", "::1/4000", "10.77.0.1/4001"],
        ["%lan0/4000", "%lo/4000", "*%eth0/4000"],
        ["10.77.0.1%lan0/4000", "127.0.0.1/4000", "::%lo/4000"],
    ];
    for [a, b, c] in rules {
        let args = ["-t", a, "-t", b, "-t", c, "-u", a, "-u", b, "-u", c];
        Setup::new(&args).start(&world.pod).assert_alive();
    }
}

/// How many sockets are bound to port 4000, for TCP, TCP over IPv6, UDP and UDP over IPv6.
fn bound(host: &Host) -> [usize; 4] {
    ["tcp", "tcp6", "udp", "udp6"].map(|table| {
        let wanted = format!(":{:04X}", 4000);
        let lines = host.proc_net(table);
        let at = lines
            .iter()
            .filter_map(|line| line.split_whitespace().nth(1));
        at.filter(|at| at.ends_with(&wanted)).count()
    })
}

#[test]
fn one_socket_listens_in_both_families() {
    let Some(world) = World::pod() else { return };
    let _translator = Setup::new(&["-t", "4000", "-u", "4000"]).start(&world.pod);
    assert!(wait_until(LONG, || bound(&world.pod) == [0, 1, 0, 1]));
}

/// Regressions C03 and C56.
#[test]
fn a_family_that_is_off_has_no_sockets() {
    let Some(world) = World::pod() else { return };
    for (family, sockets) in [("-4", [1, 0, 1, 0]), ("-6", [0, 1, 0, 1])] {
        let args = [family, "-t", "4000", "-u", "4000"];
        let _translator = Setup::new(&args).start(&world.pod);
        assert_eq!(bound(&world.pod), sockets, "{family}");
        let connect = || TcpStream::connect((Ipv4Addr::LOCALHOST, 4000)).is_ok();
        assert_eq!(world.pod.run(connect), family == "-4");
    }
}

/// Regression C01: as with the kernel parameter ipv6.disable=1.
#[test]
fn a_kernel_without_ipv6_forwards_by_ipv4() {
    let Some(world) = World::pod() else { return };
    let inet6 = Some((0, libc::AF_INET6 as u64));
    let mut translator = Setup::new(&["-t", "4000", "-u", "4000"])
        .forbid(libc::SYS_socket, inet6, Errno::EAFNOSUPPORT)
        .start(&world.pod);
    assert_eq!(bound(&world.pod), [1, 0, 1, 0]);
    assert!(connects(&world.pod, 4000));
    translator.assert_alive();
}

/// Regression C38: ports that were named have to be had, all of them.
#[test]
fn named_ports_end_the_start_for_want_of_descriptors() {
    let Some(world) = World::pod() else { return };
    let (status, _, stderr) = Setup::new(&["-t", "4000-4100"])
        .limit_files(60)
        .run_to_end(&world.pod);
    assert_eq!(status.code(), Some(1), "{stderr}");
    let last = stderr.lines().last().unwrap_or_default();
    let why = "Can't open enough sockets for '-t 4000-4100': Too many open files";
    assert_eq!(last, why);
}

/// The right to it went with the start.
#[test]
fn a_low_port_of_an_interface_that_returns_is_refused_with_one_warning() {
    let Some(world) = World::pod() else { return };
    let lay = || world.pod.wire("lan0", &world.outside, "lan1");
    lay();
    let mut translator = Setup::new(&["-t", "%lan0/80-89"]).start(&world.pod);
    world.pod.ip("link del lan0");
    lay();
    translator.expect_log("An interface returned, but not for port 80 (Permission denied)");
    assert_eq!(translator.log().matches("returned, but not").count(), 1);
    translator.assert_alive();
}

/// Regression C05: the more exact rule wins, and both are there.
#[test]
fn an_address_and_all_addresses_may_be_forwarded_apart() {
    let Some(world) = World::pod() else { return };
    let others = "~1-3999,~4001-65535";
    let mut translator = Setup::new(&["-t", others, "-t", "127.0.0.1/4000:2"]).start(&world.pod);
    assert!(wait_until(LONG, || connects(&world.pod, 4000)));
    translator.assert_alive();
}

/// A second wire to the outside, by which the pod has no address yet.
fn lay_lan(world: &World) {
    world.pod.wire("lan0", &world.outside, "lan1");
    world.outside.ip("addr add 10.77.0.2/24 dev lan1");
}

fn reaches_lan(world: &World, port: u16) -> bool {
    let to = SocketAddr::from(([10, 77, 0, 1], port));
    world
        .outside
        .run(|| TcpStream::connect_timeout(&to, LONG))
        .is_ok()
}

/// A listener of an interface follows it; one of an address waits for it to return.
#[test]
fn ports_of_an_interface_or_address_are_there_again_when_it_returns() {
    let Some(world) = World::pod() else { return };
    let lay = || {
        lay_lan(&world);
        world.pod.ip("addr add 10.77.0.1/24 dev lan0
             link property add dev lan0 altname enp7s0");
    };
    lay();
    let args = ["%lan0/4000", "10.77.0.1/4001", "%enp7s0/4002"].map(|rule| ["-t", rule]);
    let args = args.as_flattened();
    let mut translator = Setup::new(args).start(&world.pod);
    let reaches = |port| reaches_lan(&world, port);
    let reaches_all = || reaches(4000) && reaches(4001) && reaches(4002);
    assert!(reaches_all());
    world.pod.ip("link del lan0");
    assert!(!reaches(4001));
    lay();
    assert!(wait_until(LONG, reaches_all));
    translator.assert_alive();
}

/// As DHCP and duplicate detection have it.
#[test]
fn a_port_of_an_address_and_an_interface_is_there_when_its_address_is() {
    let Some(world) = World::pod() else { return };
    let give = || world.pod.ip("addr add 10.77.0.1/24 dev lan0");
    lay_lan(&world);
    give();
    let args = ["-t", "10.77.0.1%lan0/4000", "-u", "10.77.0.1%lan0/4000"];
    let translator = Setup::new(&args).start(&world.pod);
    world.pod.ip("link del lan0");
    lay_lan(&world);
    translator.expect_log("not for port 4000 (Cannot assign requested address) of option '-t");
    translator.expect_log("not for port 4000 (Cannot assign requested address) of option '-u");
    give();
    assert!(wait_until(LONG, || reaches_lan(&world, 4000)));
    assert!(wait_until(LONG, || bound(&world.pod)[2] == 1));
    assert_eq!(translator.log().matches("returned, but not").count(), 2);
}

#[test]
fn the_ports_of_an_interface_that_returns_take_no_more_descriptors_than_before() {
    let Some(world) = World::pod() else { return };
    let lay = || {
        lay_lan(&world);
        world.pod.ip("addr add 10.77.0.1/24 dev lan0");
    };
    lay();
    let mut translator = Setup::new(&["-t", "%lan0/4001-5200"])
        .limit_files(2000)
        .start(&world.pod);
    world.pod.ip("link del lan0");
    lay();
    assert!(wait_until(LONG, || reaches_lan(&world, 5200)));
    translator.assert_alive();
}

/// Regressions C24 and C57: ports of others are left out without a word.
#[test]
fn all_ports_are_those_that_nobody_has_lowest_first_as_descriptors_last() {
    let Some(world) = World::pod() else { return };
    let _occupied = tcp_listener(&world.pod, (Ipv4Addr::UNSPECIFIED, 50));
    let mut translator = Setup::new(&["-t", "all", "-u", "all"])
        .limit_files(2000)
        .start(&world.pod);
    let root = nix::unistd::geteuid().is_root();
    if root {
        let forwarded = || connects(&world.pod, 1) && connects(&world.pod, 200);
        assert!(wait_until(LONG, forwarded));
    }
    translator.expect_log("Forwarding ports below");
    assert!(!connects(&world.pod, 20_000));
    translator.assert_alive();
}
