//! A client that sees and changes what is forwarded, as pesto(1) does.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
};

use passt_rs::{
    config::{Enabled, Forwards, Rule},
    net::Protocol,
    proto::pesto,
};

use super::{Host, LONG, Setup, Translator, uninterrupted};

/// Octets of a greeting before its table's number, and of what the table begins with besides that and its rules' count.
const BEGINNING: usize = 20;
const TABLE: usize = 128 + 4;

const ALL: Enabled = Enabled {
    v4: true,
    v6: true,
    tcp: true,
    udp: true,
};

/// Where a translator takes such clients.
#[derive(Debug)]
pub struct Pesto(PathBuf);

impl Pesto {
    /// A translator that may be told what to forward.
    pub fn start(host: &Host, args: &[&str]) -> (Translator, Self) {
        Self::start_as(Setup::new(args), host)
    }

    /// The same, set up so.
    pub fn start_as(setup: Setup, host: &Host) -> (Translator, Self) {
        let path = setup.dir().join("control");
        let setup = setup.arg("-c").arg(path.to_str().expect("UTF-8"));
        (setup.start(host), Self(path))
    }

    pub fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.0).expect("connect");
        stream.set_read_timeout(Some(LONG)).expect("timeout");
        stream
    }

    /// What is forwarded by now.
    pub fn shown(&self) -> Vec<String> {
        describe(&greeted(&mut self.connect()))
    }

    /// Has these forwarded, and nothing else: `-t` or `-u`, and a specifier each. Returns when that is done, or refused.
    pub fn forward(&self, specs: &[(&str, &str)]) {
        let mut stream = self.connect();
        greeted(&mut stream);
        stream.write_all(&message(specs)).expect("write");
        assert_ended(stream);
    }
}

/// Waits for the end of a connection.
pub fn assert_ended(mut stream: UnixStream) {
    let end = uninterrupted(|| stream.read(&mut [0]));
    assert!(matches!(end, Ok(0)), "{end:?}");
}

/// What asks for these rules.
pub fn message(specs: &[(&str, &str)]) -> Vec<u8> {
    let mut forwards = Forwards::default();
    for (option, text) in specs {
        let protocol = match *option {
            "-t" => Protocol::Tcp,
            _ => Protocol::Udp,
        };
        let ephemeral = 32_768..=60_999;
        forwards.add(protocol, text, &ephemeral).expect("a rule");
    }
    let (rules, _) = forwards.finish(ALL).expect("rules");
    answer(&pesto::greeting(&rules, ALL))
}

/// The rules that a client is shown.
pub fn greeted(stream: &mut UnixStream) -> Vec<Rule> {
    let mut said = Vec::new();
    loop {
        let mut octets = [0; 4096];
        let len = uninterrupted(|| stream.read(&mut octets)).expect("greeting");
        assert!(len > 0, "no whole greeting");
        said.extend(&octets[..len]);
        if said.len() > BEGINNING + 1 + TABLE
            && let Some(rules) = pesto::read(&answer(&said), ALL).expect("rules")
        {
            return rules;
        }
    }
}

/// What asks for the same as is shown.
fn answer(greeting: &[u8]) -> Vec<u8> {
    let mut out = vec![greeting[BEGINNING]];
    out.extend(&greeting[BEGINNING + 1 + TABLE..]);
    out
}

fn describe(rules: &[Rule]) -> Vec<String> {
    let line = |rule: &Rule| rule.describe(true, true);
    let lines = rules.iter().map(line);
    lines.map(|line| line.trim_end().to_owned()).collect()
}
