//! A kernel guest that unmodified DHCP clients may furnish: their files are its own.

use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use super::KernelGuest;
use crate::lab::{
    Host, Translator,
    janitor::{self, TempDir},
    wait_until,
};

/// A client may wait for a random time, probe for a duplicate of its address and try again.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What a client is to make of its lease.
#[derive(Debug)]
pub struct Lease {
    /// With its prefix length.
    pub address: &'static str,
    /// How lines of `ip route` start.
    pub routes: &'static [&'static str],
    pub resolver: &'static str,
    /// Search domains, with spaces between.
    pub search: &'static str,
}

/// A kernel guest with an `/etc` and other folders of its own, for a client to write to.
pub struct Machine {
    guest: KernelGuest,
    dir: TempDir,
}

impl Machine {
    /// `None`, with a word about it, without the program `client` or TAP devices.
    pub fn new(translator: &Translator, client: &str) -> Option<Self> {
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

    /// Where the client may find files of the test's.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn host(&self) -> &Host {
        self.guest.host()
    }

    pub fn resolv_conf(&self) -> PathBuf {
        self.dir.path().join("etc/resolv.conf")
    }

    /// Starts the client, in namespaces where it can neither change this machine nor outlive the test.
    pub fn start(&self, program: &str, args: &[&str]) -> Client<'_> {
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
    pub fn expect_lease(&self, client: &Client<'_>, lease: &Lease) {
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
            // Some write names with the dot of the root.
            resolvers = resolvers.replace(". ", " ").replace(".\n", "\n");
            addresses.contains(&format!(" {} ", lease.address))
                && lease
                    .routes
                    .iter()
                    .all(|route| routes.lines().any(|line| line.starts_with(route)))
                && resolvers.contains(&format!("nameserver {}\n", lease.resolver))
                && resolvers.contains(lease.search)
        });
        assert!(
            configured,
            "not configured as told\n{addresses}\n{routes}\n{resolvers}\n{}",
            client.log()
        );
    }

    pub fn expect_mtu(&self, mtu: u32) {
        let link = self.host().command("ip", &["link", "show", "eth0"]);
        assert!(link.contains(&format!(" mtu {mtu} ")), "{link}");
    }
}

/// A running client; all its processes are killed on drop.
pub struct Client<'a> {
    child: Child,
    dir: &'a Path,
}

impl Client<'_> {
    pub fn log(&self) -> String {
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

fn installed(program: &str) -> bool {
    let path = env::var("PATH").unwrap_or_default();
    env::split_paths(&path)
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
