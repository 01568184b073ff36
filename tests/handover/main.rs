//! The hand-over of a guest from one translator to another, by a front-end and driver of our own: flows in every state go on
//! as they were, and whatever else a target is handed does no harm.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../guest/mod.rs"]
mod guest;
#[path = "../lab/mod.rs"]
mod lab;
#[path = "../faults/supervisor.rs"]
#[allow(dead_code)]
mod supervisor;

mod scene;

mod closing;
mod damage;
mod downtime;
mod flows;
mod staying;
mod strays;
