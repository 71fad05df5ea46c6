//! Loads the eBPF object, fills its maps, attaches its programs and reads its counters.
//!
//! The order of a start is the caller's (`plane.rs`): sockets into the map, then `steer`, then `wan`. Dropping [`Programs`] detaches
//! everything that was not pinned.
#![allow(unsafe_code, reason = "plain-data markers for map values")]

mod admission;
mod deny;

use std::ffi::CString;
use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, MapData, PerCpuArray, ReusePortSockArray, XskMap};
use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::tc::SchedClassifierLink;
use aya::programs::xdp::XdpLink;
use aya::programs::{ProgramError, SchedClassifier, SkReuseport, SocketFilter, TcAttachType, Xdp, XdpMode};
use aya::sys::SyscallError;
use aya::{Ebpf, EbpfError, EbpfLoader};
use weir_abi::drop::DropReason;
use weir_abi::map::{
    self, Config, Count, Counter, LanQueue, LanXsk, OVERLAY_BEHIND, OVERLAY_FAR, SocketRole, Verdict, name,
};
use weir_abi::wire::ReceiverIndex;

pub use self::deny::{deny, deny_flags};
use crate::api::Prefix;

/// The object that this build ships; rebuilt and compared by `cargo xtask ebpf --check`.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!("../../bpf/weir.bpf.o");

/// A map value with aya's marker. The orphan rule wants a type of our own.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Plain<T>(T);

// SAFETY: `repr(C)`, integers only, no padding (asserted by size in `weir_abi::map`), any bytes are a value.
unsafe impl aya::Pod for Plain<Config> {}
// SAFETY: two `u64`.
unsafe impl aya::Pod for Plain<Count> {}
// SAFETY: two `u32`.
unsafe impl aya::Pod for Plain<LanQueue> {}
// SAFETY: two `u32`.
unsafe impl aya::Pod for Plain<LanXsk> {}

/// Where a classifier sits on its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachMode {
    /// XDP in the driver, before an skb exists.
    Native,
    /// XDP on the finished skb.
    Generic,
    /// tc ingress (TCX), which keeps the device's offloads.
    Tc,
}

impl fmt::Display for AttachMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "xdp-native",
            Self::Generic => "xdp-generic",
            Self::Tc => "tc",
        })
    }
}

/// Why a program or map could not be put in place. The messages name the thing and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    /// The object does not parse or its maps cannot be made.
    #[error(
        "the eBPF object does not load: {source}; rebuild it with `cargo xtask ebpf`, or check CAP_BPF and the memory limit"
    )]
    Object {
        /// What aya said.
        #[source]
        source: Box<EbpfError>,
    },
    /// The verifier refused a program.
    #[error(
        "the kernel refused eBPF program `{program}` ({error}): {verdict}; it needs Linux 6.1 or newer and CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN"
    )]
    Refused {
        /// Which program.
        program: &'static str,
        /// What the system call returned.
        error: io::Error,
        /// The last line of the verifier's log.
        verdict: String,
    },
    /// The object lacks a program or map of this name, or it has another type.
    #[error(
        "the eBPF object has no usable `{0}`: it does not belong to this program; rebuild it with `cargo xtask ebpf`"
    )]
    Missing(&'static str),
    /// A device has an XDP program of somebody else.
    #[error(
        "{interface} already has an XDP program that is not ours: detach it (`ip link set {interface} xdp off`), or set wan.attach = \"tc\" if it is the WAN, lan.attach = \"none\" if it is a LAN interface"
    )]
    Busy {
        /// Which device.
        interface: String,
    },
    /// The driver cannot do it.
    #[error(
        "{interface} does not take {mode}: {error}; set wan.attach or lan.attach, whichever is meant for it, to \"auto\""
    )]
    Unsupported {
        /// Which device.
        interface: String,
        /// What was asked of it.
        mode: AttachMode,
        /// What the system call returned.
        error: io::Error,
    },
    /// There is no such device.
    #[error(
        "there is no network interface {interface}: check wan.interface and lan.interfaces (`ip link` lists what exists)"
    )]
    NoInterface {
        /// The name that was asked for.
        interface: String,
    },
    /// Some other step failed.
    #[error("{step}: {source}")]
    Step {
        /// What was being done.
        step: String,
        /// What went wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl BpfError {
    /// Whether something is still in use that its former user is letting go.
    pub fn is_busy(&self) -> bool {
        let Self::Step { source, .. } = self else { return false };
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(source.as_ref());
        while let Some(error) = cause {
            if error.downcast_ref::<io::Error>().is_some_and(|e| e.raw_os_error() == Some(libc::EBUSY)) {
                return true;
            }
            cause = error.source();
        }
        false
    }
}

