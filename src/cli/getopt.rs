//! Splits the command line with clap, by the habits of getopt_long(3): unambiguous prefixes, `--option=value`, clusters of
//! letters, options after operands; and says what is wrong in its words, which other programs look for.

use std::ffi::{OsStr, OsString};

use clap::{
    Arg, ArgAction, ArgMatches, Command,
    builder::OsStringValueParser,
    error::{ContextKind, ContextValue, ErrorKind},
    parser::ValueSource,
};

use super::{
    opt::{Opt, Take},
    options::{OPTIONS, OURS},
};

const OPERANDS: &str = "operands";

/// The command line as clap knows it: for help, completions and the like.
pub fn command() -> Command {
    let operands = Arg::new(OPERANDS)
        .action(ArgAction::Append)
        .num_args(0..)
        .hide(true)
        .value_parser(OsStringValueParser::new());
    Command::new("passt")
        .version(env!("CARGO_PKG_VERSION"))
        .override_usage("passt [OPTION]...")
        .disable_help_flag(true)
        .disable_version_flag(true)
        .infer_long_args(true)
        .args_override_self(true)
        .args(OPTIONS.iter().map(arg))
        .arg(operands)
}

fn arg(opt: &'static Opt) -> Arg {
    let arg = Arg::new(opt.long).long(opt.long).help(opt.help);
    let arg = match opt.short {
        Some(short) => arg.short(short),
        None => arg,
    };
    let arg = match opt.alias {
        Some(alias) => arg.visible_alias(alias),
        None => arg,
    };
    let arg = arg.aliases(abbreviations(opt));
    let arg = arg.hide(matches!(opt.take, Take::Pasta(_)));
    match opt.value() {
        None => arg.action(ArgAction::SetTrue),
        Some(name) => arg
            .action(ArgAction::Append)
            .value_name(name)
            .allow_hyphen_values(true)
            .value_parser(OsStringValueParser::new()),
    }
}

/// The abbreviations that only options of ours would make ambiguous.
fn abbreviations(opt: &'static Opt) -> impl Iterator<Item = &'static str> {
    let cut = |length| opt.long.get(..length);
    (1..opt.long.len()).filter_map(cut).filter(|short| {
        let others = OPTIONS.iter().filter(|other| other.long != opt.long);
        let mut rivals = others
            .filter(|other| other.long.starts_with(short))
            .peekable();
        !OURS.contains(&opt.long)
            && rivals.peek().is_some()
            && rivals.all(|rival| OURS.contains(&rival.long))
    })
}

/// The options of the command line with their values, in its order.
///
/// # Errors
/// What to tell the user.
pub(super) fn split(argv: &[OsString]) -> Result<Vec<(&'static Opt, Option<OsString>)>, String> {
    let matches = command()
        .try_get_matches_from(argv)
        .map_err(|error| complaint(&error, argv))?;
    if let Some(operand) = matches
        .get_many::<OsString>(OPERANDS)
        .and_then(|mut all| all.next())
    {
        return Err(format!("Extra non-option argument: {}", operand.display()));
    }
    let mut found: Vec<(usize, &Opt, Option<OsString>)> = Vec::new();
    for opt in OPTIONS {
        if opt.value().is_none() {
            found.extend(flag_at(&matches, opt).map(|at| (at, opt, None)));
        } else {
            let values = matches.get_many::<OsString>(opt.long).into_iter().flatten();
            let places = matches.indices_of(opt.long).into_iter().flatten();
            found.extend(places.zip(values).map(|(at, v)| (at, opt, Some(v.clone()))));
        }
    }
    found.sort_by_key(|&(at, ..)| at);
    Ok(found
        .into_iter()
        .map(|(_, opt, value)| (opt, value))
        .collect())
}

/// Where a flag stands last, if it was given.
fn flag_at(matches: &ArgMatches, opt: &Opt) -> Option<usize> {
    let given = matches.value_source(opt.long) == Some(ValueSource::CommandLine);
    given
        .then(|| matches.indices_of(opt.long)?.next_back())
        .flatten()
}

/// What getopt_long(3) would have said.
fn complaint(error: &clap::Error, argv: &[OsString]) -> String {
    let culprit = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(text)) => text.as_str(),
        _ => "",
    };
    let name = culprit.trim_start_matches('-');
    let long = culprit.starts_with("--");
    let what = match error.kind() {
        ErrorKind::UnknownArgument if long => unknown(culprit),
        ErrorKind::UnknownArgument => {
            format!("invalid option -- '{}'", name.chars().next().unwrap_or('-'))
        }
        ErrorKind::TooManyValues => format!("option '{culprit}' doesn't allow an argument"),
        ErrorKind::InvalidValue | ErrorKind::WrongNumberOfValues | ErrorKind::TooFewValues => {
            lacking(
                argv.last().map(OsString::as_os_str).unwrap_or_default(),
                culprit,
            )
        }
        _ => error.kind().to_string(),
    };
    format!("passt: {what}")
}

