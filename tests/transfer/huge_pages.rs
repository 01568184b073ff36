//! A guest whose memory is made of huge pages, and one whose memory is not.

use std::{
    fs::{self, File},
    io::Read,
};

use crate::{
    kernel_guest::KernelGuest,
    lab::{
        Setup, Translator, World,
        front_end::{Driver, LINUX, MEMORY},
        world::INTERNET4,
    },
    stream::{Server, transfer_bytes},
};

/// Octets of each stream.
const BULK: u64 = 64 << 20;

const POOL: &str = "/proc/sys/vm/nr_hugepages";

/// Huge pages of this machine's, enough for one guest, until this is dropped.
struct HugePages {
    before: u64,
    /// Locked, so that of several tests each finds the pool as it was.
    _pool: File,
}

impl HugePages {
    /// `None`, with a word about it, where there are none to be had.
    fn reserve() -> Option<Self> {
        let Ok(mut pool) = File::open(POOL) else {
            println!("skipped: no huge pages in this kernel");
            return None;
        };
        pool.lock().unwrap();
        let mut text = String::new();
        pool.read_to_string(&mut text).unwrap();
        let before = text.trim().parse().unwrap();
        let pages = Self {
            before,
            _pool: pool,
        };
        let Some(size) = meminfo("Hugepagesize:").filter(|&size| size > 0) else {
            println!("skipped: no huge pages in this machine");
            return None;
        };
        let wanted = MEMORY.div_ceil(size << 10);
        if fs::write(POOL, (before + wanted).to_string()).is_err() {
            println!("skipped: not allowed to reserve huge pages");
            return None;
        }
        // The kernel finds as many as it can.
        let free = meminfo("HugePages_Free:").unwrap_or(0);
        if free < wanted {
            println!("skipped: needs {wanted} huge pages, {free} are free");
            return None;
        }
        Some(pages)
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let _ = fs::write(POOL, self.before.to_string());
    }
}

/// A number of this machine's memory.
fn meminfo(name: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// The size of the pages, in KiB, by which the translator has the guest's memory.
fn page_size(translator: &Translator) -> u64 {
    let maps = fs::read_to_string(format!("/proc/{}/smaps", translator.pid())).unwrap();
    let mut lines = maps.lines();
    lines
        .find(|line| line.contains("memfd:guest"))
        .expect("the guest's memory");
    let size = lines.find(|line| line.starts_with("KernelPageSize:"));
    let number = size.and_then(|line| line.split_whitespace().nth(1));
    number.expect("a size").parse().unwrap()
}

/// Streams both ways; what the translator has the memory by.
fn pass_streams(huge: bool) -> Option<u64> {
    let world = World::pod()?;
    let translator = Setup::new(&[]).arg("--vhost-user").start(&world.pod);
    let mut driver = Driver::new(LINUX);
    driver.huge = huge;
    let guest = KernelGuest::plug_driver(translator.connect(), 65_520, driver)?;
    guest.number();
    let server = Server::remote(&world, INTERNET4);
    transfer_bytes(&guest, &server, true, BULK);
    transfer_bytes(&guest, &server, false, BULK);
    Some(page_size(&translator))
}

#[test]
fn streams_pass_through_memory_of_huge_pages() {
    let Some(_pages) = HugePages::reserve() else {
        return;
    };
    if let Some(size) = pass_streams(true) {
        assert_eq!(Some(size), meminfo("Hugepagesize:"));
    }
}

#[test]
fn streams_pass_through_memory_of_common_pages() {
    if let Some(size) = pass_streams(false) {
        assert!(size < 2048, "{size} KiB");
    }
}
