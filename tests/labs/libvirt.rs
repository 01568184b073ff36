//! The real libvirt as caller: a session daemon starts a QEMU machine (TCG, Debian's kernel, busybox) with our binary as the
//! `passt` in its PATH.

use std::{
    fs,
    io::{self, Read},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    time::Duration,
};

use nix::sys::signal::{Signal, kill};

use super::lab::{
    Host, LONG, PATIENCE, World,
    session::Session,
    traffic::expect_refusal,
    wait_until,
    world::{INTERNET4, POD4},
};

/// What the ports of the interface below come to.
const TCP_PORTS: &str = "22,18080:8080,18100-18110:8100-8110,~18105";

/// Where the guest listens; of these 8105 is behind an excluded port.
const SERVED: &str = "22 53 8080 8100 8105 8110";

#[test]
fn a_machine_of_libvirts_is_online_and_its_ports_are_forwarded() {
    let Some(lab) = Lab::new() else { return };
    lab.create("");
    let argv = lab.session.translator().1;
    let run = lab.session.passt_folder().join("1-guest-net0");
    let run = run.display();
    let log = lab.session.dir().join("passt.log");
    assert_eq!(
        argv.join(" "),
        format!(
            "passt --one-off --socket {run}.socket --pid {run}-passt.pid --interface eth0 --log-file {} \
             --tcp-ports {TCP_PORTS} --tcp-ports 127.0.0.1/15353:53",
            log.display()
        )
    );
    lab.session.expect_console("guest: leased 10.233.70.50/24");
    lab.session.expect_console("guest: internet answers");
    lab.expect_forwarded();
    for excluded in [18_105, 18_099, 18_111, 8080] {
        expect_refusal(&lab.world.outside, (POD4, excluded));
    }
    // Only for the host itself.
    lab.expect_port(&lab.world.pod, Ipv4Addr::LOCALHOST, 15_353, 53);
    expect_refusal(&lab.world.outside, (POD4, 15_353));
    lab.destroy();
}

/// KubeVirt's way from 1.6 on.
#[test]
fn a_machine_that_shares_its_memory_is_online_and_its_ports_are_forwarded() {
    let Some(lab) = Lab::with("vhostuser") else {
        return;
    };
    lab.create("");
    let argv = lab.session.translator().1.join(" ");
    assert!(
        argv.starts_with("passt --vhost-user --one-off --socket "),
        "{argv}"
    );
    lab.session.expect_console("guest: leased 10.233.70.50/24");
    lab.session.expect_console("guest: internet answers");
    lab.expect_forwarded();
    lab.destroy();
}

#[test]
#[ignore = "takes longer than ten seconds"]
fn libvirt_starts_a_killed_translator_anew_and_the_guest_stays_online() {
    for kind in ["user", "vhostuser"] {
        survives_a_kill(kind);
    }
}

fn survives_a_kill(kind: &'static str) {
    let Some(lab) = Lab::with(kind) else { return };
    if !lab.reconnects() {
        println!("skipped: this QEMU does not reconnect");
        return;
    }
    lab.create("");
    lab.session.expect_console("guest: internet answers");
    lab.expect_forwarded();
    let (pid, argv) = lab.session.translator();
    kill(pid, Signal::SIGKILL).expect("kill");
    let anew = wait_until(PATIENCE, || {
        lab.session
            .translators()
            .iter()
            .any(|(other, args)| *other != pid && *args == argv)
    });
    assert!(
        anew,
        "{:?}\n{}",
        lab.session.translators(),
        lab.session.log()
    );
    // QEMU and the guest are the same; both ways work again.
    lab.expect_forwarded();
    let before = lab.session.console().lines().count();
    let answers = || {
        let console = lab.session.console();
        let mut since = console.lines().skip(before);
        since.any(|line| line.ends_with("internet answers"))
    };
    assert!(wait_until(PATIENCE, answers), "{}", lab.session.console());
    assert_eq!(lab.session.console().matches("guest: leased").count(), 1);
    lab.destroy();
}

#[test]
fn addresses_of_its_own_reach_the_guest() {
    let Some(lab) = Lab::new() else { return };
    lab.create("<ip family='ipv4' address='10.0.2.2' prefix='24'/><ip family='ipv6' address='fd10:0:2::2'/>");
    let argv = lab.session.translator().1.join(" ");
    let own = "--address 10.0.2.2 --netmask 24 --address fd10:0:2::2";
    assert!(argv.contains(own), "{argv}");
    lab.session.expect_console("guest: leased 10.0.2.2/24");
    lab.session.expect_console("guest: internet answers");
    lab.expect_forwarded();
    lab.destroy();
}

/// What it says on stderr is all that users see.
#[test]
fn a_port_that_is_taken_fails_the_start_with_a_reason() {
    let Some(lab) = Lab::new() else { return };
    let _taken = super::lab::servers::tcp_listener(&lab.world.pod, (POD4, 18_080));
    let output = lab.session.virsh(&["create", &lab.domain("")]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "started");
    assert!(said.contains("18080"), "{said}");
    assert!(said.contains("Address already in use"), "{said}");
    lab.assert_nothing_left();
}

