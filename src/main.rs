//! temporary
use passt_rs::{
    config::*,
    daemon::{Entrance, Reactor},
    host::socket::Features,
    relay::{Limits, Relay},
};
use std::net::*;
struct L;
impl log::Log for L {
    fn enabled(&self, _: &log::Metadata) -> bool {
        true
    }
    fn log(&self, r: &log::Record) {
        eprintln!("{}: {}", r.level(), r.args())
    }
    fn flush(&self) {}
}
static LOG: L = L;
fn main() {
    log::set_logger(&LOG).unwrap();
    log::set_max_level(match std::env::var("PLOG").as_deref() {
        Ok("trace") => log::LevelFilter::Trace,
        Ok("debug") => log::LevelFilter::Debug,
        _ => log::LevelFilter::Info,
    });
    let args: Vec<String> = std::env::args().collect();
    let i = args
        .iter()
        .position(|a| a == "--socket" || a == "-s")
        .unwrap();
    let path = &args[i + 1];
    let _ = std::fs::remove_file(path);
    let l = std::os::unix::net::UnixListener::bind(path).unwrap();
    l.set_nonblocking(true).unwrap();
    let _ = std::process::Command::new("chmod")
        .arg("777")
        .arg(path)
        .status();
    let gw4 = Ipv4Addr::new(10, 0, 2, 2);
    let gw6: Ipv6Addr = "fe80::1".parse().unwrap();
    let mtu = args
        .iter()
        .position(|a| a == "-m" || a == "--mtu")
        .map_or(65520, |i| args[i + 1].parse().unwrap());
    let net = Net {
        mac: OUR_MAC,
        mtu,
        announce_mtu: true,
        v4: Some(Net4 {
            addr: Ipv4Addr::new(10, 0, 2, 15),
            prefix: 24,
            router: Some(gw4),
            ours: gw4,
            routes: vec![],
            map_host_loopback: Some(gw4),
            map_guest_addr: None,
            dns_forward: None,
            dns_host: None,
            dns: vec![],
        }),
        v6: Some(Net6 {
            addr: Some("fd00:1::15".parse().unwrap()),
            router: Some(gw6),
            ours: gw6,
            map_host_loopback: Some(gw6),
            map_guest_addr: None,
            dns_forward: None,
            dns_host: None,
            dns: vec![],
            scope: 0,
        }),
        dns: Dns::default(),
        serve: Serve::default(),
        outbound: Outbound::default(),
    };
    let relay = Relay::new(
        net,
        Features::probe(),
        Limits {
            flows: 10000,
            spill: 16 << 20,
        },
    );
    let r = Reactor::new(relay, Entrance::Listener(l.into()), false, None).unwrap();
    println!("{:?}", r.run());
}
