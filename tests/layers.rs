//! Holds the architecture: the order of layers in `lib.rs`, purity, and who may touch what.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Layers that hold no descriptor, ask no clock and do not log.
const PURE: &[&str] = &["net", "config", "wire", "flow", "proto", "service"];

/// What a pure layer must not contain.
const IMPURE: &[&str] = &[
    "Instant::now",
    "SystemTime::now",
    "std::fs",
    "std::os::fd::OwnedFd",
    "TcpStream",
    "UdpSocket",
    "UnixStream",
    "libc::",
    "nix::",
    "socket2::",
    "mio::",
    "log::",
    "println!",
    "eprintln!",
    "thread_local!",
    "static mut",
];

/// Crates and keywords with the only layers (or files) that may name them.
const RESERVED: &[(&str, &[&str])] = &[
    ("mio::", &["daemon"]),
    ("clap::", &["cli"]),
    ("etherparse::", &["wire", "service"]),
    ("smoltcp::", &["wire", "service"]),
    ("netlink_", &["host"]),
    ("unsafe {", &["sys"]),
    ("unsafe fn", &["sys"]),
    ("unsafe impl", &["sys"]),
    ("allow(unsafe_code)", &["sys"]),
];

/// Who may have a `static`: a signal's handler can be given nothing.
const GLOBAL: &[&str] = &["sys/vanish.rs"];

/// Lines of a function: sixty or so, and this at most.
const FUNCTION: usize = 68;

/// Nowhere: a reactor owns its state.
const BANNED: &[&str] = &[
    "Rc<",
    "RefCell<",
    "lazy_static",
    "OnceLock<",
    "Mutex<",
    "RwLock<",
    "static mut",
    "dbg!(",
    "todo!(",
    "unimplemented!(",
];

struct Source {
    layer: String,
    /// Path below `src`, with slashes.
    path: String,
    /// Production code: up to the test module, comments removed.
    code: String,
    lines: usize,
}

fn sources() -> Vec<Source> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    walk(&src, &mut found);
    found.sort();
    assert!(found.len() > 20, "the sources were not found");
    found
        .into_iter()
        .filter_map(|file| {
            let path = file
                .strip_prefix(&src)
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned();
            let layer = path
                .split('/')
                .next()
                .unwrap()
                .trim_end_matches(".rs")
                .to_owned();
            // A file of tests may have a folder of more.
            let tests = path.ends_with("/tests.rs") || path.contains("/tests/");
            (!matches!(layer.as_str(), "lib" | "main" | "bin") && !tests).then(|| {
                let text = fs::read_to_string(&file).unwrap();
                let text = text.split("\n#[cfg(test)]\nmod tests").next().unwrap();
                let lines = text.lines().count();
                let code = text
                    .lines()
                    .map(|line| line.split("//").next().unwrap())
                    .collect::<Vec<_>>()
                    .join("\n");
                Source {
                    layer,
                    path,
                    code,
                    lines,
                }
            })
        })
        .collect()
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// The names in `mod x;` lines, in order.
fn declared(text: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| {
            let line = line.trim();
            let line = line
                .strip_prefix("pub(crate) ")
                .or_else(|| line.strip_prefix("pub "))
                .unwrap_or(line);
            line.strip_prefix("mod ")?
                .strip_suffix(';')
                .map(str::to_owned)
        })
        .collect()
}

