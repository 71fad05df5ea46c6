//! A network namespace for a test: made, filled and left again with the thread that ran it.
#![allow(unsafe_code, reason = "namespaces and interfaces are made by system calls")]

use std::ffi::CString;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Runs `test` on a thread of its own in a fresh network namespace with `lo` up. The namespace ends with the thread, also on panic.
///
/// # Panics
/// When `test` does, or not run as root.
pub(super) fn in_namespace(test: impl FnOnce() + Send + 'static) {
    elsewhere(test);
}

/// Sets an interface's MTU and address (a /24), where given, and brings it up.
pub(super) fn bring_up(name: &str, mtu: Option<i32>, address: Option<Ipv4Addr>) {
    // SAFETY: the call takes no memory.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    assert!(fd >= 0);
    // SAFETY: the descriptor is new and nobody else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let call = |number: libc::c_ulong, what: &dyn Fn(&mut libc::ifreq)| {
        // SAFETY: all-zero bytes are a valid `ifreq`.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        let name = CString::new(name).unwrap();
        for (to, from) in request.ifr_name.iter_mut().zip(name.as_bytes()) {
            *to = *from as libc::c_char;
        }
        what(&mut request);
        // SAFETY: these requests read and write one `ifreq`.
        let done = unsafe { libc::ioctl(socket.as_raw_fd(), number as _, &raw mut request) };
        assert_eq!(done, 0, "{name:?}: request {number:#x}: {}", io::Error::last_os_error());
    };
    let inet = |ip: Ipv4Addr| {
        // SAFETY: all-zero bytes are a valid `sockaddr`.
        let mut address: libc::sockaddr = unsafe { std::mem::zeroed() };
        address.sa_family = libc::AF_INET as u16;
        for (to, from) in address.sa_data[2..6].iter_mut().zip(ip.octets()) {
            *to = from as libc::c_char;
        }
        address
    };
    if let Some(mtu) = mtu {
        call(libc::SIOCSIFMTU, &|request| request.ifr_ifru.ifru_mtu = mtu);
    }
    if let Some(ip) = address {
        call(libc::SIOCSIFADDR, &|request| request.ifr_ifru.ifru_addr = inet(ip));
        call(libc::SIOCSIFNETMASK, &|request| request.ifr_ifru.ifru_addr = inet(Ipv4Addr::new(255, 255, 255, 0)));
    }
    call(libc::SIOCSIFFLAGS, &|request| request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16);
}

/// Switches UDP checksums off for what `socket` sends over IPv4 (`SO_NO_CHECK`).
pub(super) fn without_checksums(socket: &impl AsRawFd) {
    switch_on(socket, libc::SOL_SOCKET, libc::SO_NO_CHECK);
}

/// Lets errors that come back by ICMP end operations on `socket`, as far as they can.
pub(super) fn with_icmp_errors(socket: &impl AsRawFd, v6: bool) {
    if v6 {
        switch_on(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVERR);
    } else {
        switch_on(socket, libc::IPPROTO_IP, libc::IP_RECVERR);
    }
}

fn switch_on(socket: &impl AsRawFd, level: libc::c_int, option: libc::c_int) {
    let one: libc::c_int = 1;
    // SAFETY: the option's value is the one int whose size is given.
    let done = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const one).cast(), 4) };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
}

/// Makes `socket` cut what is sent by it into datagrams of `segment` bytes (`UDP_SEGMENT`).
pub(super) fn cut_into(socket: &impl AsRawFd, segment: libc::c_int) {
    // SAFETY: the option's value is the one int whose size is given.
    let done = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_UDP, libc::UDP_SEGMENT, (&raw const segment).cast(), 4)
    };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
}

/// Runs `make` on a thread of its own in a fresh network namespace with `lo` up, which lives as long as what it made has sockets in it.
pub(super) fn elsewhere<T: Send + 'static>(make: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = std::thread::spawn(move || {
        // SAFETY: the call takes no memory and changes the namespace of this thread only.
        let made = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        assert_eq!(made, 0, "this test makes a network namespace: run it as root ({})", io::Error::last_os_error());
        bring_up("lo", None, None);
        make()
    });
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Names of this process's threads.
pub(super) fn thread_names() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok()).collect()
}

/// One rtnetlink request, acknowledged.
fn netlink(kind: u16, flags: i32, body: &[u8]) {
    // SAFETY: the call takes no memory.
    let fd = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE) };
    assert!(fd >= 0);
    // SAFETY: the descriptor is new and nobody else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut message = (16 + body.len() as u32).to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(((libc::NLM_F_REQUEST | libc::NLM_F_ACK | flags) as u16).to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    let mut answer = [0u8; 4096];
    // SAFETY: both buffers have the lengths given and outlive the calls.
    let n = unsafe {
        libc::send(socket.as_raw_fd(), message.as_ptr().cast(), message.len(), 0);
        libc::recv(socket.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), 0)
    };
    assert!(n >= 20, "{}", io::Error::last_os_error());
    let errno = -i32::from_ne_bytes(answer[16..20].try_into().unwrap());
    assert_eq!(errno, 0, "netlink request {kind}: {}", io::Error::from_raw_os_error(errno));
}

fn index_of(name: &str) -> i32 {
    let name = CString::new(name).unwrap();
    // SAFETY: the name ends in a zero.
    unsafe { libc::if_nametoindex(name.as_ptr()) as i32 }
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut out = (4 + value.len() as u16).to_ne_bytes().to_vec();
    out.extend(kind.to_ne_bytes());
    out.extend(value);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

/// Removes an interface.
pub(super) fn delete_link(name: &str) {
    let mut body = vec![0; 4];
    body.extend(index_of(name).to_ne_bytes());
    body.extend([0; 8]);
    netlink(libc::RTM_DELLINK, 0, &body);
}

/// Puts a token bucket filter on an interface: `rate` bytes per second, `burst` of them at once, a queue of `limit` bytes
/// (`struct tc_tbf_qopt` in `include/uapi/linux/pkt_sched.h`).
pub(super) fn shape(name: &str, rate: u32, burst: u32, limit: u32) {
    const LINKLAYER_ETHERNET: u8 = 1;
    let mut parameters = Vec::new();
    for rate in [rate, 0] {
        parameters.extend([0, LINKLAYER_ETHERNET, 0, 0, 0, 0, 0, 0]);
        parameters.extend(rate.to_ne_bytes());
    }
    for value in [limit, burst, 0] {
        parameters.extend(value.to_ne_bytes());
    }
    let mut options = attribute(1, &parameters);
    options.extend(attribute(6, &burst.to_ne_bytes()));
    let mut body = vec![0; 4];
    body.extend(index_of(name).to_ne_bytes());
    body.extend([0; 4]);
    body.extend(u32::MAX.to_ne_bytes());
    body.extend([0; 4]);
    body.extend(attribute(1, b"tbf\0"));
    body.extend(attribute(2, &options));
    netlink(libc::RTM_NEWQDISC, libc::NLM_F_CREATE | libc::NLM_F_EXCL, &body);
}
