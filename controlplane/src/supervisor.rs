//! `weir run`: starts the processes of a node, starts them again when they end, and ends them in order.
//!
//! ```text
//!                weir run (root, reads nothing from any network)
//!        ┌───────────────────────┼──────────────────────────┐
//!   weir-dataplane         weir control                weir issuer         only where this node issues
//!   capabilities only      parses what comes           holds the signing key, has no network
//!                                ·
//!                           weir mdns                   only where the configuration names interfaces for it
//!        ▲                       │  stdin: orders, a frame each
//!        └── started with the configuration that the control plane asks for
//! ```
//!
//! The control plane knows what the packet plane must be started with, once this node is a member. It says so over the socket that is its
//! standard input, and the supervisor writes the file and starts the process. Nothing else is ordered that way.
//!
//! No process outlives its supervisor: each is told whose child it is, and has the kernel end it with that (`--parent`; `io/parent.rs` of
//! the packet plane). `docs/decisions/0014-nothing-outlives-the-supervisor.md` says why.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::timeout_at;

use crate::config::Config;
use crate::shell::frame;
use crate::state_directory::{StateDirectory, StateError};

/// First wait before a process that ended is started again. Forwarding should be back within a second.
const RESTART_MIN: Duration = Duration::from_millis(50);
/// Longest wait.
const RESTART_MAX: Duration = Duration::from_secs(30);
/// A process that ran so long did not fail at its start.
const SETTLED: Duration = Duration::from_secs(10);
/// How long a process has to end by itself before it is killed.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// Orders that wait. The control plane sends one when its membership changes.
const ORDERS_MAX: usize = 8;

/// Longest order: a configuration with thousands of prefixes.
pub const ORDER_LEN_MAX: usize = 1 << 20;

/// What the control plane may order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// Run the packet plane with this configuration. The same again changes nothing.
    Plane {
        /// TOML.
        config: String,
    },
    /// Run none: this node is no member any more.
    NoPlane,
}

