use super::{
    super::facts::{Address, Route},
    *,
};

fn ip<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().unwrap()
}

/// Builds a host out of lines like those of ip(8).
#[derive(Default)]
struct Host(Facts);

impl Host {
    fn new() -> Self {
        Self::default().link("lo").addr("lo", "127.0.0.1/8")
    }

    fn index(&self, name: &str) -> u32 {
        named(&self.0, name).unwrap().index
    }

    fn link(mut self, name: &str) -> Self {
        self.0.interfaces.push(Interface {
            index: u32::try_from(self.0.interfaces.len()).unwrap() + 1,
            name: name.to_owned(),
            other_names: vec![format!("{name}-too")],
            mac: None,
            mtu: 1500,
            loopback: name == "lo",
            up: true,
        });
        self
    }

    fn addr(mut self, interface: &str, addr: &str) -> Self {
        let (bare, prefix) = addr.split_once('/').unwrap();
        let interface = self.index(interface);
        let addr = ip(bare);
        self.0.addresses.push(Address {
            interface,
            addr,
            prefix: ip(prefix),
            deprecated: false,
            global: !addr.is_loopback() && !bare.starts_with("fe80"),
        });
        self
    }

    fn deprecated(mut self) -> Self {
        self.0.addresses.last_mut().unwrap().deprecated = true;
        self
    }

    /// The address is said to be good on its link only.
    fn of_link(mut self) -> Self {
        self.0.addresses.last_mut().unwrap().global = false;
        self
    }

    fn route(mut self, interface: &str, dst: &str, via: &str) -> Self {
        let (dst, prefix) = dst.split_once('/').unwrap();
        let interface = self.index(interface);
        self.0.routes.push(Route {
            interface,
            dst: ip(dst),
            prefix: ip(prefix),
            via: via.parse().ok(),
            weight: 1,
            metric: 0,
        });
        self
    }

    fn metric(mut self, metric: u32) -> Self {
        self.0.routes.last_mut().unwrap().metric = metric;
        self
    }

    fn weight(mut self, weight: u16) -> Self {
        self.0.routes.last_mut().unwrap().weight = weight;
        self
    }

    fn server(mut self, server: &str) -> Self {
        match ip(server) {
            IpAddr::V4(v4) => self.0.resolver.servers4.push(v4),
            IpAddr::V6(v6) => self.0.resolver.servers6.push(v6),
        }
        self
    }

    fn lan() -> Self {
        Self::new()
            .link("eth0")
            .addr("eth0", "192.0.2.2/24")
            .addr("eth0", "fe80::2/64")
            .addr("eth0", "2001:db8::2/64")
            .route("eth0", "0.0.0.0/0", "192.0.2.1")
            .route("eth0", "192.0.2.0/24", "")
            .route("eth0", "fe80::/64", "")
            .route("eth0", "::/0", "2001:db8::1")
    }

    fn resolve(&self, config: &Config) -> Resolved {
        resolve(config, &self.0).unwrap()
    }

    fn v4(&self, config: &Config) -> Net4 {
        self.resolve(config).net.v4.unwrap()
    }

    fn v6(&self, config: &Config) -> Net6 {
        self.resolve(config).net.v6.unwrap()
    }
}

fn plain() -> Config {
    Config::default()
}

#[test]
fn the_interface_of_the_default_route_lends_its_addresses() {
    let resolved = Host::lan().server("9.9.9.9").resolve(&plain());
    assert_eq!(resolved.template4.as_deref(), Some("eth0"));
    assert_eq!(resolved.template6.as_deref(), Some("eth0"));
    assert!(resolved.notes.is_empty());
    let v4 = resolved.net.v4.unwrap();
    assert_eq!((v4.addr, v4.prefix), (ip("192.0.2.2"), 24));
    assert_eq!(v4.router, Some(ip("192.0.2.1")));
    assert_eq!(
        (v4.ours, v4.map_host_loopback),
        (ip("192.0.2.1"), v4.router)
    );
    assert!(v4.routes.is_empty());
    assert_eq!((v4.dns, v4.dns_forward), (vec![ip("9.9.9.9")], None));
    let v6 = resolved.net.v6.unwrap();
    assert_eq!(v6.addr, Some(ip("2001:db8::2")));
    assert_eq!(v6.router, Some(ip("2001:db8::1")));
    assert_eq!((v6.ours, v6.scope), (ip("fe80::2"), 2));
    assert_eq!(v6.map_host_loopback, v6.router);
    assert_eq!(
        resolved.warnings,
        ["No IPv6 nameserver available for NDP/DHCPv6"]
    );
}

