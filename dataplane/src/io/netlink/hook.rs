//! Who else handles packets on their way through this host: nftables, iptables, tc.
//!
//! A packet that goes past the kernel's router goes past these too. They are asked for here; whether one forbids it is decided elsewhere.

use std::fmt;
use std::fs;
use std::io;

use aya::programs::SchedClassifier;
use aya::programs::tc::TcAttachType;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcHandle, TcMessage};
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::raw::Raw;
use super::{Error, Netlink};

// From `linux/netfilter.h`, `linux/netfilter/nfnetlink.h` and `linux/netfilter/nf_tables.h`.

/// Bytes of `struct nfgenmsg`.
const NFGENMSG_LEN: usize = 4;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFT_MSG_NEWCHAIN: u16 = 3;
const NFT_MSG_GETCHAIN: u16 = 4;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFPROTO_INET: u8 = 1;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_NETDEV: u8 = 5;
const NFPROTO_IPV6: u8 = 10;
/// `NF_INET_LOCAL_IN` and `NF_INET_LOCAL_OUT`: packets of the host itself, which stay with the kernel in any case.
const HOST_HOOKS: [u32; 2] = [1, 3];

/// Parents of the filters at ingress and egress: `TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS)` and `…_EGRESS` of `linux/pkt_sched.h`.
const CLSACT: [(u16, u16); 2] = [(0xffff, 0xfff2), (0xffff, 0xfff3)];
/// Parents of the filters of classful queueing disciplines as they are usually numbered, and of those of `ingress`.
const ROOTS: [(u16, u16); 2] = [(0, 0), (0xffff, 0)];

/// Names of our own programs at tc.
const OWN_PROGRAMS: [&str; 3] = ["wan", "wan_tc", "lan"];

/// Something that handles packets which this host forwards.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hook {
    /// What it is and its name, as in `nftables chain filter/forward`.
    pub what: String,
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

/// Asks for hooks; it keeps its sockets open, because it asks again at every change.
#[derive(Debug)]
pub struct Hooks {
    netfilter: Option<Netlink>,
}

impl Hooks {
    /// Opens the sockets. On a kernel without netfilter there is nothing to ask.
    pub fn open() -> Self {
        Self { netfilter: Netlink::open_protocol(NETLINK_NETFILTER).ok() }
    }

    /// The chains and tables through which forwarded packets go, in this network namespace. Needs CAP_NET_ADMIN.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub fn forwarding(&mut self) -> Result<Vec<Hook>, Error> {
        let mut hooks = self.chains()?;
        hooks.extend(legacy_tables());
        hooks.sort();
        hooks.dedup();
        Ok(hooks)
    }

    fn chains(&mut self) -> Result<Vec<Hook>, Error> {
        let Some(netfilter) = &mut self.netfilter else { return Ok(vec![]) };
        let get = Raw::new(NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETCHAIN, &[0; NFGENMSG_LEN]);
        match netfilter.dump(get, |answer| read_chain(&answer)) {
            // A kernel without nftables does not know the request.
            Err(failure) if failure.is(&[libc::EINVAL]) => Ok(vec![]),
            other => other.map_err(|failure| failure.during("list the nftables chains")),
        }
    }
}

/// A base chain through which forwarded packets go.
fn read_chain(message: &Raw) -> Option<Hook> {
    if message.kind != NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWCHAIN {
        return None;
    }
    let attributes = message.attributes(NFGENMSG_LEN);
    let hook = attributes.nested(NFTA_CHAIN_HOOK)?.be32(NFTA_HOOK_HOOKNUM)?;
    let concerns = match *message.bytes.first()? {
        NFPROTO_NETDEV => true,
        NFPROTO_INET | NFPROTO_IPV4 | NFPROTO_IPV6 => !HOST_HOOKS.contains(&hook),
        // Bridges and ARP: no packet of a routed link comes there.
        _ => false,
    };
    let name = |attribute| attributes.text(attribute).unwrap_or_default();
    concerns.then(|| Hook { what: format!("nftables chain {}/{}", name(NFTA_CHAIN_TABLE), name(NFTA_CHAIN_NAME)) })
}

/// Tables of the older iptables, which nftables does not show.
fn legacy_tables() -> Vec<Hook> {
    ["ip_tables_names", "ip6_tables_names"]
        .into_iter()
        .flat_map(|file| {
            let names = fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default();
            let program = if file.starts_with("ip6") { "ip6tables" } else { "iptables" };
            let hooks: Vec<_> = names.lines().map(|name| Hook { what: format!("{program} table {name}") }).collect();
            hooks
        })
        .collect()
}

