use std::net::IpAddr;

use weir_dataplane::config::file::FILE_LEN_MAX;
use weir_dataplane::config::file::value::{LAN_INTERFACES_MAX, WORKERS_MAX};

use super::*;
use crate::node::services::SERVICES_MAX;

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(Path::new("weir.toml"), text, &Instance::default()).map_err(|error| error.to_string())
}

fn refused(text: &str, message: &str) {
    assert_eq!(parse(text).unwrap_err(), message);
}

#[test]
fn an_empty_file_and_the_example_are_the_defaults() {
    let defaults = Config::of_instance(&Instance::default());
    assert_eq!(parse("").unwrap(), defaults);
    let example = include_str!("../../../docs/examples/weir.toml");
    assert_eq!(parse(example).unwrap(), defaults);
}

#[test]
fn the_example_has_every_key() {
    let example: toml::Table = toml::from_str(include_str!("../../../docs/examples/weir.toml")).unwrap();
    for (section, keys) in read::KEYS {
        let table = example.get(*section).and_then(toml::Value::as_table);
        let table = table.unwrap_or_else(|| panic!("[{section}] is not in the example"));
        for key in *keys {
            assert!(table.contains_key(*key), "{section}.{key} is not in the example");
        }
    }
}

#[test]
fn every_key_is_read() {
    let config = parse(
        r#"
        [node]
        instance = "lab"
        name = "site-1"
        state_directory = "/s"
        runtime_directory = "/r"
        packet_plane = "/opt/weir-dataplane"
        [wan]
        interface = "eth7"
        port = 5000
        lane_ports = 3
        advertise = ["198.51.100.1:4000", "[2001:db8::1]:4646", "interface"]
        [lan]
        interfaces = ["eth1"]
        [tun]
        name = "tun9"
        mtu = 1300
        [workers]
        cores = [1, 2]
        latency = "spin"
        [routing]
        table = 1
        mark = 2
        rule_priority = 3
        metric = 4
        [api]
        socket = "/r/other.sock"
        read = ["*"]
        operate = ["@ops", "1000"]
        admin = ["alice", "@0"]
        [issuer]
        log_entries_max = 5000
        [peers]
        legacy_kyber = []
        [discovery]
        mode = "client"
        bootstrap = ["203.0.113.1:4646"]
        mdns_interfaces = ["eth1", "eth2"]
        [[discovery.services]]
        name = "_http._tcp"
        port = 80
        text = ["path=/", "v=1"]
        [[discovery.services]]
        name = "_dns-sd._udp"
        port = 65535
        [dns]
        listen = ["127.0.0.1:53", "[::1]:5353"]
        records = ["www A 10.1.0.7"]
        [dataplane]
        transit = true
        wan.attach = "generic"
        [dataplane.xsk]
        mode = "copy"
        "#,
    )
    .unwrap();
    let expected = Config {
        node: Node {
            instance: "lab".parse().unwrap(),
            name: Some("site-1".into()),
            state_directory: "/s".into(),
            runtime_directory: "/r".into(),
            packet_plane: Some("/opt/weir-dataplane".into()),
        },
        wan: Wan {
            interface: Some("eth7".into()),
            port: 5000,
            lane_ports: 3,
            advertise: vec!["198.51.100.1:4000".parse().unwrap(), "[2001:db8::1]:4646".parse().unwrap()],
            advertise_interface: true,
        },
        lan: Lan { interfaces: vec!["eth1".into()] },
        tun: Tun { name: "tun9".into(), mtu: 1300 },
        workers: Workers { cores: Some(vec![1, 2]), latency: Latency::Spin },
        routing: Routing { table: 1, mark: 2, rule_priority: 3, metric: 4 },
        api: Api {
            socket: "/r/other.sock".into(),
            read: vec![Principal::Everybody],
            operate: vec![Principal::Group("ops".into()), Principal::Uid(1000)],
            admin: vec![Principal::User("alice".into()), Principal::Gid(0)],
        },
        issuer: Issuer { log_entries_max: 5000 },
        peers: Peers { legacy_kyber: Vec::new() },
        discovery: Discovery {
            mode: DiscoveryMode::Client,
            bootstrap: vec!["203.0.113.1:4646".parse().unwrap()],
            mdns_interfaces: vec!["eth1".into(), "eth2".into()],
            services: vec![
                ServiceValue { label: "_http._tcp".into(), port: 80, texts: vec![b"path=/".to_vec(), b"v=1".to_vec()] },
                ServiceValue { label: "_dns-sd._udp".into(), port: 65535, texts: vec![] },
            ],
        },
        dns: Dns {
            listen: vec!["127.0.0.1:53".parse().unwrap(), "[::1]:5353".parse().unwrap()],
            records: vec![Entry::new("www", "A", "10.1.0.7").unwrap()],
        },
        dataplane: toml::from_str("transit = true\nwan.attach = \"generic\"\nxsk.mode = \"copy\"").unwrap(),
    };
    assert_eq!(config, expected);
}

