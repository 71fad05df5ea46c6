//! What must be on the machine beyond Rust, and how it gets there.
//!
//! Only Debian and its relatives are set up automatically, because only their package names are known here; elsewhere the task ends with
//! the names of what is missing. Everything that is installed is announced in one line with its reason.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process;
use crate::workspace::Workspace;

/// A program that a task needs.
struct Need {
    program: &'static str,
    /// The package that has it, on Debian and Ubuntu.
    package: &'static str,
    why: &'static str,
}

const NEEDS: [Need; 14] = [
    Need { program: "cc", package: "build-essential", why: "builds the C part of the crypto library" },
    Need { program: "ip", package: "iproute2", why: "enters the network namespaces of the rig" },
    Need { program: "tc", package: "iproute2", why: "makes the narrow link of the tests of order" },
    Need { program: "nft", package: "nftables", why: "makes the filters that tests of the LAN by XDP look for" },
    Need { program: "mount", package: "mount", why: "mounts a bpf file system for the tests of pins" },
    Need { program: "setpriv", package: "util-linux", why: "takes capabilities away in the tests of a start" },
    Need { program: "ping", package: "iputils-ping", why: "sends the echoes of the demo and the tests" },
    Need { program: "iperf3", package: "iperf3", why: "makes the TCP transfers of the demo and the tests" },
    Need { program: "tcpdump", package: "tcpdump", why: "captures what is on the wire, as a witness that is not ours" },
    Need {
        program: "openssl",
        package: "openssl",
        why: "judges certificates, revocation lists and key files in the tests",
    },
    Need {
        program: "dig",
        package: "bind9-dnsutils",
        why: "asks for names in the tests, and delv verifies the answers",
    },
    Need { program: "kdig", package: "knot-dnsutils", why: "asks for names in the tests, as a second program" },
    Need { program: "unbound", package: "unbound", why: "verifies names in the tests, as a resolver does" },
    Need { program: "certtool", package: "gnutls-bin", why: "judges certificates in the tests, as a second stack" },
];

/// A program from the crate registry, at the version that the project uses.
pub(crate) struct Tool {
    /// Package and subcommand, as in `cargo-deny`.
    pub(crate) name: &'static str,
    /// The version to install when it is missing.
    pub(crate) version: &'static str,
    /// What for, in half a sentence.
    pub(crate) why: &'static str,
}

/// Checks licences, bans and sources of all dependencies.
pub(crate) const CARGO_DENY: Tool = Tool {
    name: "cargo-deny",
    version: "0.20.2",
    why: "checks licences and sources of all dependencies, takes about 4 minutes",
};
/// Runs the fuzz targets.
pub(crate) const CARGO_FUZZ: Tool = Tool { name: "cargo-fuzz", version: "0.13.2", why: "runs the fuzz targets" };

/// Python packages of outside judges that no Debian has in a version that serves: a QUIC of its own, and an OpenSSL that knows ML-KEM.
const JUDGE_PACKAGES: [&str; 3] = ["aioquic==1.7.2", "cryptography==50.0.2", "pyOpenSSL==26.4.0"];
/// A browser's TLS of 2024, which knows the draft group.
const LEGACY_JUDGE_PACKAGES: [&str; 1] = ["curl_cffi==0.17.0"];
/// The variables by which tests find a Python with packages. A test whose variable is not set is skipped; one whose variable names a Python
/// that has them and cannot use them fails.
const JUDGES: [(&str, &[&str]); 2] =
    [("JUDGE_PYTHON", &JUDGE_PACKAGES), ("LEGACY_JUDGE_PYTHON", &LEGACY_JUDGE_PACKAGES)];

fn judge_directory(workspace: &Workspace) -> PathBuf {
    workspace.target.join("judges")
}

fn python_in(directory: &Path) -> PathBuf {
    directory.join("bin/python")
}

/// The variables of the judges that were installed, and what they are set to.
pub(crate) fn judges(workspace: &Workspace) -> Vec<(&'static str, PathBuf)> {
    let python = python_in(&judge_directory(workspace));
    // What was installed, not what can be imported: a package that is there and broken is no reason to skip its test.
    let script = "import sys, importlib.metadata as m; [m.version(name) for name in sys.argv[1:]]";
    let has = |packages: &[&str]| {
        let names = packages.iter().map(|package| package.split("==").next().unwrap_or_default());
        process::capture(Command::new(&python).args(["-c", script]).args(names)).is_some()
    };
    JUDGES.iter().filter(|(_, packages)| has(packages)).map(|(variable, _)| (*variable, python.clone())).collect()
}

/// Makes a Python environment with the judges' packages in the target directory. The message says which judges are not asked.
pub(crate) fn install_judges(workspace: &Workspace) -> Result<(), String> {
    let directory = judge_directory(workspace);
    let make = || {
        if process::find("python3").is_none() {
            install_packages(&["python3-venv"])?;
        }
        let make = || process::run(Command::new("python3").args(["-m", "venv"]).arg(&directory));
        // Debian has the module in a package of its own.
        make().or_else(|_| install_packages(&["python3-venv"]).and_then(|()| make()))
    };
    let install = |packages: &[&str]| {
        println!("installing into {}: {}", directory.display(), packages.join(" "));
        let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
        process::run(Command::new(python_in(&directory)).args(pip).args(packages))
    };
    provide_judges(&directory, make, install)
}

