//! Unmodified DHCP clients on a kernel guest: each leases through the translator, configures the guest by its own means,
//! and the guest is then online with what it was told.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod kernel_guest;
mod lab;

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    net::{IpAddr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use kernel_guest::KernelGuest;
use lab::{
    Host, Translator, World,
    janitor::{self, TempDir},
    wait_until,
    world::{INTERNET4, INTERNET6},
};

/// A client may wait for a random time, probe for a duplicate of its address and try again.
const PATIENCE: Duration = Duration::from_secs(60);

/// What ordinary clients are told in [`World::pod`].
const POD: Lease = Lease {
    address: "10.233.70.50/24",
    routes: &["default via 10.233.70.1 "],
    resolver: "10.233.70.1",
};

/// And in [`World::routed_pod`], where the gateway is reached by a classless static route (RFC 3442).
const ROUTED_POD: Lease = Lease {
    address: "10.233.70.50/32",
    routes: &["default via 169.254.1.1 ", "169.254.1.1 "],
    resolver: "10.233.70.1",
};

/// In both, by DHCPv6 and router advertisements: the address has no prefix of its own (RFC 8415, section 18.2.10.1).
const POD6: Lease = Lease {
    address: "fd10:233:70::50/128",
    routes: &["default via fe80::1 "],
    resolver: "fd10:233:70::1",
};

struct Lease {
    address: &'static str,
    /// How lines of `ip route` start.
    routes: &'static [&'static str],
    resolver: &'static str,
}

#[test]
fn busybox_udhcpc_leases() {
    let Some(world) = World::pod() else { return };
    udhcpc(&world, &POD);
}

#[test]
fn busybox_udhcpc_reaches_a_gateway_outside_its_prefix() {
    let Some(world) = World::routed_pod() else {
        return;
    };
    udhcpc(&world, &ROUTED_POD);
}

#[test]
fn isc_dhclient_leases() {
    let Some(world) = World::pod() else { return };
    dhclient(&world, "-4", &POD);
}

#[test]
fn isc_dhclient_reaches_a_gateway_outside_its_prefix() {
    let Some(world) = World::routed_pod() else {
        return;
    };
    dhclient(&world, "-4", &ROUTED_POD);
}

#[test]
fn isc_dhclient_leases_by_dhcpv6() {
    let Some(world) = World::pod() else { return };
    dhclient(&world, "-6", &POD6);
}

#[test]
fn dhcpcd_leases() {
    let Some(world) = World::pod() else { return };
    dhcpcd(&world, "-4", &POD);
}

#[test]
fn dhcpcd_reaches_a_gateway_outside_its_prefix() {
    let Some(world) = World::routed_pod() else {
        return;
    };
    dhcpcd(&world, "-4", &ROUTED_POD);
}

#[test]
fn dhcpcd_leases_by_dhcpv6() {
    let Some(world) = World::pod() else { return };
    dhcpcd(&world, "-6", &POD6);
}

fn udhcpc(world: &World, lease: &Lease) {
    let translator = Translator::start(&world.pod, &[]);
    let Some(machine) = Machine::new(&translator, "busybox") else {
        return;
    };
    let script = machine.dir.path().join("udhcpc");
    fs::write(&script, UDHCPC_SCRIPT).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let script = script.to_str().unwrap();
    let words = "udhcpc -f -i eth0 -O search -O staticroutes -O mtu -s";
    let mut words: Vec<_> = words.split(' ').collect();
    words.push(script);
    let client = machine.start("busybox", &words);
    machine.expect_lease(&client, lease);
    machine.expect_mtu(65520);
    expect_online(world, &machine, INTERNET4.into());
}

fn dhclient(world: &World, family: &str, lease: &Lease) {
    let translator = Translator::start(&world.pod, &[]);
    let Some(machine) = Machine::new(&translator, "dhclient") else {
        return;
    };
    let client = machine.start("dhclient", &[family, "-v", "-d", "eth0"]);
    machine.expect_lease(&client, lease);
    if family == "-4" {
        machine.expect_mtu(65520);
    }
    expect_online(world, &machine, internet(family));
}

fn dhcpcd(world: &World, family: &str, lease: &Lease) {
    let translator = Translator::start(&world.pod, &[]);
    let Some(machine) = Machine::new(&translator, "dhcpcd") else {
        return;
    };
    let client = machine.start("dhcpcd", &[family, "--debug", "--nobackground", "eth0"]);
    machine.expect_lease(&client, lease);
    expect_online(world, &machine, internet(family));
}

fn internet(family: &str) -> IpAddr {
    if family == "-6" {
        INTERNET6.into()
    } else {
        INTERNET4.into()
    }
}

/// A kernel guest with an `/etc` and other folders of its own, for a client to write to.
struct Machine {
    guest: KernelGuest,
    dir: TempDir,
}

