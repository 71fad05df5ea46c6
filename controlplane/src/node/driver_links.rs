//! QUIC as the node's [`Links`]: the driver, with the moment of the turn that it is used in.

use std::net::SocketAddr;
use std::time::Duration;

use zeroize::Zeroizing;

use super::Links;
use crate::membership::Membership;
use crate::pki::admission::DayKey;
use crate::quic::{AdmissionKey, Alpn, DialError, DialTarget, Driver, ExportError, LeafIdentity, LinkId, SendError};
use crate::time::Now;

/// How often something is said on a link that must stay up: often enough for the NATs of RFC 4787 §4.3 (REQ-5), which keep a mapping for two
/// minutes, and for those that keep it for thirty seconds only.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The driver at one moment.
pub struct DriverLinks<'a> {
    /// Of this node.
    pub driver: &'a mut Driver,
    /// The moment.
    pub now: Now,
}

impl Links for DriverLinks<'_> {
    fn dial(&mut self, alpn: Alpn, target: DialTarget, remote: SocketAddr) -> Result<LinkId, DialError> {
        self.driver.dial(alpn, &target, remote, self.now)
    }

    fn send(&mut self, link: LinkId, message: &[u8]) -> Result<(), SendError> {
        self.driver.send(link, message)
    }

    fn export(&mut self, link: LinkId, label: &[u8], context: &[u8]) -> Result<Zeroizing<[u8; 32]>, ExportError> {
        self.driver.export(link, label, context)
    }

    fn close(&mut self, link: LinkId, code: u32, reason: &str) {
        self.driver.close(link, code, reason, self.now);
    }

    fn remote(&self, link: LinkId) -> Option<SocketAddr> {
        self.driver.remote(link)
    }

    fn moved(&mut self, link: LinkId, to: SocketAddr) {
        self.driver.path_changed(link, to, self.now);
    }

    fn set_identity(&mut self, membership: &Membership) {
        match LeafIdentity::new(&membership.chain, &membership.leaf) {
            Ok(identity) => self.driver.set_identity(identity),
            // It was verified before it was kept; what is in use stays in use.
            Err(error) => tracing::error!("our own certificate cannot be used: {error}"),
        }
    }

    fn set_admission(&mut self, key: &DayKey) {
        self.driver.set_admission(Some(AdmissionKey::new(&key.key)));
    }

    fn keep_alive(&mut self, link: LinkId) {
        self.driver.set_keep_alive(link, Some(KEEP_ALIVE), self.now);
    }
}
