//! Laboratories: installations as people have them, in namespaces, with the real binary in their middle. A guest is a
//! kernel guest (see `kernel_guest`) or, behind libvirt, a QEMU machine.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../kernel_guest/mod.rs"]
mod kernel_guest;
#[path = "../lab/mod.rs"]
mod lab;

mod pod_network;
