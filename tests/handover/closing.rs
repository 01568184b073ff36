//! Streams that have ended, on one side or on both.

use std::{
    io::{Read, Write},
    net::Shutdown,
};

use smoltcp::socket::tcp;

use crate::{
    guest::{assert_pattern, pattern},
    lab::{LONG, wait_until},
    scene::Scene,
};

const PIECE: usize = 300_000;

fn read_to_end(stream: &mut impl Read) -> Vec<u8> {
    let mut octets = Vec::new();
    stream.read_to_end(&mut octets).unwrap();
    octets
}

#[test]
fn half_closed_connections_stay_half_closed() {
    for family in [0, 1] {
        let Some(mut scene) = Scene::new() else {
            return;
        };
        let listener = &scene.listeners()[family];
        // The guest has nothing more to say, and the peer knows.
        let (asks, mut asked) = scene.connect(listener);
        scene.guest.upload(asks, 1000);
        scene.guest.shutdown(asks);
        scene.guest.run_for(crate::lab::QUIET);
        assert_pattern(0, &read_to_end(&mut asked));
        // The peer has nothing more to say, and the guest knows.
        let (answers, mut answered) = scene.connect(listener);
        answered.shutdown(Shutdown::Write).unwrap();
        scene.guest.expect_eof(answers);
        // The guest said much and that it was all; the peer did not read.
        let (tells, mut told) = scene.connect(listener);
        let words = pattern(0, PIECE);
        scene.guest.send(tells, &words);
        scene.guest.shutdown(tells);
        // The peer did; the guest did not read.
        let (hears, mut heard) = scene.connect(listener);
        heard.write_all(&words).unwrap();
        heard.shutdown(Shutdown::Write).unwrap();
        scene.guest.run_for(crate::lab::QUIET);

        scene.hand_over();
        scene.target.expect_log("Guest arrived with 4 of 4 TCP");
        asked.write_all(&words).unwrap();
        drop(asked);
        scene.guest.download(asks, PIECE);
        scene.guest.expect_eof(asks);
        scene.guest.upload(answers, PIECE);
        scene.guest.shutdown(answers);
        let end = std::thread::spawn(move || read_to_end(&mut answered));
        scene.guest.run_for(crate::lab::QUIET);
        assert_pattern(0, &end.join().unwrap());
        assert_pattern(0, &read_to_end(&mut told));
        scene.guest.download(hears, PIECE);
        scene.guest.expect_eof(hears);
        scene.guest.upload(hears, 1000);
        let mut octets = vec![0; 1000];
        heard.read_exact(&mut octets).unwrap();
        assert_pattern(0, &octets);
        // Flows that are over are gone.
        scene.guest.close(hears);
        drop((heard, told));
        scene.guest.close(tells);
        let none = || scene.target.flows().starts_with("0 TCP");
        assert!(wait_until(LONG, none), "{}", scene.target.flows());
    }
}

/// Both streams have ended and the host's kernel is done with them, but the guest has not heard the end yet.
#[test]
fn last_words_of_a_peer_that_is_gone_are_heard() {
    for family in [0, 1] {
        let Some(mut scene) = Scene::new() else {
            return;
        };
        let listener = &scene.listeners()[family];
        let (handle, mut theirs) = scene.connect(listener);
        scene.guest.upload(handle, 1000);
        scene.guest.shutdown(handle);
        let end = std::thread::spawn(move || (read_to_end(&mut theirs), theirs));
        scene.guest.run_for(crate::lab::QUIET);
        let (said, mut theirs) = end.join().unwrap();
        assert_eq!(said.len(), 1000);
        // As much as a socket takes that is not read from, and none of it gets to the guest before it moves.
        scene.halt();
        theirs.write_all(&pattern(0, 50_000)).unwrap();
        drop(theirs);
        let done = || {
            let tables = ["tcp", "tcp6"].map(|name| scene.nodes.source.proc_net(name));
            let states = tables.iter().flatten();
            let mut states = states.filter_map(|line| line.split_whitespace().nth(3));
            states.any(|state| state == "06")
        };
        assert!(wait_until(LONG, done), "no TIME_WAIT");
        scene.hand_over();
        scene.target.expect_log("Guest arrived with 1 of 1 TCP");
        scene.guest.download(handle, 50_000);
        scene.guest.expect_eof(handle);
        let state = scene.guest.tcp_state(handle);
        assert_eq!(state, tcp::State::TimeWait, "no reset");
        let none = || {
            scene.guest.run_for(crate::lab::QUIET);
            scene.target.flows().starts_with("0 TCP")
        };
        assert!(wait_until(LONG, none), "{}", scene.target.flows());
    }
}
