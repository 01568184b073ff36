//! The system calls of our processes, and why each is allowed. What is not named here ends the process, but for calls by
//! path, which are answered with an error: libraries try files on rare ways, and do without.

use libc::{c_int, c_long};

/// What one process may call.
#[derive(Debug)]
pub(super) struct List {
    /// With any arguments.
    pub(super) any: &'static [Group],
    /// With some arguments.
    pub(super) narrow: &'static [Narrow],
}

/// A call by name and number.
pub(super) type Call = (&'static str, c_long);

/// Calls that are allowed for one reason.
#[derive(Debug)]
pub(super) struct Group {
    #[cfg_attr(not(test), expect(dead_code, reason = "for people"))]
    pub(super) why: &'static str,
    pub(super) calls: &'static [Call],
}

/// A call that is allowed in some ways only.
#[derive(Debug)]
pub(super) struct Narrow {
    pub(super) call: Call,
    #[cfg_attr(not(test), expect(dead_code, reason = "for people"))]
    pub(super) why: &'static str,
    pub(super) ways: &'static [Way],
}

/// One way to make a call: all of these hold.
pub(super) type Way = &'static [Argument];

/// An argument's number from 0, the bits of its lower half that count, and what they have to be.
pub(super) type Argument = (u8, c_int, c_int);

macro_rules! calls {
    ($($(#[$when:meta])* $call:ident),+ $(,)?) => {
        &[$($(#[$when])* (stringify!($call), libc::$call)),+]
    };
}

/// The process that serves.
pub(super) const SERVING: List = List {
    any: &[
        Group {
            why: "sockets of flows, the guest's link, netlink, the system log",
            calls: calls![
                SYS_accept4,
                SYS_bind,
                SYS_connect,
                SYS_getpeername,
                SYS_getsockname,
                SYS_getsockopt,
                SYS_listen,
                SYS_recvfrom,
                SYS_recvmmsg,
                SYS_recvmsg,
                SYS_sendmmsg,
                SYS_sendmsg,
                SYS_sendto,
                SYS_setsockopt,
                SYS_shutdown,
            ],
        },
        Group {
            why: "their ends; the standard descriptors on the way to the background",
            calls: calls![
                SYS_close,
                #[cfg(target_arch = "x86_64")]
                SYS_dup2,
                SYS_dup3,
            ],
        },
        Group {
            why: "the loop and its clock",
            calls: calls![
                SYS_clock_gettime,
                SYS_epoll_ctl,
                SYS_epoll_pwait,
                #[cfg(target_arch = "x86_64")]
                SYS_epoll_wait,
                SYS_ppoll,
                #[cfg(target_arch = "x86_64")]
                SYS_poll,
            ],
        },
        Group {
            why: "log and capture files, signals, events of vhost-user",
            calls: calls![
                SYS_fstat,
                SYS_ftruncate,
                SYS_lseek,
                SYS_pread64,
                SYS_pwrite64,
                SYS_read,
                SYS_readv,
                SYS_write,
                SYS_writev,
            ],
        },
        LIBRARY,
        END,
    ],
    narrow: &[
        Narrow {
            call: ("SYS_socket", libc::SYS_socket),
            why: "only TCP, UDP and ICMP echo over IPv4 and IPv6, and netlink's routing tables",
            ways: &[
                &[internet(0), stream(1), (2, ALL, 0)],
                &[internet(0), stream(1), (2, ALL, libc::IPPROTO_TCP)],
                &[internet(0), datagram(1), (2, ALL, 0)],
                &[internet(0), datagram(1), (2, ALL, libc::IPPROTO_UDP)],
                &[internet6(0), stream(1), (2, ALL, 0)],
                &[internet6(0), stream(1), (2, ALL, libc::IPPROTO_TCP)],
                &[internet6(0), datagram(1), (2, ALL, 0)],
                &[internet6(0), datagram(1), (2, ALL, libc::IPPROTO_UDP)],
                &[internet(0), datagram(1), (2, ALL, libc::IPPROTO_ICMP)],
                &[internet6(0), datagram(1), (2, ALL, libc::IPPROTO_ICMPV6)],
                &[(0, ALL, libc::AF_NETLINK), (2, ALL, libc::NETLINK_ROUTE)],
            ],
        },
        Narrow {
            call: ("SYS_fcntl", libc::SYS_fcntl),
            why: "only to read and set the flags of a descriptor, and to duplicate it",
            ways: &[
                &[(1, ALL, libc::F_GETFD)],
                &[(1, ALL, libc::F_GETFL)],
                &[(1, ALL, libc::F_SETFL)],
                &[(1, ALL, libc::F_DUPFD_CLOEXEC)],
            ],
        },
        MMAP,
        MPROTECT,
    ],
};

/// The process that watches the resolver configuration.
pub(super) const WATCHING: List = List {
    any: &[
        Group {
            why: "the file, its folders and links",
            calls: calls![
                SYS_close,
                SYS_fstat,
                SYS_inotify_add_watch,
                SYS_inotify_init1,
                SYS_lseek,
                SYS_read,
                #[cfg(target_arch = "x86_64")]
                SYS_readlink,
                SYS_readlinkat,
            ],
        },
        Group {
            why: "its word to the process that serves, and the wait for the next",
            calls: calls![
                SYS_ppoll,
                #[cfg(target_arch = "x86_64")]
                SYS_poll,
                SYS_sendto,
            ],
        },
        LIBRARY,
        END,
    ],
    narrow: &[
        Narrow {
            call: ("SYS_openat", libc::SYS_openat),
            why: "only for reading",
            ways: &[&[(2, CHANGING, 0)]],
        },
        GETFD,
        MMAP,
        MPROTECT,
    ],
};

/// `passt-repair`.
pub(super) const REPAIRING: List = List {
    any: &[
        Group {
            why: "passt's word, the sockets that come with it, the answer",
            calls: calls![
                SYS_close,
                SYS_ppoll,
                #[cfg(target_arch = "x86_64")]
                SYS_poll,
                SYS_recvmsg,
                SYS_sendmsg,
                SYS_write,
            ],
        },
        LIBRARY,
        END,
    ],
    narrow: &[
        Narrow {
            call: ("SYS_setsockopt", libc::SYS_setsockopt),
            why: "only repair mode",
            ways: &[&[(1, ALL, libc::SOL_TCP), (2, ALL, libc::TCP_REPAIR)]],
        },
        GETFD,
        MMAP,
        MPROTECT,
    ],
};

/// What every Rust program makes.
const LIBRARY: Group = Group {
    why: "memory, locks and random numbers of the standard library",
    calls: calls![
        SYS_brk,
        SYS_futex,
        SYS_getpid,
        SYS_getrandom,
        SYS_gettid,
        SYS_madvise,
        SYS_mremap,
        SYS_munmap,
        SYS_restart_syscall,
        SYS_sched_yield,
        SYS_sigaltstack,
    ],
};

const END: Group = Group {
    why: "the end, by a panic too",
    calls: calls![
        SYS_exit,
        SYS_exit_group,
        SYS_rt_sigaction,
        SYS_rt_sigprocmask,
        SYS_rt_sigreturn,
        SYS_tgkill,
    ],
};

const GETFD: Narrow = Narrow {
    call: ("SYS_fcntl", libc::SYS_fcntl),
    why: "only to see that a descriptor is open, as debug builds do",
    ways: &[&[(1, ALL, libc::F_GETFD)]],
};

const MMAP: Narrow = Narrow {
    call: ("SYS_mmap", libc::SYS_mmap),
    why: "no memory that can be executed",
    ways: &[&[(2, libc::PROT_EXEC, 0)]],
};

const MPROTECT: Narrow = Narrow {
    call: ("SYS_mprotect", libc::SYS_mprotect),
    why: "no memory can be made executable later",
    ways: &[&[(2, libc::PROT_EXEC, 0)]],
};

/// Answered with an error, where they are not allowed.
pub(super) const BY_PATH: &[Call] = calls![
    #[cfg(target_arch = "x86_64")]
    SYS_access,
    SYS_faccessat,
    SYS_faccessat2,
    SYS_getcwd,
    #[cfg(target_arch = "x86_64")]
    SYS_lstat,
    SYS_newfstatat,
    #[cfg(target_arch = "x86_64")]
    SYS_open,
    SYS_openat,
    #[cfg(target_arch = "x86_64")]
    SYS_readlink,
    SYS_readlinkat,
    #[cfg(target_arch = "x86_64")]
    SYS_stat,
    SYS_statx,
];

/// Every bit counts.
const ALL: c_int = -1;

/// What a file may not be opened for.
const CHANGING: c_int = libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC;

const fn internet(argument: u8) -> Argument {
    (argument, ALL, libc::AF_INET)
}

const fn internet6(argument: u8) -> Argument {
    (argument, ALL, libc::AF_INET6)
}

const fn stream(argument: u8) -> Argument {
    (argument, KIND, libc::SOCK_STREAM)
}

const fn datagram(argument: u8) -> Argument {
    (argument, KIND, libc::SOCK_DGRAM)
}

/// The kind of a socket, without the flags that come along (socket(2)).
const KIND: c_int = !(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC);