fn step<E: std::error::Error + Send + Sync + 'static>(step: impl Into<String>) -> impl FnOnce(E) -> BpfError {
    let step = step.into();
    move |source| BpfError::Step { step, source: Box::new(source) }
}

/// The last line of a verifier log that says something about the program.
fn last_line(log: &str) -> String {
    const STATISTICS: [&str; 3] = ["processed", "stack depth", "verification time"];
    let says = |line: &&str| !line.is_empty() && !STATISTICS.iter().any(|word| line.starts_with(word));
    let told = log.lines().map(str::trim).rfind(says);
    told.unwrap_or("no verifier log").to_owned()
}

/// An [`Address`](weir_abi::address::Address) as aya takes it.
type Octets = [u8; 16];

/// An address as the maps key it.
pub fn address_key(address: IpAddr) -> Octets {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

fn prefix_key(prefix: &Prefix) -> Key<Octets> {
    let len = u32::from(prefix.bit_len()) + if prefix.address().is_ipv4() { 96 } else { 0 };
    Key::new(len, address_key(prefix.address()))
}

/// What the programs counted since they were loaded, summed over all cores.
#[derive(Clone, Debug, Default)]
pub struct BpfCounters {
    /// Frames that went on, by verdict.
    pub verdicts: Vec<(Verdict, Count)>,
    /// Frames that ended, by reason.
    pub drops: Vec<(DropReason, Count)>,
}

/// The loaded object with its maps and links.
pub struct Programs {
    // Maps come before the object: they are dropped first, links with the object.
    live: Array<MapData, u32>,
    config: Array<MapData, Plain<Config>>,
    admission: Array<MapData, admission::Words>,
    wall_clock: Array<MapData, u64>,
    local: HashMap<MapData, Octets, u32>,
    counters: PerCpuArray<MapData, Plain<Count>>,
    sockets: ReusePortSockArray<MapData>,
    pin: Option<PathBuf>,
    /// Pins of the links that this run made or took over.
    links: Vec<PathBuf>,
    ebpf: Ebpf,
}

impl Programs {
    /// Loads the maps of `object` for a plane of so many workers. Programs are loaded when they are attached.
    ///
    /// # Errors
    /// [`BpfError::Object`] or [`BpfError::Missing`].
    pub fn load(object: &[u8], workers: u8, pin: Option<&Path>) -> Result<Self, BpfError> {
        let mut ebpf = EbpfLoader::new()
            .map_max_entries(name::LIVE, map::live_len(workers))
            .load(object)
            .map_err(|source| BpfError::Object { source: Box::new(source) })?;
        if let Some(dir) = pin {
            pin_maps(&ebpf, dir).inspect_err(|_| {
                // The first error is the one to tell.
                let _ = remove_pins(dir);
            })?;
        }
        macro_rules! take {
            ($name:expr) => {
                ebpf.take_map($name).and_then(|map| map.try_into().ok()).ok_or(BpfError::Missing($name))?
            };
        }
        Ok(Self {
            live: take!(name::LIVE),
            config: take!(name::CONFIG),
            admission: take!(name::ADMISSION),
            wall_clock: take!(name::WALL_CLOCK),
            local: take!(name::LOCAL),
            counters: take!(name::COUNTERS),
            sockets: take!(name::SOCKETS),
            pin: pin.map(Path::to_owned),
            links: vec![],
            ebpf,
        })
    }

    /// Writes the configuration that `wan` and `steer` read.
    ///
    /// # Errors
    /// [`BpfError::Step`].
    pub fn configure(&mut self, config: Config) -> Result<(), BpfError> {
        self.config.set(0, Plain(config), 0).map_err(step("writing the configuration map"))
    }

    /// Opens or closes a receiver index for `wan`.
    ///
    /// # Errors
    /// [`BpfError::Step`].
    pub fn set_live(&mut self, index: ReceiverIndex, live: bool) -> Result<(), BpfError> {
        let Some(position) = map::live_position(index) else { return Ok(()) };
        self.live.set(position, if live { index.0 } else { 0 }, 0).map_err(step("writing the live-index map"))
    }

    /// Makes `addresses` the ones that count as this host's.
    ///
    /// # Errors
    /// [`BpfError::Step`].
    pub fn set_local(&mut self, addresses: &[IpAddr]) -> Result<(), BpfError> {
        let wanted: Vec<Octets> = addresses.iter().copied().map(address_key).collect();
        // The stale ones first, or the map might not hold both.
        let stale: Vec<Octets> = self.local.keys().filter_map(Result::ok).filter(|key| !wanted.contains(key)).collect();
        for key in stale {
            self.local.remove(&key).map_err(step("writing the local-address map"))?;
        }
        for key in &wanted {
            self.local.insert(key, 1, 0).map_err(step("writing the local-address map"))?;
        }
        Ok(())
    }

    /// Refuses everything but live data from these sources. To be called once, and the configuration has to bear their [`deny_flags`].
    ///
    /// # Errors
    /// [`BpfError::Step`].
    pub fn deny(&mut self, prefixes: &[Prefix]) -> Result<(), BpfError> {
        deny(&mut self.ebpf, prefixes)
    }

    /// Tells `lan` which destinations lie in the overlay, in place of those before, and which networks in it lie behind this gateway: the
    /// kernel routes those.
    ///
    /// # Errors
    /// [`BpfError::Step`].
    pub fn set_overlay(&mut self, prefixes: &[Prefix], behind: &[Prefix]) -> Result<(), BpfError> {
        let map = self.ebpf.map_mut(name::OVERLAY).ok_or(BpfError::Missing(name::OVERLAY))?;
        let mut trie: LpmTrie<_, Octets, u32> = map.try_into().map_err(step("opening the map of the overlay"))?;
        let far = prefixes.iter().filter(|prefix| !behind.contains(prefix)).map(|prefix| (prefix, OVERLAY_FAR));
        let mut wanted: Vec<Key<Octets>> = Vec::new();
        for (prefix, value) in behind.iter().map(|prefix| (prefix, OVERLAY_BEHIND)).chain(far) {
            let key = prefix_key(prefix);
            trie.insert(&key, value, 0).map_err(step(format!("adding {prefix} to the map of the overlay")))?;
            wanted.push(key);
        }
        let is_wanted = |key: &Key<Octets>| {
            wanted.iter().any(|other| (other.prefix_len(), other.data()) == (key.prefix_len(), key.data()))
        };
        let stale: Vec<Key<Octets>> = trie.keys().filter_map(Result::ok).filter(|key| !is_wanted(key)).collect();
        stale.iter().try_for_each(|key| trie.remove(key)).map_err(step("removing from the map of the overlay"))
    }

    /// Gives `wan` the AF_XDP socket of a queue. It leaves the map by itself when it is closed.
    ///
    /// # Errors
    /// [`BpfError::Step`], also for a queue beyond the map.
    pub fn set_wan_xsk(&mut self, queue: u32, socket: BorrowedFd<'_>) -> Result<(), BpfError> {
        self.set_xsk(name::WAN_XSKS, queue, socket)
    }

    /// Gives `lan` the AF_XDP socket of a queue, the `position`-th of all, for frames of up to `frame_len_max` bytes.
    ///
    /// # Errors
    /// [`BpfError::Step`], also for a position beyond the map.
    pub fn set_lan_xsk(
        &mut self,
        queue: LanQueue,
        position: u32,
        frame_len_max: u32,
        socket: BorrowedFd<'_>,
    ) -> Result<(), BpfError> {
        self.set_xsk(name::LAN_XSKS, position, socket)?;
        self.set_lan_frame_len(queue, position, frame_len_max)
    }

    /// Changes the longest frame of a queue that is in the map.
    ///
    /// # Errors
    /// [`BpfError::Step`].
    pub fn set_lan_frame_len(&mut self, queue: LanQueue, position: u32, frame_len_max: u32) -> Result<(), BpfError> {
        let written = self.lan_queues()?.insert(Plain(queue), Plain(LanXsk { position, frame_len_max }), 0);
        written.map_err(step("writing the map of LAN queues"))
    }

    /// Forgets a queue of a LAN device that is gone: another one may get its index.
    ///
    /// # Errors
    /// [`BpfError::Step`].
    pub fn forget_lan_queue(&mut self, queue: LanQueue) -> Result<(), BpfError> {
        self.lan_queues()?.remove(&Plain(queue)).map_err(step("removing from the map of LAN queues"))
    }

    fn lan_queues(&mut self) -> Result<HashMap<&mut MapData, Plain<LanQueue>, Plain<LanXsk>>, BpfError> {
        let map = self.ebpf.map_mut(name::LAN_QUEUES).ok_or(BpfError::Missing(name::LAN_QUEUES))?;
        map.try_into().map_err(step("opening the map of LAN queues"))
    }

    fn set_xsk(&mut self, name: &'static str, position: u32, socket: BorrowedFd<'_>) -> Result<(), BpfError> {
        let map = self.ebpf.map_mut(name).ok_or(BpfError::Missing(name))?;
        let mut sockets: XskMap<_> = map.try_into().map_err(step(format!("opening the map {name}")))?;
        sockets.set(position, socket.as_raw_fd(), 0).map_err(step(format!("adding an AF_XDP socket to the map {name}")))
    }

    /// Puts a socket where `steer` finds it.
    ///
    /// # Errors
    /// [`BpfError::Step`].
    pub fn set_socket(&mut self, ipv6: bool, role: SocketRole, socket: BorrowedFd<'_>) -> Result<(), BpfError> {
        let key = map::socket_key(ipv6, role);
        self.sockets.set(key, &socket.as_raw_fd(), 0).map_err(step("adding a socket to the steering map"))
    }

    /// Attaches `steer` to the reuseport group that `socket` belongs to.
    ///
    /// # Errors
    /// [`BpfError`].
    pub fn attach_steer(&mut self, socket: BorrowedFd<'_>) -> Result<(), BpfError> {
        let program: &mut SkReuseport = self.program("steer")?;
        if program.fd().is_err() {
            load("steer", || program.load())?;
        }
        program.attach(socket).map_err(step("attaching `steer` to the UDP sockets"))
    }

    /// The program that chooses the TUN's queues, loaded ([`TunQueue::steer`](super::tun::TunQueue::steer) attaches it).
    ///
    /// # Errors
    /// [`BpfError`].
    pub fn queue_program(&mut self) -> Result<BorrowedFd<'_>, BpfError> {
        let program: &mut SocketFilter = self.program("queue")?;
        if program.fd().is_err() {
            load("queue", || program.load())?;
        }
        program.fd().map(AsFd::as_fd).map_err(step("using the program `queue`"))
    }

    /// Attaches the classifier of the underlay.
    ///
    /// # Errors
    /// [`BpfError`]; on an error nothing is attached.
    pub fn attach_wan(&mut self, interface: &str, mode: AttachMode) -> Result<(), BpfError> {
        match mode {
            AttachMode::Native => self.attach_xdp("wan", interface, XdpMode::Driver, mode),
            AttachMode::Generic => self.attach_xdp("wan", interface, XdpMode::Skb, mode),
            AttachMode::Tc => self.attach_tc("wan_tc", interface),
        }
    }

    /// Attaches the LAN classifier, natively where the driver can, generically elsewhere.
    ///
    /// # Errors
    /// [`BpfError`].
    pub fn attach_lan(&mut self, interface: &str, mode: AttachMode) -> Result<(), BpfError> {
        let flags = if mode == AttachMode::Native { XdpMode::Driver } else { XdpMode::Skb };
        self.attach_xdp("lan", interface, flags, mode)
    }

    fn attach_xdp(
        &mut self,
        name: &'static str,
        interface: &str,
        flags: XdpMode,
        mode: AttachMode,
    ) -> Result<(), BpfError> {
        let pin = self.link_pin(name, interface);
        let program: &mut Xdp = self.program(name)?;
        if program.fd().is_err() {
            load(name, || program.load())?;
        }
        if let Some(link) = pin.as_deref().and_then(|path| pinned::<XdpLink>(path).transpose()) {
            let id =
                program.attach_to_link(link?).map_err(step(format!("replacing the pinned program on {interface}")))?;
            let link = program.take_link(id);
            return self.keep(link, pin);
        }
        let id = program.attach(interface, flags).map_err(|e| refused_by_device(interface, mode, e))?;
        match pin {
            Some(_) => {
                let link = program.take_link(id);
                self.keep(link, pin)
            }
            None => Ok(()),
        }
    }

    fn attach_tc(&mut self, name: &'static str, interface: &str) -> Result<(), BpfError> {
        let pin = self.link_pin(name, interface);
        let program: &mut SchedClassifier = self.program(name)?;
        if program.fd().is_err() {
            load(name, || program.load())?;
        }
        if let Some(link) = pin.as_deref().and_then(|path| pinned::<SchedClassifierLink>(path).transpose()) {
            let id =
                program.attach_to_link(link?).map_err(step(format!("replacing the pinned program on {interface}")))?;
            let link = program.take_link(id);
            return self.keep(link, pin);
        }
        let id = program
            .attach(interface, TcAttachType::Ingress)
            .map_err(|e| refused_by_device(interface, AttachMode::Tc, e))?;
        match pin {
            Some(_) => {
                let link = program.take_link(id);
                self.keep(link, pin)
            }
            None => Ok(()),
        }
    }

    /// Where the link of a program on a device is pinned, when pinning is on.
    fn link_pin(&self, program: &str, interface: &str) -> Option<PathBuf> {
        // A bpf file system refuses dots (`bpf_lookup` in `kernel/bpf/inode.c`), which VLAN devices have in their names; no device has a
        // colon.
        self.pin.as_ref().map(|dir| dir.join(format!("{program}-{}", interface.replace('.', ":"))))
    }

    /// Whether a killed predecessor's `wan` is still attached to this device at XDP, to be taken over.
    pub fn has_pinned_xdp(&self, interface: &str) -> bool {
        self.link_pin("wan", interface).is_some_and(|path| path.exists())
    }

    /// Ends a killed predecessor's `wan` on this device at XDP: the pin was all that held it.
    ///
    /// # Errors
    /// [`BpfError::Step`].
    pub fn end_pinned_xdp(&self, interface: &str) -> Result<(), BpfError> {
        match self.link_pin("wan", interface) {
            Some(path) if path.exists() => {
                std::fs::remove_file(&path).map_err(step(format!("removing the pin {}", path.display())))
            }
            _ => Ok(()),
        }
    }

    /// The kernel's numbers of our programs that are loaded: whoever finds another one on a device has met a stranger.
    pub fn ids(&self) -> Vec<u32> {
        // Asking by descriptor, unlike by number, needs no CAP_SYS_ADMIN.
        self.ebpf.programs().filter_map(|(_, program)| Some(program.info().ok()?.id())).collect()
    }

    /// Whether a killed predecessor's program is still pinned for this device.
    pub fn has_pins_of(&self, interface: &str) -> bool {
        DEVICE_PROGRAMS.iter().any(|name| self.link_pin(name, interface).is_some_and(|path| path.exists()))
    }

    /// Forgets the pins of programs on a device that is gone: their links lead nowhere, and a new device of that name takes none over.
    ///
    /// # Errors
    /// [`BpfError::Step`].
    pub fn forget_device(&mut self, interface: &str) -> Result<(), BpfError> {
        for program in DEVICE_PROGRAMS {
            if let Some(path) = self.link_pin(program, interface).filter(|path| path.exists()) {
                std::fs::remove_file(&path).map_err(step(format!("removing the pin {}", path.display())))?;
                self.links.retain(|link| *link != path);
            }
        }
        Ok(())
    }

    /// Ends what a killed predecessor had attached where this run attached nothing: on other devices, or in another way. Those programs
    /// judge by maps that nobody keeps any more, and would drop all data.
    ///
    /// # Errors
    /// [`BpfError::Step`].
    pub fn remove_stale_links(&self) -> Result<(), BpfError> {
        let Some(dir) = &self.pin else { return Ok(()) };
        let told = || format!("removing stale pins in {}", dir.display());
        for entry in std::fs::read_dir(dir).map_err(step(told()))? {
            let path = entry.map_err(step(told()))?.path();
            // No map's name has a hyphen, every link's pin has.
            let is_link = path.file_name().is_some_and(|name| name.as_bytes().contains(&b'-'));
            if is_link && !self.links.contains(&path) {
                std::fs::remove_file(&path).map_err(step(told()))?;
            }
        }
        Ok(())
    }

    /// Pins a link anew: an old pin of the same name is only a name for the same link.
    fn keep<L: TryInto<FdLink, Error = LinkError>>(
        &mut self,
        link: Result<L, ProgramError>,
        pin: Option<PathBuf>,
    ) -> Result<(), BpfError> {
        let Some(path) = pin else { return Ok(()) };
        let told = || format!("pinning a link at {} (is a bpf file system mounted there?)", path.display());
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(step(told()))?;
        }
        if path.exists() {
            std::fs::remove_file(&path).map_err(step(told()))?;
        }
        let link: FdLink = link.map_err(step(told()))?.try_into().map_err(step(told()))?;
        link.pin(&path).map_err(step(told()))?;
        self.links.push(path);
        Ok(())
    }

    fn program<'a, P>(&'a mut self, name: &'static str) -> Result<&'a mut P, BpfError>
    where
        &'a mut P: TryFrom<&'a mut aya::programs::Program>,
    {
        self.ebpf.program_mut(name).and_then(|program| program.try_into().ok()).ok_or(BpfError::Missing(name))
    }

    /// All counters that have moved.
    ///
    /// # Errors
    /// [`BpfError::Step`].
    pub fn counters(&self) -> Result<BpfCounters, BpfError> {
        let read = |counter: Counter| -> Result<Count, BpfError> {
            let per_cpu = self.counters.get(&counter.index(), 0).map_err(step("reading the counters"))?;
            Ok(per_cpu.iter().fold(Count::default(), |sum, c| Count {
                packets: sum.packets + c.0.packets,
                bytes: sum.bytes + c.0.bytes,
            }))
        };
        let mut all = BpfCounters::default();
        for &verdict in Verdict::ALL {
            let count = read(Counter::Passed(verdict))?;
            if count.packets > 0 {
                all.verdicts.push((verdict, count));
            }
        }
        for &reason in DropReason::ALL {
            let count = read(Counter::Dropped(reason))?;
            if count.packets > 0 {
                all.drops.push((reason, count));
            }
        }
        Ok(all)
    }

    /// Removes the pins that [`Self::attach_wan`] and [`Self::attach_lan`] left, and so the programs. Nothing to do without pinning.
    ///
    /// # Errors
    /// [`BpfError::Step`].
    pub fn unpin(&mut self) -> Result<(), BpfError> {
        match self.pin.take() {
            Some(dir) => remove_pins(&dir).map_err(step(format!("removing the pins in {}", dir.display()))),
            None => Ok(()),
        }
    }
}

