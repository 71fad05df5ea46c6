//! Many gateways on one network segment, each a whole node in a namespace of its own: lost to each other, and found again from one address.
//!
//! ```text
//!   g1 founds ─▶ g2 … gn join ─▶ all stop, the switch goes off, every host gets another address of the /24
//!     ─▶ all start, and know one address that holds: the bootstrap's ─▶ the switch goes on ─▶ until everybody has found everybody
//!     ─▶ the bootstrap is destroyed ─▶ one more joins through some other member, with no way to the issuer
//! ```
//!
//! What is known of others from before is worth nothing then: at no address of that time does anybody answer. The bootstrap is no issuer, so that
//! nothing but finding hangs on it. Time runs from when the first port of the switch goes on, and nothing starts in it but conversations.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;
use weir_controlplane::api::Call;
use weir_controlplane::api::types::FindRequest;

use crate::compare::system::{Resident, Workers};
use crate::gateway::PORT;
use crate::member::{Member, Part};
use crate::rig::mesh::{Mesh, Site};
use crate::{Error, Result};

/// The issuer's node, and the member whose address all others are told; places in the list of members.
const FOUNDER: usize = 0;
const BOOTSTRAP: usize = 1;
/// The new last byte of an address is the old one and this.
const MOVED_BY: u8 = 100;
/// Most gateways: as many last bytes there are beside each other.
pub const GATEWAYS_MAX: u8 = 60;
/// Joins at a time: each brings a packet plane to start, and all share a few cores.
const JOIN_AT_ONCE: usize = 4;
/// How often one is tried.
const JOIN_ATTEMPTS: u32 = 5;
/// For so many processes to start on few cores, and for finding: more than anybody should wait for.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often what is waited for is looked at.
const POLL: Duration = Duration::from_millis(20);

/// How soon everybody was found, since the switch went on.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// Every node could say where each other one is: by `weir members`, from records that the others signed at their new addresses.
    pub listed: Duration,
    /// Every node had found the next one, and its new address, by a look-up in the DHT alone.
    pub looked_up: Duration,
    /// Processor time of all processes of all nodes from start to end of the later of the two, s.
    pub cpu_s: f64,
    /// Members in the table of a node's DHT then: least, median.
    pub contacts: [u64; 2],
}

/// How one more member came in.
#[derive(Clone, Copy, Debug)]
pub struct Joined {
    /// From `weir join` to its answer.
    pub answered: Duration,
    /// From `weir join` until everybody who is left, it included, can say where everybody else is.
    pub known: Duration,
}

/// What a node has in memory, KiB.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Its control plane.
    pub control: u64,
    /// Its packet plane.
    pub plane: u64,
}

/// The nodes, the founder first.
pub struct Fleet<'a> {
    mesh: &'a Mesh,
    members: Vec<Member<'a>>,
}

fn moved(site: &Site) -> String {
    let [a, b, c, d] = site.wan().octets();
    format!("{a}.{b}.{c}.{}", d + MOVED_BY)
}

fn endpoint(site: &Site) -> String {
    format!("{}:{PORT}", moved(site))
}

fn name(site: &Site) -> String {
    format!("site-{}", site.number)
}

fn broken(what: &str, detail: impl ToString) -> Error {
    Error::Broken { what: what.to_owned(), detail: detail.to_string() }
}

