//! Outside judges of what the trust core writes: OpenSSL and GnuTLS read our certificates, revocation lists and key files, and come to our
//! own verdicts.
//!
//! `cargo xtask test` installs both; without them the tests fail and say so.

#![allow(clippy::unwrap_used, reason = "everything here is a test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{SystemTime, UNIX_EPOCH};

use weir_controlplane::pki::certificate::{
    IssuerSpec, LeafSpec, RootSpec, Serial, Validity, issuer_certificate, leaf_certificate, root_certificate,
};
use weir_controlplane::pki::crl::{CrlSpec, RevokedCertificate, export_crl};
use weir_controlplane::pki::id::{NetworkId, NodeId, Nonce};
use weir_controlplane::pki::key::PrivateKey;
use weir_controlplane::pki::resources::{IpBlocks, Resources};
use weir_controlplane::time::UnixSecs;

const DAY: u64 = 86_400;

fn key(seed: u8) -> PrivateKey {
    PrivateKey::from_seed(&[seed; 32])
}

fn resources(prefixes: &[&str]) -> Resources {
    Resources::from_prefixes(prefixes.iter().map(|prefix| prefix.parse().unwrap()))
}

/// The judges go by the machine's clock: not every certtool can be told another time.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn validity(before: u64, after: u64) -> Validity {
    Validity { not_before: UnixSecs(now() - before), not_after: UnixSecs(now() + after) }
}

