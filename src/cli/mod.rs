//! Words in: the command line, and the print-out that answers it.

mod values;

mod draft;

mod opt;

mod options;

mod getopt;

mod summary;

use std::{ffi::OsString, path::Path};

use self::draft::{Draft, Show};
use crate::config::Config;

pub use self::{getopt::command, summary::summary};

/// What the command line asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parsed {
    /// A run, and what to warn of first.
    Run(Box<Config>, Vec<String>),
    /// This text on standard output, and exit status 0.
    Print(String),
    /// This line on standard error, and exit status 1.
    Fail(String),
}

/// Reads the command line, `argv[0]` included.
pub fn parse(argv: impl Iterator<Item = OsString>) -> Parsed {
    let argv: Vec<OsString> = argv.collect();
    // What is quoted of the command line must not break the line.
    read(&argv).unwrap_or_else(|line| Parsed::Fail(line.replace(char::is_control, "?")))
}

fn read(argv: &[OsString]) -> Result<Parsed, String> {
    if called_pasta(argv) {
        return Err("pasta: network namespaces are not served yet".to_owned());
    }
    let mut draft = Draft::default();
    for (opt, value) in getopt::split(argv)? {
        opt.apply(&mut draft, value.as_deref())?;
        match draft.show {
            Some(Show::Help) => return Ok(Parsed::Print(help())),
            Some(Show::Version) => return Ok(Parsed::Print(version())),
            Some(Show::Capabilities) => return Ok(Parsed::Print(CAPABILITIES.to_owned())),
            None => {}
        }
    }
    let (config, warnings) = draft.finish()?;
    Ok(Parsed::Run(Box::new(config), warnings))
}

fn called_pasta(argv: &[OsString]) -> bool {
    let called = argv.first().and_then(|name| Path::new(name).file_name());
    called.is_some_and(|name| name.to_string_lossy().contains("pasta"))
}

/// What a manager of vhost-user back ends asks for (QEMU's docs/interop/vhost-user.json).
const CAPABILITIES: &str = "{\n  \"type\": \"net\"\n}\n";

fn version() -> String {
    format!(
        "passt {}\nLicensed under Apache-2.0 or MIT, at your option.\n",
        env!("CARGO_PKG_VERSION")
    )
}

fn help() -> String {
    command().render_help().to_string()
}

/// Every option with its dashes: `-s`, `--socket`, `--socket-path` and so on; the manual page is held to it.
pub fn spellings() -> impl Iterator<Item = String> {
    options::OPTIONS.iter().flat_map(|opt| {
        let short = opt.short.map(|letter| format!("-{letter}"));
        let long = [Some(opt.long), opt.alias].into_iter().flatten();
        short
            .into_iter()
            .chain(long.map(|long| format!("--{long}")))
    })
}
