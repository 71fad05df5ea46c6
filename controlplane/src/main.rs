//! `weir`: the control plane and its command line.

use std::process::ExitCode;

use weir_controlplane::cli::{self, Next};

fn main() -> ExitCode {
    match cli::run() {
        Next::Exit(code) => code,
        Next::Run(config) => {
            let instance = config.node.instance;
            eprintln!("weir: this program cannot run the node {instance} yet: it has its command line and API only");
            ExitCode::FAILURE
        }
    }
}
