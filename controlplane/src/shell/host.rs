//! What changes on this host: its interfaces and addresses, by netlink; and that it has slept, by its clocks.
//!
//! ```text
//!  netlink: links, IPv4, IPv6 ──▶ ┌───────────┐ a look at all addresses; only where they differ ──▶ the node, mDNS
//!  timerfd: the clock was set ──▶ │ HostWatch │ CLOCK_BOOTTIME against CLOCK_MONOTONIC ──▶ the node: it has slept
//!                                 └───────────┘
//! ```
//!
//! The kernel ends a wait when something happens, so nothing is looked at in between. That wake-up from sleep cancels a timer on the
//! system's clock (TFD_TIMER_CANCEL_ON_SET, timerfd_create(2)) is how it is noticed at once; every other wake-up compares the clocks as well.
//! Sockets are opened before the process is confined. Asking needs no privilege.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram as StdUnixDatagram;
use std::time::{Duration, Instant};

use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime, timerfd_create,
    timerfd_settime,
};
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use weir_dataplane::io::netlink::{Changes, Error as NetlinkError, HostAddress, Netlink};

use crate::dht::place::is_public;
use crate::node::candidates::may_be_dialled;

/// Shortest time between two looks: interfaces come with several changes in a row, and one that flaps must not keep this process busy.
const PACE: Duration = Duration::from_millis(250);
/// How soon it is asked again, and listened anew, after that has failed.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// Less is the difference between two readings of clocks.
const SLEPT_MIN: Duration = Duration::from_secs(1);
/// Changes that are read in one turn; whatever there are more of is the next turn's.
const CHANGES_BUDGET: usize = 256;

/// Addresses of this host by the names of their interfaces, of those that run. Not the TUN's, which are the network's own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostView {
    by_interface: BTreeMap<String, Vec<HostAddress>>,
}

impl HostView {
    /// The addresses of these interfaces.
    fn of<'a>(&'a self, interfaces: &'a [String]) -> impl Iterator<Item = &'a HostAddress> {
        interfaces.iter().filter_map(|name| self.by_interface.get(name)).flatten()
    }

    /// All by which a member could be reached. What is good on one link or host only says nothing of that, and containers come and go with it.
    fn reaching(&self) -> impl Iterator<Item = (&str, &HostAddress)> {
        let all = self.by_interface.iter().flat_map(|(name, all)| all.iter().map(move |own| (name.as_str(), own)));
        all.filter(|(_, own)| match own.address.address() {
            IpAddr::V4(ip) => !(ip.is_loopback() || ip.is_link_local()),
            IpAddr::V6(ip) => !(ip.is_loopback() || ip.is_unicast_link_local()),
        })
    }

    /// Whether there is such an interface, and it runs.
    pub fn has(&self, interface: &str) -> bool {
        self.by_interface.contains_key(interface)
    }

    /// The same view of these interfaces alone.
    pub fn only(&self, interfaces: &[String]) -> Self {
        let of = |name: &String| self.by_interface.get(name).map(|addresses| (name.clone(), addresses.clone()));
        Self { by_interface: interfaces.iter().filter_map(of).collect() }
    }

    /// Whether an address is reached on one of these interfaces without a router between. Whoever speaks on a local network may name any address
    /// of the world; only what is on that network is its own matter.
    pub fn is_on_link(&self, address: IpAddr, interfaces: &[String]) -> bool {
        self.of(interfaces).any(|own| own.address.network().contains(address))
    }

    /// Where an interface is reached from anywhere, at this port: private and local addresses are left out.
    pub fn public_endpoints(&self, interface: &str, port: u16) -> Vec<SocketAddr> {
        let addresses = self.by_interface.get(interface).into_iter().flatten().map(|own| own.address.address());
        addresses.filter(|ip| is_public(*ip)).map(|ip| SocketAddr::new(ip, port)).collect()
    }

