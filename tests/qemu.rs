//! A real guest: QEMU boots Debian's kernel with a busybox initramfs behind the binary, and the guest says what it saw.
//!
//! One boot serves all tests of this file; `contrib/demo/run` is what boots, the same as in `make demo`. `GUEST_MIB` sets
//! the size of each transfer, `PASST_BIN` names another binary to put to the test.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    env,
    io::{self, Write},
    path::Path,
    process::{Command, Output, Stdio},
    sync::OnceLock,
};

/// Seconds after which the guest is killed; a boot with all its transfers takes about ten.
const DEADLINE: &str = "110";

/// Exit code of `contrib/demo/run` on a machine that lacks something.
const CANNOT_RUN: i32 = 77;

#[test]
fn guest_leases_an_address_and_a_default_route() {
    passes(&["DHCP lease", "IPv4 default route"]);
}

#[test]
fn guest_gets_its_own_address_and_route_by_router_advertisement() {
    passes(&["IPv6 address by router advertisement", "IPv6 default route"]);
}

#[test]
fn guest_resolves_names_in_both_families() {
    passes(&[
        "DNS over IPv4, A record",
        "DNS over IPv4, AAAA record",
        "DNS over IPv6, A record",
        "download by name",
    ]);
}

#[test]
fn guest_pings_in_both_families() {
    passes(&["ping IPv4", "ping IPv6"]);
}

#[test]
fn closed_port_refuses_the_guest_in_both_families() {
    passes(&["closed port refused, IPv4", "closed port refused, IPv6"]);
}

#[test]
fn downloads_and_uploads_arrive_whole_in_both_families() {
    let Some(report) = report() else { return };
    for transfer in ["download of", "upload of"] {
        let whole = lines(report, &format!("PASS {transfer}"))
            .filter(|line| line.ends_with("sum equal"))
            .count();
        assert_eq!(whole, 2, "{transfer}\n{report}");
    }
}

#[test]
fn no_frame_is_dropped_and_hardly_a_segment_sent_twice() {
    passes(&[
        "no frame dropped by the guest's card",
        "at most 1 % of segments sent again by the guest",
    ]);
}

#[test]
fn translator_leaves_with_its_guest_and_nothing_failed() {
    passes(&["the translator left with its guest", "demo"]);
    if let Some(report) = report() {
        assert_eq!(lines(report, "FAIL").count(), 0, "{report}");
    }
}

/// A machine whose only address is a /32 behind a link-local gateway, as in a pod: the guest needs option 121.
#[test]
fn guest_behind_a_gateway_outside_its_prefix_is_online() {
    let Some(report) = boot("pod", "stream") else {
        return;
    };
    assert!(
        lines(&report, "").any(|line| line.contains("static routes 169.254.1.1/32 0.0.0.0")),
        "{report}"
    );
    assert!(lines(&report, "PASS demo").count() == 1, "{report}");
}

/// The same guest, whose frames stay in its memory.
#[test]
fn guest_behind_vhost_user_is_online() {
    let Some(report) = boot("subnet", "vhost-user") else {
        return;
    };
    assert!(lines(&report, "PASS demo").count() == 1, "{report}");
}

/// Asserts that the guest, or the script around it, found each of these good.
fn passes(findings: &[&str]) {
    let Some(report) = report() else { return };
    for finding in findings {
        let wanted = format!("PASS {finding}");
        assert!(
            lines(report, &wanted).any(|line| line == wanted),
            "{finding}\n{report}"
        );
    }
}

fn lines<'a>(report: &'a str, start: &'a str) -> impl Iterator<Item = &'a str> {
    report.lines().filter(move |line| line.starts_with(start))
}

/// The console of the one guest that all tests look at; none where this machine cannot boot it.
fn report() -> Option<&'static str> {
    static REPORT: OnceLock<Option<String>> = OnceLock::new();
    REPORT.get_or_init(|| boot("subnet", "stream")).as_deref()
}

fn boot(network: &str, link: &str) -> Option<String> {
    let binary = env::var("PASST_BIN").unwrap_or_else(|_| env!("CARGO_BIN_EXE_passt").to_owned());
    let Output { status, stdout, .. } =
        Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/demo/run"))
            .env("PASST_BIN", binary)
            .env("DEMO_NET", network)
            .env("DEMO_LINK", link)
            .env("DEADLINE", DEADLINE)
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
    if status.code() == Some(CANNOT_RUN) {
        // Not through eprintln, which the test runner would swallow.
        io::stderr()
            .write_all(b"skipped: no guest can be booted here\n")
            .unwrap();
        return None;
    }
    Some(String::from_utf8_lossy(&stdout).into_owned())
}
