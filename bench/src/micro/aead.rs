//! What sealing costs, in the library that the engine uses and in the one that it might.

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

pub(super) fn subjects() -> Vec<Subject<'static>> {
    let mut subjects = vec![];
    subjects.extend(library!(aws_lc_rs, AES_256_GCM, "AES-256-GCM"));
    subjects.extend(library!(ring, AES_256_GCM, "AES-256-GCM"));
    subjects.extend(library!(aws_lc_rs, CHACHA20_POLY1305, "ChaCha20-Poly1305"));
    subjects.extend(library!(ring, CHACHA20_POLY1305, "ChaCha20-Poly1305"));
    subjects
}
