//! How the process starts and ends, and what it leaves behind: nothing.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod lab;

use lab::{Translator, World};

#[test]
fn sigterm_ends_it_with_success() {
    let Some(world) = World::pod() else { return };
    let mut translator = Translator::start(&world.pod, &[]);
    let _guest = translator.connect();
    assert!(translator.fd_count() > 3);
    assert!(translator.rss() > 100);
    assert_eq!(translator.stop(), 0);
}
