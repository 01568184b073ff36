//! The helper that sets and clears repair mode on behalf of passt: a path in, exit code out.

use std::{path::Path, process::ExitCode};

use passt_rs::daemon::passt_repair::{self, Failure};

fn main() -> ExitCode {
    let argv: Vec<_> = std::env::args_os().collect();
    let [_, path] = argv.as_slice() else {
        let name = argv
            .first()
            .map_or_else(|| "passt-repair".into(), |name| name.to_string_lossy());
        eprintln!("Usage: {name} PATH");
        return ExitCode::from(2);
    };
    if matches!(path.to_str(), Some("-h" | "--help")) {
        println!("{}", passt_repair::HELP);
        return ExitCode::SUCCESS;
    }
    match passt_repair::run(Path::new(path)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Usage(line)) => {
            eprintln!("{line}");
            ExitCode::from(2)
        }
        Err(Failure::Run(line)) => {
            eprintln!("{line}");
            ExitCode::FAILURE
        }
    }
}
