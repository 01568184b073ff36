//! A guest that downloads while somebody misbehaves.

use std::{
    env,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::raw::Raw;
use crate::{
    kernel_guest::{DEVICE, KernelGuest},
    lab::{
        LONG, PATIENCE, Setup, Translator, World, front_end::LINUX, servers::TcpServer,
        translator::by_vhost_user, uninterrupted, wait_until, world::INTERNET4,
    },
};

/// Where a download never ends, and where what is said comes back.
const ENDLESS: u16 = 19;
const ECHO: u16 = 7;

/// Descriptors of the translator: so few that attacks reach the end of them before they are watched.
const FILES: u32 = 1024;

/// Flows that begin in place of others in a second, at most.
const REPLACED: u64 = 1000;

/// What resident memory may grow by in one look while it is said not to grow any more, in KiB.
const GROWTH: u64 = 128;

/// What the download has to bring beside an attack, in octets: tests run beside others, so this says no more than "it lives".
const LEAST: u64 = 4 << 20;

/// Everything for one attack; fields are dropped in this order.
pub struct Siege {
    victim: Download,
    pub guest: KernelGuest,
    pub translator: Translator,
    pub endless: TcpServer,
    pub echo: TcpServer,
    pub world: World,
}

impl Siege {
    /// `None` when the test is not to go on here.
    pub fn lay(args: &[&str]) -> Option<Self> {
        Self::lay_among(FILES, args)
    }

    /// The same with so many descriptors of the translator.
    pub fn lay_among(files: u32, args: &[&str]) -> Option<Self> {
        let world = World::pod()?;
        let endless = TcpServer::start(&world.outside, (INTERNET4, ENDLESS), |mut stream| {
            while stream.write_all(&[0; 1 << 16]).is_ok() {}
        });
        let echo = TcpServer::echo(&world.outside, (INTERNET4, ECHO));
        let setup = Setup::new(args).limit_files(files);
        let (translator, guest);
        if by_vhost_user() {
            // As a Linux guest's own driver would.
            translator = setup.arg("--vhost-user").start(&world.pod);
            guest = KernelGuest::plug_queues(&translator, 65_520, LINUX)?;
        } else {
            translator = setup.start(&world.pod);
            guest = KernelGuest::plug(&translator, 65_520)?;
        }
        guest.number();
        let victim = Download::start(&guest, endless.addr());
        Some(Self {
            victim,
            guest,
            translator,
            endless,
            echo,
            world,
        })
    }

    /// The guest's end of the download.
    pub fn victim(&self) -> SocketAddr {
        self.victim.local
    }

    /// Has the guest send frames of this kind.
    pub fn flood(&mut self, name: &str, frame: impl FnMut(u64) -> Vec<u8> + Send) {
        let raw = Raw::open(self.guest.host(), DEVICE);
        self.withstand(name, |stop| raw.flood(rate(), stop, frame));
    }

    /// The same with frames that each begin a flow, far more than there may be: some make way for others, not all as fast as
    /// they come. `begun` is the kernel's counter of those that did.
    pub fn flood_of_flows(
        &mut self,
        name: &str,
        begun: (&str, &str),
        frame: impl FnMut(u64) -> Vec<u8> + Send,
    ) {
        let start = Instant::now();
        let before = self.world.pod.counter("snmp", begun.0, begun.1);
        self.flood(name, frame);
        let begun = self.world.pod.counter("snmp", begun.0, begun.1) - before;
        let seconds = start.elapsed().as_secs();
        println!("{name}: {begun} flows began in {seconds} s");
        let most = u64::from(FILES) + REPLACED * (seconds + 2);
        assert!(begun <= most, "{begun} flows in {seconds} s");
        self.translator
            .expect_log("Too many new flows of the guest in place of others");
    }

    /// Lets an attack go on until it is told to stop, and sees what it does. It returns how often it struck.
    pub fn withstand(&mut self, name: &str, attack: impl FnOnce(&AtomicBool) -> u64 + Send) {
        let before = self.victim.rate();
        let idle = self.translator.rss();
        let said = self.translator.log().lines().count();
        let stop = AtomicBool::new(false);
        let start = Instant::now();
        let (strikes, after, warm, end) = thread::scope(|scope| {
            let _stopped = Stop(&stop);
            let attacking = scope.spawn(|| attack(&stop));
            // The attack gets going, tables fill until they are full, which may take a while where many share the processors.
            let (mut warm, mut after, mut end) = (0, 0, 0);
            let full = wait_until(PATIENCE, || {
                warm = self.translator.rss();
                after = self.victim.rate();
                self.victim.expect_more();
                self.assert_answers();
                end = self.translator.rss();
                end <= warm + GROWTH
            });
            assert!(full, "{warm} KiB grew to {end} KiB, and on");
            stop.store(true, Ordering::Relaxed);
            (attacking.join().expect("the attack"), after, warm, end)
        });
        let seconds = start.elapsed().as_secs_f64();
        println!(
            "{name}: {:.0} strikes/s; download {:.0} MiB/s alone, {:.0} beside it ({} %); resident {idle} KiB before, {warm} to {end} KiB",
            strikes as f64 / seconds,
            before as f64 / 1_048_576.0,
            after as f64 / 1_048_576.0,
            after * 100 / before.max(1),
        );
        self.translator.assert_alive();
        assert!(strikes > 0, "no attack");
        self.assert_terse(said, seconds);
    }

    /// A new connection is served, beside whatever goes on; an attack that takes all there is may have it tried again.
    fn assert_answers(&self) {
        let (mut last, start) = (String::new(), Instant::now());
        let answered = wait_until(LONG, || match self.ask() {
            Ok(answer) => answer == *b"still there?",
            Err(error) => {
                last = error.to_string();
                false
            }
        });
        assert!(answered, "no new connection: {last}");
        println!("a new connection is answered in {:.1?}", start.elapsed());
    }

    fn ask(&self) -> io::Result<[u8; 12]> {
        let echo = self.echo.addr();
        let mut stream = self
            .guest
            .host()
            .run(|| TcpStream::connect_timeout(&echo, Duration::from_secs(5)))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"still there?")?;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer)?;
        Ok(answer)
    }

    /// Some lines a second of each kind of message, whatever is done.
    fn assert_terse(&self, said: usize, seconds: f64) {
        let log = self.translator.log();
        let lines = log.lines().count() - said;
        assert!(
            lines as f64 <= 50.0 * (1.0 + seconds),
            "{lines} lines in {seconds} s:\n{log}"
        );
    }
}

