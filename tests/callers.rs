//! The command lines of the programs that start passt, word for word: each starts, serves a guest, and stops as its caller
//! expects. `{S}`, `{P}` and `{F}` stand for socket, PID file and log file.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod guest;
mod lab;

use std::{
    collections::BTreeSet,
    fs,
    net::Ipv4Addr,
    ops::RangeInclusive,
    os::unix::{fs::MetadataExt, net::UnixStream},
    path::{Path, PathBuf},
};

use guest::{
    Wire,
    dhcp::{DISCOVER, Dhcp, OFFER},
};
use lab::{
    LONG, Setup, World,
    front_end::{Driver, LINUX, bridge},
    janitor::{self, TempDir},
    wait_until,
    world::POD4,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// How a caller reaches the translator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    /// `--socket`
    Socket,
    /// Nothing said: the first free path below /tmp.
    DefaultSocket,
    /// A connected socket, handed over.
    Fd,
}

/// One caller's way.
struct Caller {
    name: &'static str,
    link: Link,
    args: &'static str,
    /// What the guest is to be offered, and by which MAC address.
    lease: Ipv4Addr,
    mac: &'static str,
    /// What is to be listened at: no more, no less.
    tcp: &'static [RangeInclusive<u16>],
    udp: &'static [RangeInclusive<u16>],
}

/// As most have it.
const PLAIN: Caller = Caller {
    name: "",
    link: Link::Socket,
    args: "",
    lease: POD4,
    mac: "9a:55:9a:55:9a:55",
    tcp: &[],
    udp: &[],
};

/// What "all" leaves out: a socket a port is too much for a test.
const EPHEMERAL: &str = "2000 65535";

