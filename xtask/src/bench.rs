//! `cargo xtask demo` and `cargo xtask bench`: everything that `weir-bench` needs, then `weir-bench` itself.
//!
//! What it does and prints is its own business; this only builds it and hands its exit code on.

use std::ffi::{OsStr, OsString};
use std::process::ExitCode;

use crate::workspace::Workspace;
use crate::{process, setup};

/// Sets up, builds in release mode and runs `weir-bench` with `args`; the first is the command.
pub(crate) fn run(workspace: &Workspace, args: &[OsString]) -> Result<ExitCode, String> {
    setup::run()?;
    let mut build = process::cargo(&workspace.root);
    process::run(build.args([
        "build",
        "--release",
        "--locked",
        "-p",
        "weir-dataplane",
        "-p",
        "weir-controlplane",
        "-p",
        "weir-bench",
    ]))?;

    // In the caller's directory, so that a relative `--json FILE` lands where the caller expects it.
    let mut bench = process::as_root(workspace.target.join("release/weir-bench"));
    bench.args(args);
    println!("$ {}", process::line(&bench));
    let status = bench.status().map_err(|e| format!("cannot start weir-bench: {e}"))?;
    if status.success() {
        return Ok(ExitCode::SUCCESS);
    }
    let command = args.first().map_or(OsStr::new(""), OsString::as_os_str);
    eprintln!("xtask: weir-bench {}: {}", command.to_string_lossy(), process::describe(status));
    // A code of our own for a death by signal; the others are passed on.
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}
