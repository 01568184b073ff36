//! The system calls of the running process: those the data path makes, those the allocator and the standard library make,
//! and those a panic makes on its way out. Any other kills the process.
//!
//! Calls by path are answered with an error instead: libraries try files on rare ways, and do without.

use std::{collections::BTreeMap, env::consts::ARCH, io};

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter,
};

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Allowed whatever the arguments.
const CALLS: &[c_long] = &[
    // Sockets of flows, the guest's link, netlink, syslog.
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_close,
    libc::SYS_connect,
    libc::SYS_fcntl,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_listen,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    // The loop.
    libc::SYS_clock_gettime,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    libc::SYS_ppoll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    // Log and capture files; standard descriptors on the way to the background.
    libc::SYS_dup,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_dup2,
    libc::SYS_dup3,
    libc::SYS_fstat,
    libc::SYS_ftruncate,
    libc::SYS_lseek,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    // Memory and the standard library.
    libc::SYS_brk,
    libc::SYS_clock_nanosleep,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_restart_syscall,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_sigaltstack,
    // The end.
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_tgkill,
];

/// Answered with an error.
const BY_PATH: &[c_long] = &[
    #[cfg(target_arch = "x86_64")]
    libc::SYS_access,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_getcwd,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lstat,
    libc::SYS_newfstatat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    libc::SYS_openat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
    libc::SYS_statx,
];

/// The calls of `passt-repair`, setsockopt(2) aside.
const HELPER_CALLS: &[c_long] = &[
    libc::SYS_close,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_ppoll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    libc::SYS_write,
    // Memory and the standard library.
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_restart_syscall,
    libc::SYS_sigaltstack,
    // The end.
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_tgkill,
];

/// What memory may not be from now on.
const EXECUTABLE: u64 = libc::PROT_EXEC as u64;

const FAMILIES: [i32; 4] = [
    libc::AF_INET,
    libc::AF_INET6,
    libc::AF_NETLINK,
    libc::AF_UNIX,
];

/// ioctl(2) requests: non-blocking, close-on-exec, how much is queued.
const REQUESTS: [u64; 4] = [libc::FIONBIO, libc::FIOCLEX, libc::FIONREAD, libc::TIOCOUTQ];

/// Loads the filter; there is no way back.
///
/// # Errors
/// Those of seccomp(2); `Unsupported` on an architecture the filter's compiler does not know.
pub(super) fn load() -> io::Result<()> {
    // The gravest verdict counts: what the first lets pass with an error still has to pass the second.
    let refuse = SeccompAction::Errno(libc::ENOENT as u32);
    let refused = bare(BY_PATH);
    let mut allowed = allowed()?;
    allowed.extend(bare(BY_PATH));
    for (rules, other, listed) in [
        (refused, SeccompAction::Allow, refuse),
        (allowed, SeccompAction::KillProcess, SeccompAction::Allow),
    ] {
        apply(rules, other, listed)?;
    }
    Ok(())
}

/// Loads the filter of `passt-repair`: any call but its own is answered with an error, and of socket options there is one.
///
/// # Errors
/// Those of [`load`].
pub(super) fn load_for_helper() -> io::Result<()> {
    apply(
        allowed_to_helper()?,
        SeccompAction::Errno(libc::EPERM as u32),
        SeccompAction::Allow,
    )
}

fn apply(rules: Rules, other: SeccompAction, listed: SeccompAction) -> io::Result<()> {
    let arch = TargetArch::try_from(ARCH).map_err(|_| {
        io::Error::new(
            io::ErrorKind::Unsupported,
            "not known for this architecture",
        )
    })?;
    let filter = SeccompFilter::new(rules, other, listed, arch).map_err(io::Error::other)?;
    let program: BpfProgram = filter.try_into().map_err(io::Error::other)?;
    apply_filter(&program).map_err(io::Error::other)
}

fn bare(calls: &[c_long]) -> Rules {
    calls.iter().map(|&call| (call, Vec::new())).collect()
}

fn allowed_to_helper() -> io::Result<Rules> {
    let mut rules = bare(HELPER_CALLS);
    no_new_code(&mut rules)?;
    let (level, name) = (libc::SOL_TCP as u64, libc::TCP_REPAIR as u64);
    let repair = [(1, level), (2, name)].map(|(argument, value)| {
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
    });
    let repair = repair.into_iter().collect::<Result<_, _>>();
    let repair = repair
        .and_then(SeccompRule::new)
        .map_err(io::Error::other)?;
    rules.insert(libc::SYS_setsockopt, vec![repair]);
    Ok(rules)
}

/// Memory may be had, but not such as can be executed.
fn no_new_code(rules: &mut Rules) -> io::Result<()> {
    let not_executable = rule(2, SeccompCmpOp::MaskedEq(EXECUTABLE), 0)?;
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![not_executable.clone()]);
    }
    Ok(())
}

fn allowed() -> io::Result<Rules> {
    let mut rules = bare(CALLS);
    no_new_code(&mut rules)?;
    let families = FAMILIES.map(|family| rule(0, SeccompCmpOp::Eq, family as u64));
    rules.insert(
        libc::SYS_socket,
        families.into_iter().collect::<Result<_, _>>()?,
    );
    let requests = REQUESTS.map(|request| rule(1, SeccompCmpOp::Eq, request));
    rules.insert(
        libc::SYS_ioctl,
        requests.into_iter().collect::<Result<_, _>>()?,
    );
    Ok(rules)
}

/// A rule on the lower half of one argument.
fn rule(argument: u8, operator: SeccompCmpOp, value: u64) -> io::Result<SeccompRule> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)
        .and_then(|condition| SeccompRule::new(vec![condition]))
        .map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_compiles_and_names_no_call_twice() {
        let mut rules = allowed().unwrap();
        assert_eq!(bare(CALLS).len(), CALLS.len());
        assert!(bare(BY_PATH).keys().all(|call| !rules.contains_key(call)));
        rules.extend(bare(BY_PATH));
        let filter = SeccompFilter::new(
            rules,
            SeccompAction::KillProcess,
            SeccompAction::Allow,
            TargetArch::try_from(ARCH).unwrap(),
        );
        assert!(BpfProgram::try_from(filter.unwrap()).is_ok());
    }
}
