//! The binary under test as a process: started on a [`Host`], watched, stopped.

use std::{
    env,
    ffi::OsString,
    fmt, fs,
    os::{
        fd::OwnedFd,
        unix::{net::UnixStream, process::ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::Duration,
};

use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

use super::{
    Host, LONG, Log,
    front_end::{Driver, LINUX, bridge},
    janitor::{self, TempDir},
    programs::copy_program,
    wait_until,
};

/// In which a process that gives up at once has given up.
const SOON: Duration = Duration::from_secs(5);

/// What the translator finds in `/etc/resolv.conf` unless told otherwise.
pub const RESOLV_CONF: &str = "nameserver 10.233.70.1
nameserver fd10:233:70::1
search lab.example pod.example
";

/// The binary under test: `$PASST_BIN`, or what cargo built.
pub fn binary() -> OsString {
    env::var_os("PASST_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_passt").into())
}

/// What the thread does that starts a translator, before it does: the process inherits what that thread is.
struct Preparation(Box<dyn FnOnce() + Send>);

impl fmt::Debug for Preparation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Preparation")
    }
}

/// Whether guests are to be plugged in by vhost-user: `TEST_LINK=vhost-user` puts every test to that link.
pub fn by_vhost_user() -> bool {
    env::var_os("TEST_LINK").is_some_and(|link| link == "vhost-user")
}

/// How a translator is to be started; [`Translator::start`] is the short way.
#[derive(Debug)]
pub struct Setup {
    binary: OsString,
    args: Vec<String>,
    resolv_conf: String,
    private_tmp: bool,
    foreground: bool,
    files: Option<u32>,
    forbidden: Vec<Forbidden>,
    fd: Option<OwnedFd>,
    env: Vec<(String, String)>,
    preparation: Option<Preparation>,
    unheard: bool,
    dir: TempDir,
}

impl Setup {
    pub fn new(args: &[&str]) -> Self {
        Self {
            binary: binary(),
            args: args.iter().map(|&a| a.to_owned()).collect(),
            resolv_conf: RESOLV_CONF.to_owned(),
            private_tmp: false,
            foreground: true,
            files: None,
            forbidden: Vec::new(),
            fd: None,
            env: Vec::new(),
            preparation: None,
            unheard: false,
            dir: TempDir::new(),
        }
    }

    /// Starts another program, with the same command line.
    pub fn binary(mut self, path: impl Into<OsString>) -> Self {
        self.binary = path.into();
        self
    }

    /// Gives it another `/etc/resolv.conf`.
    pub fn resolv_conf(mut self, text: &str) -> Self {
        text.clone_into(&mut self.resolv_conf);
        self
    }

    /// Gives it a `/tmp` of its own, which is [`Self::dir`], and no `--socket`.
    pub fn private_tmp(mut self) -> Self {
        self.private_tmp = true;
        self
    }

    /// Hands it this connected socket as descriptor 5 with `--fd 5`, and no `--socket`.
    pub fn fd(mut self, fd: impl Into<OwnedFd>) -> Self {
        self.fd = Some(fd.into());
        self
    }

    /// Lets it go to the background, as it does unless told otherwise; for [`Self::run_to_end`].
    pub fn background(mut self) -> Self {
        self.foreground = false;
        self
    }

    /// Lets it open this many descriptors at most.
    pub fn limit_files(mut self, limit: u32) -> Self {
        self.files = Some(limit);
        self
    }

    /// Gives it a variable of its environment.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Has the thread that starts it do this before: in the namespaces of the process, which inherits what the thread is.
    pub fn prepare(mut self, work: impl FnOnce() + Send + 'static) -> Self {
        self.preparation = Some(Preparation(Box::new(work)));
        self
    }

    /// Lets nobody read what it says on stderr, a pipe.
    pub fn unheard(mut self) -> Self {
        self.unheard = true;
        self
    }

    /// Has a system call fail with this error, as a container's filter would; with an argument's number and value, only
    /// calls with that one.
    pub fn forbid(mut self, call: i64, argument: Option<(u8, u64)>, error: Errno) -> Self {
        self.forbidden.push((call, argument, error));
        self
    }

