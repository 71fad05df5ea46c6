//! Why a link ended, in terms that a person can act on.

use std::fmt;

use quinn_proto::{ConnectionError, TransportErrorCode};

use super::crypto::Negotiated;
use crate::pki::verifier::VerifyError;

/// Codes that a side gives when it closes a link or refuses a stream. Append only; whoever uses links has those from 0x100.
pub mod code {
    /// Nothing is wrong; the link is not needed any more.
    pub const DONE: u32 = 0;
    /// A link for members, and no certificate shown.
    pub const NO_CERTIFICATE: u32 = 1;
    /// A stream of a type that is not known here. The link goes on.
    pub const STREAM_TYPE_UNKNOWN: u32 = 2;
    /// A second control stream, or the end of the one.
    pub const CONTROL_STREAM: u32 = 3;
    /// A message longer than the limit.
    pub const MESSAGE_TOO_LONG: u32 = 4;
    /// More unfinished messages than there is room for.
    pub const NO_ROOM: u32 = 5;
    /// The handshake took too long.
    pub const HANDSHAKE_TIMEOUT: u32 = 6;
}

/// Characters of a peer's own words that are kept.
const PEER_WORDS_MAX: usize = 120;

/// Why a link ended.
#[derive(Clone, Debug)]
pub enum CloseReason {
    /// We closed it.
    Local {
        /// The code that the peer is told.
        code: u32,
    },
    /// The peer closed it.
    Peer {
        /// One of [`code`], or the user's own.
        code: u32,
        /// The peer's words, cut to what a line can hold and cleared of what a terminal would obey.
        words: String,
    },
    /// We refuse the peer's certificate, or it is another node's than the one that was dialled.
    Refused(VerifyError),
    /// A link for members whose dialling side shows no certificate.
    NoCertificate,
    /// The peer's TLS refused ours: an alert of RFC 8446 §6.2.
    RefusedByPeer {
        /// Its number.
        alert: u8,
    },
    /// Our TLS refused the peer's: an alert of RFC 8446 §6.2.
    Handshake {
        /// Its number.
        alert: u8,
        /// What was wrong.
        why: String,
    },
    /// The peer speaks no version of QUIC that we do.
    Version,
    /// Nothing was heard for as long as the link may be idle.
    TimedOut,
    /// The handshake did not end in time.
    HandshakeTimedOut,
    /// The peer does not know the link any more: it was restarted.
    Reset,
    /// The peer has no room for another link.
    PeerSaturated,
    /// One side broke the rules of QUIC or of the streams.
    Protocol(String),
}

impl CloseReason {
    /// A word for a counter or a table.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Local { .. } => "closed",
            Self::Peer { .. } => "closed_by_peer",
            Self::Refused(error) => error.name(),
            Self::NoCertificate => "no_certificate",
            Self::RefusedByPeer { .. } => "refused_by_peer",
            Self::Handshake { .. } => "handshake",
            Self::Version => "version",
            Self::TimedOut => "timed_out",
            Self::HandshakeTimedOut => "handshake_timed_out",
            Self::Reset => "reset",
            Self::PeerSaturated => "peer_saturated",
            Self::Protocol(_) => "protocol",
        }
    }

    /// What quinn-proto says, together with what our own TLS knows.
    pub(super) fn of(error: ConnectionError, negotiated: &Negotiated) -> Self {
        match error {
            ConnectionError::VersionMismatch => Self::Version,
            ConnectionError::TransportError(error) => match (&negotiated.refusal, alert(error.code)) {
                (Some(refused), _) => Self::Refused(refused.clone()),
                (None, Some(alert)) => {
                    Self::Handshake { alert, why: negotiated.failure.clone().unwrap_or(error.reason) }
                }
                (None, None) => Self::Protocol(error.to_string()),
            },
            ConnectionError::ConnectionClosed(close) => match alert(close.error_code) {
                Some(alert) => Self::RefusedByPeer { alert },
                None if close.error_code == TransportErrorCode::CONNECTION_REFUSED => Self::PeerSaturated,
                // While everybody can read it, what the peer closed with is not said (RFC 9000 §10.2.3).
                None if close.error_code == TransportErrorCode::APPLICATION_ERROR => {
                    Self::Peer { code: code::DONE, words: "closed during the handshake".to_owned() }
                }
                None => Self::Protocol(format!("the peer says {}", printable(close.to_string().as_bytes()))),
            },
            ConnectionError::ApplicationClosed(close) => Self::Peer {
                code: u32::try_from(close.error_code.into_inner()).unwrap_or(u32::MAX),
                words: printable(&close.reason),
            },
            ConnectionError::Reset => Self::Reset,
            ConnectionError::TimedOut => Self::TimedOut,
            ConnectionError::LocallyClosed => Self::Local { code: code::DONE },
            ConnectionError::CidsExhausted => Self::Protocol("connection ids are used up".to_owned()),
        }
    }
}

