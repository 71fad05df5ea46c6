//! The start of the plane, in its order: whatever fails takes back what was put in place before.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, Timespec, eventfd, poll};
use weir_abi::gcra::{Rate, TICK_NS};
use weir_abi::map::{self, Class, MISS_SAMPLE, SocketRole, TAGGED_INITIALS, UNTAGGED_INITIALS, WORKERS_MAX};

use super::gro::GroForwarding;
use super::host::Host;
use super::lan::Lan;
use super::server::Server;
use super::state::{Fixed, Random, State};
use super::wall_clock::WallClock;
use super::xsk::Xsk;
use super::{Events, Plane, PlaneError, SystemRandom, calibration, cores, set_local, system};
use crate::api::message::{Incarnation, LANE_PORT};
use crate::config::{Config, Cores, LanPort, Latency, TunOffload, WanIo, WanPort};
use crate::engine::aead::{Algorithm, Library};
use crate::io::bpf::{self, BpfError, Programs};
use crate::io::netlink::{Changes, Netlink};
use crate::io::ring;
use crate::io::socket::{Inherited, SocketConfig, SocketError, Sockets, Underlay};
use crate::io::tun::{TunConfig, TunError, TunQueue};
use crate::worker::{Clock, Handoff, Notify, PortKind, Worker, WorkerConfig, XskPorts};

/// Packets that the kernel queues towards a worker: 2 ms at 1 Mpps. Its default of 500 loses packets whenever a TCP sender's burst meets a
/// worker that was asleep.
const TUN_QUEUE_LEN: u32 = 2048;
/// How long a start waits for what a killed predecessor still holds: the kernel lets go of files that are registered with an io_uring only
/// some time after the process is gone.
const PREDECESSOR_WAIT: Duration = Duration::from_secs(2);
/// How often it looks.
const PREDECESSOR_POLL: Duration = Duration::from_millis(20);