    /// Where it is reached on a private network (RFC 1918, RFC 6598, RFC 4193), at this port.
    pub fn private_endpoints(&self, interface: &str, port: u16) -> Vec<SocketAddr> {
        let addresses = self.by_interface.get(interface).into_iter().flatten().map(|own| own.address.address());
        let private = addresses.filter(|ip| !is_public(*ip));
        private.map(|ip| SocketAddr::new(ip, port)).filter(|endpoint| may_be_dialled(*endpoint)).collect()
    }
}

/// Finds out that this host has slept: the one clock goes on meanwhile, and the other stands.
#[derive(Clone, Copy, Debug)]
struct SleepWatch {
    ahead: Duration,
}

impl SleepWatch {
    const fn new(boot: Duration, mono: Duration) -> Self {
        Self { ahead: boot.saturating_sub(mono) }
    }

    /// How long it slept since the last look; `None` when it did not.
    fn look(&mut self, boot: Duration, mono: Duration) -> Option<Duration> {
        let ahead = boot.saturating_sub(mono);
        let slept = ahead.saturating_sub(std::mem::replace(&mut self.ahead, ahead));
        (slept >= SLEPT_MIN).then_some(slept)
    }
}

fn read_clock(id: ClockId) -> Duration {
    // Neither clock is ever before the start of the machine.
    Duration::try_from(clock_gettime(id)).unwrap_or_default()
}

fn clocks() -> (Duration, Duration) {
    // In this order: what passes between the two looks like less sleep, never like more.
    let boot = read_clock(ClockId::Boottime);
    (boot, read_clock(ClockId::Monotonic))
}

/// A timer that never fires, and is cancelled when the system's clock is set or the host wakes up.
fn clock_alarm() -> io::Result<Watched<OwnedFd>> {
    let timer = timerfd_create(TimerfdClockId::Realtime, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
    arm(&timer)?;
    Watched::new(timer)
}

fn arm(timer: &OwnedFd) -> io::Result<()> {
    let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
    let never = Itimerspec { it_interval: zero, it_value: Timespec { tv_sec: i64::MAX, tv_nsec: 0 } };
    let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
    timerfd_settime(timer, flags, &never)?;
    Ok(())
}

/// When to look at the host.
#[derive(Clone, Copy, Debug, Default)]
struct Looks {
    next: Option<Instant>,
    last: Option<Instant>,
}

impl Looks {
    fn by(&mut self, at: Instant) {
        self.next = Some(self.next.map_or(at, |next| next.min(at)));
    }

    /// Something has changed.
    fn heard(&mut self, now: Instant) {
        self.by(self.last.map_or(now, |last| now.max(last + PACE)));
    }

    /// Something has failed.
    fn failed(&mut self, now: Instant) {
        self.by(now + ASK_AGAIN);
    }

    /// Whether it is time for one, which counts as that.
    fn take(&mut self, now: Instant) -> bool {
        let is_due = self.next.is_some_and(|next| next <= now);
        if is_due {
            (self.next, self.last) = (None, Some(now));
        }
        is_due
    }
}

/// What happened to this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostNews {
    /// How it is now, where what members could be reached by is not as it was.
    pub changed: Option<HostView>,
    /// How long it slept.
    pub slept: Option<Duration>,
}

/// Something with a descriptor that the runtime waits for. The runtime's own type for that asks for unsafe code; another name of the same
/// descriptor, which counts as a socket, does as well.
struct Watched<T> {
    inner: T,
    watched: UnixDatagram,
}

impl<T: AsFd> Watched<T> {
    fn new(inner: T) -> io::Result<Self> {
        let watched = UnixDatagram::from_std(StdUnixDatagram::from(inner.as_fd().try_clone_to_owned()?))?;
        Ok(Self { inner, watched })
    }

    async fn readable(&self) -> io::Result<()> {
        self.watched.readable().await
    }

    fn try_io<R>(&mut self, act: impl FnOnce(&mut T) -> io::Result<R>) -> io::Result<R> {
        let Self { inner, watched } = self;
        watched.try_io(Interest::READABLE, || act(inner))
    }
}

