//! What strangers send: frames as `wan`, `lan` and `steer` judge them, and the header of a datagram.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weir_abi::address::Address;
use weir_abi::admission::Key;
use weir_abi::classify::{self, Tables};
use weir_abi::frame;
use weir_abi::gcra::Rate;
use weir_abi::map::{Admission, Class, Config};
use weir_abi::wire::{self, DataHeader, HEADER_LEN, ReceiverIndex};

/// Every answer is a bit of the input.
struct Answers {
    config: Option<Config>,
    admission: Option<Admission>,
    bits: u8,
}

impl Tables for Answers {
    fn config(&self) -> Option<&Config> {
        self.config.as_ref()
    }

    fn is_live(&self, _: ReceiverIndex) -> bool {
        self.bits & 1 != 0
    }

    fn is_local(&self, _: &Address) -> bool {
        self.bits & 2 != 0
    }

    fn is_denied(&self, _: &Address, _: &Config) -> bool {
        self.bits & 4 != 0
    }

    fn now_ns(&self) -> u64 {
        u64::from(self.bits) << 32
    }

    fn admit_source(&self, _: &Address, _: Rate, _: u64) -> bool {
        self.bits & 8 != 0
    }

    fn admit_class(&self, _: Class, _: Rate, _: u64) -> bool {
        self.bits & 16 != 0
    }

    fn admission(&self) -> Option<&Admission> {
        self.admission.as_ref()
    }

    fn wall_secs(&self, _: u64) -> u64 {
        u64::from(self.bits) * 32
    }

    fn is_overlay(&self, _: &Address) -> bool {
        self.bits & 32 != 0
    }

    fn random(&self) -> u32 {
        self.bits.into()
    }
}

fuzz_target!(|data: &[u8]| {
    let [flags, bits, bytes @ ..] = data else { return };
    if let Ok(header) = DataHeader::parse(bytes) {
        assert_eq!(header.encode(), bytes[..HEADER_LEN]);
        assert_eq!(wire::receiver_of(bytes, 0, bytes.len()), Ok(header.receiver));
    }
    if let Ok(datagram) = frame::parse_ethernet(bytes) {
        // What was found is found again.
        assert_eq!(frame::parse_ethernet(bytes), Ok(datagram));
    }
    let rate = Rate::per_second(1000, 1);
    let config = Config {
        port_first: 0,
        port_last: if flags & 4 != 0 { u16::MAX } else { 4646 },
        flags: u32::from(flags & 3),
        miss_sample: u32::from(flags >> 4),
        xsk_frame_len_max: 0,
        source: rate,
        class: [rate; Class::COUNT],
    };
    let keys = [Key::from_words([0; 4]); 3];
    let admission = (bits & 64 != 0).then_some(Admission { keys, keys_len: u64::from(bits >> 7) * 3 });
    let tables = Answers { config: (flags & 8 == 0).then_some(config), admission, bits: *bits };
    let _ = classify::wan(bytes, &tables);
    let _ = classify::lan(bytes, &tables);
    let _ = classify::steer(bytes, bytes.len(), &tables);
});
