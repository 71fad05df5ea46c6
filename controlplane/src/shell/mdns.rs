//! Multicast DNS (RFC 6762) in a process of its own, and the way to it: one unix socket, what to say goes there, who was heard comes back.
//!
//! ```text
//!   weir control ── Saying: port, beacon ──▶ mdns.sock ──▶ weir mdns: mdns-sd, a thread of its own ══ UDP 5353 ══ local network
//!                ◀─ Heard: beacon, addresses ──              no key, no file, no capability, 64 MiB of memory
//! ```
//!
//! Not in the control plane, for three reasons. The library reads what anybody on the local network sends, and a mistake of its thread would end
//! the process that it is in. What it remembers of others has no limit of its own; the kernel sets this process one, and where that is reached the
//! process ends, and the supervisor starts it again, ever later. And it holds nothing that is worth taking.
//!
//! The library is told nothing about changes of the host: it is started anew instead, with new names and a new salt, which is what a host wants
//! that has come to another network. It is not to look for changes by itself every few seconds. What is heard is passed on as it is, of so many
//! services at a time; whether it is of our network, and where it says to be, the control plane judges.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use data_encoding::HEXLOWER;
use mdns_sd::{DaemonStatus, IfKind, Receiver, ResolvedService, ServiceDaemon, ServiceEvent, ServiceInfo};
use rustix::process::{Resource, Rlimit, setrlimit};
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout, timeout_at};

use super::confine::{ConfineError, confine};
use super::frame;
use crate::config::Config;
use crate::node::beacon::Beacon;
use crate::random::{Random as _, SystemRandom};

/// The type of the service (RFC 6763 §7). It is not registered with IANA.
pub const SERVICE_TYPE: &str = "_weir._udp.local.";
/// What was heard and waits for the node. More is dropped, and is heard again when its time to live is over.
pub const QUEUE_MAX: usize = 128;
/// Services that are there at a time and passed on, and addresses of each.
const SERVICES_MAX: usize = 128;
const ADDRESSES_MAX: usize = 8;
/// Events of the library in one window after which it is started anew, and with it what it remembers.
const EVENTS_MAX: u32 = 4096;
/// The window: a host that comes and goes makes three events, so this is two hosts a second. Where there were more services than are passed on,
/// it is started anew at the end of one, so that others are heard.
const WINDOW: Duration = Duration::from_secs(600);
/// How long after a flood nothing is said or heard: whoever floods the network gets a moment of it each minute.
const FLOOD_PAUSE: Duration = Duration::from_secs(60);
/// First and longest wait when it cannot begin.
const BEGIN_MIN: Duration = Duration::from_secs(1);
const BEGIN_MAX: Duration = Duration::from_secs(60);
/// How long the library may take to say goodbye.
const GOODBYE_PATIENCE: Duration = Duration::from_secs(1);
/// Most memory of the process that is its own to write (RLIMIT_DATA): some thousand services, and a hundred times what it needs.
const MEMORY_MAX: u64 = 64 << 20;
/// Longest message each way.
const MESSAGE_LEN_MAX: usize = 1024;
/// Wait between attempts to reach the process.
const RETRY: Duration = Duration::from_millis(500);

/// What is said from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saying {
    /// The UDP port at which this node is.
    pub port: u16,
    /// Of which network it is, for those who know.
    pub beacon: Beacon,
}

/// Somebody was heard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heard {
    /// Of which network it says to be.
    pub beacon: Beacon,
    /// Where it says to be.
    pub addresses: Vec<SocketAddr>,
}

/// What the process tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromMdns {
    /// Somebody was heard.
    Heard(Heard),
    /// A service of our type that says nothing of what ours say.
    Malformed,
    /// More services than are passed on.
    Over,
    /// The library was stopped for a while: too much was said.
    Flooded,
}

/// Where the process listens, in the runtime directory.
pub fn socket_path(runtime: &Path) -> PathBuf {
    runtime.join("mdns.sock")
}

