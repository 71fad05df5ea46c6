//! The monotonic clock that `bpf_ktime_get_ns` reads too, so that stamps of both halves compare.

use std::time::Duration;

/// How long before a deadline sleeping stops and spinning begins, in ns. A wake-up is late by up to 50 µs on a virtual machine.
const SPIN_NS: u64 = 100_000;

/// Now, in ns.
pub fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is valid for writing; this clock always exists on Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Processor time that the calling thread has used, in ns: what the kernel did for it in system calls included.
pub fn thread_cpu_ns() -> u64 {
    let mut used = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `used` is valid for writing; this clock always exists on Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut used) };
    used.tv_sec as u64 * 1_000_000_000 + used.tv_nsec as u64
}

/// Waits for an absolute time in ns: sleeps while it is far, spins at the end.
pub fn wait_until(deadline_ns: u64) {
    loop {
        let left = deadline_ns.saturating_sub(monotonic_ns());
        if left == 0 {
            return;
        }
        if left > SPIN_NS {
            std::thread::sleep(Duration::from_nanos(left - SPIN_NS));
        } else {
            std::hint::spin_loop();
        }
    }
}
