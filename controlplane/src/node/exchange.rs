//! One key exchange: two packet planes' offers, one exporter secret, and the moment from which each side seals.
//!
//! ```text
//!  initiator                                            responder
//!   Reserve ─▶ plane          ── Initial ─▶              (opening) Reserve ─▶ plane
//!                             ◀─ handshake ‖ Offer ──     at 0.5 RTT, before the client has shown who it is
//!   connected                 ── Finished ─▶              connected: now it has
//!   Install, not active       ── Offer ─▶                 Install, active: it may seal, for the initiator opens already
//!   activate: a moment later  ── data ═══════════▶
//!   when nothing was sealed   ◀─ Installed ──────         or now, when old keys still carried
//!   before
//! ```
//!
//! The initiator opens under the new keys before the responder can seal under them, for it keeps its offer back until its own packet plane
//! has installed: the responder's offer may come late. It seals under them once the responder opens: so an exchange between two that have keys already loses nothing. Only a first exchange does not wait for the responder's word, since that
//! costs another round trip; it gives the responder time for its install ([`first_data_delay`]), and what waited goes out then.
//!
//! This part knows neither links nor the packet plane: what is to be done, it says.

use std::time::Duration;

use weir_dataplane::api::message::{Offer, ReservationId};

use super::message::KeyMessage;

/// Least and most that the initiator of a first exchange waits before it seals.
const FIRST_DATA_DELAY_MIN: Duration = Duration::from_millis(1);
const FIRST_DATA_DELAY_MAX: Duration = Duration::from_millis(10);
/// Longest exchange. The worst path takes a few round trips of a second.
pub const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the initiator of a first exchange waits before it seals, once its own packet plane has installed and took this long for it: the
/// responder has as much to do, and a certificate to verify before, which takes no longer than an install; and twice that, for its machine
/// may be slower or busier.
pub fn first_data_delay(own_install: Duration) -> Duration {
    (own_install * 4).clamp(FIRST_DATA_DELAY_MIN, FIRST_DATA_DELAY_MAX)
}

/// Who began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// We dialled.
    Initiator,
    /// The peer did.
    Responder,
}

/// What is to be done next, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask the packet plane for a reservation.
    Reserve,
    /// Send this on the link.
    Send(KeyMessage),
    /// Export the secret and install the keys.
    Install {
        /// The reservation that this uses up.
        reservation: ReservationId,
        /// What we offered.
        ours: Offer,
        /// What the peer offered.
        theirs: Offer,
        /// The peer's inner MTU.
        inner_mtu: u16,
        /// Whether to seal with the keys at once.
        activate: bool,
    },
    /// Seal with the new keys from now on.
    Activate,
    /// Call [`Exchange::first_data`] after [`FIRST_DATA_DELAY`].
    WaitForFirstData,
    /// Give the reservation back.
    Release(ReservationId),
    /// All done: the link may go.
    Finish,
    /// It came to nothing.
    Fail(Failure),
}

/// Why an exchange came to nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The packet plane said no.
    #[error("the packet plane refused: {0}")]
    Plane(String),
    /// The link went.
    #[error("the link closed: {0}")]
    Link(String),
    /// The peer said what does not belong here.
    #[error("the peer said something else")]
    Protocol,
    /// The peer's time is not ours.
    #[error("its clock and ours are more than an hour apart")]
    Clock,
    /// It took too long.
    #[error("no end after {EXCHANGE_TIMEOUT:?}")]
    Timeout,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Installed {
    No,
    Asked,
    Yes,
}

/// The machine.
#[derive(Clone, Debug)]
pub struct Exchange {
    role: Role,
    /// Nothing is sealed to this peer yet.
    is_first: bool,
    inner_mtu: u16,
    ours: Option<(ReservationId, Offer)>,
    theirs: Option<(Offer, u16)>,
    /// The link takes messages: for a responder before it knows the peer.
    is_open: bool,
    /// The peer has shown who it is.
    is_connected: bool,
    has_offered: bool,
    installed: Installed,
    peer_installed: bool,
    is_active: bool,
    is_over: bool,
}

impl Exchange {
    /// A new one. `inner_mtu` is what our TUN takes.
    pub fn new(role: Role, is_first: bool, inner_mtu: u16) -> (Self, Vec<Action>) {
        let exchange = Self {
            role,
            is_first,
            inner_mtu,
            ours: None,
            theirs: None,
            is_open: false,
            is_connected: false,
            has_offered: false,
            installed: Installed::No,
            peer_installed: false,
            is_active: false,
            is_over: false,
        };
        (exchange, vec![Action::Reserve])
    }

    /// Who began.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Whether the peer has shown who it is. Of an initiator: so its own certificate is on the way.
    pub fn is_connected(&self) -> bool {
        self.is_connected
    }

