//! From a dial to the first packet of a new session, over a long line.
//!
//! ```text
//!   h1 ── g1 ── switch ──────── line, half a round trip each way ──────── g2 ── h2
//! ```
//!
//! g2's packet plane is killed, and comes back without a session; its control plane makes one. The time runs from the first Initial at the
//! dialling side's end of the line to the first datagram that arrives at the host behind the other side, with both hosts sending one every
//! half millisecond to each other. So what a packet waits for is in it: both processes, both packet planes, the line.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::flood::{PORT_OF_G1, victim};
use super::initials::Spoofed;
use super::line::{End, Line, Seen};
use super::{Samples, at_most, party};
use crate::generator::{Amount, pace_with};
use crate::member::{Member, Part};
use crate::network::found;
use crate::rig::mesh::{Mesh, Site};
use crate::{Error, Result};

/// Between two datagrams of a host.
const EVERY: Duration = Duration::from_micros(500);
/// Where hosts listen: the port of discard (RFC 863) with two noughts behind it.
const SERVICE: u16 = 9_900;
/// For the session to stand still before it is killed.
const CALM: Duration = Duration::from_millis(500);
/// For the first packet.
const PATIENCE: Duration = Duration::from_secs(10);
/// Initials of strangers, one a handshake: as many as are let in. In two seconds they are more than a node takes without Retry, and fewer
/// than it takes at all.
const STRANGERS_PPS: f64 = 200.0;
const STRANGERS_LEAD: Duration = Duration::from_secs(2);
const STRANGERS: usize = 2_000;

/// What is done to a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    None,
    /// So many strangers are half way through a handshake that everybody has to prove an address.
    Retry,
    /// The first Initial is lost.
    Lost,
}

/// Measures a round.
pub(super) fn round(round_trips: &[Duration], samples: &mut Samples, step: &mut impl FnMut(&str)) -> Result<()> {
    for trouble in [Trouble::None, Trouble::Lost, Trouble::Retry] {
        // A network of its own: strangers are remembered for ten seconds, and a packet plane that is killed ever again is started ever later.
        let mesh = Mesh::new(2)?;
        let line = Line::new(mesh.line(2)?).map_err(Error::io("cannot carry frames"))?;
        let members = found(&mesh)?;
        let mut strangers = match trouble {
            Trouble::Retry => Some(Spoofed::new(&party::network(1)?[0], victim(&members[0])?, STRANGERS)?),
            Trouble::None | Trouble::Lost => None,
        };
        for round_trip in round_trips {
            let ms = round_trip.as_secs_f64() * 1e3;
            step(&format!("round trip of {ms} ms, {trouble:?}"));
            line.set_round_trip(*round_trip);
            let took = first_packet(&mesh, &members, &line, trouble, strangers.as_mut())?.as_secs_f64() * 1e3;
            let what = |what: &str| format!("dial to first packet, round trip of {ms} ms{what}");
            match trouble {
                Trouble::None => samples.add(what(""), "ms", at_most(1.6 * ms + 5.0), took),
                Trouble::Lost => samples.add(what(", first Initial lost"), "ms", None, took),
                Trouble::Retry => samples.add(what(", with Retry"), "ms", at_most(2.6 * ms + 5.0), took),
            }
        }
    }
    Ok(())
}

fn first_packet(
    mesh: &Mesh,
    members: &[Member<'_>],
    line: &Line,
    trouble: Trouble,
    strangers: Option<&mut Spoofed>,
) -> Result<Duration> {
    members.iter().try_for_each(|member| member.wait_for_peers(1))?;
    let (one, two) = (mesh.site_of(1), mesh.site_of(2));
    // By the end that a datagram comes from.
    let arrived = [Mutex::new(Vec::new()), Mutex::new(Vec::new())];
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let hosts = [(one, two, &arrived[0]), (two, one, &arrived[1])];
        let done = &done;
        let threads: Vec<_> =
            hosts.map(|(from, to, arrived)| scope.spawn(move || datagrams(from, to, arrived, done))).into();
        let strangers = strangers.map(|frames| scope.spawn(move || flood(mesh, frames, done)));
        let took = (|| {
            std::thread::sleep(if trouble == Trouble::Retry { STRANGERS_LEAD } else { CALM });
            line.watch(trouble == Trouble::Lost);
            members[1].kill9(Part::Plane)?;
            let (took, seen) = until_arrival(line, &arrived)?;
            match (trouble, seen.retries) {
                (Trouble::Retry, 0) => Err(Error::Broken { what: "a Retry".into(), detail: "nobody was asked".into() }),
                (Trouble::None | Trouble::Lost, 1..) => {
                    Err(Error::Broken { what: "a handshake".into(), detail: "with a Retry unasked for".into() })
                }
                _ => Ok(took),
            }
        })();
        done.store(true, Ordering::Relaxed);
        for thread in threads.into_iter().chain(strangers) {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        took
    })
}

/// Waits for the first Initial, and for the first datagram after it from the side that dialled.
fn until_arrival(line: &Line, arrived: &[Mutex<Vec<Instant>>; 2]) -> Result<(Duration, Seen)> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let seen = line.seen();
        if let Some((began, end)) = seen.initial {
            let arrivals = &arrived[usize::from(end == End::Far)];
            let arrivals = arrivals.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(first) = arrivals.iter().find(|at| **at > began) {
                return Ok((*first - began, seen));
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let detail = match line.seen().initial {
        Some(_) => format!("a handshake began, and nothing arrived within {PATIENCE:?}"),
        None => format!("no handshake began within {PATIENCE:?}"),
    };
    Err(Error::Broken { what: "a packet after a new session".into(), detail })
}

/// Sends from one host to the other until told to stop, and notes when each datagram arrives.
fn datagrams(from: &Site, to: &Site, arrived: &Mutex<Vec<Instant>>, done: &AtomicBool) -> Result<()> {
    let failed = || Error::io("cannot send from host to host");
    let bind =
        |site: &Site, port: u16| site.host.enter(|| UdpSocket::bind((site.host.lan.v4, port)))?.map_err(failed());
    let (sender, receiver) = (bind(from, 0)?, bind(to, SERVICE)?);
    receiver.set_read_timeout(Some(Duration::from_millis(100))).map_err(failed())?;
    sender.connect((to.host.lan.v4, SERVICE)).map_err(failed())?;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                // Without a session a gateway says that there is no way; that is what is measured.
                let _ = sender.send(&[0; 64]);
                std::thread::sleep(EVERY);
            }
        });
        while !done.load(Ordering::Relaxed) {
            if receiver.recv(&mut [0; 128]).is_ok() {
                arrived.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now());
            }
        }
    });
    Ok(())
}

/// Begins handshakes that nobody ends, until told to stop.
fn flood(mesh: &Mesh, frames: &mut Spoofed, done: &AtomicBool) -> Result<()> {
    let amount = Amount::Duration(STRANGERS_LEAD + PATIENCE);
    pace_with(mesh.switch(), PORT_OF_G1, STRANGERS_PPS, amount, done, |n, frame| frames.write(n, frame)).map(drop)
}
