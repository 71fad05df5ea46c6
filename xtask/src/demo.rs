//! `cargo xtask demo`: everything that `weir-bench demo` needs, then `weir-bench demo` itself.
//!
//! What the demo does and prints is the business of `weir-bench`; this only builds it and hands its exit code on.

use std::ffi::OsString;
use std::process::ExitCode;

use crate::workspace::Workspace;
use crate::{process, setup};

/// Sets up, builds in release mode and runs the demo with `args`.
pub(crate) fn run(workspace: &Workspace, args: &[OsString]) -> Result<ExitCode, String> {
    setup::run()?;
    let mut build = process::cargo(&workspace.root);
    process::run(build.args(["build", "--release", "--locked", "-p", "weir-dataplane", "-p", "weir-bench"]))?;

    // In the caller's directory, so that a relative `--json FILE` lands where the caller expects it.
    let mut demo = process::as_root(workspace.target.join("release/weir-bench"));
    demo.arg("demo").args(args);
    println!("$ {}", process::line(&demo));
    let status = demo.status().map_err(|e| format!("cannot start weir-bench: {e}"))?;
    if status.success() {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("xtask: weir-bench demo: {}", process::describe(status));
    // A code of our own for a death by signal; the others are passed on.
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}
