//! Everything that touches the kernel: ports, rings, sockets, eBPF, netlink.

pub mod bpf;
pub mod calibrate;
mod datagram;
pub mod epoll;
pub mod fault;
pub mod memory;
mod message;
pub mod mmsg;
pub mod netlink;
#[cfg(test)]
mod outer_tests;
mod packets;
pub mod parent;
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
#[cfg(test)]
mod tun_tests;
pub mod uring;
mod vnet;
pub mod xsk;

pub use datagram::UdpTxConfig;