#[test]
fn our_link_local_address_is_the_gateways_if_that_is_one() {
    let host = Host::new()
        .link("eth0")
        .addr("eth0", "2001:db8::2/64")
        .addr("eth0", "fe80::2/64")
        .route("eth0", "::/0", "fe80::1");
    assert_eq!(host.v6(&plain()).ours, ip::<Ipv6Addr>("fe80::1"));
}

#[test]
fn without_any_interface_local_mode_serves_both_families() {
    let resolved = Host::new().resolve(&plain());
    assert_eq!((resolved.template4, resolved.template6), (None, None));
    assert_eq!(
        resolved.notes,
        [
            "No interfaces with usable IPv4 routes",
            "IPv4: no external interface as template, use local mode",
            "No interfaces with usable IPv6 routes",
            "IPv6: no external interface as template, use local mode",
        ]
    );
    let v4 = resolved.net.v4.unwrap();
    assert_eq!((v4.addr, v4.prefix), (LOCAL_GUEST4, 16));
    assert_eq!((v4.router, v4.ours), (Some(LOCAL_ROUTER4), LOCAL_ROUTER4));
    let v6 = resolved.net.v6.unwrap();
    assert_eq!((v6.addr, v6.router), (None, Some(LOCAL_ROUTER6)));
    assert_eq!((v6.ours, v6.scope), (LOCAL_ROUTER6, 0));
    assert_eq!(v6.map_host_loopback, Some(LOCAL_ROUTER6));
}

/// Regression C02.
#[test]
fn local_mode_honours_a_single_family() {
    let config = Config {
        v6: false,
        ..plain()
    };
    assert_eq!(Host::new().resolve(&config).net.v6, None);
}

/// Regression C16.
#[test]
fn routes_through_the_loopback_interface_make_no_template() {
    let host = Host::lan().route("lo", "0.0.0.0/0", "");
    assert_eq!(host.resolve(&plain()).template4.as_deref(), Some("eth0"));
    let host = Host::new().route("lo", "0.0.0.0/0", "");
    assert_eq!(host.resolve(&plain()).template4, None);
}

#[test]
fn a_family_without_address_is_local_though_it_has_routes() {
    let host = Host::new()
        .link("eth0")
        .addr("eth0", "fe80::2/64")
        .route("eth0", "::/0", "fe80::1");
    let resolved = host.resolve(&plain());
    assert_eq!(resolved.template6, None);
    assert_eq!(resolved.net.v6.unwrap().addr, None);
}

/// Regressions C35 and C36.
#[test]
fn the_longest_prefix_that_is_not_deprecated_is_taken() {
    let host = Host::new()
        .link("eth0")
        .addr("eth0", "2001:db8::2/64")
        .addr("eth0", "2001:db8::7/128")
        .addr("eth0", "2001:db8::8/128")
        .addr("eth0", "2001:db8::9/128")
        .deprecated()
        .route("eth0", "::/0", "fe80::1");
    assert_eq!(host.v6(&plain()).addr, Some(ip("2001:db8::7")));
    let old = Host::new()
        .link("eth0")
        .addr("eth0", "2001:db8::9/128")
        .deprecated()
        .addr("eth0", "2001:db8::2/64")
        .route("eth0", "::/0", "fe80::1");
    assert_eq!(old.v6(&plain()).addr, Some(ip("2001:db8::2")));
}

/// Routers translate such addresses as any others. With IPv6, scope is a matter of the address itself.
#[test]
fn an_ipv4_address_of_link_scope_is_lent_where_there_is_no_wider_one() {
    let host = || {
        Host::new()
            .link("eth0")
            .addr("eth0", "10.1.2.77/24")
            .of_link()
            .addr("eth0", "fd00::2/64")
            .of_link()
            .route("eth0", "0.0.0.0/0", "10.1.2.1")
            .route("eth0", "::/0", "fe80::1")
    };
    let resolved = host().resolve(&plain());
    let v4 = resolved.net.v4.unwrap();
    assert_eq!((v4.addr, v4.prefix), (ip("10.1.2.77"), 24));
    assert_eq!(v4.router, Some(ip("10.1.2.1")));
    assert_eq!(resolved.net.v6.unwrap().addr, None);
    let wider = host().addr("eth0", "10.1.0.5/16");
    assert_eq!(wider.v4(&plain()).addr, ip::<Ipv4Addr>("10.1.0.5"));
    // Nobody beyond the link answers these (RFC 3927, section 2.7).
    let zeroconf = host().link("eth1").addr("eth1", "169.254.7.8/16").of_link();
    for name in ["lo", "eth1"] {
        let forced = Config {
            interface: Some(name.to_owned()),
            ..plain()
        };
        assert_eq!(zeroconf.v4(&forced).addr, LOCAL_GUEST4, "{name}");
    }
}

