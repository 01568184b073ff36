//! What the running process shuts itself in, layer by layer.
//!
//! | layer | when | what it takes away |
//! |---|---|---|
//! | user namespace | before the fork | every right over what belongs to others |
//! | PID namespace | before the fork, so not with `--foreground` | sight of other processes |
//! | mount, IPC and UTS namespaces | after it | the host's mounts, queues and names |
//! | empty root | | every file; what is needed from then on is open |
//! | capabilities | | all, the bounding set too |
//! | no new privileges, no dumps | | what exec could give; debuggers of the same user |
//! | Landlock | | files, a second time; abstract sockets and processes of others |
//! | seccomp | last | system calls the data path does not make |
//!
//! Containers, AppArmor and sysctls forbid some of these to some. A layer that cannot be had is left out with a warning that
//! names it, unless all of them are required. All but seccomp hold for the thread that asks and those it starts, so further
//! threads start when these layers stand; the filter of system calls, which forbids starting any, is put on all of them last.
//! User and group are not mapped into the user namespace: nothing here creates files or asks who it is.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use caps::{CapSet, Capability};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::prctl::{set_dumpable, set_no_new_privs},
    unistd::{chdir, chroot, pivot_root},
};

use super::{landlock, seccomp};
use crate::sys::reason;

/// Folders of which one will be there, to mount the empty one on.
const PLACES: [&str; 3] = ["/tmp", "/proc", "/dev"];

/// Options of the empty root: it holds itself and nothing more (tmpfs(5)).
const EMPTY: &str = "size=4096,nr_inodes=2,mode=555";

/// The sandbox under construction.
#[derive(Debug)]
pub struct Sandbox {
    /// Whether a missing layer is an error.
    required: bool,
    /// Whether the capabilities we have mean nothing outside.
    own_user_namespace: bool,
    report: Report,
}

/// What of the sandbox stands: each layer with the reason if it is missing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    layers: Vec<(&'static str, Option<String>)>,
    /// System calls that are left; all without the filter.
    calls: Option<usize>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (layer, missing) in &self.layers {
            let state = missing.as_ref().map_or("ok", |why| why);
            writeln!(f, "{layer}: {state}")?;
        }
        match self.calls {
            Some(calls) => writeln!(f, "system calls allowed: {calls}"),
            None => writeln!(f, "system calls allowed: all"),
        }
    }
}

/// A layer's name, and the step to it.
type Layer = (&'static str, &'static str);

const USER: Layer = ("user namespace", "create user namespace");
const PIDS: Layer = ("PID namespace", "create PID namespace");
const SPACES: Layer = (
    "mount, IPC and UTS namespaces",
    "create mount, IPC and UTS namespaces",
);
const ROOT: Layer = ("empty root", "leave the file system");
const CAPABILITIES: Layer = ("dropped capabilities", "drop capabilities");
const DUMPS: Layer = ("no core dumps", "forbid core dumps");
const PRIVILEGES: Layer = ("no new privileges", "give up new privileges");
const LANDLOCK: Layer = ("Landlock", "confine with Landlock");
const FILTER: Layer = ("seccomp filter", "load seccomp filter");

impl Sandbox {
    pub fn new(required: bool) -> Self {
        Self {
            required,
            own_user_namespace: false,
            report: Report::default(),
        }
    }

    /// Enters a user namespace. Ports below 1024 have to be bound before.
    ///
    /// # Errors
    /// One line, if all layers are required.
    pub fn isolate_user(&mut self) -> Result<(), String> {
        let done = unshare(CloneFlags::CLONE_NEWUSER);
        self.own_user_namespace = self.layer(USER, done)?.is_some();
        Ok(())
    }

    /// Has the next process that is forked live in a PID namespace of its own.
    ///
    /// # Errors
    /// One line, if all layers are required.
    pub fn isolate_child(&mut self, foreground: bool) -> Result<(), String> {
        if foreground {
            self.without(PIDS, "not in the foreground");
            return Ok(());
        }
        let done = unshare(CloneFlags::CLONE_NEWPID);
        self.layer(PIDS, done).map(drop)
    }

    /// Adds all other layers but the filter of system calls. Files are out of reach from here on.
    ///
    /// # Errors
    /// One line, if all layers are required.
    pub fn isolate_rest(&mut self) -> Result<(), String> {
        let spaces = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
        if self.layer(SPACES, unshare(spaces))?.is_some() {
            self.layer(ROOT, empty_root())?;
        } else {
            self.without(ROOT, "needs a mount namespace");
        }
        let keep = (!self.own_user_namespace).then_some(Capability::CAP_NET_BIND_SERVICE);
        self.give_up(keep)?;
        self.confine(&[])
    }

