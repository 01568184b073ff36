//! The start-up print-out, and the manual page.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use passt_rs::{
    cli,
    config::{Facts, resolve},
};

use super::words;

#[test]
fn the_print_out_lists_what_the_guest_is_told() {
    let config = words(
        "-a 10.0.0.2/24 -g 10.0.0.1 -D 1.1.1.1 -D 2606::1 -S a -S b -o 10.9.0.1 --outbound-if6 e1",
    );
    let resolved = resolve(&config, &Facts::default()).unwrap();
    let page = cli::summary(&resolved, &config, Some(Path::new("/tmp/p.socket")));
    assert_eq!(
        page,
        "UNIX domain socket bound at /tmp/p.socket\n\
         Outbound interface: e1 (IPv6)\n\
         Outbound IPv4 address: 10.9.0.1\n\
         MAC:\n\
         \x20   host: 9a:55:9a:55:9a:55\n\
         \x20   NAT to host 127.0.0.1: 10.0.0.1\n\
         DHCP:\n\
         \x20   assign: 10.0.0.2\n\
         \x20   mask: 255.255.255.0\n\
         \x20   router: 10.0.0.1\n\
         DNS:\n\
         \x20   1.1.1.1\n\
         DNS search list:\n\
         \x20   a\n\
         \x20   b\n\
         \x20   NAT to host ::1: fe80::1\n\
         NDP:\n\
         \x20   assign: ::\n\
         \x20   router: fe80::1\n\
         \x20   our link-local: fe80::1\n\
         DNS:\n\
         \x20   2606::1\n\
         DNS search list:\n\
         \x20   a\n\
         \x20   b\n\
         \n\
         You can now start qemu (>= 7.2, with commit 13c6be96618c):\n\
         \x20   kvm ... -device virtio-net-pci,netdev=s -netdev stream,id=s,server=off,addr.type=unix,addr.path=/tmp/p.socket\n"
    );
}

#[test]
fn the_print_out_leaves_out_what_is_off() {
    let config = words("--fd 3 --no-map-gw --no-dhcp --no-ndp --no-dhcpv6 -D none -S none");
    let mut resolved = resolve(&config, &Facts::default()).unwrap();
    resolved.template4 = Some("eth0".to_owned());
    resolved.template6 = Some("eth1".to_owned());
    assert_eq!(
        cli::summary(&resolved, &config, None),
        "Template interface: eth0 (IPv4), eth1 (IPv6)\nMAC:\n    host: 9a:55:9a:55:9a:55\n"
    );
}

/// Whatever was cleared before.
#[test]
fn a_nameserver_of_one_family_leaves_the_other_to_the_host() {
    let mut facts = Facts::default();
    facts.resolver.servers4.push("192.0.2.53".parse().unwrap());
    facts
        .resolver
        .servers6
        .push("2001:db8::53".parse().unwrap());
    for (line, wanted) in [
        ("-D 9.9.9.9", &["9.9.9.9", "2001:db8::53"][..]),
        ("-D ::5", &["192.0.2.53", "::5"]),
        ("-D none -D ::5", &["192.0.2.53", "::5"]),
        ("-D 9.9.9.9 -D none", &[]),
    ] {
        let config = words(line);
        let resolved = resolve(&config, &facts).unwrap();
        let page = cli::summary(&resolved, &config, None);
        let told: Vec<&str> = page
            .split("DNS:\n")
            .skip(1)
            .filter_map(|rest| rest.lines().next().map(str::trim))
            .collect();
        assert_eq!(told, wanted, "{line}: {page}");
    }
}

#[test]
fn the_print_out_lists_what_is_forwarded() {
    let page = |line: &str| {
        let config = words(line);
        let resolved = resolve(&config, &Facts::default()).unwrap();
        let page = cli::summary(&resolved, &config, None);
        let (_, rules) = page
            .split_once("Inbound forwarding rules (HOST):\n")
            .unwrap();
        rules.to_owned()
    };
    assert_eq!(
        page(
            "-t 2222:22 -u 127.0.0.1%lo/53-54:5353-5354 -t 127.0.0.2/80:10.0.0.9 -t [::1]/80:[fd00::9]/81"
        ),
        "    TCP [*]:2222  =>  22 \n\
         \x20   UDP [127.0.0.1]%lo:53-54  =>  5353-5354 \n\
         \x20   TCP [127.0.0.2]:80  =>  10.0.0.9:80 \n\
         \x20   TCP [::1]:80  =>  [fd00::9]:81 \n"
    );
    assert_eq!(
        page("-4 -t ~2-65535 -u 1"),
        "    TCP [0.0.0.0]:1  =>  1  (best effort)\n    UDP [0.0.0.0]:1  =>  1 \n"
    );
    assert_eq!(page("-6 -t 80"), "    TCP [::]:80  =>  80 \n");
}

#[test]
fn the_hint_fits_vhost_user() {
    let config = words("--vhost-user");
    let resolved = resolve(&config, &Facts::default()).unwrap();
    let page = cli::summary(&resolved, &config, Some(Path::new("/v")));
    assert!(page.ends_with(
        "You can start qemu with:\n    kvm ... -chardev socket,id=chr0,path=/v \
         -netdev vhost-user,id=netdev0,chardev=chr0 -device virtio-net,netdev=netdev0 \
         -object memory-backend-memfd,id=memfd0,share=on,size=$RAMSIZE -numa node,memdev=memfd0\n\n"
    ));
}

/// The options a line of the manual's list names: `.It Fl s , Fl -socket Ar path`.
fn documented(page: &str) -> BTreeSet<String> {
    let heads = page.lines().filter_map(|line| line.strip_prefix(".It Fl "));
    heads
        .flat_map(|head| head.split(" , Fl "))
        .map(|option| format!("-{}", option.split_whitespace().next().unwrap()))
        .map(|option| option.replace("\\-", "-"))
        .collect()
}

#[test]
fn the_manual_page_names_every_option_and_no_other() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("man/passt.1");
    let page = fs::read_to_string(path).unwrap();
    let options: BTreeSet<String> = cli::spellings().collect();
    assert_eq!(documented(&page), options);
}