/// Regression C30.
#[test]
fn without_default_route_the_first_interface_that_leads_anywhere_is_taken() {
    let host = Host::new()
        .link("eth0")
        .link("eth1")
        .addr("eth0", "169.254.3.3/16")
        .addr("eth1", "10.0.0.2/8")
        .route("eth0", "169.254.0.0/16", "")
        .route("eth1", "10.0.0.0/8", "");
    let resolved = host.resolve(&plain());
    assert_eq!(resolved.template4.as_deref(), Some("eth1"));
    let v4 = resolved.net.v4.unwrap();
    assert_eq!((v4.router, v4.map_host_loopback), (None, None));
    assert_eq!(v4.ours, ip::<Ipv4Addr>("10.0.0.1"));
}

/// Regression C32.
#[test]
fn a_default_route_without_gateway_gives_no_router() {
    let host = Host::new()
        .link("wg0")
        .addr("wg0", "10.0.0.1/24")
        .route("wg0", "0.0.0.0/0", "");
    let v4 = host.v4(&plain());
    assert_eq!((v4.router, v4.map_host_loopback), (None, None));
    assert_eq!(v4.ours, ip::<Ipv4Addr>("10.0.0.2"));
}

#[test]
fn where_there_is_no_router_to_tell_dhcp_is_silent() {
    let tunnel = Host::new()
        .link("wg0")
        .addr("wg0", "10.0.0.1/24")
        .route("wg0", "0.0.0.0/0", "");
    for (host, served) in [(tunnel, false), (Host::lan(), true)] {
        let net = resolve(&plain(), &host.0).unwrap().net;
        assert_eq!(net.serve.dhcp, served);
    }
}

/// Regression C31.
#[test]
fn the_heaviest_next_hop_of_a_multipath_route_is_taken_with_its_interface() {
    let host = Host::new()
        .link("eth0")
        .link("eth1")
        .addr("eth0", "10.1.0.2/16")
        .addr("eth1", "10.2.0.2/16")
        .route("eth0", "0.0.0.0/0", "10.1.0.1")
        .route("eth1", "0.0.0.0/0", "10.2.0.1")
        .weight(9);
    let resolved = host.resolve(&plain());
    assert_eq!(resolved.template4.as_deref(), Some("eth1"));
    assert_eq!(resolved.net.v4.unwrap().router, Some(ip("10.2.0.1")));
    assert!(!resolved.notes.iter().any(|note| note.contains("Multiple")));
}

#[test]
fn the_default_route_of_lowest_metric_is_taken_and_noted() {
    let host = Host::new()
        .link("eth0")
        .link("eth1")
        .addr("eth0", "10.1.0.2/16")
        .addr("eth1", "10.2.0.2/16")
        .route("eth0", "0.0.0.0/0", "10.1.0.1")
        .metric(600)
        .route("eth1", "0.0.0.0/0", "10.2.0.1")
        .metric(100);
    let resolved = host.resolve(&plain());
    assert_eq!(resolved.template4.as_deref(), Some("eth1"));
    assert_eq!(
        resolved.notes[0],
        "Multiple default IPv4 routes, picked first"
    );
}

#[test]
fn an_interface_can_be_forced() {
    let host = Host::lan()
        .link("eth1")
        .addr("eth1", "10.2.0.2/16")
        .route("eth1", "0.0.0.0/0", "10.2.0.1")
        .metric(900);
    let mut config = Config {
        interface: Some("eth1".to_owned()),
        ..plain()
    };
    let resolved = host.resolve(&config);
    assert_eq!(resolved.template4.as_deref(), Some("eth1"));
    assert_eq!(resolved.template6, None);
    assert_eq!(resolved.net.v4.unwrap().router, Some(ip("10.2.0.1")));
    config.interface = Some("eno999".to_owned());
    assert_eq!(
        resolve(&config, &host.0),
        Err("Invalid interface name eno999: No such device".to_owned())
    );
}

