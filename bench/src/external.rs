//! Judges that we did not write: `ping` (iputils) and `iperf3`.

use std::io;
use std::net::IpAddr;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::rig::Namespace;
use crate::{Error, Result};

/// How long the iperf3 server may take to listen.
const SERVER_TIMEOUT: Duration = Duration::from_secs(5);

/// What `ping` saw.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ping {
    /// Requests sent.
    pub sent: u32,
    /// Answers received.
    pub received: u32,
    /// Mean round trip, µs; `None` without an answer.
    pub mean_us: Option<f64>,
}

/// Sends `count` echo requests, ten milliseconds apart.
///
/// # Errors
/// [`Error::MissingProgram`], [`Error::ProgramFailed`] when ping cannot run. Loss is not an error.
pub fn ping(from: &Namespace, to: IpAddr, count: u32) -> Result<Ping> {
    let program = "ping";
    let output = run(
        program,
        "iputils-ping",
        from.command(program)
            .env("LC_ALL", "C")
            .args(["-n", "-q", "-i", "0.01", "-W", "1", "-c"])
            .args([count.to_string(), to.to_string()]),
    )?;
    let text = String::from_utf8_lossy(&output.stdout);
    parse_ping(&text).ok_or_else(|| failed(program, &output))
}

/// Reads ping's two summary lines.
fn parse_ping(text: &str) -> Option<Ping> {
    let counts = text.lines().find(|l| l.contains("packets transmitted"))?;
    let mut numbers = counts.split(", ").map_while(|part| part.split(' ').next()?.parse().ok());
    let (sent, received) = (numbers.next()?, numbers.next()?);
    // "rtt min/avg/max/mdev = 0.04/0.05/0.06/0.00 ms"
    let mean_us = text
        .lines()
        .find(|l| l.starts_with("rtt "))
        .and_then(|l| l.split(" = ").nth(1)?.split('/').nth(1)?.parse::<f64>().ok())
        .map(|ms| ms * 1e3);
    Some(Ping { sent, received, mean_us })
}

/// What iperf3 saw at the receiver.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Transfer {
    /// Gbit/s of payload.
    pub gbps: f64,
    /// Segments sent again.
    pub retransmits: u64,
    /// Bytes of payload.
    pub bytes: u64,
}

/// One TCP stream from one host to another.
///
/// # Errors
/// [`Error::MissingProgram`], [`Error::ProgramFailed`].
pub fn tcp_transfer(from: &Namespace, to: &Namespace, address: IpAddr, duration: Duration) -> Result<Transfer> {
    tcp_transfers(from, to, address, duration, 1)
}

/// Several TCP streams at once from one host to another, summed up.
///
/// # Errors
/// As [`tcp_transfer`].
pub fn tcp_transfers(
    from: &Namespace,
    to: &Namespace,
    address: IpAddr,
    duration: Duration,
    streams: u32,
) -> Result<Transfer> {
    let program = "iperf3";
    let package = "iperf3";
    let mut command = to.command(program);
    command.args(["-s", "-1"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let _server = Server(command.spawn().map_err(|e| missing(program, package, e))?);
    let seconds = duration.as_secs().max(1).to_string();
    let start = Instant::now();
    loop {
        let mut client = from.command(program);
        client.args(["-J", "-t", &seconds, "-P", &streams.to_string(), "--connect-timeout", "3000", "-c"]);
        client.arg(address.to_string());
        let output = run(program, package, &mut client)?;
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).map_err(|_| failed(program, &output))?;
        let number = |path: &str| report.pointer(path).and_then(serde_json::Value::as_f64);
        if let Some(bps) = number("/end/sum_received/bits_per_second") {
            let retransmits = number("/end/sum_sent/retransmits").unwrap_or(0.0) as u64;
            let bytes = number("/end/sum_received/bytes").unwrap_or(0.0) as u64;
            return Ok(Transfer { gbps: bps / 1e9, retransmits, bytes });
        }
        let detail = report["error"].as_str().unwrap_or("no result").to_owned();
        // The server serves one client, and a refused one does not count: asking again is the way to see it listen.
        if !detail.contains("refused") || start.elapsed() > SERVER_TIMEOUT {
            return Err(Error::ProgramFailed { program, detail });
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A child that does not outlive its measurement.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It ends by itself after one client; this is for the ways out where there was none.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run(program: &'static str, package: &'static str, command: &mut Command) -> Result<Output> {
    command.stdin(Stdio::null()).output().map_err(|e| missing(program, package, e))
}

fn missing(program: &'static str, package: &'static str, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::NotFound => Error::MissingProgram { program, package },
        _ => Error::Io { what: format!("cannot run {program}"), source: error },
    }
}

fn failed(program: &'static str, output: &Output) -> Error {
    let said = if output.stderr.is_empty() { &output.stdout } else { &output.stderr };
    Error::ProgramFailed { program, detail: String::from_utf8_lossy(said).trim().to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pings_summary_is_read_with_and_without_answers() {
        let answered = "PING 10.2.0.2 (10.2.0.2) 56(84) bytes of data.\n\n--- 10.2.0.2 ping statistics ---\n\
            20 packets transmitted, 19 received, 5% packet loss, time 190ms\nrtt min/avg/max/mdev = 0.040/0.062/0.090/0.010 ms\n";
        assert_eq!(parse_ping(answered), Some(Ping { sent: 20, received: 19, mean_us: Some(62.0) }));
        let silent =
            "--- 10.2.0.2 ping statistics ---\n2 packets transmitted, 0 received, 100% packet loss, time 10ms\n";
        assert_eq!(parse_ping(silent), Some(Ping { sent: 2, received: 0, mean_us: None }));
        let errors = "2 packets transmitted, 0 received, +2 errors, 100% packet loss, time 10ms\n";
        assert_eq!(parse_ping(errors), Some(Ping { sent: 2, received: 0, mean_us: None }));
        assert_eq!(parse_ping("connect: Network is unreachable"), None);
    }

    #[test]
    fn a_program_that_is_not_there_names_its_package() {
        let error = run("no-such-program", "some-package", &mut Command::new("weir-no-such-program")).unwrap_err();
        assert!(error.to_string().contains("some-package"), "{error}");
    }
}
