//! `cargo xtask tune`: builds `weir-dataplane` and runs its `tune`, which shows how this host is set up and what would be better.

use std::ffi::OsString;
use std::process::ExitCode;

use crate::process;
use crate::workspace::Workspace;

/// Builds in release mode and runs `weir-dataplane tune` with `args`.
pub(crate) fn run(workspace: &Workspace, args: &[OsString]) -> Result<ExitCode, String> {
    let mut build = process::cargo(&workspace.root);
    process::run(build.args(["build", "--release", "--locked", "-p", "weir-dataplane"]))?;
    let mut tune = process::as_root(workspace.target.join("release/weir-dataplane"));
    tune.arg("tune").args(args);
    println!("$ {}", process::line(&tune));
    println!("Below: each setting, its value now, and the better one if there is one. Only --apply changes anything.");
    let status = tune.status().map_err(|e| format!("cannot start weir-dataplane: {e}"))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
