//! The workers, as the first reactor sees them. Nothing here is on the way of frames: whatever is changed, the workers stand
//! still meanwhile.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver, Sender},
    },
    thread,
};

use mio::{Waker, unix::SourceFd};

use super::{
    core::Core,
    event::Source,
    worker::{Post, Word, Worker},
};
use crate::{
    flow::Key,
    net::{Now, Span},
    relay::{Moved, Relay, Share},
};

/// How long flows wait for their queue to run again, before they go on by the first one.
const GRACE: Span = Span::millis(100);

/// The least time between two occasions for flows to follow their frames: whoever has them go to and fro does not stop the
/// threads more often.
const PACE: Span = Span::millis(100);

/// The same after occasions on which none could.
const PACE_MOST: Span = Span::millis(1600);

/// The workers; none where one thread does it all.
#[derive(Debug, Default)]
pub(super) struct Crew {
    members: Vec<Member>,
    words: Option<Receiver<Word>>,
    /// What a worker's thread has ended by.
    ended: Option<io::Error>,
    /// The first reactor's part, while no worker has anything to serve.
    share: Option<Share>,
    /// When flows whose queue does not run are taken over.
    absorb_at: Option<Now>,
    /// When flows may follow their frames, if any are to, and not before when.
    follow_at: Option<Now>,
    rest_until: Now,
    pace: Span,
}

/// A worker, from here.
#[derive(Debug)]
struct Member {
    wanted: Arc<AtomicBool>,
    over: Receiver<Box<Worker>>,
    back: Sender<Box<Worker>>,
}

impl Crew {
    /// Starts a thread for each of the relays, to serve a guest together with the first reactor, which is told by its poll.
    /// `flows` is how many there may be in all.
    ///
    /// # Errors
    /// Those of epoll_create(2), eventfd(2) and pthread_create(3).
    pub(super) fn start(first: &mut Core, relays: Vec<Relay>, flows: usize) -> io::Result<Self> {
        if relays.is_empty() {
            return Ok(Self::default());
        }
        let count = relays.len() + 1;
        let mut shares = Share::among(count, flows, first.relay.forwarded_ports()).into_iter();
        let share = shares.next();
        let mut cores = Vec::with_capacity(relays.len());
        for (mut relay, share) in relays.into_iter().zip(shares) {
            relay.join(share);
            let mut core = Core::new(relay, first.start)?;
            core.set_busy_poll(first.busy_poll);
            cores.push(core);
        }
        let polls = std::iter::once(&first.poll).chain(cores.iter().map(|core| &core.poll));
        let wakers = polls.map(|poll| Waker::new(poll.registry(), Source::Peers.token()));
        let wakers: Arc<[Waker]> = wakers.collect::<io::Result<Vec<_>>>()?.into();
        first.wakers = Arc::clone(&wakers);
        let (said, words) = mpsc::channel();
        let mut members = Vec::with_capacity(cores.len());
        for (at, mut core) in cores.into_iter().enumerate() {
            core.wakers = Arc::clone(&wakers);
            members.push(recruit(Worker::new(core, at + 1, said.clone()))?);
        }
        // A thread's start takes system calls that are not allowed later.
        for _ in &members {
            words.recv().map_err(io::Error::other)?;
        }
        Ok(Self {
            members,
            words: Some(words),
            ended: None,
            share,
            absorb_at: None,
            follow_at: None,
            rest_until: Now(0),
            pace: PACE,
        })
    }

    /// Queue pairs that can be served.
    pub(super) const fn pairs(&self) -> usize {
        self.members.len() + 1
    }

    /// Has all workers stand still until they are dismissed.
    pub(super) fn call(&self, wakers: &[Waker]) -> Vec<Box<Worker>> {
        for (member, waker) in self.members.iter().zip(wakers.iter().skip(1)) {
            member.wanted.store(true, Ordering::Release);
            let _ = waker.wake();
        }
        // One whose thread has ended has said so.
        let handed = self.members.iter().map(|member| member.over.recv());
        handed.filter_map(Result::ok).collect()
    }

    /// Lets them go on.
    pub(super) fn dismiss(&self, workers: Vec<Box<Worker>>) {
        for worker in workers {
            if let Some(member) = self.members.get(worker.number - 1) {
                member.wanted.store(false, Ordering::Release);
                let _ = member.back.send(worker);
            }
        }
    }