/// Keeps a connection to the process up, until the shell is gone. Each change of `saying`, also to the same, has the process begin anew.
pub async fn maintain(path: PathBuf, mut saying: watch::Receiver<Option<Saying>>, to_node: mpsc::Sender<FromMdns>) {
    while !to_node.is_closed() {
        match UnixStream::connect(&path).await {
            Ok(stream) => pass(stream, &mut saying, &to_node).await,
            Err(error) => tracing::trace!(%error, "no mDNS yet"),
        }
        // What is said meanwhile is there for the process when it comes.
        if timeout_at(Instant::now() + RETRY, saying.changed()).await.is_ok_and(|changed| changed.is_err()) {
            return;
        }
    }
}

async fn pass(stream: UnixStream, saying: &mut watch::Receiver<Option<Saying>>, to_node: &mpsc::Sender<FromMdns>) {
    let (read, mut write) = stream.into_split();
    // In a task of its own, since half a message must not be lost when there is something to send.
    let mut reader = tokio::spawn(read_heard(read, to_node.clone()));
    loop {
        let now = *saying.borrow_and_update();
        if let Err(error) = frame::send(&mut write, &now, MESSAGE_LEN_MAX).await {
            tracing::warn!(%error, "the connection to the mDNS process ended");
            break;
        }
        tokio::select! {
            changed = saying.changed() => if changed.is_err() { break },
            _ = &mut reader => return tracing::warn!("the mDNS process has ended the connection"),
        }
    }
    reader.abort();
}

async fn read_heard(mut from: OwnedReadHalf, to_node: mpsc::Sender<FromMdns>) {
    loop {
        match frame::receive::<FromMdns>(&mut from, MESSAGE_LEN_MAX).await {
            Ok(Some(heard)) => match to_node.try_send(heard) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Full(_)) => tracing::trace!("heard more than is taken"),
                Err(mpsc::error::TrySendError::Closed(_)) => return,
            },
            Ok(None) => return,
            Err(error) => return tracing::warn!(%error, "what the mDNS process tells cannot be read"),
        }
    }
}

