//! Laboratories: installations as people have them, in namespaces, with the real binary in their middle. A guest is a
//! kernel guest (see `kernel_guest`) or, behind libvirt, a QEMU machine.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../kernel_guest/mod.rs"]
mod kernel_guest;
#[path = "../lab/mod.rs"]
mod lab;

mod cluster_network;
mod libvirt;
mod libvirt_migration;
mod macvlan;
mod masquerade;
mod nat_cluster;
mod pod_network;
mod service_mesh;

/// Protocol numbers.
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
