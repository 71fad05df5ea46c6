//! Names as programs see them that we did not write: dig and kdig ask, delv verifies with our anchors, unbound answers its own clients.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::Value;
use weir_bench::member::Member;
use weir_bench::network::bring_up;
use weir_bench::rig::mesh::{Mesh, Site};

use crate::support::{alone, eventually};

/// Where each gateway answers programs beside it.
const DNS: &str = "[dns]\nlisten = [\"127.0.0.1:53\"]\nrecords = [\"www A 192.0.2.7\", \"*.pool A 192.0.2.8\", \"alias CNAME www\"]\n";
const PATIENCE: Duration = Duration::from_secs(20);

/// What a program says in a gateway's namespace, errors included.
fn said(member: &Member<'_>, program: &str, arguments: &[&str]) -> String {
    let output = member.site().gateway.command(program).args(arguments).output().unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

fn dig(member: &Member<'_>, arguments: &[&str]) -> String {
    said(member, "dig", &[&["@127.0.0.1", "+time=4", "+tries=1"], arguments].concat())
}

fn text<'v>(value: &'v Value, pointer: &str) -> &'v str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_else(|| panic!("{pointer} of {value}"))
}

fn address(member: &Member<'_>) -> String {
    let status = member.weir(&["status"]).unwrap();
    let addresses = status["identity"]["addresses"].as_array().unwrap().iter().filter_map(Value::as_str);
    addresses.into_iter().find(|address| address.contains(':')).expect("an overlay address").to_owned()
}

/// The zone of a member, without the dot at its end.
fn zone(member: &Member<'_>) -> String {
    text(&member.weir(&["dns", "status"]).unwrap(), "/own").trim_end_matches('.').to_owned()
}

fn anchors(member: &Member<'_>, form: &str) -> PathBuf {
    let file = member.directory().join(format!("anchors{form}"));
    fs::write(&file, member.text(&["dns", "anchor", form, "--server", "127.0.0.1:53"]).unwrap()).unwrap();
    file
}

/// A program that ends with this.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn network(mesh: &Mesh) -> Vec<Member<'_>> {
    let settings = |_: &Site| DNS;
    let mut members: Vec<_> = mesh.sites().iter().map(|site| Member::new(site, settings(site)).unwrap()).collect();
    bring_up(&mut members).expect("a network of all sites");
    for member in &members {
        let has_joined =
            |member: &Member<'_>| member.weir(&["dht", "status"]).is_ok_and(|status| status["is_joined"] == true);
        member.wait_for("the DHT", has_joined).unwrap();
    }
    members
}

#[test]
fn dig_kdig_delv_and_unbound_agree_with_what_members_publish() {
    let _alone = alone();
    let mesh = Mesh::new(3).unwrap();
    let members = network(&mesh);
    let (by, of) = (&members[1], &members[2]);
    let (zone, address) = (zone(of), address(of));
    let network = zone.split_once('.').unwrap().1.to_owned();
    let is_known = || dig(by, &["+short", &zone, "AAAA"]).trim() == address;
    assert!(eventually(PATIENCE, is_known), "{}\n{}", dig(by, &[&zone, "AAAA"]), by.log());

    // As it was asked, letter by letter; by UDP and TCP; too long for UDP; and a cookie comes back.
    let spelled: String =
        zone.char_indices().map(|(at, c)| if at % 2 == 0 { c.to_ascii_uppercase() } else { c }).collect();
    let told = dig(by, &[&spelled, "AAAA"]);
    assert!(told.contains(&spelled), "{told}");
    assert!(told.contains("flags: qr aa rd") && told.contains("(good)"), "{told}");
    let told = said(by, "kdig", &["@127.0.0.1", "+tcp", "+dnssec", &format!("alias.{zone}"), "A"]);
    assert!(told.contains("192.0.2.7") && told.contains("CNAME") && told.contains("RRSIG"), "{told}");
    // Two NSECs and a SOA with their signatures do not fit into 512 bytes: whoever asks by TCP then has them.
    let none = format!("none.{zone}");
    let cut = dig(by, &["+ignore", "+dnssec", "+bufsize=512", &none, "A"]);
    assert!(cut.contains("flags: qr tc rd") && cut.contains("AUTHORITY: 0"), "{cut}");
    let whole = dig(by, &["+dnssec", "+bufsize=512", &none, "A"]);
    assert!(whole.contains("status: NXDOMAIN") && whole.contains("NSEC") && whole.contains("(TCP)"), "{whole}");
    assert!(dig(by, &["example.com", "A"]).contains("status: REFUSED"));

    // Verified by a program that has our anchors and nothing else of ours.
    let file = anchors(by, "--delv");
    let delv = |name: &str, rtype: &str| {
        let (file, root) = (file.display().to_string(), format!("+root={network}"));
        said(by, "delv", &["@127.0.0.1", "-a", &file, &root, name, rtype])
    };
    for (name, rtype, expected) in [
        (zone.as_str(), "AAAA", address.as_str()),
        (&format!("www.{zone}"), "A", "192.0.2.7"),
        (&format!("alias.{zone}"), "A", "192.0.2.7"),
        (&format!("any.pool.{zone}"), "A", "192.0.2.8"),
        (&zone, "DNSKEY", "257 3 15"),
        (&network, "SOA", "hostmaster"),
    ] {
        let told = delv(name, rtype);
        assert!(told.contains("; fully validated") && told.contains(expected), "{name} {rtype}: {told}");
    }
    for (name, rtype) in [(format!("none.{zone}"), "A"), (zone.clone(), "MX"), (format!("pool.{zone}"), "A")] {
        let told = delv(&name, rtype);
        assert!(told.contains("; negative response, fully validated"), "{name} {rtype}: {told}");
    }
    let reverse = dig(by, &["-x", &address, "+short"]);
    assert_eq!(reverse.trim(), format!("{zone}."));
    let status = by.weir(&["dns", "status"]).unwrap();
    let (file, root) = (file.display().to_string(), format!("+root={}", text(&status, "/reverse")));
    let told = said(by, "delv", &["@127.0.0.1", "-a", &file, &root, "-x", &address]);
    assert!(told.contains("; fully validated") && told.contains(&zone), "{told}");

    what_is_set_is_seen_elsewhere(by, of, &zone);
    unbound_validates(by, &zone, &address);
    assert!(by.text(&["dns", "log"]).unwrap().contains("everything was believed"));
}