#[test]
fn a_directory_or_an_instance_takes_along_what_hangs_on_it() {
    let config = parse("[node]\nruntime_directory = \"/r\"").unwrap();
    assert_eq!(config.api.socket, PathBuf::from("/r/api.sock"));
    let lab: Instance = "lab".parse().unwrap();
    let config = Config::parse(Path::new("lab.toml"), "", &lab).unwrap();
    assert_eq!(config, Config::of_instance(&lab));
    assert_eq!(config, parse("[node]\ninstance = \"lab\"").unwrap());
    assert_eq!((config.tun.name.as_str(), config.api.socket), ("weir-lab", PathBuf::from("/run/weir-lab/api.sock")));
    assert_eq!(Config::file_of(&lab), PathBuf::from("/etc/weir/lab.toml"));
}

#[test]
fn unknown_keys_are_refused_with_the_nearest_known_one() {
    refused("[wan]\nprot = 1", "weir.toml:2:1: unknown key `wan.prot`: did you mean `wan.port`?");
    refused("[lan]\n  interface = []", "weir.toml:2:3: unknown key `lan.interface`: did you mean `lan.interfaces`?");
    refused("[nod]", "weir.toml:1:2: unknown key `nod`: did you mean `node`?");
    refused("\"no\\nde\" = 1", "weir.toml:1:1: unknown key `no\\nde`: did you mean `node`?");
    refused("[api]\nxylophone = 1", "weir.toml:2:1: unknown key `api.xylophone`: remove it");
    let message = "weir.toml:2:5: unknown key `dataplane.xsk.fames`: did you mean `dataplane.xsk.frames`?";
    refused("[dataplane]\nxsk.fames = 4", message);
    refused(
        "[dataplane.rooting]",
        "weir.toml:1:12: unknown key `dataplane.rooting`: did you mean `dataplane.routing`?",
    );
}

/// They were read once, and nothing heeded them: a file that still says them must not seem to be obeyed.
#[test]
fn keys_that_do_nothing_are_refused() {
    refused("[wan]\nbootstrap = []", "weir.toml:2:1: unknown key `wan.bootstrap`: remove it");
    refused("[lan]\nannounce = \"auto\"", "weir.toml:2:1: unknown key `lan.announce`: remove it");
}

#[test]
fn what_is_derived_cannot_be_set_a_second_time() {
    let message = "weir.toml:2:8: `dataplane.wan.port`: weir sets it: remove it here; what sets it is wan.port";
    refused("[dataplane.wan]\nport = 1", message);
    for (section, key, _) in read::DERIVED {
        let error = parse(&format!("[dataplane.{section}]\n{key} = 1")).unwrap_err();
        assert!(error.contains("weir sets it"), "{error}");
    }
}