    pub fn arg(mut self, arg: &str) -> Self {
        self.args.push(arg.to_owned());
        self
    }

    /// The folder of its socket and whatever else the test needs.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Whether guests need a front-end before them that the test does not bring.
    fn bridged(&self) -> bool {
        by_vhost_user() && self.fd.is_none() && !self.args.iter().any(|arg| arg == "--vhost-user")
    }

    /// Starts it in the foreground and waits until it listens (with [`Self::fd`]: until it runs).
    pub fn start(self, host: &Host) -> Translator {
        let socket = if self.fd.is_some() {
            None
        } else if self.private_tmp {
            Some(PathBuf::from("/tmp/passt_1.socket"))
        } else {
            Some(self.dir().join("passt.sock"))
        };
        self.start_at(host, socket)
    }

    /// As [`Self::start`], where the socket to wait for is known to be another.
    pub fn start_at(self, host: &Host, socket: Option<PathBuf>) -> Translator {
        let mut translator = self.try_start_at(host, socket);
        let ended = translator.has_ended();
        assert!(!ended, "{:?}\n{}", translator.ended, translator.log());
        translator
    }

    /// As [`Self::start`], where it may also end by itself.
    pub fn try_start(self, host: &Host) -> Translator {
        let socket = self.dir().join("passt.sock");
        self.try_start_at(host, Some(socket))
    }

    fn try_start_at(mut self, host: &Host, socket: Option<PathBuf>) -> Translator {
        let bridged = self.bridged();
        let mut command = self.command(socket.as_deref());
        let mut child = self.spawn(host, &mut command);
        drop(command);
        janitor::watch_pid(child.id());
        let log = if self.unheard {
            Log::default()
        } else {
            Log::follow(child.stderr.take().expect("piped"))
        };
        let mut translator = Translator {
            child,
            log,
            socket: match &socket {
                Some(path) if self.private_tmp => self.dir().join(path.file_name().expect("file")),
                Some(path) => path.clone(),
                None => PathBuf::new(),
            },
            bridged,
            dir: self.dir,
            ended: None,
        };
        if let Some(path) = &socket {
            let up = wait_until(LONG, || {
                translator.has_ended() || listens(host, path.to_str().expect("UTF-8"))
            });
            let path = path.display();
            assert!(up, "not listening at {path}: {}", translator.log());
        }
        translator
    }

    /// Starts it where it is expected to give up at once: exit status, what it said on stdout and on stderr.
    pub fn run_to_end(mut self, host: &Host) -> (ExitStatus, String, String) {
        self.run(host)
    }

    /// The same, but its folder stays while `self` does.
    pub fn run(&mut self, host: &Host) -> (ExitStatus, String, String) {
        let mut command = self.command(None);
        command.stdout(Stdio::piped());
        let mut child = self.spawn(host, &mut command);
        janitor::watch_pid(child.id());
        // Killed if it does not give up by itself, which its exit status then tells.
        if !wait_until(SOON, || child.try_wait().expect("wait").is_some()) {
            child.kill().expect("kill");
        }
        janitor::gone(child.id());
        let output = child.wait_with_output().expect("wait");
        let [stdout, stderr] =
            [output.stdout, output.stderr].map(|s| String::from_utf8_lossy(&s).into_owned());
        (output.status, stdout, stderr)
    }

    /// A shell turns stdin into descriptor 5 and sets limits, then becomes the binary; so no unsafe code is needed here.
    fn command(&mut self, socket: Option<&Path>) -> Command {
        let mut script = String::new();
        if let Some(limit) = self.files {
            script = format!("ulimit -n {limit}; ");
        }
        script += r#"exec "$@""#;
        if self.fd.is_some() {
            script += " 5<&0 </dev/null";
        }
        let mut command = Command::new("sh");
        command.args(["-c", &script, "sh"]);
        if self.private_tmp {
            // The binary may be below the /tmp that is hidden.
            copy_program(self.binary.as_ref(), &self.dir().join("passt"));
            command.arg("/tmp/passt");
        } else {
            command.arg(&self.binary);
        }
        if self.foreground {
            command.arg("-f");
        }
        if self.bridged() {
            command.arg("--vhost-user");
        }
        if let Some(fd) = self.fd.take() {
            command.args(["--fd", "5"]).stdin(fd);
        } else {
            command.stdin(Stdio::null());
        }
        if let Some(path) = socket.filter(|_| !self.private_tmp) {
            command.arg("--socket").arg(path);
        }
        command
            .envs(self.env.drain(..))
            .args(&self.args)
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command
    }