/// Hears of what changes.
pub struct HostWatch {
    changes: Option<Watched<Changes>>,
    netlink: Option<Netlink>,
    alarm: Option<Watched<OwnedFd>>,
    sleep: SleepWatch,
    tun: String,
    view: HostView,
    looks: Looks,
}

impl HostWatch {
    /// Opens what it needs. What cannot be had is done without, and said: the node runs, and notices changes later.
    pub fn open(tun: &str) -> Self {
        let said = |what: &str, error: String| tracing::warn!("{what}: {error}; changes of this host are noticed late");
        let alarm = clock_alarm().map_err(|error| error.to_string());
        let (boot, mono) = clocks();
        let mut watch = Self {
            changes: None,
            netlink: None,
            alarm: alarm.map_err(|error| said("cannot watch the clock", error)).ok(),
            sleep: SleepWatch::new(boot, mono),
            tun: tun.to_owned(),
            view: HostView::default(),
            looks: Looks::default(),
        };
        match watch.look() {
            Ok(view) => watch.view = view,
            Err(error) => {
                said("cannot look at this host's addresses", error);
                watch.looks.failed(Instant::now());
            }
        }
        watch
    }

    /// How this host is, as it was looked at last.
    pub const fn view(&self) -> &HostView {
        &self.view
    }

    /// When [`Self::news`] is wanted although nothing has happened.
    pub const fn next_deadline(&self) -> Option<Instant> {
        self.looks.next
    }

