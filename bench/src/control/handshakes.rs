//! Handshakes that one core accepts: the real endpoint with real certificates, and dialling sides on another core.
//!
//! ```text
//!   core 1: dials so many at a time ──▶ UDP over loopback ──▶ core 0: accepts, verifies, closes
//! ```
//!
//! Counted are handshakes after which both sides know each other, for each second of processor time of the accepting thread: system calls,
//! and what the kernel delivers in them, are in it; waiting for the dialling side is not.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use weir_controlplane::quic::{Alpn, CloseReason, DialTarget, Driver, Event, Side, code};
use weir_controlplane::shell::socket::ControlSockets;

use super::party::{self, Party, broken};
use super::{Samples, StopOnDrop, at_least};
use crate::sys::clock::thread_cpu_ns;
use crate::sys::{cpu, udp};
use crate::{Error, Result};

/// Handshakes under way at a time: few, so that nobody has to prove an address; and more than the limit from which everybody has to.
const WAYS: [(&str, usize); 2] = [("64 at a time", 64), ("512 at a time", 512)];
/// From the first handshake to the counting.
const LEAD: Duration = Duration::from_millis(300);
/// Bytes of each socket's buffers: a burst of dials must not be lost in the kernel, or retransmission timers would be measured.
const BUFFERS: u32 = 16 << 20;
/// System calls for datagrams between two looks at everything else, as in operation.
const DATAGRAM_BUDGET: usize = 16;
/// Longest wait without looking at the clock.
const WAIT_MAX: Duration = Duration::from_millis(10);
/// For the first handshake on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Dials between two looks at what came.
const DIALS_A_TURN: usize = 16;
const TRAIN_LEN_MAX: usize = 64 * 1024;

/// Measures a round of each way.
pub(super) fn round(duration: Duration, samples: &mut Samples) -> Result<()> {
    for (name, at_a_time) in WAYS {
        let seen = run(at_a_time, duration)?;
        let what = |what: &str| format!("handshakes, {name}: {what}");
        let accepted = seen.accepted as f64;
        samples.add(what("accepted for a second of a core"), "1/s", at_least(2500.0), accepted / seen.cpu_s);
        samples.add(what("accepted for a second of time"), "1/s", None, accepted / seen.time_s);
        samples.add(what("the accepting core is busy"), "share", None, seen.cpu_s / seen.time_s);
        samples.add(what("Retries for each of them"), "", None, seen.retries as f64 / accepted);
        let failed: u64 = seen.ends.values().sum();
        samples.add(what("that failed"), "share", None, failed as f64 / (accepted + failed as f64));
    }
    Ok(())
}

#[derive(Debug, Default)]
struct Seen {
    accepted: u64,
    retries: u64,
    cpu_s: f64,
    time_s: f64,
    /// Why dials failed, and how many.
    ends: BTreeMap<&'static str, u64>,
}

fn run(at_a_time: usize, duration: Duration) -> Result<Seen> {
    let parties = party::network(2)?;
    let cores = cpu::allowed().map_err(Error::io("cannot see the cores"))?;
    let socket = || -> Result<UdpSocket> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).map_err(Error::io("cannot open a UDP socket"))?;
        udp::set_buffers(&socket, BUFFERS).map_err(Error::io("cannot set the buffers of a UDP socket"))?;
        Ok(socket)
    };
    let (near, far) = (socket()?, socket()?);
    let to = near.local_addr().map_err(Error::io("cannot see a socket's address"))?;
    let stop = &AtomicBool::new(false);
    let (accepting, dialling) = (&parties[0], &parties[1]);
    let (first, last) = (cores[0], cores[cores.len() - 1]);
    std::thread::scope(|scope| {
        let accepting_side = scope.spawn(move || {
            let _stop = StopOnDrop(stop);
            on_core(first, accept(accepting, near, duration))
        });
        let dialling_side = scope.spawn(move || on_core(last, dial(dialling, far, accepting, to, at_a_time, stop)));
        let ends = dialling_side.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let seen = accepting_side.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok(Seen { ends, ..seen })
    })
}