    /// The process starts in a mount namespace where `/etc/resolv.conf` (and `/tmp`) are ours.
    fn spawn(&mut self, host: &Host, command: &mut Command) -> Child {
        let preparation = self.preparation.take();
        let dir = self.dir();
        let resolv_conf = dir.join("resolv.conf");
        fs::write(&resolv_conf, &self.resolv_conf).expect("resolv.conf");
        let nothing = None::<&str>;
        host.run(|| {
            unshare(CloneFlags::CLONE_NEWNS).expect("mount namespace");
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(nothing, "/", nothing, private, nothing).expect("private mounts");
            let bind = |from: &Path, to: &str| {
                mount(Some(from), to, nothing, MsFlags::MS_BIND, nothing).expect(to);
            };
            bind(&resolv_conf, "/etc/resolv.conf");
            if self.private_tmp {
                bind(dir, "/tmp");
            }
            if let Some(Preparation(work)) = preparation {
                work();
            }
            self.forbidden.iter().for_each(forbid);
            command.spawn().expect("the binary under test")
        })
    }
}

type Forbidden = (i64, Option<(u8, u64)>, Errno);

/// Binds this thread, and what it starts from now on.
fn forbid(&(call, argument, error): &Forbidden) {
    let rule = argument.map(|(number, value)| {
        let length = SeccompCmpArgLen::Dword;
        let condition = SeccompCondition::new(number, length, SeccompCmpOp::Eq, value);
        SeccompRule::new(vec![condition.expect("a condition")]).expect("a rule")
    });
    let rules = [(call, rule.into_iter().collect())].into();
    let refuse = SeccompAction::Errno(error as u32);
    let arch = env::consts::ARCH.try_into().expect("a known architecture");
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch).expect("a filter");
    let program: BpfProgram = filter.try_into().expect("a program");
    seccompiler::apply_filter(&program).expect("seccomp");
}

/// A running translator; killed on drop.
#[derive(Debug)]
pub struct Translator {
    child: Child,
    log: Log,
    socket: PathBuf,
    bridged: bool,
    dir: TempDir,
    ended: Option<ExitStatus>,
}

impl Translator {
    /// Starts it in the foreground on `host` with a private `--socket` and `args`, and waits until it listens.
    pub fn start(host: &Host, args: &[&str]) -> Self {
        Setup::new(args).start(host)
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Becomes its client, as QEMU would.
    pub fn connect(&self) -> UnixStream {
        let socket = UnixStream::connect(&self.socket).expect("connect to the translator");
        if self.bridged {
            bridge(socket, Driver::new(LINUX))
        } else {
            socket
        }
    }

    /// Whether the process has ended by now.
    pub fn has_ended(&mut self) -> bool {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("wait");
            if self.ended.is_some() {
                janitor::gone(self.child.id());
            }
        }
        self.ended.is_some()
    }

    /// Waits until it ends by itself: its exit code, or minus the signal that ended it.
    pub fn wait(&mut self, patience: Duration) -> i32 {
        let ended = wait_until(patience, || self.has_ended());
        assert!(ended, "still running\n{}", self.log());
        let status = self.ended.expect("ended");
        status
            .code()
            .or_else(|| status.signal().map(|s| -s))
            .expect("a code or a signal")
    }

    /// Asks it to stop (SIGTERM) and returns its exit code.
    pub fn stop(&mut self) -> i32 {
        self.signal(Signal::SIGTERM);
        self.wait(LONG)
    }

    /// Has all its threads stand still until SIGCONT: a signal takes a while.
    pub fn stand_still(&self) {
        self.signal(Signal::SIGSTOP);
        let stopped = wait_until(LONG, || self.threads_are('T'));
        assert!(stopped, "it does not stop");
    }

