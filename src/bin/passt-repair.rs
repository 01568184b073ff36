//! The helper that sets and clears repair mode on behalf of passt: a path in, exit code out.

use std::{
    io::{self, Write},
    path::Path,
    process::ExitCode,
};

use passt_rs::daemon::passt_repair::{self, Failure};

fn main() -> ExitCode {
    let argv: Vec<_> = std::env::args_os().collect();
    let [_, path] = argv.as_slice() else {
        let name = argv
            .first()
            .map_or_else(|| "passt-repair".into(), |name| name.to_string_lossy());
        return fail(&format!("Usage: {name} PATH"), 2);
    };
    if matches!(path.to_str(), Some("-h" | "--help")) {
        let told = writeln!(io::stdout(), "{}", passt_repair::HELP);
        return told.map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS);
    }
    match passt_repair::run(Path::new(path)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Usage(line)) => fail(&line, 2),
        Err(Failure::Run(line)) => fail(&line, 1),
    }
}

fn fail(line: &str, code: u8) -> ExitCode {
    // Where it cannot be said, the exit code says enough.
    let _ = writeln!(io::stderr(), "{line}");
    ExitCode::from(code)
}
