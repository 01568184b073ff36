//! The process that stays outside the sandbox and tells of changes to the resolver configuration. Its own is narrower: it
//! reads files in a few folders, has no sockets but the line to the other process, and can open none.

use std::{
    ffi::CStr,
    fs::{self, OpenOptions},
    io,
    net::IpAddr,
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::FileExt,
    },
    path::{Path, PathBuf},
    process,
};

use nix::{
    sys::{
        prctl::{set_name, set_pdeathsig},
        signal::{SigSet, Signal},
    },
    unistd::{chdir, dup2_stderr, dup2_stdin, dup2_stdout, setsid},
};

use super::{background, sandbox::Sandbox};
use crate::{
    config::{Config, SearchList},
    host::{
        resolv,
        resolv_watch::{self, Reader, Watcher},
    },
    sys::process::{Forked, close_inherited, fork},
};

/// What others see this process as: `pgrep passt` is to find the one that serves, and no other.
const NAME: &CStr = c"resolv-watcher";

/// Where a new link may lead, by whichever program takes over the file (systemd-resolved(8), resolvconf(8) and the like).
/// What it leads to at first can be read wherever it is.
const FOLDERS: [&str; 5] = ["/etc", "/run", "/usr/lib/systemd", "/var/run", "/mnt/wsl"];

/// Starts the process, if the configuration asks for anything of the file. To be called while nothing is open but what was
/// inherited.
///
/// # Errors
/// Those of socketpair(2) and fork(2).
pub(super) fn start(config: &Config) -> io::Result<Option<Reader>> {
    if !wanted(config) {
        return Ok(None);
    }
    let (reader, watcher) = resolv_watch::pair()?;
    match fork()? {
        Forked::Parent { .. } => Ok(Some(reader)),
        Forked::Child => {
            drop(reader);
            process::exit(i32::from(run(&watcher, config).is_err()));
        }
    }
}

/// Puts the name in the place of the command line as others see it (proc_pid_cmdline(5)).
fn rename_arguments() -> io::Result<()> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    // Fields 48 and 49 of proc_pid_stat(5); the text after the name starts at field 3.
    let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
    let field = |n: usize| fields.split(' ').nth(n - 3)?.trim().parse::<u64>().ok();
    let (Some(start), Some(end)) = (field(48), field(49)) else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let len = usize::try_from(end.saturating_sub(start)).unwrap_or(0);
    let mut line = NAME.to_bytes().to_vec();
    line.resize(len, 0);
    // Its end stays a zero: without, the kernel reads on.
    if let Some(last) = line.last_mut() {
        *last = 0;
    }
    let memory = OpenOptions::new().write(true).open("/proc/self/mem")?;
    memory.write_all_at(&line, start)
}

fn wanted(config: &Config) -> bool {
    let from_host = |is_family: fn(&IpAddr) -> bool| {
        let of = |addr| Some(addr).filter(is_family);
        config.dns_servers.given(of).is_none()
    };
    let host4 = config.dns_forward4.is_some() && config.dns_host4.is_none();
    let host6 = config.dns_forward6.is_some() && config.dns_host6.is_none();
    config.search == SearchList::FromHost
        || config.v4 && (host4 || from_host(IpAddr::is_ipv4))
        || config.v6 && (host6 || from_host(IpAddr::is_ipv6))
}

/// Leaves the terminal and the folder we were started from, as the other process will. Signals that callers may send to both
/// leave this one as it is: it ends with the other.
fn leave_caller(foreground: bool) -> io::Result<()> {
    if !foreground {
        setsid()?;
    }
    let theirs = [
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGTSTP,
        Signal::SIGUSR1,
    ];
    SigSet::from_iter(theirs).thread_set_mask()?;
    chdir("/")?;
    Ok(())
}

fn run(watcher: &Watcher, config: &Config) -> io::Result<()> {
    leave_caller(config.foreground)?;
    set_name(NAME)?;
    // Without, it goes by the other's name with pidof(8) and in lists; that is all.
    let _ = rename_arguments();
    // Whoever reads what we inherited waits for the other process alone.
    let null = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    dup2_stdin(null.as_fd())?;
    dup2_stdout(null.as_fd())?;
    dup2_stderr(null.as_fd())?;
    drop(null);
    close_inherited(Some(watcher.as_fd().as_raw_fd()));
    background::leave_root(config.identity).map_err(io::Error::other)?;
    if config.foreground {
        // In the background the parent does not stay; the line's end says when the other process is gone.
        set_pdeathsig(Signal::SIGKILL)?;
    }
    let path = Path::new(resolv::PATH);
    let mounts = resolv_watch::mounts();
    let mut readable = resolv_watch::folders(path);
    readable.extend(FOLDERS.iter().map(PathBuf::from));
    let sandbox = Sandbox::new(config.require_sandbox);
    sandbox
        .close_for_watcher(&readable)
        .map_err(io::Error::other)?;
    watcher.watch(path, mounts.as_ref());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::DnsServers;

    #[test]
    fn the_resolver_is_followed_for_families_without_nameservers_of_their_own() {
        let given = |servers: &[&str]| Config {
            search: SearchList::Given(Vec::new()),
            dns_servers: DnsServers::Given(servers.iter().map(|s| s.parse().unwrap()).collect()),
            ..Config::default()
        };
        assert!(wanted(&Config::default()));
        assert!(!wanted(&given(&[])));
        assert!(!wanted(&given(&["9.9.9.9", "2001:db8::53"])));
        for server in ["9.9.9.9", "2001:db8::53"] {
            let both = given(&[server]);
            assert!(wanted(&both), "{server}");
            let alone = Config {
                v4: server.contains('.'),
                v6: server.contains(':'),
                ..both
            };
            assert!(!wanted(&alone), "{server}");
        }
    }
}
