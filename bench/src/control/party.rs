//! Members of a network that was never founded: real certificates under real roots, for those who need nothing of a node but its links.

use std::fmt::Display;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use weir_controlplane::pki::bundle::{Bundle, Parameters};
use weir_controlplane::pki::certificate::{
    IssuerSpec, LeafSpec, RootSpec, Serial, Validity, issuer_certificate, leaf_certificate, root_certificate,
};
use weir_controlplane::pki::id::{NetworkId, NodeId, Nonce};
use weir_controlplane::pki::key::PrivateKey;
use weir_controlplane::pki::resources::{IpBlocks, Resources};
use weir_controlplane::pki::revocation::RevocationSet;
use weir_controlplane::pki::trust::{SharedTrust, Trust};
use weir_controlplane::quic::{Config, Driver, LeafIdentity, Limits};
use weir_controlplane::random::{Random as _, SystemRandom};
use weir_controlplane::time::{Now, UnixSecs};
use weir_dataplane::api::Prefix;

use crate::{Error, Result};

const DAY: Duration = Duration::from_secs(86_400);

/// A member, with all that its links need.
pub(super) struct Party {
    /// Its id.
    pub(super) node: NodeId,
    identity: LeafIdentity,
    trust: SharedTrust,
}

/// The clocks of this machine.
pub(super) fn now() -> Now {
    // Before 1970 there was no machine.
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now { mono: std::time::Instant::now(), wall: UnixSecs(since.as_secs()) }
}

pub(super) fn broken(what: &str) -> impl FnOnce(&dyn Display) -> Error {
    let what = what.to_owned();
    move |detail| Error::Broken { what, detail: detail.to_string() }
}

/// So many members of one network.
///
/// # Errors
/// [`Error::Broken`] when a certificate cannot be made.
pub(super) fn network(members: u8) -> Result<Vec<Party>> {
    let random = &mut SystemRandom;
    let failed = |error: &dyn Display| broken("making certificates")(error);
    let wall = now().wall;
    let validity = Validity { not_before: wall.minus(DAY), not_after: wall.plus(DAY) };
    let (root, issuer) = (PrivateKey::generate(random), PrivateKey::generate(random));
    let spec = RootSpec { label: "A", network_name: "bench", validity, serial: Serial::draw(random) };
    let root_der = root_certificate(&root, &spec).map_err(|error| failed(&error))?;
    let blocks = IpBlocks::Explicit(Resources::everything());
    let spec = IssuerSpec { public: issuer.public(), blocks, validity, serial: Serial::draw(random) };
    let issuer_der = issuer_certificate(&root, &root_der, &spec).map_err(|error| failed(&error))?;
    let network = NetworkId(random.array());
    let bundle = Arc::new(Bundle {
        version: 1,
        previous: None,
        network_name: "bench".into(),
        default_allow: true,
        roots: vec![root_der],
        issuers: vec![issuer_der.clone()],
        revoked_issuers: vec![],
        revokers: vec![],
        slices: vec![],
        dns_parent: "internal".into(),
        operators: vec![],
        parameters: Parameters::default(),
    });
    let member = |number: u8| {
        let (identity, leaf) = (PrivateKey::generate(random), PrivateKey::generate(random));
        let nonce = Nonce(random.array());
        let spec = LeafSpec {
            leaf_public: leaf.public(),
            network,
            identity: identity.public(),
            nonce,
            name: &format!("member-{number}"),
            prefixes: Resources::from_prefixes(Prefix::new([10, 1, number, 0].into(), 24)),
            groups: &[],
            roles: &[],
            validity,
            serial: Serial::draw(random),
        };
        let leaf_der = leaf_certificate(&issuer, &issuer_der, &spec).map_err(|error| failed(&error))?;
        let chain = [leaf_der, issuer_der.clone()];
        let trust = Trust { network, bundle: Arc::clone(&bundle), revoked: Arc::new(RevocationSet::default()) };
        Ok(Party {
            node: NodeId::derive(network, &identity.public().0, nonce),
            identity: LeafIdentity::new(&chain, &leaf).map_err(|error| failed(&error))?,
            trust: SharedTrust::new(trust, wall),
        })
    };
    (1..=members).map(member).collect()
}

impl Party {
    /// Its links, none yet.
    pub(super) fn driver(&self) -> Driver {
        let config = Config {
            identity: Some(self.identity.clone()),
            membership: Some((self.node, self.trust.clone())),
            key: SystemRandom.array().into(),
            accept_legacy_kyber: false,
            limits: Limits::default(),
        };
        Driver::new(config, &mut SystemRandom)
    }
}