/// Why the supervisor cannot run.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// What the node keeps.
    #[error(transparent)]
    State(#[from] StateError),
    /// A directory or a file.
    #[error("{doing} {path}: {error}")]
    Path {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// A process.
    #[error("cannot start {program}: {error}; is it installed beside weir, or does node.packet_plane name it?")]
    Start {
        /// Which.
        program: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Anything else of the system.
    #[error("{doing}: {error}")]
    System {
        /// What was tried.
        doing: &'static str,
        /// What the system said.
        error: io::Error,
    },
}

/// When to start a process again, from how long it ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct BackOff {
    failures: u32,
}

impl BackOff {
    /// It ended after this time.
    fn ended(&mut self, after: Duration) -> Duration {
        self.failures = if after >= SETTLED { 0 } else { self.failures.saturating_add(1) };
        RESTART_MIN.saturating_mul(1 << self.failures.saturating_sub(1).min(16)).min(RESTART_MAX)
    }
}

/// A process of ours.
struct Process {
    name: &'static str,
    child: Option<Child>,
    started: Instant,
    back_off: BackOff,
    /// When to start it again; `None` while it runs, or while it shall not.
    start_at: Option<Instant>,
}

impl Process {
    fn new(name: &'static str) -> Self {
        Self { name, child: None, started: Instant::now(), back_off: BackOff::default(), start_at: None }
    }

    fn started(&mut self, child: Child) {
        tracing::info!(process = self.name, pid = child.id(), "started");
        (self.child, self.started, self.start_at) = (Some(child), Instant::now(), None);
    }

    fn ended(&mut self, status: io::Result<ExitStatus>) {
        let wait = self.back_off.ended(self.started.elapsed());
        let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
        tracing::warn!(process = self.name, status, again_in_ms = wait.as_millis() as u64, "ended");
        (self.child, self.start_at) = (None, Some(Instant::now() + wait));
    }

    async fn wait(&mut self) -> io::Result<ExitStatus> {
        match &mut self.child {
            Some(child) => child.wait().await,
            None => std::future::pending().await,
        }
    }

    /// Asks it to end, and ends it when it does not.
    async fn stop(&mut self) {
        self.start_at = None;
        let Some(mut child) = self.child.take() else { return };
        if let Some(pid) = child.id().and_then(|pid| rustix::process::Pid::from_raw(pid.cast_signed())) {
            // It may have ended a moment ago; then there is nobody to ask.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let deadline = tokio::time::Instant::now() + STOP_PATIENCE;
        if timeout_at(deadline, child.wait()).await.is_err() {
            tracing::warn!(process = self.name, "does not end by itself; killed");
            // Nothing more can be done about one that cannot be killed.
            let _ = child.kill().await;
        }
        tracing::info!(process = self.name, "stopped");
    }
}

/// What `weir run` needs to know.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The configuration.
    pub config: Config,
    /// Arguments that lead our own program to the same configuration.
    pub arguments: Vec<OsString>,
    /// Our own program.
    pub program: PathBuf,
}

impl Setup {
    fn plane_config(&self) -> PathBuf {
        self.config.node.runtime_directory.join("dataplane.toml")
    }

    fn plane_program(&self) -> PathBuf {
        let beside = || self.program.parent().unwrap_or(Path::new("")).join("weir-dataplane");
        self.config.node.packet_plane.clone().unwrap_or_else(beside)
    }
}

struct Supervisor {
    setup: Setup,
    control: Process,
    plane: Process,
    issuer: Process,
    mdns: Process,
    orders: Option<mpsc::Receiver<Order>>,
    /// What the packet plane is to run with.
    plane_config: Option<String>,
}

/// Which of the processes.
#[derive(Clone, Copy, Debug)]
enum Part {
    Control,
    Plane,
    Issuer,
    Mdns,
}

impl Part {
    const ALL: [Self; 4] = [Self::Control, Self::Plane, Self::Issuer, Self::Mdns];
}

/// What woke the supervisor.
enum Wake {
    Stop,
    Ended(Part, io::Result<ExitStatus>),
    Order(Order),
    Time,
}

/// Runs until a signal says to stop.
///
/// # Errors
/// [`SupervisorError`] when it cannot begin; later failures are logged and tried again.
pub async fn run(setup: Setup) -> Result<(), SupervisorError> {
    let state = StateDirectory::open(&setup.config.node.state_directory)?;
    make_directory(&setup.config.node.runtime_directory, 0o755)?;
    let system = |doing| move |error| SupervisorError::System { doing, error };
    let mut terminate = signal(SignalKind::terminate()).map_err(system("installing a signal handler"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system("installing a signal handler"))?;
    let mut supervisor = Supervisor {
        setup,
        control: Process::new("control"),
        plane: Process::new("packet plane"),
        issuer: Process::new("issuer"),
        mdns: Process::new("mDNS"),
        orders: None,
        plane_config: None,
    };
    supervisor.start_control()?;
    if state.has_issuer_key()? {
        supervisor.start_child(Part::Issuer)?;
    }
    if !supervisor.setup.config.discovery.mdns_interfaces.is_empty() {
        supervisor.start_child(Part::Mdns)?;
    }
    loop {
        match supervisor.next(&mut terminate, &mut interrupt).await {
            Wake::Stop => break,
            Wake::Ended(part, status) => supervisor.process(part).ended(status),
            Wake::Order(order) => supervisor.handle_order(order).await,
            Wake::Time => {}
        }
        supervisor.start_what_is_due();
    }
    // The control plane first: it must not see the others go and act upon it.
    supervisor.control.stop().await;
    supervisor.mdns.stop().await;
    supervisor.issuer.stop().await;
    supervisor.plane.stop().await;
    Ok(())
}

impl Supervisor {
    fn process(&mut self, part: Part) -> &mut Process {
        match part {
            Part::Control => &mut self.control,
            Part::Plane => &mut self.plane,
            Part::Issuer => &mut self.issuer,
            Part::Mdns => &mut self.mdns,
        }
    }

    async fn next(&mut self, terminate: &mut Signal, interrupt: &mut Signal) -> Wake {
        let deadlines = Part::ALL.map(|part| self.process(part).start_at);
        let deadline = deadlines.into_iter().flatten().min();
        let Self { control, plane, issuer, mdns, orders, .. } = self;
        let wake = async {
            tokio::select! {
                _ = terminate.recv() => Wake::Stop,
                _ = interrupt.recv() => Wake::Stop,
                status = control.wait() => Wake::Ended(Part::Control, status),
                status = plane.wait() => Wake::Ended(Part::Plane, status),
                status = issuer.wait() => Wake::Ended(Part::Issuer, status),
                status = mdns.wait() => Wake::Ended(Part::Mdns, status),
                order = next_order(orders) => Wake::Order(order),
            }
        };
        match deadline {
            Some(deadline) => timeout_at(deadline.into(), wake).await.unwrap_or(Wake::Time),
            None => wake.await,
        }
    }

    fn start_control(&mut self) -> Result<(), SupervisorError> {
        let system = |error| SupervisorError::System { doing: "making a socket pair for the control plane", error };
        let (ours, theirs) = StdUnixStream::pair().map_err(system)?;
        ours.set_nonblocking(true).map_err(system)?;
        let program = self.setup.program.clone();
        let mut command = Command::new(&program);
        command.args(&self.setup.arguments).arg("control").args(parent());
        command.stdin(Stdio::from(OwnedFd::from(theirs)));
        let child = command.spawn().map_err(|error| SupervisorError::Start { program, error })?;
        let (to, orders) = mpsc::channel(ORDERS_MAX);
        tokio::spawn(read_orders(UnixStream::from_std(ours).map_err(system)?, to));
        self.orders = Some(orders);
        self.control.started(child);
        Ok(())
    }

    /// Starts one of our own that is ordered nothing.
    fn start_child(&mut self, part: Part) -> Result<(), SupervisorError> {
        let name = match part {
            Part::Issuer => "issuer",
            Part::Mdns => "mdns",
            Part::Control => return self.start_control(),
            Part::Plane => return self.start_plane(),
        };
        let program = self.setup.program.clone();
        let mut command = Command::new(&program);
        command.args(&self.setup.arguments).arg(name).args(parent()).stdin(Stdio::null());
        let child = command.spawn().map_err(|error| SupervisorError::Start { program, error })?;
        self.process(part).started(child);
        Ok(())
    }

    fn start_plane(&mut self) -> Result<(), SupervisorError> {
        let program = self.setup.plane_program();
        let mut command = Command::new(&program);
        command.arg("run").arg("--config").arg(self.setup.plane_config()).args(parent()).stdin(Stdio::null());
        let child = command.spawn().map_err(|error| SupervisorError::Start { program, error })?;
        self.plane.started(child);
        Ok(())
    }

    fn start_what_is_due(&mut self) {
        let now = Instant::now();
        for part in Part::ALL {
            if self.process(part).start_at.is_some_and(|at| at <= now) {
                self.start_or_later(part);
            }
        }
    }

    /// Starts a process, or says why it does not start and tries again later.
    fn start_or_later(&mut self, part: Part) {
        if let Err(error) = self.start_child(part) {
            tracing::error!("{error}");
            let process = self.process(part);
            process.start_at = Some(Instant::now() + process.back_off.ended(Duration::ZERO));
        }
    }

    async fn handle_order(&mut self, order: Order) {
        match order {
            Order::Plane { config } => self.want_plane(config).await,
            Order::NoPlane => {
                self.plane_config = None;
                self.plane.stop().await;
            }
        }
    }

    /// Runs the packet plane with this configuration. One that runs with it already is left alone: packets go on.
    async fn want_plane(&mut self, config: String) {
        if self.plane_config.as_ref() == Some(&config) {
            return;
        }
        let path = self.setup.plane_config();
        if let Err(error) = write_private(&path, &config) {
            tracing::error!("cannot write {}: {error}", path.display());
            return;
        }
        self.plane.stop().await;
        self.plane_config = Some(config);
        self.start_or_later(Part::Plane);
    }
}

/// Reads orders until the control plane is gone. In a task of its own, since half a message must not be lost when something else wakes us.
async fn read_orders(mut from: UnixStream, to: mpsc::Sender<Order>) {
    loop {
        match frame::receive::<Order>(&mut from, ORDER_LEN_MAX).await {
            Ok(Some(order)) => {
                if to.send(order).await.is_err() {
                    return;
                }
            }
            // That it ended comes by itself.
            Ok(None) => return,
            Err(error) => return tracing::error!("an order of the control plane is not understood: {error}"),
        }
    }
}

async fn next_order(orders: &mut Option<mpsc::Receiver<Order>>) -> Order {
    loop {
        match orders {
            Some(receiver) => match receiver.recv().await {
                Some(order) => return order,
                None => *orders = None,
            },
            None => std::future::pending().await,
        }
    }
}

/// Tells a child with whom it is to end. The kernel means the thread that starts it: this process has one.
fn parent() -> [OsString; 2] {
    ["--parent".into(), std::process::id().to_string().into()]
}

fn make_directory(path: &Path, mode: u32) -> Result<(), SupervisorError> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(mode).create(path);
    made.map_err(|error| SupervisorError::Path { doing: "cannot make the directory", path: path.to_owned(), error })
}

/// Writes a file that only we may read, whole or not at all.
fn write_private(path: &Path, text: &str) -> io::Result<()> {
    use std::io::Write as _;
    let beside = path.with_extension("new");
    let mut file = std::fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_ran_is_started_at_once_and_one_that_fails_ever_later() {
        let mut back_off = BackOff::default();
        assert_eq!(back_off.ended(SETTLED), RESTART_MIN);
        let waits: Vec<Duration> = (0..12).map(|_| back_off.ended(Duration::ZERO)).collect();
        assert_eq!((waits[0], waits[1], waits[2]), (RESTART_MIN, 2 * RESTART_MIN, 4 * RESTART_MIN));
        assert_eq!(waits[11], RESTART_MAX);
        assert_eq!(back_off.ended(SETTLED), RESTART_MIN);
    }

    #[test]
    fn a_configuration_is_written_whole_and_for_us_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = std::env::temp_dir().join(format!("weir-supervisor-{}", std::process::id()));
        make_directory(&directory, 0o700).unwrap();
        let path = directory.join("dataplane.toml");
        write_private(&path, "first, and longer").unwrap();
        write_private(&path, "second").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "second");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
