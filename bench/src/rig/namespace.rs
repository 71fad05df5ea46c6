//! A network namespace that closures and child processes can run in.

use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::AsFd;
use std::path::{Path as FilePath, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::netlink::Rtnetlink;
use crate::stream::Path;
use crate::sys::{self, netns};
use crate::{Error, Result};

/// Names that this process made and has not removed: what is torn down when it is told to stop.
static MADE: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// How long a next hop may take to say its link-layer address.
const NEIGHBOUR_TIMEOUT: Duration = Duration::from_secs(2);
/// The discard port (RFC 863): where a datagram that only wakes neighbour discovery is sent.
const DISCARD_PORT: u16 = 9;

/// A network namespace. One that was made here is removed on drop.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    file: Arc<File>,
    owned: Option<PathBuf>,
}

impl Namespace {
    /// Makes a namespace, named under `/run/netns` so that `ip netns exec` finds it. Its loopback is down.
    ///
    /// # Errors
    /// [`Error::NotRoot`], or [`Error::Io`] when the name is taken or the kernel refuses.
    pub fn create(name: &str) -> Result<Self> {
        if !sys::is_root() {
            return Err(Error::NotRoot);
        }
        let path = FilePath::new(netns::DIRECTORY).join(name);
        netns::create(&path).map_err(Error::io(format!("cannot make network namespace {name}")))?;
        made().push(path.clone());
        let file = File::open(&path).map_err(Error::io(format!("cannot open network namespace {name}")));
        match file {
            Ok(file) => Ok(Self { name: name.to_owned(), file: Arc::new(file), owned: Some(path) }),
            Err(error) => {
                forget_and_remove(&path);
                Err(error)
            }
        }
    }

    /// Opens a named namespace that somebody else made; dropping it does nothing.
    ///
    /// # Errors
    /// [`Error::NotRoot`], [`Error::NoNamespace`].
    pub fn open(name: &str) -> Result<Self> {
        if !sys::is_root() {
            return Err(Error::NotRoot);
        }
        let path = FilePath::new(netns::DIRECTORY).join(name);
        let file = File::open(&path).map_err(|_| Error::NoNamespace { name: name.to_owned() })?;
        Ok(Self { name: name.to_owned(), file: Arc::new(file), owned: None })
    }

    /// The namespace that the calling thread is in.
    ///
    /// # Errors
    /// [`Error::NotRoot`], or [`Error::Io`] without `/proc`.
    pub fn current() -> Result<Self> {
        if !sys::is_root() {
            return Err(Error::NotRoot);
        }
        let file = File::open("/proc/thread-self/ns/net").map_err(Error::io("cannot open /proc/thread-self/ns/net"))?;
        Ok(Self { name: "current".to_owned(), file: Arc::new(file), owned: None })
    }

    /// The name under `/run/netns`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Leaves the namespace in place when this is dropped.
    pub fn keep(&mut self) {
        if let Some(path) = self.owned.take() {
            made().retain(|p| *p != path);
        }
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Runs a closure on a thread of its own inside the namespace, and waits for it. A panic in the closure is the caller's.
    ///
    /// # Errors
    /// [`Error::Io`] when the namespace cannot be entered.
    pub fn enter<T: Send>(&self, closure: impl FnOnce() -> T + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                netns::enter(self.file.as_fd()).map_err(Error::io(format!("cannot enter namespace {}", self.name)))?;
                Ok(closure())
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A command whose child starts inside the namespace.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        netns::start_inside(&mut command, Arc::clone(&self.file));
        command
    }

    /// The index of an interface.
    ///
    /// # Errors
    /// [`Error::NoInterface`].
    pub fn interface_index(&self, interface: &str) -> Result<u32> {
        self.enter(|| netns::interface_index(interface))?
            .map_err(|_| Error::NoInterface { interface: interface.to_owned(), namespace: self.name.clone() })
    }

    /// Writes a sysctl below `/proc/sys/net`, for example `ipv4/ip_forward`.
    ///
    /// # Errors
    /// [`Error::Io`] names the file.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/net/{key}");
        self.enter(|| fs::write(&path, value))?.map_err(Error::io(format!("cannot write {value} to {path}")))
    }

