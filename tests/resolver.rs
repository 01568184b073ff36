//! The guest hears of new nameservers, however the host's resolver configuration is changed.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod guest;
mod lab;

use std::{
    fs,
    net::Ipv4Addr,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use guest::{
    Wire,
    dhcp::{Dhcp, REQUEST},
};
use lab::{LONG, Setup, Translator, World, programs::write_program, wait_until};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
};

fn server(last: u8) -> String {
    format!("nameserver 192.0.2.{last}\n")
}

/// Waits until leases name this nameserver and no other.
fn told(translator: &Translator, wire: &Wire, last: u8) {
    let ask = || {
        wire.send(&Dhcp::new(REQUEST).frame());
        let (_, reply) = wire.expect("DHCP message", Dhcp::of_frame);
        reply.option(6) == Some(&Ipv4Addr::new(192, 0, 2, last).octets()[..])
    };
    assert!(wait_until(LONG, ask), "{}", translator.log());
}

/// The watching process, which is in the mount namespace that the translator was started in.
fn watcher(translator: &Translator) -> u32 {
    let children = format!("/proc/{0}/task/{0}/children", translator.pid());
    let children = fs::read_to_string(children).unwrap();
    let [child] = children.split_whitespace().collect::<Vec<_>>()[..] else {
        panic!("{children}");
    };
    child.parse().unwrap()
}

/// Runs something where the translator was started.
fn outside_its_sandbox(translator: &Translator, work: impl FnOnce() + Send) {
    let namespace = fs::File::open(format!("/proc/{}/ns/mnt", watcher(translator))).unwrap();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_FS).unwrap();
            setns(&namespace, CloneFlags::CLONE_NEWNS).unwrap();
            work();
        });
        thread.join().unwrap();
    });
}

fn bind(from: &Path, to: &str) {
    let nothing = None::<&str>;
    mount(Some(from), to, nothing, MsFlags::MS_BIND, nothing).unwrap();
}

/// The pods of every cluster have it this way; the file may be rewritten in place, or another mounted over it.
#[test]
fn a_mounted_file_that_changes_is_noticed() {
    let Some(world) = World::pod() else { return };
    let translator = Setup::new(&[]).resolv_conf(&server(1)).start(&world.pod);
    let wire = Wire::new(translator.connect());
    told(&translator, &wire, 1);
    let path = translator.dir().join("resolv.conf");
    fs::write(&path, server(2)).unwrap();
    told(&translator, &wire, 2);
    let other = translator.dir().join("other");
    fs::write(&other, server(3)).unwrap();
    outside_its_sandbox(&translator, || bind(&other, "/etc/resolv.conf"));
    told(&translator, &wire, 3);
}

/// Gives the translator an /etc of its own, made by the function, which is to hold a resolv.conf.
fn with_etc(world: &World, make: impl FnOnce(&Path)) -> (Translator, PathBuf) {
    let setup = Setup::new(&[]);
    let etc = setup.dir().join("etc");
    fs::create_dir(&etc).unwrap();
    make(&etc);
    let script = setup.dir().join("with-etc");
    let text = format!(
        "#!/bin/sh\nmount --bind {} /etc && exec {} \"$@\"\n",
        etc.display(),
        lab::translator::binary().to_str().unwrap()
    );
    write_program(&script, &text);
    (setup.binary(&script).start(&world.pod), etc)
}

#[test]
fn a_file_renamed_over_the_old_one_is_noticed() {
    let Some(world) = World::pod() else { return };
    let (translator, etc) = with_etc(&world, |etc| {
        fs::write(etc.join("resolv.conf"), server(1)).unwrap();
    });
    let wire = Wire::new(translator.connect());
    told(&translator, &wire, 1);
    for last in 2..5 {
        fs::write(etc.join("new"), server(last)).unwrap();
        fs::rename(etc.join("new"), etc.join("resolv.conf")).unwrap();
        told(&translator, &wire, last);
    }
}

/// As systemd-resolved has it: a link into another folder, whose file is replaced.
#[test]
fn a_link_to_a_file_that_is_replaced_is_noticed() {
    let Some(world) = World::pod() else { return };
    let run = lab::janitor::TempDir::new();
    let stub = run.path().join("stub-resolv.conf");
    fs::write(&stub, server(1)).unwrap();
    let (translator, etc) = with_etc(&world, |etc| {
        symlink(&stub, etc.join("resolv.conf")).unwrap();
    });
    let wire = Wire::new(translator.connect());
    told(&translator, &wire, 1);
    fs::write(run.path().join("new"), server(2)).unwrap();
    fs::rename(run.path().join("new"), &stub).unwrap();
    told(&translator, &wire, 2);
    let other = run.path().join("other");
    fs::write(&other, server(3)).unwrap();
    symlink(&other, etc.join("new")).unwrap();
    fs::rename(etc.join("new"), etc.join("resolv.conf")).unwrap();
    told(&translator, &wire, 3);
}

/// Callers look for `passt` and mean the one that serves; and the other leaves when that one is killed.
#[test]
fn the_watching_process_goes_by_another_name_and_ends_with_the_translator() {
    let Some(world) = World::pod() else { return };
    let translator = Translator::start(&world.pod, &[]);
    let watcher = watcher(&translator);
    let read = |name: &str| fs::read_to_string(format!("/proc/{watcher}/{name}")).unwrap();
    assert!(wait_until(LONG, || read("comm") == "resolv-watcher\n"));
    let named = || read("cmdline").trim_end_matches('\0') == "resolv-watcher";
    assert!(wait_until(LONG, named), "{:?}", read("cmdline"));
    let confined = || read("status").contains("NoNewPrivs:\t1");
    assert!(wait_until(LONG, confined));
    assert!(read("status").contains("CapEff:\t0000000000000000"));
    // Its own line, inotify, the list of mounts, and /dev/null three times.
    let held = || fs::read_dir(format!("/proc/{watcher}/fd")).unwrap().count();
    assert!(wait_until(LONG, || held() <= 6), "{}", held());
    drop(translator);
    let gone = || {
        fs::read_to_string(format!("/proc/{watcher}/stat"))
            .map_or(true, |stat| stat.contains(") Z "))
    };
    assert!(wait_until(LONG, gone));
}
