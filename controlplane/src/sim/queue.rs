//! What happens next, in virtual time.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Site;
use super::links::Step;
use super::plane::Datagram;
use super::wire::Flight;
use crate::dns::catalog::Wanted;
use crate::issuer::{Refused, Reply};
use crate::node::Ticket;
use crate::node::plane::PlaneInput;

/// One life of a site's control plane, or of its packet plane: what is meant for an earlier one is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Life(pub(super) u64);

/// Something that is due.
#[derive(Debug)]
pub(super) enum Due {
    Link(Step),
    /// The node may have a deadline.
    Wake(Site),
    Plane(Site, Life, Box<PlaneInput>),
    PlaneUp(Site, Life),
    PlaneTick(Site, Life),
    Issuer(Site, Life, Ticket, Box<Result<Reply, Refused>>),
    IssuerConnected(Site, Life),
    Datagram(Site, Box<Datagram>),
    /// A datagram of a link reaches a machine.
    Quic(Site, Box<Flight>),
    /// A name is wanted by whoever answers questions.
    Wanted(Site, Life, Wanted),
    Stream(usize),
    Awake(Site),
}

/// What is due, in order; of two things at one moment the one that was put there first.
#[derive(Debug, Default)]
pub(super) struct Queue {
    due: BTreeMap<(Duration, u64), Due>,
    next: u64,
}

impl Queue {
    pub(super) fn push(&mut self, at: Duration, due: Due) {
        self.next += 1;
        self.due.insert((at, self.next), due);
    }

    pub(super) fn pop(&mut self, until: Duration) -> Option<(Duration, Due)> {
        let (&(at, _), _) = self.due.first_key_value()?;
        if at > until {
            return None;
        }
        self.due.pop_first().map(|((at, _), due)| (at, due))
    }
}
