//! Where an issuer will be: a key that the network may not know yet.
//!
//! ```text
//!  weir ca issuer-key ─▸ key, no state ─ waits ─▸ told of a bundle that names the key ─▸ Issuer
//! ```
//!
//! A founder's issuer is made with its network. Another one has its key first, then a ceremony makes it an issuer, and the node beside it
//! hears of that as everybody does.

use super::{Asked, Issuer, OpenIssuerError, Refused, Reply, Request, STATE_KEY};
use crate::pki::bundle::{Chain, SignedBundle, network_id};
use crate::pki::key::PrivateKey;
use crate::random::Random;
use crate::store::{Store, Table};
use crate::time::Now;

/// An issuer, or what it will be made of.
#[derive(Debug)]
pub struct Seat<S> {
    issuer: Option<Issuer<S>>,
    empty: Option<(S, PrivateKey)>,
    /// What an empty one was told so far: a long chain comes in parts.
    heard: Option<Chain>,
    /// Entries of the audit log that are kept.
    audit_max: u64,
}

impl<S: Store> Seat<S> {
    /// Continues from a store, or waits with an empty one. The issuer that is here or comes keeps so many entries of its audit log.
    ///
    /// # Errors
    /// [`OpenIssuerError`].
    pub fn open(store: S, key: PrivateKey, audit_max: u64) -> Result<Self, OpenIssuerError> {
        if store.value(Table::Issuer, STATE_KEY)?.is_none() {
            return Ok(Self { issuer: None, empty: Some((store, key)), heard: None, audit_max });
        }
        Ok(Self { issuer: Some(Issuer::open(store, key, audit_max)?), empty: None, heard: None, audit_max })
    }

    /// Whether there is an issuer.
    pub const fn is_taken(&self) -> bool {
        self.issuer.is_some()
    }

    /// Asks the issuer; while there is none, looks whether this makes one.
    ///
    /// # Errors
    /// [`OpenIssuerError`] when an issuer cannot be made. There is none then, and none will be.
    pub fn handle(
        &mut self,
        asked: Asked,
        now: Now,
        random: &mut impl Random,
    ) -> Result<Result<Reply, Refused>, OpenIssuerError> {
        if let Request::Learn { bundles, .. } = &asked.request
            && self.empty.is_some()
        {
            self.hear(bundles);
        }
        let names = |chain: &mut Chain| {
            self.empty.as_ref().is_some_and(|(_, key)| chain.current().issuer(key.public().id()).is_some())
        };
        if let Some(chain) = self.heard.take_if(names)
            && let Some((store, key)) = self.empty.take()
        {
            let (network, versions) = (chain.network(), chain.versions());
            self.issuer = Some(Issuer::create(store, key, network, versions, self.audit_max, now, random)?);
        }
        Ok(match &mut self.issuer {
            Some(issuer) => issuer.handle(asked, now, random),
            None => Err(Refused::NotIssuer),
        })
    }

    fn hear(&mut self, bundles: &[SignedBundle]) {
        for bundle in bundles {
            let continues = self.heard.as_mut().is_some_and(|chain| chain.extend(bundle.clone()).is_ok());
            // The node beside us has joined another network since, or this is the first we hear.
            if !continues && let Ok(chain) = Chain::start(network_id(bundle), bundle.clone()) {
                self.heard = Some(chain);
            }
        }
    }
}