#[test]
fn wrong_types_and_words_are_answered_with_the_right_ones() {
    refused("[wan]\nport = \"4646\"", "weir.toml:2:8: `wan.port` is a string: write a whole number");
    refused("node = 3", "weir.toml:1:8: `node` is a whole number: write a [section] of its own");
    refused("[lan]\ninterfaces = [1]", "weir.toml:2:15: `lan.interfaces` is a whole number: write a string in quotes");
    for (text, choices) in [
        ("[workers]\nlatency = \"low\"", "write \"balanced\" or \"spin\""),
        ("[workers]\ncores = \"all\"", "write \"auto\" or a list, as in [1, 2]"),
        ("[wan]\nadvertise = [\"host:1\"]", "write 192.0.2.1:4646 or [2001:db8::1]:4646"),
        ("[wan]\nadvertise = [\"192.0.2.1:0\"]", "write 192.0.2.1:4646 or [2001:db8::1]:4646"),
        ("[node]\nname = \"Site\"", "no - at the ends"),
        ("[node]\ninstance = \"Lab\"", "and begin with a letter"),
        ("[node]\nstate_directory = \"state\"", "begin it with /"),
        ("[api]\nread = [\"@\"]", "or \"*\" for everybody"),
        ("[api]\noperate = [\"*\"]", "name users or groups"),
        ("[peers]\nlegacy_kyber = [\"abc\"]", "that `weir members` shows"),
        ("[tun]\nname = \"weir%d\"", "as weir0"),
        ("[wan]\nadvertise = [\"interface\"]", "name that one as well"),
        ("[discovery]\nbootstrap = [\"host:1\"]", "write 192.0.2.1:4646 or [2001:db8::1]:4646"),
        ("[discovery]\nmdns_interfaces = [\"weir0\"]", "has found its way already"),
        ("[wan]\ninterface = \"a/b\"", "without / and :"),
    ] {
        let error = parse(text).unwrap_err();
        assert!(error.ends_with(choices) && error.lines().count() == 1, "{error}");
    }
}

#[test]
fn numbers_are_taken_at_their_limits_and_refused_beyond() {
    let cases: &[(&str, u64, u64)] = &[
        ("[wan]\nport", 1, 65535),
        ("[wan]\nlane_ports", 0, 15),
        ("[tun]\nmtu", 1280, 65455),
        ("[routing]\ntable", 1, u32::MAX.into()),
        ("[routing]\nmark", 1, u32::MAX.into()),
        ("[routing]\nrule_priority", 1, 32765),
        ("[routing]\nmetric", 2, u64::from(u32::MAX) - 1),
        ("[issuer]\nlog_entries_max", 1000, 10_000_000),
    ];
    for &(key, min, max) in cases {
        for good in [min, min + 1, max - 1, max] {
            assert!(parse(&format!("{key} = {good}")).is_ok(), "{key} = {good}");
        }
        for bad in [min as i128 - 1, max as i128 + 1, i128::from(i64::MAX), -1] {
            let error = parse(&format!("{key} = {bad}")).unwrap_err();
            assert!(error.contains(&format!("it must be between {min} and {max}")), "{key} = {bad}: {error}");
        }
    }
    assert!(parse("[routing]\ntable = 254").unwrap_err().contains("the kernel's own"));
    assert_eq!(parse("[wan]\nport = 65520\nlane_ports = 15").unwrap().wan.lane_ports, 15);
    assert!(parse("[wan]\nport = 65521\nlane_ports = 15").unwrap_err().contains("only 14 ports after 65521"));
}

