//! Everything that touches the kernel: ports, rings, sockets, eBPF, netlink.

pub mod bpf;
pub mod fault;
pub mod memory;
pub mod mmsg;
pub mod netlink;
pub mod pcap;
pub mod privileges;
pub mod probe;
pub mod ring;
pub mod socket;
pub mod tun;
pub mod uring;
