//! The group X25519Kyber768Draft00 (draft-tls-westerbaan-xyber768d00), for peers that speak nothing newer.
//!
//! ```text
//!  client's share (1216) = X25519 (32) ‖ Kyber768 public key (1184)
//!  server's share (1120) = X25519 (32) ‖ Kyber768 ciphertext (1088)
//!  secret (64)           = X25519 (32) ‖ Kyber768 (32)
//! ```
//!
//! The Kyber is the third round's, not FIPS 203, and its library has a timing weakness for which there is no patch (RUSTSEC-2023-0079): keys
//! that are used more than once can be measured out of it. Here every key pair serves one handshake and is erased, and X25519 stands beside
//! it whatever happens to it. Off unless the feature `legacy-kyber` is built in and a dial asks for it.

use pqc_kyber::{CryptoRng, KYBER_CIPHERTEXTBYTES, KYBER_PUBLICKEYBYTES, KYBER_SECRETKEYBYTES, RngCore};
use rustls::crypto::aws_lc_rs::kx_group::X25519;
use rustls::crypto::{ActiveKeyExchange, CompletedKeyExchange, SharedSecret, SupportedKxGroup};
use rustls::ffdhe_groups::FfdheGroup;
use rustls::{Error, NamedGroup, PeerMisbehaved, ProtocolVersion};
use zeroize::{Zeroize as _, Zeroizing};

use super::GROUP_X25519KYBER768;
use crate::random::{Random as _, SystemRandom};

/// The group, for a rustls provider.
pub(super) static X25519KYBER768: &dyn SupportedKxGroup = &X25519Kyber768Draft00;

const X25519_LEN: usize = 32;
const INVALID_KEY_SHARE: Error = Error::PeerMisbehaved(PeerMisbehaved::InvalidKeyShare);

const _: () = assert!(KYBER_PUBLICKEYBYTES == 1184 && KYBER_CIPHERTEXTBYTES == 1088, "Kyber768");

#[derive(Debug)]
struct X25519Kyber768Draft00;

/// The system's generator by the library's older trait.
struct LibraryRandom;

impl RngCore for LibraryRandom {
    fn next_u32(&mut self) -> u32 {
        u32::from_le_bytes(SystemRandom.array())
    }

    fn next_u64(&mut self) -> u64 {
        SystemRandom.u64()
    }

    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        SystemRandom.fill(bytes);
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), rand_core_0_6::Error> {
        SystemRandom.fill(bytes);
        Ok(())
    }
}

impl CryptoRng for LibraryRandom {}

/// The classical part of a share and the other, of this length.
fn split(share: &[u8], kyber_len: usize) -> Result<(&[u8], &[u8]), Error> {
    if share.len() == X25519_LEN + kyber_len { Ok(share.split_at(X25519_LEN)) } else { Err(INVALID_KEY_SHARE) }
}

fn combined(classical: &SharedSecret, mut kyber: [u8; 32]) -> SharedSecret {
    let both = Zeroizing::new([classical.secret_bytes(), &kyber].concat());
    kyber.zeroize();
    SharedSecret::from(&both[..])
}

impl SupportedKxGroup for X25519Kyber768Draft00 {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, Error> {
        let classical = X25519.start()?;
        let mut pair = pqc_kyber::keypair(&mut LibraryRandom).map_err(|_| Error::FailedToGetRandomBytes)?;
        let share = [classical.pub_key(), &pair.public].concat();
        let secret = Zeroizing::new(pair.secret);
        pair.secret.zeroize();
        Ok(Box::new(Active { classical, secret, share }))
    }

    /// The server's side of a key encapsulation needs the client's share to make its own.
    fn start_and_complete(&self, client_share: &[u8]) -> Result<CompletedKeyExchange, Error> {
        let (classical_share, kyber_public) = split(client_share, KYBER_PUBLICKEYBYTES)?;
        let classical = X25519.start_and_complete(classical_share)?;
        let (ciphertext, kyber) =
            pqc_kyber::encapsulate(kyber_public, &mut LibraryRandom).map_err(|_| INVALID_KEY_SHARE)?;
        Ok(CompletedKeyExchange {
            group: self.name(),
            pub_key: [&classical.pub_key[..], &ciphertext].concat(),
            secret: combined(&classical.secret, kyber),
        })
    }

    fn ffdhe_group(&self) -> Option<FfdheGroup<'static>> {
        None
    }

    fn name(&self) -> NamedGroup {
        NamedGroup::from(GROUP_X25519KYBER768)
    }

    fn usable_for_version(&self, version: ProtocolVersion) -> bool {
        version == ProtocolVersion::TLSv1_3
    }
}

struct Active {
    classical: Box<dyn ActiveKeyExchange>,
    secret: Zeroizing<[u8; KYBER_SECRETKEYBYTES]>,
    share: Vec<u8>,
}

impl ActiveKeyExchange for Active {
    fn complete(self: Box<Self>, server_share: &[u8]) -> Result<SharedSecret, Error> {
        let (classical_share, ciphertext) = split(server_share, KYBER_CIPHERTEXTBYTES)?;
        let classical = self.classical.complete(classical_share)?;
        let kyber = pqc_kyber::decapsulate(ciphertext, &self.secret[..]).map_err(|_| INVALID_KEY_SHARE)?;
        Ok(combined(&classical, kyber))
    }

    fn ffdhe_group(&self) -> Option<FfdheGroup<'static>> {
        None
    }

    fn pub_key(&self) -> &[u8] {
        &self.share
    }

    fn group(&self) -> NamedGroup {
        NamedGroup::from(GROUP_X25519KYBER768)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_come_to_one_secret_by_shares_of_the_drafts_lengths() {
        let client = X25519KYBER768.start().unwrap();
        let server = X25519KYBER768.start_and_complete(client.pub_key()).unwrap();
        assert_eq!((client.pub_key().len(), server.pub_key.len()), (1216, 1120));
        assert_eq!((u16::from(client.group()), u16::from(server.group)), (0x6399, 0x6399));
        let secret = client.complete(&server.pub_key).unwrap();
        assert_eq!(secret.secret_bytes(), server.secret.secret_bytes());
        assert_eq!(secret.secret_bytes().len(), 64);
    }

    #[test]
    fn shares_of_other_lengths_are_refused() {
        for len in [0, 32, 1120, 1215, 1217] {
            assert!(X25519KYBER768.start_and_complete(&vec![9; len]).is_err(), "{len}");
            let client = X25519KYBER768.start().unwrap();
            let wrong = if len == 1120 { 1119 } else { len };
            assert!(client.complete(&vec![9; wrong]).is_err(), "{len}");
        }
    }

    #[test]
    fn either_part_changes_the_secret() {
        let client = X25519KYBER768.start().unwrap();
        let server = X25519KYBER768.start_and_complete(client.pub_key()).unwrap();
        let other = X25519KYBER768.start_and_complete(client.pub_key()).unwrap();
        let mixed = [&server.pub_key[..32], &other.pub_key[32..]].concat();
        let secret = client.complete(&mixed).unwrap();
        assert_eq!(secret.secret_bytes()[..32], server.secret.secret_bytes()[..32]);
        assert_eq!(secret.secret_bytes()[32..], other.secret.secret_bytes()[32..]);
    }
}
