//! Which ports are bound, and what is said when they cannot be.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    time::Duration,
};

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

#[test]
fn one_socket_listens_in_both_families() {
    let Some(world) = World::pod() else { return };
    let _translator = Setup::new(&["-t", "4000", "-u", "4000"]).start(&world.pod);
    let listens = |table: &str| {
        let wanted = format!(":{:04X}", 4000);
        let lines = world.pod.proc_net(table);
        lines
            .iter()
            .filter(|line| {
                line.split_whitespace()
                    .nth(1)
                    .is_some_and(|at| at.ends_with(&wanted))
            })
            .count()
    };
    assert!(wait_until(LONG, || {
        ["tcp", "tcp6", "udp", "udp6"].map(listens) == [0, 1, 0, 1]
    }));
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

/// A listener of an interface follows it; one of an address waits for it to return.
#[test]
fn ports_of_an_interface_or_address_are_there_again_when_it_returns() {
    let Some(world) = World::pod() else { return };
    let lay = || {
        world.pod.wire("lan0", &world.outside, "lan1");
        world.pod.ip("addr add 10.77.0.1/24 dev lan0");
        world.outside.ip("addr add 10.77.0.2/24 dev lan1");
    };
    lay();
    let args = ["-t", "%lan0/4000", "-t", "10.77.0.1/4001"];
    let mut translator = Setup::new(&args).start(&world.pod);
    let reaches = |port| {
        let to = SocketAddr::from(([10, 77, 0, 1], port));
        let connect = || TcpStream::connect_timeout(&to, Duration::from_secs(1));
        world.outside.run(connect).is_ok()
    };
    assert!(reaches(4000) && reaches(4001));
    world.pod.ip("link del lan0");
    assert!(!reaches(4001));
    lay();
    assert!(wait_until(LONG, || reaches(4000) && reaches(4001)));
    translator.assert_alive();
}

/// Regressions C24 and C57, and consumers 7: ports of others are left out without a word.
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
