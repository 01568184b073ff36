//! The little world most tests play in.
//!
//! ```text
//! pod                                      outside
//!   the translator runs here                 198.51.100.1, 2001:db8:51::1   "the internet"
//!   eth0 10.233.70.50/24 ────────── pod0     10.233.70.1/24                 the pod's gateway
//!        fd10:233:70::50/64                  fd10:233:70::1/64, fe80::1
//! ```
//!
//! Beyond outside, 203.0.113.1 and 2001:db8:dead::1 are unreachable, 203.0.113.2 and 2001:db8:dead::2 prohibited, and
//! 203.0.113.3 and 2001:db8:dead::3 swallow everything. 10.233.70.99 and fd10:233:70::99 are on the link, but nobody
//! answers there.

use std::{
    env, io,
    net::{Ipv4Addr, Ipv6Addr},
    process::Command,
    thread,
};

use super::Host;

pub const POD4: Ipv4Addr = Ipv4Addr::new(10, 233, 70, 50);
pub const POD6: Ipv6Addr = Ipv6Addr::new(0xfd10, 0x233, 0x70, 0, 0, 0, 0, 0x50);
pub const GATEWAY4: Ipv4Addr = Ipv4Addr::new(10, 233, 70, 1);
pub const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
pub const INTERNET4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
pub const INTERNET6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 1);
pub const UNREACHABLE4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
pub const UNREACHABLE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xdead, 0, 0, 0, 0, 1);
pub const PROHIBITED4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
pub const PROHIBITED6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xdead, 0, 0, 0, 0, 2);
pub const BLACKHOLE4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 3);
pub const BLACKHOLE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xdead, 0, 0, 0, 0, 3);
pub const NOBODY4: Ipv4Addr = Ipv4Addr::new(10, 233, 70, 99);
pub const NOBODY6: Ipv6Addr = Ipv6Addr::new(0xfd10, 0x233, 0x70, 0, 0, 0, 0, 0x99);

/// Two hosts joined by a wire; see the picture above.
#[derive(Debug)]
pub struct World {
    pub pod: Host,
    pub outside: Host,
}

impl World {
    /// The world of the picture above, or `None` when this test is not to go on here: then it was either run in a user
    /// namespace instead, or skipped with a word.
    pub fn pod() -> Option<Self> {
        let world = Self::pod_without_ping()?;
        world.pod.allow_ping();
        Some(world)
    }

    /// The same, but nobody in the pod may use ping sockets, as kernels have it by default.
    pub fn pod_without_ping() -> Option<Self> {
        let world = Self::bare()?;
        world.pod.ip("addr add 10.233.70.50/24 dev eth0
             addr add fd10:233:70::50/64 dev eth0 nodad
             route add default via 10.233.70.1 dev eth0
             route add default via fe80::1 dev eth0");
        world.outside.ip("addr add 10.233.70.1/24 dev pod0
             addr add fd10:233:70::1/64 dev pod0 nodad");
        Some(world)
    }

    /// As clusters do it: the pod has a /32 address and reaches the world through 169.254.1.1.
    pub fn routed_pod() -> Option<Self> {
        let world = Self::bare()?;
        world.pod.ip("addr add 10.233.70.50/32 dev eth0
             addr add fd10:233:70::50/128 dev eth0 nodad
             route add 169.254.1.1 dev eth0
             route add default via 169.254.1.1 dev eth0
             route add default via fe80::1 dev eth0");
        world.outside.ip("addr add 169.254.1.1/32 dev pod0
             route add 10.233.70.50 dev pod0
             route add fd10:233:70::50/128 dev pod0");
        Some(world)
    }

    /// Nothing but two empty hosts and the wire, with link-local addresses and everything beyond outside.
    pub fn bare() -> Option<Self> {
        let (pod, outside) = match (Host::new(), Host::new()) {
            (Ok(pod), Ok(outside)) => (pod, outside),
            (Err(e), _) | (_, Err(e)) if e.kind() == io::ErrorKind::PermissionDenied => {
                run_as_root_of_a_user_namespace();
                return None;
            }
            (Err(e), _) | (_, Err(e)) => panic!("unshare: {e}"),
        };
        pod.ip(&format!(
            "link add eth0 mtu 1500 type veth peer name pod0 mtu 1500 netns {}
             link set eth0 up",
            outside.path()
        ));
        outside.forward();
        // The host's limits on ICMP errors would make tests depend on each other.
        outside.sysctl("ipv4/icmp_ratelimit", "0");
        outside.sysctl("ipv6/icmp/ratelimit", "0");
        outside.ip("addr add 198.51.100.1/24 dev lo
             addr add 2001:db8:51::1/64 dev lo nodad
             link set pod0 up
             addr add fe80::1/64 dev pod0 nodad
             route add unreachable 203.0.113.1
             route add prohibit 203.0.113.2
             route add blackhole 203.0.113.3
             route add unreachable 2001:db8:dead::1
             route add prohibit 2001:db8:dead::2
             route add blackhole 2001:db8:dead::3");
        Some(Self { pod, outside })
    }
}

/// Runs this very test again, alone, as root of a user namespace, if the kernel lets us have one.
fn run_as_root_of_a_user_namespace() {
    const INSIDE: &str = "PASST_LAB_INSIDE";
    let possible = Command::new("unshare")
        .args(["-Urn", "true"])
        .status()
        .is_ok_and(|status| status.success());
    let name = thread::current().name().map(str::to_owned);
    let (true, Some(name), None) = (possible, name, env::var_os(INSIDE)) else {
        println!("skipped: needs root or a user namespace");
        return;
    };
    let status = Command::new("unshare")
        .args(["-Ur", "--kill-child", "--"])
        .arg(env::current_exe().expect("current_exe"))
        .args(["--exact", &name, "--nocapture", "--test-threads=2"])
        .env(INSIDE, "1")
        .status()
        .expect("unshare(1)");
    assert!(status.success(), "{name} failed in a user namespace");
}