    /// Switches an offload feature of an interface, by its ethtool name (`rx-gro`, `rx-udp-gro-forwarding`, …).
    ///
    /// # Errors
    /// [`Error::Io`] when interface or feature do not exist or the feature is fixed.
    pub fn feature(&self, interface: &str, feature: &str, on: bool) -> Result<()> {
        self.enter(|| sys::ethtool::set_feature(interface, feature, on))?
            .map_err(Error::io(format!("cannot switch {feature} of {interface}")))
    }

    /// Brings a tunnel interface up: its MTU in bytes, its queue in packets, its addresses, and what is routed into it.
    ///
    /// # Errors
    /// [`Error::NoInterface`], or [`Error::Io`] when the kernel refuses.
    pub fn tunnel(
        &self,
        interface: &str,
        mtu: u32,
        queue_len: u32,
        addresses: &[(IpAddr, u8)],
        routes: &[(IpAddr, u8)],
    ) -> Result<()> {
        let index = self.interface_index(interface)?;
        self.enter(|| {
            let mut rtnetlink = Rtnetlink::open()?;
            rtnetlink.shape(index, mtu, queue_len)?;
            addresses.iter().try_for_each(|&(address, len)| rtnetlink.address(index, address, len))?;
            routes.iter().try_for_each(|&(to, len)| rtnetlink.route_by(to, len, index))
        })?
        .map_err(Error::io(format!("cannot configure {interface} of {}", self.name)))
    }

    /// Works out the addresses of a stream to `destination` by an interface: the source that the kernel would choose, and the
    /// link-layer address of the next hop, which is asked for if it is not known yet.
    ///
    /// # Errors
    /// [`Error::NoInterface`], [`Error::NoRoute`], [`Error::NoNeighbour`].
    pub fn resolve(&self, interface: &str, destination: IpAddr) -> Result<Path> {
        let index = self.interface_index(interface)?;
        self.enter(|| {
            let netlink = |source| Error::Io { what: format!("cannot ask the kernel about {interface}"), source };
            let no_route = || Error::NoRoute { destination, interface: interface.to_owned() };
            let mut rtnetlink = Rtnetlink::open().map_err(netlink)?;
            let route = rtnetlink.lookup(destination).map_err(netlink)?.ok_or_else(no_route)?;
            if route.interface != index {
                return Err(no_route());
            }
            let source_mac = rtnetlink.mac(index).map_err(netlink)?.ok_or_else(no_route)?;
            let next_hop = route.gateway.unwrap_or(destination);
            let deadline = Instant::now() + NEIGHBOUR_TIMEOUT;
            let next_hop_mac = loop {
                if let Some(mac) = rtnetlink.neighbour(index, next_hop).map_err(netlink)? {
                    break mac;
                }
                if Instant::now() > deadline {
                    return Err(Error::NoNeighbour { next_hop, interface: interface.to_owned() });
                }
                // An unreachable next hop is what the deadline is for.
                let _ = nudge(next_hop);
                std::thread::sleep(Duration::from_millis(10));
            };
            let source = route.source.ok_or_else(no_route)?;
            Ok(Path { source_mac, next_hop_mac, source, destination })
        })?
    }
}

/// Sends one empty datagram, so that the kernel resolves the neighbour.
pub(super) fn nudge(neighbour: IpAddr) -> io::Result<()> {
    let any: IpAddr = if neighbour.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    UdpSocket::bind((any, 0))?.send_to(&[], (neighbour, DISCARD_PORT)).map(|_| ())
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Some(path) = &self.owned {
            forget_and_remove(path);
        }
    }
}

fn made() -> std::sync::MutexGuard<'static, Vec<PathBuf>> {
    MADE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn forget_and_remove(path: &FilePath) {
    made().retain(|p| p != path);
    if let Err(error) = netns::remove(path) {
        eprintln!("weir-bench: cannot remove {}: {error}", path.display());
    }
}

/// Removes every namespace that this process made. For the way out on a signal or an aborting panic, where no destructor runs.
pub fn remove_all() {
    let paths = std::mem::take(&mut *made());
    for path in paths {
        // There is nobody left to tell; `rig clean` finds what stayed.
        let _ = netns::remove(&path);
    }
}