impl Netlink {
    /// The filters and programs of others at tc of an interface.
    ///
    /// # Errors
    /// What the socket may say.
    pub fn filters(&mut self, index: u32, name: &str) -> Result<Vec<Hook>, Error> {
        let mut found = 0;
        for (major, minor) in CLSACT.into_iter().chain(ROOTS) {
            let mut message = TcMessage::default();
            message.header.index = index as i32;
            message.header.parent = TcHandle { major, minor };
            let asked = self.dump(RouteNetlinkMessage::GetTrafficFilter(message), |answer| match answer {
                RouteNetlinkMessage::NewTrafficFilter(_) => Some(()),
                _ => None,
            });
            match asked {
                Ok(filters) => found += filters.len(),
                // No such queueing discipline, or none that has filters.
                Err(failure) if failure.is(&[libc::EINVAL]) => {}
                Err(failure) => return Err(failure.during(format!("list the tc filters of {name}"))),
            }
        }
        let mut hooks = vec![];
        if found > 0 {
            hooks.push(Hook { what: format!("tc filters on {name}") });
        }
        for (direction, attach) in [("ingress", TcAttachType::Ingress), ("egress", TcAttachType::Egress)] {
            let programs = match SchedClassifier::query_tcx(name, attach) {
                Ok((_, programs)) => programs,
                // Their number is told to whoever has CAP_NET_ADMIN, their names only to CAP_SYS_ADMIN: there is one, and it is not ours to name.
                Err(error) if is_denied(&error) => {
                    hooks.push(Hook { what: format!("a program at tc {direction} of {name}") });
                    continue;
                }
                // Before Linux 6.6 there is no TCX, and so nothing to find.
                Err(_) => continue,
            };
            hooks.extend(programs.iter().filter_map(|program| {
                let program = program.name_as_str().unwrap_or("?");
                let what = format!("program {program} at tc {direction} of {name}");
                (!OWN_PROGRAMS.contains(&program)).then_some(Hook { what })
            }));
        }
        Ok(hooks)
    }
}

/// Whether an error comes from a call that was not allowed.
fn is_denied(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) == Some(libc::EPERM) {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::super::testing::{Namespace, ip};
    use super::*;

    #[track_caller]
    fn run(program: &str, arguments: &str) {
        let output = Command::new(program).args(arguments.split(' ')).output().unwrap();
        assert!(output.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn names(hooks: &[Hook]) -> Vec<&str> {
        hooks.iter().map(|hook| hook.what.as_str()).collect()
    }

    #[test]
    fn chains_that_forwarded_packets_go_through_are_found() {
        let _namespace = Namespace::with_veth();
        let mut hooks = Hooks::open();
        assert_eq!(names(&hooks.forwarding().unwrap()), [""; 0]);
        run("nft", "add table inet t");
        run("nft", "add chain inet t plain");
        run("nft", "add chain inet t in { type filter hook input priority 0 ; }");
        run("nft", "add chain inet t out { type filter hook output priority 0 ; }");
        assert_eq!(names(&hooks.forwarding().unwrap()), [""; 0], "packets of the host itself");
        run("nft", "add chain inet t forwarding { type filter hook forward priority 0 ; }");
        assert_eq!(names(&hooks.forwarding().unwrap()), ["nftables chain t/forwarding"]);
        run("nft", "add table ip n");
        run("nft", "add chain ip n post { type nat hook postrouting priority 100 ; }");
        run("nft", "add table netdev d");
        run("nft", "add chain netdev d in { type filter hook ingress device va priority 0 ; }");
        let all = ["nftables chain d/in", "nftables chain n/post", "nftables chain t/forwarding"];
        assert_eq!(names(&hooks.forwarding().unwrap()), all);
        run("nft", "flush ruleset");
        assert_eq!(names(&hooks.forwarding().unwrap()), [""; 0]);
    }

    #[test]
    fn filters_at_tc_are_found() {
        let _namespace = Namespace::with_veth();
        ip("link set va up");
        let mut netlink = Netlink::open().unwrap();
        let index = netlink.link("va").unwrap().index;
        assert_eq!(names(&netlink.filters(index, "va").unwrap()), [""; 0]);
        run("tc", "qdisc add dev va clsact");
        assert_eq!(names(&netlink.filters(index, "va").unwrap()), [""; 0]);
        run("tc", "filter add dev va egress protocol ip u32 match u32 0 0");
        assert_eq!(names(&netlink.filters(index, "va").unwrap()), ["tc filters on va"]);
    }
}
