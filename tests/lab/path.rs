//! What programs find out about the way to others.

use std::{env, process::Command};

use super::Host;

/// Runs a command on the host and in the guest, and returns what `read` makes of what each said, which must be the same.
pub fn compare<T: PartialEq + std::fmt::Debug>(
    [host, guest]: [&Host; 2],
    program: &str,
    args: &[&str],
    read: impl Fn(&str) -> T,
) -> T {
    let [on_host, in_guest] = [host, guest].map(|host| said(host, program, args));
    let (from_host, from_guest) = (read(&on_host), read(&in_guest));
    assert_eq!(
        from_guest, from_host,
        "{program} {args:?}\nhost:\n{on_host}\nguest:\n{in_guest}"
    );
    from_guest
}

/// What a command says, whatever its end.
pub fn said(host: &Host, program: &str, args: &[&str]) -> String {
    host.run(|| {
        let output = Command::new(program).args(args).output();
        let output = output.expect(program);
        let both = [output.stdout, output.stderr].concat();
        String::from_utf8_lossy(&both).into_owned()
    })
}

/// Whether a program is there; a word if it is not.
pub fn has(program: &str) -> bool {
    let found = env::var_os("PATH")
        .is_some_and(|path| env::split_paths(&path).any(|folder| folder.join(program).is_file()))
        || std::path::Path::new("/usr/sbin").join(program).is_file();
    if !found {
        println!("skipped: no {program}");
    }
    found
}

/// Number and address of each hop: the first two words of its line.
pub fn hops(said: &str) -> Vec<(String, String)> {
    let mut hops: Vec<_> = said
        .lines()
        .skip(1)
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            Some((words.next()?.to_owned(), words.next()?.to_owned()))
        })
        .collect();
    hops.dedup();
    hops
}

/// What ping says of each reply: size, sequence number and TTL.
pub fn replies(said: &str) -> Vec<String> {
    said.lines()
        .filter(|line| line.contains("icmp_seq"))
        .filter_map(|line| {
            line.split_once(" time")
                .map_or(Some(line), |(said, _)| Some(said))
        })
        .map(str::to_owned)
        .collect()
}
