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
//! that has come to another network. It is not to look for changes by itself every few seconds. What is heard is passed on as it is, at most so
//! many services in one life of the library; whether it is of our network, and where it says to be, the control plane judges.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use data_encoding::HEXLOWER;
use mdns_sd::{IfKind, Receiver, ResolvedService, ServiceDaemon, ServiceEvent, ServiceInfo};
use rustix::process::{Resource, Rlimit, setrlimit};
use serde::{Deserialize, Serialize};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
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
/// Services that are passed on in one life of the library, and addresses of each.
const SERVICES_MAX: usize = 128;
const ADDRESSES_MAX: usize = 8;
/// Events of the library after which it is started anew, and with it what it remembers.
const EVENTS_MAX: u32 = 4096;
/// How long after that nothing is said or heard: whoever floods the network gets a moment of it each minute.
const FLOOD_PAUSE: Duration = Duration::from_secs(60);
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
    let listener = listen(&socket_path(&config.node.runtime_directory)).map_err(system("opening the mDNS socket"))?;
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
        voice.fall_silent().await;
        if is_over {
            return Ok(());
        }
    }
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    // One that was killed left its socket behind.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
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
        if tell(&mut write, &told).await.is_err() {
            break;
        }
    }
    reader.abort();
}

async fn tell(write: &mut OwnedWriteHalf, told: &FromMdns) -> io::Result<()> {
    frame::send(write, told, MESSAGE_LEN_MAX).await
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
    count: u32,
    ear: Ear,
}

/// What is passed on of what is heard.
struct Ear {
    /// Our own name, which is heard as well.
    own: String,
    heard: BTreeSet<String>,
    is_over_told: bool,
}

/// Says and hears, on some interfaces.
struct Voice {
    interfaces: Vec<String>,
    saying: Option<Saying>,
    life: Option<Life>,
    /// When to begin again after a flood.
    again_at: Option<Instant>,
}

/// A name that nobody has seen: of an instance, of a host.
fn name() -> String {
    HEXLOWER.encode(&SystemRandom.array::<8>())
}

impl Voice {
    const fn new(interfaces: Vec<String>) -> Self {
        Self { interfaces, saying: None, life: None, again_at: None }
    }

    async fn say(&mut self, saying: Option<Saying>) {
        self.fall_silent().await;
        self.saying = saying;
        // Whoever is flooded is not helped by a change of the host.
        if self.again_at.is_none() {
            self.begin();
        }
    }

    fn begin(&mut self) {
        let Some(saying) = self.saying else { return };
        match begin(&self.interfaces, saying) {
            Ok(life) => self.life = Some(life),
            Err(error) => {
                tracing::warn!("mDNS cannot begin: {error}; it is tried again");
                self.again_at = Some(Instant::now() + FLOOD_PAUSE);
            }
        }
    }

    /// Says goodbye, where anything was said.
    async fn fall_silent(&mut self) {
        let Some(life) = self.life.take() else { return };
        if let Ok(done) = life.daemon.shutdown() {
            // It has a thread that must end before there is another one; one that hangs is left to itself.
            let _ = timeout(GOODBYE_PATIENCE, done.recv_async()).await;
        }
    }

    /// The next thing to tell. May be dropped while it waits: nothing is lost.
    async fn next(&mut self) -> FromMdns {
        loop {
            let Some(life) = &mut self.life else {
                match self.again_at {
                    Some(at) => drop(timeout_at(at, std::future::pending::<()>()).await),
                    None => std::future::pending().await,
                }
                self.again_at = None;
                self.begin();
                continue;
            };
            let event = life.events.recv_async().await;
            life.count += 1;
            match event {
                Ok(_) if life.count > EVENTS_MAX => {}
                Ok(ServiceEvent::ServiceResolved(service)) => match life.ear.hear(&service) {
                    Some(told) => return told,
                    None => continue,
                },
                Ok(_) => continue,
                // The library lets go of whoever does not listen fast enough.
                Err(_) => {}
            }
            self.again_at = Some(Instant::now() + FLOOD_PAUSE);
            self.fall_silent().await;
            return FromMdns::Flooded;
        }
    }
}

impl Ear {
    const fn new(own: String) -> Self {
        Self { own, heard: BTreeSet::new(), is_over_told: false }
    }

    fn hear(&mut self, service: &ResolvedService) -> Option<FromMdns> {
        if service.fullname == self.own {
            return None;
        }
        if !self.heard.contains(&service.fullname) {
            if self.heard.len() >= SERVICES_MAX {
                return (!std::mem::replace(&mut self.is_over_told, true)).then_some(FromMdns::Over);
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
    let events = daemon.browse(SERVICE_TYPE)?;
    Ok(Life { daemon, events, count: 0, ear: Ear::new(own) })
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

    fn service(name: &str, addresses: &str, txt: &[(&str, String)]) -> ResolvedService {
        let service = ServiceInfo::new(SERVICE_TYPE, name, "host.local.", addresses, 4646, txt).unwrap();
        service.as_resolved_service()
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
        let mut over = |name: &str| ear.hear(&service(name, "10.0.0.3", &said.to_txt()));
        assert_eq!((over("over"), over("more")), (Some(FromMdns::Over), None), "told once");
        assert!(matches!(over("a"), Some(FromMdns::Heard(_))), "who is known is heard again");
        assert_eq!(ear.heard.len(), SERVICES_MAX);
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
            let listener = listen(&path).unwrap();
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