impl Drop for Programs {
    /// Only a plane that is killed leaves pins: a start that fails half-way takes its own along.
    fn drop(&mut self) {
        // Whoever wants to know asks `unpin` before.
        let _ = self.unpin();
    }
}

/// Programs that are attached to devices.
const DEVICE_PROGRAMS: [&str; 3] = ["wan", "wan_tc", "lan"];

/// Whether a path lies, or would lie, on a bpf file system.
fn is_on_bpf_fs(path: &Path) -> bool {
    path.ancestors().find_map(file_system) == Some(libc::BPF_FS_MAGIC)
}

/// The magic number of the file system that a path lies on; `None` when there is no such path.
fn file_system(path: &Path) -> Option<libc::c_long> {
    let path = CString::new(path.as_os_str().as_bytes()).ok()?;
    let mut stat = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the string ends with a zero and `stat` has room for what the call writes.
    let result = unsafe { libc::statfs(path.as_ptr(), stat.as_mut_ptr()) };
    // SAFETY: the call succeeded, so it wrote all of `stat`.
    (result == 0).then(|| unsafe { stat.assume_init() }.f_type)
}

/// Pins every map under its name. A pin that an earlier run left names a map that nobody will use again.
fn pin_maps(ebpf: &Ebpf, dir: &Path) -> Result<(), BpfError> {
    let told = || {
        format!(
            "pinning maps in {} (is a bpf file system mounted there? `mount -t bpf bpf /sys/fs/bpf`)",
            dir.display()
        )
    };
    if !is_on_bpf_fs(dir) {
        return Err(step(told())(io::Error::from_raw_os_error(libc::EINVAL)));
    }
    std::fs::create_dir_all(dir).map_err(step(told()))?;
    for (name, map) in ebpf.maps() {
        let path = dir.join(name);
        if path.exists() {
            std::fs::remove_file(&path).map_err(step(told()))?;
        }
        map.pin(&path).map_err(step(told()))?;
    }
    Ok(())
}

