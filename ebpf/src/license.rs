//! What the kernel asks of a program (`include/linux/license.h`): the object may be used under the GPL too.
#![allow(unsafe_code, reason = "a symbol with a fixed name in a fixed section")]

#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
