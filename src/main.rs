//! Arguments in, exit code out.

use std::{
    fmt::Display,
    io::{self, Write},
    process::ExitCode,
};

use passt_rs::{
    cli::{self, Parsed},
    config::Config,
    daemon,
    sys::reason,
};

fn main() -> ExitCode {
    match cli::parse(std::env::args_os()) {
        Parsed::Print(text) => print(text),
        Parsed::Fail(text) => Err(text),
        Parsed::Run(config, warnings) => run(&config, &warnings),
    }
    .map_or_else(|text| fail(&text), |()| ExitCode::SUCCESS)
}

/// Starts and serves. What there is to print is held back until nothing can fail any more, so that the reason of a failure is
/// the only line.
fn run(config: &Config, warnings: &[String]) -> Result<(), String> {
    if config.print_sandbox {
        return print(daemon::shut_in(config)?);
    }
    let prepared = daemon::prepare(config)?;
    for note in &prepared.resolved().notes {
        log::info!("{note}");
    }
    for warning in warnings.iter().chain(&prepared.resolved().warnings) {
        log::warn!("{warning}");
    }
    for line in cli::summary(prepared.resolved(), config, prepared.path()).lines() {
        log::info!("{line}");
    }
    prepared.serve().map(drop)
}

fn print(text: impl Display) -> Result<(), String> {
    let mut out = io::stdout();
    write!(out, "{text}")
        .and_then(|()| out.flush())
        .map_err(|error| format!("Couldn't print: {}", reason(&error)))
}

fn fail(text: &str) -> ExitCode {
    // Where it cannot be said either, the exit code says enough.
    let _ = writeln!(io::stderr(), "{}", text.trim_end());
    ExitCode::FAILURE
}
