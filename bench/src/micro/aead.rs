//! What sealing costs, in the library that the engine uses on this machine and in the one that it uses on others.

use weir_abi::wire::{DATA_LEN_MIN, HEADER_LEN, TAG_LEN};
use weir_dataplane::engine::aead::{AeadKey, Algorithm, Library};
use weir_dataplane::engine::port::BURST_LEN;

use super::Subject;

const LENGTHS: [usize; 3] = [64, 1400, 8900];
const TIMES: u32 = 20_000;

/// Name of the figure that the engine's are set against: the same algorithm in the same library.
pub(super) fn seal_1400() -> String {
    let algorithm = Algorithm::for_this_cpu();
    name(1400, algorithm, Library::for_this_cpu(algorithm).0)
}

fn name(len: usize, algorithm: Algorithm, library: Library) -> String {
    let used = if library == Library::for_this_cpu(algorithm).0 { ", as the engine" } else { "" };
    let algorithm = match algorithm {
        Algorithm::Aes256Gcm => "AES-256-GCM",
        Algorithm::ChaCha20Poly1305 => "ChaCha20-Poly1305",
    };
    format!("seal {len} B, {algorithm}, {library}{used}")
}

/// A subject for each length of one library's algorithm; `ring` and `aws_lc_rs` have the same interface.
macro_rules! library {
    ($crate_name:ident, $constant:ident, $library:expr, $algorithm:expr) => {
        LENGTHS.map(|len| {
            use $crate_name::aead::{Aad, LessSafeKey, Nonce, UnboundKey, $constant};
            // The key has the algorithm's length.
            let key = LessSafeKey::new(UnboundKey::new(&$constant, &[7; 32]).expect("32 bytes are a key"));
            let mut buffer = vec![1u8; len];
            Subject::timed(name(len, $algorithm, $library), TIMES, move |i| {
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
    const LEN: usize = 1400;
    let key = AeadKey::new(Algorithm::for_this_cpu(), &[7; 32]);
    let packets = vec![vec![1u8; LEN]; BURST_LEN];
    let mut train = vec![0u8; BURST_LEN * (LEN + DATA_LEN_MIN)];
    Subject::timed("copy and seal 1400 B, a burst of 64 in turn, no engine", TIMES, move |i| {
        let at = i as usize % BURST_LEN;
        let mut nonce = [0; 12];
        nonce[8..].copy_from_slice(&i.to_be_bytes());
        let datagram = &mut train[at * (LEN + DATA_LEN_MIN)..][..LEN + DATA_LEN_MIN];
        let (plaintext, tag) = datagram[HEADER_LEN..].split_at_mut(LEN);
        plaintext.copy_from_slice(&packets[at]);
        // The datagram ends with its tag.
        let tag: &mut [u8; TAG_LEN] = tag.try_into().expect("header, plaintext and tag are all of it");
        std::hint::black_box(key.seal(nonce, &[0; HEADER_LEN], plaintext, tag).is_ok());
    })
}

pub(super) fn subjects() -> Vec<Subject<'static>> {
    let mut subjects = vec![];
    subjects.extend(library!(aws_lc_rs, AES_256_GCM, Library::AwsLc, Algorithm::Aes256Gcm));
    subjects.extend(library!(ring, AES_256_GCM, Library::Ring, Algorithm::Aes256Gcm));
    subjects.extend(library!(aws_lc_rs, CHACHA20_POLY1305, Library::AwsLc, Algorithm::ChaCha20Poly1305));
    subjects.extend(library!(ring, CHACHA20_POLY1305, Library::Ring, Algorithm::ChaCha20Poly1305));
    subjects.push(copy_and_seal());
    subjects
}