const CALLERS: &[Caller] = &[
    Caller {
        name: "KubeVirt 1.0, all ports",
        link: Link::DefaultSocket,
        args: "--runas 107 -e -t all -u all",
        tcp: &[1..=1999],
        udp: &[1..=1999],
        ..PLAIN
    },
    Caller {
        name: "KubeVirt 1.0, some ports",
        link: Link::DefaultSocket,
        args: "--runas 107 -e -t 80,443 -u 53",
        tcp: &[80..=80, 443..=443],
        udp: &[53..=53],
        ..PLAIN
    },
    Caller {
        name: "KubeVirt 1.0 in a mesh",
        link: Link::DefaultSocket,
        args: "--runas 107 -e -t ~15000,~15001,~15006,~15008,~15020,~15021,~15053,~15090 -u all",
        tcp: &[1..=1999],
        udp: &[1..=1999],
        ..PLAIN
    },
    Caller {
        name: "KubeVirt 1.1 (libvirt 9.5)",
        args: "--one-off --socket {S} --mac-addr 52:54:00:f8:03:a6 --pid {P} --interface eth0 --log-file {F} \
               --tcp-ports 443",
        mac: "52:54:00:f8:03:a6",
        tcp: &[443..=443],
        ..PLAIN
    },
    Caller {
        name: "KubeVirt 1.2 on Talos",
        args: "--one-off --socket {S} --pid {P} --interface eth0 --log-file {F} --tcp-ports all --udp-ports all",
        tcp: &[1..=1999],
        udp: &[1..=1999],
        ..PLAIN
    },
    Caller {
        name: "KubeVirt 1.5 in a mesh, addresses of its own",
        args: "--one-off --socket {S} --pid {P} --interface eth0 --log-file {F} --address 10.0.2.2 --netmask 24 \
               --address fd10:0:2::2 --tcp-ports \
               ~15000,~15001,~15004,~15006,~15008,~15009,~15020,~15021,~15053,~15090,3389,443",
        lease: Ipv4Addr::new(10, 0, 2, 2),
        tcp: &[443..=443, 3389..=3389],
        ..PLAIN
    },
    Caller {
        name: "libvirt, all it can say",
        args: "--one-off --socket {S} --pid {P} --interface eth42 --log-file {F} --hostname hostname1 \
               --fqdn hostname1.test.local --address 172.17.2.0 --netmask 24 --address 2001:db8:ac10:fd01::feed \
               --tcp-ports 2001:db8:ac10:fd01::1:10/22:2022,1000-1050,~1020,~1030-1040 \
               --udp-ports 1.2.3.4%eth0/5000-5020:6000-6020,~5010-5015 --tcp-ports 80 --tcp-ports 443:344",
        lease: Ipv4Addr::new(172, 17, 2, 0),
        tcp: &[
            22..=22,
            80..=80,
            443..=443,
            1000..=1019,
            1021..=1029,
            1041..=1050,
        ],
        udp: &[5000..=5009, 5016..=5020],
        ..PLAIN
    },
    Caller {
        name: "libvirt 9.0, without a PID file; its MAC address is the guest's",
        args: "--one-off --socket {S} --mac-addr 52:54:00:12:34:56 --interface eth0 --log-file {F} --tcp-ports 22",
        mac: "52:54:00:12:34:56",
        tcp: &[22..=22],
        ..PLAIN
    },
    Caller {
        name: "QEMU's -netdev passt, plain",
        link: Link::Fd,
        args: "--quiet --pid {P}",
        ..PLAIN
    },
    Caller {
        name: "QEMU's -netdev passt, all it can say",
        link: Link::Fd,
        args: "--quiet --mtu 1400 --address 10.0.2.2 --netmask 255.255.255.0 --mac-addr 02:00:00:00:00:01 \
               --gateway 10.0.2.1 --interface eth0 --outbound 10.233.70.50 --outbound-if4 eth0 --outbound-if6 eth0 \
               --dns 10.0.2.3 --fqdn vm.test.local --no-dhcp-dns --no-dhcp-search --map-host-loopback 10.0.2.1 \
               --map-guest-addr 10.0.2.4 --dns-forward 10.0.2.3 --dns-host 10.233.70.1 --no-icmp --no-ra --freebind \
               --ipv4-only --tcp-ports 80,8080:8081 --udp-ports 53 --pid {P}",
        lease: Ipv4Addr::new(10, 0, 2, 2),
        mac: "02:00:00:00:00:01",
        tcp: &[80..=80, 8080..=8080],
        udp: &[53..=53],
    },
    Caller {
        name: "muvm",
        link: Link::Fd,
        args: "-q -f -t 18000-18010:8000-8010",
        tcp: &[18_000..=18_010],
        ..PLAIN
    },
    Caller {
        name: "libkrun",
        link: Link::Fd,
        args: "-f",
        ..PLAIN
    },
    Caller {
        name: "crun",
        link: Link::Fd,
        args: "-t all -u all --no-dhcp-dns --no-map-gw",
        tcp: &[1..=1999],
        udp: &[1..=1999],
        ..PLAIN
    },
    Caller {
        name: "libguestfs",
        args: "--one-off --socket {S} --pid {P} --address 169.254.2.15 --netmask 16 --mac-addr 52:56:00:00:00:02 \
               --gateway 169.254.2.2",
        lease: Ipv4Addr::new(169, 254, 2, 15),
        mac: "52:56:00:00:00:02",
        ..PLAIN
    },
    Caller {
        name: "KubeVirt 1.6 and later (libvirt 11)",
        args: "--vhost-user --one-off --socket {S} --pid {P} --interface eth0 --log-file {F} --tcp-ports all \
               --udp-ports all",
        tcp: &[1..=1999],
        udp: &[1..=1999],
        ..PLAIN
    },
    Caller {
        name: "QEMU's -netdev passt with vhost-user",
        link: Link::Fd,
        args: "--vhost-user --quiet --pid {P}",
        ..PLAIN
    },
    Caller {
        name: "cuttlefish",
        args: "--vhost-user --foreground --socket {S} --repair-path none -4 -a 10.0.2.2 -n 24 -g 10.0.2.1 \
               --map-host-loopback 10.0.2.1",
        lease: Ipv4Addr::new(10, 0, 2, 2),
        ..PLAIN
    },
    Caller {
        name: "lens-sandbox",
        args: "--vhost-user --socket {S} --foreground --pid {P} --log-file {F} --ipv4-only --mtu 1500 \
               --address 10.0.2.2 --netmask 24 --gateway 10.0.2.1 --dns 10.0.2.3 --dns-forward 10.0.2.4 --no-map-gw \
               --tcp-ports none --udp-ports none",
        lease: Ipv4Addr::new(10, 0, 2, 2),
        ..PLAIN
    },
    Caller {
        name: "tangram",
        args: "--vhost-user --socket {S} --repair-path none --foreground --no-map-gw --map-host-loopback none \
               --map-guest-addr none -t none -u none --address 10.200.0.2/24 --gateway 10.200.0.1",
        lease: Ipv4Addr::new(10, 200, 0, 2),
        ..PLAIN
    },
];

