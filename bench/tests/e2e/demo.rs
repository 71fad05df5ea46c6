//! The demo, as a person runs it.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use weir_bench::sys::signal;

use crate::support::*;

fn demo(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weir-bench"));
    command.arg("demo").args(["--seconds", "1"]).args(args).stdin(Stdio::null());
    command
}

/// Namespaces and files of the demo with this process id.
fn left_by(pid: u32) -> Vec<PathBuf> {
    let mine = format!("weir-{pid}-");
    let entries = [PathBuf::from("/run/netns"), std::env::temp_dir()].into_iter().filter_map(|d| d.read_dir().ok());
    let paths = entries.flatten().map(|entry| entry.unwrap().path());
    paths.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&mine))).collect()
}

#[test]
fn the_demo_shows_what_happened_and_leaves_nothing() {
    let _alone = alone();
    let file = std::env::temp_dir().join(format!("weir-demo-{}.json", std::process::id()));
    let child = demo(&["--json"]).arg(&file).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = child.id();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    for words in [
        "ping IPv6",
        "in-band echo",
        "TCP IPv6",
        "flat out",
        "wan rx",
        "lan tx",
        "wan on wan",
        "wan_deliver",
        "dropped",
        "three whole nodes",
        "g3 revoked",
        "X25519MLKEM768",
    ] {
        assert!(said.contains(words), "{words} is not in\n{said}");
    }
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    std::fs::remove_file(&file).unwrap();
    assert!(json["ping_v6"]["received"].as_u64().unwrap() >= 49);
    assert!(json["tcp_v4"]["gbps"].as_f64().unwrap() > 0.05);
    assert_eq!(json["runs"].as_array().unwrap().len(), 4);
    assert_eq!(json["gateways"][1]["name"], "g2");
    assert_eq!(json["network"]["after_revocation"]["received"], 0);
    assert_eq!(json["network"]["steps"].as_array().unwrap().len(), 5);
    assert_eq!(left_by(pid), [] as [PathBuf; 0]);
}

#[test]
fn a_demo_that_is_told_to_end_takes_its_gateways_along() {
    let _alone = alone();
    let mut child = demo(&[]).stdout(Stdio::null()).spawn().unwrap();
    let pid = child.id();
    let socket = std::env::temp_dir().join(format!("weir-{pid}-0-g2-1/plane.sock"));
    assert!(eventually(Duration::from_secs(20), || socket.exists()));
    signal::terminate(pid).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(128 + 15));
    // The kernel tells the gateways, and a clean stop removes the socket.
    assert!(eventually(Duration::from_secs(10), || !socket.exists()));
    assert!(!left_by(pid).iter().any(|path| path.starts_with("/run/netns")));
    for path in left_by(pid) {
        std::fs::remove_dir_all(path).unwrap();
    }
}
