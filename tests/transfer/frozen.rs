//! A guest that stands still for a while, as one does whose machine is saved, or stopped by a debugger.

use std::{sync::atomic::Ordering, thread, time::Duration};

use crate::{
    furnish,
    lab::world::{INTERNET4, INTERNET6},
    stream::{Server, carry, connect},
};

/// How long the guest stands still.
const FROZEN: Duration = Duration::from_secs(3);

/// How long no stream moves then, on a busy machine too; a timeout that has backed off for as long would take longer.
const PAUSE: Duration = Duration::from_secs(6);

const STREAM: u64 = 48 << 20;

#[test]
fn a_guest_that_was_frozen_resumes_all_its_flows() {
    for mtu in [1500, 65_520] {
        let Some((world, guest, _translator)) = furnish(mtu) else {
            return;
        };
        let servers = [
            Server::remote(&world, INTERNET4),
            Server::remote(&world, INTERNET6),
        ];
        let streams: Vec<_> = (0..8)
            .map(|n| {
                let (near, far) = connect(&guest, &servers[n % 2]);
                if n < 4 { (near, far) } else { (far, near) }
            })
            .collect();
        let gaps: Vec<Duration> = thread::scope(|scope| {
            let running: Vec<_> = streams
                .iter()
                .map(|(from, to)| scope.spawn(|| carry(from, to, STREAM)))
                .collect();
            // Somewhere in the middle of all of them.
            let carried = || {
                let counters = guest.counters();
                let up = counters.bytes_from_guest.load(Ordering::Relaxed);
                up.min(counters.bytes_to_guest.load(Ordering::Relaxed))
            };
            while carried() < STREAM / 2 {
                thread::sleep(Duration::from_millis(2));
            }
            guest.counters().frozen.store(true, Ordering::Relaxed);
            thread::sleep(FROZEN);
            guest.counters().frozen.store(false, Ordering::Relaxed);
            running.into_iter().map(|one| one.join().unwrap()).collect()
        });
        println!("mtu {mtu}: {gaps:?} without progress");
        assert!(
            gaps.iter().any(|&gap| gap > FROZEN / 2),
            "never frozen: {gaps:?}"
        );
        assert!(gaps.iter().all(|&gap| gap < PAUSE), "{gaps:?}");
    }
}