#[test]
fn every_caller_is_served_and_rid_of_it_again() {
    for caller in CALLERS {
        let Some(world) = machine() else { return };
        if caller.args.contains("--runas") && !may_become_anybody() {
            println!("skipped: {}: cannot become user 107", caller.name);
            continue;
        }
        // Above what the test runner captures only when it fails.
        println!("--- {}", caller.name);
        caller.check(&world);
    }
}

/// Of libvirt's own test of its command line: addresses that no machine has.
#[test]
fn an_address_of_somebody_else_is_named() {
    let Some(world) = World::pod() else { return };
    world.pod.allow_low_ports();
    for (spec, port) in [
        (
            "--tcp-ports 2001:db8:ac10:fd01::1:10/22:2022,1000-1050,~1020",
            "22",
        ),
        (
            "--udp-ports 1.2.3.4%eth0/5000-5020:6000-6020,~5010-5015",
            "5000",
        ),
    ] {
        let dir = TempDir::new();
        let args = format!("--one-off --socket {{S}} --pid {{P}} --interface eth0 {spec}");
        let (status, _, stderr) = setup(&args, &dir).run_to_end(&world.pod);
        assert_eq!(status.code(), Some(1), "{args}\n{stderr}");
        assert!(stderr.contains("Failed to bind port"), "{stderr}");
        assert!(stderr.contains(port), "{stderr}");
        assert!(
            stderr.contains("Cannot assign requested address"),
            "{stderr}"
        );
        assert!(!dir.path().join("pid").exists(), "{args}");
    }
}

/// The pod, with all the addresses that callers name.
fn machine() -> Option<World> {
    let world = World::pod()?;
    world.pod.allow_low_ports();
    world.pod.sysctl("ipv4/ip_local_port_range", EPHEMERAL);
    world.pod.wire("eth42", &world.outside, "pod42");
    world.pod.ip("addr add 1.2.3.4/32 dev lo
         addr add 172.17.3.1/24 dev eth42
         addr add 2001:db8:ac10:fd01::1:10/64 dev eth42 nodad
         route add default via 172.17.3.2 dev eth42 metric 500
         route add default via 2001:db8:ac10:fd01::1 dev eth42 metric 2000");
    Some(world)
}

fn may_become_anybody() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap();
    map.split_whitespace().last() == Some("4294967295")
}

/// The command line with its paths in `dir`.
fn setup(args: &str, dir: &TempDir) -> Setup {
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let words = args
        .replace("{S}", &path("socket"))
        .replace("{P}", &path("pid"))
        .replace("{F}", &path("log"));
    Setup::new(&words.split_whitespace().collect::<Vec<_>>()).background()
}

impl Caller {
    fn check(&self, world: &World) {
        let dir = TempDir::new();
        let foreground = self
            .args
            .split_whitespace()
            .any(|word| ["-f", "--foreground"].contains(&word));
        // QEMU makes it itself.
        if self.link == Link::Fd && self.args.contains("{P}") {
            fs::write(dir.path().join("pid"), "").unwrap();
        }
        let mut setup = setup(self.args, &dir);
        let mut socket = dir.path().join("socket");
        let mut wire = None;
        match self.link {
            Link::Socket => {}
            Link::DefaultSocket => {
                setup = setup.private_tmp();
                socket = setup.dir().join("passt_1.socket");
            }
            Link::Fd => {
                let (ours, theirs) = UnixStream::pair().unwrap();
                setup = setup.fd(theirs);
                wire = Some(ours);
            }
        }
        if foreground {
            let at = (self.link == Link::Socket).then_some(socket);
            let mut translator = setup.start_at(&world.pod, at);
            let stream = wire.unwrap_or_else(|| translator.connect());
            self.expect_served(world, &self.wire(stream));
            if self.link == Link::Socket {
                translator.assert_alive();
                translator.signal(Signal::SIGTERM);
            }
            // With the wire gone there is nothing left to do.
            assert_eq!(translator.wait(LONG), 0, "{}", self.name);
        } else {
            self.check_daemon(world, setup, dir.path(), &socket, wire);
        }
        let gone = wait_until(LONG, || processes(world).is_empty());
        assert!(gone, "{}: {:?}", self.name, processes(world));
    }

