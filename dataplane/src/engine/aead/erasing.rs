//! A key of `ring` that is erased when it is dropped, which the library's own keys are not.
//!
//! Nothing reaches into such a key from outside. But it is flat: no pointer, and for one algorithm on one CPU always the same fields, of
//! which nothing has a destructor. So writing the key of 32 zeros over it leaves nothing of it, and [`optimization_barrier`] keeps the
//! compiler from leaving that out. The key stands in a box from its first use to its last, so that no copy stays behind when its owner
//! moves; what preparing it left on the stack is wiped right after.

use ring::aead::{AES_256_GCM, Algorithm as RingAlgorithm, CHACHA20_POLY1305, LessSafeKey, UnboundKey};
use zeroize::{optimization_barrier, zeroize_stack};

use super::{Algorithm, KEY_LEN};

/// Stack that preparing a key may use, wiped afterwards. A prepared key has some 550 bytes and is moved a few times on its way.
const STACK_LEN: usize = 8192;

const _: () =
    assert!(!std::mem::needs_drop::<LessSafeKey>(), "a key that is written over must not have owned anything");

/// A key in a place of its own.
pub(super) struct ErasingKey(Box<LessSafeKey>);

impl ErasingKey {
    pub(super) fn new(algorithm: Algorithm, key: &[u8; KEY_LEN]) -> Self {
        let algorithm = match algorithm {
            Algorithm::Aes256Gcm => &AES_256_GCM,
            Algorithm::ChaCha20Poly1305 => &CHACHA20_POLY1305,
        };
        let prepared = Self(in_box(algorithm, key));
        zeroize_stack::<STACK_LEN>();
        prepared
    }

    #[inline(always)]
    pub(super) fn get(&self) -> &LessSafeKey {
        &self.0
    }

    /// Makes it the key of 32 zeros.
    fn erase(&mut self) {
        *self.0 = prepare(self.0.algorithm(), &[0; KEY_LEN]);
        optimization_barrier(&*self.0);
    }
}

impl Drop for ErasingKey {
    fn drop(&mut self) {
        self.erase();
    }
}

/// A function of its own, so that everything it leaves on the stack lies below its caller, where it is wiped.
#[inline(never)]
fn in_box(algorithm: &'static RingAlgorithm, key: &[u8; KEY_LEN]) -> Box<LessSafeKey> {
    Box::new(prepare(algorithm, key))
}

fn prepare(algorithm: &'static RingAlgorithm, key: &[u8; KEY_LEN]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(algorithm, key).expect("both algorithms take 32 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring::aead::{Aad, Nonce};

    fn tag(key: &LessSafeKey) -> [u8; 16] {
        let tag = key.seal_in_place_separate_tag(Nonce::assume_unique_for_key([1; 12]), Aad::empty(), &mut [5; 100]);
        tag.unwrap().as_ref().try_into().unwrap()
    }

    /// That its memory holds nothing else any more is seen by the allocator: `tests/no_alloc.rs`.
    #[test]
    fn an_erased_key_is_the_key_of_zeros() {
        for algorithm in [Algorithm::Aes256Gcm, Algorithm::ChaCha20Poly1305] {
            let zeros = tag(ErasingKey::new(algorithm, &[0; KEY_LEN]).get());
            let mut key = ErasingKey::new(algorithm, &[7; KEY_LEN]);
            assert_ne!(tag(key.get()), zeros);
            key.erase();
            assert_eq!(tag(key.get()), zeros);
        }
    }
}
