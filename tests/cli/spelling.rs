//! Options spelled, abbreviated and mistaken as getopt_long(3) has it; what is printed instead of a run.

use std::ffi::OsString;

use passt_rs::cli::{self, Parsed};

use super::{config, failure, parse, words};

#[test]
fn options_are_spelled_as_getopt_long_allows() {
    assert_eq!(
        words("--foregr --sock /s --mt 1500"),
        words("-f -s /s -m 1500")
    );
    assert_eq!(words("-f1qm1500"), words("-f -1 -q -m 1500"));
    assert_eq!(words("-fs/s"), words("-f -s /s"));
    assert_eq!(words("--no-dhcp"), words("--no-dhcp --no-dhcp"));
    assert_eq!(words("--outbound 10.0.0.2 -f"), words("-f -o 10.0.0.2"));
    // Options of our own do not get in the way of upstream's.
    assert_eq!(words("--re none"), words("--repair-path none"));
    assert_eq!(parse(&["--print"]), parse(&["--print-capabilities"]));
    assert!(words("--print-s").print_sandbox);
    // A value is a value, whatever it begins with.
    assert_eq!(config(&["-i", "-f"]).interface.as_deref(), Some("-f"));
    assert_eq!(config(&["-P", "--pid"]).pid_file, Some("--pid".into()));
    assert_eq!(config(&["-S", "a b  c"]), words("-S a -S b -S c"));
    assert_eq!(config(&["--dns", ""]), words("--dns none"));
    assert_eq!(config(&["-S", ""]), words("-S none"));
}

#[test]
fn values_are_spelled_as_the_original_reads_them() {
    for (line, plain) in [
        ("-a [fd00::1]", "-a fd00::1"),
        ("-a [10.9.9.8]/24", "-a 10.9.9.8/24"),
        // An address's own length is always decimal.
        ("-a 10.9.9.8/024", "-a 10.9.9.8/24"),
        ("-n 0x18", "-n 24"),
        ("-n 030", "-n 24"),
        ("--runas 0x10", "--runas 16"),
        ("--runas 107:020", "--runas 107:16"),
    ] {
        assert_eq!(words(line), words(plain), "{line}");
    }
    for (line, said) in [
        ("-a [fd00::1", "Invalid guest address: [fd00::1"),
        ("-a [fd00::1/64]", "Invalid guest address: [fd00::1/64]"),
        ("-n 08", "Invalid prefix length: 08"),
        ("--runas 5:0x", "Invalid --runas option: 5:0x"),
    ] {
        let args: Vec<&str> = line.split(' ').collect();
        assert_eq!(failure(&args), said);
    }
}

#[test]
fn unknown_options_are_named_as_getopt_long_names_them() {
    for (args, text) in [
        (&["--bogus"][..], "unrecognized option '--bogus'"),
        (&["--bogus=3"], "unrecognized option '--bogus"),
        (
            &["--map-guest-address", "x"],
            "unrecognized option '--map-guest-address'",
        ),
        (&["-Z"], "invalid option -- 'Z'"),
        (&["-fZ"], "invalid option -- 'Z'"),
        (&["--mtu"], "option '--mtu' requires an argument"),
        (&["--mt"], "option '--mtu' requires an argument"),
        (&["-m"], "option requires an argument -- 'm'"),
        (&["-fm"], "option requires an argument -- 'm'"),
        (
            &["--one-off=3"],
            "option '--one-off' doesn't allow an argument",
        ),
        (
            &["--map"],
            "option '--map' is ambiguous; possibilities: '--map-host-loopback' '--map-guest-addr'",
        ),
        (
            &["--mig"],
            "option '--mig' is ambiguous; possibilities: '--migrate-exit' '--migrate-no-linger'",
        ),
        (
            &["--no-d"],
            "option '--no-d' is ambiguous; possibilities: '--no-dhcp' '--no-dhcpv6' '--no-dhcp-dns' '--no-dhcp-search'",
        ),
    ] {
        let said = failure(args);
        assert!(
            said.starts_with(&format!("passt: {text}")),
            "{args:?}: {said}"
        );
    }
}

/// Whether passt refuses the option as one of pasta.
fn of_pasta(option: &str) -> bool {
    [&[option][..], &[option, "x"]].iter().any(
        |args| matches!(parse(args), Parsed::Fail(line) if line.ends_with("for pasta mode only")),
    )
}

#[test]
fn help_and_version_are_printed() {
    for args in [&["--version"][..], &["-f", "--version", "-m", "x"]] {
        let Parsed::Print(text) = parse(args) else {
            panic!("{args:?}");
        };
        let first = format!("passt {}", env!("CARGO_PKG_VERSION"));
        assert_eq!(text.lines().next(), Some(&first[..]));
        assert!(text.contains("Apache-2.0"));
    }
    assert_eq!(
        parse(&["--print-capabilities", "-m", "x"]),
        Parsed::Print("{\n  \"type\": \"net\"\n}\n".to_owned())
    );
    for args in [["-h"], ["--help"]] {
        let Parsed::Print(text) = parse(&args) else {
            panic!("{args:?}");
        };
        for spelling in cli::spellings().filter(|option| !of_pasta(option)) {
            assert!(text.contains(&spelling), "{spelling} is missing:\n{text}");
        }
    }
}

#[test]
fn pasta_is_declined_in_one_line() {
    for name in ["pasta", "/usr/bin/pasta", "pasta.avx2"] {
        let parsed = cli::parse([name, "--config-net"].iter().map(OsString::from));
        let Parsed::Fail(line) = parsed else {
            panic!("{parsed:?}");
        };
        assert_eq!(line, "pasta: network namespaces are not served yet");
    }
    let elsewhere = cli::parse(["/home/pasta/passt"].iter().map(OsString::from));
    assert!(matches!(elsewhere, Parsed::Run(..)), "{elsewhere:?}");
}
