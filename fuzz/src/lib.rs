//! The targets, and what they share: a host to serve from, a guest, and a strict reader of the frames we send.

use std::{net::IpAddr, sync::LazyLock};

use passt_rs::{
    config::{Address, Config, Facts, Interface, Net, Resolver, Route, resolve},
    net::Mac,
};

/// Says on stderr what happens, if `FUZZ_TRACE` is set.
#[macro_export]
macro_rules! trace {
    ($($what:tt)*) => {
        if *$crate::TRACES {
            eprintln!($($what)*);
        }
    };
}

pub mod front_end;
pub mod guest;
pub mod kernel;
pub mod play;
pub mod sound;
pub mod targets;

pub static TRACES: LazyLock<bool> = LazyLock::new(|| std::env::var_os("FUZZ_TRACE").is_some());

/// A host with one interface, both families, and a resolver on loopback.
pub fn facts() -> Facts {
    let addr = |text: &str| text.parse::<IpAddr>().expect("an address");
    let address = |text: &str, prefix, global| Address {
        interface: 2,
        addr: addr(text),
        prefix,
        deprecated: false,
        global,
    };
    let route = |dst: &str, via: &str| Route {
        interface: 2,
        dst: addr(dst),
        prefix: 0,
        via: Some(addr(via)),
        weight: 1,
        metric: 100,
    };
    Facts {
        interfaces: vec![Interface {
            index: 2,
            name: "eth0".to_owned(),
            other_names: Vec::new(),
            mac: Some(Mac([2, 0, 0, 0, 0, 1])),
            mtu: 1500,
            loopback: false,
            up: true,
        }],
        addresses: vec![
            address("192.0.2.15", 24, true),
            address("2001:db8::15", 64, true),
            address("fe80::15", 64, false),
        ],
        routes: vec![route("0.0.0.0", "192.0.2.1"), route("::", "fe80::1")],
        resolver: Resolver {
            servers4: vec![[127, 0, 0, 53].into()],
            servers6: vec!["2001:db8::53".parse().expect("an address")],
            search: vec!["example".to_owned()],
        },
    }
}

/// What a guest behind that host is told.
pub fn net() -> Net {
    resolve(&Config::default(), &facts())
        .expect("a network")
        .net
}
