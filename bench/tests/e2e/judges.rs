//! What programs that are not ours say of a running network: tcpdump of what crosses the WAN, OpenSSL and GnuTLS of its certificates, and
//! another QUIC of its handshake.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use weir_bench::external::tcp_transfer;
use weir_bench::member::{Member, Part};
use weir_bench::rig::mesh::Mesh;
use weir_bench::rig::{Family, Host};

use crate::capture::{Capture, Frame, only_sealed};
use crate::initials::{Opener, is_initial};
use crate::mesh::network;
use crate::support::{alone, answered, one_datagram_a_frame, output};

/// Sixteen bytes that ping fills its requests with, and that nobody else says.
const PATTERN: [u8; 16] = *b"weir-in-the-open";
/// More than a frame has.
const WHOLE_FRAME: u32 = 2000;

fn ping_with_pattern(from: &Host, to: &Host) {
    let pattern: String = PATTERN.iter().map(|byte| format!("{byte:02x}")).collect();
    let to = to.lan.address(Family::V4).to_string();
    output(from, "ping", &["-n", "-q", "-i", "0.05", "-c", "10", "-W", "2", "-p", &pattern, &to]);
}

/// The bytes of an id as it is shown (RFC 4648 §6, small letters, no padding).
fn base32(text: &str) -> Vec<u8> {
    let mut bits = 0u64;
    let mut held = 0;
    let mut bytes = Vec::new();
    for char in text.bytes() {
        let value = if char.is_ascii_digit() { char - b'2' + 26 } else { char - b'a' };
        bits = bits << 5 | u64::from(value);
        held += 5;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held & 0xff) as u8);
        }
    }
    bytes
}

/// All that an onlooker could know members and their network by.
fn names(members: &[Member<'_>]) -> Vec<Vec<u8>> {
    let mut names = vec![b"example".to_vec(), b"site-".to_vec()];
    for member in members {
        let status = member.weir(&["status"]).unwrap();
        for id in [&status["identity"]["node"], &status["network"]["network"]] {
            let id = id.as_str().unwrap();
            let bytes = base32(id);
            assert_eq!(bytes.len(), 32, "{id}");
            names.extend([id.as_bytes().to_vec(), id.to_ascii_uppercase().into_bytes(), bytes]);
        }
    }
    names
}

/// Opens every Initial of a capture; none may stay closed.
fn opened(frames: &[Frame]) -> Vec<Vec<u8>> {
    let mut openers: Vec<Opener> = Vec::new();
    let mut opened = Vec::new();
    for (number, frame) in frames.iter().enumerate() {
        let Some((_, _, datagram)) = frame.payload().filter(|(_, _, datagram)| is_initial(datagram)) else { continue };
        let plain = openers.iter().rev().find_map(|opener| opener.open(datagram)).or_else(|| {
            // The first of a connection.
            let opener = Opener::of(datagram)?;
            let plain = opener.open(datagram)?;
            openers.push(opener);
            Some(plain)
        });
        opened.push(plain.unwrap_or_else(|| panic!("frame {number}: an Initial that cannot be opened")));
    }
    opened
}

fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|window| window == needle)
}

#[test]
fn a_wan_shows_quic_and_sealed_datagrams_and_no_name_from_the_first_join_to_a_revocation() {
    let _alone = alone();
    let mesh = Mesh::new(3).unwrap();
    one_datagram_a_frame(mesh.sites().iter().map(|site| &site.gateway));
    let capture = Capture::up_to(mesh.switch(), "p1", WHOLE_FRAME);
    let members = network(&mesh);
    let names = names(&members);
    let (h1, h2) = (&mesh.site_of(1).host, &mesh.site_of(2).host);
    ping_with_pattern(h1, h2);
    tcp_transfer(h1, h2, h2.lan.address(Family::V4), Duration::from_millis(200)).unwrap();
    members[1].weir(&["cert", "renew"]).expect("a renewed certificate");
    // Whoever starts again makes new keys with everybody.
    members[1].kill9(Part::Control).unwrap();
    members[1].wait_for("the control plane", |member| member.weir(&["status"]).is_ok()).unwrap();
    members[1].wait_for_peers(2).unwrap();
    ping_with_pattern(h1, h2);
    members[0].weir(&["revoke", "site-3"]).expect("revoked");
    ping_with_pattern(h1, h2);
    let frames = capture.stop();

    let (sealed, quic) = only_sealed(&frames, &PATTERN);
    for (number, frame) in frames.iter().enumerate() {
        for name in &names {
            assert!(!frame.contains(name), "frame {number} names {}", String::from_utf8_lossy(name));
        }
    }
    let sealed = sealed.len();
    assert!(sealed > 60 && quic > 30, "{sealed} sealed datagrams and {quic} of QUIC among {} frames", frames.len());
    let opened = opened(&frames);
    // Two links to join, and a handshake each way after it, two Initials of the client's each.
    assert!(opened.len() > 12, "{} Initials", opened.len());
    let alpns = [&b"weir-join/1"[..], b"weir/1", b"weir-key/1"];
    for alpn in alpns {
        assert!(opened.iter().any(|plain| contains(plain, alpn)), "{}", String::from_utf8_lossy(alpn));
    }
    for (plain, name) in opened.iter().flat_map(|plain| names.iter().map(move |name| (plain, name))) {
        assert!(!contains(plain, name), "an Initial names {}", String::from_utf8_lossy(name));
    }
}

