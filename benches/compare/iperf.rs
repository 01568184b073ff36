//! iperf3 between guest and server: what its user reads, with the start of the connections and every stall in it.

use std::{
    io::{self, BufRead, BufReader},
    process::{Command, Stdio},
};

use crate::{
    cpu,
    load::{GIB, Load, Sample},
    world::Process,
};

/// Seconds beyond those asked for: iperf3 has its own patience, so that this only ends what hangs.
const PATIENCE: u64 = 60;

/// One run, guest to server if `up`, for as long as the load says, without any warming up. The client is the guest's.
///
/// # Errors
/// iperf3 is missing, fails or says something else than usual.
pub(crate) fn measure(load: &Load<'_>, up: bool) -> io::Result<Sample> {
    let (bind, target) = (load.bind.to_string(), load.target.to_string());
    let _server = load.server.run(|| serve(&bind))?;
    let seconds = load.time.as_secs().max(1);
    let mut client = Command::new("timeout");
    client
        .args([&(seconds + PATIENCE).to_string(), "iperf3"])
        .args(["--json", "--client", &target])
        .args(["--congestion", load.congestion])
        .args(["--parallel", &load.flows.to_string()])
        .args(["--time", &seconds.to_string()])
        .args((!up).then_some("--reverse"));
    let before = cpu::time_of(load.translator);
    let output = load.guest.host().run(|| client.output())?;
    let cpu = cpu::time_of(load.translator).saturating_sub(before);
    let said = String::from_utf8_lossy(&output.stdout);
    let received = said.split("\"sum_received\":").nth(1);
    let (octets, seconds) = received
        .and_then(|figures| Some((number(figures, "bytes")?, number(figures, "seconds")?)))
        .ok_or_else(|| io::Error::other(said.trim().to_owned()))?;
    Ok(Sample {
        rate: octets * 8e-9 / seconds,
        cost: cpu.as_secs_f64() / (octets / GIB),
        ..Sample::default()
    })
}

/// A server for one client, which listens already.
fn serve(bind: &str) -> io::Result<Process> {
    let mut server = Process(
        Command::new("iperf3")
            .args(["--server", "--one-off", "--forceflush", "--bind", bind])
            .stdout(Stdio::piped())
            .spawn()?,
    );
    let said = BufReader::new(server.0.stdout.as_mut().expect("a pipe"));
    let mut lines = said.lines().map_while(Result::ok);
    if !lines.any(|line| line.starts_with("Server listening")) {
        return Err(io::Error::other("iperf3 does not listen"));
    }
    Ok(server)
}

/// The number of the first member `name` in a text of JSON.
fn number(text: &str, name: &str) -> Option<f64> {
    let (_, rest) = text.split_once(&format!("\"{name}\":"))?;
    let end = rest.find([',', '}', '\n'])?;
    rest[..end].trim().parse().ok()
}
