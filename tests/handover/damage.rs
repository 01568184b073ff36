//! States that are not what a source wrote.

use smoltcp::socket::tcp;

use crate::{
    lab::{
        Setup,
        front_end::{Driver, FrontEnd, LINUX},
    },
    scene::{ARGS, Scene},
};

/// A state as it was written, and what becomes of it on the way.
type Change = fn(Vec<u8>) -> Vec<u8>;

/// How, and what the target says of it.
const CHANGES: [(Change, &str); 6] = [
    (|_| Vec::new(), "it is not of passt-rs"),
    (
        // What upstream's begins with.
        |_| b"\xb1\xbb\x1d\x1b\x0b\xb1\xd1\xb0\0\0\0\x02\0\0\0\x01".to_vec(),
        "it is not of passt-rs",
    ),
    (|state| state[..state.len() / 2].to_vec(), "it is truncated"),
    (
        |mut state| {
            let middle = state.len() / 2;
            state[middle] ^= 1;
            state
        },
        "it is damaged",
    ),
    (
        |mut state| {
            state[9] = 9;
            state
        },
        "its version 9 is not known",
    ),
    (
        |mut state| {
            state.push(0);
            state
        },
        "it is damaged",
    ),
];

/// The guest goes on without its flows, whose ends it hears of when it uses them.
#[test]
fn a_guest_whose_state_is_refused_is_served_without_flows() {
    for (change, words) in CHANGES {
        let Some(mut scene) = Scene::new() else {
            return;
        };
        let listener = &scene.listeners()[0];
        let (handle, _theirs) = scene.connect(listener);
        let _helpers = scene.helpers();
        scene.hand_over_alone(change);
        let line = format!("The guest's state is not taken over: {words}\n");
        scene.target.expect_log(&line);
        let log = scene.target.log();
        assert_eq!(log.matches("state").count(), 1, "{log}");
        assert!(!log.contains("Guest arrived"), "{log}");
        scene.guest.tcp(handle).send_slice(b"hello?").unwrap();
        scene.guest.until("reset", |sockets| {
            sockets.get::<tcp::Socket<'_>>(handle).state() == tcp::State::Closed
        });
        let (again, theirs) = scene.connect(listener);
        scene.guest.send(again, b"hello");
        let mut octets = [0; 5];
        std::io::Read::read_exact(&mut &theirs, &mut octets).unwrap();
        assert_eq!(&octets, b"hello");
    }
}

/// One that never ends is given up, and the translator lives on.
#[test]
fn a_front_end_that_ends_in_the_midst_of_a_state_is_forgotten() {
    let Some(nodes) = crate::lab::Nodes::routed() else {
        return;
    };
    let mut target = Setup::new(&ARGS).start(&nodes.target);
    let mut front_end = FrontEnd::greet(target.connect(), Driver::new(LINUX));
    let (well, _) = front_end.load(b"passt-rs\0\x01\x03\xff\xff\xff\xff");
    assert!(well, "a guest without flows is better than none");
    target.expect_log("The guest's state is not taken over: it is truncated");
    drop(front_end);
    target.expect_log("Client connection closed");
    target.assert_alive();
    let mut front_end = FrontEnd::greet(target.connect(), Driver::new(LINUX));
    assert!(front_end.load(&[]).0);
}