/// Stops what waits for it, also when a test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// How many frames an attack sends a second.
pub fn rate() -> u64 {
    number("ABUSE_RATE", 10_000)
}

/// How long to look.
fn span() -> Duration {
    Duration::from_millis(number("ABUSE_MS", 400))
}

pub fn number(name: &str, default: u64) -> u64 {
    env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

/// A download of the guest's, read as fast as it comes.
struct Download {
    local: SocketAddr,
    octets: Arc<AtomicU64>,
    stream: TcpStream,
    reading: Option<JoinHandle<()>>,
}

impl Download {
    fn start(guest: &KernelGuest, from: SocketAddr) -> Self {
        let stream = guest.host().run(|| TcpStream::connect(from));
        let stream = stream.expect("connect");
        let octets = Arc::new(AtomicU64::new(0));
        let reading = thread::spawn({
            let (octets, mut stream) = (octets.clone(), stream.try_clone().expect("dup"));
            move || {
                let mut bytes = vec![0; 1 << 18];
                while let Ok(n @ 1..) = uninterrupted(|| stream.read(&mut bytes)) {
                    octets.fetch_add(n as u64, Ordering::Relaxed);
                }
            }
        });
        Self {
            local: stream.local_addr().expect("bound"),
            octets,
            stream,
            reading: Some(reading),
        }
    }

    /// Waits for what has to come.
    fn expect_more(&self) {
        let now = || self.octets.load(Ordering::Relaxed);
        let before = now();
        let came = wait_until(LONG, || now() >= before + LEAST);
        assert!(came, "only {} octets in {LONG:?}", now() - before);
    }

    /// Octets a second, from now for a while.
    fn rate(&self) -> u64 {
        let (start, octets) = (Instant::now(), self.octets.load(Ordering::Relaxed));
        thread::sleep(span());
        let more = self.octets.load(Ordering::Relaxed) - octets;
        (more as f64 / start.elapsed().as_secs_f64()) as u64
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        if let Some(reading) = self.reading.take() {
            let _ = reading.join();
        }
    }
}

/// Numbers that look random and are the same in every run (splitmix64).
pub fn mixed(n: u64) -> u64 {
    let mut z = n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
