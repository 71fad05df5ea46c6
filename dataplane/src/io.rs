//! Everything that touches the kernel: ports, rings, sockets, eBPF, netlink.

pub mod bpf;
mod datagram;
pub mod epoll;
pub mod fault;
pub mod memory;
mod message;
pub mod mmsg;
pub mod netlink;
pub mod pcap;
#[cfg(test)]
mod port_tests;
pub mod privileges;
pub mod probe;
mod queue;
pub mod reactor;
pub mod ring;
pub mod socket;
#[cfg(test)]
mod testing;
pub mod tun;
pub mod uring;
pub mod xsk;

pub use datagram::UdpTxConfig;