    /// Adds the filter of system calls, the last layer, to all threads. None can be started from here on.
    ///
    /// # Errors
    /// One line, if all layers are required.
    pub fn close(mut self) -> Result<Report, String> {
        self.report.calls = self.layer(FILTER, seccomp::load())?;
        Ok(self.report)
    }

    /// The layers of the process that watches the resolver configuration and has to read files for that, below these
    /// folders.
    ///
    /// # Errors
    /// One line, if all layers are required.
    pub fn close_for_watcher(mut self, readable: &[PathBuf]) -> Result<Report, String> {
        self.give_up(None)?;
        self.confine(readable)?;
        self.report.calls = self.layer(FILTER, seccomp::load_for_watcher())?;
        Ok(self.report)
    }

    /// Gives up what exec and debuggers could use, and all capabilities but one.
    fn give_up(&mut self, keep: Option<Capability>) -> Result<(), String> {
        self.layer(CAPABILITIES, drop_capabilities(keep))?;
        self.layer(DUMPS, set_dumpable(false))?;
        self.layer(PRIVILEGES, set_no_new_privs())?;
        Ok(())
    }

    /// Landlock is a second lock on a door that the empty root closes. Many kernels are built without, which is not worth a
    /// warning at every start.
    fn confine(&mut self, readable: &[PathBuf]) -> Result<(), String> {
        match landlock::confine(readable) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported && !self.required => {
                log::debug!("Landlock: {error}");
                self.without(LANDLOCK, &error.to_string());
                Ok(())
            }
            done => self.layer(LANDLOCK, done).map(drop),
        }
    }

    /// Notes how the step to a layer went; `None` if it is left out.
    fn layer<T>(
        &mut self,
        layer: Layer,
        done: Result<T, impl Into<io::Error>>,
    ) -> Result<Option<T>, String> {
        let (name, step) = layer;
        match done {
            Ok(value) => {
                self.report.layers.push((name, None));
                Ok(Some(value))
            }
            Err(error) => {
                let why = reason(&error.into());
                if self.required {
                    return Err(format!("Couldn't {step}: {why}"));
                }
                log::warn!("Couldn't {step}: {why}, continuing without");
                self.without(layer, &why);
                Ok(None)
            }
        }
    }

    fn without(&mut self, (name, _): Layer, why: &str) {
        let missing = format!("missing, {why}");
        self.report.layers.push((name, Some(missing)));
    }
}

/// Replaces the root folder by one that is empty and cannot be written to. For a mount namespace of our own only.
fn empty_root() -> nix::Result<()> {
    let nothing = None::<&str>;
    // Nothing of what follows may be seen outside. That, and not just MS_PRIVATE, is what policies for passt have allowed
    // (contrib/apparmor).
    let apart = MsFlags::MS_REC | MsFlags::MS_UNBINDABLE;
    mount(nothing, "/", nothing, apart, nothing)?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let mount_at = |place: &&str| mount(nothing, *place, Some("tmpfs"), flags, Some(EMPTY));
    let mut tried = PLACES
        .iter()
        .map(|place| mount_at(place).and_then(|()| chdir(*place)));
    let first = tried.next().unwrap_or(Ok(()));
    first.or_else(|error| tried.find(Result::is_ok).unwrap_or(Err(error)))?;
    // pivot_root(2), NOTES: the old root then is mounted over the new one, and goes by the same name.
    match pivot_root(".", ".") {
        Ok(()) => umount2(".", MntFlags::MNT_DETACH)?,
        // The first root of a machine, an initramfs, cannot be moved.
        Err(_) => {
            mount(Some("."), "/", nothing, MsFlags::MS_MOVE, nothing)?;
            chroot(Path::new("."))?;
        }
    }
    chdir("/")
}

/// Drops every capability but `keep`, from all sets. Without the right to it the bounding set stays, which then matters
/// as little: nothing new can be had by exec.
pub(super) fn drop_capabilities(keep: Option<Capability>) -> Result<(), io::Error> {
    let held = |set, capability| caps::has_cap(None, set, capability).unwrap_or(false);
    let kept: caps::CapsHashSet = keep
        .into_iter()
        .filter(|&capability| held(CapSet::Permitted, capability))
        .collect();
    if held(CapSet::Effective, Capability::CAP_SETPCAP) {
        for capability in caps::all() {
            if !kept.contains(&capability) && held(CapSet::Bounding, capability) {
                caps::drop(None, CapSet::Bounding, capability).map_err(io::Error::other)?;
            }
        }
    }
    // Old kernels and some containers have no ambient set to speak of.
    let _ = caps::clear(None, CapSet::Ambient);
    for set in [CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
        let left = match set {
            CapSet::Inheritable => caps::CapsHashSet::new(),
            _ => kept.clone(),
        };
        caps::set(None, set, &left).map_err(io::Error::other)?;
    }
    Ok(())
}
