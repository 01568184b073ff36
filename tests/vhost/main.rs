//! The vhost-user link, by a front-end and driver of our own: what front-ends say in which order, every feature on and off,
//! and what is done about those that lie.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../guest/mod.rs"]
mod guest;
#[path = "../lab/mod.rs"]
mod lab;

mod abuse;
mod chance;
mod crowds;
mod datagrams;
mod disabled;
mod following;
mod forwards;
mod guests;
mod inbound;
mod offload;
mod polling;
mod protocol;
mod queues;

use guest::frame::{ETHERTYPE_ARP, GUEST_MAC, ethernet, of_type};
use lab::{
    Setup, Translator, World,
    front_end::{Arrival, Driver, FrontEnd},
    world::{GATEWAY4, POD4},
};

/// A translator in the pod that is a vhost-user back end.
struct Scene {
    translator: Translator,
    world: World,
}

impl Scene {
    /// `None` when the test is not to go on here: see [`World::pod`].
    fn new(args: &[&str]) -> Option<Self> {
        let world = World::pod()?;
        let translator = Setup::new(args).arg("--vhost-user").start(&world.pod);
        Some(Self { translator, world })
    }

    /// A guest whose driver runs.
    fn guest(&self, driver: Driver) -> FrontEnd {
        FrontEnd::start(self.translator.connect(), driver)
    }
}

/// "Who has the gateway?"
fn arp_request() -> Vec<u8> {
    let packet = [
        &[0, 1, 8, 0, 6, 4, 0, 1],
        &GUEST_MAC[..],
        &POD4.octets(),
        &[0; 6],
        &GATEWAY4.octets(),
    ]
    .concat();
    ethernet([0xff; 6], ETHERTYPE_ARP, &packet)
}

fn is_arp_reply(arrival: &Arrival) -> Option<()> {
    of_type(&arrival.frame, ETHERTYPE_ARP)
        .filter(|packet| packet[..8] == [0, 1, 8, 0, 6, 4, 0, 2])
        .map(drop)
}

/// Whether frames pass in both directions.
fn assert_works(front_end: &mut FrontEnd) {
    let header = vec![0; front_end.driver.header()];
    front_end.transmit(&header, &arp_request(), 1);
    front_end.expect("ARP reply", is_arp_reply);
}
