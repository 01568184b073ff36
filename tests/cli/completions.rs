//! The shells' completions are those of today's options.

use std::{fs, path::PathBuf};

use clap_complete::{Generator, Shell, generate};
use passt_rs::cli;

/// `BLESS=1 cargo test --test cli completions` writes them anew.
#[test]
fn completions_know_every_option() {
    for (shell, file) in [
        (Shell::Bash, "passt.bash"),
        (Shell::Fish, "passt.fish"),
        (Shell::Zsh, "_passt"),
    ] {
        let mut text = Vec::new();
        generate(shell, &mut cli::command(), "passt", &mut text);
        let text = String::from_utf8(text).unwrap();
        assert_eq!(shell.file_name("passt"), file);
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("contrib/completions")
            .join(file);
        if std::env::var_os("BLESS").is_some() {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, &text).unwrap();
        }
        assert!(
            fs::read_to_string(&path).is_ok_and(|written| written == text),
            "{} is not of today: BLESS=1 cargo test --test cli completions",
            path.display()
        );
    }
}
