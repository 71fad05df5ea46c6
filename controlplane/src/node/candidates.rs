//! Addresses at which somebody says that a member is: a list in the configuration, a voice on the local network, a record in the DHT.
//!
//! ```text
//!  bootstrap list ─┐           ┌─────────┐  due   ┌────────┐ a member ──▶ its address is told to the peer that it is; it is dialled
//!  mDNS, DHT ──────┴─ offer ──▶│ Waiting │───────▶│ Trying │ ourselves ─▶ never tried again
//!                              └─────────┘        └────────┘ nobody ────▶ later, ever later; after some times it is forgotten
//! ```
//!
//! Nobody is believed: what counts is the chain that is shown at the address. Who may say what, and how an address is tried, this part
//! refuses to know. Addresses that are configured are kept for ever; all others only while there is room and they are worth it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::pki::id::NodeId;
use crate::quic::LinkId;
use crate::time::{Now, UnixSecs};

/// Most candidates: four times the longest list that is configured.
pub const CANDIDATES_MAX: usize = 256;
/// Most that are tried at once: with the time that one takes, three dials a second, whatever others say.
pub const TRIED_MAX: usize = 4;
/// How often in a row one may fail that nobody configured: about four minutes.
pub const FAILURES_MAX: u32 = 8;
/// Most that nobody but other members have named; each is tried once. Ours: members with a link name sixteen a minute, and those that they make up take no
/// attempts from the others.
pub const EXCHANGED_MAX: usize = 16;
/// First wait after a failure; doubles.
const BACK_OFF_MIN: Duration = Duration::from_secs(1);
/// Longest wait: a bootstrap address that is off costs a dial in so much time.
const BACK_OFF_MAX: Duration = Duration::from_secs(300);

/// Who said so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// The configuration.
    Bootstrap,
    /// Somebody on the local network.
    Mdns,
    /// Another member has a link to it.
    Exchange,
    /// The DHT, which was asked for a member that the directory does not have.
    Dht,
}

impl Source {
    /// As people read it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bootstrap => "bootstrap",
            Self::Mdns => "mdns",
            Self::Exchange => "exchange",
            Self::Dht => "dht",
        }
    }
}

/// Where it stands with a candidate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It was not tried yet.
    Waiting,
    /// It is being tried.
    Trying,
    /// This member answered there.
    Member(NodeId),
    /// We answered ourselves.
    Own,
    /// It was tried, and this came of it.
    Failed(String),
}

/// An address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Who named it.
    pub sources: Vec<Source>,
    /// When it was named last.
    pub seen: UnixSecs,
    /// Where it stands.
    pub state: State,
    /// Failures in a row.
    pub failures: u32,
    /// Failures since there was reason for haste: what the next wait goes by.
    waits: u32,
    /// Who answered there last.
    member: Option<NodeId>,
    due: Option<Instant>,
    link: Option<LinkId>,
}

impl Candidate {
    fn is_configured(&self) -> bool {
        self.sources.contains(&Source::Bootstrap)
    }

    /// Nobody but another member has named it.
    fn is_hearsay(&self) -> bool {
        self.sources == [Source::Exchange]
    }
}

/// What became of an offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offered {
    /// It is new.
    New,
    /// It was known.
    Known,
    /// Nobody can be there.
    NoAddress,
    /// There is no room.
    Full,
}

/// All of them.
#[derive(Clone, Debug, Default)]
pub struct Candidates {
    by_address: BTreeMap<SocketAddr, Candidate>,
}

/// Whether somebody can be at an address: a host of its own, on this link or beyond it. One that is good on one link only needs its
/// interface named, which records and sessions have no place for.
pub fn may_be_dialled(address: SocketAddr) -> bool {
    let is_host = match address.ip() {
        IpAddr::V4(ip) => !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || ip.is_broadcast()),
        IpAddr::V6(ip) => !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || ip.is_unicast_link_local()),
    };
    is_host && address.port() != 0
}

impl Candidates {
    /// Somebody names an address.
    pub fn offer(&mut self, source: Source, address: SocketAddr, now: Now) -> Offered {
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        if !may_be_dialled(address) {
            return Offered::NoAddress;
        }
        if let Some(known) = self.by_address.get_mut(&address) {
            known.seen = now.wall;
            if !known.sources.contains(&source) {
                known.sources.push(source);
            }
            return Offered::Known;
        }
        let is_full = source == Source::Exchange
            && self.by_address.values().filter(|known| known.is_hearsay()).count() >= EXCHANGED_MAX;
        if is_full || self.by_address.len() >= CANDIDATES_MAX && !self.make_room() {
            return Offered::Full;
        }
        let (sources, seen, due) = (vec![source], now.wall, Some(now.mono));
        let new =
            Candidate { sources, seen, state: State::Waiting, failures: 0, waits: 0, member: None, due, link: None };
        self.by_address.insert(address, new);
        Offered::New
    }

