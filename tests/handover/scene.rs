//! A guest between two hosts, each with a translator and a helper.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use smoltcp::{iface::SocketHandle, wire::IpCidr};

use crate::{
    guest::{Guest, pattern},
    lab::{
        Host, LONG, Nodes, Repair, Setup, Translator,
        front_end::{Bridge, Driver, FrontEnd, LINUX, Movable},
        nodes::{PEER, SERVICE},
    },
};

/// What every translator is told.
pub const ARGS: [&str; 6] = ["--vhost-user", "--no-map-gw", "-t", "8080", "-u", "8080"];

/// Octets that are much for a queue, and not for a test.
pub const PIECE: usize = 200_000;

/// A guest on the first of two hosts.
pub struct Scene {
    pub guest: Guest,
    card: Option<Movable>,
    /// The guest stands still, and what comes for it from now on is lost on its way.
    still: Option<Bridge>,
    pub source: Translator,
    pub target: Translator,
    pub nodes: Nodes,
    /// The bridge's ports to source and target.
    ports: [&'static str; 2],
}

impl Scene {
    /// `None` when the test is not to go on here.
    pub fn new() -> Option<Self> {
        Self::with(&[], |setup| setup)
    }

    /// The same with more arguments for the source's translator, and another set-up of the target's.
    pub fn with(more: &[&str], change: impl FnOnce(Setup) -> Setup) -> Option<Self> {
        let source = Setup::new(&[&ARGS, more].concat());
        Self::between(source, change(Setup::new(&ARGS)))
    }

    /// The same with these translators.
    pub fn between(source: Setup, target: Setup) -> Option<Self> {
        let nodes = Nodes::routed()?;
        let source = source.start(&nodes.source);
        let target = target.start(&nodes.target);
        let (card, wire) = Movable::new(source.connect(), Driver::new(LINUX));
        let mut guest = Guest::new(wire, 1500, false);
        for ((addr, len), router) in SERVICE.iter().zip([24, 64]).zip(PEER) {
            let addr: IpAddr = addr.parse().unwrap();
            guest.configure(IpCidr::new(addr.into(), len), router.parse().unwrap());
        }
        Some(Self {
            guest,
            card: Some(card),
            still: None,
            source,
            target,
            nodes,
            ports: ["p1", "p2"],
        })
    }

    /// The guest goes to the other host, and the network follows. How long source and target took.
    pub fn hand_over(&mut self) -> (Duration, Duration) {
        let helpers = self.helpers();
        let took = self.hand_over_alone(|state| state);
        drop(helpers);
        took
    }

    /// The target becomes the source of the next move, which leads back.
    pub fn turn_round(&mut self) {
        std::mem::swap(&mut self.source, &mut self.target);
        std::mem::swap(&mut self.nodes.source, &mut self.nodes.target);
        self.ports.reverse();
    }

    /// A helper of ours for each translator.
    pub fn helpers(&self) -> [Repair; 2] {
        [
            (&self.nodes.source, &self.source),
            (&self.nodes.target, &self.target),
        ]
        .map(|(host, translator)| helper(host, translator))
    }

    /// The same without helpers of its own, with something done to the state on its way.
    pub fn hand_over_alone(
        &mut self,
        change: impl FnOnce(Vec<u8>) -> Vec<u8>,
    ) -> (Duration, Duration) {
        let loses = self.still.is_some();
        if !loses {
            self.halt();
        }
        let mut bridge = self.still.take().unwrap();
        let (state, leaving) = bridge.front_end.save();
        let state = change(state.unwrap());
        let mut front_end = FrontEnd::greet(self.target.connect(), Driver::new(LINUX));
        let (well, arriving) = front_end.load(&state);
        assert!(well, "{}", self.target.log());
        self.nodes.switch(self.ports[0], self.ports[1]);
        front_end.share_memory();
        front_end.start_rings(0, 0);
        if !loses {
            bridge.receive(usize::MAX);
        }
        self.card = Some(bridge.go_on(front_end));
        self.source.expect_log("Client connection closed");
        (leaving, arriving)
    }

    /// Has the guest stand still before it leaves; what comes for it until then is lost on its way.
    pub fn halt(&mut self) {
        self.still = self.card.take().map(Movable::halt);
    }

    /// The guest's state is taken, but it goes on where it was: nobody took it over.
    pub fn stay(&mut self) {
        let helper = self.helper();
        // What a migration is found to have failed by takes its time.
        self.stay_while(|_| thread::sleep(crate::lab::QUIET));
        // It is sent away when all is done.
        assert_eq!(helper.end(), Some(0));
    }

    /// The same with what helpers there are, and something happens until it goes on.
    pub fn stay_while(&mut self, meanwhile: impl FnOnce(&Nodes)) {
        let loses = self.still.is_some();
        if !loses {
            self.halt();
        }
        let mut bridge = self.still.take().unwrap();
        assert!(bridge.front_end.save().0.is_some());
        meanwhile(&self.nodes);
        if !loses {
            bridge.receive(usize::MAX);
        }
        self.card = Some(bridge.again());
        self.source.expect_log("Guest stays");
    }

    /// The guest's state is saved, something happens, and then the guest is made what it was, by the same front-end.
    pub fn go_back_after(&mut self, meanwhile: impl FnOnce(&mut Self)) {
        self.halt();
        let mut bridge = self.still.take().unwrap();
        let state = bridge.front_end.save().0.unwrap();
        self.card = Some(bridge.again());
        self.source.expect_log("Guest stays");
        meanwhile(self);
        self.halt();
        let mut bridge = self.still.take().unwrap();
        bridge.front_end.stop_rings();
        assert!(bridge.front_end.load(&state).0);
        self.card = Some(bridge.again());
        self.source.expect_log("Guest arrived");
    }

    /// A helper of ours for the guest's translator.
    pub fn helper(&self) -> Repair {
        helper(&self.nodes.source, &self.source)
    }

    /// A listener of the peer's in each family.
    pub fn listeners(&self) -> [TcpListener; 2] {
        PEER.map(|addr| {
            let addr = SocketAddr::new(addr.parse().unwrap(), 0);
            self.nodes.peer.run(|| TcpListener::bind(addr).unwrap())
        })
    }

    /// A connection of the guest's to a listener.
    pub fn connect(&mut self, listener: &TcpListener) -> (SocketHandle, TcpStream) {
        let handle = self.guest.connect(listener.local_addr().unwrap());
        let (theirs, _) = listener.accept().unwrap();
        limit(&theirs);
        (handle, theirs)
    }
}

fn helper(host: &Host, translator: &Translator) -> Repair {
    Repair::connected(host, &Repair::path(translator), Repair::ours())
}

/// Much from the guest, and back.
pub fn exchange(guest: &mut Guest, handle: SocketHandle, theirs: &TcpStream) {
    let data = pattern(0, PIECE);
    thread::scope(|scope| {
        let echo = scope.spawn(|| {
            let mut octets = vec![0; PIECE];
            (&mut &*theirs).read_exact(&mut octets).unwrap();
            (&mut &*theirs).write_all(&octets).unwrap();
        });
        guest.send(handle, &data);
        guest.download(handle, PIECE);
        echo.join().unwrap();
    });
}

pub fn limit(stream: &TcpStream) {
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream.set_write_timeout(Some(LONG)).unwrap();
}