#[test]
fn lists_names_and_paths_are_taken_at_their_limits_and_refused_beyond() {
    let list =
        |len: usize| format!("[lan]\ninterfaces = {:?}", (0..len).map(|n| format!("eth{n}")).collect::<Vec<_>>());
    assert_eq!(parse(&list(LAN_INTERFACES_MAX)).unwrap().lan.interfaces.len(), LAN_INTERFACES_MAX);
    assert!(parse(&list(LAN_INTERFACES_MAX + 1)).unwrap_err().contains("at most 64 are allowed"));
    let cores = |len: usize| format!("[workers]\ncores = {:?}", (0..len).collect::<Vec<_>>());
    for (len, fits) in [(0, false), (1, true), (WORKERS_MAX, true), (WORKERS_MAX + 1, false)] {
        assert_eq!(parse(&cores(len)).is_ok(), fits, "{len}");
    }
    assert!(parse("[workers]\ncores = [1, 2, 1]").unwrap_err().contains("twice"));
    assert!(parse("[api]\nread = [\"a\", \"a\"]").unwrap_err().contains("twice"));
    for (key, max) in [("[node]\nname", 63), ("[tun]\nname", 15), ("[wan]\ninterface", 15), ("[node]\ninstance", 10)] {
        for (len, fits) in [(0, false), (1, true), (max, true), (max + 1, false)] {
            assert_eq!(parse(&format!("{key} = \"{}\"", "n".repeat(len))).is_ok(), fits, "{key} of {len}");
        }
    }
    let socket = |len: usize| format!("[api]\nsocket = \"/{}\"", "s".repeat(len - 1));
    assert!(parse(&socket(107)).is_ok() && parse(&socket(108)).is_err());
    let runtime = |len: usize| format!("[node]\nruntime_directory = \"/{}\"", "s".repeat(len - 1));
    assert!(parse(&runtime(98)).is_ok());
    assert!(parse(&runtime(99)).unwrap_err().contains("set api.socket"));
}

#[test]
fn services_are_taken_at_their_limits_and_refused_beyond_with_what_to_write() {
    let services = |len: usize| -> String {
        (0..len).map(|n| format!("[[discovery.services]]\nname = \"_s{n}._tcp\"\nport = 1\n")).collect()
    };
    assert_eq!(parse(&services(SERVICES_MAX)).unwrap().discovery.services.len(), SERVICES_MAX);
    assert!(parse(&services(SERVICES_MAX + 1)).unwrap_err().contains("`discovery.services`: 17 entries; at most 16"));
    let of = |keys: &str| parse(&format!("[[discovery.services]]\n{keys}"));
    let named = |name: &str| of(&format!("name = \"{name}\"\nport = 1"));
    for good in ["_http._tcp", "_a._udp", "_abcdefghijklmno._tcp"] {
        assert!(named(good).is_ok(), "{good}");
    }
    for bad in ["http", "_http", "_HTTP._tcp", "_http._tcp.a", "_http._sctp", "_80._tcp", "_abcdefghijklmnop._tcp"] {
        let error = named(bad).unwrap_err();
        assert!(error.starts_with("weir.toml:2:8: `discovery.services.name`: "), "{error}");
        assert!(error.ends_with("and ._tcp or ._udp, as _http._tcp") && error.lines().count() == 1, "{error}");
    }
    let error = of("port = 80").unwrap_err();
    assert!(error.contains("`discovery.services.name` is missing: add what the service is called"), "{error}");
    let error = of("name = \"_a._tcp\"").unwrap_err();
    assert!(error.contains("`discovery.services.port` is missing: add where the service listens"), "{error}");
    for port in ["0", "65536"] {
        assert!(of(&format!("name = \"_a._tcp\"\nport = {port}")).unwrap_err().contains("between 1 and 65535"));
    }
    let error = of("name = \"_a._tcp\"\nprot = 1").unwrap_err();
    assert!(error.contains("did you mean `discovery.services.port`?"), "{error}");
    refused(
        "discovery.services = 1",
        "weir.toml:1:22: `discovery.services` is a whole number: write one [[section]] for each",
    );
    refused(
        "discovery.services = [1]",
        "weir.toml:1:23: `discovery.services` is a whole number: write one [[section]] for each",
    );
    let twice = "[[discovery.services]]\nname = \"_a._tcp\"\nport = 1\n".repeat(2);
    assert!(parse(&twice).unwrap_err().contains("weir.toml:5:8: `discovery.services.name`: _a._tcp stands here twice"));
    let texts = |len: usize, text: usize| {
        let texts: Vec<String> = (0..len).map(|n| format!("{n}{}", "x".repeat(text - 1))).collect();
        format!("[[discovery.services]]\nname = \"_a._tcp\"\nport = 1\ntext = {texts:?}\n")
    };
    assert!(parse(&texts(ServiceValue::TEXTS_MAX, ServiceValue::TEXT_LEN_MAX)).is_ok());
    assert!(parse(&texts(ServiceValue::TEXTS_MAX + 1, 2)).unwrap_err().contains("at most 8 are allowed"));
    assert!(parse(&texts(1, ServiceValue::TEXT_LEN_MAX + 1)).unwrap_err().contains("write between 1 and 255"));
    assert!(of("name = \"_a._tcp\"\nport = 1\ntext = [\"\"]").unwrap_err().contains("a text of 0 bytes"));
    let many = texts(8, 255) + &texts(1, 9).replace("_a.", "_b.");
    assert!(parse(&many).unwrap_err().contains("texts of 2049 bytes, at most 2048 for all services together"));
    assert!(parse(&(texts(8, 255) + &texts(1, 8).replace("_a.", "_b."))).is_ok());
}