    /// Forgets the one that was named longest ago, of those that have led to somebody or to nobody. What still waits is not pushed out, or
    /// whoever names many addresses would see to it that none is tried.
    fn make_room(&mut self) -> bool {
        let is_done = |candidate: &Candidate| !matches!(candidate.state, State::Waiting | State::Trying);
        let done = self.by_address.iter().filter(|(_, known)| !known.is_configured() && is_done(known));
        let oldest = done.min_by_key(|(_, known)| known.seen).map(|(address, _)| *address);
        oldest.is_some_and(|address| self.by_address.remove(&address).is_some())
    }

    /// When one is to be tried next; `None` while as many are tried as may be, or none is due.
    pub fn next_due(&self) -> Option<Instant> {
        let tried = self.by_address.values().filter(|known| known.state == State::Trying).count();
        self.by_address.values().filter_map(|known| known.due).min().filter(|_| tried < TRIED_MAX)
    }

    /// One that is due, which counts as being tried from now on.
    pub fn begin(&mut self, now: Instant) -> Option<SocketAddr> {
        self.next_due().filter(|due| *due <= now)?;
        let due = self.by_address.iter_mut().filter(|(_, known)| known.due.is_some_and(|due| due <= now));
        let (address, candidate) = due.min_by_key(|(_, known)| known.due)?;
        (candidate.state, candidate.due) = (State::Trying, None);
        Some(*address)
    }

    /// The link by which one is tried.
    pub fn dialled(&mut self, address: SocketAddr, link: LinkId) {
        if let Some(candidate) = self.by_address.get_mut(&address) {
            candidate.link = Some(link);
        }
    }

    /// The address that is tried by this link.
    pub fn tried_by(&self, link: LinkId) -> Option<SocketAddr> {
        self.by_address.iter().find(|(_, known)| known.link == Some(link)).map(|(address, _)| *address)
    }

    /// Who is at an address is known. `true` when it is a member that was not there the last time that somebody was.
    pub fn found(&mut self, address: SocketAddr, state: State) -> bool {
        let Some(candidate) = self.by_address.get_mut(&address) else { return false };
        let member = match &state {
            State::Member(node) => Some(*node),
            State::Waiting | State::Trying | State::Own | State::Failed(_) => None,
        };
        let is_news = member.is_some() && member != candidate.member;
        (candidate.failures, candidate.waits) = (0, 0);
        (candidate.state, candidate.due, candidate.link) = (state, None, None);
        candidate.member = member;
        is_news
    }

    /// Nobody of ours is there. It is tried again later, or forgotten: then `true`. `share` in 0..256 spreads those that fail together.
    pub fn failed(&mut self, address: SocketAddr, why: &str, share: u8, now: Instant) -> bool {
        let Some(candidate) = self.by_address.get_mut(&address) else { return false };
        let doubled = BACK_OFF_MIN.saturating_mul(1 << candidate.waits.min(16)).min(BACK_OFF_MAX);
        candidate.waits = candidate.waits.saturating_add(1);
        candidate.failures = candidate.failures.saturating_add(1);
        (candidate.state, candidate.link) = (State::Failed(why.to_owned()), None);
        candidate.due = Some(now + doubled / 2 + doubled * u32::from(share) / 512);
        let most = if candidate.is_hearsay() { 1 } else { FAILURES_MAX };
        let is_over = candidate.failures >= most && !candidate.is_configured();
        is_over && self.by_address.remove(&address).is_some()
    }

    /// This host is somewhere else now, or was asleep: whatever failed is worth another attempt at once, and soon after if it is being tried. Not
    /// more of them in all: on a host that changes all the time nothing would ever be given up.
    pub fn hurry(&mut self, now: Instant) {
        self.by_address.values_mut().for_each(|candidate| candidate.waits = 0);
        for candidate in self.by_address.values_mut().filter(|known| matches!(known.state, State::Failed(_))) {
            candidate.due = Some(now);
        }
    }

    /// There is no link to any member: those who were found may be gone, and others in their places.
    pub fn search(&mut self, now: Instant) {
        for candidate in self.by_address.values_mut().filter(|known| matches!(known.state, State::Member(_))) {
            (candidate.state, candidate.due) = (State::Waiting, Some(now));
        }
    }

