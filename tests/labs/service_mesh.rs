//! A pod in a service mesh: Istio's proxy takes what comes in and what goes out, speaks to the guest from 127.0.0.6, and
//! keeps some ports for itself, which virt-launcher excludes from forwarding. And the probes of a cluster.
//!
//! The proxy here does what Istio's does with connections it only passes through: it asks where they were going
//! (SO_ORIGINAL_DST) and connects there; its own connections carry mark 1337.

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use nix::sched::{CloneFlags, setns};
use socket2::{Domain, SockRef, Socket, Type};

use super::{
    kernel_guest::KernelGuest,
    lab::{
        Host, LONG, Translator, World,
        servers::{TcpServer, UdpEcho},
        traffic::{ask, ask_udp, download, expect_greeting, expect_refusal, file_server, greeter},
        world::{GATEWAY4, INTERNET4, POD4, POD6},
    },
};

/// What virt-launcher asks for when no ports are listed: all but Istio's own.
const EXCLUDES: &str = "~15000,~15001,~15004,~15006,~15008,~15009,~15020,~15021,~15053,~15090";

/// What "all" leaves out besides, so that a socket a port fits the descriptors of any machine that runs this; 20,000 are
/// common for one that is not a node of a cluster.
const EPHEMERAL: &str = "16000 65535";
const NOT_HERE: &str = ",~1000-7999";

/// From where the proxy speaks to the workload.
const PROXY: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 6);

const MARK: u32 = 1337;

/// Where the proxy takes what comes in, and what goes out.
const INBOUND: u16 = 15_006;
const OUTBOUND: u16 = 15_001;

/// What Istio's init container does to the pod: inbound to 15006, outbound to 15001, but for the proxy and its own ports.
const RULES: &str = "table ip istio {
    chain inbound {
        type nat hook prerouting priority -100;
        meta l4proto tcp tcp dport { 15008, 15020, 15021, 15090 } return
        meta l4proto tcp redirect to :15006
    }
    chain outbound {
        type nat hook output priority -100;
        ip saddr 127.0.0.6 return
        meta mark 1337 return
        oifname lo return
        meta l4proto tcp redirect to :15001
    }
}";

struct Mesh {
    guest: KernelGuest,
    translator: Translator,
    world: World,
}

impl Mesh {
    /// A pod whose guest is forwarded what `options` say.
    fn new(options: &[&str]) -> Option<Self> {
        let world = World::pod()?;
        world.pod.allow_low_ports();
        world.pod.sysctl("ipv4/ip_local_port_range", EPHEMERAL);
        let translator = Translator::start(&world.pod, options);
        let guest = KernelGuest::plug(&translator, 1500)?;
        guest.number();
        Some(Self {
            guest,
            translator,
            world,
        })
    }

    fn all_but_excluded() -> Option<Self> {
        Self::new(&["-t", &format!("{EXCLUDES}{NOT_HERE}")])
    }
}

#[test]
fn all_but_the_excluded_ports_reach_the_guest() {
    let Some(mut mesh) = Mesh::all_but_excluded() else {
        return;
    };
    let (guest, outside) = (mesh.guest.host(), &mesh.world.outside);
    for port in [22, 80, 8080, 15_002, 15_089, 15_091, 15_999] {
        let _server = greeter(guest, ([0; 4], port), "guest");
        expect_greeting(outside, (POD4, port), &format!("guest greets {GATEWAY4}"));
    }
    // Somebody listens there in the guest, but nobody in the pod.
    let excluded = EXCLUDES.split(',').map(|word| word[1..].parse().unwrap());
    for port in excluded {
        let _server = greeter(guest, ([0; 4], port), "guest");
        expect_refusal(outside, (POD4, port));
        expect_refusal(&mesh.world.pod, (POD4, port));
        expect_refusal(&mesh.world.pod, (Ipv4Addr::LOCALHOST, port));
    }
    mesh.translator.assert_alive();
}

/// Ports listed beside the excludes are the only ones.
#[test]
fn listed_ports_are_the_only_ones_even_beside_excludes() {
    let list = format!("{EXCLUDES},3389,443");
    let Some(mesh) = Mesh::new(&["-t", &list]) else {
        return;
    };
    let (guest, outside) = (mesh.guest.host(), &mesh.world.outside);
    for port in [3389, 443] {
        let _server = greeter(guest, ([0; 4], port), "guest");
        expect_greeting(outside, (POD4, port), &format!("guest greets {GATEWAY4}"));
    }
    for port in [80, 8080, 15_001] {
        let _server = greeter(guest, ([0; 4], port), "guest");
        expect_refusal(outside, (POD4, port));
    }
}

