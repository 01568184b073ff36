//! Bytes: frames and messages as they stand on the wire, checked once, read and written.

pub mod checksum;

pub mod build;

pub mod tcp;

pub mod frame;

pub mod headers;

pub mod fragment;

pub mod name;

pub mod dhcp;

pub mod dhcpv6;

pub mod icmp;

pub mod quote;

pub mod ndp;

pub mod vnet;

pub mod pcap;