    /// Takes what workers have to say, and returns why a queue pair is not served any more, if one is not.
    ///
    /// # Errors
    /// What a worker's thread has ended by.
    pub(super) fn hear(&mut self, first: &mut Core) -> io::Result<Option<String>> {
        let mut stopped = None;
        if let Some(error) = self.ended.take() {
            return Err(error);
        }
        for word in self.words.iter().flat_map(Receiver::try_iter) {
            match word {
                Word::Ready => {}
                Word::News(guest) => {
                    let now = first.now();
                    first.relay.hear_of_guest(&guest, &mut first.outbox, now);
                    first.register();
                }
                Word::Drift => self.follow_at = Some(self.rest_until),
                Word::Stopped(why) => stopped = Some(why),
                Word::Ended(error) => return Err(error),
            }
        }
        Ok(stopped)
    }

    /// When [`Crew::absorb`] is due.
    pub(super) const fn absorb_due(&self) -> Option<Now> {
        self.absorb_at
    }

    /// When [`Crew::follow`] is due.
    pub(super) fn follow_due(&self, first: &Core) -> Option<Now> {
        let own = first.relay.has_drifters().then_some(self.rest_until);
        self.follow_at.or(own)
    }

    /// Takes notice of which queues run by now: as soon as a worker's do, flows are shared; when none does and none has any,
    /// they are not any more.
    pub(super) fn arrange(&mut self, first: &mut Core, workers: &mut [Box<Worker>], now: Now) {
        let (mut runs, mut rest, mut stray) = (false, first.relay.has_handed(), false);
        for worker in workers.iter_mut() {
            let able = worker.core.outbox.outlet().is_some();
            worker.core.relay.set_able(able);
            worker.core.link_readable = true;
            let busy = !worker.core.relay.is_idle() || worker.core.relay.has_handed();
            runs |= worker.runs();
            rest |= busy || worker.core.relay.has_parts();
            stray |= busy && !able;
        }
        if runs && let Some(share) = self.share.take() {
            first.relay.join(share);
        }
        let able = workers.iter_mut().fold(0_u32, |mask, worker| {
            mask | u32::from(worker.core.outbox.outlet().is_some()) << worker.number
        });
        first.relay.divide_room(able);
        if !runs && !rest && self.share.is_none() {
            self.share = first.relay.part();
        }
        self.absorb_at = if stray && first.outbox.outlet().is_some() {
            self.absorb_at.or(Some(now + GRACE))
        } else {
            None
        };
    }

    /// Takes over the flows of workers that have no queue for what these have for the guest.
    pub(super) fn absorb(&mut self, first: &mut Core, workers: &mut [Box<Worker>], now: Now) {
        for worker in workers.iter_mut() {
            let core = &mut worker.core;
            if core.outbox.outlet().is_some() {
                continue;
            }
            take_all_handed(core);
            let mut slot = 0;
            while let Some(moved) = core.relay.give(&mut slot) {
                let_go(core, &moved);
                first.relay.adopt(moved, now);
            }
            first.relay.take_over_line(&mut core.relay);
            core.register();
            // What waited for its queue is of flows that are not here any more.
            core.outbox.attach_queue(true);
            if let Some(guest) = core.relay.take_news() {
                first.relay.hear_of_guest(&guest, &mut first.outbox, now);
            }
        }
        first.register();
        self.arrange(first, workers, now);
    }

    /// Lets flows follow their frames to the threads of the queues these keep coming by; those that cannot now have it noted
    /// again.
    pub(super) fn follow(&mut self, first: &mut Core, workers: &mut [Box<Worker>], now: Now) {
        self.follow_at = None;
        first.register();
        let mut moved = false;
        for worker in workers.iter_mut() {
            worker.said_drift = false;
        }
        for from in 0..=workers.len() {
            let Some(core) = core_of(first, workers, from) else {
                continue;
            };
            if core.relay.has_drifters() {
                take_all_handed(core);
            }
            while let Some((key, to)) =
                core_of(first, workers, from).and_then(|core| core.relay.next_drifter())
            {
                let welcome = core_of(first, workers, to).is_some_and(|core| core.relay.welcomes());
                if to != from && welcome {
                    moved |= move_flow(first, workers, &key, from, to, now);
                }
            }
        }
        // Flows that never can go are no reason to stop the threads as often.
        self.pace = if moved {
            PACE
        } else {
            Span((2 * self.pace.0).min(PACE_MOST.0))
        };
        self.rest_until = now + self.pace;
    }

