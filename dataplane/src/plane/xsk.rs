//! The AF_XDP sockets of all workers: opened before the workers start, put into the maps of the programs, and told where packets go next.
//!
//! ```text
//!   choice ─▸ open: queue q of each device ─▸ worker q mod workers       mirrored tables ─▸ publish ─▸ the workers' ports
//!                 └─▸ maps: WAN_XSKS[q], LAN_QUEUES[(device, q)] ─▸ `wan`, `lan` redirect
//! ```
//!
//! It does not attach programs, and does not decide which ports there are.

use std::sync::Arc;

use weir_abi::frame::ETHERNET_LEN;
use weir_abi::map::{LanQueue, XSKS_MAX};

use super::PlaneError;
use super::choice::Choice;
use super::fib::{Fib, Traffic};
use crate::config::{Config, LanPort, WanPort, XskMode};
use crate::io::bpf::{BpfError, Programs};
use crate::io::netlink::{self, Generic, Link, Netlink};
use crate::io::xsk::{Mode, Queue, Shared, XskConfig, XskError, Xsks};
use crate::worker::{Side, XskPorts};

/// Bytes of a socket's frame.
const FRAME_LEN: u32 = 4096;
/// Bytes that the kernel leaves free in front of what it receives (`XDP_PACKET_HEADROOM` in `linux/bpf.h`).
const HEADROOM: u32 = 256;

/// A device with sockets.
struct Device {
    link: Link,
    queues: u32,
    is_wan: bool,
    /// Only cards have shared memory with sockets, and cards check what comes by wire.
    wire_checksums: bool,
}

/// What the workers' ports are told by.
#[derive(Default)]
pub(super) struct Xsk {
    underlay: Shared,
    overlay: Shared,
    /// Longest frame that the sockets take.
    frame_len_max: u32,
    /// Index of the WAN device whose sockets receive.
    wan: Option<u32>,
    /// The LAN devices' sockets that receive: where they are in the map, by queue.
    lan: Vec<(LanQueue, u32)>,
    /// What there is, by device.
    pub(super) about: Vec<(String, String)>,
}

impl Xsk {
    /// Opens sockets on the devices whose ports are to be AF_XDP, for every worker that has a queue there.
    ///
    /// # Errors
    /// [`PlaneError::Xsk`] when the kernel gives none.
    pub(super) fn open(
        config: &Config,
        choice: &Choice,
        workers: u8,
        netlink: &mut Netlink,
    ) -> Result<(Self, Vec<Option<XskPorts>>), PlaneError> {
        let (wan_rx, wan_tx) = (choice.wan_rx.port == WanPort::Xsk, choice.wan_tx.port == WanPort::Xsk);
        let (lan_rx, lan_tx) = (choice.lan_rx.port == LanPort::Xsk, choice.lan_tx.port == LanPort::Xsk);
        let mut devices = vec![];
        let mut generic = Generic::open()?;
        if wan_rx || wan_tx {
            devices.push(device(&config.wan.interface, true, netlink, &mut generic)?);
        }
        if lan_rx || lan_tx {
            for name in &config.lan.interfaces {
                devices.push(device(name, false, netlink, &mut generic)?);
            }
        }
        let mut this = Self { frame_len_max: u32::MAX, ..Self::default() };
        let indices = |is_wan| -> Vec<u32> {
            devices.iter().filter(|device| device.is_wan == is_wan).map(|device| device.link.index).collect()
        };
        let mut ports = vec![];
        let mut mode = None;
        for worker in 0..workers {
            let sockets = open(&devices, u32::from(worker), u32::from(workers), config)?;
            let Some(sockets) = sockets else {
                ports.push(None);
                continue;
            };
            if !sockets.multi_buffer() {
                this.frame_len_max = FRAME_LEN - HEADROOM;
            }
            // Once one worker's devices refused to share memory, facts say so.
            mode = if mode == Some(Mode::Copy) { mode } else { Some(sockets.mode()) };
            ports.push(Some(XskPorts {
                sockets,
                wan: Side { interfaces: indices(true), rx: wan_rx, tx: wan_tx, hops: this.underlay.clone() },
                lan: Side { interfaces: indices(false), rx: lan_rx, tx: lan_tx, hops: this.overlay.clone() },
                port: config.wan.port,
                wire_checksums: devices.iter().filter(|device| !device.is_wan).all(|device| device.wire_checksums),
            }));
        }
        let Some(mode) = mode else {
            return if devices.is_empty() { Ok((this, ports)) } else { Err(XskError::NoQueue.into()) };
        };
        for Device { link, queues, .. } in &devices {
            let without = u32::from(workers).saturating_sub(*queues);
            let without = if without > 0 { format!(", {without} of {workers} workers without") } else { String::new() };
            let text = format!("{mode} mode, {queues} queues{without}, {} frames each", config.xsk.frames);
            this.about.push((format!("xsk on {}", link.name), text));
        }
        Ok((this, ports))
    }

