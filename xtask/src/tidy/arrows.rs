//! Who may use whom.
//!
//! ```text
//!  weir-abi ◄── weir-ebpf                  inside the packet plane, each knows only what stands left of it:
//!     ▲  ▲
//!     │  └───── weir-dataplane ◄─┐ api,     api ◄── engine ◄── io ◄── config, worker, plane, the binary
//!     │            ▲             │ config::file
//!     │            │             │ io::parent
//!     │            │             │ io::netlink
//!  weir-bench ─────┴────▶ weir-controlplane: the second in its own `config`, the third where it starts, the last in its shell
//!  xtask: nothing of ours
//!
//!  inside the control plane, what decides knows nothing of what acts:
//!
//!  codec, gcra, random, time, timer ◄── pki ◄── policy, audit, issuer, membership, quic, ceremony, contact, dht ◄── dns, mail, node
//!  └───────────────────────── no socket, file, thread, environment, clock, runtime ─────────────────────────┘  ▲
//!                                                                              shell, supervisor, cli, the binary
//! ```

use super::Finding;
use super::manifest::Manifest;
use super::source::{Path, Source};

const RULE: &str = "arrows";

/// Each crate of ours and those of ours that it may depend on.
const CRATES: [(&str, &[&str]); 6] = [
    ("weir-abi", &[]),
    ("weir-ebpf", &["weir-abi"]),
    ("weir-dataplane", &["weir-abi"]),
    ("weir-controlplane", &["weir-dataplane"]),
    ("weir-bench", &["weir-abi", "weir-dataplane", "weir-controlplane"]),
    ("xtask", &[]),
];

/// What the control plane may name of the packet plane: what the two say to each other, how both read a file, how both end with their
/// supervisor, and how both hear of changes of the host.
const SHARED: [&str; 4] = [
    "weir_dataplane::api",
    "weir_dataplane::config::file",
    "weir_dataplane::io::parent",
    "weir_dataplane::io::netlink",
];

/// Modules at the top of the packet plane, and those beside them that they must not know.
const LAYERS: [(&str, &[&str]); 3] = [
    ("api", &["engine", "io", "config", "worker", "plane"]),
    ("engine", &["io", "config", "worker", "plane"]),
    ("io", &["config", "worker", "plane"]),
];

/// What the engine must not name: it gets packets and time as arguments.
const OUTSIDE_WORLD: [&str; 21] = [
    "std::env",
    "std::fs",
    "std::net::TcpListener",
    "std::net::TcpStream",
    "std::net::ToSocketAddrs",
    "std::net::UdpSocket",
    "std::os",
    "std::process",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime",
    "std::time::UNIX_EPOCH",
    "aya",
    "caps",
    "core_affinity",
    "io_uring",
    "libc",
    "netlink_packet_core",
    "netlink_packet_route",
    "netlink_sys",
    "tokio",
];

/// Modules at the top of the control plane that decide and do not act.
const CORES: [&str; 17] = [
    "audit",
    "ceremony",
    "codec",
    "contact",
    "dht",
    "dns",
    "gcra",
    "issuer",
    "mail",
    "membership",
    "node",
    "pki",
    "policy",
    "quic",
    "random",
    "time",
    "timer",
];
/// Modules beside the cores that act, or know what acts.
const SHELLS: [&str; 5] = ["cli", "config", "shell", "state_directory", "supervisor"];
/// What a core of the control plane must not name. A clock's types are no clock: moments are arguments, and rustls wants some in the
/// system's type.
const ACTING: [&str; 20] = [
    "std::env",
    "std::fs",
    "std::net::TcpListener",
    "std::net::TcpStream",
    "std::net::ToSocketAddrs",
    "std::net::UdpSocket",
    "std::os",
    "std::process",
    "std::thread",
    "axum",
    "hyper",
    "hyper_util",
    "quinn_udp",
    "redb",
    "rpassword",
    "rustix",
    "tokio",
    "weir_dataplane::api::connection",
    "weir_dataplane::config",
    "weir_dataplane::io",
];
/// Types of clocks, and what reads them.
const CLOCKS: [&str; 2] = ["Instant", "SystemTime"];

/// Checks the dependencies of every crate of ours on another.
pub(crate) fn crates(manifests: &[Manifest], findings: &mut Vec<Finding>) {
    for manifest in manifests {
        let Some((_, allowed)) = CRATES.iter().find(|(name, _)| *name == manifest.package) else { continue };
        for dependency in &manifest.dependencies {
            let ours = CRATES.iter().any(|(name, _)| *name == dependency.name);
            if ours && !allowed.contains(&dependency.name.as_str()) {
                let remedy = format!("{} must not depend on {}", manifest.package, dependency.name);
                findings.push(Finding::new(&manifest.path, dependency.line, RULE, remedy));
            }
        }
    }
}

