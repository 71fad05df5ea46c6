//! The packet plane's daemon and its command line.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;
use weir_dataplane::config::{Attach, Config, WanIo};
use weir_dataplane::io::parent::{Signal, end_with};
use weir_dataplane::{io, plane, tune};

/// Weir's packet plane: forwards IP packets between gateways, sealed.
#[derive(Parser)]
#[command(name = "weir-dataplane", version, about, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run until SIGTERM or SIGINT. WEIR_LOG sets what is logged (error, warn, info, debug, trace).
    Run {
        /// The configuration file.
        #[arg(long, default_value = "/etc/weir/dataplane.toml")]
        config: PathBuf,
        /// Numbers of inherited descriptors: the control sockets that outlived the packet plane before, kept by the control plane.
        #[arg(long, value_delimiter = ',', value_name = "FD,FD")]
        control_sockets: Vec<std::os::fd::RawFd>,
        /// Stop when the process with this id ends, which must be the one that starts this: `weir run` wants that.
        #[arg(long, value_name = "PID")]
        parent: Option<u32>,
    },
    /// Show what this machine can do, and what is missing with its remedy. Changes nothing.
    Probe {
        /// Ask about the interface and the ports of this configuration file.
        #[arg(long, conflicts_with = "interface")]
        config: Option<PathBuf>,
        /// Ask about this WAN interface.
        #[arg(long, default_value = "lo")]
        interface: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Check a configuration file.
    Check {
        /// The configuration file.
        #[arg(long, default_value = "/etc/weir/dataplane.toml")]
        config: PathBuf,
        /// Print the configuration with all its defaults as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show how this host's devices are set up, and what would serve the packet plane better. Changes nothing without --apply.
    Tune {
        /// Look at the WAN and LAN interfaces of this configuration file; calibrate for it.
        #[arg(long)]
        config: Option<PathBuf>,
        /// Look at this interface too.
        #[arg(long, value_name = "NAME")]
        device: Vec<String>,
        /// Set what takes effect without a link going down, and print what takes it back.
        #[arg(long)]
        apply: bool,
        /// Measure what packets cost on a private veth pair, and write that down for `run`.
        #[arg(long)]
        calibrate: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Remove the routes, rules and pins that a stopped daemon leaves so that nothing goes out in clear.
    Purge {
        /// The configuration file that the daemon ran with.
        #[arg(long, default_value = "/etc/weir/dataplane.toml")]
        config: PathBuf,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_env("WEIR_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    // Complaining on the same stream that it cannot be written would panic: whoever reads the log must not end the plane by leaving.
    log.log_internal_errors(false).init();
    match run(arguments.command) {
        Ok(code) => code,
        Err(error) => {
            // If nobody reads it, the exit code has to do.
            let _ = writeln!(std::io::stderr(), "weir-dataplane: error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode, Box<dyn std::error::Error>> {
    // Written with an error to pass on: a reader that leaves must not end in a panic.
    let mut out = std::io::stdout();
    match command {
        Command::Run { config, control_sockets, parent } => {
            // Programs, pins and TUN go, and overlay prefixes stay unreachable.
            parent.map(|parent| end_with(parent, Signal::TERM)).transpose()?;
            plane::run(&Config::load(&config)?, &control_sockets)?;
        }
        Command::Purge { config } => plane::purge(&Config::load(&config)?)?,
        Command::Check { config, json } => {
            let config = Config::load(&config)?;
            if json {
                writeln!(out, "{}", serde_json::to_string_pretty(&config)?)?;
            } else {
                writeln!(out, "the configuration is good")?;
                match plane::ports(&config) {
                    Ok(choice) => {
                        for (name, text) in choice.rows() {
                            writeln!(out, "{name}: {text}")?;
                        }
                    }
                    Err(error) => writeln!(out, "ports are chosen at the start: {error}")?,
                }
            }
        }
        Command::Tune { config, device, apply, calibrate, json } => {
            let config = config.as_deref().map(Config::load).transpose()?;
            let report = tune::look(config.as_ref(), &device)?;
            let calibration = if calibrate { Some(tune::calibrate(config.as_ref())?) } else { None };
            let applied = if apply { tune::apply(&report)? } else { vec![] };
            if json {
                let all =
                    serde_json::json!({ "settings": report.rows, "calibration": calibration, "applied": applied });
                writeln!(out, "{}", serde_json::to_string_pretty(&all)?)?;
            } else {
                write!(out, "{report}")?;
                if let Some(calibration) = calibration {
                    write!(out, "{calibration}")?;
                }
                for result in &applied {
                    match result {
                        Ok(undo) => writeln!(out, "set; to take it back: {undo}")?,
                        Err(error) => writeln!(out, "not set: {error}")?,
                    }
                }
            }
            if applied.iter().any(Result::is_err) {
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::Probe { config, interface, json } => {
            let config = config.as_deref().map(Config::load).transpose()?;
            let wishes = io::probe::Wishes {
                wan: config.as_ref().map_or(interface.as_str(), |config| &config.wan.interface),
                bpf: config.as_ref().is_none_or(|config| config.wan.attach != Attach::None),
                uring_only: config.as_ref().is_some_and(|config| config.wan.io == WanIo::Uring),
            };
            let table = io::probe::probe(&wishes);
            if json {
                writeln!(out, "{}", serde_json::to_string_pretty(&table)?)?;
            } else {
                write!(out, "{table}")?;
            }
            if table.first_blocker().is_some() {
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
