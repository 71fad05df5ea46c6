//! A stream as a capture file, for TRex, tcpreplay or Wireshark.
//!
//! The classic format with microsecond stamps (draft-ietf-opsawg-pcap), because TRex reads no other. Frames are written without FCS.

use std::io::{self, Write};

use crate::stream::Frames;

const MAGIC_MICROSECONDS: u32 = 0xa1b2_c3d4;
const LINKTYPE_ETHERNET: u32 = 1;
const SNAP_LEN: u32 = 65_535;

/// Writes frames `0..count` as if sent at `rate_pps` from time zero; the stamp in each frame is that time in ns.
///
/// # Errors
/// What the writer said.
pub fn write(frames: &Frames, count: u64, rate_pps: f64, mut to: impl Write) -> io::Result<()> {
    to.write_all(&MAGIC_MICROSECONDS.to_le_bytes())?;
    // Version 2.4, time zone and accuracy unused.
    to.write_all(&[2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0])?;
    to.write_all(&SNAP_LEN.to_le_bytes())?;
    to.write_all(&LINKTYPE_ETHERNET.to_le_bytes())?;
    let mut buffer = vec![0; frames.len_max()];
    for n in 0..count {
        let time_ns = (n as f64 * 1e9 / rate_pps) as u64;
        let len = frames.write(n, time_ns, &mut buffer);
        for word in [(time_ns / 1_000_000_000) as u32, (time_ns % 1_000_000_000 / 1000) as u32, len as u32, len as u32]
        {
            to.write_all(&word.to_le_bytes())?;
        }
        to.write_all(&buffer[..len])?;
    }
    to.flush()
}
