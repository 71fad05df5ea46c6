//! `cargo xtask test`: every check in order, each with a headline and its time.
//!
//! The order is cheap before dear, and what explains a failure before what merely suffers from it. It stops at the first failure with one
//! line that says how to run only that step again. What could not be checked is listed at the end as skipped, never as passed.

use std::fs;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use crate::ebpf::Checked;
use crate::workspace::Workspace;
use crate::{ebpf, process, setup, tidy};

/// Cases per property in a full run; proptest's default of 256 is for every day.
const FULL_PROPTEST_CASES: &str = "10000";
/// Seconds per fuzz target in a full run.
const FUZZ_SECS: u32 = 60;

/// How a step ended, other than by failing.
enum Outcome {
    Passed,
    Skipped(String),
}

/// What a step does.
enum Action {
    /// One cargo command line, without the word `cargo`.
    Cargo(&'static str),
    /// The same with more cases per property.
    CargoManyCases(&'static str),
    /// A check of our own, and the command that repeats only that.
    Own(fn(&Workspace) -> Result<Outcome, String>, &'static str),
}

struct Step {
    name: &'static str,
    action: Action,
}

impl Step {
    const fn new(name: &'static str, action: Action) -> Self {
        Self { name, action }
    }
}

/// What every run does.
const STEPS: [Step; 10] = [
    Step::new("set-up", Action::Own(set_up, "cargo xtask test")),
    Step::new("format", Action::Cargo("fmt --all --check")),
    Step::new("tidy", Action::Own(tidy, "cargo xtask tidy")),
    Step::new("clippy", Action::Cargo("clippy --locked --workspace --all-targets -- -D warnings")),
    Step::new("deny", Action::Own(deny, "cargo deny check licenses bans sources")),
    Step::new("ebpf", Action::Own(ebpf_check, "cargo xtask ebpf --check")),
    // The end-to-end tests start these programs.
    Step::new("build", Action::Cargo("build --locked -p weir-dataplane -p weir-controlplane -p weir-bench")),
    Step::new("tests", Action::Cargo("test --locked --workspace --exclude weir-bench")),
    // Apart, because the feature is off by default and one with an advisory. The library alone: the program with it is not the one to test.
    Step::new("legacy kyber", Action::Cargo("test --locked -p weir-controlplane --features legacy-kyber --lib quic::")),
    // These make network namespaces and pin workers to cores: one at a time.
    Step::new("end to end", Action::Cargo("test --locked -p weir-bench -- --test-threads=1")),
];

/// What a full run adds.
const FULL_STEPS: [Step; 9] = [
    Step::new("advisories", Action::Own(advisories, "cargo deny check advisories")),
    // Some of the ignored tests ask them.
    Step::new("judges", Action::Own(judges, "cargo xtask test --full")),
    Step::new("many cases", Action::CargoManyCases("test --locked --workspace --exclude weir-bench")),
    // The draft group is in no default build, so the release tests have no judge of it.
    Step::new(
        "legacy judge",
        Action::Cargo(
            "test --locked -p weir-controlplane --features legacy-kyber --lib quic::tests::legacy -- --include-ignored",
        ),
    ),
    // The fuzz targets are a workspace of their own, which no other step builds. Type checks need no nightly toolchain; all dependencies are built
    // once more, which is why not every run has it.
    Step::new(
        "fuzz check",
        Action::Cargo("check --locked --manifest-path fuzz/Cargo.toml --target-dir target/fuzz --bins"),
    ),
    Step::new("fuzz", Action::Own(fuzz, "cargo +nightly fuzz run TARGET")),
    Step::new(
        "release build",
        Action::Cargo("build --locked --release -p weir-dataplane -p weir-controlplane -p weir-bench"),
    ),
    Step::new(
        "release tests",
        Action::Cargo("test --locked --release --workspace --exclude weir-bench -- --include-ignored"),
    ),
    Step::new(
        "release e2e",
        Action::Cargo("test --locked --release -p weir-bench -- --include-ignored --test-threads=1"),
    ),
];

/// Runs all steps; a failure names the step and how to repeat it.
pub(crate) fn run(workspace: &Workspace, full: bool) -> Result<ExitCode, String> {
    let steps: Vec<&Step> = STEPS.iter().chain(FULL_STEPS.iter().filter(|_| full)).collect();
    let started = Instant::now();
    let mut done: Vec<(&str, Duration, Outcome)> = Vec::new();
    for (i, step) in steps.iter().enumerate() {
        println!("\n==> {} ({} of {})", step.name, i + 1, steps.len());
        let began = Instant::now();
        let outcome = match &step.action {
            Action::Cargo(arguments) => passed(&mut cargo(workspace, arguments)),
            Action::CargoManyCases(arguments) => {
                passed(cargo(workspace, arguments).env("PROPTEST_CASES", FULL_PROPTEST_CASES))
            }
            Action::Own(check, _) => check(workspace),
        };
        let took = began.elapsed();
        match outcome {
            Ok(outcome) => {
                match &outcome {
                    Outcome::Passed => println!("<== {}: passed in {:.1} s", step.name, took.as_secs_f32()),
                    Outcome::Skipped(why) => println!("<== {}: skipped: {why}", step.name),
                }
                done.push((step.name, took, outcome));
            }
            Err(message) => {
                let repeat = repeat(workspace, &step.action);
                let message = format!("{message}\nxtask: step `{}` failed; only that again: {repeat}", step.name);
                return Err(message);
            }
        }
    }
    println!("\nall checks, {:.0} s:", started.elapsed().as_secs_f32());
    for (name, took, outcome) in &done {
        match outcome {
            Outcome::Passed => println!("  {name:14} {:7.1} s", took.as_secs_f32()),
            Outcome::Skipped(why) => println!("  {name:14} skipped: {}", why.lines().next().unwrap_or_default()),
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The command line that repeats only this.
fn repeat(workspace: &Workspace, action: &Action) -> String {
    match action {
        Action::Cargo(arguments) => process::line(&cargo(workspace, arguments)),
        Action::CargoManyCases(arguments) => {
            process::line(cargo(workspace, arguments).env("PROPTEST_CASES", FULL_PROPTEST_CASES))
        }
        Action::Own(_, command) => (*command).to_owned(),
    }
}

fn cargo(workspace: &Workspace, arguments: &str) -> Command {
    let mut command = process::cargo(&workspace.root);
    command.args(arguments.split_whitespace());
    if !process::is_root()
        && arguments.starts_with("test")
        && let Some(host) = host()
    {
        // Building stays the user's; only the finished test programs run as root.
        command.env(format!("CARGO_TARGET_{}_RUNNER", host.to_uppercase().replace('-', "_")), "sudo -E");
    }
    if arguments.contains("--include-ignored") {
        let judges = setup::judges(workspace).into_iter();
        command.envs(judges.filter(|(variable, _)| std::env::var_os(variable).is_none()));
    }
    command
}

/// Packages come over the network; without them their judges were not asked.
fn judges(workspace: &Workspace) -> Result<Outcome, String> {
    Ok(match setup::install_judges(workspace) {
        Ok(()) => Outcome::Passed,
        Err(message) => Outcome::Skipped(message),
    })
}

/// The host's target triple.
fn host() -> Option<String> {
    let version = process::capture(Command::new("rustc").arg("-vV"))?;
    version.lines().find_map(|line| line.strip_prefix("host: ")).map(str::to_owned)
}

fn passed(command: &mut Command) -> Result<Outcome, String> {
    process::run(command).map(|()| Outcome::Passed)
}

fn set_up(_: &Workspace) -> Result<Outcome, String> {
    setup::run().map(|()| Outcome::Passed)
}

fn tidy(workspace: &Workspace) -> Result<Outcome, String> {
    tidy::check(workspace).map(|()| Outcome::Passed)
}

fn ebpf_check(workspace: &Workspace) -> Result<Outcome, String> {
    Ok(match ebpf::check(workspace)? {
        Checked::Same => Outcome::Passed,
        Checked::Skipped(why) => Outcome::Skipped(why),
    })
}

fn deny(workspace: &Workspace) -> Result<Outcome, String> {
    setup::install_tool(workspace, &setup::CARGO_DENY)?;
    passed(&mut cargo(workspace, "deny --locked check licenses bans sources"))
}

/// The list of known vulnerabilities comes over the network; without it nothing was checked.
fn advisories(workspace: &Workspace) -> Result<Outcome, String> {
    setup::install_tool(workspace, &setup::CARGO_DENY)?;
    if let Err(message) = process::run(&mut cargo(workspace, "deny --locked fetch db")) {
        return Ok(Outcome::Skipped(format!("the advisory database could not be fetched: {message}")));
    }
    passed(&mut cargo(workspace, "deny --locked check --disable-fetch advisories"))
}

/// Every target in `fuzz/targets`, a minute each.
fn fuzz(workspace: &Workspace) -> Result<Outcome, String> {
    let targets = fs::read_dir(workspace.root.join("fuzz/targets"));
    let mut targets: Vec<String> = targets
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".rs").map(str::to_owned))
        .collect();
    targets.sort();
    if targets.is_empty() {
        return Ok(Outcome::Skipped("there are no fuzz targets".into()));
    }
    if process::capture(Command::new("rustup").args(["which", "--toolchain", "nightly", "cargo"])).is_none() {
        return Ok(Outcome::Skipped("cargo-fuzz needs a nightly toolchain and there is none".into()));
    }
    setup::install_tool(workspace, &setup::CARGO_FUZZ)?;
    for target in targets {
        // Through rustup, because a cargo that was started by its path does not understand `+nightly`.
        let mut run = Command::new("rustup");
        process::forget_own_build(&mut run);
        run.current_dir(&workspace.root).args(["run", "nightly", "cargo", "fuzz", "run", &target, "--"]);
        process::run(run.arg(format!("-max_total_time={FUZZ_SECS}")))?;
    }
    Ok(Outcome::Passed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_cargo_step_names_a_command_that_can_be_typed() {
        let line = repeat(&Workspace::locate(), &Action::Cargo("fmt --all --check"));
        assert_eq!(line, "cargo fmt --all --check");
    }

    #[test]
    fn every_step_has_a_name_of_its_own() {
        let mut names: Vec<_> = STEPS.iter().chain(&FULL_STEPS).map(|step| step.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), STEPS.len() + FULL_STEPS.len());
    }
}
