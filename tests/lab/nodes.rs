//! Two machines between which a guest moves, and a peer of it.

use nix::unistd::Uid;

use super::Host;

/// Two hosts that share an address, one after the other, and a peer, all on one bridge.
#[derive(Debug)]
pub struct Nodes {
    pub source: Host,
    pub target: Host,
    pub peer: Host,
}

pub const PEER: [&str; 2] = ["192.0.2.1", "2001:db8:7::1"];
pub const SERVICE: [&str; 2] = ["192.0.2.7", "2001:db8:7::7"];

impl Nodes {
    pub fn new() -> Option<Self> {
        if !Uid::current().is_root() {
            println!("skipped: needs root");
            return None;
        }
        let hosts = (Host::new(), Host::new(), Host::new());
        let (Ok(source), Ok(target), Ok(peer)) = hosts else {
            println!("skipped: needs root");
            return None;
        };
        peer.ip("link add br0 address 02:00:00:00:00:01 type bridge
             link set br0 up
             addr add 192.0.2.1/24 dev br0
             addr add 2001:db8:7::1/64 dev br0 nodad");
        for (host, port) in [(&source, "p1"), (&target, "p2")] {
            peer.wire(port, host, "eth0");
            peer.ip(&format!("link set {port} master br0"));
        }
        let nodes = Self {
            source,
            target,
            peer,
        };
        nodes.give(&nodes.source);
        Some(nodes)
    }

    /// The same for whole guests: the address may be on both hosts, of which the network knows one, and the peer is their
    /// router.
    pub fn routed() -> Option<Self> {
        let nodes = Self::new()?;
        nodes.target.ip("addr add 192.0.2.8/24 dev eth0
             addr add 2001:db8:7::8/64 dev eth0 nodad");
        for host in [&nodes.source, &nodes.target] {
            host.ip("route add default via 192.0.2.1 dev eth0
                 route add default via 2001:db8:7::1 dev eth0");
            host.allow_ping();
        }
        nodes.peer.ip("link set p2 nomaster");
        nodes.give(&nodes.target);
        Some(nodes)
    }

    /// The network sends what is for the service address to the other host: `p1` leads to the source, `p2` to the target.
    pub fn switch(&self, from: &str, to: &str) {
        self.peer.ip(&format!(
            "link set {from} nomaster
             link set {to} master br0
             neigh flush dev br0"
        ));
    }

    pub fn give(&self, host: &Host) {
        for (addr, len) in SERVICE.iter().zip([24, 64]) {
            host.ip(&format!("addr add {addr}/{len} dev eth0 nodad"));
        }
    }

    /// The address moves from one host to the other, and the neighbours know.
    pub fn move_address(&self, from: &Host, to: &Host) {
        self.withdraw(from);
        self.give(to);
        self.peer.ip("neigh flush dev br0");
    }

    /// The address is this host's no more, and the neighbours ask who has it.
    pub fn withdraw(&self, from: &Host) {
        for (addr, len) in SERVICE.iter().zip([24, 64]) {
            from.ip(&format!("addr del {addr}/{len} dev eth0"));
        }
        self.peer.ip("neigh flush dev br0");
    }
}