impl Plane {
    /// Puts everything in place.
    pub(super) fn start(config: &Config, inherited: Inherited) -> Result<Self, PlaneError> {
        let clock = Clock::start();
        let server = Server::bind(&config.api.socket)?;
        let Placement { cores, why, shared } = placement(config)?;
        let count = cores.len() as u8;
        let mut netlink = Netlink::open()?;
        let mut changes = Changes::subscribe(config.routing.table)?;
        let wan = netlink.link(&config.wan.interface)?;

        let object = match &config.bpf.object {
            Some(path) => std::fs::read(path).map_err(|error| PlaneError::Object { path: path.clone(), error })?.into(),
            None => std::borrow::Cow::Borrowed(bpf::OBJECT),
        };
        let mut programs = Programs::load(&object, count, config.bpf.pin.as_deref())?;
        let mut map_config = map_config(config);
        let socket_config = SocketConfig {
            port: config.wan.port,
            lane_ports: config.wan.lane_ports,
            busy_poll: config.wan.busy_poll_us,
            mark: config.routing.mark,
            ..SocketConfig::default()
        };
        let in_use = |error: &SocketError| matches!(error, SocketError::PortInUse { .. });
        let underlay = if inherited.is_empty() {
            let underlay = patiently(in_use, || Underlay::open(socket_config, cores.len()))?;
            fill_sockets(&mut programs, &underlay)?;
            attach_steer(&mut programs, &underlay)?;
            let early: usize = underlay.workers.iter().map(Sockets::discard_waiting).sum();
            if early > 0 {
                tracing::debug!(early, "datagrams that came before the port was ready are dropped");
            }
            underlay
        } else {
            // The predecessor's `steer` is still at the group that the kept sockets held, and its map holds them. Ours takes its place
            // first, without a socket to choose; then the kernel lets go of that map, in its own time.
            let underlay = patiently(in_use, || Underlay::adopt(socket_config, cores.len(), &inherited))?;
            drop(inherited);
            attach_steer(&mut programs, &underlay)?;
            fill_sockets(&mut programs, &underlay)?;
            underlay
        };

        let mut queues = vec![];
        let tun_config = TunConfig {
            name: config.tun.name.clone(),
            multi_queue: cores.len() > 1,
            offload: config.tun.offload == TunOffload::Auto,
        };
        let in_use = |error: &TunError| matches!(error, TunError::Busy { .. });
        for _ in &cores {
            queues.push(patiently(in_use, || TunQueue::open(&tun_config))?);
        }
        let tun_about = steer_tun(&queues, &mut programs);
        let tun = netlink.link(&config.tun.name)?.index;
        netlink.set_link_mtu(tun, u32::from(config.tun.mtu))?;
        netlink.set_link_queue_len(tun, TUN_QUEUE_LEN)?;
        netlink.accept_local_sources(tun)?;
        for address in &config.tun.addresses {
            netlink.add_address(tun, *address)?;
        }
        netlink.set_link_up(tun, true)?;

        let eventfd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let eventfd = eventfd.map_err(|errno| system("making an eventfd")(errno.into()))?;
        let events = Arc::new(Events { eventfd, pending: AtomicBool::new(false) });
        let costs = calibration::load(&config.calibration).unwrap_or_else(|error| {
            tracing::warn!("{} is no calibration, built-in figures serve: {error}", config.calibration.display());
            None
        });
        let notify: Notify = Arc::new({
            let events = Arc::clone(&events);
            move || events.notify()
        });
        let devices = config.lan.interfaces.iter().chain([&config.wan.interface]);
        let inherited = devices.filter(|name| programs.has_pins_of(name)).cloned().collect();
        let mut host = Host::start(config, costs, &mut netlink, &mut changes, inherited, notify)?;
        let (mut xsk, mut xsk_ports) = open_xsk(config, &mut host, count, &mut netlink)?;
        xsk.fill_maps(&xsk_ports, &mut programs, &mut netlink)?;
        map_config.xsk_frame_len_max = xsk.wan_frame_len_max(&wan);
        let (ports, ports_reason) = choose_ports(config.wan.io);
        let mut about = vec![
            ("program".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
            ("ports".to_owned(), format!("{ports} ({ports_reason})")),
        ];
        about.extend(config.fault.map(|fault| ("fault".to_owned(), fault.to_string())));
        about.push(("tun".to_owned(), tun_about));
        if let Some(socket) = underlay.control.each().next() {
            let buffers = format!("{} B receive, {} B send", socket.rx_buffer(), socket.tx_buffer());
            about.push(("socket buffers".to_owned(), buffers));
            about.push(("busy polling".to_owned(), format!("{} µs", socket.busy_poll())));
        }
        about.extend(xsk.about.iter().cloned());
        about.push(("cores".to_owned(), why));
        let idle = match (config.workers.latency, shared) {
            (Latency::Spin, _) => "workers spin, as configured",
            (Latency::Balanced, true) => "workers sleep, for they take every core",
            (Latency::Balanced, false) => "workers poll while that pays, then sleep",
        };
        about.push(("when idle".to_owned(), idle.to_owned()));
        let mut sockets_of_workers = vec![];
        let mut workers = vec![];
        let parts = (0u8..).zip(&cores).zip(underlay.workers).zip(queues).zip(Handoff::mesh(count));
        for ((((number, core), sockets), tun), handoff) in parts {
            let mut place = format!("core {}", core.id);
            if sockets.lane_v4.is_some() || sockets.lane_v6.is_some() {
                let lane = number % (config.wan.lane_ports + 1);
                place.push_str(&format!(", {LANE_PORT}{}", underlay.port + u16::from(lane)));
            }
            about.push((format!("worker {number}"), place));
            let sockets = Arc::new(sockets);
            sockets_of_workers.push(Arc::clone(&sockets));
            let notify: Notify = Arc::new({
                let events = Arc::clone(&events);
                move || events.notify()
            });
            let mtu = config.tun.mtu;
            workers.push(Worker::start(WorkerConfig {
                number,
                core: Some(*core),
                ports,
                latency: config.workers.latency,
                shared_cores: shared,
                sockets,
                tun,
                mtu,
                xsk: xsk_ports.get_mut(usize::from(number)).and_then(Option::take),
                handoff,
                clock,
                notify,
                fault: config.fault,
            })?);
        }

        let fixed = Fixed {
            incarnation: Incarnation(SystemRandom.u64()),
            workers: count,
            port: underlay.port,
            gateway: config.tun.addresses.iter().map(|address| address.address()).collect(),
            transit: config.transit,
            dscp: config.wan.dscp,
            has_aes: Algorithm::for_this_cpu() == Algorithm::Aes256Gcm,
            lane_ports: config.wan.lane_ports,
        };
        about.push(("incarnation".to_owned(), format!("{:016x}", fixed.incarnation.0)));
        about.push(("aead".to_owned(), aead()));

        programs.deny(&config.wan.deny)?;
        set_local(&mut programs, &mut netlink, &mut map_config)?;
        let lan = Lan::read(tun, config.routing.clone(), &config.lan.interfaces, &mut netlink)?;
        let mut plane = Self {
            server,
            workers,
            programs,
            routes: lan.routes(),
            lan,
            netlink,
            changes,
            state: State::new(fixed, SystemRandom),
            control: underlay.control,
            sockets: sockets_of_workers,
            events,
            map_config,
            about,
            clock,
            wall_clock: WallClock::start(clock.now()).map_err(system("making a timer"))?,
            config: config.clone(),
            host,
            gro: GroForwarding::open(config.api.socket.with_extension("gro"))?,
            xsk,
            attached: BTreeMap::new(),
        };
        plane.carry_out()?;
        plane.tell_choice();
        plane.tell_lan()?;
        plane.follow_host()?;
        let attached = plane.attach(&wan).and_then(|()| plane.install_routes(config));
        if let Err(error) = attached.and_then(|()| plane.server.listen().map_err(PlaneError::from)) {
            plane.stop();
            return Err(error);
        }
        Ok(plane)
    }
}

/// Opens the AF_XDP sockets that were chosen. Where the configuration does not insist on them, the plane does without when it gets none.
fn open_xsk(
    config: &Config,
    host: &mut Host,
    workers: u8,
    netlink: &mut Netlink,
) -> Result<(Xsk, Vec<Option<XskPorts>>), PlaneError> {
    let wan = [config.wan.rx, config.wan.tx].contains(&WanPort::Xsk);
    let lan = [config.lan.rx, config.lan.tx].contains(&LanPort::Xsk);
    match Xsk::open(config, host.choice(), workers, netlink) {
        Err(PlaneError::Xsk(error)) if !wan && !lan => {
            tracing::warn!("{error}");
            host.refuse_xsk(error.to_string(), netlink)?;
            Xsk::open(config, host.choice(), workers, netlink)
        }
        done => done,
    }
}

/// What seals on this CPU. A session with a peer that has no AES instructions uses the other algorithm.
fn aead() -> String {
    let algorithm = Algorithm::for_this_cpu();
    let (library, why) = Library::for_this_cpu(algorithm);
    format!("{algorithm:?} preferred by this CPU, by {library} ({why})")
}

/// Where workers run.
struct Placement {
    cores: Vec<core_affinity::CoreId>,
    why: String,
    /// No physical core is left to anybody else.
    shared: bool,
}

fn placement(config: &Config) -> Result<Placement, PlaneError> {
    let allowed: Vec<usize> = core_affinity::get_core_ids().unwrap_or_default().iter().map(|core| core.id).collect();
    let machine = cores::read(Path::new("/sys"), &allowed, &config.wan.interface);
    let cores::Choice { cpus, why } = match &config.workers.cores {
        Cores::Auto => cores::choose(&machine, usize::from(WORKERS_MAX)),
        Cores::List(list) => {
            cores::Choice { cpus: list.iter().copied().map(usize::from).collect(), why: "as configured".to_owned() }
        }
    };
    if cpus.is_empty() {
        return Err(PlaneError::NoCore);
    }
    let shared = cores::takes_all(&machine, &cpus);
    Ok(Placement { cores: cpus.into_iter().map(|id| core_affinity::CoreId { id }).collect(), why, shared })
}

/// Steers flows to the TUN's queues where there is a choice, and says what the TUN can do.
fn steer_tun(queues: &[TunQueue], programs: &mut Programs) -> String {
    let Some(first) = queues.first() else { return "no queue".to_owned() };
    let offloads = first.offloads();
    if queues.len() == 1 {
        return format!("1 queue, {offloads}");
    }
    let steered = programs.queue_program().map_err(|error| error.to_string());
    match steered.and_then(|program| first.steer(program).map_err(|error| error.to_string())) {
        Ok(()) => format!("{} queues, {offloads}, flows keep their worker", queues.len()),
        Err(error) => {
            tracing::warn!("the TUN does not take our choice of queues, so flows may change workers: {error}");
            format!("{} queues, {offloads}, flows may change workers ({error})", queues.len())
        }
    }
}

/// Tries again for [`PREDECESSOR_WAIT`] while something is in use.
fn patiently<T, E>(in_use: impl Fn(&E) -> bool, mut open: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    let deadline = Instant::now() + PREDECESSOR_WAIT;
    loop {
        match open() {
            Err(error) if in_use(&error) && Instant::now() < deadline => {
                // Nothing tells when the kernel has let go, so a timer does; a signal only looks earlier.
                let _ = poll(&mut [], Timespec::try_from(PREDECESSOR_POLL).ok().as_ref());
            }
            done => return done,
        }
    }
}

/// The ports to use, and why these.
fn choose_ports(wanted: WanIo) -> (PortKind, &'static str) {
    let features = ring::features();
    match wanted {
        WanIo::Uring => (PortKind::Uring, "as configured"),
        WanIo::Mmsg => (PortKind::Mmsg, "as configured"),
        WanIo::Auto if features.udp() && features.tun() => (PortKind::Uring, "the kernel has all that it needs"),
        WanIo::Auto if features.udp() => (PortKind::Mmsg, "io_uring lacks READ_MULTISHOT, which needs Linux 6.7"),
        WanIo::Auto => (PortKind::Mmsg, "io_uring is missing or too old; it needs Linux 6.1"),
    }
}

fn map_config(config: &Config) -> map::Config {
    let wan = &config.wan;
    // A tenth of a second of each class may come at once, so that a fleet's handshakes after an outage are not refused.
    let rate = Rate::per_second(wan.class_rate_pps, (wan.class_rate_pps / 10).max(1));
    let mut class = [rate; Class::COUNT];
    // These are what the control plane can bear, whatever else the operator lets in.
    class[Class::QuicInitialTagged as usize] = TAGGED_INITIALS;
    class[Class::QuicInitialUntagged as usize] = UNTAGGED_INITIALS;
    // `wan` reads the kernel's coarse clock.
    let by_ticks = |rate: Rate| rate.by_ticks(TICK_NS);
    map::Config {
        port_first: wan.port,
        // Reading the configuration made sure that there are so many.
        port_last: wan.port.saturating_add(wan.lane_ports.into()),
        flags: bpf::deny_flags(&wan.deny),
        miss_sample: MISS_SAMPLE,
        xsk_frame_len_max: 0,
        source: by_ticks(Rate::per_second(wan.source_rate_pps, wan.source_burst)),
        class: class.map(by_ticks),
    }
}

/// Puts all sockets into the map of `steer`. A socket can be in one such map only, and one that outlived its plane may still be in the last.
fn fill_sockets(programs: &mut Programs, underlay: &Underlay) -> Result<(), BpfError> {
    let workers = (0u8..).zip(&underlay.workers).map(|(number, sockets)| (SocketRole::Worker(number), sockets));
    for (role, sockets) in workers.chain([(SocketRole::Control, &underlay.control)]) {
        for (ipv6, socket) in [(false, &sockets.v4), (true, &sockets.v6)] {
            if let Some(socket) = socket {
                patiently(BpfError::is_busy, || programs.set_socket(ipv6, role, socket.as_fd()))?;
            }
        }
    }
    Ok(())
}

/// Puts `steer` before the groups of both families.
fn attach_steer(programs: &mut Programs, underlay: &Underlay) -> Result<(), BpfError> {
    underlay.control.each().try_for_each(|socket| programs.attach_steer(socket.as_fd()))
}