/// Runs a judge; its verdict and all it said.
fn ask(program: &str, args: &[&str]) -> (bool, String) {
    let done = Command::new(program).args(args).stdin(Stdio::null()).output();
    let done = done.unwrap_or_else(|error| panic!("{program}: {error}; cargo xtask test installs it"));
    (done.status.success(), String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn openssl_and_gnutls_accept_the_certificates_of_a_founder_and_of_one_that_joined() {
    let _alone = alone();
    let mesh = Mesh::new(2).unwrap();
    let members = network(&mesh);
    for member in &members {
        let [roots, bundle, leaf, issuer, chain] =
            ["roots.pem", "bundle", "leaf.pem", "issuer.pem", "chain.pem"].map(|name| member.directory().join(name));
        member.weir(&["ca", "bundle", text(&bundle), "--roots", text(&roots)]).unwrap();
        let shown = member.weir(&["cert", "show"]).unwrap();
        let pems: Vec<&str> = shown["chain"].as_array().unwrap().iter().map(|pem| pem.as_str().unwrap()).collect();
        assert_eq!(pems.len(), 2, "{shown}");
        fs::write(&leaf, pems[0]).unwrap();
        fs::write(&issuer, pems[1]).unwrap();
        for purpose in ["sslclient", "sslserver"] {
            let args = ["verify", "-x509_strict", "-purpose", purpose, "-CAfile", text(&roots), "-untrusted"];
            let (good, said) = ask("openssl", &[&args[..], &[text(&issuer), text(&leaf)]].concat());
            assert!(good, "{said}");
        }
        let (_, said) = ask("openssl", &["x509", "-in", text(&leaf), "-noout", "-text"]);
        let node = shown["node"].as_str().unwrap();
        for part in [&format!("DNS:{node}"), member.site().subnet().as_str(), "ED25519"] {
            assert!(said.contains(part), "{part} is not in {said}");
        }
        // GnuTLS wants the root at the end of what it judges.
        let root = signer_of(pems[1], &roots);
        fs::write(&chain, pems.concat() + &root).unwrap();
        let args = ["--verify", "--load-ca-certificate", text(&roots), "--verify-profile", "high", "--infile"];
        let (good, said) = ask("certtool", &[&args[..], &[text(&chain)]].concat());
        assert!(good && said.contains("Verified. The certificate is trusted."), "{said}");
    }
}

/// The certificate among these that signed another, as OpenSSL sees it.
fn signer_of(pem: &str, roots: &Path) -> String {
    let begin = "-----BEGIN CERTIFICATE-----";
    let all = fs::read_to_string(roots).unwrap();
    let candidates = all.split(begin).skip(1).map(|rest| format!("{begin}{rest}"));
    let (signed, root) = (roots.with_extension("signed"), roots.with_extension("one"));
    fs::write(&signed, pem).unwrap();
    let mut signers = candidates.filter(|candidate| {
        fs::write(&root, candidate).unwrap();
        ask("openssl", &["verify", "-CAfile", text(&root), text(&signed)]).0
    });
    signers.next().expect("one of the roots signed the issuer")
}

/// A Python that has what the judges need: `cargo xtask test --full` makes one and names it. Without one nothing was judged, which is said.
fn python() -> Option<PathBuf> {
    let python = std::env::var_os("JUDGE_PYTHON").map(PathBuf::from);
    if python.is_none() {
        eprintln!("SKIPPED: no JUDGE_PYTHON with aioquic and cryptography; `cargo xtask test --full` makes one");
    }
    python
}

#[test]
#[ignore = "needs a Python with aioquic and cryptography, named by JUDGE_PYTHON"]
fn another_quic_agrees_on_the_hybrid_group_and_is_refused_without_it() {
    let Some(python) = python() else { return };
    let _alone = alone();
    let mesh = Mesh::new(2).unwrap();
    let members = network(&mesh);
    let (judge, node) = (&mesh.site_of(2).host, mesh.site_of(1));
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/judge_quic.py");
    let port = weir_bench::gateway::PORT.to_string();
    // From behind the other gateway's LAN there is no way to the WAN, so the gateway itself is where strangers dial from.
    let from = &mesh.site_of(2).gateway;
    let dial =
        |groups: &str| output(from, text(&python), &[script, &node.wan().to_string(), &port, groups]).trim().to_owned();
    assert_eq!(dial("hybrid"), "connected 0x11ec");
    // TLS's handshake_failure as QUIC says it (RFC 9001 §4.8).
    assert_eq!(dial("classical"), format!("closed {}", 0x100 + 40));
    assert_eq!(dial("hybrid"), "connected 0x11ec");
    answered(judge, node.host.lan.address(Family::V4), 5);
    assert!(members[0].weir(&["status"]).unwrap()["peers_connected"] == 1);
}