/// A directory that goes when the test does.
struct Bench(PathBuf);

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Bench {
    fn new(test: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("weir-judges-{}-{test}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn put(&self, name: &str, content: &[u8]) -> PathBuf {
        fs::write(self.path(name), content).unwrap();
        self.path(name)
    }

    fn pem(&self, name: &str, label: &str, ders: &[&[u8]]) -> PathBuf {
        let text: String = ders.iter().map(|der| pem(label, der)).collect();
        self.put(name, text.as_bytes())
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    let encoded = data_encoding::BASE64.encode(der);
    let lines: Vec<&str> =
        (0..encoded.len().div_ceil(64)).map(|line| &encoded[line * 64..encoded.len().min(line * 64 + 64)]).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

/// Runs a judge; its verdict and all it said.
fn ask(program: &str, args: &[&str]) -> (bool, String) {
    let Output { status, stdout, stderr } = Command::new(program)
        .args(args)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}; cargo xtask test installs it"));
    let said = [stdout, stderr].concat();
    (status.success(), String::from_utf8_lossy(&said).into_owned())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A root, an issuer below it, and members below that.
struct Pki {
    root: PrivateKey,
    root_der: Vec<u8>,
    issuer: PrivateKey,
    issuer_der: Vec<u8>,
}

impl Pki {
    fn new() -> Self {
        let (root, issuer) = (key(1), key(2));
        let spec = RootSpec {
            label: "A",
            network_name: "mynet",
            validity: validity(30 * DAY, 3650 * DAY),
            serial: Serial::from_bytes([1; 16]),
        };
        let root_der = root_certificate(&root, &spec).unwrap();
        let granted = IpBlocks::Explicit(resources(&["10.0.0.0/8", "fd00::/8"]));
        let issuer_der = issuer_certificate(&root, &root_der, &issuer_spec(&issuer, granted)).unwrap();
        Self { root, root_der, issuer, issuer_der }
    }

    fn leaf(&self, serial: u8, prefixes: Resources) -> Vec<u8> {
        self.leaf_by(&self.issuer_der, serial, prefixes)
    }

    fn leaf_by(&self, issuer_der: &[u8], serial: u8, prefixes: Resources) -> Vec<u8> {
        let spec = LeafSpec {
            leaf_public: key(10).public(),
            network: NetworkId([7; 32]),
            identity: key(11).public(),
            nonce: Nonce([5; 16]),
            name: "berlin",
            prefixes,
            groups: &["edge".into()],
            roles: &["relay".into()],
            validity: validity(3600, DAY),
            serial: Serial::from_bytes([serial; 16]),
        };
        leaf_certificate(&self.issuer, issuer_der, &spec).unwrap()
    }
}

fn issuer_spec(issuer: &PrivateKey, blocks: IpBlocks) -> IssuerSpec {
    IssuerSpec {
        public: issuer.public(),
        blocks,
        validity: validity(10 * DAY, 355 * DAY),
        serial: Serial::from_bytes([2; 16]),
    }
}

/// OpenSSL's verdict of a chain; it checks RFC 3779 whenever the extension is there.
fn openssl_verify(bench: &Bench, root: &[u8], issuer: &[u8], leaf: &[u8], more: &[&str]) -> (bool, String) {
    let root = bench.pem("root.pem", "CERTIFICATE", &[root]);
    let issuer = bench.pem("issuer.pem", "CERTIFICATE", &[issuer]);
    let leaf = bench.pem("leaf.pem", "CERTIFICATE", &[leaf]);
    let mut args = vec!["verify", "-x509_strict", "-CAfile", text(&root), "-untrusted", text(&issuer)];
    args.extend(more);
    args.push(text(&leaf));
    ask("openssl", &args)
}

#[test]
fn openssl_accepts_a_members_chain() {
    let bench = Bench::new("accept");
    let pki = Pki::new();
    for prefixes in
        [resources(&["10.1.0.0/24"]), resources(&["10.0.1.0/24", "10.0.2.0/24", "fd00::/48"]), resources(&[])]
    {
        let leaf = pki.leaf(3, prefixes.clone());
        for purpose in ["sslclient", "sslserver"] {
            let (good, said) = openssl_verify(&bench, &pki.root_der, &pki.issuer_der, &leaf, &["-purpose", purpose]);
            assert!(good, "{prefixes}: {said}");
        }
    }
    let inheriting =
        issuer_certificate(&pki.root, &pki.root_der, &issuer_spec(&pki.issuer, IpBlocks::Inherit)).unwrap();
    let leaf = pki.leaf_by(&inheriting, 3, resources(&["192.0.2.0/24"]));
    let (good, said) = openssl_verify(&bench, &pki.root_der, &inheriting, &leaf, &[]);
    assert!(good, "{said}");
}

#[test]
fn openssl_shows_what_a_member_is() {
    let bench = Bench::new("show");
    let leaf = Pki::new().leaf(3, resources(&["10.0.1.0/24", "10.0.2.0/24", "fd00::/48"]));
    let leaf = bench.pem("leaf.pem", "CERTIFICATE", &[&leaf]);
    let (_, said) = ask("openssl", &["x509", "-in", text(&leaf), "-noout", "-text"]);
    let node = NodeId::derive(NetworkId([7; 32]), &key(11).public().0, Nonce([5; 16]));
    let id = key(10).public().id();
    for part in [
        &format!("DNS:{node}"),
        "URI:weir:group/edge",
        "URI:weir:role/relay",
        &format!("Subject: O = mynet, CN = berlin, serialNumber = {id}"),
        "10.0.1.0-10.0.2.255",
        "fd00::/48",
        "ED25519",
    ] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
}

/// The leaf is well signed, by an issuer that may grant it as far as the issuer itself knows. The root's word about that issuer is another.
#[test]
fn openssl_rejects_a_prefix_that_the_issuer_may_not_grant() {
    let bench = Bench::new("reject");
    let pki = Pki::new();
    let narrow = IpBlocks::Explicit(resources(&["10.2.0.0/16"]));
    let narrow = issuer_certificate(&pki.root, &pki.root_der, &issuer_spec(&pki.issuer, narrow)).unwrap();
    let leaf = pki.leaf(3, resources(&["10.1.0.0/24"]));
    let (good, said) = openssl_verify(&bench, &pki.root_der, &narrow, &leaf, &[]);
    assert!(!good && said.contains("RFC 3779 resource not subset"), "{said}");
    let inside = pki.leaf(3, resources(&["10.2.7.0/24"]));
    let (good, said) = openssl_verify(&bench, &pki.root_der, &narrow, &inside, &[]);
    assert!(good, "{said}");
}

#[test]
fn certtool_accepts_a_members_chain() {
    let bench = Bench::new("certtool");
    let pki = Pki::new();
    let leaf = pki.leaf(3, resources(&["10.1.0.0/24", "fd00::/48"]));
    let root = bench.pem("root.pem", "CERTIFICATE", &[&pki.root_der]);
    let chain = bench.pem("chain.pem", "CERTIFICATE", &[&leaf, &pki.issuer_der, &pki.root_der]);
    let args = ["--verify", "--load-ca-certificate", text(&root), "--infile", text(&chain), "--verify-profile", "high"];
    let (good, said) = ask("certtool", &args);
    assert!(good && said.contains("Verified. The certificate is trusted."), "{said}");

    // It does judge: without the issuer there is no chain.
    let broken = bench.pem("chain.pem", "CERTIFICATE", &[&leaf, &pki.root_der]);
    let (_, said) = ask("certtool", &["--verify", "--load-ca-certificate", text(&root), "--infile", text(&broken)]);
    assert!(said.contains("Not verified"), "{said}");
}

#[test]
fn openssl_reads_an_exported_revocation_list_and_goes_by_it() {
    let bench = Bench::new("crl");
    let pki = Pki::new();
    let (revoked, kept) = (pki.leaf(3, resources(&["10.1.0.0/24"])), pki.leaf(4, resources(&["10.2.0.0/24"])));
    let entries = [RevokedCertificate { serial: Serial::from_bytes([3; 16]), at: UnixSecs(now() - 60) }];
    let (this_update, next_update) = (UnixSecs(now() - 1), UnixSecs(now() + DAY));
    let spec = CrlSpec { number: 7, this_update, next_update, revoked: &entries };
    let crl = export_crl(&pki.issuer, &pki.issuer_der, &spec).unwrap();
    let der = bench.put("crl.der", &crl);
    let issuer = bench.pem("issuer.pem", "CERTIFICATE", &[&pki.issuer_der]);
    let (good, said) =
        ask("openssl", &["crl", "-inform", "DER", "-in", text(&der), "-CAfile", text(&issuer), "-noout", "-text"]);
    let serial = Serial::from_bytes([3; 16]).to_string().to_ascii_uppercase();
    for part in ["verify OK", &format!("Serial Number: {serial}"), "X509v3 CRL Number"] {
        assert!(good && said.contains(part), "{part} is not in {said}");
    }
    let list = bench.pem("crl.pem", "X509 CRL", &[&crl]);
    let more = ["-crl_check", "-CRLfile", text(&list)];
    let (good, said) = openssl_verify(&bench, &pki.root_der, &pki.issuer_der, &revoked, &more);
    assert!(!good && said.contains("certificate revoked"), "{said}");
    let (good, said) = openssl_verify(&bench, &pki.root_der, &pki.issuer_der, &kept, &more);
    assert!(good, "{said}");

    let empty = export_crl(&pki.issuer, &pki.issuer_der, &CrlSpec { revoked: &[], ..spec.clone() }).unwrap();
    bench.pem("crl.pem", "X509 CRL", &[&empty]);
    let (good, said) = openssl_verify(&bench, &pki.root_der, &pki.issuer_der, &revoked, &more);
    assert!(good, "{said}");
    assert!(export_crl(&pki.issuer, &pki.issuer_der, &CrlSpec { next_update: this_update, ..spec }).is_err());
}

#[test]
fn openssl_opens_a_key_file_with_its_passphrase_only() {
    let bench = Bench::new("key");
    let root = key(1);
    let file = bench.put("root.key", root.to_encrypted_pem("correct horse").unwrap().as_bytes());
    let (good, said) =
        ask("openssl", &["pkey", "-in", text(&file), "-passin", "pass:correct horse", "-noout", "-text"]);
    let spaced: String = said.chars().filter(char::is_ascii_hexdigit).collect();
    let public = data_encoding::HEXLOWER.encode(&root.public().0);
    assert!(good && said.contains("ED25519 Private-Key") && spaced.contains(&public), "{said}");
    let (good, _) = ask("openssl", &["pkey", "-in", text(&file), "-passin", "pass:wrong", "-noout"]);
    assert!(!good);
}