/// Waits until something holds on a node.
fn wait(member: &Member<'_>, what: &str, mut holds: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        if Instant::now() > deadline {
            return Err(broken(&format!("waiting for {what} on g{}", member.site().number), member.log()));
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

fn answers(member: &Member<'_>) -> bool {
    member.ask(&Call::Status).is_ok()
}

fn has_plane(member: &Member<'_>) -> bool {
    member.ask(&Call::Status).is_ok_and(|status| status["plane"]["running"] == Value::Bool(true))
}

/// Joins, and again with the same token where nothing was heard: on few cores thirty gateways starve each other at first.
fn join(member: &Member<'_>, token: &str) -> Result<()> {
    let mut last = Ok(());
    for _ in 0..JOIN_ATTEMPTS {
        last = member.weir(&["join", token]).map(drop);
        if last.is_ok() {
            break;
        }
    }
    last
}

/// Whether a node can say where all of these are, itself among them.
fn knows(member: &Member<'_>, expected: &BTreeMap<String, String>) -> bool {
    let Ok(Value::Array(rows)) = member.ask(&Call::Members) else { return false };
    let is_as_expected = |row: &&Value| {
        let (name, at) = (row["name"].as_str().unwrap_or_default(), row.pointer("/endpoints/0"));
        expected.get(name).is_some_and(|address| at.and_then(Value::as_str) == Some(address))
    };
    rows.iter().filter(is_as_expected).count() == expected.len()
}

/// Whether a node finds another by the DHT alone, where it is now.
fn finds(by: &Member<'_>, of: &Site) -> bool {
    let call = Call::Find(FindRequest { what: name(of), dht: true });
    let endpoint = endpoint(of);
    by.ask(&call).is_ok_and(|found| found["source"] == "dht" && found["endpoints"][0] == endpoint.as_str())
}

impl<'a> Fleet<'a> {
    /// Founds a network on the first of so many sites; all others join it, four at a time. The time is that from the first join until everybody can say
    /// where everybody is, starts of packet planes included.
    ///
    /// # Errors
    /// [`Error::Broken`] with what the node said that did not do it.
    pub fn enrol(mesh: &'a Mesh, gateways: u8, settings: &str) -> Result<(Self, Duration)> {
        let sites = &mesh.sites()[..usize::from(gateways.min(GATEWAYS_MAX))];
        let members = sites.iter().map(|site| Member::new(site, settings)).collect::<Result<Vec<_>>>()?;
        let mut fleet = Self { mesh, members };
        fleet.members[FOUNDER].found("example")?;
        fleet.members.iter_mut().try_for_each(Member::launch)?;
        fleet.members.iter().try_for_each(|member| wait(member, "its API", || answers(member)))?;
        wait(&fleet.members[FOUNDER], "its packet plane", || has_plane(&fleet.members[FOUNDER]))?;
        let invite = |member: &Member<'_>| fleet.members[FOUNDER].invite(member.site());
        let tokens = fleet.members[1..].iter().map(invite).collect::<Result<Vec<_>>>()?;
        let began = Instant::now();
        let others = fleet.members.get(1..).unwrap_or_default();
        for (some, tokens) in others.chunks(JOIN_AT_ONCE).zip(tokens.chunks(JOIN_AT_ONCE)) {
            std::thread::scope(|scope| {
                let joins: Vec<_> =
                    some.iter().zip(tokens).map(|(member, token)| scope.spawn(move || join(member, token))).collect();
                joins
                    .into_iter()
                    .try_for_each(|join| join.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            })?;
        }
        let expected: BTreeMap<_, _> =
            sites.iter().map(|site| (name(site), format!("{}:{PORT}", site.wan()))).collect();
        for member in &fleet.members {
            wait(member, "all records", || knows(member, &expected))?;
        }
        let took = began.elapsed();
        for member in &fleet.members {
            wait(member, "its packet plane", || has_plane(member))?;
        }
        Ok((fleet, took))
    }

    /// Stops everybody, gives every host another address, and starts all of them at a switch that is off. Nobody can have found anybody then. The
    /// time is that from the first start until the last packet plane runs.
    ///
    /// # Errors
    /// As [`Self::enrol`].
    pub fn lose(&mut self) -> Result<Duration> {
        self.members.iter_mut().try_for_each(Member::stop)?;
        self.mesh.plug(false)?;
        let bootstrap = endpoint(self.members[BOOTSTRAP].site());
        for member in &self.members {
            renumber(member.site())?;
            let site = member.site();
            let before = format!("\"{}:{PORT}\"", site.wan());
            let told = format!("\n[discovery]\nbootstrap = [\"{bootstrap}\"]\n");
            member.reconfigure(|text| text.replace(&before, &format!("\"{}\"", endpoint(site))) + &told)?;
        }
        let began = Instant::now();
        self.members.iter_mut().try_for_each(Member::launch)?;
        for member in &self.members {
            wait(member, "its packet plane", || has_plane(member))?;
        }
        let took = began.elapsed();
        for member in &self.members {
            let status = member.ask(&Call::Status)?;
            if status["peers_connected"] != 0 {
                return Err(broken("losing all others", status));
            }
        }
        Ok(took)
    }

    /// Switches the switch on, and waits until everybody has found everybody.
    ///
    /// # Errors
    /// As [`Self::enrol`].
    pub fn find(&self) -> Result<Found> {
        let expected = self.expected();
        let before = self.cpu_s();
        let began = Instant::now();
        self.mesh.plug(true)?;
        let (listed, looked_up) = std::thread::scope(|scope| -> Result<(Duration, Duration)> {
            let next = self.members.iter().skip(1).chain(&self.members).map(Member::site);
            let searches: Vec<_> = (self.members.iter().zip(next))
                .map(|(by, of)| scope.spawn(move || wait(by, "a look-up in the DHT", || finds(by, of))))
                .collect();
            for member in &self.members {
                wait(member, "all records", || knows(member, &expected))?;
            }
            let listed = began.elapsed();
            for search in searches {
                search.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            }
            Ok((listed, began.elapsed()))
        })?;
        let cpu_s = self.cpu_s() - before;
        let mut contacts = self.members.iter().map(contacts).collect::<Result<Vec<_>>>()?;
        contacts.sort_unstable();
        Ok(Found { listed, looked_up, cpu_s, contacts: [contacts[0], contacts[contacts.len() / 2]] })
    }

    /// Has everybody look for everybody else by the DHT alone, one after the other: how many look-ups there were, and how many of them found the
    /// address of today.
    pub fn look_up_all(&self) -> [u64; 2] {
        let mut counted = [0, 0];
        for by in &self.members {
            for of in self.members.iter().filter(|of| of.site().number != by.site().number) {
                counted[0] += 1;
                counted[1] += u64::from(finds(by, of.site()));
            }
        }
        counted
    }

    /// Destroys the bootstrap: processes, keys and state.
    ///
    /// # Errors
    /// As [`Member::destroy`].
    pub fn lose_bootstrap(&mut self) -> Result<()> {
        self.members.remove(BOOTSTRAP).destroy()
    }

    /// Has a node on the next site join through the last of the members, while nothing passes between it and the issuer's node.
    ///
    /// # Errors
    /// As [`Self::enrol`]; [`Error::Broken`] when the mesh has no site left.
    pub fn join_one(&mut self) -> Result<Joined> {
        let taken = self.members.iter().map(|member| member.site().number).max().unwrap_or(0);
        let site = self.mesh.sites().iter().find(|site| site.number > taken);
        let site = site.ok_or_else(|| broken("one more member", "the mesh has no site for it"))?;
        renumber(site)?;
        let mut member = Member::new(site, "")?;
        let before = format!("\"{}:{PORT}\"", site.wan());
        member.reconfigure(|text| text.replace(&before, &format!("\"{}\"", endpoint(site))))?;
        let issuer = moved(self.members[FOUNDER].site());
        run(site, &["route", "add", "blackhole", &issuer])?;
        member.launch()?;
        wait(&member, "its API", || answers(&member))?;
        let token = self.members[FOUNDER].invite(site)?;
        let through = self.members.last().map(|door| endpoint(door.site())).unwrap_or_default();
        let began = Instant::now();
        member.weir(&["join", &token, "--via", &through])?;
        let answered = began.elapsed();
        self.members.push(member);
        let expected = self.expected();
        for member in &self.members {
            wait(member, "the record of who joined", || knows(member, &expected))?;
        }
        let known = began.elapsed();
        run(site, &["route", "delete", "blackhole", &issuer])?;
        Ok(Joined { answered, known })
    }

    /// The nodes.
    pub fn members(&self) -> &[Member<'a>] {
        &self.members
    }

    /// What each node has in memory: median of all.
    ///
    /// # Errors
    /// [`Error::Broken`] when a process of a node does not run.
    pub fn memory(&self) -> Result<Memory> {
        let median = |part: Part| -> Result<u64> {
            let own = |member: &Member<'_>| {
                let resident = member.pid(part).and_then(Resident::of);
                let what =
                    || broken("reading the memory of a node", format!("{part:?} does not run: {}", member.log()));
                resident.map(|resident| resident.anonymous).ok_or_else(what)
            };
            let mut all = self.members.iter().map(own).collect::<Result<Vec<_>>>()?;
            all.sort_unstable();
            Ok(all[all.len() / 2])
        };
        Ok(Memory { control: median(Part::Control)?, plane: median(Part::Plane)? })
    }

    fn expected(&self) -> BTreeMap<String, String> {
        self.members.iter().map(|member| (name(member.site()), endpoint(member.site()))).collect()
    }

    /// Processor time of all processes so far, s.
    fn cpu_s(&self) -> f64 {
        let parts = [Part::Control, Part::Plane, Part::Issuer];
        let processes = self.members.iter().flat_map(|member| parts.map(|part| member.pid(part))).flatten().collect();
        Workers { processes, threads: vec![] }.run_seconds().iter().sum()
    }
}

fn contacts(member: &Member<'_>) -> Result<u64> {
    Ok(member.ask(&Call::DhtStatus)?["contacts"].as_u64().unwrap_or(0))
}

/// Gives a gateway another address on its WAN in place of all that it has.
fn renumber(site: &Site) -> Result<()> {
    let address = format!("{}/24", moved(site));
    run(site, &["address", "flush", "dev", "wan", "scope", "global"])?;
    run(site, &["address", "add", &address, "dev", "wan"])?;
    run(site, &["route", "replace", "default", "via", "192.0.2.254", "dev", "wan"])
}

fn run(site: &Site, arguments: &[&str]) -> Result<()> {
    let output = site.gateway.command("ip").args(arguments).output().map_err(Error::io("cannot start ip"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(broken(&format!("ip {}", arguments.join(" ")), String::from_utf8_lossy(&output.stderr).trim())),
    }
}
