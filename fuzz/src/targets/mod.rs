//! What the targets do with an input; each has a program of its own in `bin`. A panic, or an abort, is a finding.

mod cmdline;

mod frame;

mod netlink;

mod pesto;
mod ports;

mod resolv;

mod services;

mod state;

use crate::play::{self, Guest};

pub use cmdline::run as cmdline;
pub use frame::run as frame;
pub use netlink::run as netlink;
pub use pesto::run as pesto;
pub use ports::run as ports;
pub use resolv::run as resolv;
pub use services::run as services;
pub use state::run as state;

/// The whole data path: any frames of the guest, between any events of the host, with any call failing.
pub fn ingress(input: &[u8]) {
    play::run(input, Guest::Anything);
}

/// TCP by event scripts: the guest's segments are those of its connections, in any order and at any place, so that both
/// streams can be checked octet by octet. The machine is driven through the relay, with the host's sockets scripted.
pub fn tcp(input: &[u8]) {
    play::run(input, Guest::Connections);
}

/// Parts of packets, in any order, of any size, repeated, overlapping, contradicting each other or missing: what becomes
/// whole is what was sent, and nothing is held for ever.
pub fn fragments(input: &[u8]) {
    play::run(input, Guest::Parts);
}

/// As `tcp`, through the rings of a vhost-user front-end, whose messages and driver may become hostile.
pub fn vhost(input: &[u8]) {
    play::run(input, Guest::Queues);
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    type Target = fn(&[u8]);

    const ALL: [(&str, Target); 12] = [
        ("cmdline", cmdline),
        ("fragments", fragments),
        ("frame", frame),
        ("ingress", ingress),
        ("netlink", netlink),
        ("pesto", pesto),
        ("ports", ports),
        ("resolv", resolv),
        ("services", services),
        ("state", state),
        ("tcp", tcp),
        ("vhost", vhost),
    ];

    /// What once was found stays mended: each input that ended a run is among the seeds, under the name of what it showed.
    #[test]
    fn every_seed_is_played_to_its_end() {
        let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
        let programs = fs::read_dir(crate_dir.join("src/bin")).expect("programs");
        assert_eq!(programs.count(), ALL.len(), "a target is not in the list");
        for (name, target) in ALL {
            let seeds = fs::read_dir(crate_dir.join("seeds").join(name)).expect("seeds");
            for seed in seeds {
                let path = seed.expect("a seed").path();
                println!("{}", path.display());
                target(&fs::read(path).expect("a seed"));
            }
        }
    }
}