    /// All of them, by address.
    pub fn all(&self) -> impl Iterator<Item = (&SocketAddr, &Candidate)> {
        self.by_address.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WALL: UnixSecs = UnixSecs(1_790_000_000);

    fn address(number: usize) -> SocketAddr {
        SocketAddr::from(([10, 0, (number >> 8) as u8, number as u8], 4646))
    }

    fn start() -> Now {
        Now { mono: Instant::now(), wall: WALL }
    }

    fn states(candidates: &Candidates) -> Vec<State> {
        candidates.all().map(|(_, known)| known.state.clone()).collect()
    }

    #[test]
    fn an_address_is_one_candidate_whoever_names_it_and_only_where_a_host_can_be() {
        let (mut candidates, now) = (Candidates::default(), start());
        assert_eq!(candidates.offer(Source::Mdns, address(1), now), Offered::New);
        let later = now.plus(Duration::from_secs(9));
        let mapped: SocketAddr = "[::ffff:10.0.0.1]:4646".parse().unwrap();
        assert_eq!(candidates.offer(Source::Bootstrap, mapped, later), Offered::Known);
        let (_, known) = candidates.all().next().unwrap();
        assert_eq!((&known.sources[..], known.seen), (&[Source::Mdns, Source::Bootstrap][..], later.wall));
        for nowhere in ["0.0.0.0:1", "127.0.0.1:1", "224.0.0.251:5353", "255.255.255.255:1", "10.0.0.1:0", "[::]:1"] {
            let offered = candidates.offer(Source::Mdns, nowhere.parse().unwrap(), now);
            assert_eq!(offered, Offered::NoAddress, "{nowhere}");
        }
        for nowhere in ["[::1]:1", "[ff02::fb]:1", "[fe80::1]:1", "[::ffff:127.0.0.1]:1"] {
            let offered = candidates.offer(Source::Mdns, nowhere.parse().unwrap(), now);
            assert_eq!(offered, Offered::NoAddress, "{nowhere}");
        }
        assert_eq!(candidates.all().count(), 1);
    }

    #[test]
    fn so_many_are_tried_at_once_and_no_more() {
        let (mut candidates, now) = (Candidates::default(), start());
        for number in 0..TRIED_MAX + 2 {
            assert_eq!(candidates.offer(Source::Mdns, address(number), now), Offered::New);
        }
        let begun: Vec<_> = std::iter::from_fn(|| candidates.begin(now.mono)).collect();
        assert_eq!((begun.len(), candidates.next_due()), (TRIED_MAX, None));
        candidates.found(begun[0], State::Own);
        assert!(candidates.next_due().is_some() && candidates.begin(now.mono).is_some());
        assert_eq!(candidates.begin(now.mono), None);
    }

    #[test]
    fn who_fails_waits_ever_longer_and_is_forgotten_unless_it_is_configured() {
        let (mut candidates, mut now) = (Candidates::default(), start());
        candidates.offer(Source::Mdns, address(1), now);
        candidates.offer(Source::Bootstrap, address(2), now);
        let mut waits = vec![];
        for round in 1..=2 * FAILURES_MAX {
            while let Some(begun) = candidates.begin(now.mono) {
                let is_over = candidates.failed(begun, "no answer", 255, now.mono);
                assert_eq!(is_over, round == FAILURES_MAX && begun == address(1), "{round}");
            }
            let due = candidates.next_due().unwrap();
            waits.push(due - now.mono);
            now.mono = due;
        }
        assert!(waits.is_sorted() && waits[0] <= BACK_OFF_MIN && waits.last().unwrap() <= &BACK_OFF_MAX, "{waits:?}");
        assert_eq!(states(&candidates), [State::Failed("no answer".to_owned())]);
        assert_eq!(candidates.begin(now.mono - Duration::from_secs(1)), None, "it is not due");
        candidates.hurry(now.mono);
        assert_eq!(candidates.begin(now.mono), Some(address(2)));
        // The attempt that was under way when the host changed is the first that failed.
        for _ in 0..FAILURES_MAX {
            candidates.failed(address(2), "no answer", 255, now.mono);
        }
        now.mono = candidates.next_due().unwrap();
        assert_eq!(candidates.begin(now.mono), Some(address(2)));
        candidates.hurry(now.mono);
        candidates.failed(address(2), "no answer", 255, now.mono);
        assert!(candidates.next_due().unwrap() - now.mono <= BACK_OFF_MIN);
    }

    /// Members that made up addresses had all attempts.
    #[test]
    fn what_only_members_name_is_little_and_is_tried_once() {
        let (mut candidates, now) = (Candidates::default(), start());
        for number in 0..100 {
            let offered = candidates.offer(Source::Exchange, address(number), now);
            assert_eq!(offered, if number < EXCHANGED_MAX { Offered::New } else { Offered::Full }, "{number}");
        }
        // Others have room, and who else names one of these makes it a candidate as any.
        assert_eq!(candidates.offer(Source::Mdns, address(200), now), Offered::New);
        assert_eq!(candidates.offer(Source::Mdns, address(3), now), Offered::Known);
        assert_eq!(candidates.offer(Source::Exchange, address(99), now), Offered::New);
        let mut forgotten = 0;
        while let Some(begun) = candidates.begin(now.mono) {
            forgotten += usize::from(candidates.failed(begun, "no answer", 255, now.mono));
        }
        let left: Vec<SocketAddr> = candidates.all().map(|(address, _)| *address).collect();
        assert_eq!((forgotten, left), (EXCHANGED_MAX, vec![address(3), address(200)]));
    }

    /// A host whose interfaces come and go tried whoever is not there for ever.
    #[test]
    fn haste_gives_nobody_more_attempts() {
        let (mut candidates, now) = (Candidates::default(), start());
        candidates.offer(Source::Mdns, address(1), now);
        for round in 1..=FAILURES_MAX {
            assert_eq!(candidates.begin(now.mono), Some(address(1)));
            assert_eq!(candidates.failed(address(1), "no answer", 0, now.mono), round == FAILURES_MAX);
            candidates.hurry(now.mono);
        }
        assert_eq!((candidates.all().count(), candidates.next_due()), (0, None));
    }

    #[test]
    fn a_member_is_news_where_it_was_not_the_last_time() {
        let (mut candidates, now) = (Candidates::default(), start());
        candidates.offer(Source::Mdns, address(1), now);
        let mut is_news = |state: State| {
            candidates.search(now.mono);
            candidates.begin(now.mono);
            candidates.found(address(1), state)
        };
        let [one, other] = [1, 2].map(|byte| State::Member(NodeId([byte; 32])));
        let all = [one.clone(), one.clone(), other.clone(), one.clone(), one].map(&mut is_news);
        assert_eq!(all, [true, false, true, true, false]);
        assert!(!is_news(State::Own));
        assert!(!candidates.found(address(2), other), "nobody named it");
    }

    #[test]
    fn who_is_found_is_left_alone_until_there_is_nobody_else() {
        let (mut candidates, now) = (Candidates::default(), start());
        candidates.offer(Source::Mdns, address(1), now);
        candidates.offer(Source::Mdns, address(2), now);
        for (link, state) in [(LinkId(1), State::Member(NodeId([1; 32]))), (LinkId(2), State::Own)] {
            let begun = candidates.begin(now.mono).unwrap();
            candidates.dialled(begun, link);
            assert_eq!(candidates.tried_by(link), Some(begun));
            candidates.found(begun, state);
            assert_eq!(candidates.tried_by(link), None);
        }
        candidates.hurry(now.mono);
        assert_eq!(candidates.next_due(), None);
        candidates.search(now.mono);
        assert_eq!((candidates.begin(now.mono), candidates.begin(now.mono)), (Some(address(1)), None));
    }

    #[test]
    fn a_full_table_gives_up_what_is_done_and_the_oldest_first() {
        let (mut candidates, now) = (Candidates::default(), start());
        candidates.offer(Source::Bootstrap, address(0), now);
        for number in 1..CANDIDATES_MAX {
            assert_eq!(
                candidates.offer(Source::Mdns, address(number), now.plus(Duration::from_secs(number as u64))),
                Offered::New
            );
        }
        assert_eq!(candidates.offer(Source::Mdns, address(CANDIDATES_MAX), now), Offered::Full, "all of them wait");
        for number in [0, 7, 3] {
            candidates.found(address(number), State::Own);
        }
        for number in [CANDIDATES_MAX, CANDIDATES_MAX + 1] {
            assert_eq!(candidates.offer(Source::Mdns, address(number), now), Offered::New);
        }
        assert_eq!(candidates.offer(Source::Mdns, address(CANDIDATES_MAX + 2), now), Offered::Full);
        let left: Vec<bool> =
            [0, 3, 7].iter().map(|number| candidates.by_address.contains_key(&address(*number))).collect();
        assert_eq!((left, candidates.by_address.len()), (vec![true, false, false], CANDIDATES_MAX));
    }
}
