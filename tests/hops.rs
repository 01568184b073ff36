//! A translator is not a hop: what a guest finds out about the way to others is what the host would find out.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod kernel_guest;
mod lab;

use std::{
    io::{Read, Write},
    net::TcpStream,
    thread,
};

use kernel_guest::KernelGuest;
use lab::{
    Host, LONG, Translator, World,
    path::{compare, has, hops, replies, said},
    servers::TcpServer,
    traffic::{download, file_server},
    wait_until,
};

/// The far end, three hops away, and an address nobody has behind it.
const FAR4: &str = "192.0.2.130";
const FAR6: &str = "2001:db8:3::2";

/// The world of [`World::pod`] with two hosts more: outside, middle and far, each the next one's router.
struct Chain {
    middle: Host,
    far: Host,
    guest: KernelGuest,
    _translator: Translator,
    world: World,
}

impl Chain {
    fn new(mtu: u32, middle_mtu: u32) -> Option<Self> {
        let world = World::pod()?;
        let [middle, far] = [(); 2].map(|()| {
            let host = Host::new().expect("a namespace");
            for family in ["ipv4", "ipv6"] {
                host.sysctl(&format!("{family}/conf/all/forwarding"), "1");
            }
            host.sysctl("ipv4/icmp_ratelimit", "0");
            host.sysctl("ipv6/icmp/ratelimit", "0");
            host
        });
        world.outside.ip(&format!(
            "link add out mtu {middle_mtu} type veth peer name in mtu {middle_mtu} netns {}
             addr add 192.0.2.1/26 dev out
             addr add 2001:db8:2::1/64 dev out nodad
             link set out up
             route add 192.0.2.128/26 via 192.0.2.2
             route add 2001:db8:3::/64 via 2001:db8:2::2",
            middle.path()
        ));
        middle.ip(&format!(
            "link add out mtu 1500 type veth peer name in mtu 1500 netns {}
             addr add 192.0.2.2/26 dev in
             addr add 2001:db8:2::2/64 dev in nodad
             addr add 192.0.2.129/26 dev out
             addr add 2001:db8:3::1/64 dev out nodad
             link set in up
             link set out up
             route add default via 192.0.2.1
             route add default via 2001:db8:2::1",
            far.path()
        ));
        far.ip("addr add 192.0.2.130/26 dev in
             addr add 2001:db8:3::2/64 dev in nodad
             link set in up
             route add default via 192.0.2.129
             route add default via 2001:db8:3::1");
        let translator = Translator::start(&world.pod, &["--mtu", &mtu.to_string()]);
        let guest = KernelGuest::plug(&translator, mtu)?;
        guest.number();
        guest.host().allow_ping();
        Some(Self {
            middle,
            far,
            guest,
            _translator: translator,
            world,
        })
    }

    fn compare<T: PartialEq + std::fmt::Debug>(
        &self,
        program: &str,
        args: &[&str],
        read: impl Fn(&str) -> T,
    ) -> T {
        compare([&self.world.pod, self.guest.host()], program, args, read)
    }
}

/// U15, U16: by UDP, by echo and by TCP, to a port that is closed and one that is open.
#[test]
fn traceroute_lists_the_same_hops_as_from_the_host() {
    if !has("traceroute") {
        return;
    }
    let Some(chain) = Chain::new(1500, 1500) else {
        return;
    };
    let _servers = [FAR4, FAR6].map(|addr| {
        let addr: std::net::IpAddr = addr.parse().unwrap();
        TcpServer::echo(&chain.far, (addr, 7))
    });
    for (far, gateway, middle) in [
        (FAR4, "10.233.70.1", "192.0.2.2"),
        (FAR6, "fd10:233:70::1", "2001:db8:2::2"),
    ] {
        for method in [&[][..], &["-I"], &["-T", "-p", "7"], &["-T", "-p", "8"]] {
            let args = [&["-n", "-q", "1", "-w", "3", "-m", "6"], method, &[far]].concat();
            let found = chain.compare("traceroute", &args, hops);
            let want: Vec<_> = (1..)
                .zip([gateway, middle, far])
                .map(|(n, addr): (u32, _)| (n.to_string(), addr.to_owned()))
                .collect();
            assert_eq!(found, want, "{method:?} {far}");
        }
    }
}

/// The path MTU is that of the narrowest link, found where the host finds it.
#[test]
fn tracepath_finds_the_same_way_and_the_same_mtu() {
    if !has("tracepath") {
        return;
    }
    for mtu in [1500, 65_520] {
        let Some(chain) = Chain::new(mtu, 1400) else {
            return;
        };
        for far in [FAR4, FAR6] {
            let read = |said: &str| {
                let mut hops: Vec<_> = said
                    .lines()
                    .filter_map(|line| {
                        let (number, rest) = line.trim().split_once(": ")?;
                        let addr = rest.split_whitespace().next()?;
                        let answered = rest.contains("ms") && !rest.contains("pmtu");
                        answered.then(|| (number.to_owned(), addr.to_owned()))
                    })
                    .collect();
                hops.dedup();
                let found = said
                    .lines()
                    .find_map(|line| line.split_once("Resume: "))
                    .map(|(_, found)| found.trim().to_owned());
                (hops, found)
            };
            let (_, found) = chain.compare("tracepath", &["-n", far], read);
            // Hops back are counted by the TTL that answers come with.
            assert_eq!(found.as_deref(), Some("pmtu 1400 hops 3 back 3"), "{far}");
        }
    }
}

/// The narrow links are the host kernel's business: the guest is told nothing, and keeps its large segments.
#[test]
fn connections_know_nothing_of_the_hosts_path_mtu() {
    let Some(chain) = Chain::new(65_520, 1400) else {
        return;
    };
    let guest = chain.guest.host();
    for far in [FAR4, FAR6] {
        let addr: std::net::IpAddr = far.parse().unwrap();
        let _files = file_server(&chain.far, (addr, 80));
        let _sink = TcpServer::echo(&chain.far, (addr, 7));
        download(guest, (addr, 80));
        let mut stream = guest.run(|| TcpStream::connect((addr, 7))).unwrap();
        let reader = stream.try_clone().unwrap();
        let sent = vec![7; 2 << 20];
        let got = thread::scope(|scope| {
            let reading = scope.spawn(|| {
                let mut got = Vec::new();
                reader.take(sent.len() as u64).read_to_end(&mut got)
            });
            stream.write_all(&sent).unwrap();
            reading.join().unwrap().unwrap()
        });
        assert_eq!(got, sent.len());
        let route = guest.command("ip", &["route", "get", far]);
        assert!(!route.contains("mtu"), "{route}");
    }
    for (table, name) in [("snmp", "Icmp:"), ("snmp6", "Icmp6InPktTooBigs")] {
        let table = guest.proc_net(table);
        let row = table.iter().rfind(|line| line.starts_with(name)).unwrap();
        let received = match name {
            // InMsgs is the first.
            "Icmp:" => row.split_whitespace().nth(1),
            _ => row.split_whitespace().next_back(),
        };
        assert_eq!(received, Some("0"), "{row}");
    }
}

#[test]
fn ping_shows_the_ttl_that_the_host_sees() {
    let Some(chain) = Chain::new(65_520, 1500) else {
        return;
    };
    for far in [FAR4, FAR6] {
        // With a deadline it waits for the last answer longer than for the next question.
        let args = ["-n", "-c", "2", "-i", "0.1", "-w", "20", far];
        // When an answer comes late there is a third question.
        let first_two = |said: &str| replies(said).into_iter().take(2).collect::<Vec<_>>();
        let found = chain.compare("ping", &args, first_two);
        assert_eq!(found.len(), 2);
        assert!(
            found.iter().all(|line| line.contains("ttl=62")),
            "{found:?}"
        );
        // Too few hops: the same router says so.
        let found = chain.compare(
            "ping",
            &["-n", "-c", "1", "-W", "3", "-t", "2", far],
            replies,
        );
        assert!(found[0].contains("192.0.2.2") || found[0].contains("2001:db8:2::2"));
    }
}

#[test]
fn large_pings_come_back_at_any_mtu() {
    for mtu in [1500, 9000, 65_520] {
        let Some(chain) = Chain::new(mtu, 1500) else {
            return;
        };
        for far in [FAR4, FAR6] {
            for size in ["8000", "60000"] {
                // Where the guest's own link is wide it learns of the narrow one by the first.
                let first = ["-c", "1", "-W", "1", "-s", size, far];
                let comes_back = || !replies(&said(chain.guest.host(), "ping", &first)).is_empty();
                assert!(wait_until(LONG, comes_back));
                let args = ["-n", "-c", "1", "-W", "3", "-s", size, far];
                let found = chain.compare("ping", &args, replies);
                assert!(found.len() == 1 && found[0].contains("ttl=62"), "{found:?}");
            }
        }
    }
}

#[test]
fn a_ping_that_must_not_be_fragmented_learns_the_mtu() {
    let Some(chain) = Chain::new(65_520, 1400) else {
        return;
    };
    for far in [FAR4, FAR6] {
        for (size, mtu) in [("4000", "1500"), ("1440", "1400")] {
            let args = ["-n", "-c", "1", "-W", "3", "-M", "do", "-s", size, far];
            let heard = said(chain.guest.host(), "ping", &args);
            let lowered = heard.to_lowercase();
            assert!(
                lowered.contains(&format!("mtu = {mtu}"))
                    || lowered.contains(&format!("mtu={mtu}")),
                "{heard}"
            );
        }
    }
}

/// As fast as they come, none is lost.
#[test]
fn a_flood_of_pings_is_answered() {
    let Some(chain) = Chain::new(1500, 1500) else {
        return;
    };
    for far in [FAR4, FAR6] {
        let heard = said(chain.guest.host(), "ping", &["-q", "-f", "-c", "2000", far]);
        assert!(heard.contains("2000 received"), "{heard}");
    }
}

/// What a host's network swallows is swallowed, and an address nobody has is told as the last router tells it.
#[test]
fn an_address_nobody_has_is_unreachable_by_the_last_router() {
    let Some(chain) = Chain::new(1500, 1500) else {
        return;
    };
    for (addr, router) in [
        ("192.0.2.140", "192.0.2.129"),
        ("2001:db8:3::99", "2001:db8:2::2"),
    ] {
        let args = ["-n", "-c", "1", "-W", "10", addr];
        let found = chain.compare("ping", &args, |said| {
            let line = said.lines().find(|line| line.contains("nreachable"));
            line.unwrap_or_default().to_owned()
        });
        let _ = &chain.middle;
        assert!(
            found.starts_with("From ") && found.contains("nreachable"),
            "{found} {router}"
        );
    }
}
