//! The data path does not allocate: what the flow memory needs is reserved at the start, and churn at full load keeps
//! within it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    fs,
    net::{IpAddr, Ipv4Addr},
};

use passt_rs::{
    flow::{Chain, Key, Pool, Table, Wheel},
    net::{Endpoint, Now, Protocol, Span},
};

const FLOWS: u32 = 100_000;
const CHURN: u32 = 1_000_000;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, counting what each thread asks of it.
struct Counting;

// SAFETY: every call is passed on unchanged to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `alloc_zeroed`. Passed on so that zeroed pages stay untouched.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(old, layout, size) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(old, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count() {
    let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
}

fn allocations() -> u64 {
    ALLOCATIONS.with(Cell::get)
}

fn key(n: u32) -> Key {
    Key {
        protocol: Protocol::Tcp,
        guest: Endpoint::new(IpAddr::V4(Ipv4Addr::new(10, 0, 2, 15)), n as u16),
        remote: Endpoint::new(IpAddr::V4(Ipv4Addr::from_bits(n >> 16)), 443),
    }
}

/// Numbers that look random and are the same in every run (xorshift64).
fn numbers() -> impl FnMut() -> u32 {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u32
    }
}

#[test]
fn a_full_table_is_churned_without_allocating() {
    let mut table = Table::new(FLOWS as usize);
    let mut random = numbers();
    let before = allocations();
    for n in 0..FLOWS {
        table.insert(key(n), n).unwrap();
    }
    for n in FLOWS..FLOWS + CHURN {
        let victim = table.at(random() % FLOWS).unwrap();
        let known = table.key(victim).unwrap();
        assert_eq!(table.find(&known), Some(victim));
        table.remove(victim).unwrap();
        let id = table.insert(key(n), n).unwrap();
        assert_eq!(table.find(&key(n)), Some(id));
    }
    assert_eq!(table.ids().count(), FLOWS as usize);
    assert_eq!(allocations(), before);
}

#[test]
fn a_full_wheel_turns_without_allocating() {
    let mut wheel = Wheel::new(FLOWS as usize);
    let mut random = numbers();
    let before = allocations();
    let (mut now, mut served) = (Now(1_000_000), 0);
    for slot in 0..FLOWS {
        wheel.arm(slot, now + Span::millis(u64::from(random() % 60_000)));
    }
    while served < CHURN {
        now = now + wheel.next(now).unwrap();
        while let Some(slot) = wheel.expired(now) {
            wheel.arm(slot, now + Span::millis(u64::from(random() % 60_000)));
            served += 1;
        }
    }
    assert_eq!(allocations(), before);
}

#[test]
fn a_crowded_pool_serves_without_allocating() {
    let mut pool = Pool::default();
    let mut random = numbers();
    let mut chains: Vec<Chain> = (0..1_000).map(|_| Chain::default()).collect();
    let bytes = [7; 20_000];
    let before = allocations();
    for _ in 0..100_000 {
        let chain = &mut chains[random() as usize % 1_000];
        match random() % 4 {
            0 => drop(pool.reserve(chain, random() as usize % 65_536)),
            1 => pool.consume(chain, random() as usize % 40_000),
            _ => drop(pool.append(chain, &bytes[..random() as usize % 20_000], 262_144)),
        }
    }
    for chain in &mut chains {
        pool.release(std::mem::take(chain));
    }
    assert_eq!(pool.free(), 4_096);
    assert_eq!(allocations(), before);
}

/// Pages of this process in memory, in KiB. Other tests' threads share it, so the bound below leaves room for them.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    let number = line.split_whitespace().nth(1).unwrap();
    number.parse().unwrap()
}

#[test]
fn what_is_reserved_is_not_touched() {
    // Some 400 MiB of address space each: far above anything the tests beside this one touch.
    let before = resident();
    let table: Table<[u64; 32]> = Table::new(1 << 20);
    let wheel = Wheel::new(1 << 24);
    let pool = Pool::new(1 << 16, 8_000);
    let after = resident();
    assert!(after.saturating_sub(before) < 100 << 10, "{before} {after}");
    drop((table, wheel, pool));
}
