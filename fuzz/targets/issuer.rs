//! An issuer among people and members of whom some mean harm: requests as bytes, and requests that are well signed and say anything.
#![no_main]

use std::collections::BTreeMap;
use std::time::Instant;

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use weir_controlplane::audit::{self, ENTRIES_MAX_DEFAULT};
use weir_controlplane::codec;
use weir_controlplane::issuer::{
    Asked, Contact, InviteSpec, Issuer, JoinBody, JoinRequest, LeaveBody, LeaveRequest, MemberInfo, Predecessor,
    RenewBody, RenewRequest, Reply, Request, Subnet,
};
use weir_controlplane::pki::bundle::prefixes_overlap;
use weir_controlplane::pki::id::{NodeId, Nonce};
use weir_controlplane::pki::key::PublicKey;
use weir_controlplane::pki::revocation::Revoked;
use weir_controlplane::pki::statement::MemberStatement;
use weir_controlplane::pki::token::{self, Token};
use weir_controlplane::random::SeededRandom;
use weir_controlplane::store::MemoryStore;
use weir_controlplane::time::UnixSecs;
use weir_fuzz::{Edit, NETWORK, NOW, edited, identity_key, key, later, leaf_key, request_signature, signed};

const EXPORTER: [u8; 32] = [9; 32];

#[derive(Arbitrary, Debug)]
enum Step {
    /// What the control plane hands on, as bytes.
    Bytes(Vec<u8>),
    Invite {
        name: Name,
        subnet: Net,
        uses: u8,
    },
    Join {
        member: u8,
        token: u8,
        wanted: Option<String>,
        edits: Vec<Edit>,
    },
    Renew {
        member: u8,
        leaf: u8,
        edits: Vec<Edit>,
    },
    Leave {
        member: u8,
        edits: Vec<Edit>,
    },
    Revoke {
        member: u8,
    },
    Replace {
        member: u8,
    },
    /// Statements of members that another issuer of the network admitted.
    Learn {
        member: u8,
        name: Name,
        prefix: u8,
        edits: Vec<Edit>,
        signer: u8,
    },
    Wait(u32),
    /// Ends, and starts again from its store.
    Restart,
}

#[derive(Arbitrary, Debug)]
enum Name {
    One(u8),
    Many,
    Free(String),
}

#[derive(Arbitrary, Debug)]
enum Net {
    None,
    Given(u8, u8),
    Auto(u8),
}

impl Name {
    fn text(&self) -> String {
        match self {
            Self::One(number) => format!("site-{number}"),
            Self::Many => "site-*".into(),
            Self::Free(text) => text.clone(),
        }
    }
}

struct World {
    issuer: Issuer<MemoryStore>,
    start: Instant,
    secs: u64,
    random: SeededRandom,
    tokens: Vec<Token>,
    /// The last certificate of each identity.
    certificates: BTreeMap<PublicKey, Vec<u8>>,
    revoked: Vec<NodeId>,
}

fuzz_target!(|steps: Vec<Step>| {
    let start = Instant::now();
    let mut random = SeededRandom::new(1);
    let versions = NETWORK.chain.versions();
    let store = MemoryStore::default();
    let now = later(start, 0);
    let issuer = Issuer::create(store, key(3), NETWORK.id(), versions, ENTRIES_MAX_DEFAULT, now, &mut random).unwrap();
    let (tokens, certificates, revoked) = (vec![], BTreeMap::new(), vec![]);
    let mut world = World { issuer, start, secs: 0, random, tokens, certificates, revoked };
    for step in steps.into_iter().take(24) {
        world.step(step);
    }
    let members = world.members();
    let store = world.issuer.into_store();
    let issuer = |id| NETWORK.chain.current().issuer(id);
    audit::verify_part(&store, 0, usize::MAX, issuer).expect("the log tells everything in order");
    // Whoever starts from the store knows the same.
    let mut again = Issuer::open(store, key(3), ENTRIES_MAX_DEFAULT).expect("what was written is read");
    let asked = Asked { by: "uid 0".into(), request: Request::Members };
    let now = later(world.start, world.secs);
    assert_eq!(again.handle(asked, now, &mut world.random), Ok(Reply::Members(members)));
});

