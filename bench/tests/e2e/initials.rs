//! Opens QUIC's Initials as anybody on the path can: their keys are made of the client's first connection id and a published salt
//! (RFC 9001 §5.2). Written from the RFC, so that it shares no mistake with what it looks at.

use aws_lc_rs::aead::quic::{AES_128, HeaderProtectionKey};
use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};

/// Of QUIC version 1.
const SALT: [u8; 20] = [
    0x38, 0x76, 0x2c, 0xf7, 0xf5, 0x59, 0x34, 0xb3, 0x4d, 0x17, 0x9a, 0xe6, 0xa4, 0xc8, 0x0c, 0xad, 0xcc, 0xbb, 0x7f,
    0x0a,
];
const TAG_LEN: usize = 16;
const IV_LEN: usize = 12;

#[derive(Clone, Copy)]
struct Len(usize);

impl KeyType for Len {
    fn len(&self) -> usize {
        self.0
    }
}

/// HKDF-Expand-Label with an empty context (RFC 8446 §7.1).
fn expand(secret: &Prk, label: &str, len: usize) -> Vec<u8> {
    let label = format!("tls13 {label}");
    let head = [&(len as u16).to_be_bytes()[..], &[label.len() as u8], label.as_bytes(), &[0]].concat();
    let mut out = vec![0; len];
    secret.expand(&[&head], Len(len)).unwrap().fill(&mut out).unwrap();
    out
}

/// One side's keys.
struct Keys {
    header: HeaderProtectionKey,
    packet: LessSafeKey,
    iv: Vec<u8>,
}

/// What one connection's Initials are opened with.
pub(crate) struct Opener([Keys; 2]);

/// An Initial's header, as far as it is not protected.
struct Header<'a> {
    destination: &'a [u8],
    /// Where the packet number begins, and where the packet ends.
    number_at: usize,
    end: usize,
}

fn header(datagram: &[u8]) -> Option<Header<'_>> {
    let (first, version) = (datagram.first()?, datagram.get(1..5)?);
    if first & 0xf0 != 0xc0 || version != [0, 0, 0, 1] {
        return None;
    }
    // A variable-length integer (RFC 9000 §16) and where it ends.
    let varint = |at: usize| {
        let len = 1 << (datagram.get(at)? >> 6);
        let value = datagram.get(at + 1..at + len)?.iter();
        Some((value.fold(usize::from(datagram[at] & 0x3f), |value, byte| value << 8 | usize::from(*byte)), at + len))
    };
    let destination_end = 6 + usize::from(*datagram.get(5)?);
    let source_end = destination_end + 1 + usize::from(*datagram.get(destination_end)?);
    let (token_len, at) = varint(source_end)?;
    let (len, number_at) = varint(at + token_len)?;
    let end = number_at + len;
    (end <= datagram.len()).then_some(Header { destination: &datagram[6..destination_end], number_at, end })
}

/// Whether the datagram begins with an Initial.
pub(crate) fn is_initial(datagram: &[u8]) -> bool {
    header(datagram).is_some()
}

impl Opener {
    /// For the connection whose first Initial this may be.
    pub(crate) fn of(datagram: &[u8]) -> Option<Self> {
        let secret = Salt::new(HKDF_SHA256, &SALT).extract(header(datagram)?.destination);
        Some(Self(["client in", "server in"].map(|side| {
            let secret = Prk::new_less_safe(HKDF_SHA256, &expand(&secret, side, 32));
            Keys {
                header: HeaderProtectionKey::new(&AES_128, &expand(&secret, "quic hp", 16)).unwrap(),
                packet: LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &expand(&secret, "quic key", 16)).unwrap()),
                iv: expand(&secret, "quic iv", IV_LEN),
            }
        })))
    }

    /// What an Initial of this connection says, whichever side wrote it.
    pub(crate) fn open(&self, datagram: &[u8]) -> Option<Vec<u8>> {
        let Header { number_at, end, .. } = header(datagram)?;
        self.0.iter().find_map(|keys| keys.open(&datagram[..end], number_at))
    }
}

impl Keys {
    fn open(&self, packet: &[u8], number_at: usize) -> Option<Vec<u8>> {
        // RFC 9001 §5.4.2: the sample lies where the payload would begin behind a packet number of four bytes.
        let mask = self.header.new_mask(packet.get(number_at + 4..number_at + 20)?).ok()?;
        let mut packet = packet.to_vec();
        packet[0] ^= mask[0] & 0x0f;
        let number_len = usize::from(packet[0] & 3) + 1;
        let body_at = number_at + number_len;
        packet[number_at..body_at].iter_mut().zip(&mask[1..]).for_each(|(byte, mask)| *byte ^= mask);
        let mut nonce: [u8; IV_LEN] = self.iv.clone().try_into().ok()?;
        // Initials are few, so their numbers are not truncated.
        nonce[IV_LEN - number_len..].iter_mut().zip(&packet[number_at..body_at]).for_each(|(byte, n)| *byte ^= n);
        let (head, body) = packet.split_at_mut(body_at);
        self.packet.open_in_place(Nonce::assume_unique_for_key(nonce), Aad::from(&*head), body).ok()?;
        Some(body[..body.len() - TAG_LEN].to_vec())
    }
}

/// The first Initial of a client and the answer of a server, from RFC 9001 §A.
#[test]
fn the_rfcs_own_server_initial_is_opened() {
    let client_id = [0x83, 0x94, 0xc8, 0xf0, 0x3e, 0x51, 0x57, 0x08];
    // An Initial with that id and nothing else that matters, to have the keys made.
    let first = [&[0xc0, 0, 0, 0, 1, 8][..], &client_id, &[0, 0, 0]].concat();
    let opener = Opener::of(&first).unwrap();
    let server = "cf000000010008f067a5502a4262b5004075c0d95a482cd0991cd25b0aac406a5816b6394100f37a1c69797554780bb38cc5a99f5ed\
                  e4cf73c3ec2493a1839b3dbcba3f6ea46c5b7684df3548e7ddeb9c3bf9c73cc3f3bded74b562bfb19fb84022f8ef4cdd93795d77d0\
                  6edbb7aaf2f58891850abbdca3d20398c276456cbc42158407dd074ee";
    let bytes: Vec<u8> =
        (0..server.len() / 2).map(|at| u8::from_str_radix(&server[2 * at..2 * at + 2], 16).unwrap()).collect();
    let plain = opener.open(&bytes).unwrap();
    // An ACK frame, and a CRYPTO frame with a ServerHello.
    assert_eq!(plain[..8], [0x02, 0, 0, 0, 0, 0x06, 0, 0x40]);
}
