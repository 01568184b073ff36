//! Who the guest talks to: numbers are told and taken line by line, so that nothing that is lost, doubled or moved goes
//! unseen.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{IpAddr, TcpListener, TcpStream},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use super::{
    Host, PATIENCE,
    nodes::{PEER, SERVICE},
    wait_until,
};

/// How far the streams are: octets of each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress(Vec<u64>);

impl Progress {
    pub fn all_beyond(&self, other: &Self) -> bool {
        // A good deal more, so that it cannot have been on its way.
        let more = |(now, then): (&u64, &u64)| *now > then + 200_000;
        self.0.iter().zip(&other.0).all(more)
    }
}

/// Servers on one host, for one guest.
#[derive(Debug)]
pub struct Peer<'a> {
    host: &'a Host,
    idle: Vec<TcpListener>,
    connections: Vec<TcpStream>,
    counters: Vec<Arc<AtomicU64>>,
    finish: Arc<AtomicBool>,
    downloads: Vec<JoinHandle<(IpAddr, String)>>,
}

impl<'a> Peer<'a> {
    pub fn start(host: &'a Host) -> Self {
        let mut peer = Self {
            host,
            idle: Vec::new(),
            connections: Vec::new(),
            counters: Vec::new(),
            finish: Arc::default(),
            downloads: Vec::new(),
        };
        for addr in PEER {
            let addr: IpAddr = addr.parse().unwrap();
            let listen = |port: u16| host.run(|| TcpListener::bind((addr, port)).unwrap());
            peer.idle.push(listen(7000));
            let (up, down) = (listen(7001), listen(7002));
            let counter = peer.counter();
            thread::spawn(move || take_numbers(&up, &counter));
            let (counter, finish) = (peer.counter(), Arc::clone(&peer.finish));
            peer.downloads.push(thread::spawn(move || {
                (addr, tell_numbers(&down, &counter, &finish))
            }));
        }
        peer
    }

    fn counter(&mut self) -> Arc<AtomicU64> {
        let counter = Arc::new(AtomicU64::new(0));
        self.counters.push(Arc::clone(&counter));
        counter
    }

    pub fn progress(&self) -> Progress {
        let count = |counter: &Arc<AtomicU64>| counter.load(Ordering::Relaxed);
        Progress(self.counters.iter().map(count).collect())
    }

    /// Waits for the guest's idle connections.
    pub fn expect_guest(&mut self) {
        for listener in &self.idle {
            listener.set_nonblocking(true).unwrap();
            let mut client = None;
            assert!(wait_until(PATIENCE, || {
                client = listener.accept().ok();
                client.is_some()
            }));
            let (stream, _) = client.unwrap();
            stream.set_nonblocking(false).unwrap();
            self.connections.push(stream);
        }
        self.ask_idle_connections();
    }

    pub fn connect_to_guest(&mut self) {
        let mut stream = None;
        assert!(wait_until(PATIENCE, || {
            let service: IpAddr = SERVICE[0].parse().unwrap();
            let connected = self.host.run(|| TcpStream::connect((service, 8080)));
            // Where the guest does not listen yet it is a reset that follows.
            stream = connected.ok().filter(|stream| {
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                let asked = (&mut &*stream).write_all(b"anybody?\n");
                asked.is_ok() && (&mut &*stream).read_exact(&mut [0; 9]).is_ok()
            });
            stream.is_some()
        }));
        self.connections.extend(stream);
        self.ask_idle_connections();
    }

    /// Has the guest send a line back over each connection that is idle.
    pub fn ask_idle_connections(&self) {
        for (number, stream) in self.connections.iter().enumerate() {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let line = format!("line for {number}\n");
            (&mut &*stream).write_all(line.as_bytes()).unwrap();
            let mut back = vec![0; line.len()];
            (&mut &*stream)
                .read_exact(&mut back)
                .unwrap_or_else(|error| panic!("connection {number}: {error}"));
            assert_eq!(back, line.as_bytes());
        }
    }

    /// Ends the downloads; their sums, as sha256sum(1) has them.
    pub fn finish(&mut self) -> Vec<(IpAddr, String)> {
        self.finish.store(true, Ordering::Relaxed);
        let downloads = std::mem::take(&mut self.downloads);
        downloads
            .into_iter()
            .map(|download| download.join().unwrap())
            .collect()
    }
}

/// Takes the numbers from 1 on, one a line.
fn take_numbers(listener: &TcpListener, counter: &AtomicU64) {
    let (stream, _) = listener.accept().unwrap();
    let mut lines = BufReader::new(stream);
    let mut line = String::new();
    for number in 1_u64.. {
        line.clear();
        match lines.read_line(&mut line) {
            Ok(1..) => {}
            _ => return,
        }
        let right = line.trim_end().parse() == Ok(number) && line.ends_with('\n');
        // A number that is wrong stops the count, and the test with it.
        if !right {
            println!("{line:?} where {number} should be");
            return;
        }
        counter.fetch_add(line.len() as u64, Ordering::Relaxed);
        if number % 20_000 == 0 {
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Tells numbers until it is enough; the sum of all that was told.
fn tell_numbers(listener: &TcpListener, counter: &AtomicU64, finish: &AtomicBool) -> String {
    let (mut stream, _) = listener.accept().unwrap();
    let mut sum = Command::new("sha256sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = sum.stdin.take().unwrap();
    for number in 0_u64.. {
        if finish.load(Ordering::Relaxed) {
            break;
        }
        let piece: String = (0..5000).map(|line| format!("{number} {line}\n")).collect();
        if let Err(error) = stream.write_all(piece.as_bytes()) {
            println!("download: {error}");
            break;
        }
        input.write_all(piece.as_bytes()).unwrap();
        counter.fetch_add(piece.len() as u64, Ordering::Relaxed);
        thread::sleep(Duration::from_millis(10));
    }
    drop((input, stream));
    let output = sum.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.split(' ').next().unwrap().to_owned()
}
