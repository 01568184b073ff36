//! Landlock (landlock(7)): what is open stays, but nothing else of the file system can be reached, whatever system calls
//! are allowed. Where the kernel knows how, nor can abstract UNIX sockets and processes of others.
//!
//! Ports are left alone: which ones a guest may use is not ours to say.

use std::{io, path::PathBuf};

use landlock::{
    ABI, Access, AccessFs, LandlockStatus, Ruleset, RulesetAttr, RulesetCreatedAttr, Scope,
    path_beneath_rules,
};

/// The newest kernel's restrictions that were tried; older ones know fewer and enforce those.
const KNOWN: ABI = ABI::V7;

/// Confines this thread, and all it starts, to reading below these folders. Those that cannot be opened are left out.
///
/// # Errors
/// `Unsupported` where the kernel has no Landlock; those of landlock_restrict_self(2).
pub(super) fn confine(readable: &[PathBuf]) -> io::Result<()> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let rules = path_beneath_rules(readable, read);
    let confined = Ruleset::default()
        .handle_access(AccessFs::from_all(KNOWN))
        .and_then(|rules| rules.scope(Scope::from_all(KNOWN)))
        .and_then(Ruleset::create)
        .and_then(|set| set.add_rules(rules))
        .and_then(|set| set.restrict_self());
    let why = match confined.map_err(io::Error::other)?.landlock {
        LandlockStatus::Available { .. } => return Ok(()),
        LandlockStatus::NotEnabled => "not enabled in this kernel",
        LandlockStatus::NotImplemented => "not in this kernel",
    };
    Err(io::Error::new(io::ErrorKind::Unsupported, why))
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        io::Write,
        net::{TcpListener, TcpStream},
        os::{
            linux::net::SocketAddrExt,
            unix::net::{SocketAddr, UnixListener, UnixStream},
        },
        process, thread,
    };

    use ::landlock::{CompatLevel, Compatible};

    use super::*;

    /// A restriction holds for the thread that asked for it, so each can have its own.
    fn confined(readable: &[PathBuf], work: impl FnOnce() + Send) {
        thread::scope(|scope| {
            let thread = scope.spawn(|| match confine(readable) {
                Ok(()) => work(),
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::Unsupported, "{error}");
                    println!("skipped: Landlock is {error}");
                }
            });
            thread.join().unwrap();
        });
    }

    #[test]
    fn files_are_out_of_reach_but_for_those_that_are_open_or_may_be_read() {
        let dir = std::env::temp_dir().join(format!("passt-landlock-{}", process::id()));
        let (seen, hidden) = (dir.join("seen"), dir.join("hidden"));
        for folder in [&seen, &hidden] {
            fs::create_dir_all(folder).unwrap();
            fs::write(folder.join("file"), "text").unwrap();
        }
        let open = Open(File::create(dir.join("open")).unwrap());
        let none = dir.join("none");
        confined(&[seen.clone(), none], || {
            assert_eq!(fs::read_to_string(seen.join("file")).unwrap(), "text");
            assert!(fs::read(hidden.join("file")).is_err());
            assert!(fs::write(seen.join("file"), "other").is_err());
            assert!(fs::write(seen.join("new"), "other").is_err());
            assert!(fs::remove_file(seen.join("file")).is_err());
            open.write_and_cut();
        });
        confined(&[], || {
            assert!(fs::read(seen.join("file")).is_err());
            open.write_and_cut();
        });
        assert_eq!(fs::read_to_string(seen.join("file")).unwrap(), "text");
        fs::remove_dir_all(&dir).unwrap();
    }

    struct Open(File);

    impl Open {
        fn write_and_cut(&self) {
            (&self.0).write_all(b"line").unwrap();
            self.0.set_len(2).unwrap();
        }
    }

    fn knows_scopes() -> bool {
        let strict = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
        strict.scope(Scope::Signal).is_ok()
    }

    #[test]
    fn ports_can_be_used_and_abstract_sockets_of_others_cannot() {
        let name = format!("passt-landlock-{}", process::id());
        let name = SocketAddr::from_abstract_name(name).unwrap();
        let theirs = UnixListener::bind_addr(&name).unwrap();
        confined(&[], || {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            // Kernels before 6.12 do not know how.
            let refused = UnixStream::connect_addr(&name).is_err();
            assert!(refused || !knows_scopes(), "connected");
        });
        drop(theirs);
    }
}
