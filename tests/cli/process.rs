//! What a caller sees of the process: exit status, standard output and standard error.

use std::{
    fs::OpenOptions,
    process::{Command, Output, Stdio},
};

fn passt(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_passt"));
    command.args(args).output().unwrap()
}

/// Regression C09: standard output is a pipe here.
#[test]
fn what_is_asked_for_is_printed_to_a_pipe() {
    for (option, wanted) in [
        ("--version", "passt "),
        ("--help", "Usage: passt"),
        ("--print-capabilities", "{\n  \"type\": \"net\"\n}\n"),
    ] {
        let Output {
            status,
            stdout,
            stderr,
        } = passt(&[option]);
        let text = String::from_utf8(stdout).unwrap();
        assert!(
            status.success() && text.contains(wanted),
            "{option}: {text}"
        );
        assert!(stderr.is_empty());
    }
}

/// As where the disk is full.
#[test]
fn what_cannot_be_said_is_a_failure_and_nothing_worse() {
    let full = || Stdio::from(OpenOptions::new().write(true).open("/dev/full").unwrap());
    let passt = env!("CARGO_BIN_EXE_passt");
    let repair = env!("CARGO_BIN_EXE_passt-repair");
    for (program, args, code) in [
        (passt, &["--version"][..], 1),
        (passt, &["--print-sandbox"], 1),
        (passt, &["--bogus"], 1),
        (repair, &["--help"], 1),
        (repair, &["/nowhere/socket"], 1),
        (repair, &[], 2),
    ] {
        let mut command = Command::new(program);
        command.args(args).stdout(full()).stderr(full());
        let status = command.status().unwrap();
        assert_eq!(status.code(), Some(code), "{program} {args:?}");
    }
}

/// Regression C28.
#[test]
fn a_mistake_is_one_plain_line_and_exit_status_1() {
    for (args, wanted) in [
        (&["-m", "x"][..], "Invalid MTU: x\n"),
        (&["-q", "-m", "x"], "Invalid MTU: x\n"),
        (&["--bogus"], "passt: unrecognized option '--bogus'\n"),
        (&["-t", "65536"], "Invalid port specifier 65536\n"),
        (&["-e", "-T", "1"], "-T is for pasta mode only\n"),
    ] {
        let Output {
            status,
            stdout,
            stderr,
        } = passt(args);
        assert_eq!(status.code(), Some(1), "{args:?}");
        assert_eq!(String::from_utf8(stderr).unwrap(), wanted);
        assert!(stdout.is_empty());
    }
}
