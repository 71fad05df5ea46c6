//! `cargo xtask ebpf`: builds the eBPF objects that the repository carries, and checks that they are what their source says.
//!
//! The objects are committed, so that nobody needs an eBPF toolchain to build or run Weir. What makes that honest is `--check`: with the
//! recorded toolchain the same source gives the same bytes on every machine, whatever the paths of checkout, cargo home and toolchain are.
//!
//! ```text
//! ebpf/src/main.rs  ──► weir            ──► strip ──► dataplane/bpf/weir.bpf.o
//! ebpf/src/bench.rs ──► weir-bench-bpf  ──► strip ──► bench/bpf/weir-bench.bpf.o
//!                       (target/bpf)                  ebpf/TOOLCHAIN: what built them
//! ```

mod toolchain;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use self::toolchain::Toolchain;
use crate::process;
use crate::workspace::Workspace;

/// The long help of the task.
pub(crate) const HELP: &str = "\
Builds the eBPF objects that the repository carries.

Two toolchains are supported:

 1. Debian's, the recorded recipe: packages rustc-web, cargo-web and rust-web-src (Rust 1.96, LLVM 22), llvm-22-dev, libpolly-22-dev,
    libzstd-dev, zlib1g-dev, libxml2-dev, and bpf-linker 0.13.0 built with
    LLVM_PREFIX=/usr/lib/llvm-22 cargo install bpf-linker --version 0.13.0 --locked --no-default-features --features llvm-22.
    Where these packages can be had and are missing, they are installed.
 2. rustup's: toolchain nightly with the component rust-src, and bpf-linker on PATH.

ebpf/TOOLCHAIN names what built the committed objects. With the same, --check compares byte for byte and fails on a difference; with
another it compares too, but a difference is only reported.";

/// What LLVM and rustc call the machine that the programs are for.
const BPF_TARGET: &str = "bpfel-unknown-none";
/// What the release profile is, whatever the workspace says.
const PROFILE: [(&str, &str); 9] = [
    ("OPT_LEVEL", "3"),
    ("LTO", "true"),
    ("CODEGEN_UNITS", "1"),
    ("PANIC", "abort"),
    ("DEBUG", "2"),
    ("STRIP", "none"),
    ("DEBUG_ASSERTIONS", "false"),
    ("OVERFLOW_CHECKS", "false"),
    ("INCREMENTAL", "false"),
];
/// Names the toolchain of the committed objects.
const RECORD: &str = "ebpf/TOOLCHAIN";
/// First lines of that file.
const RECORD_HEAD: &str = "\
# What built dataplane/bpf/weir.bpf.o and bench/bpf/weir-bench.bpf.o. Written by `cargo xtask ebpf`; `cargo xtask ebpf --check` compares
# byte for byte under the same toolchain.
";

/// One object: the binary of crate weir-ebpf, and where it is kept.
struct Object {
    binary: &'static str,
    kept: &'static str,
    /// What LLVM is told besides.
    link_args: &'static [&'static str],
}

/// Machines that read unaligned words let BPF programs do so too. Without the feature LLVM reads a packet's words byte by byte, since nothing
/// says how they are aligned, and `wan` takes half as long again. The bench's programs copy packets to their stack, where the verifier
/// allows no unaligned word.
const OBJECTS: [Object; 2] = [
    Object {
        binary: "weir-bpf",
        kept: "dataplane/bpf/weir.bpf.o",
        link_args: &["-Clink-arg=--cpu-features=+allows-misaligned-mem-access"],
    },
    Object { binary: "weir-bench-bpf", kept: "bench/bpf/weir-bench.bpf.o", link_args: &[] },
];

/// What came of comparing the objects.
pub(crate) enum Checked {
    /// Every object is what its source gives.
    Same,
    /// The comparison was not made, or says nothing; the sentence says why.
    Skipped(String),
}

