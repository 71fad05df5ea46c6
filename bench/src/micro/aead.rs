//! What sealing costs, in the library that the engine uses and in the one that it might.

use weir_abi::wire::{DATA_LEN_MIN, HEADER_LEN};
use weir_dataplane::engine::port::BURST_LEN;

use super::Subject;

const LENGTHS: [usize; 3] = [64, 1400, 8900];
const TIMES: u32 = 20_000;

/// Name of the figure that the engine's are set against.
pub(super) const SEAL_1400: &str = "seal 1400 B, AES-256-GCM, aws_lc_rs";

/// A subject for each length of one library's algorithm; `ring` and `aws_lc_rs` have the same interface.
macro_rules! library {
    ($library:ident, $algorithm:ident, $name:literal) => {
        LENGTHS.map(|len| {
            use $library::aead::{Aad, LessSafeKey, Nonce, UnboundKey, $algorithm};
            // The key has the algorithm's length.
            let key = LessSafeKey::new(UnboundKey::new(&$algorithm, &[7; 32]).expect("32 bytes are a key"));
            let mut buffer = vec![1u8; len];
            Subject::timed(format!("seal {len} B, {}, {}", $name, stringify!($library)), TIMES, move |i| {
                let mut nonce = [0; 12];
                nonce[8..].copy_from_slice(&i.to_be_bytes());
                let nonce = Nonce::assume_unique_for_key(nonce);
                let tag = key.seal_in_place_separate_tag(nonce, Aad::from(&[0u8; 16]), &mut buffer);
                std::hint::black_box(tag.is_ok());
            })
        })
    };
}

/// What no engine can do without: packets of 1400 bytes, a burst of them in turn, copied to where they are sent from and sealed there.
fn copy_and_seal() -> Subject<'static> {
    use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
    const LEN: usize = 1400;
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[7; 32]).expect("32 bytes are a key"));
    let packets = vec![vec![1u8; LEN]; BURST_LEN];
    let mut train = vec![0u8; BURST_LEN * (LEN + DATA_LEN_MIN)];
    Subject::timed("copy and seal 1400 B, a burst of 64 in turn, no engine", TIMES, move |i| {
        let at = i as usize % BURST_LEN;
        let mut nonce = [0; 12];
        nonce[8..].copy_from_slice(&i.to_be_bytes());
        let datagram = &mut train[at * (LEN + DATA_LEN_MIN)..][..LEN + DATA_LEN_MIN];
        let plaintext = &mut datagram[HEADER_LEN..][..LEN];
        plaintext.copy_from_slice(&packets[at]);
        let tag = key.seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(&[0u8; 16]), plaintext);
        if let Ok(tag) = tag {
            datagram[HEADER_LEN + LEN..].copy_from_slice(tag.as_ref());
        }
    })
}

pub(super) fn subjects() -> Vec<Subject<'static>> {
    let mut subjects = vec![];
    subjects.extend(library!(aws_lc_rs, AES_256_GCM, "AES-256-GCM"));
    subjects.extend(library!(ring, AES_256_GCM, "AES-256-GCM"));
    subjects.extend(library!(aws_lc_rs, CHACHA20_POLY1305, "ChaCha20-Poly1305"));
    subjects.extend(library!(ring, CHACHA20_POLY1305, "ChaCha20-Poly1305"));
    subjects.push(copy_and_seal());
    subjects
}