    /// Puts the sockets that receive into the maps. Nothing comes by them before the programs are attached.
    ///
    /// # Errors
    /// [`PlaneError::Bpf`].
    pub(super) fn fill_maps(
        &mut self,
        ports: &[Option<XskPorts>],
        programs: &mut Programs,
        netlink: &mut Netlink,
    ) -> Result<(), PlaneError> {
        for XskPorts { sockets, wan, lan, .. } in ports.iter().flatten() {
            for (Queue { interface, queue }, socket) in sockets.each() {
                if wan.rx && wan.interfaces.contains(&interface) {
                    programs.set_wan_xsk(queue, socket)?;
                    self.wan = Some(interface);
                } else if lan.rx && lan.interfaces.contains(&interface) {
                    let longest = self.longest_frame(netlink.link_at(interface)?.mtu);
                    let (key, position) = (LanQueue { interface, queue }, self.lan.len() as u32);
                    programs.set_lan_xsk(key, position, longest, socket)?;
                    self.lan.push((key, position));
                }
            }
        }
        Ok(())
    }

    /// Longest frame in bytes that `wan` is to redirect from this device; zero when no socket receives there.
    pub(super) fn wan_frame_len_max(&self, wan: &Link) -> u32 {
        // A device that came again has another index, and no socket.
        if self.wan == Some(wan.index) { self.longest_frame(wan.mtu) } else { 0 }
    }

    /// Follows the LAN devices: their MTUs, and that they may be gone.
    ///
    /// # Errors
    /// [`BpfError::Step`].
    pub(super) fn follow_lan(&mut self, programs: &mut Programs, netlink: &mut Netlink) -> Result<(), BpfError> {
        for (queue, position) in std::mem::take(&mut self.lan) {
            match netlink.link_at(queue.interface) {
                Ok(link) => {
                    programs.set_lan_frame_len(queue, position, self.longest_frame(link.mtu))?;
                    self.lan.push((queue, position));
                }
                Err(_) => programs.forget_lan_queue(queue)?,
            }
        }
        Ok(())
    }

    /// Longest frame in bytes to redirect from a device of this MTU: what is longer is a superpacket.
    fn longest_frame(&self, mtu: u32) -> u32 {
        mtu.saturating_add(ETHERNET_LEN as u32).min(self.frame_len_max)
    }

    /// Tells the workers where packets go.
    pub(super) fn publish(&self, fib: &Arc<Fib>) {
        self.underlay.publish(Arc::new(fib.view(Traffic::Underlay)));
        self.overlay.publish(Arc::new(fib.view(Traffic::Overlay)));
    }
}

fn device(name: &str, is_wan: bool, netlink: &mut Netlink, generic: &mut Generic) -> Result<Device, netlink::Error> {
    let link = netlink.link(name)?;
    // Netlink's own number counts queues that are made and not used.
    let queues = generic.receive_queues(name)?.unwrap_or(link.rx_queues).min(XSKS_MAX);
    let features = generic.xdp_features(link.index)?.unwrap_or_default();
    let wire_checksums = features.zero_copy() && !super::facts::is_virtual(&link);
    Ok(Device { link, queues, is_wan, wire_checksums })
}

/// Opens the sockets of one worker; `None` when it has no queue on any device.
fn open(devices: &[Device], worker: u32, workers: u32, config: &Config) -> Result<Option<Xsks>, XskError> {
    let mine = |device: &Device| {
        let interface = device.link.index;
        (0..device.queues).filter(move |queue| queue % workers == worker).map(move |queue| Queue { interface, queue })
    };
    let queues: Vec<Queue> = devices.iter().flat_map(mine).collect();
    if queues.is_empty() {
        return Ok(None);
    }
    let mode = match config.xsk.mode {
        XskMode::Auto => None,
        XskMode::Zerocopy => Some(Mode::ZeroCopy),
        XskMode::Copy => Some(Mode::Copy),
    };
    let wanted =
        XskConfig { mode, frames: config.xsk.frames, frame_len: FRAME_LEN, busy_poll_us: config.xsk.busy_poll_us };
    Xsks::open(&queues, &wanted).map(Some)
}