#[test]
fn the_outbound_interface_is_the_template_if_it_exists() {
    let host = Host::lan().link("eth1").addr("eth1", "10.2.0.2/16");
    let mut config = plain();
    config.outbound.interface4 = Some("eth1".to_owned());
    assert_eq!(host.resolve(&config).template4.as_deref(), Some("eth1"));
    assert_eq!(host.resolve(&config).template6.as_deref(), Some("eth0"));
    config.outbound.interface4 = Some("nope".to_owned());
    let resolved = host.resolve(&config);
    assert_eq!(resolved.template4.as_deref(), Some("eth0"));
    let warning = "No interface is called nope: nothing leaves over IPv4 until there is one";
    assert_eq!(resolved.warnings[0], warning);
    config.outbound.interface4 = Some("eth1-too".to_owned());
    let resolved = host.resolve(&config);
    assert_eq!(resolved.template4.as_deref(), Some("eth1"));
    let unknown = |warning: &String| warning.starts_with("No interface");
    assert!(!resolved.warnings.iter().any(unknown));
}

/// Regression C55.
#[test]
fn a_given_address_without_prefix_gets_its_class() {
    for (addr, prefix) in [
        ("10.0.0.5", 8),
        ("169.254.2.15", 16),
        ("192.168.5.5", 24),
        ("250.1.1.1", 32),
    ] {
        let mut config = Config {
            addr4: Some(ip(addr)),
            ..plain()
        };
        assert_eq!(Host::lan().v4(&config).prefix, prefix, "{addr}");
        config.prefix4 = Some(20);
        assert_eq!(Host::lan().v4(&config).prefix, 20, "{addr}");
    }
}

#[test]
fn given_addresses_and_gateways_replace_the_hosts() {
    let config = Config {
        addr4: Some(ip("169.254.2.15")),
        prefix4: Some(16),
        gateway4: Some(ip("169.254.2.2")),
        addr6: Some(ip("fd10::2")),
        gateway6: Some(ip("fe80::99")),
        ..plain()
    };
    for host in [Host::lan(), Host::new()] {
        let v4 = host.v4(&config);
        assert_eq!((v4.addr, v4.ours), (ip("169.254.2.15"), ip("169.254.2.2")));
        assert_eq!(v4.map_host_loopback, Some(ip("169.254.2.2")));
        let v6 = host.v6(&config);
        assert_eq!((v6.addr, v6.ours), (Some(ip("fd10::2")), ip("fe80::99")));
    }
}

#[test]
fn a_pod_address_behind_a_link_local_gateway_brings_its_routes() {
    let host = Host::new()
        .link("eth0")
        .addr("eth0", "10.244.0.7/32")
        .route("eth0", "10.9.0.0/16", "169.254.7.7")
        .route("eth0", "10.8.0.0/16", "172.16.0.1")
        .route("eth0", "169.254.1.1/32", "")
        .route("eth0", "169.254.7.7/32", "")
        .route("eth0", "0.0.0.0/0", "169.254.1.1");
    let v4 = host.v4(&plain());
    assert_eq!(v4.router, Some(ip("169.254.1.1")));
    assert_eq!(
        v4.routes,
        [
            (ip("169.254.7.7"), 32, Ipv4Addr::UNSPECIFIED),
            (ip("10.9.0.0"), 16, ip("169.254.7.7")),
        ]
    );
}

#[test]
fn further_routes_through_gateways_on_the_link_are_told() {
    let host = Host::lan()
        .route("eth0", "10.9.0.0/16", "192.0.2.9")
        .route("eth0", "10.9.0.0/16", "192.0.2.10")
        .route("eth0", "10.8.0.0/16", "198.51.100.1");
    assert_eq!(
        host.v4(&plain()).routes,
        [(ip("10.9.0.0"), 16, ip("192.0.2.9"))]
    );
}

/// Regressions C11 and C46.
#[test]
fn a_resolver_on_loopback_is_told_as_the_mapped_gateway_or_the_forwarding_address() {
    let host = Host::lan().server("127.0.0.53");
    let v4 = host.v4(&plain());
    assert_eq!(v4.dns, [ip::<Ipv4Addr>("192.0.2.1")]);
    assert_eq!(v4.dns_forward, Some(ip("192.0.2.1")));
    assert_eq!(v4.dns_host, Some(ip("127.0.0.53")));
    let mut config = Config {
        map_host_loopback4: MapChoice::Off,
        map_host_loopback6: MapChoice::Off,
        ..plain()
    };
    let resolved = host.resolve(&config);
    assert_eq!(
        resolved.warnings,
        [
            "Couldn't get any nameserver address",
            "No IPv4 nameserver available for DHCP",
            "No IPv6 nameserver available for NDP/DHCPv6",
        ]
    );
    config.dns_forward4 = Some(ip("10.9.9.9"));
    let v4 = host.v4(&config);
    assert_eq!(
        (v4.dns, v4.dns_forward),
        (vec![ip("10.9.9.9")], Some(ip("10.9.9.9")))
    );
}

