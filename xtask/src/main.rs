//! Weir's build, test and demo tasks: `cargo xtask <task>`.
//!
//! This crate runs other programs and reads source text. It imports no crate of the workspace, so it builds in seconds and still works
//! when nothing else compiles. Read it in this order:
//!
//! - [`process`]: starting programs, as root where a task needs it;
//! - [`workspace`]: where things are;
//! - [`setup`]: what must be on the machine, and how it gets there;
//! - [`ebpf`]: building the committed eBPF objects, byte for byte the same everywhere;
//! - [`tidy`]: the rules about structure that no compiler checks;
//! - [`test`]: the whole check, step by step, as CI runs it;
//! - [`bench`]: the two gateways and the traffic between them: the demonstration and the measurements.
//! - [`tune`]: how this host is set up, and what would be better.

mod bench;
mod ebpf;
mod process;
mod setup;
mod test;
mod tidy;
mod tune;
mod workspace;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "Weir's build, test and demo tasks",
    max_term_width = 120
)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Starts two gateways in network namespaces, sends real traffic through them and shows what happened.
    ///
    /// Installs what is missing, builds in release mode and runs `weir-bench demo` with all ARGS. It needs root and uses sudo without it.
    Demo {
        /// For `weir-bench demo`: `--keep` leaves everything up and says how to enter, `--json FILE` writes the figures to a file.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Measures: compares Weir with the kernel and other programs, times single pieces and the control plane, finds out where the time goes.
    ///
    /// Installs what is missing, builds in release mode and runs `weir-bench` with all ARGS. It needs root and uses sudo without it.
    Bench {
        /// The command of `weir-bench` and its options: `compare`, `micro`, `control`, `sim`, `profile`; `compare --quick` shows that it works.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        args: Vec<OsString>,
    },
    /// Shows how this host's devices are set up and what would serve the packet plane better; changes nothing without `--apply`.
    ///
    /// Builds in release mode and runs `weir-dataplane tune` with all ARGS. It needs root and uses sudo without it.
    Tune {
        /// For `weir-dataplane tune`: `--device NAME`, `--config FILE`, `--apply`, `--calibrate`, `--json`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Runs every check, as CI does, and stops at the first that fails.
    Test {
        /// Adds what takes long: advisories, more property-test cases, fuzzing, release-mode and ignored tests.
        #[arg(long)]
        full: bool,
    },
    /// Builds the eBPF objects that the repository carries.
    #[command(long_about = ebpf::HELP)]
    Ebpf {
        /// Builds aside and compares with the committed objects instead of replacing them.
        #[arg(long)]
        check: bool,
    },
    /// Checks the structure: who may import whom, where unsafe code lives, what the docs must name.
    Tidy {
        /// Also rewrites the pages that are made from source (docs/drop-reasons.md).
        #[arg(long)]
        write: bool,
    },
    /// What CI runs: the same as `test`.
    Ci,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let workspace = Workspace::locate();
    let done = match cli.task {
        Task::Demo { args } => bench::run(&workspace, &[vec!["demo".into()], args].concat()),
        Task::Bench { args } => bench::run(&workspace, &args),
        Task::Tune { args } => tune::run(&workspace, &args),
        Task::Test { full } => test::run(&workspace, full),
        Task::Ebpf { check } => ebpf::run(&workspace, check),
        Task::Tidy { write } => tidy::run(&workspace, write),
        Task::Ci => test::run(&workspace, false),
    };
    match done {
        Ok(code) => code,
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}