/// The TLS alert in an error code of QUIC (RFC 9001 §4.8).
fn alert(code: TransportErrorCode) -> Option<u8> {
    match u64::from(code) {
        code @ 0x100..=0x1ff => u8::try_from(code - 0x100).ok(),
        _ => None,
    }
}

/// A peer's words, harmless.
fn printable(words: &[u8]) -> String {
    let text = String::from_utf8_lossy(words);
    text.chars().map(|c| if c.is_control() { '·' } else { c }).take(PEER_WORDS_MAX).collect()
}

/// Alerts that a person meets, by their names in RFC 8446 §6.2.
fn alert_name(alert: u8) -> &'static str {
    match alert {
        40 => "handshake_failure: no group, suite or signature in common",
        42 => "bad_certificate",
        43 => "unsupported_certificate",
        44 => "certificate_revoked",
        45 => "certificate_expired",
        46 => "certificate_unknown",
        48 => "unknown_ca: another network, or an older trust bundle",
        49 => "access_denied",
        51 => "decrypt_error",
        116 => "certificate_required",
        120 => "no_application_protocol: an older or newer version of Weir",
        _ => "an alert of RFC 8446",
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local { code } => write!(f, "closed by this side (code {code})"),
            Self::Peer { code, words } if words.is_empty() => write!(f, "closed by the peer (code {code})"),
            Self::Peer { code, words } => write!(f, "closed by the peer (code {code}): {words}"),
            Self::Refused(error) => write!(f, "the peer's certificate is refused: {error}"),
            Self::NoCertificate => f.write_str("the peer shows no certificate on a link for members"),
            Self::RefusedByPeer { alert } => {
                write!(f, "the peer refuses the handshake: {} (alert {alert})", alert_name(*alert))
            }
            Self::Handshake { alert, why } => {
                write!(f, "the handshake failed: {why} ({}, alert {alert})", alert_name(*alert))
            }
            Self::Version => f.write_str("the peer speaks no version of QUIC that this side speaks"),
            Self::TimedOut => f.write_str("nothing was heard from the peer"),
            Self::HandshakeTimedOut => f.write_str("the handshake did not end in time"),
            Self::Reset => f.write_str("the peer was restarted"),
            Self::PeerSaturated => f.write_str("the peer has no room for another link"),
            Self::Protocol(what) => write!(f, "a rule of the protocol was broken: {what}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peers_words_cannot_drive_a_terminal() {
        assert_eq!(printable(b"plain"), "plain");
        assert_eq!(printable(b"\x1b[2Jgone\r\n"), "·[2Jgone··");
        let long = "ä".repeat(PEER_WORDS_MAX + 1);
        assert_eq!(printable(long.as_bytes()).chars().count(), PEER_WORDS_MAX);
        assert_eq!(printable(&[0xff, b'a']), "\u{fffd}a");
    }

    #[test]
    fn alerts_are_the_codes_of_rfc_9001() {
        assert_eq!(alert(TransportErrorCode::crypto(48)), Some(48));
        assert_eq!(alert(TransportErrorCode::crypto(255)), Some(255));
        assert_eq!(alert(TransportErrorCode::CONNECTION_REFUSED), None);
    }
}
