//! The filter of system calls: what `calls.rs` lists.

use std::{collections::BTreeMap, env::consts::ARCH, io};

use libc::c_long;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch, apply_filter_all_threads,
};

use super::calls::{Argument, BY_PATH, List, REPAIRING, SERVING, WATCHING, Way};

/// Calls and ways to make them, of which one has to be taken; none: any.
type Rules = BTreeMap<c_long, Vec<SeccompRule>>;

/// Shuts in the process that serves, for ever. Returns how many calls are left.
///
/// # Errors
/// Those of seccomp(2); `Unsupported` on an architecture the filter's compiler does not know.
pub(super) fn load() -> io::Result<usize> {
    apply(&SERVING)
}

/// The same for the watcher of the resolver configuration.
///
/// # Errors
/// As [`load`].
pub(super) fn load_for_watcher() -> io::Result<usize> {
    apply(&WATCHING)
}

/// The same for `passt-repair`.
///
/// # Errors
/// As [`load`].
pub(super) fn load_for_helper() -> io::Result<usize> {
    apply(&REPAIRING)
}

/// Loads the filter into all threads; there is no way back.
fn apply(list: &List) -> io::Result<usize> {
    let arch = TargetArch::try_from(ARCH).map_err(|_| {
        io::Error::new(
            io::ErrorKind::Unsupported,
            "not known for this architecture",
        )
    })?;
    let allowed = rules(list).map_err(io::Error::other)?;
    let count = allowed.len();
    let (refused, allowed) = filters(allowed);
    // The gravest verdict counts: what the first lets pass with an error still has to pass the second.
    let refuse = SeccompAction::Errno(libc::ENOENT as u32);
    for (rules, other, listed) in [
        (refused, SeccompAction::Allow, refuse),
        (allowed, SeccompAction::KillProcess, SeccompAction::Allow),
    ] {
        let filter = SeccompFilter::new(rules, other, listed, arch).map_err(io::Error::other)?;
        let program: BpfProgram = filter.try_into().map_err(io::Error::other)?;
        apply_filter_all_threads(&program).map_err(io::Error::other)?;
    }
    Ok(count)
}

fn rules(list: &List) -> Result<Rules, BackendError> {
    let any = list.any.iter().flat_map(|group| group.calls);
    let any = any.map(|&(_, call)| Ok((call, Vec::new())));
    let narrow = list.narrow.iter().map(|narrow| {
        let ways = narrow.ways.iter().map(way).collect::<Result<_, _>>()?;
        Ok((narrow.call.1, ways))
    });
    any.chain(narrow).collect()
}

fn way(arguments: &Way) -> Result<SeccompRule, BackendError> {
    let conditions: Result<_, _> = arguments.iter().map(condition).collect();
    SeccompRule::new(conditions?)
}

/// On the lower half of an argument: the kernel looks at no more of these.
fn condition(&(number, bits, value): &Argument) -> Result<SeccompCondition, BackendError> {
    let mask = SeccompCmpOp::MaskedEq(u64::from(bits.cast_unsigned()));
    let value = u64::from(value.cast_unsigned());
    SeccompCondition::new(number, SeccompCmpArgLen::Dword, mask, value)
}

/// The calls by path that are to fail, and all that do not end the process.
fn filters(mut allowed: Rules) -> (Rules, Rules) {
    let by_path = BY_PATH.iter().map(|&(_, call)| (call, Vec::new()));
    let refused: Rules = by_path
        .filter(|(call, _)| !allowed.contains_key(call))
        .collect();
    allowed.extend(refused.clone());
    (refused, allowed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::calls::Call;

    const LISTS: [&List; 3] = [&SERVING, &WATCHING, &REPAIRING];

    fn calls(list: &List) -> Vec<Call> {
        let any = list.any.iter().flat_map(|group| group.calls).copied();
        any.chain(list.narrow.iter().map(|narrow| narrow.call))
            .collect()
    }

    #[test]
    fn the_filters_compile_and_name_no_call_twice() {
        for list in LISTS {
            let rules = rules(list).unwrap();
            assert_eq!(rules.len(), calls(list).len());
            let (_, all) = filters(rules);
            let arch = TargetArch::try_from(ARCH).unwrap();
            let (kill, allow) = (SeccompAction::KillProcess, SeccompAction::Allow);
            let filter = SeccompFilter::new(all, kill, allow, arch).unwrap();
            assert!(BpfProgram::try_from(filter).is_ok());
        }
    }

    #[test]
    fn nobody_may_start_programs_or_processes() {
        for list in LISTS {
            let (_, all) = filters(rules(list).unwrap());
            for call in [
                libc::SYS_execve,
                libc::SYS_execveat,
                libc::SYS_clone,
                libc::SYS_clone3,
                libc::SYS_ptrace,
                libc::SYS_process_vm_writev,
                libc::SYS_memfd_create,
                libc::SYS_io_uring_setup,
                libc::SYS_ioctl,
                libc::SYS_prctl,
            ] {
                assert!(!all.contains_key(&call), "{call}");
            }
        }
        assert!(!rules(&WATCHING).unwrap().contains_key(&libc::SYS_socket));
    }

    /// The rows a table of these calls has to have.
    fn rows(list: &List) -> String {
        let row = |calls: &[Call], why: &str| {
            let names = calls
                .iter()
                .map(|(name, _)| name.trim_start_matches("SYS_"));
            let names: Vec<String> = names.map(|name| format!("`{name}`")).collect();
            format!("| {} | {why} |\n", names.join(" "))
        };
        let any = list.any.iter().map(|group| row(group.calls, group.why));
        let narrow = list.narrow.iter();
        any.chain(narrow.map(|narrow| row(&[narrow.call], narrow.why)))
            .collect()
    }

    /// Other architectures have fewer: there, some calls exist in their newer form only.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn the_readme_lists_every_call_with_its_reason() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
        let readme = std::fs::read_to_string(path).unwrap();
        for list in LISTS {
            let (rows, count) = (rows(list), calls(list).len());
            assert!(readme.contains(&rows), "the README lacks:\n{rows}");
            let count = format!("**{count} system calls**");
            assert!(readme.contains(&count), "the README lacks: {count}");
        }
    }
}
