//! The policies and units that are given along can be read by the tools they are for.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{self, Command},
};

fn contrib(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("contrib")
        .join(name)
}

/// A folder that goes with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = env::temp_dir().join(format!("passt-contrib-{name}-{}", process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What the tool says if it is there: whether it is content, and its words.
fn ask(tool: &str, args: &[&Path]) -> Option<(bool, String)> {
    let path = format!("{}:/usr/sbin:/sbin", env::var("PATH").unwrap_or_default());
    match Command::new(tool).args(args).env("PATH", path).output() {
        Ok(output) => {
            let said = [output.stdout, output.stderr].concat();
            Some((
                output.status.success(),
                String::from_utf8_lossy(&said).into_owned(),
            ))
        }
        Err(_) => {
            println!("skipped: no {tool} here");
            None
        }
    }
}

#[test]
fn the_apparmor_profile_is_understood() {
    let profile = contrib("apparmor/usr.bin.passt");
    // Without loading it, and without a cache.
    let args = ["-Q", "-K"].map(Path::new);
    if let Some((content, said)) = ask("apparmor_parser", &[args[0], args[1], &profile]) {
        if said.contains("abi") && !Path::new("/etc/apparmor.d/abi/3.0").exists() {
            println!("skipped: this AppArmor is too old: {said}");
            return;
        }
        assert!(content, "{said}");
    }
}

#[test]
fn the_selinux_module_is_understood() {
    let scratch = Scratch::new("selinux");
    let (module, package) = (scratch.0.join("passt.mod"), scratch.0.join("passt.pp"));
    let [modular, only, out] = ["-M", "-m", "-o"].map(Path::new);
    let source = contrib("selinux/passt.te");
    let Some((content, said)) = ask("checkmodule", &[modular, only, out, &module, &source]) else {
        return;
    };
    assert!(content, "{said}");
    let files = contrib("selinux/passt.fc");
    let [with, labels] = ["-m", "-f"].map(Path::new);
    let args = [out, &package, with, &module, labels, &files];
    if let Some((content, said)) = ask("semodule_package", &args) {
        assert!(content, "{said}");
    }
}

#[test]
fn the_systemd_unit_is_understood() {
    let scratch = Scratch::new("systemd");
    let unit = fs::read_to_string(contrib("systemd/passt@.service")).unwrap();
    // The binary is not installed where the unit wants it.
    let unit = unit.replace("/usr/bin/passt", env!("CARGO_BIN_EXE_passt"));
    let path = scratch.0.join("passt@.service");
    fs::write(&path, unit).unwrap();
    let [verify, no_man] = ["verify", "--man=no"].map(Path::new);
    if let Some((_, said)) = ask("systemd-analyze", &[verify, no_man, &path]) {
        // Other units of the machine are not our business.
        let ours: Vec<_> = said.lines().filter(|line| line.contains("passt")).collect();
        assert!(ours.is_empty(), "{ours:?}");
    }
}