/// Why the process cannot run.
#[derive(Debug, thiserror::Error)]
pub enum MdnsError {
    /// Nothing to do.
    #[error("the configuration names no interface for mDNS: set discovery.mdns_interfaces")]
    NoInterface,
    /// Giving up what is not needed.
    #[error(transparent)]
    Confine(#[from] ConfineError),
    /// Anything else of the system.
    #[error("{doing}: {error}")]
    System {
        /// What was tried.
        doing: &'static str,
        /// What the system said.
        error: io::Error,
    },
}

fn system<E: Into<io::Error>>(doing: &'static str) -> impl FnOnce(E) -> MdnsError {
    move |error| MdnsError::System { doing, error: error.into() }
}

/// Runs the process until a signal says to stop. It serves one connection at a time: the control plane's.
///
/// # Errors
/// [`MdnsError`].
pub async fn run(config: &Config) -> Result<(), MdnsError> {
    let interfaces = config.discovery.mdns_interfaces.clone();
    if interfaces.is_empty() {
        return Err(MdnsError::NoInterface);
    }
    let mut terminate = signal(SignalKind::terminate()).map_err(system("installing a signal handler"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system("installing a signal handler"))?;
    let listener =
        frame::listen(&socket_path(&config.node.runtime_directory)).map_err(system("opening the mDNS socket"))?;
    let limit = Rlimit { current: Some(MEMORY_MAX), maximum: Some(MEMORY_MAX) };
    setrlimit(Resource::Data, limit).map_err(system("limiting the memory of this process"))?;
    confine(&config.node.runtime_directory)?;
    let mut voice = Voice::new(interfaces);
    loop {
        let serve = async {
            let (stream, _) = listener.accept().await.map_err(system("accepting a connection"))?;
            serve(stream, &mut voice).await;
            Ok::<(), MdnsError>(())
        };
        let is_over = tokio::select! {
            _ = terminate.recv() => true,
            _ = interrupt.recv() => true,
            served = serve => { served?; false }
        };
        voice.say(None).await;
        if is_over {
            return Ok(());
        }
    }
}

async fn serve(stream: UnixStream, voice: &mut Voice) {
    let (read, mut write) = stream.into_split();
    let (to, mut orders) = mpsc::channel(1);
    let reader = tokio::spawn(read_orders(read, to));
    loop {
        let told = tokio::select! {
            order = orders.recv() => match order {
                Some(saying) => {
                    voice.say(saying).await;
                    continue;
                }
                None => break,
            },
            told = voice.next() => told,
        };
        if frame::send(&mut write, &told, MESSAGE_LEN_MAX).await.is_err() {
            break;
        }
    }
    reader.abort();
}

async fn read_orders(mut from: OwnedReadHalf, to: mpsc::Sender<Option<Saying>>) {
    loop {
        match frame::receive::<Option<Saying>>(&mut from, MESSAGE_LEN_MAX).await {
            Ok(Some(saying)) if to.send(saying).await.is_ok() => {}
            Ok(Some(_) | None) => return,
            Err(error) => return tracing::error!("what the control plane says is not understood: {error}"),
        }
    }
}

/// One life of the library.
struct Life {
    daemon: ServiceDaemon,
    events: Receiver<ServiceEvent>,
    ear: Ear,
    /// When the window ends that is counted in.
    window_end: Instant,
}

/// What is passed on of what is heard.
struct Ear {
    /// Our own name, which is heard as well.
    own: String,
    heard: BTreeSet<String>,
    /// Events of this window.
    events: u32,
    is_over: bool,
}

/// Says and hears, on some interfaces.
struct Voice {
    interfaces: Vec<String>,
    saying: Option<Saying>,
    life: Option<Life>,
    /// One that would not be told to end.
    stuck: Option<ServiceDaemon>,
    /// When to begin.
    begin_at: Option<Instant>,
    /// Not before that, after a flood.
    flooded_until: Option<Instant>,
    /// How often it could not begin, in a row.
    failures: u32,
}

/// A name that nobody has seen: of an instance, of a host.
fn name() -> String {
    HEXLOWER.encode(&SystemRandom.array::<8>())
}

/// How long to wait after so many failures in a row to begin.
fn begin_wait(failures: u32) -> Duration {
    BEGIN_MIN.saturating_mul(1 << failures.min(16)).min(BEGIN_MAX)
}

impl Voice {
    const fn new(interfaces: Vec<String>) -> Self {
        Self { interfaces, saying: None, life: None, stuck: None, begin_at: None, flooded_until: None, failures: 0 }
    }

    async fn say(&mut self, saying: Option<Saying>) {
        self.fall_silent().await;
        self.saying = saying;
        let now = Instant::now();
        // Whoever is flooded is not helped by a change of the host.
        self.begin_at = saying.map(|_| self.flooded_until.map_or(now, |until| until.max(now)));
    }

    fn begin(&mut self) {
        let Some(saying) = self.saying else { return };
        self.stuck.take_if(|daemon| !matches!(daemon.shutdown(), Err(mdns_sd::Error::Again)));
        let begun = match &self.stuck {
            None => begin(&self.interfaces, saying),
            Some(_) => Err(mdns_sd::Error::Again),
        };
        match begun {
            Ok(life) => (self.life, self.failures) = (Some(life), 0),
            Err(error) => {
                let wait = begin_wait(self.failures);
                tracing::warn!("mDNS cannot begin: {error}; it is tried again in {} s", wait.as_secs());
                self.failures = self.failures.saturating_add(1);
                self.begin_at = Some(Instant::now() + wait);
            }
        }
    }

    /// Tells the library to say goodbye and end, where there is one; what it answers when it has. Its end is not waited for here.
    fn leave(&mut self) -> Option<Receiver<DaemonStatus>> {
        let Life { daemon, .. } = self.life.take()?;
        match daemon.shutdown() {
            Ok(done) => Some(done),
            Err(mdns_sd::Error::Again) => {
                self.stuck = Some(daemon);
                None
            }
            Err(_) => None,
        }
    }

    /// Says goodbye, where anything was said.
    async fn fall_silent(&mut self) {
        if let Some(done) = self.leave() {
            // It has a thread that must end before there is another one; one that hangs is left to itself.
            let _ = timeout(GOODBYE_PATIENCE, done.recv_async()).await;
        }
    }

    /// The next thing to tell. May be dropped while it waits: nothing is lost.
    async fn next(&mut self) -> FromMdns {
        loop {
            let Some(life) = &mut self.life else {
                match self.begin_at {
                    Some(at) => drop(timeout_at(at, std::future::pending::<()>()).await),
                    None => std::future::pending().await,
                }
                self.begin_at = None;
                self.begin();
                continue;
            };
            let told = match timeout_at(life.window_end, life.events.recv_async()).await {
                Ok(Ok(event)) => life.ear.hear(&event),
                // The library lets go of whoever does not listen fast enough.
                Ok(Err(_)) => Some(FromMdns::Flooded),
                Err(_) => {
                    let now = Instant::now();
                    life.window_end = now + WINDOW;
                    if life.ear.end_window() {
                        self.leave();
                        self.begin_at = Some(now + GOODBYE_PATIENCE);
                    }
                    None
                }
            };
            if told == Some(FromMdns::Flooded) {
                // What it still has to say is left behind, and nobody waits for its end: there is a pause.
                self.leave();
                self.flooded_until = Some(Instant::now() + FLOOD_PAUSE);
                self.begin_at = self.flooded_until;
            }
            if let Some(told) = told {
                return told;
            }
        }
    }
}

impl Ear {
    const fn new(own: String) -> Self {
        Self { own, heard: BTreeSet::new(), events: 0, is_over: false }
    }

    fn hear(&mut self, event: &ServiceEvent) -> Option<FromMdns> {
        self.events += 1;
        match event {
            _ if self.events > EVENTS_MAX => Some(FromMdns::Flooded),
            ServiceEvent::ServiceResolved(service) => self.resolved(service),
            // Who has gone makes room.
            ServiceEvent::ServiceRemoved(_, name) => {
                self.heard.remove(name);
                None
            }
            _ => None,
        }
    }

    /// The window is over; whether there were more services in it than were passed on.
    const fn end_window(&mut self) -> bool {
        self.events = 0;
        std::mem::replace(&mut self.is_over, false)
    }

    fn resolved(&mut self, service: &ResolvedService) -> Option<FromMdns> {
        if service.fullname == self.own {
            return None;
        }
        if !self.heard.contains(&service.fullname) {
            if self.heard.len() >= SERVICES_MAX {
                return (!std::mem::replace(&mut self.is_over, true)).then_some(FromMdns::Over);
            }
            self.heard.insert(service.fullname.clone());
        }
        let value = |key: &str| service.get_property_val(key).flatten();
        let Some(beacon) = Beacon::from_txt(value) else { return Some(FromMdns::Malformed) };
        let mut addresses: Vec<IpAddr> = service.addresses.iter().map(mdns_sd::ScopedIp::to_ip_addr).collect();
        addresses.sort_unstable();
        addresses.dedup();
        addresses.truncate(ADDRESSES_MAX);
        let addresses = addresses.into_iter().map(|ip| SocketAddr::new(ip, service.port)).collect();
        Some(FromMdns::Heard(Heard { beacon, addresses }))
    }
}

fn begin(interfaces: &[String], saying: Saying) -> mdns_sd::Result<Life> {
    let daemon = ServiceDaemon::new()?;
    match set_up(&daemon, interfaces, saying) {
        Ok((own, events)) => Ok(Life { daemon, events, ear: Ear::new(own), window_end: Instant::now() + WINDOW }),
        Err(error) => {
            // Its thread would stay. It was told a few things at most, so there is room for this.
            let _ = daemon.shutdown();
            Err(error)
        }
    }
}

/// Speaks and listens by this daemon; our own name, and what is heard.
fn set_up(
    daemon: &ServiceDaemon,
    interfaces: &[String],
    saying: Saying,
) -> mdns_sd::Result<(String, Receiver<ServiceEvent>)> {
    // The control plane says when something has changed.
    daemon.set_ip_check_interval(0)?;
    daemon.disable_interface(IfKind::All)?;
    let chosen: Vec<IfKind> = interfaces.iter().map(IfKind::from).collect();
    daemon.enable_interface(chosen.clone())?;
    let host = format!("{}.local.", name());
    let mut service = ServiceInfo::new(SERVICE_TYPE, &name(), &host, (), saying.port, &saying.beacon.to_txt()[..])?;
    service.set_interfaces(chosen);
    let service = service.enable_addr_auto();
    let own = service.get_fullname().to_owned();
    daemon.register(service)?;
    Ok((own, daemon.browse(SERVICE_TYPE)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::id::NetworkId;
    use crate::random::SeededRandom;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn beacon(seed: u64) -> Beacon {
        Beacon::new(NetworkId([1; 32]), &mut SeededRandom::new(seed))
    }

    fn service(name: &str, addresses: &str, txt: &[(&str, String)]) -> ServiceEvent {
        let service = ServiceInfo::new(SERVICE_TYPE, name, "host.local.", addresses, 4646, txt).unwrap();
        ServiceEvent::ServiceResolved(Box::new(service.as_resolved_service()))
    }

    fn removed(name: &str) -> ServiceEvent {
        ServiceEvent::ServiceRemoved(SERVICE_TYPE.to_owned(), format!("{name}.{SERVICE_TYPE}"))
    }

    #[test]
    fn what_is_heard_is_passed_on_but_our_own_voice_and_no_more_than_may_be() {
        let said = beacon(1);
        let mut ear = Ear::new(format!("own.{SERVICE_TYPE}"));
        assert_eq!(ear.hear(&service("own", "10.0.0.1", &said.to_txt())), None);
        assert_eq!(ear.hear(&service("printer", "10.0.0.2", &[])), Some(FromMdns::Malformed));
        let many: Vec<String> = (1..=ADDRESSES_MAX + 1).map(|at| format!("10.0.1.{at}")).collect();
        let Some(FromMdns::Heard(heard)) = ear.hear(&service("a", &many.join(","), &said.to_txt())) else { panic!() };
        assert_eq!((heard.beacon, heard.addresses.len()), (said, ADDRESSES_MAX));
        assert!(heard.addresses.iter().all(|address| address.port() == 4646));
        for number in ear.heard.len()..SERVICES_MAX {
            let heard = ear.hear(&service(&format!("s{number}"), "10.0.0.3", &said.to_txt()));
            assert!(matches!(heard, Some(FromMdns::Heard(_))), "{number}");
        }
        let hear = |ear: &mut Ear, name: &str| ear.hear(&service(name, "10.0.0.3", &said.to_txt()));
        let is_heard = |told: Option<FromMdns>| matches!(told, Some(FromMdns::Heard(_)));
        assert_eq!((hear(&mut ear, "over"), hear(&mut ear, "more")), (Some(FromMdns::Over), None), "told once");
        assert!(is_heard(hear(&mut ear, "a")), "who is known is heard again");
        assert_eq!(ear.heard.len(), SERVICES_MAX);
        // Who goes makes room for one, and the next window begins with whoever speaks first.
        assert_eq!((ear.hear(&removed("printer")), ear.hear(&removed("nobody"))), (None, None));
        assert!(is_heard(hear(&mut ear, "over")));
        assert_eq!(hear(&mut ear, "more"), None);
        assert_eq!((ear.end_window(), ear.end_window()), (true, false));
        assert_eq!(hear(&mut ear, "more"), Some(FromMdns::Over));
    }

    #[test]
    fn a_flood_is_what_comes_in_one_window() {
        let mut ear = Ear::new("own".to_owned());
        for window in 0..3 {
            assert!((0..EVENTS_MAX).all(|_| ear.hear(&removed("a")).is_none()), "{window}");
            assert!(!ear.end_window());
        }
        assert!((0..EVENTS_MAX).all(|_| ear.hear(&removed("a")).is_none()));
        assert_eq!(ear.hear(&removed("a")), Some(FromMdns::Flooded));
    }

    /// It waited a minute after the first failure, as when an interface was about to come up, and a change of the host did not help.
    #[tokio::test(flavor = "current_thread")]
    async fn what_cannot_begin_waits_ever_longer_but_for_a_new_word_and_a_flood_is_waited_out() {
        let waits = [0, 1, 2, 5, 6, 40].map(|failures| begin_wait(failures).as_secs());
        assert_eq!(waits, [1, 2, 4, 32, 60, 60]);
        let mut voice = Voice::new(vec!["lan".to_owned()]);
        let saying = Some(Saying { port: 1, beacon: beacon(1) });
        (voice.failures, voice.begin_at) = (9, Some(Instant::now() + BEGIN_MAX));
        voice.say(saying).await;
        assert!(voice.begin_at.is_some_and(|at| at <= Instant::now()));
        voice.flooded_until = Some(Instant::now() + FLOOD_PAUSE);
        voice.say(saying).await;
        assert_eq!(voice.begin_at, voice.flooded_until);
        voice.say(None).await;
        assert_eq!(voice.begin_at, None);
    }

    #[test]
    fn the_longest_thing_that_is_told_fits() {
        let addresses = vec!["[2001:db8:ffff:ffff:ffff:ffff:ffff:ffff]:65535".parse().unwrap(); ADDRESSES_MAX];
        let longest = FromMdns::Heard(Heard { beacon: beacon(1), addresses });
        assert!(frame::encode(&longest, MESSAGE_LEN_MAX).is_ok());
        assert!(frame::encode(&Some(Saying { port: u16::MAX, beacon: beacon(1) }), MESSAGE_LEN_MAX).is_ok());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn the_process_is_told_what_to_say_whenever_it_comes_and_what_it_heard_arrives() {
        let directory = std::env::temp_dir().join(format!("weir-mdns-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let path = socket_path(&directory);
        let said = |number| Some(Saying { port: number, beacon: beacon(1) });
        let (saying, to_process) = watch::channel(said(1));
        let (to_node, mut heard) = mpsc::channel(1);
        let task = tokio::spawn(maintain(path.clone(), to_process, to_node));
        saying.send_replace(said(2));
        for round in 0..2 {
            let listener = frame::listen(&path).unwrap();
            let (mut stream, _) = timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
            let asked = frame::receive::<Option<Saying>>(&mut stream, MESSAGE_LEN_MAX).await.unwrap();
            assert_eq!(asked, Some(said(2)), "{round}");
            let told = FromMdns::Heard(Heard { beacon: beacon(2), addresses: vec![] });
            frame::send(&mut stream, &told, MESSAGE_LEN_MAX).await.unwrap();
            assert_eq!(timeout(PATIENCE, heard.recv()).await.unwrap(), Some(told));
            // The same again is said again: it is a word to begin anew.
            saying.send_replace(said(2));
            let asked = frame::receive::<Option<Saying>>(&mut stream, MESSAGE_LEN_MAX).await.unwrap();
            assert_eq!(asked, Some(said(2)));
        }
        drop(saying);
        timeout(PATIENCE, task).await.expect("in time").unwrap();
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