/// The task: builds and keeps, or builds and compares.
pub(crate) fn run(workspace: &Workspace, check_only: bool) -> Result<ExitCode, String> {
    if check_only {
        if let Checked::Skipped(why) = check(workspace)? {
            println!("skipped: {why}");
        }
    } else {
        keep(workspace)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn keep(workspace: &Workspace) -> Result<(), String> {
    let toolchain = toolchain::obtain(workspace)?.ok_or_else(|| toolchain::NONE.to_string())?;
    for (object, bytes) in OBJECTS.iter().zip(build(workspace, &toolchain)?) {
        let path = workspace.root.join(object.kept);
        let dir = path.parent().unwrap_or(&workspace.root);
        fs::create_dir_all(dir).map_err(|e| format!("cannot create {}: {e}", dir.display()))?;
        fs::write(&path, &bytes).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
        println!("{}: {} bytes", object.kept, bytes.len());
    }
    let record = workspace.root.join(RECORD);
    fs::write(&record, format!("{RECORD_HEAD}{}", toolchain.description))
        .map_err(|e| format!("cannot write {}: {e}", record.display()))
}

/// Builds aside and compares with what is committed.
pub(crate) fn check(workspace: &Workspace) -> Result<Checked, String> {
    let kept: Vec<Vec<u8>> = OBJECTS
        .iter()
        .map(|object| {
            let path = workspace.root.join(object.kept);
            fs::read(&path).map_err(|e| format!("cannot read {}: {e}; `cargo xtask ebpf` makes it", path.display()))
        })
        .collect::<Result<_, _>>()?;
    let record = workspace.root.join(RECORD);
    let record = fs::read_to_string(&record)
        .map_err(|e| format!("cannot read {}: {e}; `cargo xtask ebpf` makes it", record.display()))?;
    let Some(toolchain) = toolchain::obtain(workspace)? else {
        return Ok(Checked::Skipped(format!("the committed eBPF objects were not compared: {}", toolchain::NONE)));
    };
    let recorded = record.strip_prefix(RECORD_HEAD).unwrap_or(&record) == toolchain.description;

    let mut differences = Vec::new();
    for ((object, kept), built) in OBJECTS.iter().zip(&kept).zip(build(workspace, &toolchain)?) {
        match first_difference(kept, &built) {
            None => println!("{}: the same {} bytes", object.kept, built.len()),
            Some(at) => {
                differences.push(object.kept);
                println!(
                    "{}: differs from byte {at}: {} bytes committed, {} built",
                    object.kept,
                    kept.len(),
                    built.len()
                );
            }
        }
    }
    match (differences.is_empty(), recorded) {
        (true, _) => Ok(Checked::Same),
        (false, true) => {
            Err(format!("not what the source gives: {}; `cargo xtask ebpf` rebuilds", differences.join(", ")))
        }
        (false, false) => Ok(Checked::Skipped(format!(
            "the objects differ, but this is not the recorded toolchain, so that proves nothing\nrecorded:\n{record}here:\n{}",
            toolchain.description
        ))),
    }
}

fn first_difference(a: &[u8], b: &[u8]) -> Option<usize> {
    let common = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    (common < a.len().max(b.len())).then_some(common)
}

/// Builds all objects and hands their bytes over, in the order of [`OBJECTS`].
fn build(workspace: &Workspace, toolchain: &Toolchain) -> Result<Vec<Vec<u8>>, String> {
    // The registry's source directories get their names by the first download.
    let mut fetch = toolchain.cargo(&workspace.root);
    process::run(fetch.args(["fetch", "--quiet", "--locked", "--target", BPF_TARGET]))?;

    let remapped = remapped_paths(&workspace.root, toolchain);
    let target_dir = workspace.target.join("bpf");
    for object in &OBJECTS {
        let mut cargo = toolchain.cargo(&workspace.root);
        cargo.args([
            "rustc",
            "-Z",
            "build-std=core",
            "--release",
            "--locked",
            "-p",
            "weir-ebpf",
            "--bin",
            object.binary,
        ]);
        cargo.args(["--target", BPF_TARGET, "--target-dir"]).arg(&target_dir);
        cargo.env("CARGO_ENCODED_RUSTFLAGS", rustflags(&remapped));
        // clippy never sees these programs, because they do not compile for the host; so the compiler's own warnings count here.
        cargo.arg("-Zwarnings").env("CARGO_BUILD_WARNINGS", "deny");
        // Everything that shapes the object is said here, so that a change to the release profile of the host binaries does not reach it.
        for (key, value) in PROFILE {
            cargo.env(format!("CARGO_PROFILE_RELEASE_{key}"), value);
        }
        cargo.arg("--").args(object.link_args);
        println!(
            "$ cargo rustc -Z build-std=core --release -p weir-ebpf --bin {} --target {BPF_TARGET}   ({})",
            object.binary, toolchain.name
        );
        let status = cargo.status().map_err(|e| format!("cannot start {}: {e}", process::line(&cargo)))?;
        if !status.success() {
            return Err(format!("the eBPF build failed: {}", process::describe(status)));
        }
    }

    let private: Vec<&Path> = remapped.iter().map(|(from, _)| from.as_path()).collect();
    OBJECTS
        .iter()
        .map(|object| {
            let built = target_dir.join(BPF_TARGET).join("release").join(object.binary);
            let stripped = target_dir.join(format!("{}.o", object.binary));
            strip(toolchain, &built, &stripped)?;
            let bytes = fs::read(&stripped).map_err(|e| format!("cannot read {}: {e}", stripped.display()))?;
            match leaked_path(&bytes, &private) {
                Some(path) => {
                    Err(format!("{}: the object names {}, a path of this machine", object.binary, path.display()))
                }
                None => Ok(bytes),
            }
        })
        .collect()
}

/// What each directory of this machine is called inside the object. The longest names come last, because the last match wins.
fn remapped_paths(root: &Path, toolchain: &Toolchain) -> Vec<(PathBuf, &'static str)> {
    // "." lets the linker find our own source lines, which the verifier then shows beside its complaints.
    let mut paths = vec![(root.to_path_buf(), ".")];
    if let Ok(real) = root.canonicalize() {
        paths.push((real, "."));
    }
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let cargo_home = std::env::var_os("CARGO_HOME").map(PathBuf::from).or(home.map(|home| home.join(".cargo")));
    let sources = cargo_home.map(|home| home.join("registry/src"));
    for registry in sources.iter().flat_map(fs::read_dir).flatten().flatten() {
        paths.push((registry.path(), "registry"));
    }
    paths.extend(toolchain.sources.iter().map(|dir| (dir.clone(), "rust")));
    paths.sort_by_key(|(from, _)| (from.as_os_str().len(), from.clone()));
    paths.dedup();
    paths
}

/// The flags, in the separated form that allows spaces in paths.
fn rustflags(remapped: &[(PathBuf, &'static str)]) -> OsString {
    let mut flags: OsString = ["-Clinker=bpf-linker", "-Clink-arg=--btf", "-Cdebuginfo=2"].join("\x1f").into();
    for (from, to) in remapped {
        flags.push("\x1f--remap-path-prefix=");
        flags.push(from);
        flags.push("=");
        flags.push(to);
    }
    flags
}

/// Drops the DWARF sections, which only served to make BTF and would be most of the object.
fn strip(toolchain: &Toolchain, from: &Path, to: &Path) -> Result<(), String> {
    match &toolchain.strip {
        Some(program) => {
            let mut strip = Command::new(program);
            strip.arg("--strip-debug").arg(from).arg("-o").arg(to);
            let status = strip.status().map_err(|e| format!("cannot start {}: {e}", program.display()))?;
            if status.success() { Ok(()) } else { Err(format!("`{}` failed", process::line(&strip))) }
        }
        None => {
            println!("no llvm-strip: {} keeps its DWARF sections", to.display());
            fs::copy(from, to).map(drop).map_err(|e| format!("cannot copy {}: {e}", from.display()))
        }
    }
}

/// The first of the private directories that the object names, if any.
fn leaked_path<'a>(object: &[u8], private: &[&'a Path]) -> Option<&'a Path> {
    private.iter().copied().find(|path| {
        let name = path.as_os_str().as_encoded_bytes();
        name.len() > 1 && object.windows(name.len()).any(|window| window == name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_difference_is_found_at_either_end() {
        assert_eq!(first_difference(b"abc", b"abc"), None);
        assert_eq!(first_difference(b"abc", b"xbc"), Some(0));
        assert_eq!(first_difference(b"abc", b"abx"), Some(2));
        assert_eq!(first_difference(b"abc", b"abcd"), Some(3));
        assert_eq!(first_difference(b"abcd", b"abc"), Some(3));
    }

    #[test]
    fn path_of_the_machine_in_an_object_is_found() {
        let object = b"\0rust/library/core\0/srv/checkout/ebpf/src/main.rs\0";
        assert_eq!(
            leaked_path(object, &[Path::new("/srv/other"), Path::new("/srv/checkout")]),
            Some(Path::new("/srv/checkout"))
        );
        assert_eq!(leaked_path(object, &[Path::new("/srv/other"), Path::new("/")]), None);
    }

    #[test]
    fn flags_carry_paths_with_spaces_and_the_longest_last() {
        let flags = rustflags(&[("/a b".into(), "."), ("/a b/c".into(), "rust")]);
        let flags: Vec<_> = flags.to_str().unwrap().split('\x1f').map(str::to_owned).collect();
        assert_eq!(flags[3..], ["--remap-path-prefix=/a b=.", "--remap-path-prefix=/a b/c=rust"]);
    }
}