/// The kubelet connects to the pod's address from the node; exec probes and sidecars from within the pod.
#[test]
fn probes_reach_the_guest_from_the_node_and_from_within_the_pod() {
    let Some(mesh) = Mesh::new(&["-t", "8080", "-u", "8080"]) else {
        return;
    };
    let (guest, World { pod, outside }) = (mesh.guest.host(), &mesh.world);
    let _server = greeter(guest, ([0_u16; 8], 8080), "guest");
    let _echo = UdpEcho::start(guest, ([0; 4], 8080));
    let from_router = format!("guest greets {GATEWAY4}");
    for addr in [POD4, Ipv4Addr::LOCALHOST] {
        // The guest has the pod's address itself: a client there looks like its router.
        expect_greeting(pod, (addr, 8080), &from_router);
        assert_eq!(ask_udp(pod, (addr, 8080), "probe"), "probe");
    }
    assert_eq!(ask_from(pod, PROXY, (POD4, 8080)).unwrap(), from_router);
    assert_eq!(ask_from(pod, PROXY, (PROXY, 8080)).unwrap(), from_router);
    expect_greeting(outside, (POD4, 8080), &from_router);
    let far: IpAddr = INTERNET4.into();
    assert_eq!(
        ask_from(outside, far, (POD4, 8080)).unwrap(),
        format!("guest greets {far}")
    );
    assert_eq!(ask_udp(outside, (POD4, 8080), "probe"), "probe");
    for remote in [IpAddr::from(POD6), "::1".parse().unwrap()] {
        expect_greeting(pod, (remote, 8080), "guest greets fe80::1");
    }
}

#[test]
fn the_proxy_stands_between_guest_and_world_both_ways() {
    let Some(mesh) = Mesh::all_but_excluded() else {
        return;
    };
    let (guest, World { pod, outside }) = (mesh.guest.host(), &mesh.world);
    pod.nft(RULES);
    let inbound = proxy(pod, INBOUND, Some(PROXY));
    let outbound = proxy(pod, OUTBOUND, None);

    let _web = greeter(guest, ([0; 4], 8080), "guest");
    let _files = file_server(guest, ([0; 4], 8081));
    expect_greeting(outside, (POD4, 8080), &format!("guest greets {GATEWAY4}"));
    download(outside, (POD4, 8081));
    assert!(inbound.passed() >= 2, "not through the proxy");

    let internet = greeter(outside, (INTERNET4, 80), "internet");
    let files = file_server(outside, (INTERNET4, 81));
    expect_greeting(guest, internet.addr(), &format!("internet greets {POD4}"));
    download(guest, files.addr());
    assert!(outbound.passed() >= 2, "not through the proxy");

    // The proxy's own ports never lead to the guest, whoever listens there.
    let _other = greeter(guest, ([0; 4], 15_090), "guest");
    expect_refusal(outside, (POD4, 15_090));
    let _other = greeter(guest, ([0; 4], OUTBOUND), "guest");
    assert!(!ask(outside, (POD4, OUTBOUND)).is_ok_and(|said| said.contains("guest")));
}

/// A running proxy.
struct Proxy {
    _server: TcpServer,
    passed: Arc<AtomicUsize>,
}

impl Proxy {
    /// Connections it has passed on.
    fn passed(&self) -> usize {
        self.passed.load(Ordering::Relaxed)
    }
}

/// Takes connections at `port` of the pod and passes them on to where they were going, from `source` if given.
fn proxy(pod: &Host, port: u16, source: Option<Ipv4Addr>) -> Proxy {
    let passed = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&passed);
    let netns = File::open(pod.path()).unwrap();
    let server = TcpServer::start(pod, ([0; 4], port), move |client| {
        setns(&netns, CloneFlags::CLONE_NEWNET).unwrap();
        let Some(to) = SockRef::from(&client).original_dst_v4().ok() else {
            return;
        };
        let to = to.as_socket().unwrap();
        // Sent to the proxy itself.
        if to.port() == port {
            return;
        }
        if let Ok(server) = connect_from(source, to, Some(MARK)) {
            count.fetch_add(1, Ordering::Relaxed);
            splice(&client, &server);
        }
    });
    Proxy {
        _server: server,
        passed,
    }
}

/// Carries both directions until both are done.
fn splice(a: &TcpStream, b: &TcpStream) {
    let carry = |mut from: &TcpStream, mut to: &TcpStream| {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    };
    thread::scope(|scope| {
        scope.spawn(|| carry(a, b));
        carry(b, a);
    });
}

/// As [`ask`], from an address of the host's.
fn ask_from(
    host: &Host,
    source: impl Into<IpAddr>,
    remote: impl Into<SocketAddr>,
) -> io::Result<String> {
    let IpAddr::V4(source) = source.into() else {
        panic!("IPv4 only")
    };
    let remote = remote.into();
    let stream = host.run(|| connect_from(Some(source), remote, None))?;
    io::read_to_string(stream)
}

fn connect_from(
    source: Option<Ipv4Addr>,
    remote: SocketAddr,
    mark: Option<u32>,
) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    if let Some(mark) = mark {
        socket.set_mark(mark)?;
    }
    if let Some(source) = source {
        socket.bind(&SocketAddr::from((source, 0)).into())?;
    }
    socket.connect(&remote.into())?;
    socket.set_read_timeout(Some(LONG))?;
    socket.set_write_timeout(Some(LONG))?;
    Ok(socket.into())
}