fn what_is_set_is_seen_elsewhere(by: &Member<'_>, of: &Member<'_>, zone: &str) {
    of.text(&["dns", "set", "new", "TXT", "\"hello there\""]).unwrap();
    let name = format!("new.{zone}");
    // Its TTL, and a look-up.
    let is_seen = || dig(by, &["+short", &name, "TXT"]).contains("hello there");
    assert!(eventually(Duration::from_secs(45), is_seen), "{}", dig(by, &[&name, "TXT"]));
    let refused = of.weir(&["dns", "set", "new", "A", "not-an-address"]).unwrap_err().to_string();
    assert!(refused.contains("is no A"), "{refused}");
    assert!(of.text(&["dns", "list"]).unwrap().contains("hello there"));
    of.text(&["dns", "unset", "new"]).unwrap();
    let is_gone = || dig(by, &["+short", &name, "TXT"]).trim().is_empty();
    assert!(eventually(Duration::from_secs(45), is_gone));
}

/// A resolver with our snippet, and clients of its own.
fn unbound_validates(by: &Member<'_>, zone: &str, address: &str) {
    let snippet = fs::read_to_string(anchors(by, "--unbound")).unwrap();
    let file = by.directory().join("unbound.conf");
    let own = "server:\n    interface: 127.0.0.2\n    port: 53\n    do-daemonize: no\n    username: \"\"\n    chroot: \"\"\n    pidfile: \"\"\n    \
        use-syslog: no\n    verbosity: 1\n    module-config: \"validator iterator\"\n";
    fs::write(&file, format!("{own}{snippet}")).unwrap();
    let mut command = by.site().gateway.command("unbound");
    let log = fs::File::create(by.directory().join("unbound.log")).unwrap();
    command.args(["-d", "-c", &file.display().to_string()]).stdout(Stdio::null()).stderr(log);
    let _running = Running(command.spawn().unwrap());
    let ask = |name: &str, rtype: &str| said(by, "dig", &["@127.0.0.2", "+dnssec", "+time=4", "+tries=1", name, rtype]);
    let is_good = |told: &str| told.contains("flags: qr rd ra ad");
    let log = || fs::read_to_string(by.directory().join("unbound.log")).unwrap_or_default();
    assert!(eventually(PATIENCE, || ask(zone, "AAAA").contains(address)), "{}\n{}", ask(zone, "AAAA"), log());
    for (name, rtype) in [
        (zone.to_owned(), "AAAA"),
        (format!("alias.{zone}"), "A"),
        (format!("x.pool.{zone}"), "A"),
        (format!("none.{zone}"), "A"),
        (zone.to_owned(), "MX"),
    ] {
        let told = ask(&name, rtype);
        assert!(is_good(&told), "{name} {rtype}: {told}\n{}", log());
    }
    let told = said(by, "dig", &["@127.0.0.2", "+dnssec", "-x", address]);
    assert!(is_good(&told) && told.contains(zone), "{told}\n{}", log());
}