    /// The packet plane reserved.
    pub fn reserved(&mut self, reservation: ReservationId, offer: Offer) -> Vec<Action> {
        if self.is_over {
            return vec![Action::Release(reservation)];
        }
        self.ours = Some((reservation, offer));
        self.go_on()
    }

    /// A responder's link takes messages, though the peer has not shown who it is.
    pub fn opening(&mut self) -> Vec<Action> {
        self.is_open = true;
        self.go_on()
    }

    /// The peer has shown who it is; `is_first` as it is known only now.
    pub fn connected(&mut self, is_first: bool) -> Vec<Action> {
        (self.is_open, self.is_connected, self.is_first) = (true, true, is_first);
        self.go_on()
    }

    /// The peer said something.
    pub fn message(&mut self, message: KeyMessage) -> Vec<Action> {
        match message {
            KeyMessage::Offer { offer, inner_mtu } if self.theirs.is_none() => {
                self.theirs = Some((offer, inner_mtu));
                self.go_on()
            }
            KeyMessage::Installed if self.role == Role::Initiator && self.has_offered && !self.peer_installed => {
                self.peer_installed = true;
                self.go_on()
            }
            KeyMessage::Offer { .. } | KeyMessage::Installed => self.fail(Failure::Protocol),
        }
    }

    /// The packet plane has installed the keys.
    pub fn installed(&mut self) -> Vec<Action> {
        self.installed = Installed::Yes;
        match self.role {
            Role::Responder => {
                self.is_over = true;
                vec![Action::Send(KeyMessage::Installed), Action::Finish]
            }
            Role::Initiator => {
                let mut actions = self.go_on();
                if self.is_first && !self.peer_installed {
                    actions.push(Action::WaitForFirstData);
                }
                actions
            }
        }
    }

    /// The time of [`Action::WaitForFirstData`] is up.
    pub fn first_data(&mut self) -> Vec<Action> {
        if self.is_over || self.is_active || self.installed != Installed::Yes {
            return vec![];
        }
        self.is_active = true;
        vec![Action::Activate]
    }

    /// It cannot go on. Keys that are installed already stay: they are good on this side, and a peer that lacks them asks anew.
    pub fn fail(&mut self, failure: Failure) -> Vec<Action> {
        if std::mem::replace(&mut self.is_over, true) {
            return vec![];
        }
        let mut actions = vec![];
        if let Some((reservation, _)) = self.ours.take()
            && self.installed == Installed::No
        {
            actions.push(Action::Release(reservation));
        }
        actions.push(Action::Fail(failure));
        actions
    }

    fn go_on(&mut self) -> Vec<Action> {
        let mut actions = vec![];
        if self.is_over {
            return actions;
        }
        let may_offer = match self.role {
            Role::Initiator => self.installed == Installed::Yes,
            Role::Responder => self.is_open,
        };
        if may_offer
            && !self.has_offered
            && let Some((_, offer)) = &self.ours
        {
            self.has_offered = true;
            let message = KeyMessage::Offer { offer: offer.clone(), inner_mtu: self.inner_mtu };
            actions.push(Action::Send(message));
        }
        if self.is_connected
            && self.installed == Installed::No
            && let (Some((reservation, ours)), Some((theirs, inner_mtu))) = (&self.ours, &self.theirs)
        {
            self.installed = Installed::Asked;
            actions.push(Action::Install {
                reservation: *reservation,
                ours: ours.clone(),
                theirs: theirs.clone(),
                inner_mtu: *inner_mtu,
                activate: self.role == Role::Responder,
            });
        }
        if self.role == Role::Initiator && self.peer_installed && self.installed == Installed::Yes {
            self.is_over = true;
            if !std::mem::replace(&mut self.is_active, true) {
                actions.push(Action::Activate);
            }
            actions.push(Action::Finish);
        }
        actions
    }
}

#[cfg(test)]
mod tests {
    use weir_dataplane::api::message::{Incarnation, Salt};

    use super::*;

    const MTU: u16 = 1420;

    fn offer(of: u64) -> Offer {
        Offer {
            incarnation: Incarnation(of),
            salt: Salt::default(),
            indices: vec![of as u32],
            has_aes: true,
            lane_ports: 0,
        }
    }

    fn said(of: u64) -> KeyMessage {
        KeyMessage::Offer { offer: offer(of), inner_mtu: MTU }
    }

    fn install(of: u64, peer: u64, activate: bool) -> Action {
        let (ours, theirs) = (offer(of), offer(peer));
        Action::Install { reservation: ReservationId(of), ours, theirs, inner_mtu: MTU, activate }
    }

