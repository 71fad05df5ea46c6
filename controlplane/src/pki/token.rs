//! The invitation that a person carries to a new site, in one line of text.
//!
//! ```text
//!  "weir1-" ‖ base32( body ‖ first 4 bytes of SHA-256("weir-token-1" ‖ body) )
//!
//!  body:  network (32) │ node of the issuer (32) │ invite (8) │ secret (16) │ not after │ endpoints │ day key?
//! ```
//!
//! The digit is the version. The text is read in either case and with line breaks in it, as mail programs leave it. The checksum catches a
//! slip of the hand; whoever can make a token must have the secret anyway.
//!
//! The secret never crosses the wire. Joining proves it by `HMAC-SHA-256(secret, exporter ‖ request body)`: the exporter (32 bytes) binds
//! the proof to one connection.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use aws_lc_rs::hmac;
use data_encoding::BASE32_NOPAD;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::admission::DayKey;
use super::id::{InviteId, NetworkId, NodeId, sha256};
use crate::codec;
use crate::time::UnixSecs;

/// Begins every token, with the version's digit behind it.
const PREFIX: &str = "weir";
/// The version that we write and read.
const VERSION: &str = "1";
/// Bytes of the checksum.
const CHECKSUM_LEN: usize = 4;
/// Addresses in one token.
pub const ENDPOINTS_MAX: usize = 8;
/// Longest body that is read.
const BODY_LEN_MAX: usize = 384;
/// Longest text that is read, white space included.
const TEXT_LEN_MAX: usize = 1024;

/// What is needed to prove an invitation.
pub type InviteSecret = Zeroizing<[u8; 16]>;

/// An invitation.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// The network to join.
    pub network: NetworkId,
    /// The member at whose side the issuer sits.
    pub issuer: NodeId,
    /// The invitation.
    pub invite: InviteId,
    /// What proves it.
    pub secret: InviteSecret,
    /// Until when it is good.
    pub not_after: UnixSecs,
    /// Where to find the issuer's node, or other members that relay.
    pub endpoints: Vec<SocketAddr>,
    /// By which the first packet is told from a stranger's, while the day lasts.
    pub admission: Option<DayKey>,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { network, issuer, invite, secret: _, not_after, endpoints, admission } = self;
        let mut shown = f.debug_struct("Token");
        shown.field("network", network).field("issuer", issuer).field("invite", invite);
        shown
            .field("not_after", not_after)
            .field("endpoints", endpoints)
            .field("admission", admission)
            .finish_non_exhaustive()
    }
}

/// Why a text is no token that we can use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It does not look like one.
    #[error("this is no token; it begins with weir1-")]
    Syntax,
    /// Another version.
    #[error(
        "this token is of version {0:?}, we read {VERSION}; use the version of weir that the inviting network runs"
    )]
    Version(String),
    /// A character was lost or changed.
    #[error("the token is damaged; copy it again, whole")]
    Checksum,
    /// More than a token can be.
    #[error("{0} characters are too many for a token")]
    TooLong(usize),
    /// The checksum fits, the content does not.
    #[error("the token's content does not decode")]
    Content,
    /// Its time is over.
    #[error("the token was good until {0}; ask for a new one")]
    Expired(UnixSecs),
}

fn checksum(body: &[u8]) -> [u8; CHECKSUM_LEN] {
    let hash = sha256("weir-token-1", &[body]);
    [hash[0], hash[1], hash[2], hash[3]]
}

impl Token {
    /// The text to hand over. It is as secret as a key until it is used.
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut bytes = codec::encode_secret(self, CHECKSUM_LEN);
        let checksum = checksum(&bytes);
        bytes.extend_from_slice(&checksum);
        let begin = format!("{PREFIX}{VERSION}-");
        // With room for all of it: a longer text in its place would leave this one behind, not erased.
        let mut text = Zeroizing::new(String::with_capacity(begin.len() + BASE32_NOPAD.encode_len(bytes.len())));
        text.push_str(&begin);
        BASE32_NOPAD.encode_append(&bytes, &mut text);
        text.make_ascii_lowercase();
        text
    }

    /// Refuses it when its time is over, by our own clock: the issuer judges by its own.
    ///
    /// # Errors
    /// [`TokenError::Expired`].
    pub fn check(&self, now: UnixSecs) -> Result<(), TokenError> {
        if now < self.not_after { Ok(()) } else { Err(TokenError::Expired(self.not_after)) }
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        if text.len() > TEXT_LEN_MAX {
            return Err(TokenError::TooLong(text.len()));
        }
        let mut joined = Zeroizing::new(String::with_capacity(text.len()));
        joined.extend(text.chars().filter(|char| !char.is_whitespace()));
        joined.make_ascii_lowercase();
        let text = joined;
        let (version, encoded) =
            text.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-')).ok_or(TokenError::Syntax)?;
        if version.is_empty() || !version.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(TokenError::Syntax);
        }
        if version != VERSION {
            return Err(TokenError::Version(version.to_owned()));
        }
        let encoded = Zeroizing::new(encoded.to_ascii_uppercase());
        let decoded = BASE32_NOPAD.decode(encoded.as_bytes());
        let bytes = Zeroizing::new(decoded.map_err(|_| TokenError::Checksum)?);
        let (body, sum) = bytes.split_last_chunk::<CHECKSUM_LEN>().ok_or(TokenError::Checksum)?;
        if checksum(body) != *sum {
            return Err(TokenError::Checksum);
        }
        let token: Self = codec::decode(body, BODY_LEN_MAX).map_err(|_| TokenError::Content)?;
        if token.endpoints.len() > ENDPOINTS_MAX { Err(TokenError::Content) } else { Ok(token) }
    }
}

