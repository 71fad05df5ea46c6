//! What `wan` needs to know members by the tags of their QUIC Initials: keys and the time.

use weir_abi::admission::{Key, key_words};
use weir_abi::map::Admission;
use zeroize::Zeroizing;

use super::{BpfError, Programs, step};
use crate::api::message::AdmissionKey;

/// [`Admission`] as words. They are lent to the map, so that there is one copy on our side, which can be erased.
pub(super) type Words = [u64; size_of::<Admission>() / 8];

/// Words of one prepared key in it.
const KEY_WORDS: usize = size_of::<Key>() / 8;

impl Programs {
    /// Gives `wan` the keys of members' tags, the newest first, prepared for this node. What is more than
    /// [`KEYS_MAX`](weir_abi::admission::KEYS_MAX) is not looked at.
    ///
    /// # Errors
    /// [`BpfError::Step`].
    pub fn set_admission(&mut self, keys: &[AdmissionKey], node: &[u8; 32]) -> Result<(), BpfError> {
        let words = words(keys, node);
        let lent: &Words = &words;
        self.admission.set(0, lent, 0).map_err(step("writing the map of admission keys"))
    }

    /// Tells `wan` what to add to the kernel's monotonic clock for nanoseconds since 1970, modulo 2^64.
    ///
    /// # Errors
    /// [`BpfError::Step`].
    pub fn set_wall_clock(&mut self, offset_ns: u64) -> Result<(), BpfError> {
        self.wall_clock.set(0, offset_ns, 0).map_err(step("writing the map of the wall clock"))
    }
}

/// The value of the map for these keys: their states one after the other, then their number.
fn words(keys: &[AdmissionKey], node: &[u8; 32]) -> Zeroizing<Words> {
    let mut words = Zeroizing::new([0; size_of::<Admission>() / 8]);
    let [places @ .., keys_len] = &mut *words;
    for (place, key) in places.chunks_exact_mut(KEY_WORDS).zip(keys) {
        let prepared = Key::new(key_words(key.expose()), node);
        place.copy_from_slice(&*Zeroizing::new(prepared.words()));
        *keys_len += 1;
    }
    words
}

#[cfg(test)]
mod tests {
    use weir_abi::admission::KEYS_MAX;

    use super::*;

    #[test]
    fn keys_stand_in_their_order_up_to_as_many_as_there_may_be() {
        let node = [7; 32];
        let keys: Vec<AdmissionKey> = (0..5).map(|i| AdmissionKey::new([i; 16])).collect();
        for count in 0..keys.len() {
            let words = words(&keys[..count], &node);
            let known = count.min(KEYS_MAX);
            assert_eq!(words[KEY_WORDS * KEYS_MAX], known as u64);
            for (i, place) in words[..KEY_WORDS * KEYS_MAX].chunks(KEY_WORDS).enumerate() {
                let expected =
                    if i < known { Key::new([u64::from_ne_bytes([i as u8; 8]); 2], &node).words() } else { [0; 4] };
                assert_eq!(place, expected, "key {i} of {count}");
            }
        }
    }
}
