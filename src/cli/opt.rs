//! An option: how it is spelled, what it takes, what it does, and its line of help.

use std::{ffi::OsStr, path::Path};

use super::draft::Draft;

/// One option.
pub(super) struct Opt {
    pub(super) long: &'static str,
    pub(super) alias: Option<&'static str>,
    pub(super) short: Option<char>,
    pub(super) take: Take,
    pub(super) help: &'static str,
}

/// What an option takes, with what it does.
pub(super) enum Take {
    Nothing(fn(&mut Draft)),
    /// The name of the value in the help text first.
    Path(&'static str, fn(&mut Draft, &Path) -> Result<(), String>),
    Text(&'static str, fn(&mut Draft, &str) -> Result<(), String>),
    /// An option of pasta, known in order to refuse it by name; with the name of its value, if it takes one.
    Pasta(Option<&'static str>),
}

impl Opt {
    /// Does what the option says.
    ///
    /// # Errors
    /// One line for a person: the value is no good.
    pub(super) fn apply(&self, draft: &mut Draft, value: Option<&OsStr>) -> Result<(), String> {
        let value = value.unwrap_or_default();
        match self.take {
            Take::Nothing(set) => {
                set(draft);
                Ok(())
            }
            Take::Path(_, set) => set(draft, Path::new(value)),
            // What is no UTF-8 is no valid value of these either, and is refused with a question mark in the message.
            Take::Text(_, set) => set(draft, &value.to_string_lossy()),
            Take::Pasta(_) => {
                let long = || format!("--{}", self.long);
                let name = self.short.map_or_else(long, |letter| format!("-{letter}"));
                Err(format!("{name} is for pasta mode only"))
            }
        }
    }

    /// The name of the value in the help text, if the option takes one.
    pub(super) const fn value(&self) -> Option<&'static str> {
        match self.take {
            Take::Nothing(_) => None,
            Take::Path(name, _) | Take::Text(name, _) => Some(name),
            Take::Pasta(name) => name,
        }
    }
}

pub(super) const fn flag(
    long: &'static str,
    short: Option<char>,
    set: fn(&mut Draft),
    help: &'static str,
) -> Opt {
    Opt {
        long,
        alias: None,
        short,
        take: Take::Nothing(set),
        help,
    }
}

pub(super) const fn path(
    long: &'static str,
    short: Option<char>,
    value: &'static str,
    set: fn(&mut Draft, &Path) -> Result<(), String>,
    help: &'static str,
) -> Opt {
    Opt {
        long,
        alias: None,
        short,
        take: Take::Path(value, set),
        help,
    }
}

pub(super) const fn text(
    long: &'static str,
    short: Option<char>,
    value: &'static str,
    set: fn(&mut Draft, &str) -> Result<(), String>,
    help: &'static str,
) -> Opt {
    Opt {
        long,
        alias: None,
        short,
        take: Take::Text(value, set),
        help,
    }
}

pub(super) const fn pasta(
    long: &'static str,
    short: Option<char>,
    value: Option<&'static str>,
) -> Opt {
    Opt {
        long,
        alias: None,
        short,
        take: Take::Pasta(value),
        help: "",
    }
}