fn keyed(secret: &InviteSecret) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, &**secret)
}

fn message(exporter: &[u8; 32], body: &[u8]) -> Vec<u8> {
    [&exporter[..], body].concat()
}

/// The joiner's proof that it has the secret, good for this connection and this request.
pub fn proof(secret: &InviteSecret, exporter: &[u8; 32], body: &[u8]) -> [u8; 32] {
    let tag = hmac::sign(&keyed(secret), &message(exporter, body));
    let mut proof = [0; 32];
    // SHA-256's output.
    proof.copy_from_slice(tag.as_ref());
    proof
}

/// Whether the proof fits, in time that tells nothing.
pub fn proof_fits(secret: &InviteSecret, exporter: &[u8; 32], body: &[u8], proof: &[u8; 32]) -> bool {
    hmac::verify(&keyed(secret), &message(exporter, body), proof).is_ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn token() -> Token {
        Token {
            network: NetworkId([1; 32]),
            issuer: NodeId([2; 32]),
            invite: InviteId([3; 8]),
            secret: Zeroizing::new([0x5e; 16]),
            not_after: UnixSecs(1_796_000_000),
            endpoints: vec!["192.0.2.1:4433".parse().unwrap(), "[2001:db8::1]:4433".parse().unwrap()],
            admission: Some(DayKey { day: 20_787, key: Zeroizing::new([0x5f; 16]) }),
        }
    }

    #[test]
    fn a_token_survives_mail_programs() {
        let text = token().to_text();
        assert!(text.starts_with("weir1-") && text.len() < 300, "{}", text.len());
        assert_eq!(text.parse(), Ok(token()));
        let wrapped = format!(" {}\r\n {}\n", text[..70].to_ascii_uppercase(), &text[70..]);
        assert_eq!(wrapped.parse(), Ok(token()));
    }

    #[test]
    fn a_damaged_or_foreign_token_says_what_it_is() {
        let text = token().to_text().to_string();
        assert_eq!("".parse::<Token>(), Err(TokenError::Syntax));
        assert_eq!("weirx-aa".parse::<Token>(), Err(TokenError::Syntax));
        assert_eq!(text.replacen('1', "12", 1).parse::<Token>(), Err(TokenError::Version("12".into())));
        assert_eq!(text[..text.len() - 1].parse::<Token>(), Err(TokenError::Checksum));
        let other = if text.as_bytes()[20] == b'a' { "b" } else { "a" };
        assert_eq!(format!("{}{other}{}", &text[..20], &text[21..]).parse::<Token>(), Err(TokenError::Checksum));
        assert_eq!("w".repeat(TEXT_LEN_MAX + 1).parse::<Token>(), Err(TokenError::TooLong(TEXT_LEN_MAX + 1)));
        assert_eq!("w".repeat(TEXT_LEN_MAX).parse::<Token>(), Err(TokenError::Syntax));
    }

    #[test]
    fn endpoints_are_read_up_to_their_limit() {
        let with = |count: usize| {
            let endpoints = vec!["[2001:db8::1]:65535".parse().unwrap(); count];
            Token { endpoints, ..token() }.to_text().parse::<Token>().map(|token| token.endpoints.len())
        };
        assert_eq!(with(ENDPOINTS_MAX), Ok(ENDPOINTS_MAX));
        assert_eq!(with(ENDPOINTS_MAX + 1), Err(TokenError::Content));
    }

    #[test]
    fn a_token_ends_when_it_says() {
        let at = token().not_after;
        assert_eq!(token().check(UnixSecs(at.0 - 1)), Ok(()));
        assert_eq!(token().check(at), Err(TokenError::Expired(at)));
    }

    #[test]
    fn no_secret_is_printed() {
        let shown = format!("{:?}", token());
        assert!(
            shown.contains("invite") && !shown.contains("94") && !shown.contains("5e5e") && !shown.contains("95,"),
            "{shown}"
        );
    }

    #[test]
    fn a_proof_is_good_for_one_secret_connection_and_request() {
        let secret = Zeroizing::new([7; 16]);
        let good = proof(&secret, &[1; 32], b"body");
        assert!(proof_fits(&secret, &[1; 32], b"body", &good));
        assert!(!proof_fits(&Zeroizing::new([8; 16]), &[1; 32], b"body", &good));
        assert!(!proof_fits(&secret, &[2; 32], b"body", &good));
        assert!(!proof_fits(&secret, &[1; 32], b"bodz", &good));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,200}", bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = text.parse::<Token>();
            let mut whole = bytes.clone();
            whole.extend_from_slice(&checksum(&bytes));
            let _ = format!("weir1-{}", BASE32_NOPAD.encode(&whole)).parse::<Token>();
        }
    }
}
