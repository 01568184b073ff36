//! Programs that tests make. Another process writes each: while one of ours had it open, a child that another thread is about
//! to start would hold it open too, and it could not be started ("Text file busy", execve(2)).

use std::{
    ffi::OsStr,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::translator::binary;

/// A shell script that does something before it becomes the binary, whose name it writes PASST.
pub fn wrapper(dir: &Path, script: &str) -> PathBuf {
    let path = dir.join("wrapper");
    let script = script.replace("PASST", binary().to_str().unwrap());
    write_program(&path, &format!("#!/bin/sh\n{script}\n"));
    path
}

/// Writes a script that everybody may start.
pub fn write_program(path: &Path, script: &str) {
    install("/dev/stdin".as_ref(), path, script);
}

/// Copies a program to where everybody may start it.
pub fn copy_program(from: &Path, to: &Path) {
    install(from.as_os_str(), to, "");
}

fn install(from: &OsStr, to: &Path, input: &str) {
    let mut child = Command::new("install")
        .args(["-m", "755"])
        .args([from, to.as_os_str()])
        .stdin(Stdio::piped())
        .spawn()
        .expect("install");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(input.as_bytes()).expect("input");
    drop(stdin);
    assert!(child.wait().expect("install").success());
}