impl Machine {
    /// `None`, with a word about it, without the program `client` or TAP devices.
    fn new(translator: &Translator, client: &str) -> Option<Self> {
        if !installed(client) {
            println!("skipped: {client} is not installed");
            return None;
        }
        let guest = KernelGuest::plug_after(translator, 1500, |host| {
            // Routers are the kernel's business, as usual; dhcpcd takes it over.
            host.sysctl("ipv6/conf/default/accept_ra", "1");
        })?;
        let dir = TempDir::new();
        // Files only root may read can be missing.
        let _ = Command::new("cp")
            .args(["-a", "/etc"])
            .arg(dir.path())
            .stderr(Stdio::null())
            .status();
        let machine = Self { guest, dir };
        let _ = fs::remove_file(machine.resolv_conf());
        fs::write(machine.resolv_conf(), "").unwrap();
        Some(machine)
    }

    fn host(&self) -> &Host {
        self.guest.host()
    }

    fn resolv_conf(&self) -> PathBuf {
        self.dir.path().join("etc/resolv.conf")
    }

    /// Starts the client, in namespaces where it can neither change this machine nor outlive the test.
    fn start(&self, program: &str, args: &[&str]) -> Client<'_> {
        let log = File::create(self.dir.path().join("log")).unwrap();
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--uts", "--pid", "--fork", "--kill-child"])
            .args(["sh", "-c", ROOM])
            .arg(self.dir.path())
            .arg(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let child = self.host().run(|| command.spawn().expect("unshare(1)"));
        janitor::watch_pid(child.id());
        let dir = self.dir.path();
        Client { child, dir }
    }

    /// Waits until the guest is configured as `lease` says.
    fn expect_lease(&self, client: &Client<'_>, lease: &Lease) {
        let six = if lease.address.contains(':') {
            "-6"
        } else {
            "-4"
        };
        let (mut addresses, mut routes, mut resolvers) = Default::default();
        let configured = wait_until(PATIENCE, || {
            thread::sleep(Duration::from_millis(100));
            addresses = self.host().command("ip", &[six, "address", "show", "eth0"]);
            routes = self.host().command("ip", &[six, "route", "show"]);
            resolvers = fs::read_to_string(self.resolv_conf()).unwrap_or_default();
            addresses.contains(&format!(" {} ", lease.address))
                && lease
                    .routes
                    .iter()
                    .all(|route| routes.lines().any(|line| line.starts_with(route)))
                && resolvers.contains(&format!("nameserver {}\n", lease.resolver))
                // Some write names with the dot of the root.
                && resolvers
                    .replace("example.", "example")
                    .contains("lab.example pod.example")
        });
        assert!(
            configured,
            "not configured as told\n{addresses}\n{routes}\n{resolvers}\n{}",
            client.log()
        );
    }

    fn expect_mtu(&self, mtu: u32) {
        let link = self.host().command("ip", &["link", "show", "eth0"]);
        assert!(link.contains(&format!(" mtu {mtu} ")), "{link}");
    }
}

/// A running client; all its processes are killed on drop.
struct Client<'a> {
    child: Child,
    dir: &'a Path,
}

impl Client<'_> {
    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }
}

impl Drop for Client<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        janitor::gone(self.child.id());
    }
}

/// The guest can talk to a server on the internet.
fn expect_online(world: &World, machine: &Machine, server: IpAddr) {
    let listener = world
        .outside
        .run(|| TcpListener::bind((server, 0)).unwrap());
    let port = listener.local_addr().unwrap().port();
    let answered = machine.host().run(|| -> io::Result<String> {
        let mut stream =
            TcpStream::connect_timeout(&(server, port).into(), Duration::from_secs(20))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        listener.accept()?.0.write_all(b"you are online")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    });
    assert_eq!(answered.unwrap(), "you are online");
}

fn installed(program: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/sbin".into(), "/usr/sbin".into()])
        .any(|folder| folder.join(program).exists())
}

/// A shell that furnishes the mount namespace and becomes the client: $0 is our folder, the rest its command line.
const ROOM: &str = r#"
PATH=$PATH:/usr/sbin:/sbin
mount --bind "$0/etc" /etc || exit
for folder in /run /var/lib/dhcp /var/lib/dhcpcd /var/lib/dhcpcd5; do
    [ ! -d "$folder" ] || mount -t tmpfs -o mode=755 tmpfs "$folder" || exit
done
exec "$@"
"#;

/// What udhcpc runs to have a lease applied.
const UDHCPC_SCRIPT: &str = r#"#!/bin/sh
case $1 in bound | renew) ;; *) exit 0 ;; esac
[ -z "$mtu" ] || ip link set dev "$interface" mtu "$mtu"
ip address replace "$ip/$mask" dev "$interface"
if [ -n "$staticroutes" ]; then
    set -- $staticroutes
    while [ $# -ge 2 ]; do
        via="via $2"
        [ "$2" != 0.0.0.0 ] || via=
        ip route replace "$1" $via dev "$interface"
        shift 2
    done
else
    ip route replace default via "$router" dev "$interface"
fi
{
    echo "search ${search:-$domain}"
    for server in $dns; do echo "nameserver $server"; done
} > /etc/resolv.conf
"#;