#[test]
fn a_resolver_the_guest_would_mistake_for_another_is_forwarded() {
    // The gateway's address means the host, and the guest's own means the guest.
    for server in ["192.0.2.1", "192.0.2.2", "0.0.0.0"] {
        let v4 = Host::lan().server(server).v4(&plain());
        assert_eq!(v4.dns, [ip::<Ipv4Addr>("192.0.2.1")], "{server}");
        assert_eq!(v4.dns_forward, Some(ip("192.0.2.1")), "{server}");
    }
    let config = Config {
        map_host_loopback4: MapChoice::Off,
        ..plain()
    };
    let v4 = Host::lan().server("192.0.2.1").v4(&config);
    assert_eq!((v4.dns, v4.dns_forward), (vec![ip("192.0.2.1")], None));
}

#[test]
fn no_nameservers_on_request_is_nothing_to_warn_of() {
    let config = Config {
        dns_servers: DnsServers::Given(Vec::new()),
        ..plain()
    };
    let resolved = Host::lan().server("9.9.9.9").resolve(&config);
    assert!(resolved.warnings.is_empty());
    assert!(resolved.net.v4.unwrap().dns.is_empty());
}

/// Of the family without nameservers given, the host's are told.
#[test]
fn given_nameservers_replace_those_of_their_family() {
    let host = Host::lan().server("192.0.2.53").server("2001:db8::53");
    for (given, wanted4, wanted6) in [
        (&["9.9.9.9"][..], "9.9.9.9", "2001:db8::53"),
        (&["2001:db8::5353"], "192.0.2.53", "2001:db8::5353"),
        (&["2001:db8::5353", "9.9.9.9"], "9.9.9.9", "2001:db8::5353"),
    ] {
        let config = Config {
            dns_servers: DnsServers::Given(given.iter().map(|server| ip(server)).collect()),
            ..plain()
        };
        assert_eq!(host.v4(&config).dns, [ip::<Ipv4Addr>(wanted4)], "{given:?}");
        assert_eq!(host.v6(&config).dns, [ip::<Ipv6Addr>(wanted6)], "{given:?}");
        assert_eq!(host.resolve(&config).warnings, [""; 0], "{given:?}");
    }
}

#[test]
fn the_mtu_has_a_default_and_zero_keeps_it_secret() {
    let with = |mtu| {
        Host::lan()
            .server("9.9.9.9")
            .server("::9")
            .resolve(&Config { mtu, ..plain() })
    };
    let told = |resolved: &Resolved| (resolved.net.mtu, resolved.net.announce_mtu);
    assert_eq!(told(&with(None)), (65_520, true));
    assert_eq!(told(&with(Some(0))), (65_520, false));
    assert_eq!(told(&with(Some(1500))), (1500, true));
    assert_eq!(
        with(Some(60)).warnings,
        [
            "MTU 60 is too small for IPv4 (minimum 68)",
            "MTU 60 is too small for IPv6 (minimum 1280)",
        ]
    );
}

#[test]
fn at_most_six_search_domains_are_told() {
    let mut host = Host::lan();
    host.0.resolver.search = ["a", "b", "c", "d", "e", "f", "g"]
        .map(str::to_owned)
        .to_vec();
    assert_eq!(host.resolve(&plain()).net.dns.search.len(), 6);
    let config = Config {
        search: SearchList::Given(Vec::new()),
        ..plain()
    };
    assert!(host.resolve(&config).net.dns.search.is_empty());
}

#[test]
fn our_own_address_is_never_the_guests() {
    for (guest, prefix, ours) in [
        ("10.0.0.9", 24, "10.0.0.1"),
        ("10.0.0.1", 24, "10.0.0.2"),
        ("10.0.0.0", 31, "10.0.0.1"),
        ("10.0.0.1", 31, "10.0.0.0"),
        ("10.0.0.1", 32, "169.254.2.2"),
        ("255.255.255.254", 32, "169.254.2.2"),
        ("0.0.0.1", 0, "0.0.0.2"),
    ] {
        assert_eq!(
            first_other_host(ip(guest), prefix),
            ip::<Ipv4Addr>(ours),
            "{guest}/{prefix}"
        );
    }
}