/// A session daemon in the pod.
struct Lab {
    session: Session,
    world: World,
    /// Of the interface: `user`, a stream of frames, or `vhostuser`.
    kind: &'static str,
}

impl Lab {
    /// `None`, with a word about it, where libvirt or a part of the guest is missing.
    fn new() -> Option<Self> {
        Self::with("user")
    }

    /// The same, with an interface of this type.
    fn with(kind: &'static str) -> Option<Self> {
        let world = World::pod()?;
        world.pod.allow_low_ports();
        let session = Session::start(&world.pod, "tests/labs/libvirt-init")?;
        Some(Self {
            session,
            world,
            kind,
        })
    }

    /// Whether this QEMU's `-netdev stream` can reconnect: from 8.0 on.
    fn reconnects(&self) -> bool {
        let version = self.session.virsh(&["version"]).stdout;
        let version = String::from_utf8_lossy(&version).into_owned();
        let line = version
            .lines()
            .find(|line| line.contains("Running hypervisor"));
        let major = line.and_then(|line| line.split("QEMU ").nth(1)?.split('.').next());
        major
            .and_then(|n| n.parse::<u32>().ok())
            .expect("a version")
            >= 8
    }

    /// Writes the domain, with `ip` in its interface, and tells where.
    fn domain(&self, ip: &str) -> String {
        let dir = self.session.dir().display();
        let kind = self.kind;
        let memory = if kind == "vhostuser" {
            "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>"
        } else {
            ""
        };
        let xml = format!(
            "<domain type='qemu'>
               <name>guest</name>
               <memory unit='MiB'>192</memory>
               {memory}
               <os>
                 <type arch='x86_64' machine='pc'>hvm</type>
                 <kernel>{dir}/kernel</kernel>
                 <initrd>{dir}/initramfs</initrd>
                 <cmdline>console=ttyS0 quiet panic=-1 no_timer_check internet={INTERNET4} ports=\"{SERVED}\"</cmdline>
               </os>
               <cpu mode='maximum'/>
               <devices>
                 <serial type='file'><source path='{dir}/console'/></serial>
                 <memballoon model='none'/>
                 <interface type='{kind}'>
                   <source dev='eth0'/>
                   <mac address='52:54:00:12:34:56'/>
                   <model type='virtio'/>
                   <backend type='passt' logFile='{dir}/passt.log'/>
                   {ip}
                   <portForward proto='tcp'>
                     <range start='22'/>
                     <range start='18080' to='8080'/>
                     <range start='18100' end='18110' to='8100'/>
                     <range start='18105' exclude='yes'/>
                   </portForward>
                   <portForward proto='tcp' address='127.0.0.1'>
                     <range start='15353' to='53'/>
                   </portForward>
                 </interface>
               </devices>
             </domain>"
        );
        self.session.write(&xml)
    }

    fn create(&self, ip: &str) {
        self.session.order(&["create", &self.domain(ip)]);
    }

    /// Takes the plug, which must leave neither process nor file.
    fn destroy(&self) {
        self.session.order(&["destroy", "guest"]);
        self.assert_nothing_left();
        // That the machine cannot look up its own name is no affair of ours.
        for line in self
            .session
            .log()
            .lines()
            .filter(|l| !l.contains("virGetHostname"))
        {
            assert!(!line.contains("warning :"), "{line}");
        }
    }

    fn assert_nothing_left(&self) {
        let gone = wait_until(LONG, || self.session.translators().is_empty());
        assert!(gone, "{:?}", self.session.translators());
        let folder = self.session.passt_folder();
        let files = || -> Vec<_> { fs::read_dir(&folder).expect("passt").collect() };
        // This libvirt leaves socket and PID file of this type behind, whoever made them.
        let left = || self.kind == "user" && !files().is_empty();
        assert!(wait_until(LONG, || !left()), "{:?}", files());
    }

    /// Every forwarded port leads to its server in the guest, from outside.
    fn expect_forwarded(&self) {
        for (port, served) in [(22, 22), (18_080, 8080), (18_100, 8100), (18_110, 8110)] {
            self.expect_port(&self.world.outside, POD4, port, served);
        }
    }

    fn expect_port(&self, from: &Host, addr: Ipv4Addr, port: u16, served: u16) {
        let mut last = Ok(String::new());
        let served = format!("guest port {served}\n");
        let right = wait_until(PATIENCE, || {
            last = hear(from, (addr, port).into());
            last.as_ref().is_ok_and(|said| *said == served)
        });
        assert!(
            right,
            "{addr}:{port}: {last:?}\n{}\n{}",
            self.session.console(),
            self.session.log()
        );
    }
}

/// What the server at `remote` says.
fn hear(host: &Host, remote: SocketAddr) -> io::Result<String> {
    let pause = Duration::from_secs(5);
    let mut stream = host.run(|| TcpStream::connect_timeout(&remote, pause))?;
    stream.set_read_timeout(Some(pause))?;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    Ok(said)
}