    #[test]
    fn the_responder_gets_four_times_what_our_install_took_within_bounds() {
        let ms = Duration::from_millis;
        assert_eq!(first_data_delay(Duration::ZERO), ms(1));
        assert_eq!(first_data_delay(Duration::from_micros(600)), Duration::from_micros(2_400));
        assert_eq!(first_data_delay(ms(80)), ms(10));
    }

    #[test]
    fn a_first_exchange_seals_a_moment_after_its_install_without_waiting_for_the_peer() {
        let (mut one, actions) = Exchange::new(Role::Initiator, true, MTU);
        assert_eq!(actions, [Action::Reserve]);
        assert_eq!(one.reserved(ReservationId(1), offer(1)), []);
        // The responder's offer rides with its handshake, so it may be there before the event that says so.
        assert_eq!(one.message(said(2)), []);
        assert_eq!(one.connected(true), [install(1, 2, false)]);
        assert_eq!(one.installed(), [Action::Send(said(1)), Action::WaitForFirstData]);
        assert_eq!(one.first_data(), [Action::Activate]);
        assert_eq!(one.message(KeyMessage::Installed), [Action::Finish]);
        assert_eq!(one.first_data(), []);
    }

    #[test]
    fn a_rekey_seals_under_new_keys_only_when_the_peer_opens_them() {
        let (mut one, _) = Exchange::new(Role::Initiator, false, MTU);
        one.reserved(ReservationId(1), offer(1));
        one.connected(false);
        assert_eq!(one.message(said(2)), [install(1, 2, false)]);
        assert_eq!(one.installed(), [Action::Send(said(1))]);
        assert_eq!(one.message(KeyMessage::Installed), [Action::Activate, Action::Finish]);
    }

    /// It used to offer as soon as it was connected. With the responder's offer late, the responder sealed before it could open.
    #[test]
    fn an_initiator_says_nothing_by_which_the_peer_could_seal_before_it_opens() {
        let (mut one, _) = Exchange::new(Role::Initiator, false, MTU);
        assert_eq!(one.reserved(ReservationId(1), offer(1)), []);
        assert_eq!(one.connected(false), []);
        assert_eq!(one.message(said(2)), [install(1, 2, false)]);
        // A peer that claims to have installed without our offer lies.
        let failed = one.message(KeyMessage::Installed);
        assert_eq!(failed, [Action::Fail(Failure::Protocol)]);
    }

    #[test]
    fn a_responder_offers_before_it_knows_the_peer_and_installs_only_after() {
        let (mut one, actions) = Exchange::new(Role::Responder, true, MTU);
        assert_eq!(actions, [Action::Reserve]);
        assert_eq!(one.opening(), []);
        assert_eq!(one.reserved(ReservationId(2), offer(2)), [Action::Send(said(2))]);
        assert_eq!(one.message(said(1)), []);
        assert_eq!(one.connected(true), [install(2, 1, true)]);
        assert_eq!(one.installed(), [Action::Send(KeyMessage::Installed), Action::Finish]);
    }

    #[test]
    fn what_fails_gives_its_reservation_back_once() {
        let (mut one, _) = Exchange::new(Role::Responder, true, MTU);
        one.opening();
        one.reserved(ReservationId(2), offer(2));
        assert_eq!(one.fail(Failure::Timeout), [Action::Release(ReservationId(2)), Action::Fail(Failure::Timeout)]);
        assert_eq!(one.fail(Failure::Timeout), []);
        // A reservation that comes too late goes straight back.
        let (mut one, _) = Exchange::new(Role::Initiator, true, MTU);
        assert_eq!(one.fail(Failure::Timeout), [Action::Fail(Failure::Timeout)]);
        assert_eq!(one.reserved(ReservationId(3), offer(3)), [Action::Release(ReservationId(3))]);
    }

    #[test]
    fn installed_keys_are_not_released_by_a_failure() {
        let (mut one, _) = Exchange::new(Role::Initiator, true, MTU);
        one.reserved(ReservationId(1), offer(1));
        one.message(said(2));
        one.connected(true);
        let failure = Failure::Link("gone".into());
        assert_eq!(one.fail(failure.clone()), [Action::Fail(failure)]);
    }

    #[test]
    fn a_peer_that_says_something_twice_or_out_of_turn_is_left() {
        let (mut one, _) = Exchange::new(Role::Initiator, true, MTU);
        one.message(said(2));
        assert_eq!(one.message(said(2)), [Action::Fail(Failure::Protocol)]);
        let (mut one, _) = Exchange::new(Role::Responder, true, MTU);
        assert_eq!(one.message(KeyMessage::Installed), [Action::Fail(Failure::Protocol)]);
        let (mut one, _) = Exchange::new(Role::Initiator, true, MTU);
        assert_eq!(one.message(KeyMessage::Installed), [Action::Fail(Failure::Protocol)]);
    }
}