/// Makes the environment where there is none, and installs into it.
fn provide_judges(
    directory: &Path,
    make: impl FnOnce() -> Result<(), String>,
    install: impl Fn(&[&str]) -> Result<(), String>,
) -> Result<(), String> {
    let is_new = !python_in(directory).exists();
    let made = if is_new { make() } else { Ok(()) };
    if let Err(message) = made.and_then(|()| install(&JUDGE_PACKAGES)) {
        if !is_new {
            return Err(format!("the judges are asked as an earlier run left them: {message}"));
        }
        // Half an environment would be taken for one of an earlier run.
        let _ = fs::remove_dir_all(directory);
        return Err(format!("no Python with the judges' packages: {message}"));
    }
    install(&LEGACY_JUDGE_PACKAGES)
        .map_err(|message| format!("only the draft group has no judge, the others are asked: {message}"))
}

/// Installs what building, demo and tests need.
pub(crate) fn run() -> Result<(), String> {
    if !process::is_root() {
        if process::find("sudo").is_none() {
            return Err("network namespaces, TUN and eBPF need root: run this as root, or install sudo".into());
        }
        println!("not root: what needs root runs through sudo");
    }
    let missing: Vec<&Need> = NEEDS.iter().filter(|need| process::find(need.program).is_none()).collect();
    for need in &missing {
        println!("missing: {} ({}): {}", need.program, need.package, need.why);
    }
    let packages: Vec<&str> = missing.iter().map(|need| need.package).collect();
    install_packages(&packages)
}

/// Installs Debian packages, after one update of the lists.
pub(crate) fn install_packages(packages: &[&str]) -> Result<(), String> {
    if packages.is_empty() {
        return Ok(());
    }
    if !has_apt() {
        return Err(format!(
            "no apt-get here: install these, or what your system calls them, by hand: {}",
            packages.join(" ")
        ));
    }
    println!("installing with apt-get: {}", packages.join(" "));
    // A mirror that cannot be reached may not matter when the lists are fresh; the install says so if it does.
    if let Err(message) = process::run(apt_get().arg("update").arg("-q")) {
        println!("{message}; going on with the package lists as they are");
    }
    process::run(apt_get().args(["install", "-q", "-y", "--no-install-recommends"]).args(packages))
        .map_err(|message| format!("{message}; install by hand: {}", packages.join(" ")))
}

/// Whether packages can be installed at all.
pub(crate) fn has_apt() -> bool {
    process::find("apt-get").is_some()
}

/// Whether the package lists offer this package. When there are no lists yet, as in a fresh container, they are fetched first.
pub(crate) fn apt_offers(package: &str) -> bool {
    if !has_apt() {
        return false;
    }
    if !has_package_lists()
        && let Err(message) = process::run(apt_get().arg("update").arg("-q"))
    {
        println!("{message}; so there are no packages to choose from");
        return false;
    }
    process::capture(Command::new("apt-cache").args(["policy", package]))
        .is_some_and(|policy| policy.contains("Candidate:") && !policy.contains("Candidate: (none)"))
}

fn has_package_lists() -> bool {
    let lists = fs::read_dir("/var/lib/apt/lists");
    lists.into_iter().flatten().flatten().any(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
}

fn apt_get() -> Command {
    // Through env, because sudo may drop variables; iperf3 asks a question otherwise.
    let mut command = process::as_root("env");
    command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get"]);
    command
}

/// Installs a program from the crate registry unless some version of it is there.
pub(crate) fn install_tool(workspace: &Workspace, tool: &Tool) -> Result<(), String> {
    if process::find(tool.name).is_some() {
        return Ok(());
    }
    println!("installing {} {}: {}", tool.name, tool.version, tool.why);
    process::run(process::cargo(&workspace.root).args(["install", "--locked", "--version", tool.version, tool.name]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A failing pip took the working environment of an earlier run away, and whatever was missing, all judges were said to be.
    #[test]
    fn what_cannot_be_installed_takes_nothing_away_and_is_said_of_the_judges_that_miss_it() {
        let directory = std::env::temp_dir().join(format!("weir-judges-{}", std::process::id()));
        let _ = fs::remove_dir_all(&directory);
        let put = || {
            fs::create_dir_all(directory.join("bin"))
                .and_then(|()| fs::write(python_in(&directory), ""))
                .map_err(|error| error.to_string())
        };
        let fails = |_: &[&str]| Err("no network".to_owned());
        let half = || put().and(Err("no venv".to_owned()));
        let is_there = || python_in(&directory).exists();

        let made = provide_judges(&directory, half, |_| Ok(()));
        assert_eq!(
            (made.unwrap_err().as_str(), directory.exists()),
            ("no Python with the judges' packages: no venv", false)
        );
        let made = provide_judges(&directory, put, fails);
        assert_eq!(
            (made.unwrap_err().as_str(), directory.exists()),
            ("no Python with the judges' packages: no network", false)
        );
        let without_legacy =
            |packages: &[&str]| if packages == LEGACY_JUDGE_PACKAGES { fails(packages) } else { Ok(()) };
        let made = provide_judges(&directory, put, without_legacy).unwrap_err();
        assert!(made.starts_with("only the draft group has no judge, the others are asked") && is_there(), "{made}");
        let again = || panic!("it is there already");
        let made = provide_judges(&directory, again, fails).unwrap_err();
        assert!(made.starts_with("the judges are asked as an earlier run left them") && is_there(), "{made}");
        assert_eq!((provide_judges(&directory, again, |_| Ok(())), is_there()), (Ok(()), true));
        fs::remove_dir_all(&directory).unwrap();
    }
}