#[test]
fn interfaces_keep_to_one_duty() {
    let message = "weir.toml:4:14: `lan.interfaces`: eth0 is the WAN interface: one interface cannot be both";
    refused("[wan]\ninterface = \"eth0\"\n[lan]\ninterfaces = [\"eth0\"]", message);
    assert!(parse("[lan]\ninterfaces = [\"weir0\"]").unwrap_err().contains("`tun.name`: weir0 is the name"));
}

#[cfg(not(feature = "legacy-kyber"))]
#[test]
fn the_draft_group_needs_a_program_that_has_it() {
    let error = parse(&format!("[peers]\nlegacy_kyber = [\"{}\"]", NodeId([1; 32]))).unwrap_err();
    assert!(error.contains("built without the feature legacy-kyber"), "{error}");
}

#[test]
fn files_that_are_no_configuration_are_refused_and_one_that_is_not_there_means_the_defaults() {
    let file = std::env::temp_dir().join(format!("weir-cli-config-{}.toml", std::process::id()));
    let instance: Instance = "nosuch".parse().unwrap();
    let load = |bytes: &[u8]| {
        std::fs::write(&file, bytes).unwrap();
        let result = Config::find(Some(&file), &instance).map_err(|error| error.to_string());
        std::fs::remove_file(&file).unwrap();
        result
    };
    let mut text = Vec::new();
    text.resize(FILE_LEN_MAX as usize, b'\n');
    assert!(load(&text).is_ok());
    text.push(b'\n');
    assert!(load(&text).unwrap_err().contains("is longer than 1048576 bytes"));
    assert!(load(b"a = 1\nb = \"\xff\"").unwrap_err().contains(":2:6: not valid TOML"));
    assert!(load(b"[wan").unwrap_err().contains(":1:"));
    assert!(Config::find(Some(&file), &instance).unwrap_err().to_string().contains("cannot be read"));
    assert_eq!(Config::find(None, &instance).unwrap(), Config::of_instance(&instance));
}