    /// Waits until all its threads sleep.
    pub fn fall_asleep(&self) {
        let asleep = wait_until(LONG, || self.threads_are('S'));
        assert!(asleep, "it never sleeps");
    }

    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid()).expect("a process number");
        kill(Pid::from_raw(pid), signal).expect("kill");
    }

    /// The flows there are, as the process itself reports them when it is asked to (SIGUSR1).
    pub fn flows(&self) -> String {
        let reports = |log: &str| log.matches("\nFlows: ").count();
        let before = reports(&self.log());
        self.signal(Signal::SIGUSR1);
        let told = wait_until(LONG, || reports(&self.log()) > before);
        assert!(told, "no report\n{}", self.log());
        let log = self.log();
        let (_, last) = log.rsplit_once("\nFlows: ").expect("a report");
        last.lines().next().unwrap_or_default().to_owned()
    }

    /// What it has said on stderr so far.
    pub fn log(&self) -> String {
        self.log.text()
    }

    /// Waits for `text` on stderr.
    pub fn expect_log(&self, text: &str) {
        self.log.expect(LONG, text);
    }

    /// Resident memory, in KiB.
    pub fn rss(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("status");
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let digits = line.and_then(|line| line.split_whitespace().nth(1));
        digits.and_then(|d| d.parse().ok()).expect("VmRSS")
    }

    /// Processor time used so far, user and system.
    pub fn cpu(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("stat");
        let (_, fields) = stat.rsplit_once(')').expect("a name in parentheses");
        let ticks = |n: usize| fields.split_whitespace().nth(n)?.parse::<u64>().ok();
        // Fields 14 and 15 of proc_pid_stat(5); the text after the name starts at field 3. A tick is 10 ms.
        let sum = ticks(11).zip(ticks(12)).map(|(user, sys)| user + sys);
        Duration::from_millis(10 * sum.expect("times"))
    }

    /// It uses no more than so much processor time in a second.
    pub fn assert_idle(&self, at_most: Duration, when: &str) {
        let before = self.cpu();
        thread::sleep(Duration::from_secs(1));
        let used = self.cpu().saturating_sub(before);
        assert!(used <= at_most, "{used:?} {when}");
    }

    /// Open descriptors when it has come to rest: asleep, and as many as a moment ago.
    pub fn idle_fd_count(&self) -> usize {
        let mut count = 0;
        let at_rest = wait_until(LONG, || {
            let before = count;
            thread::sleep(Duration::from_millis(30));
            count = self.fd_count();
            self.threads_are('S') && count == before
        });
        assert!(at_rest, "never came to rest\n{}", self.log());
        count
    }

    /// Whether this is the state of each (proc_pid_stat(5)).
    fn threads_are(&self, state: char) -> bool {
        let mut tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).expect("task");
        tasks.all(|task| {
            let stat = fs::read_to_string(task.expect("task").path().join("stat"));
            let stat = stat.unwrap_or_default();
            stat.rsplit_once(") ")
                .is_some_and(|(_, rest)| rest.starts_with(state))
        })
    }

    /// Open descriptors.
    pub fn fd_count(&self) -> usize {
        let open = fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("fd");
        open.count()
    }

    /// Waits until no more descriptors are open than `idle`, from [`Self::idle_fd_count`].
    pub fn expect_fd_count(&self, idle: usize) {
        let back = wait_until(LONG, || self.fd_count() <= idle);
        assert!(back, "{} descriptors, idle {idle}", self.fd_count());
    }

    /// The test fails, with the log, if the process has ended.
    pub fn assert_alive(&mut self) {
        assert!(!self.has_ended(), "{:?}\n{}", self.ended, self.log());
    }
}

impl Drop for Translator {
    fn drop(&mut self) {
        if !self.has_ended() {
            let _ = self.child.kill();
            let _ = self.child.wait();
            janitor::gone(self.child.id());
        }
        if thread::panicking() {
            eprintln!("--- the translator said:\n{}---", self.log());
        }
    }
}

/// Whether a UNIX socket listens at `path`; connecting would make us its client. See `__SO_ACCEPTCON` in proc_net(5).
fn listens(host: &Host, path: &str) -> bool {
    host.proc_net("unix").iter().any(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        fields.get(3) == Some(&"00010000") && fields.last() == Some(&path)
    })
}