impl World {
    fn step(&mut self, step: Step) {
        match step {
            Step::Bytes(bytes) => {
                if let Ok(asked) = codec::decode::<Asked>(&bytes, 1 << 20)
                    // Slow on purpose: it makes a key of a passphrase.
                    && !matches!(asked.request, Request::Backup { .. })
                {
                    self.ask(asked.request, Some(asked.by));
                }
            }
            Step::Invite { name, subnet, uses } => {
                let Ok(name) = name.text().parse() else { return };
                let subnet = match subnet {
                    Net::None => Subnet::None,
                    Net::Given(second, third) => {
                        Subnet::Given(vec![format!("10.{second}.{third}.0/24").parse().unwrap()])
                    }
                    Net::Auto(bit_len) => Subnet::Auto { bit_len },
                };
                let spec = InviteSpec { subnet, uses: uses.into(), ..InviteSpec::of(name) };
                self.ask(Request::Invite { spec, contact: contact() }, None);
            }
            Step::Join { member, token, wanted, edits } => {
                let Some(token) = self.tokens.get(usize::from(token) % self.tokens.len().max(1)).cloned() else {
                    return;
                };
                let (identity, leaf) = (identity_key(member), leaf_key(member));
                let body = JoinBody {
                    network: NETWORK.id(),
                    invite: token.invite,
                    identity: identity.public(),
                    leaf_public: leaf.public(),
                    wanted_name: wanted,
                    dns_key: None,
                    bundle_version: 0,
                };
                let body = edited(codec::encode(&body), &edits);
                let request = JoinRequest {
                    proof: token::proof(&token.secret, &EXPORTER, &body),
                    leaf_proof: request_signature(&leaf, &EXPORTER, &body),
                    signature: request_signature(&identity, &EXPORTER, &body),
                    body,
                };
                self.ask(Request::Join { request, exporter: EXPORTER }, None);
            }
            Step::Renew { member, leaf, edits } => {
                let (identity, leaf) = (identity_key(member), leaf_key(leaf));
                let certificate = self.certificate(member);
                let (network, leaf_public) = (NETWORK.id(), leaf.public());
                let body = RenewBody { network, certificate, leaf_public, dns_key: None, bundle_version: 1 };
                let body = edited(codec::encode(&body), &edits);
                let request = RenewRequest {
                    leaf_proof: request_signature(&leaf, &EXPORTER, &body),
                    signature: request_signature(&identity, &EXPORTER, &body),
                    body,
                };
                self.ask(Request::Renew { request, exporter: EXPORTER }, None);
            }
            Step::Leave { member, edits } => {
                let body = LeaveBody { network: NETWORK.id(), certificate: self.certificate(member) };
                let body = edited(codec::encode(&body), &edits);
                let signature = request_signature(&identity_key(member), &EXPORTER, &body);
                self.ask(Request::Leave { request: LeaveRequest { body, signature }, exporter: EXPORTER }, None);
            }
            Step::Revoke { member } => {
                if let Some(node) = self.member(member) {
                    let what = Revoked::Node(node);
                    let answer = self.ask(Request::Revoke { what, reason: "stolen".into() }, None);
                    if answer.is_some() {
                        self.revoked.push(node);
                    }
                }
            }
            Step::Replace { member } => {
                if let Some(node) = self.member(member) {
                    self.ask(
                        Request::Replace { of: Predecessor::Node(node), ttl_secs: 3600, contact: contact() },
                        None,
                    );
                }
            }
            Step::Learn { member, name, prefix, edits, signer } => {
                let identity = identity_key(member);
                let statement = MemberStatement {
                    network: NETWORK.id(),
                    node: NETWORK.node(member),
                    identity: identity.public(),
                    nonce: Nonce([member; 16]),
                    name: name.text(),
                    prefixes: vec![format!("10.{prefix}.0.0/24").parse().unwrap()],
                    groups: vec![],
                    ds_digest: None,
                    not_before: NOW,
                    not_after: UnixSecs(NOW.0 + 86_400),
                };
                let body = edited(codec::encode(&statement), &edits);
                let statements = vec![signed(&body, &key(3 + signer % 4))];
                self.ask(Request::Learn { bundles: vec![], revocations: vec![], admission: None, statements }, None);
            }
            Step::Wait(secs) => {
                self.secs = self.secs.saturating_add(u64::from(secs % 100_000));
                let _ = self.issuer.handle_timeout(later(self.start, self.secs));
            }
            Step::Restart => {
                let store = self.issuer_store();
                self.issuer = Issuer::open(store, key(3), ENTRIES_MAX_DEFAULT).expect("what was written is read");
            }
        }
    }

    fn issuer_store(&mut self) -> MemoryStore {
        let versions = NETWORK.chain.versions();
        let (now, random) = (later(self.start, 0), &mut self.random);
        let (store, max) = (MemoryStore::default(), ENTRIES_MAX_DEFAULT);
        let spare = Issuer::create(store, key(3), NETWORK.id(), versions, max, now, random).unwrap();
        std::mem::replace(&mut self.issuer, spare).into_store()
    }

    fn certificate(&self, member: u8) -> Vec<u8> {
        self.certificates.get(&identity_key(member).public()).cloned().unwrap_or_else(|| NETWORK.leaf(member))
    }

    /// One of the members, if there are any.
    fn member(&mut self, number: u8) -> Option<NodeId> {
        let members = self.members();
        members.get(usize::from(number) % members.len().max(1)).map(|member| member.node)
    }

    fn members(&mut self) -> Vec<MemberInfo> {
        let asked = Asked { by: "uid 0".into(), request: Request::Members };
        match self.issuer.handle(asked, later(self.start, self.secs), &mut self.random) {
            Ok(Reply::Members(members)) => members,
            other => panic!("{other:?}"),
        }
    }

    fn ask(&mut self, request: Request, by: Option<String>) -> Option<Reply> {
        let asked = Asked { by: by.unwrap_or_else(|| "uid 0".into()), request };
        let answer = self.issuer.handle(asked, later(self.start, self.secs), &mut self.random).ok()?;
        match &answer {
            Reply::Invited { token, .. } => self.tokens.push(token.0.parse().expect("a token that we wrote")),
            Reply::Granted(grant) => {
                assert!(!self.revoked.contains(&grant.node), "a revoked member got a certificate");
                let leaf = weir_controlplane::pki::certificate::read_leaf(&grant.chain[0]).expect("our own");
                self.certificates.insert(leaf.identity, grant.chain[0].clone());
            }
            _ => {}
        }
        self.nothing_is_given_out_twice();
        Some(answer)
    }

    fn nothing_is_given_out_twice(&mut self) {
        let members: Vec<MemberInfo> = self.members().into_iter().filter(|member| !member.revoked).collect();
        for (at, one) in members.iter().enumerate() {
            for other in &members[..at] {
                assert_ne!(one.name, other.name);
                let overlap =
                    one.prefixes.iter().any(|one| other.prefixes.iter().any(|two| prefixes_overlap(one, two)));
                assert!(!overlap, "{one:?} and {other:?}");
            }
        }
    }
}

fn contact() -> Contact {
    Contact { node: NETWORK.node(0), endpoints: vec!["192.0.2.1:4433".parse().unwrap()] }
}