/// The packet plane's own tests read its example, so a key that stands there is one that it takes.
#[test]
fn the_packet_planes_file_has_what_we_derive_and_what_was_set_over_it() {
    let example: toml::Table = toml::from_str(include_str!("../../../docs/examples/weir-dataplane.toml")).unwrap();
    let config =
        parse("[dataplane]\ntransit = true\n[dataplane.wan]\nattach = \"tc\"\n[dataplane.xsk]\nframes = 256").unwrap();
    let overlay = Overlay {
        addresses: vec![("10.200.0.1".parse::<IpAddr>().unwrap(), 24), ("fd00::1".parse().unwrap(), 128)],
        prefixes: vec!["10.0.0.0/8".parse().unwrap(), "fd00::/48".parse().unwrap()],
    };
    let text = plane_toml(&config, &overlay, Some("eth0")).unwrap();
    let written: toml::Table = toml::from_str(&text).unwrap();
    let expected: toml::Table = toml::from_str(
        r#"
        transit = true
        calibration = "/var/lib/weir/calibration.json"
        api.socket = "/run/weir/plane.sock"
        lan.interfaces = []
        xsk.frames = 256
        [wan]
        interface = "eth0"
        port = 4646
        lane_ports = 0
        attach = "tc"
        [tun]
        name = "weir0"
        addresses = ["10.200.0.1/24", "fd00::1/128"]
        mtu = 1420
        [workers]
        cores = "auto"
        latency = "balanced"
        [routing]
        table = 7770
        mark = 0x7765
        rule_priority = 7770
        metric = 1024
        prefixes = ["10.0.0.0/8", "fd00::/48"]
        "#,
    )
    .unwrap();
    assert_eq!(written, expected);
    let known = |section: &str, key: &str| match section {
        "" => example.contains_key(key),
        // The example shows this section behind comment signs.
        "fault" => include_str!("../../../docs/examples/weir-dataplane.toml").contains(&format!("# {key} = ")),
        section => example[section].as_table().unwrap().contains_key(key),
    };
    let ours = read::DERIVED.iter().map(|(section, key, _)| (*section, *key));
    let passed = read::PLANE_KEYS.iter().flat_map(|(section, keys)| keys.iter().map(move |key| (*section, *key)));
    let all: Vec<_> = ours.chain(passed).collect();
    assert!(all.iter().all(|(section, key)| known(section, key)));
    for (section, keys) in &example {
        for key in keys.as_table().map_or(Vec::new(), |keys| keys.keys().collect()) {
            assert!(all.contains(&(section.as_str(), key)), "{section}.{key} can be neither derived nor passed on");
        }
    }
}

#[test]
fn the_packet_planes_file_needs_an_interface_and_keeps_to_its_limits() {
    let config = parse("").unwrap();
    assert_eq!(plane_toml(&config, &Overlay::default(), None), Err(PlaneError::NoWan));
    let named = parse("[wan]\ninterface = \"eth3\"").unwrap();
    assert!(plane_toml(&named, &Overlay::default(), Some("eth0")).unwrap().contains("interface = \"eth3\""));
    let prefixes = |len: usize| Overlay {
        addresses: Vec::new(),
        prefixes: (0..len).map(|n| format!("10.{}.{}.0/24", n >> 8, n & 255).parse().unwrap()).collect(),
    };
    assert!(plane_toml(&named, &prefixes(1024), None).is_ok());
    assert_eq!(plane_toml(&named, &prefixes(1025), None), Err(PlaneError::Prefixes(1025)));
    let addresses = |len: u8| Overlay {
        addresses: (0..len).map(|n| (IpAddr::from([10, 0, 0, n]), 32)).collect(),
        prefixes: Vec::new(),
    };
    assert!(plane_toml(&named, &addresses(64), None).is_ok());
    assert_eq!(plane_toml(&named, &addresses(65), None), Err(PlaneError::Addresses(65)));
}

#[test]
fn the_default_route_names_the_interface() {
    let v4 = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
              eth1\t00000000\t0101A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0\n\
              eth2\t00000000\t0101A8C0\t0203\t0\t0\t1\t00000000\t0\t0\t0\n\
              eth0\t00000000\t0100A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
              eth0\t0000A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
    let zeros = "0".repeat(32);
    let v6 = format!(
        "{zeros} 00 {zeros} 00 fe800000000000000000000000000001 00000400 00000001 00000000 00000003     eth5\n\
         {zeros} 00 {zeros} 00 {zeros} ffffffff 00000001 00000000 00200200       lo\n"
    );
    assert_eq!(default_route_interface(v4, &v6).as_deref(), Some("eth0"));
    assert_eq!(default_route_interface("", &v6).as_deref(), Some("eth5"));
    assert_eq!(default_route_interface("nonsense", "nonsense\n00"), None);
}