/// Runs a side to its end on a core of its own, by one thread, as the control plane does.
fn on_core<T>(core: usize, side: impl Future<Output = Result<T>>) -> Result<T> {
    cpu::pin(core).map_err(Error::io("cannot pin a thread to its core"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(Error::io("cannot start a runtime"))?.block_on(side)
}

/// Links and the socket that they go by.
struct Endpoint {
    driver: Driver,
    sockets: ControlSockets,
    train: Vec<u8>,
}

impl Endpoint {
    fn new(party: &Party, socket: UdpSocket) -> Result<Self> {
        let sockets = ControlSockets::adopted(vec![socket.into()]).map_err(Error::io("cannot use a UDP socket"))?;
        Ok(Self { driver: party.driver(), sockets, train: Vec::with_capacity(TRAIN_LEN_MAX) })
    }

    /// Waits for datagrams or for time, takes what came and does what is due.
    async fn receive(&mut self) -> Result<()> {
        let latest = Instant::now() + WAIT_MAX;
        let deadline = self.driver.next_deadline().map_or(latest, |at| at.min(latest));
        // Otherwise time has passed, which is as good.
        if let Ok(ready) = tokio::time::timeout_at(deadline.into(), self.sockets.readable()).await {
            ready.map_err(Error::io("cannot wait for datagrams"))?;
        }
        let now = party::now();
        let driver = &mut self.driver;
        self.sockets.receive(DATAGRAM_BUDGET, |datagram| {
            driver.handle_datagram(now, datagram.from, datagram.to, datagram.ecn, datagram.data);
        });
        driver.handle_timeout(now);
        Ok(())
    }

    fn send(&mut self) {
        while let Some(transmit) = self.driver.poll_transmit(party::now(), &mut self.train) {
            self.sockets.send(&transmit, &self.train[..transmit.len]);
        }
    }
}

/// Accepts, and counts for so long once it has got going.
async fn accept(party: &Party, socket: UdpSocket, duration: Duration) -> Result<Seen> {
    let mut endpoint = Endpoint::new(party, socket)?;
    let deadline = Instant::now() + PATIENCE + duration;
    let mut seen = Seen::default();
    let mut first = None;
    let mut started: Option<(Instant, u64, u64)> = None;
    loop {
        let now = Instant::now();
        if started.is_none() && first.is_some_and(|first| now >= first + LEAD) {
            started = Some((now, thread_cpu_ns(), endpoint.driver.counters().retries));
        }
        if let Some((at, cpu_ns, retries)) = started
            && ((now >= at + duration && seen.accepted > 0) || now >= deadline)
        {
            seen.cpu_s = (thread_cpu_ns() - cpu_ns) as f64 / 1e9;
            seen.time_s = at.elapsed().as_secs_f64();
            seen.retries = endpoint.driver.counters().retries - retries;
            return Ok(seen);
        }
        if now >= deadline {
            return Err(broken("accepting handshakes")(&format!("none in {PATIENCE:?}")));
        }
        endpoint.receive().await?;
        while let Some(event) = endpoint.driver.poll_event() {
            if let Event::Connected { link, side: Side::Accepted, peer: Some(_), .. } = event {
                first.get_or_insert_with(Instant::now);
                seen.accepted += u64::from(started.is_some());
                endpoint.driver.close(link, code::DONE, "", party::now());
            }
        }
        endpoint.send();
    }
}

/// Dials until told to stop, so many at a time; tells of those that failed.
async fn dial(
    party: &Party,
    socket: UdpSocket,
    other: &Party,
    to: SocketAddr,
    at_a_time: usize,
    stop: &AtomicBool,
) -> Result<BTreeMap<&'static str, u64>> {
    let mut endpoint = Endpoint::new(party, socket)?;
    let mut ends = BTreeMap::new();
    let mut under_way = 0;
    while !stop.load(Ordering::Relaxed) {
        // A few in a turn, so that answers to the first are not kept waiting by the last.
        for _ in 0..DIALS_A_TURN.min(at_a_time - under_way) {
            let dialled = endpoint.driver.dial(Alpn::Key, &DialTarget::member(other.node), to, party::now());
            match dialled {
                Ok(_) => under_way += 1,
                // Those that were closed are forgotten a moment later.
                Err(_) => break,
            }
        }
        endpoint.send();
        endpoint.receive().await?;
        while let Some(event) = endpoint.driver.poll_event() {
            if let Event::Closed { reason, .. } = event {
                under_way -= 1;
                if !matches!(&reason, CloseReason::Peer { code: code::DONE, .. }) {
                    *ends.entry(reason.name()).or_default() += 1;
                }
            }
        }
        endpoint.send();
    }
    Ok(ends)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_of_a_handshake_know_each_other_by_real_certificates() {
        let seen = run(8, Duration::from_millis(50)).unwrap();
        assert!(seen.accepted > 0 && seen.ends.is_empty(), "{seen:?}");
        assert!(seen.cpu_s > 0.0 && seen.cpu_s <= seen.time_s, "{seen:?}");
    }
}
