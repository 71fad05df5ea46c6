//! What a client may write to the packet plane's socket, and the plane to a client.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weir_dataplane::api::codec::{decode, encode};
use weir_dataplane::api::{Event, Reply, Request};

macro_rules! again {
    ($message:ty, $data:expr) => {
        if let Ok((id, message)) = decode::<$message>($data)
            && let Ok(bytes) = encode(id, &message)
        {
            // Not always the same bytes, as numbers have longer forms, but always the same message.
            let (again, twin) = decode::<$message>(&bytes).expect("what was written is read");
            assert_eq!((again, format!("{twin:?}")), (id, format!("{message:?}")));
        }
    };
}

fuzz_target!(|data: &[u8]| {
    again!(Request, data);
    again!(Reply, data);
    again!(Event, data);
});
