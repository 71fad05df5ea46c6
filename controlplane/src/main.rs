//! `weir`: the control plane and its command line.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::process::ExitCode;

use tokio::net::UnixStream;
use tracing_subscriber::EnvFilter;
use weir_controlplane::cli::{self, Next, Part};
use weir_controlplane::config::Config;
use weir_controlplane::shell::confine;
use weir_controlplane::supervisor::{self, Setup};
use weir_controlplane::{shell, supervisor::SupervisorError};
use weir_dataplane::io::parent::{Signal, end_with};

fn main() -> ExitCode {
    // There are keys and passphrases in here, and keys in the packet plane that is started from here.
    if let Err(error) = confine::keep_memory_private() {
        return failed(&error);
    }
    let (part, config, arguments) = match cli::run() {
        Next::Exit(code) => return code,
        Next::Run(part, config, arguments) => (part, config, arguments),
    };
    let filter = EnvFilter::try_from_env("WEIR_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_target(false);
    // Whoever reads the log must not end the node by leaving.
    log.log_internal_errors(false).init();
    match run(part, *config, arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&*error),
    }
}

fn failed(error: &dyn std::error::Error) -> ExitCode {
    // If nobody reads it, the exit status has to do.
    let _ = writeln!(io::stderr(), "weir: error: {error}");
    ExitCode::FAILURE
}

fn run(part: Part, config: Config, arguments: Vec<OsString>) -> Result<(), Box<dyn std::error::Error>> {
    if let Part::Control(child) | Part::Issuer(child) | Part::Mdns(child) = part {
        // What must outlive it is on disk. One that was started by hand ends when it is told to.
        child.parent.map(|parent| end_with(parent, Signal::KILL)).transpose()?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match part {
        Part::Supervisor => {
            let program = std::env::current_exe()
                .map_err(|error| SupervisorError::System { doing: "finding this program", error })?;
            Ok(runtime.block_on(supervisor::run(Setup { config, arguments, program }))?)
        }
        Part::Control(_) => Ok(runtime.block_on(async {
            let supervisor = orders();
            shell::run(config, supervisor).await
        })?),
        Part::Issuer(_) => Ok(runtime.block_on(shell::issuer::run(&config))?),
        Part::Mdns(_) => Ok(runtime.block_on(shell::mdns::run(&config))?),
    }
}

/// The socket to the supervisor: our standard input, where it started us.
fn orders() -> Option<UnixStream> {
    let input = io::stdin().as_fd().try_clone_to_owned().ok()?;
    let stream = StdUnixStream::from(input);
    // Started by hand, the standard input is a terminal or a file.
    stream.peer_addr().ok()?;
    stream.set_nonblocking(true).ok()?;
    UnixStream::from_std(stream).ok()
}