/// A long option that is none, or more than one.
fn unknown(culprit: &str) -> String {
    let bare = culprit.split('=').next().unwrap_or(culprit);
    let possible: Vec<String> = OPTIONS
        .iter()
        .flat_map(|opt| [Some(opt.long), opt.alias])
        .flatten()
        .map(|long| format!("--{long}"))
        .filter(|long| bare.len() > 2 && long.starts_with(bare))
        .map(|long| format!("'{long}'"))
        .collect();
    if possible.is_empty() {
        format!("unrecognized option '{culprit}'")
    } else {
        let possible = possible.join(" ");
        format!("option '{bare}' is ambiguous; possibilities: {possible}")
    }
}

/// An option without its value can only be the last word of the command line.
fn lacking(last: &OsStr, culprit: &str) -> String {
    let last = last.to_string_lossy();
    if last.starts_with("--") {
        let long = culprit.split_whitespace().next().unwrap_or(culprit);
        format!("option '{long}' requires an argument")
    } else {
        let letter = last.chars().next_back().unwrap_or('-');
        format!("option requires an argument -- '{letter}'")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the original takes in October 2026, but for what is its sister program's.
    const ORIGINAL: &[&str] = &[
        "address",
        "chroot-fallback",
        "conf-path",
        "debug",
        "dns",
        "dns-forward",
        "dns-host",
        "fd",
        "foreground",
        "fqdn",
        "freebind",
        "gateway",
        "help",
        "hostname",
        "interface",
        "ipv4-only",
        "ipv6-only",
        "log-file",
        "log-size",
        "mac-addr",
        "map-guest-addr",
        "map-host-loopback",
        "migrate-exit",
        "migrate-no-linger",
        "mtu",
        "netmask",
        "no-dhcp",
        "no-dhcp-dns",
        "no-dhcp-search",
        "no-dhcpv6",
        "no-icmp",
        "no-map-gw",
        "no-ndp",
        "no-ra",
        "no-tcp",
        "no-udp",
        "one-off",
        "outbound",
        "outbound-if4",
        "outbound-if6",
        "pcap",
        "pid",
        "print-capabilities",
        "quiet",
        "repair-path",
        "runas",
        "search",
        "socket",
        "stats",
        "stderr",
        "tcp-ports",
        "trace",
        "udp-ports",
        "version",
        "vhost-user",
    ];

    #[test]
    fn options_of_our_own_make_no_abbreviation_of_the_originals_ambiguous() {
        for long in ORIGINAL {
            for short in (1..=long.len()).filter_map(|end| long.get(..end)) {
                let pastas = OPTIONS
                    .iter()
                    .filter(|opt| matches!(opt.take, Take::Pasta(_)));
                let pastas = pastas.map(|opt| opt.long);
                let of = ORIGINAL.iter().copied().chain(pastas);
                if short != *long && of.filter(|other| other.starts_with(short)).count() > 1 {
                    continue;
                }
                let said = split(&["passt".into(), format!("--{short}").into()]);
                let Err(said) = said else { continue };
                assert!(said.contains("requires an argument"), "{said}");
            }
        }
    }
}
