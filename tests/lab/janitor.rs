//! Cleans up after a test process that was killed: a shell that reads, from a pipe, what is to be removed, and acts when
//! the pipe ends. PR_SET_PDEATHSIG would not do: it follows the thread, and is lost when the binary changes identity.

use std::{
    fs,
    io::Write,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{self, ChildStdin, Command, Stdio},
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

const SCRIPT: &str = r#"
pids= dirs=
while read -r verb what; do
    case $verb in
        pid) pids="$pids $what " ;;
        dir) dirs="$dirs $what " ;;
        gone)
            case $pids in
                *" $what "*) pids="${pids%% $what *} ${pids#* $what }" ;;
            esac ;;
    esac
done
[ -z "${pids# }" ] || kill -9 $pids
[ -z "${dirs# }" ] || rm -rf $dirs
"#;

/// Has process `pid` killed when the test process ends before it said [`gone`].
pub fn watch_pid(pid: u32) {
    tell(&format!("pid {pid}\n"));
}

/// Process `pid` was reaped: its number may soon be somebody else's.
pub fn gone(pid: u32) {
    tell(&format!("gone {pid}\n"));
}

fn tell(line: &str) {
    static PIPE: OnceLock<Mutex<ChildStdin>> = OnceLock::new();
    let pipe = PIPE.get_or_init(|| {
        #[expect(clippy::zombie_processes, reason = "it outlives this process")]
        let child = Command::new("sh")
            .args(["-c", SCRIPT])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Not in our group: it must outlive a Ctrl-C.
            .process_group(0)
            .spawn()
            .expect("sh");
        Mutex::new(child.stdin.expect("piped"))
    });
    let mut pipe = pipe.lock().unwrap_or_else(|e| e.into_inner());
    pipe.write_all(line.as_bytes()).expect("janitor");
}

/// A folder that everybody may write to (the binary changes identity when root starts it), removed on drop.
#[derive(Debug)]
pub struct TempDir(PathBuf);

impl TempDir {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = PathBuf::from(format!("/tmp/passt-lab-{}-{number}", process::id()));
        tell(&format!("dir {}\n", path.display()));
        fs::create_dir(&path).expect("temporary folder");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).expect("chmod");
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
