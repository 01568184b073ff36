//! The start-up print-out: what the guest was promised, and how to start it.

use std::{
    fmt::{Display, Write as _},
    net::{Ipv4Addr, Ipv6Addr},
    path::Path,
};

use crate::{
    config::{Config, Dns, Net, Net4, Net6, Resolved},
    net::mask4,
};

/// Writes the print-out, one fact a line, each line ended. `bound` is the socket the guest connects to; none with `--fd`.
pub fn summary(resolved: &Resolved, config: &Config, bound: Option<&Path>) -> String {
    let mut page = Page::default();
    if let Some(path) = bound {
        page.line(format_args!(
            "UNIX domain socket bound at {}",
            path.display()
        ));
    }
    if let Ok(Some(path)) = config.repair_path(bound) {
        page.line(format_args!(
            "UNIX domain socket bound at {}",
            path.display()
        ));
    }
    if let Some(path) = &config.conf_path {
        page.line(format_args!(
            "UNIX domain socket bound at {}",
            path.display()
        ));
        page.line(format_args!("Configuration socket: {}", path.display()));
    }
    page.interfaces("Template", &resolved.template4, &resolved.template6);
    page.interfaces(
        "Outbound",
        &config.outbound.interface4,
        &config.outbound.interface6,
    );
    if let Some(addr) = config.outbound.addr4 {
        page.line(format_args!("Outbound IPv4 address: {addr}"));
    }
    if let Some(addr) = config.outbound.addr6 {
        page.line(format_args!("Outbound IPv6 address: {addr}"));
    }
    let net = &resolved.net;
    page.line("MAC:");
    page.item(format_args!("host: {}", net.mac));
    if let Some(v4) = &net.v4 {
        page.v4(net, v4);
    }
    if let Some(v6) = &net.v6 {
        page.v6(net, v6);
    }
    if !config.forwards.is_empty() {
        page.line("Inbound forwarding rules (HOST):");
        for rule in &config.forwards {
            page.item(rule.describe(net.v4.is_some(), net.v6.is_some()));
        }
    }
    if let (Some(path), true) = (bound, config.vhost_user) {
        page.line("You can start qemu with:");
        page.item(format_args!(
            "kvm ... -chardev socket,id=chr0,path={} -netdev vhost-user,id=netdev0,chardev=chr0 \
             -device virtio-net,netdev=netdev0 -object memory-backend-memfd,id=memfd0,share=on,size=$RAMSIZE \
             -numa node,memdev=memfd0\n",
            path.display()
        ));
    } else if let Some(path) = bound {
        page.line("\nYou can now start qemu (>= 7.2, with commit 13c6be96618c):");
        page.item(format_args!(
            "kvm ... -device virtio-net-pci,netdev=s -netdev stream,id=s,server=off,addr.type=unix,addr.path={}",
            path.display()
        ));
    }
    page.0
}

#[derive(Default)]
struct Page(String);

impl Page {
    fn line(&mut self, text: impl Display) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "{text}");
    }

    fn item(&mut self, text: impl Display) {
        let _ = writeln!(self.0, "    {text}");
    }

    fn interfaces(&mut self, role: &str, v4: &Option<String>, v6: &Option<String>) {
        let named = [(v4, "IPv4"), (v6, "IPv6")];
        let list: Vec<String> = named
            .iter()
            .filter_map(|(name, family)| Some(format!("{} ({family})", name.as_ref()?)))
            .collect();
        if !list.is_empty() {
            self.line(format_args!("{role} interface: {}", list.join(", ")));
        }
    }

    fn v4(&mut self, net: &Net, v4: &Net4) {
        if let Some(addr) = v4.map_host_loopback {
            self.item(format_args!("NAT to host 127.0.0.1: {addr}"));
        }
        if net.serve.dhcp {
            self.line("DHCP:");
            self.item(format_args!("assign: {}", v4.addr));
            self.item(format_args!(
                "mask: {}",
                Ipv4Addr::from_bits(mask4(v4.prefix))
            ));
        }
        if let Some(router) = v4.router.filter(|_| net.serve.dhcp) {
            self.item(format_args!("router: {router}"));
        }
        self.names(net, &v4.dns);
    }

    fn v6(&mut self, net: &Net, v6: &Net6) {
        if let Some(addr) = v6.map_host_loopback {
            self.item(format_args!("NAT to host ::1: {addr}"));
        }
        // Without an address to give, DHCPv6 has nothing to say.
        let dhcpv6 = net.serve.dhcpv6 && v6.addr.is_some();
        self.line(match (net.serve.ndp, dhcpv6) {
            (true, true) => "NDP/DHCPv6:",
            (false, true) => "DHCPv6:",
            (true, false) => "NDP:",
            (false, false) => return,
        });
        let or_none = |addr: Option<_>| addr.unwrap_or(Ipv6Addr::UNSPECIFIED);
        self.item(format_args!("assign: {}", or_none(v6.addr)));
        self.item(format_args!("router: {}", or_none(v6.router)));
        self.item(format_args!("our link-local: {}", v6.ours));
        self.names(net, &v6.dns);
    }

    fn names<A: Display>(&mut self, net: &Net, servers: &[A]) {
        self.list("DNS:", if net.serve.dhcp_dns { servers } else { &[] });
        let Dns { search, .. } = &net.dns;
        self.list(
            "DNS search list:",
            if net.serve.dhcp_search { search } else { &[] },
        );
    }

    fn list<A: Display>(&mut self, title: &str, items: &[A]) {
        if !items.is_empty() {
            self.line(title);
            items.iter().for_each(|item| self.item(item));
        }
    }
}
