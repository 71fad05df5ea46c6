//! The two toolchains that can build for `bpfel-unknown-none`, and how to come by one.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::workspace::Workspace;
use crate::{process, setup};

/// Said when there is no toolchain and no way to get one.
pub(crate) const NONE: &str = "no eBPF toolchain here and no Debian packages for one; with rustup: `rustup toolchain install nightly --component \
                        rust-src` and `cargo install bpf-linker`";

/// The packages of the recorded recipe: Rust with the sources of `core`, LLVM of the same version, and what its libraries link to.
const DEBIAN_PACKAGES: [&str; 9] = [
    "rustc-web",
    "cargo-web",
    "rust-web-src",
    "llvm-22",
    "llvm-22-dev",
    "libpolly-22-dev",
    "libzstd-dev",
    "zlib1g-dev",
    "libxml2-dev",
];
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";
/// LLVM of the recorded recipe; rustc, linker and strip must agree on its major version.
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";
const LLVM_MAJOR: &str = "22.";
/// Version of the linker in the recorded recipe.
const BPF_LINKER_VERSION: &str = "0.13.0";

/// Variables by which a user's environment would change what is built, or which compiler runs.
const FOREIGN_VARIABLES: [&str; 9] = [
    "CARGO",
    "LD_LIBRARY_PATH",
    "RUSTC",
    "RUSTDOC",
    "RUSTFLAGS",
    "RUSTUP_TOOLCHAIN",
    "CARGO_BUILD_TARGET",
    "CARGO_INCREMENTAL",
    "CARGO_TARGET_DIR",
];

/// A toolchain that is installed.
pub(crate) struct Toolchain {
    /// For messages.
    pub(crate) name: &'static str,
    /// What is recorded: versions, one a line.
    pub(crate) description: String,
    /// Directories with the sources of `core`, by every name that the compiler may use for them.
    pub(crate) sources: Vec<PathBuf>,
    /// The program that drops DWARF sections, if there is one.
    pub(crate) strip: Option<PathBuf>,
    rustc: PathBuf,
    cargo: PathBuf,
}

impl Toolchain {
    /// Its cargo, in `dir`, with unstable options allowed and the user's environment kept out.
    pub(crate) fn cargo(&self, dir: &Path) -> Command {
        let mut command = Command::new(&self.cargo);
        process::forget_own_build(&mut command);
        for variable in FOREIGN_VARIABLES {
            command.env_remove(variable);
        }
        command.current_dir(dir).env("RUSTC_BOOTSTRAP", "1").env("RUSTC", &self.rustc).env("RUSTC_WRAPPER", "");
        command.env("RUSTC_WORKSPACE_WRAPPER", "");
        command
    }
}

/// A toolchain that is there, or one that could be installed from packages; `None` when neither.
pub(crate) fn obtain(workspace: &Workspace) -> Result<Option<Toolchain>, String> {
    if let Some(toolchain) = debian() {
        return Ok(Some(toolchain));
    }
    if let Some(toolchain) = nightly() {
        return Ok(Some(toolchain));
    }
    if !DEBIAN_PACKAGES.iter().all(|package| setup::apt_offers(package)) {
        return Ok(None);
    }
    println!("missing: the eBPF toolchain, which rebuilds the committed objects to compare them");
    setup::install_packages(&DEBIAN_PACKAGES)?;
    if process::find("bpf-linker").is_none() {
        println!("installing bpf-linker {BPF_LINKER_VERSION}: links eBPF objects, takes about a minute");
        let mut install = process::cargo(&workspace.root);
        install.env("LLVM_PREFIX", LLVM_PREFIX).args([
            "install",
            "bpf-linker",
            "--version",
            BPF_LINKER_VERSION,
            "--locked",
        ]);
        process::run(install.args(["--no-default-features", "--features", "llvm-22"]))?;
    }
    debian().map(Some).ok_or_else(|| "the eBPF toolchain is installed but does not answer".into())
}

/// The recorded recipe, if all of it is here.
fn debian() -> Option<Toolchain> {
    let rustc = PathBuf::from(DEBIAN_RUSTC);
    let version = process::capture(clean(&rustc).arg("-vV"))?;
    let llvm = process::capture(Command::new(format!("{LLVM_PREFIX}/bin/llvm-config")).arg("--version"))?;
    if !field(&version, "LLVM version: ")?.starts_with(LLVM_MAJOR) || !Path::new(DEBIAN_CARGO).is_file() {
        return None;
    }
    let linker = format!("{} with LLVM {}", linker_version()?, llvm.trim());
    let strip = PathBuf::from(LLVM_PREFIX).join("bin/llvm-strip");
    toolchain("Debian's Rust", rustc, DEBIAN_CARGO.into(), &version, &linker, strip.is_file().then_some(strip))
}

/// rustup's nightly, if it has the sources of `core` and there is a linker.
fn nightly() -> Option<Toolchain> {
    let which = |program| {
        let path = process::capture(Command::new("rustup").args(["which", "--toolchain", "nightly", program]))?;
        Some(PathBuf::from(path.trim()))
    };
    let (rustc, cargo) = (which("rustc")?, which("cargo")?);
    let version = process::capture(clean(&rustc).arg("-vV"))?;
    toolchain("rustup's nightly", rustc, cargo, &version, &linker_version()?, process::find("llvm-strip"))
}

fn toolchain(
    name: &'static str,
    rustc: PathBuf,
    cargo: PathBuf,
    version: &str,
    linker: &str,
    strip: Option<PathBuf>,
) -> Option<Toolchain> {
    let sysroot = process::capture(clean(&rustc).args(["--print", "sysroot"]))?;
    let linked = Path::new(sysroot.trim()).join("lib/rustlib/src/rust");
    if !linked.join("library/core/Cargo.toml").is_file() {
        return None;
    }
    // Debian keeps the sources elsewhere, behind a link; both names turn up in debug information.
    let real = linked.join("library").canonicalize().ok()?.parent()?.to_path_buf();
    Some(Toolchain {
        name,
        description: description(version, linker)?,
        sources: vec![linked, real],
        strip,
        rustc,
        cargo,
    })
}

/// The lines of the record, from `rustc -vV` and the linker's version.
fn description(rustc: &str, linker: &str) -> Option<String> {
    let (first, host, llvm) = (rustc.lines().next()?, field(rustc, "host: ")?, field(rustc, "LLVM version: ")?);
    Some(format!("{first} with LLVM {llvm}\n{linker}\nhost {host}\n"))
}

fn linker_version() -> Option<String> {
    Some(process::capture(Command::new(process::find("bpf-linker")?).arg("--version"))?.trim().to_owned())
}

fn clean(rustc: &Path) -> Command {
    let mut command = Command::new(rustc);
    for variable in FOREIGN_VARIABLES {
        command.env_remove(variable);
    }
    command
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_names_compiler_linker_and_host() {
        let rustc =
            "rustc 1.96.0 (abc 2026-05-25)\nbinary: rustc\nhost: x86_64-unknown-linux-gnu\nLLVM version: 22.1.8\n";
        assert_eq!(
            description(rustc, "bpf-linker 0.13.0").as_deref(),
            Some("rustc 1.96.0 (abc 2026-05-25) with LLVM 22.1.8\nbpf-linker 0.13.0\nhost x86_64-unknown-linux-gnu\n")
        );
        assert_eq!(description("rustc 1.96.0\n", "bpf-linker 0.13.0"), None);
    }
}
