//! The state of a device, as a front-end takes it from one back end and gives it to another.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::{AsRawFd, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use nix::{fcntl::OFlag, unistd::pipe2};

use super::{FrontEnd, request};

/// A reply that says: the descriptor that was sent is the one to use.
const NO_DESCRIPTOR: u64 = 1 << 8;

const SAVE: u64 = 0;
const LOAD: u64 = 1;

impl FrontEnd {
    /// Stops the device and takes its state, and how long the back end took for it; `None` if it failed.
    pub fn save(&mut self) -> (Option<Vec<u8>>, Duration) {
        self.stop_rings();
        let (ours, theirs) = pipe2(OFlag::O_CLOEXEC).expect("a pipe");
        let begin = Instant::now();
        self.hand_over(SAVE, theirs);
        let mut state = Vec::new();
        File::from(ours).read_to_end(&mut state).expect("a state");
        let well = self.check();
        (well.then_some(state), begin.elapsed())
    }

    /// Gives a device that does not run yet its state. `false` if it does not take it. And how long that took.
    pub fn load(&mut self, state: &[u8]) -> (bool, Duration) {
        let (theirs, ours) = pipe2(OFlag::O_CLOEXEC).expect("a pipe");
        let begin = Instant::now();
        self.hand_over(LOAD, theirs);
        let well = thread::scope(|scope| {
            // Who refuses it early does not read on.
            scope.spawn(|| File::from(ours).write_all(state));
            self.check()
        });
        (well, begin.elapsed())
    }

    fn hand_over(&self, direction: u64, pipe: OwnedFd) {
        let words = [direction];
        self.send(request::SET_DEVICE_STATE_FD, 1, &words, &[pipe.as_raw_fd()]);
        drop(pipe);
        assert_eq!(self.reply(request::SET_DEVICE_STATE_FD), [NO_DESCRIPTOR]);
    }

    fn check(&self) -> bool {
        self.ask(request::CHECK_DEVICE_STATE, &[]) == [0]
    }
}