    /// Ports that are forwarded by now are the first reactor's, with the flows of theirs that others have. Those that were
    /// before stay so: who knows what of theirs is on its way.
    pub(super) fn keep_forwarded(
        &mut self,
        first: &mut Core,
        workers: &mut [Box<Worker>],
        now: Now,
    ) {
        let mut relays = workers.iter().map(|worker| &worker.core.relay);
        let Some(known) = relays.next().and_then(Relay::known_forwarded) else {
            return;
        };
        let all = Arc::new(known.with(&first.relay.forwarded_ports()));
        if all == known {
            return;
        }
        take_everything_handed(first, workers);
        let mut moved = Vec::new();
        for worker in workers.iter_mut() {
            let core = &mut worker.core;
            let mut slot = 0;
            while let Some(flow) = core.relay.give_forwarded(&all, &mut slot) {
                let_go(core, &flow);
                moved.push(flow);
            }
            core.relay.set_forwarded(&all);
            core.register();
        }
        first.relay.set_forwarded(&all);
        if let Some(share) = &mut self.share {
            share.set_forwarded(&all, std::iter::empty());
        }
        for flow in moved {
            first.relay.adopt(flow, now);
        }
        first.register();
    }

    /// The guest is gone; its queues were stopped before.
    pub(super) fn guest_left(&mut self, first: &mut Core, workers: &mut [Box<Worker>], now: Now) {
        take_everything_handed(first, workers);
        for worker in workers.iter_mut() {
            worker.core.relay.guest_left();
            worker.core.register();
            worker.core.outbox.attach_queue(false);
        }
        // What is said of this guest and its queues by now is not to be taken for the next one's.
        for word in self.words.iter().flat_map(Receiver::try_iter) {
            match word {
                Word::Drift => self.follow_at = Some(self.rest_until),
                Word::Ended(error) => self.ended = Some(error),
                Word::Ready | Word::News(_) | Word::Stopped(_) => {}
            }
        }
        self.arrange(first, workers, now);
    }
}

/// What serves a queue pair.
fn core_of<'a>(
    first: &'a mut Core,
    workers: &'a mut [Box<Worker>],
    number: usize,
) -> Option<&'a mut Core> {
    match number.checked_sub(1) {
        None => Some(first),
        Some(at) => workers.get_mut(at).map(|worker| &mut worker.core),
    }
}

/// Has a flow go from one thread to another. `false` if it cannot go now.
fn move_flow(
    first: &mut Core,
    workers: &mut [Box<Worker>],
    key: &Key,
    from: usize,
    to: usize,
    now: Now,
) -> bool {
    let Some(core) = core_of(first, workers, from) else {
        return false;
    };
    let Some(moved) = core.relay.let_follow(key) else {
        return false;
    };
    let_go(core, &moved);
    log::debug!("{key} follows its frames from queue pair {from} to {to}");
    if let Some(core) = core_of(first, workers, to) {
        core.relay.adopt(moved, now);
        core.register();
    }
    true
}

/// Has all threads take all that others have handed over.
fn take_everything_handed(first: &mut Core, workers: &mut [Box<Worker>]) {
    let mut rest = true;
    while rest {
        rest = first.relay.has_handed();
        first.take_handed();
        for worker in workers.iter_mut() {
            rest |= worker.core.relay.has_handed();
            worker.core.take_handed();
        }
    }
}

/// Has a thread take all that others have handed over: it was sent before all that comes from now on.
fn take_all_handed(core: &mut Core) {
    while core.relay.has_handed() {
        core.take_handed();
    }
}

/// Has a thread's poll not look at a flow's socket any more.
fn let_go(core: &Core, moved: &Moved) {
    let registry = core.poll.registry();
    let _ = registry.deregister(&mut SourceFd(&moved.socket()));
}

/// Starts a worker's thread. It goes by the name of ours.
fn recruit(worker: Worker) -> io::Result<Member> {
    let wanted = Arc::new(AtomicBool::new(false));
    let (over, taken) = mpsc::channel();
    let (give, back) = mpsc::channel();
    let post = Post {
        wanted: Arc::clone(&wanted),
        over,
        back,
    };
    let worker = Box::new(worker);
    thread::Builder::new().spawn(move || worker.run(&post))?;
    Ok(Member {
        wanted,
        over: taken,
        back: give,
    })
}
