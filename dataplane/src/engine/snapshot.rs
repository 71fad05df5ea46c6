//! Configuration as an immutable snapshot: made on the control thread, swapped by a worker between two batches, never changed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::class::Dscp;
use super::lpm::Lpm;

/// A session's place in every worker's table. Given by the control thread, given again after removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionSlot(pub u32);

/// Where the engine sends packets for a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextHop {
    /// To the local side.
    Local,
    /// To a peer, whether it has a session at the moment or not.
    Session(SessionSlot),
}

/// What the engine needs to know besides sessions.
#[derive(Debug)]
pub struct Snapshot {
    /// Raised by one at each change.
    pub epoch: u64,
    /// Where packets go.
    pub routes: Lpm<NextHop>,
    /// The gateway's own addresses, the sources of its ICMP errors.
    pub gateway_v4: Option<Ipv4Addr>,
    /// See [`Self::gateway_v4`].
    pub gateway_v6: Option<Ipv6Addr>,
    /// Whether packets from one peer to another are forwarded.
    pub transit: bool,
    /// What datagrams show of the DSCP of the packets in them.
    pub dscp: Dscp,
}

impl Snapshot {
    /// A snapshot that routes nothing.
    pub fn empty() -> Self {
        Self { epoch: 0, routes: Lpm::empty(), gateway_v4: None, gateway_v6: None, transit: false, dscp: Dscp::Clear }
    }

    /// Where packets to this address go.
    #[inline]
    pub fn next_hop(&self, destination: IpAddr) -> Option<NextHop> {
        self.routes.lookup(destination)
    }
}

/// The last answer of one snapshot. The packets of a burst are of few flows, so mostly the next question is the same.
#[derive(Debug, Default)]
pub(super) struct Recent(Option<(IpAddr, Option<NextHop>)>);

impl Recent {
    /// [`Snapshot::next_hop`]; `snapshot` is always the same.
    #[inline]
    pub(super) fn next_hop(&mut self, snapshot: &Snapshot, destination: IpAddr) -> Option<NextHop> {
        self.answer(destination).unwrap_or_else(|| {
            let hop = snapshot.next_hop(destination);
            self.remember(destination, hop);
            hop
        })
    }

    /// The last answer, if it was to this question.
    #[inline]
    pub(super) fn answer(&self, destination: IpAddr) -> Option<Option<NextHop>> {
        self.0.filter(|(asked, _)| *asked == destination).map(|(_, hop)| hop)
    }

    /// Makes this the last answer.
    #[inline]
    pub(super) fn remember(&mut self, destination: IpAddr, hop: Option<NextHop>) {
        self.0 = Some((destination, hop));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_answer_is_given_to_the_same_question_only() {
        let to = |slot| NextHop::Session(SessionSlot(slot));
        let routes = [("10.1.0.0/16", to(1)), ("10.2.0.0/16", to(2)), ("fd00::/16", NextHop::Local)];
        let routes = routes.map(|(prefix, hop)| (prefix.parse().unwrap(), hop));
        let snapshot = Snapshot { routes: Lpm::build(routes).unwrap(), ..Snapshot::empty() };
        let mut recent = Recent::default();
        let asked =
            ["0.0.0.0", "10.1.0.1", "10.1.0.1", "10.2.0.1", "10.3.0.1", "10.3.0.1", "10.1.0.1", "fd00::1", "::"];
        for address in asked.map(|address| address.parse().unwrap()) {
            assert_eq!(recent.next_hop(&snapshot, address), snapshot.next_hop(address), "{address}");
        }
    }
}