/// Checks the paths that one file names.
pub(crate) fn modules(source: &Source, findings: &mut Vec<Finding>) {
    let mut complain =
        |path: &Path<'_>, remedy: String| findings.push(Finding::new(&source.path, path.line, RULE, remedy));
    let module = module_of(&source.path);
    let layer = module.as_ref().and_then(|module| LAYERS.iter().find(|(name, _)| module.first() == Some(name)));

    for path in source.paths() {
        if let Some(remedy) = core_that_acts(source, &path) {
            complain(&path, remedy);
        }
        if source.path.starts_with("controlplane/")
            && path.is_within("weir_dataplane")
            && path.parts.len() > 1
            && !SHARED.iter().any(|shared| path.is_within(shared))
        {
            let shared = SHARED.join(" and ");
            complain(&path, format!("the control plane knows only {shared}, not {}", path.parts.join("::")));
        }
        let (Some(module), Some((name, hidden))) = (&module, layer) else { continue };
        if let Some(used) = from_crate_root(&path, module.len() + usize::from(source.is_test(path.line)))
            && hidden.contains(&used)
        {
            complain(
                &path,
                format!("dataplane's `{name}` must not know `{used}`: hand it in as an argument, or move this up"),
            );
        }
        if *name == "engine"
            && !source.is_test(path.line)
            && let Some(outside) = OUTSIDE_WORLD.iter().find(|outside| path.is_within(outside))
        {
            complain(
                &path,
                format!("the engine does no I/O and has no clock: take what you need from {outside} as an argument"),
            );
        }
    }
}

/// What is wrong with a path that a core of the control plane names.
fn core_that_acts(source: &Source, path: &Path<'_>) -> Option<String> {
    let inside = source.path.strip_prefix("controlplane/src/")?.strip_suffix(".rs")?;
    let core = CORES.iter().find(|core| inside.split('/').next() == Some(core))?;
    if source.is_test(path.line) {
        return None;
    }
    let named = path.parts.join("::");
    let reads_clock = path.parts.windows(2).any(|pair| CLOCKS.contains(&pair[0]) && pair[1] == "now");
    if reads_clock || path.parts == ["elapsed"] {
        return Some(format!(
            "`{core}` of the control plane has no clock, and {named} reads one: take the moment as an argument"
        ));
    }
    if ACTING.iter().any(|acting| path.is_within(acting)) {
        return Some(format!(
            "`{core}` of the control plane does no I/O: leave {named} to the shell and take what comes of it"
        ));
    }
    let used = from_crate_root(path, inside.split('/').count())?;
    // A TLS library asks its key exchange for bytes and hands none in.
    let draws = path.parts.contains(&"SystemRandom") && !matches!(*core, "random" | "quic");
    if SHELLS.contains(&used) || draws {
        return Some(format!(
            "`{core}` of the control plane decides and must not know {named}: hand it in as an argument"
        ));
    }
    None
}

/// The module that a file of the packet plane holds, as names from the crate's root; `None` for the root itself and for other files.
fn module_of(path: &str) -> Option<Vec<&str>> {
    let inside = path.strip_prefix("dataplane/src/")?.strip_suffix(".rs")?;
    let inside = inside.strip_suffix("/mod").unwrap_or(inside);
    (!matches!(inside, "lib" | "main")).then(|| inside.split('/').collect())
}