/// The identifiers that follow `prefix` in `code`: `crate::a`, `crate::{a, b::c}`.
fn named_after(code: &str, prefix: &str) -> Vec<String> {
    let mut names = Vec::new();
    for (at, _) in code.match_indices(prefix) {
        if code[..at]
            .chars()
            .next_back()
            .is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
        {
            continue;
        }
        let rest = code[at + prefix.len()..].trim_start();
        if let Some(group) = rest.strip_prefix('{') {
            let (mut depth, mut item) = (1, String::new());
            for c in group.chars() {
                match c {
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    _ => {}
                }
                if depth == 0 || (depth == 1 && c == ',') {
                    names.push(head(&item));
                    item.clear();
                    if depth == 0 {
                        break;
                    }
                } else {
                    item.push(c);
                }
            }
        } else {
            names.push(head(rest));
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

fn head(path: &str) -> String {
    path.trim()
        .chars()
        .take_while(|c| c.is_alphanumeric() || *c == '_')
        .collect()
}

#[test]
fn a_layer_names_only_layers_below_it() {
    let order = declared(
        &fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap(),
    );
    assert_eq!(
        order,
        [
            "net", "config", "wire", "sys", "flow", "proto", "service", "link", "host", "relay",
            "daemon", "cli"
        ]
    );
    let rank = |name: &str| order.iter().position(|layer| layer == name);
    for source in sources() {
        let mine = rank(&source.layer).unwrap_or_else(|| panic!("{} is in no layer", source.path));
        for name in named_after(&source.code, "crate::") {
            let theirs = rank(&name).unwrap_or_else(|| {
                panic!("{} names crate::{name}, which is no layer", source.path)
            });
            assert!(
                theirs <= mine,
                "{} names {name}, which lies above it",
                source.path
            );
            assert!(
                theirs < mine || name != source.layer,
                "{} names its own layer through crate::; use super::",
                source.path
            );
        }
    }
}

#[test]
fn a_file_names_only_files_declared_above_it() {
    let all = sources();
    for folder in all.iter().filter(|s| s.path.ends_with("/mod.rs")) {
        let order = declared(&folder.code);
        let base = folder.path.trim_end_matches("mod.rs");
        for source in all
            .iter()
            .filter(|s| s.path != folder.path && s.path.starts_with(base))
        {
            let below = &source.path[base.len()..];
            let (child, prefix) = match below.split_once('/') {
                None => (below.trim_end_matches(".rs"), "super::"),
                Some((child, rest)) if !rest.contains('/') => (
                    child,
                    if rest == "mod.rs" {
                        "super::"
                    } else {
                        "super::super::"
                    },
                ),
                Some(_) => continue,
            };
            let mine = order
                .iter()
                .position(|m| m == child)
                .unwrap_or_else(|| panic!("{} is not declared", source.path));
            for name in named_after(&source.code, prefix)
                .into_iter()
                .filter(|name| name != "super")
            {
                let theirs = order.iter().position(|m| *m == name).unwrap_or_else(|| {
                    panic!("{} names `{name}` of its folder's mod.rs", source.path)
                });
                assert!(
                    theirs < mine,
                    "{} names {name}, which is declared after it",
                    source.path
                );
            }
        }
    }
}

#[test]
fn pure_layers_stay_pure() {
    for source in sources()
        .iter()
        .filter(|s| PURE.contains(&s.layer.as_str()))
    {
        for word in IMPURE {
            let hit = source.code.match_indices(word).any(|(at, _)| {
                !source.code[..at]
                    .chars()
                    .next_back()
                    .is_some_and(|c| c.is_alphanumeric() || c == '_')
            });
            assert!(!hit, "{} is pure and names {word}", source.path);
        }
    }
}

#[test]
fn crates_and_unsafe_stay_where_they_belong() {
    for source in sources() {
        for (word, layers) in RESERVED {
            assert!(
                !source.code.contains(word) || layers.contains(&source.layer.as_str()),
                "{} names {word}",
                source.path
            );
        }
        for word in BANNED {
            assert!(!source.code.contains(word), "{} uses {word}", source.path);
        }
    }
}

#[test]
fn link_and_host_do_not_know_each_other() {
    for source in sources() {
        let other = match source.layer.as_str() {
            "link" => "host",
            "host" => "link",
            _ => continue,
        };
        assert!(
            !named_after(&source.code, "crate::").contains(&other.to_owned()),
            "{} names {other}",
            source.path
        );
    }
}

#[test]
fn files_stay_under_six_hundred_lines() {
    for source in sources() {
        assert!(
            source.lines <= 600,
            "{} has {} lines of production code",
            source.path,
            source.lines
        );
    }
}

#[test]
fn a_reactor_owns_its_state() {
    for source in sources() {
        let mut words = source.code.split_whitespace();
        assert!(
            !words.any(|word| word == "static") || GLOBAL.contains(&source.path.as_str()),
            "{} has a static",
            source.path
        );
    }
}

#[test]
fn functions_stay_short() {
    for source in sources() {
        let lines: Vec<&str> = source.code.lines().collect();
        for (start, line) in lines.iter().enumerate() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let Some(at) = words.iter().position(|&word| word == "fn") else {
                continue;
            };
            let end = format!("{}}}", &line[..line.len() - line.trim_start().len()]);
            let len = lines[start..].iter().position(|&line| line == end);
            assert!(
                len.unwrap_or_default() < FUNCTION,
                "{}: {} is too long",
                source.path,
                words.get(at + 1).unwrap_or(&"")
            );
        }
    }
}
