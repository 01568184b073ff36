//! The protocol between passt and passt-repair, from passt's end: a command of one octet goes out with a batch of sockets,
//! the same octet comes back when all of them are set, and on failure the connection ends.

/// The most sockets a command may come with (SCM_MAX_FD, unix(7)).
pub const BATCH: usize = 253;

/// What is to become of sockets: the values of the socket option TCP_REPAIR (linux/tcp.h), as a signed octet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    On,
    Off,
    /// Off, without the probe that would tell the peer of us.
    OffSilently,
}

impl Command {
    pub const fn octet(self) -> u8 {
        self.value().cast_unsigned()
    }

    /// What the socket option is set to.
    pub const fn value(self) -> i8 {
        match self {
            Self::On => 1,
            Self::Off => 0,
            Self::OffSilently => -1,
        }
    }

    pub const fn from_octet(octet: u8) -> Option<Self> {
        match octet.cast_signed() {
            1 => Some(Self::On),
            0 => Some(Self::Off),
            -1 => Some(Self::OffSilently),
            _ => None,
        }
    }
}

/// One command for so many sockets, on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    command: Command,
    count: usize,
    done: usize,
    /// Sockets of the batch that is not answered yet.
    sent: usize,
}

/// What to do next about an [`Order`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Send the command with sockets `from..to`, then tell [`Order::sent`].
    Send {
        from: usize,
        to: usize,
    },
    /// An octet must come back.
    Await,
    Done,
}

impl Order {
    pub const fn new(command: Command, count: usize) -> Self {
        Self {
            command,
            count,
            done: 0,
            sent: 0,
        }
    }

    pub fn step(&self) -> Step {
        if self.sent > 0 {
            Step::Await
        } else if self.done < self.count {
            Step::Send {
                from: self.done,
                to: (self.done + BATCH).min(self.count),
            }
        } else {
            Step::Done
        }
    }

    /// The batch of the last [`Step::Send`] is on its way.
    pub fn sent(&mut self) {
        self.sent = (self.count - self.done).min(BATCH);
    }

    /// An octet came back: `false` if it is not the answer expected.
    pub fn answered(&mut self, octet: u8) -> bool {
        let right = self.sent > 0 && octet == self.command.octet();
        if right {
            self.done += std::mem::take(&mut self.sent);
        }
        right
    }

    /// Sockets for which the command was confirmed; those of a batch that was not answered may be set or not.
    pub const fn confirmed(&self) -> usize {
        self.done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The batches that are sent for so many sockets.
    fn batches(count: usize) -> Vec<usize> {
        let mut order = Order::new(Command::On, count);
        let mut batches = Vec::new();
        while let Step::Send { from, to } = order.step() {
            assert_eq!(from, order.confirmed());
            batches.push(to - from);
            order.sent();
            assert_eq!(order.step(), Step::Await);
            assert!(order.answered(1));
        }
        assert_eq!((order.step(), order.confirmed()), (Step::Done, count));
        batches
    }

    /// Regressions M08, M09 and M10.
    #[test]
    fn sockets_go_in_batches_of_253_and_each_is_answered_once() {
        assert_eq!(batches(0), [0; 0]);
        assert_eq!(batches(1), [1]);
        assert_eq!(batches(253), [253]);
        assert_eq!(batches(254), [253, 1]);
        assert_eq!(batches(1000), [253, 253, 253, 241]);
    }

    #[test]
    fn an_answer_that_was_not_asked_for_is_wrong() {
        let mut order = Order::new(Command::OffSilently, 2);
        assert!(!order.answered(0xff), "too early");
        order.sent();
        assert!(!order.answered(1), "another's");
        assert!(order.answered(0xff));
        assert!(!order.answered(0xff), "twice");
    }

    #[test]
    fn commands_are_signed_octets() {
        for command in [Command::On, Command::Off, Command::OffSilently] {
            assert_eq!(Command::from_octet(command.octet()), Some(command));
        }
        assert_eq!(Command::OffSilently.octet(), 0xff);
        assert_eq!(Command::from_octet(2), None);
    }
}