    /// It has gone to the background when its caller reads the end of what it says.
    fn check_daemon(
        &self,
        world: &World,
        mut setup: Setup,
        dir: &Path,
        socket: &Path,
        wire: Option<UnixStream>,
    ) {
        let (status, _, stderr) = setup.run(&world.pod);
        let all = processes(world);
        for pid in &all {
            janitor::watch_pid(pid.as_raw().cast_unsigned());
        }
        // Callers look for it by name; the watcher of resolv.conf has another.
        let is_passt = |pid: &&Pid| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm"));
            name.is_ok_and(|name| name.trim_end() == "passt")
        };
        let pids: Vec<Pid> = all.iter().filter(is_passt).copied().collect();
        assert_eq!(status.code(), Some(0), "{}\n{stderr}", self.name);
        assert_eq!(pids.len(), 1, "{}\n{stderr}", self.name);
        if self.args.contains("{P}") {
            let written = fs::read_to_string(dir.join("pid")).unwrap();
            assert_eq!(written, format!("{}\n", pids[0]), "{}", self.name);
        }
        if self.args.contains("{F}") {
            assert!(dir.join("log").exists(), "{}", self.name);
        }
        let one_off = self.args.contains("--one-off") || self.link == Link::Fd;
        let wire = self.wire(wire.unwrap_or_else(|| UnixStream::connect(socket).unwrap()));
        self.expect_served(world, &wire);
        drop(wire);
        if !one_off {
            assert_eq!(processes(world), all, "{}", self.name);
            kill(pids[0], Signal::SIGTERM).unwrap();
        }
        let gone = wait_until(LONG, || processes(world).is_empty());
        assert!(gone, "{}: still there", self.name);
        janitor::gone(pids[0].as_raw().cast_unsigned());
    }

    fn wire(&self, stream: UnixStream) -> Wire {
        Wire::new(if self.args.contains("--vhost-user") {
            bridge(stream, Driver::new(LINUX))
        } else {
            stream
        })
    }

    /// The guest is offered its lease, and the ports are open.
    fn expect_served(&self, world: &World, wire: &Wire) {
        wire.send(&Dhcp::new(DISCOVER).frame());
        let (mac, offer) = wire.expect("DHCP offer", |frame| {
            let (_, reply) = Dhcp::of_frame(frame)?;
            let mac = frame[6..12].iter().map(|octet| format!("{octet:02x}"));
            Some((mac.collect::<Vec<_>>().join(":"), reply))
        });
        assert_eq!(offer.kind(), Some(OFFER), "{}", self.name);
        assert_eq!(offer.yiaddr, self.lease, "{}", self.name);
        assert_eq!(mac, self.mac, "{}", self.name);
        for (protocol, wanted) in [("tcp", self.tcp), ("udp", self.udp)] {
            let open = open_ports(world, protocol);
            let wanted: BTreeSet<_> = wanted.iter().cloned().flatten().collect();
            assert_eq!(open, wanted, "{}: {protocol}", self.name);
        }
    }
}

/// Ports listened at in the pod: state 0A of TCP, 07 of UDP (proc_net(5)).
fn open_ports(world: &World, protocol: &str) -> BTreeSet<u16> {
    let state = if protocol == "tcp" { "0A" } else { "07" };
    let tables = [protocol.to_owned(), format!("{protocol}6")];
    let lines = tables.iter().flat_map(|name| world.pod.proc_net(name));
    let ports = lines.filter_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let (_, port) = fields.get(1)?.rsplit_once(':')?;
        (*fields.get(3)? == state).then(|| u16::from_str_radix(port, 16).unwrap())
    });
    ports.collect()
}

/// The processes in the pod, but for the dead that nobody has reaped.
fn processes(world: &World) -> Vec<Pid> {
    let inode = |path: PathBuf| fs::metadata(path).map(|meta| meta.ino()).ok();
    let pod = inode(world.pod.path().into());
    let all = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let path = entry.ok()?.path();
        let pid = path.file_name()?.to_str()?.parse().ok()?;
        let stat = fs::read_to_string(path.join("stat")).ok()?;
        let here = inode(path.join("ns/net")) == pod && !stat.contains(") Z ");
        here.then(|| Pid::from_raw(pid))
    });
    all.collect()
}
