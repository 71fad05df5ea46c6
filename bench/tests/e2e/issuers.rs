//! A second issuer, from its key to what it signs, and lists that programs other than ours read.

use std::process::Command;

use serde_json::Value;
use weir_bench::member::Member;
use weir_bench::network::found;
use weir_bench::rig::mesh::Mesh;

use crate::support::alone;

fn text<'v>(value: &'v Value, name: &str) -> &'v str {
    value[name].as_str().unwrap_or_else(|| panic!("{name} of {value}"))
}

/// What OpenSSL reads in the list of this node's issuer: it checks the signature, and names the serial numbers.
fn serials_on_list(member: &Member<'_>) -> Vec<String> {
    let directory = member.directory().join("lists");
    std::fs::create_dir_all(&directory).unwrap();
    member.weir(&["ca", "export-crl", "--out", &directory.display().to_string()]).expect("a list");
    let certificate = member.weir(&["cert", "show"]).unwrap();
    let issuer = member.directory().join("issuer.pem");
    std::fs::write(&issuer, certificate["chain"][1].as_str().unwrap()).unwrap();
    let list = directory.join(format!("{}.crl.pem", text(&certificate, "issuer")));
    let mut openssl = Command::new("openssl");
    openssl.arg("crl").arg("-in").arg(&list).arg("-CAfile").arg(&issuer).args(["-noout", "-text"]);
    let read = openssl.output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&read.stdout), String::from_utf8_lossy(&read.stderr));
    assert!(read.status.success() && said.contains("verify OK"), "{said}");
    said.lines().filter_map(|line| line.trim().strip_prefix("Serial Number: ").map(str::to_owned)).collect()
}

#[test]
fn a_second_issuer_certifies_and_revokes_and_openssl_reads_the_lists() {
    let _alone = alone();
    let mesh = Mesh::new(3).unwrap();
    let mut members = found(&mesh).expect("a network of all sites");
    let key = members[1].weir(&["ca", "issuer-key"]).unwrap();
    members[1].stop().unwrap();
    members[1].run().unwrap();
    members[1].wait_for_peers(2).unwrap();
    // Its key is no issuer's yet, so renewals still go to the first one.
    let first = members[0].weir(&["cert", "show"]).unwrap();
    let renewed = members[1].weir(&["cert", "renew"]).expect("a renewal by the first issuer");
    assert_eq!(text(&renewed, "issuer"), text(&first, "issuer"));

    let bundle = members[0].ceremony("b", &["add-issuer", "--key", text(&key, "key")]).unwrap();
    members[0].weir(&["ca", "publish", &bundle]).unwrap();
    members[1]
        .wait_for("a certificate by the second issuer", |member| {
            let renewed = member.weir(&["cert", "renew"]);
            renewed.is_ok_and(|certificate| text(&certificate, "issuer") == text(&key, "id"))
        })
        .unwrap();

    assert!(serials_on_list(&members[0]).is_empty() && serials_on_list(&members[1]).is_empty());
    members[1].weir(&["revoke", "site-3"]).expect("revoked by the second issuer");
    // The first one signed the certificate of who was revoked.
    members[0].wait_for("the first issuer's list", |member| serials_on_list(member).len() == 1).unwrap();
    assert!(serials_on_list(&members[1]).is_empty());
}