    /// Waits until something happens.
    ///
    /// # Errors
    /// When the runtime cannot wait.
    pub async fn happened(&self) -> io::Result<()> {
        let changes = async {
            match &self.changes {
                Some(changes) => changes.readable().await,
                None => std::future::pending().await,
            }
        };
        let alarm = async {
            match &self.alarm {
                Some(alarm) => alarm.readable().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            happened = changes => happened,
            happened = alarm => happened,
        }
    }

    /// What happened since the last time.
    pub fn news(&mut self, now: Instant) -> HostNews {
        match self.hear() {
            Ok(true) => self.looks.heard(now),
            Ok(false) => {}
            Err(error) => {
                tracing::warn!("changes of addresses are not heard: {error}; they are listened to anew");
                self.changes = None;
                self.looks.failed(now);
            }
        }
        self.hear_alarm();
        let (boot, mono) = clocks();
        let slept = self.sleep.look(boot, mono);
        let changed = if self.looks.take(now) { self.look_again(now) } else { None };
        HostNews { changed, slept }
    }

    /// How this host is now, where that makes a difference.
    fn look_again(&mut self, now: Instant) -> Option<HostView> {
        match self.look() {
            Ok(view) => {
                let before = std::mem::replace(&mut self.view, view);
                (!before.reaching().eq(self.view.reaching())).then(|| self.view.clone())
            }
            Err(error) => {
                tracing::debug!("cannot look at this host's addresses: {error}");
                self.looks.failed(now);
                None
            }
        }
    }

    /// Takes what netlink has told; whether that was anything.
    fn hear(&mut self) -> io::Result<bool> {
        let Some(changes) = &mut self.changes else { return Ok(false) };
        for number in 0..CHANGES_BUDGET {
            let polled = changes.try_io(|changes| match changes.poll_event() {
                Ok(Some(_)) => Ok(()),
                Ok(None) => Err(io::ErrorKind::WouldBlock.into()),
                Err(error) => Err(io::Error::other(error)),
            });
            match polled {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(number > 0),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn hear_alarm(&mut self) {
        let Some(alarm) = &mut self.alarm else { return };
        let mut buffer = [0; 8];
        let read = alarm.try_io(|alarm| rustix::io::read(&*alarm, &mut buffer).map_err(io::Error::from));
        // ECANCELED: the clock was set, or the host woke up.
        if read.is_err_and(|error| error.kind() != io::ErrorKind::WouldBlock) && arm(&alarm.inner).is_err() {
            self.alarm = None;
        }
    }

    /// Looks at all addresses, by sockets that are opened where there are none. It listens first: what changes later is heard.
    fn look(&mut self) -> Result<HostView, String> {
        if self.changes.is_none() {
            let socket = Changes::subscribe_to_addresses().map_err(|error| error.to_string())?;
            self.changes = Some(Watched::new(socket).map_err(|error| error.to_string())?);
        }
        let mut netlink = match self.netlink.take() {
            Some(netlink) => netlink,
            None => Netlink::open().map_err(|error| error.to_string())?,
        };
        let view = ask(&mut netlink, &self.tun).map_err(|error| error.to_string())?;
        // One that failed is not asked again.
        self.netlink = Some(netlink);
        Ok(view)
    }
}

fn ask(netlink: &mut Netlink, tun: &str) -> Result<HostView, NetlinkError> {
    let (interfaces, addresses) = (netlink.interfaces()?, netlink.addresses()?);
    let mut by_interface: BTreeMap<String, Vec<HostAddress>> = BTreeMap::new();
    for interface in interfaces.into_iter().filter(|it| it.running && it.name != tun) {
        let of = addresses.iter().filter(|address| address.link == interface.index);
        let mut of: Vec<HostAddress> = of.copied().collect();
        of.sort_unstable();
        by_interface.insert(interface.name, of);
    }
    Ok(HostView { by_interface })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    impl HostView {
        /// One with these addresses of one interface.
        pub(crate) fn with(interface: &str, addresses: &[&str]) -> Self {
            view(&[(interface, addresses)])
        }
    }

    fn view(interfaces: &[(&str, &[&str])]) -> HostView {
        let of = |(at, (name, addresses)): (usize, &(&str, &[&str]))| {
            let address = |text: &&str| HostAddress { link: at as u32, address: text.parse().unwrap() };
            ((*name).to_owned(), addresses.iter().map(address).collect())
        };
        HostView { by_interface: interfaces.iter().enumerate().map(of).collect() }
    }

    #[test]
    fn sleep_is_told_once_and_only_where_one_clock_stood() {
        let mut watch = SleepWatch::new(secs(100), secs(90));
        assert_eq!(watch.look(secs(5000), secs(4990)), None, "time passes");
        assert_eq!(watch.look(secs(5601), secs(4991)), Some(secs(600)));
        assert_eq!(watch.look(secs(5602), secs(4992)), None);
        assert_eq!(watch.look(secs(5603), secs(4992)), Some(SLEPT_MIN));
        assert_eq!(watch.look(secs(5604) - Duration::from_millis(1), secs(4992)), None, "less than the least");
        assert_eq!(watch.look(secs(5604), secs(5604)), None, "it never wakes before it sleeps");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_watch_has_all_that_it_needs_and_sees_the_loopback_and_no_sleep() {
        let mut watch = HostWatch::open("weir0");
        assert!(watch.changes.is_some() && watch.netlink.is_some() && watch.alarm.is_some());
        assert_eq!(watch.news(Instant::now()).slept, None);
        assert!(watch.view().is_on_link("127.0.0.1".parse().unwrap(), &["lo".to_owned()]));
        assert!(!HostWatch::open("lo").view().is_on_link("127.0.0.1".parse().unwrap(), &["lo".to_owned()]));
        assert_eq!((watch.next_deadline(), watch.news(Instant::now()).changed), (None, None));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_watch_whose_sockets_failed_listens_anew_and_sees_what_changed_meanwhile() {
        let (mut watch, now) = (HostWatch::open("weir0"), Instant::now());
        (watch.changes, watch.netlink) = (None, None);
        watch.looks.failed(now);
        watch.view = view(&[("gone", &["192.0.2.1/24"])]);
        assert_eq!(watch.next_deadline(), Some(now + ASK_AGAIN));
        assert_eq!(watch.news(now + ASK_AGAIN - Duration::from_millis(1)).changed, None, "it is not time");
        let changed = watch.news(now + ASK_AGAIN).changed.expect("a change");
        assert!(changed.has("lo") && !changed.has("gone") && changed == *watch.view(), "{changed:?}");
        assert!(watch.changes.is_some() && watch.netlink.is_some());
        assert_eq!((watch.next_deadline(), watch.news(now + 2 * ASK_AGAIN).changed), (None, None));
    }

    #[test]
    fn looks_come_at_a_pace_and_after_a_failure_later() {
        let (mut looks, start) = (Looks::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        assert!(!looks.take(at(0)));
        looks.heard(at(0));
        assert!(looks.take(at(0)) && !looks.take(at(0)));
        looks.heard(at(100));
        looks.heard(at(200));
        assert_eq!((looks.next, looks.take(at(249)), looks.take(at(250))), (Some(at(250)), false, true));
        looks.failed(at(300));
        assert_eq!((looks.next, looks.take(at(5299))), (Some(at(5300)), false));
        looks.heard(at(5299));
        assert!(looks.take(at(5299)), "a change is looked at once");
    }

    /// Each container brings an interface, with an address that is good on its link alone.
    #[test]
    fn what_is_good_on_one_link_only_is_no_news() {
        let before = view(&[("wan", &["192.0.2.1/24", "fe80::1/64"]), ("lo", &["127.0.0.1/8", "::1/128"])]);
        let is_news = |interfaces: &[(&str, &[&str])]| !before.reaching().eq(view(interfaces).reaching());
        let wan: (&str, &[&str]) = ("wan", &["192.0.2.1/24"]);
        assert!(!is_news(&[wan]));
        assert!(!is_news(&[wan, ("veth", &["fe80::2/64", "169.254.1.1/16"]), ("bare", &[])]));
        assert!(is_news(&[]) && is_news(&[wan, ("lan", &["10.0.0.1/24"])]));
        assert!(is_news(&[("wan", &["192.0.2.2/24"])]) && is_news(&[("lan", &["192.0.2.1/24"])]));
    }

    #[test]
    fn only_what_is_on_the_chosen_network_is_on_link() {
        let view = view(&[("lan", &["10.1.0.1/24", "fd00:1::1/64"]), ("wan", &["192.0.2.1/24"])]);
        let lan = ["lan".to_owned(), "other".to_owned()];
        let on_link = |ip: &str| view.is_on_link(ip.parse().unwrap(), &lan);
        let asked = ["10.1.0.200", "fd00:1::9", "10.1.1.1", "192.0.2.2", "fd00:2::1", "8.8.8.8"];
        assert_eq!(asked.map(on_link), [true, true, false, false, false, false]);
        assert_eq!(view.only(&lan), self::view(&[("lan", &["10.1.0.1/24", "fd00:1::1/64"])]));
        assert!(!HostView::default().is_on_link("10.1.0.1".parse().unwrap(), &lan));
    }

    #[test]
    fn private_addresses_are_advertised_by_nobody() {
        let all = [
            "10.0.0.1/8",
            "172.16.0.1/12",
            "192.168.1.1/16",
            "100.64.0.1/10",
            "169.254.1.1/16",
            "127.0.0.1/8",
            "fd00::1/8",
            "fe80::1/64",
            "::1/128",
            "198.51.100.7/24",
            "100.128.0.1/24",
            "2001:db8::7/64",
        ];
        let view = view(&[("wan", &all), ("lan", &["203.0.113.1/24"])]);
        let public: Vec<SocketAddr> = view.public_endpoints("wan", 4646);
        let expected = ["198.51.100.7:4646", "100.128.0.1:4646", "[2001:db8::7]:4646"].map(|it| it.parse().unwrap());
        assert_eq!(public, expected);
        assert_eq!(view.public_endpoints("none", 1), []);
    }
}