/// Removes a directory of pins with everything in it; one that is not there is fine. One that is not on a bpf file system holds somebody's
/// files and not our pins, and is left alone.
///
/// # Errors
/// What the file system said.
pub fn remove_pins(dir: &Path) -> io::Result<()> {
    if dir.exists() && !is_on_bpf_fs(dir) {
        return Err(io::Error::other("not on a bpf file system, so nothing is removed: check bpf.pin"));
    }
    match std::fs::read_dir(dir) {
        Ok(entries) => {
            for entry in entries {
                std::fs::remove_file(entry?.path())?;
            }
            std::fs::remove_dir(dir)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// The link pinned at `path`; `None` when there is none.
fn pinned<L: TryFrom<FdLink, Error = LinkError>>(path: &Path) -> Result<Option<L>, BpfError> {
    match PinnedLink::from_pin(path) {
        Ok(link) => FdLink::from(link)
            .try_into()
            .map(Some)
            .map_err(step(format!("using the link pinned at {}", path.display()))),
        Err(LinkError::SyscallError(SyscallError { io_error, .. })) if io_error.kind() == io::ErrorKind::NotFound => {
            Ok(None)
        }
        Err(error) => Err(step(format!("opening the link pinned at {}", path.display()))(error)),
    }
}

/// Times that a program is offered to a verifier that was disturbed.
const LOAD_TRIES: u32 = 5;

/// Loads a program. The verifier gives up with `EAGAIN` when a signal is pending, or work that the kernel announces like one
/// (kernel/bpf/verifier.c, `do_check`), which says nothing of the program.
fn load(program: &'static str, load: impl FnMut() -> Result<(), ProgramError>) -> Result<(), BpfError> {
    let is_disturbed = |error: &ProgramError| matches!(error, ProgramError::LoadError { io_error, .. } if io_error.kind() == io::ErrorKind::WouldBlock);
    undisturbed(load, is_disturbed).map_err(|error| refused(program, error))
}

/// Acts again while the error is one of a disturbance, [`LOAD_TRIES`] times in all.
fn undisturbed<E>(mut act: impl FnMut() -> Result<(), E>, is_disturbed: impl Fn(&E) -> bool) -> Result<(), E> {
    for _ in 1..LOAD_TRIES {
        match act() {
            Err(error) if is_disturbed(&error) => {}
            outcome => return outcome,
        }
    }
    act()
}

fn refused(program: &'static str, error: ProgramError) -> BpfError {
    match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            BpfError::Refused { program, error: io_error, verdict: last_line(&verifier_log.to_string()) }
        }
        other => BpfError::Step { step: format!("loading `{program}`"), source: Box::new(other) },
    }
}

fn refused_by_device(interface: &str, mode: AttachMode, error: ProgramError) -> BpfError {
    let interface = interface.to_owned();
    match error {
        ProgramError::UnknownInterface { .. } => BpfError::NoInterface { interface },
        ProgramError::SyscallError(SyscallError { io_error, .. }) => match io_error.raw_os_error() {
            Some(libc::EBUSY) => BpfError::Busy { interface },
            Some(libc::ENODEV) => BpfError::NoInterface { interface },
            _ => BpfError::Unsupported { interface, mode, error: io_error },
        },
        other => BpfError::Step { step: format!("attaching to {interface}"), source: Box::new(other) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verifier_that_was_disturbed_is_asked_again_and_no_other_answer_is() {
        let tries_of = |answers: &[i32]| {
            let mut tries = 0;
            let act = || {
                tries += 1;
                answers.get(tries - 1).map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(*errno)))
            };
            let outcome = undisturbed(act, |error| error.kind() == io::ErrorKind::WouldBlock);
            (outcome.is_ok(), tries)
        };
        assert_eq!(tries_of(&[]), (true, 1));
        assert_eq!(tries_of(&[libc::EAGAIN; 4]), (true, 5));
        assert_eq!(tries_of(&[libc::EAGAIN; 9]), (false, 5));
        assert_eq!(tries_of(&[libc::EINVAL; 2]), (false, 1));
    }
}
