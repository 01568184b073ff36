//! The guest hears of new nameservers, however the host's resolver configuration is changed.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod guest;
mod lab;

use std::{
    fs,
    net::Ipv4Addr,
    os::unix::{
        fs::{MetadataExt, symlink},
        net::UnixStream,
    },
    path::{Path, PathBuf},
};

use guest::{
    Wire,
    dhcp::{Dhcp, REQUEST},
};
use lab::{LONG, Setup, Translator, World, netns::Host, programs::write_program, wait_until};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

fn server(last: u8) -> String {
    format!("nameserver 192.0.2.{last}\n")
}

/// Waits until leases name this nameserver and no other.
fn told(translator: &Translator, wire: &Wire, last: u8) {
    assert!(is_told(wire, last), "{}", translator.log());
}

fn is_told(wire: &Wire, last: u8) -> bool {
    wait_until(LONG, || {
        wire.send(&Dhcp::new(REQUEST).frame());
        let (_, reply) = wire.expect("DHCP message", Dhcp::of_frame);
        reply.option(6) == Some(&Ipv4Addr::new(192, 0, 2, last).octets()[..])
    })
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
    assert!(wait_until(LONG, || ended(&watcher.to_string())));
}

/// Who started it may log out, press Ctrl-C, unmount what they worked in, or ask all processes of a unit for counters.
#[test]
fn the_watching_process_has_nothing_of_the_terminal_and_folder_it_was_started_from() {
    let Some(world) = World::pod() else { return };
    let setup = Setup::new(&["--one-off"])
        .resolv_conf(&server(1))
        .background();
    let at = |name: &str| setup.dir().join(name).to_str().unwrap().to_owned();
    let (socket, pid) = (at("sock"), at("pid"));
    let mut setup = setup.arg("--socket").arg(&socket).arg("--pid").arg(&pid);
    let (status, _, stderr) = setup.run(&world.pod);
    assert_eq!(status.code(), Some(0), "{stderr}");
    let daemon = fs::read_to_string(&pid).unwrap().trim().to_owned();
    lab::janitor::watch_pid(daemon.parse().unwrap());
    let mut watcher = None;
    assert!(wait_until(LONG, || {
        watcher = watcher_on(&world.pod);
        watcher.is_some()
    }));
    let watcher = watcher.unwrap();
    let session = |pid: &str| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        fields.split(' ').nth(3).unwrap().to_owned()
    };
    let of_caller = session("self");
    assert!(wait_until(LONG, || session(&watcher) != of_caller));
    let folder = || fs::read_link(format!("/proc/{watcher}/cwd")).unwrap();
    assert!(
        wait_until(LONG, || folder() == Path::new("/")),
        "{:?}",
        folder()
    );
    let number = Pid::from_raw(watcher.parse().unwrap());
    for sent in [
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGUSR1,
        Signal::SIGTSTP,
    ] {
        kill(number, sent).unwrap();
    }
    let wire = Wire::new(UnixStream::connect(&socket).unwrap());
    fs::write(setup.dir().join("resolv.conf"), server(2)).unwrap();
    assert!(is_told(&wire, 2));
    drop(wire);
    assert!(wait_until(LONG, || ended(&watcher)));
    assert!(wait_until(LONG, || ended(&daemon)));
    lab::janitor::gone(daemon.parse().unwrap());
}

/// The watching process of a network namespace, whoever its parent is by now.
fn watcher_on(host: &Host) -> Option<String> {
    let place = |path: String| fs::metadata(path).ok().map(|data| data.ino());
    let here = place(host.path());
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let mut numbers = processes.filter_map(|entry| entry.file_name().into_string().ok());
    numbers.find(|pid| {
        let named = fs::read_to_string(format!("/proc/{pid}/comm"));
        named.is_ok_and(|name| name == "resolv-watcher\n")
            && place(format!("/proc/{pid}/ns/net")) == here
    })
}

fn ended(pid: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
}
