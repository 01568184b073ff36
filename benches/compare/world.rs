//! The little network of a run: the tests' world with one guest per translator in it.
//!
//! ```text
//! guest (TAP) ─ relay ─ UNIX socket ─ translator in the pod ─ lo of the pod          server, host-local
//!                                                          └─ veth ─ outside          server, remote
//! ```

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
    process::Child,
};

use nix::{
    sched::{CpuSet, sched_setaffinity},
    sys::resource::{Resource, getrlimit, setrlimit},
    unistd::Pid,
};

use crate::{
    kernel_guest::KernelGuest,
    lab::{
        Host, Setup, Translator,
        front_end::Driver,
        world::{INTERNET4, INTERNET6},
    },
};

/// What the guest calls the pod's loopback.
pub(crate) const LOCAL4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const LOCAL6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x9a55, 0, 0, 0, 0, 2);

/// Pod and outside host.
pub(crate) struct World {
    pub(crate) hosts: crate::lab::World,
    /// Congestion control of sockets nobody set one for: the translator's.
    pub(crate) pod_congestion: String,
}

impl World {
    /// Build it; the pod's default congestion control becomes `congestion` where the kernel lets a namespace have it.
    /// `None` when it cannot be built here.
    pub(crate) fn new(veth_mtu: u32, congestion: &str) -> Option<Self> {
        let hosts = crate::lab::World::pod()?;
        hosts.pod.ip(&format!("link set eth0 mtu {veth_mtu}"));
        hosts.outside.ip(&format!("link set pod0 mtu {veth_mtu}"));
        let pod_congestion = hosts.pod.run(|| {
            let path = "/proc/sys/net/ipv4/tcp_congestion_control";
            // A namespace may only have those the machine's administrator allows to everybody.
            let _ = fs::write(path, congestion);
            fs::read_to_string(path).unwrap_or_default()
        });
        Some(Self {
            hosts,
            pod_congestion: pod_congestion.trim().to_owned(),
        })
    }

    /// Where a server runs, the address it binds to, and the address the guest connects to for it.
    pub(crate) fn server(&self, remote: bool, ipv6: bool) -> (&Host, IpAddr, IpAddr) {
        let hosts = &self.hosts;
        match (remote, ipv6) {
            (false, true) => (&hosts.pod, Ipv6Addr::LOCALHOST.into(), LOCAL6.into()),
            (false, false) => (&hosts.pod, Ipv4Addr::LOCALHOST.into(), LOCAL4.into()),
            (true, true) => (&hosts.outside, INTERNET6.into(), INTERNET6.into()),
            (true, false) => (&hosts.outside, INTERNET4.into(), INTERNET4.into()),
        }
    }

    /// Start `binary` in the pod and plug a guest into it. `None` when there are no TAP devices here.
    /// By vhost-user if there is a `driver`, whose queue pairs are served each.
    pub(crate) fn subject(
        &self,
        binary: &Path,
        mtu: u32,
        pin: Option<usize>,
        driver: Option<Driver>,
    ) -> Option<Subject> {
        let mut setup = Setup::new(&["--quiet", "--mtu", &mtu.to_string()])
            .arg("--map-host-loopback")
            .arg(&LOCAL4.to_string())
            .arg("--map-host-loopback")
            .arg(&LOCAL6.to_string())
            .binary(binary);
        if let Some(driver) = &driver {
            setup = setup.arg("--vhost-user");
            if driver.pairs > 1 {
                setup = setup.arg("--queues").arg(&driver.pairs.to_string());
            }
        }
        let translator = setup.start(&self.hosts.pod);
        if let Some(cpu) = pin {
            pin_process(translator.pid(), |at| at == cpu);
        }
        let guest = match driver {
            Some(driver) => KernelGuest::plug_driver(translator.connect(), mtu, driver)?,
            None => KernelGuest::plug(&translator, mtu)?,
        };
        guest.number();
        // Room for many short connections in a row.
        let ports = "ipv4/ip_local_port_range";
        guest.host().sysctl(ports, "1024 65535");
        Some(Subject { guest, translator })
    }
}

/// A translator under measurement with its guest.
pub(crate) struct Subject {
    pub(crate) guest: KernelGuest,
    pub(crate) translator: Translator,
}

/// A process, for as long as this lives.
pub(crate) struct Process(pub(crate) Child);

impl Process {
    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Bind a process with one thread (0: the calling thread, and those it will start) to the CPUs that `allowed` says.
pub(crate) fn pin_process(process: u32, allowed: impl Fn(usize) -> bool) {
    let mut set = CpuSet::new();
    let process = Pid::from_raw(process.cast_signed());
    for cpu in (0..CpuSet::count()).filter(|&cpu| allowed(cpu)) {
        set.set(cpu).expect("below the count");
    }
    sched_setaffinity(process, &set).expect("such a CPU");
}

/// Held connections take three descriptors each, two of them here.
pub(crate) fn raise_descriptor_limit() {
    if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, most, most);
    }
}
