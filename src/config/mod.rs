//! Settings: what the caller asked (`Config`), what the host is (`Facts`), and what follows from both (`Net`).

mod vhost;

mod forward;

mod ports;

#[expect(clippy::module_inception, reason = "the file is named after its type")]
mod config;
mod facts;
mod net;

mod template;

mod nameservers;

mod resolve;

mod renew;

pub use config::{
    Config, DEFAULT_MTU, DnsServers, Identity, LinkChoice, MULTICAST_PORTS, MapChoice, OUR_MAC,
    Outbound, QUEUES_DEFAULT, QUEUES_MAX, RepairPath, SOCKET_PATH_MAX, SearchList, Serve,
    Verbosity,
};
pub use facts::{Address, Facts, Interface, Places, Resolver, Route};
pub use forward::Rule;
pub use net::{
    Dns, HEARD_MOST, LEAST_MTU4, LEAST_MTU6, Multicast, Net, Net4, Net6, PREFIX6, Withdrawn,
};
pub use ports::{Enabled, Forwards, INTERFACE_MAX, RULES_MAX, is_interface_name};
pub use renew::renew;
pub use resolve::{MOST_DOMAINS, Resolved, resolve};
pub use vhost::{VhostFeatures, bits as vhost_bits};
