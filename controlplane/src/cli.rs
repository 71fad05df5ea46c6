//! The command line.
//!
//! ```text
//!  command ─┬─ asks the node: a Call over the API ─▸ answer ─▸ table, or JSON with --json
//!           ├─ ceremony on files: init, ca … (no node needed, no network used)
//!           ├─ looks at files: config check, policy check, policy diff
//!           └─ run: handed back to the program that called
//! ```
//!
//! | exit status | meaning |
//! |---|---|
//! | 0 | done; `status --check`: all is well |
//! | 1 | refused or failed; `status --check`: a warning |
//! | 2 | the command line is wrong; `status --check`: critical, or the node does not answer |
//! | 3 | the node does not answer |

mod arguments;
mod ceremony;
mod dns;
mod files;
mod messages;
mod passphrase;
mod policy;
mod pool;
mod progress;
mod remote;
mod revocation;
mod show;
mod table;

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

pub use arguments::{Arguments, Child};

use crate::api::client::ClientError;
use crate::config::Config;
use arguments::{Command, PolicyCommand};

/// What there is to do after the command line was read.
#[derive(Debug)]
pub enum Next {
    /// Nothing more.
    Exit(ExitCode),
    /// Run one of the processes of a node; the arguments make others of the same node.
    Run(Part, Box<Config>, Vec<OsString>),
}

/// The processes of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Starts the others and keeps them running.
    Supervisor,
    /// Parses what comes from the network.
    Control(Child),
    /// Signs certificates.
    Issuer(Child),
    /// Speaks multicast DNS.
    Mdns(Child),
}

/// Something failed.
const FAILED: u8 = 1;
/// The node does not answer.
const NO_NODE: u8 = 3;

/// Why a command failed.
#[derive(Debug)]
enum Failure {
    /// The node refused it, or is not there.
    Client(ClientError),
    /// What is wrong and what to do.
    Message(String),
    /// Everything was said already.
    Status(u8),
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::Client(error)
    }
}

type Outcome = Result<(), Failure>;

fn failed(error: impl ToString) -> Failure {
    Failure::Message(error.to_string())
}

/// Reads this process's command line and does what it says.
pub fn run() -> Next {
    let arguments = Arguments::parse();
    let part = match arguments.command {
        Command::Run => Part::Supervisor,
        Command::Control(child) => Part::Control(child),
        Command::Issuer(child) => Part::Issuer(child),
        Command::Mdns(child) => Part::Mdns(child),
        _ => return Next::Exit(ended(dispatch(&arguments))),
    };
    match arguments.configuration() {
        Ok(config) => Next::Run(part, Box::new(config), arguments.of_the_node()),
        Err(error) => Next::Exit(ended(Err(failed(error)))),
    }
}

fn dispatch(arguments: &Arguments) -> Outcome {
    match &arguments.command {
        Command::Init(init) => ceremony::init(arguments, init),
        Command::Ca { command } => ceremony::ca(arguments, command),
        Command::Config { command } => files::config(arguments, command),
        Command::Policy { command: PolicyCommand::Check { file, members } } => policy::check(arguments, file, *members),
        Command::Policy { command: PolicyCommand::Diff { file, from } } => {
            policy::diff(arguments, file, from.as_deref())
        }
        Command::Policy { command: PolicyCommand::Sign(sign) } => policy::sign(arguments, sign),
        Command::Send(send) => messages::send(arguments, send),
        Command::Recv(recv) => messages::recv(arguments, recv),
        Command::Completions { shell } => {
            clap_complete::generate(*shell, &mut Arguments::command(), "weir", &mut io::stdout());
            Ok(())
        }
        Command::Man { directory } => clap_mangen::generate_to(Arguments::command(), directory).map_err(failed),
        Command::Docs { directory } => documents(directory),
        _ => remote::run(arguments),
    }
}

fn documents(directory: &Path) -> Outcome {
    std::fs::write(directory.join("api.md"), crate::api::docs::page()).map_err(failed)?;
    std::fs::write(directory.join("openapi.json"), crate::api::docs::openapi()).map_err(failed)
}

fn ended(outcome: Outcome) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Status(status)) => ExitCode::from(status),
        Err(Failure::Client(error)) => {
            complain(&error);
            match error {
                ClientError::NotRunning { .. } => ExitCode::from(NO_NODE),
                ClientError::NoEntry(_)
                | ClientError::Refused(_)
                | ClientError::TooSlow
                | ClientError::Broken { .. } => ExitCode::from(FAILED),
            }
        }
        Err(Failure::Message(message)) => {
            complain(&message);
            ExitCode::from(FAILED)
        }
    }
}

fn complain(what: &dyn std::fmt::Display) {
    // Nobody is left to tell when even this fails.
    let _ = writeln!(io::stderr(), "weir: {what}");
}

/// Prints to the standard output. That nobody reads it, as behind `head`, is no failure.
fn print(text: &str) -> Outcome {
    match io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(failed),
    }
}

#[cfg(test)]
mod tests;
