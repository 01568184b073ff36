//! The cage around the running process, layer by layer.
//!
//! | layer | when | what it takes away |
//! |---|---|---|
//! | user namespace | before the fork | every right over what belongs to others |
//! | PID namespace | before the fork, so not with `--foreground` | sight of other processes |
//! | mount, IPC and UTS namespaces | after it | the host's mounts, queues and names |
//! | empty root | | every file; what is needed from then on is open |
//! | capabilities | | all, the bounding set too |
//! | no new privileges, no dumps | | what exec could give; debuggers of the same user |
//! | seccomp | last | system calls the data path does not make |
//!
//! Containers, AppArmor and sysctls forbid some of these to some. A layer that cannot be had is left out with a warning that
//! names it, unless all of them are required. User and group are not mapped into the user namespace: nothing here
//! creates files or asks who it is.

use std::{io, path::Path};

use caps::{CapSet, Capability};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::prctl::{set_dumpable, set_no_new_privs},
    unistd::{chdir, chroot, pivot_root},
};

use super::seccomp;
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
}

impl Sandbox {
    pub const fn new(required: bool) -> Self {
        Self {
            required,
            own_user_namespace: false,
        }
    }

    /// Enters a user namespace. Ports below 1024 have to be bound before.
    ///
    /// # Errors
    /// One line, if all layers are required.
    pub fn isolate_user(&mut self) -> Result<(), String> {
        let done = unshare(CloneFlags::CLONE_NEWUSER);
        self.own_user_namespace = self.layer("create user namespace", done)?;
        Ok(())
    }

    /// Has the next process that is forked live in a PID namespace of its own.
    ///
    /// # Errors
    /// One line, if all layers are required.
    pub fn isolate_child(&self) -> Result<(), String> {
        let done = unshare(CloneFlags::CLONE_NEWPID);
        self.layer("create PID namespace", done).map(drop)
    }

    /// Adds all other layers. Files are out of reach from here on.
    ///
    /// # Errors
    /// One line, if all layers are required.
    pub fn close(self) -> Result<(), String> {
        let namespaces =
            CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
        if self.layer("create mount, IPC and UTS namespaces", unshare(namespaces))? {
            self.layer("leave the file system", empty_root())?;
        }
        let keep = if self.own_user_namespace {
            None
        } else {
            Some(Capability::CAP_NET_BIND_SERVICE)
        };
        self.layer("drop capabilities", drop_capabilities(keep))?;
        self.layer("forbid core dumps", set_dumpable(false))?;
        self.layer("give up new privileges", set_no_new_privs())?;
        self.layer("load seccomp filter", seccomp::load())?;
        Ok(())
    }

    /// Whether a layer stands now.
    fn layer(&self, what: &str, done: Result<(), impl Into<io::Error>>) -> Result<bool, String> {
        let Err(error) = done else { return Ok(true) };
        let why = reason(&error.into());
        if self.required {
            return Err(format!("Couldn't {what}: {why}"));
        }
        log::warn!("Couldn't {what}: {why}, continuing without");
        Ok(false)
    }
}

/// Replaces the root folder by one that is empty and cannot be written to. For a mount namespace of our own only.
fn empty_root() -> nix::Result<()> {
    let nothing = None::<&str>;
    // Nothing of what follows may be seen outside.
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(nothing, "/", nothing, private, nothing)?;
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