/// The top module that a path reaches, when it is written from the crate's root or climbs there from `depth` modules below.
fn from_crate_root<'a>(path: &Path<'a>, depth: usize) -> Option<&'a str> {
    match path.parts[0] {
        "crate" => path.parts.get(1).copied(),
        "super" => {
            let climbs = path.parts.iter().take_while(|part| **part == "super").count();
            (climbs >= depth).then(|| path.parts.get(climbs).copied()).flatten()
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::lines_found;
    use super::*;

    fn found(path: &str, text: &str) -> Vec<usize> {
        lines_found(modules, path, text)
    }

    fn crate_findings(package: &str, dependency: &str) -> usize {
        let text = format!("[package]\nname = \"{package}\"\n[dev-dependencies]\n{dependency}.workspace = true\n");
        let mut findings = Vec::new();
        crates(&[Manifest::parse("x/Cargo.toml", &text)], &mut findings);
        findings.len()
    }

    #[test]
    fn crates_depend_downwards_only() {
        assert_eq!(crate_findings("weir-dataplane", "weir-abi"), 0);
        assert_eq!(crate_findings("weir-dataplane", "libc"), 0);
        assert_eq!(crate_findings("weir-dataplane", "weir-controlplane"), 1);
        assert_eq!(crate_findings("weir-abi", "weir-dataplane"), 1);
        assert_eq!(crate_findings("weir-ebpf", "weir-dataplane"), 1);
        assert_eq!(crate_findings("weir-controlplane", "weir-bench"), 1);
        assert_eq!(crate_findings("weir-controlplane", "weir-abi"), 1);
        assert_eq!(crate_findings("xtask", "weir-abi"), 1);
    }

    #[test]
    fn control_plane_knows_only_the_api_and_how_files_are_read() {
        assert!(found("controlplane/src/node.rs", "use weir_dataplane::api::{Event, message::Install};").is_empty());
        assert!(
            found("controlplane/src/config.rs", "use weir_dataplane::config::file::{self, value::prefix};").is_empty()
        );
        for more in ["config::Config", "config", "config::read", "io"] {
            assert_eq!(found("controlplane/src/config.rs", &format!("use weir_dataplane::{more};")), [1], "{more}");
        }
        assert_eq!(found("controlplane/src/node.rs", "use weir_dataplane::{api,\n engine::time};"), [2]);
        assert!(found("bench/src/rig.rs", "use weir_dataplane::engine::time;").is_empty());
    }

    #[test]
    fn layers_of_the_packet_plane_know_only_those_before() {
        assert!(
            found("dataplane/src/engine/lane.rs", "use crate::api::message; use super::keys; use super::super::api;")
                .is_empty()
        );
        assert_eq!(found("dataplane/src/engine/lane.rs", "use crate::{api,\nio::socket};"), [2]);
        assert_eq!(found("dataplane/src/engine/lane.rs", "use super::super::io;"), [1]);
        assert_eq!(found("dataplane/src/engine.rs", "use super::worker;"), [1]);
        assert_eq!(found("dataplane/src/api/codec.rs", "fn f(x: crate::engine::time::Time) {}"), [1]);
        assert!(found("dataplane/src/io/udp.rs", "use crate::engine::port;").is_empty());
        assert_eq!(found("dataplane/src/io/udp.rs", "use crate::plane;"), [1]);
        assert!(found("dataplane/src/plane.rs", "use crate::{api, engine, io};").is_empty());
    }

    #[test]
    fn test_module_is_one_deeper() {
        assert!(found("dataplane/src/engine.rs", "#[cfg(test)]\nmod tests {\nuse super::io;\n}").is_empty());
        assert_eq!(found("dataplane/src/engine.rs", "#[cfg(test)]\nmod tests {\nuse super::super::io;\n}"), [3]);
    }

    #[test]
    fn cores_of_the_control_plane_have_no_clock_and_do_no_io() {
        let good = "use std::net::{IpAddr, SocketAddr}; use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH}; \
                    use crate::random::Random; use crate::store::Store; use super::calls; fn f(now: Instant) {} // tokio::spawn";
        for file in ["node/calls.rs", "pki.rs", "issuer/join.rs", "quic/driver.rs", "timer.rs", "audit.rs"] {
            assert!(found(&format!("controlplane/src/{file}"), good).is_empty(), "{file}");
        }
        for bad in [
            "std::fs::read(x)",
            "use std::{thread, sync};",
            "let now = Instant::now();",
            "std::time::SystemTime::now()",
            "since.elapsed()",
            "use std::net::UdpSocket;",
            "std::env::var(x)",
            "tokio::spawn(x)",
            "use weir_dataplane::api::connection::Connection;",
            "use weir_dataplane::config::file::value::prefix;",
            "use crate::shell::frame;",
            "use super::super::config::Config;",
            "use crate::random::SystemRandom;",
        ] {
            assert_eq!(found("controlplane/src/node/calls.rs", bad), [1], "{bad}");
            for file in ["shell/issuer.rs", "supervisor.rs", "node/tests.rs", "quic/tests/world.rs", "store/redb.rs"] {
                assert!(found(&format!("controlplane/src/{file}"), bad).is_empty(), "{file}: {bad}");
            }
            let tested = format!("#[cfg(test)]\nmod tests {{\n{bad}\n}}");
            assert!(found("controlplane/src/node/calls.rs", &tested).is_empty(), "{bad}");
        }
    }

    #[test]
    fn engine_has_no_clock_and_does_no_io() {
        let good = "use std::net::{IpAddr, SocketAddr}; use std::time::Duration; use std::sync::Arc; // std::fs";
        assert!(found("dataplane/src/engine/lane.rs", good).is_empty());
        for bad in [
            "std::fs::read(x)",
            "use std::{thread, sync};",
            "use std::time::{Duration, Instant};",
            "use std::net::UdpSocket;",
            "std::env::var(x)",
            "libc::read(0)",
        ] {
            assert_eq!(found("dataplane/src/engine/lane.rs", bad), [1], "{bad}");
            assert!(found("dataplane/src/io/lane.rs", bad).is_empty(), "{bad}");
            assert!(
                found("dataplane/src/engine/lane.rs", &format!("#[cfg(test)]\nmod tests {{\n{bad}\n}}")).is_empty(),
                "{bad}"
            );
        }
    }
}
