//! Prints where production code is `unsafe`, and why each place is sound.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    fmt::Write as _,
    fs, io,
    io::Write as _,
    path::{Path, PathBuf},
};

/// One place: file below `src`, line, and what its SAFETY comment says.
struct Place {
    file: String,
    line: usize,
    why: String,
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// The code of a line, without comments and what stands in quotes.
fn code(line: &str) -> String {
    let line = line.split("//").next().unwrap();
    line.split('"').step_by(2).collect()
}

fn is_unsafe(line: &str) -> bool {
    code(line)
        .split(|letter: char| !letter.is_alphanumeric() && letter != '_')
        .any(|word| word == "unsafe")
}

/// The SAFETY comment that ends before line `at`, or a few lines above it where a statement is broken.
fn why(lines: &[&str], at: usize) -> Option<String> {
    let above = (at.saturating_sub(6)..at).rev();
    let start = above.into_iter().find(|&n| {
        let line = lines[n].trim();
        line.starts_with("// SAFETY:") || line == "/// # Safety"
    })?;
    let comment = lines[start..at].iter().map(|line| line.trim());
    let comment = comment.take_while(|line| line.starts_with("//"));
    let words = comment.map(|line| line.trim_start_matches('/').trim());
    let text = words.collect::<Vec<_>>().join(" ");
    Some(text.trim_start_matches("SAFETY:").trim().to_owned())
}

fn places() -> Vec<Place> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    files.sort();
    let mut places = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let text = text.split("\n#[cfg(test)]\nmod ").next().unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let name = file.strip_prefix(&src).unwrap().display().to_string();
        for at in (0..lines.len()).filter(|&at| is_unsafe(lines[at])) {
            let line = at + 1;
            let why = why(&lines, at);
            places.push(Place {
                why: why.unwrap_or_else(|| panic!("{name}:{line} is unsafe without a reason")),
                file: name.clone(),
                line,
            });
        }
    }
    places
}

/// The inventory goes past the harness, which hides what passing tests print.
#[test]
fn every_unsafe_place_is_in_sys_and_says_why_it_is_sound() {
    let places = places();
    let mut text = format!("unsafe: {} places in production code\n", places.len());
    for file in places.chunk_by(|a, b| a.file == b.file) {
        let name = &file[0].file;
        assert!(name.starts_with("sys/"), "{name} is unsafe");
        writeln!(text, "  {name}: {}", file.len()).unwrap();
        for place in file {
            writeln!(text, "    line {}: {}", place.line, place.why).unwrap();
        }
    }
    assert!(!places.is_empty(), "nothing was found");
    io::stderr().write_all(text.as_bytes()).unwrap();
}
