//! The whole of Weir on one gateway of a mesh: `weir run` with its processes, and `weir` as a person calls it.
//!
//! Configuration, state, sockets and log live in a directory of its own, and so do the programs, where they are to be replaced. A [`Member`]
//! owns its supervisor by id and finds the other processes as the supervisor's children; dropping it stops them all.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use weir_controlplane::api::Call;
use weir_controlplane::api::client::{self, ClientError};
use weir_controlplane::config::{Config, Instance};
use weir_controlplane::pki::id::KeyId;
use weir_controlplane::pki::key::PrivateKey;
use weir_dataplane::api::Client;
use weir_dataplane::api::message::NamedCount;

use crate::rig::mesh::Site;
use crate::sys::signal;
use crate::{Error, Result};

/// How long a start, a join or a stop may take on a slow machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often what is waited for is looked at.
const POLL: Duration = Duration::from_millis(10);

/// One of the processes of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Parses what comes from the network.
    Control,
    /// Carries packets.
    Plane,
    /// Signs certificates.
    Issuer,
    /// Speaks multicast DNS, where it is configured.
    Mdns,
}

impl Part {
    /// Words of its command line.
    fn marks(self) -> (&'static str, &'static str) {
        match self {
            Self::Control => ("weir", "control"),
            Self::Plane => ("weir-dataplane", "run"),
            Self::Issuer => ("weir", "issuer"),
            Self::Mdns => ("weir", "mdns"),
        }
    }
}

/// How one of the processes of a node is made to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// SIGKILL, as the kernel does when memory is short.
    Kill,
    /// SIGTERM, as a person does.
    Stop,
}

/// What opens the roots and the backups of a network of the bench.
pub const PASSPHRASE: &str = "correct horse battery staple";

/// What a node counts of data for keys that it has not got, each datagram under one of them: `wan` drops it or lets one of many through to a
/// control socket, and the engine drops what found its lane gone.
pub const NO_KEYS: [&str; 3] = ["wan_unknown_index", "wan_miss_sampled", "unknown_index"];

/// The programs of a node.
const PROGRAMS: [&str; 2] = ["weir", "weir-dataplane"];

/// A node on a gateway of a mesh.
pub struct Member<'a> {
    site: &'a Site,
    directory: PathBuf,
    /// Where its programs are, when they are its own.
    programs: Option<PathBuf>,
    /// How much its processes say, when that is not what they say by themselves.
    log_level: Option<&'static str>,
    supervisor: Option<Child>,
}

fn program(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().map_err(Error::io("cannot find this program"))?;
    // Tests lie one folder below the programs.
    let beside = own.ancestors().skip(1).take(2).map(|folder| folder.join(name)).find(|path| path.exists());
    beside.ok_or_else(|| Error::Broken {
        what: format!("finding {name}"),
        detail: "build it first: cargo build -p weir-controlplane -p weir-dataplane".to_owned(),
    })
}

impl<'a> Member<'a> {
    /// Makes the directory and the configuration of a node. Nothing runs yet.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn new(site: &'a Site, settings: &str) -> Result<Self> {
        Self::of_instance(site, &Instance::default(), settings)
    }

    /// The same for a node beside others on its gateway. What the kernel knows it by follows from the instance.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn of_instance(site: &'a Site, instance: &Instance, settings: &str) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{}-{}", site.gateway.name(), NEXT.fetch_add(1, Ordering::Relaxed));
        let directory = std::env::temp_dir().join(name);
        fs::create_dir_all(&directory).map_err(Error::io(format!("cannot make {}", directory.display())))?;
        let member = Self { site, directory, programs: None, log_level: None, supervisor: None };
        let shown = member.directory.display();
        let (wan, port) = (site.wan(), Config::of_instance(instance).wan.port);
        let text = format!(
            "[node]\ninstance = \"{instance}\"\nstate_directory = \"{shown}/state\"\nruntime_directory = \"{shown}/run\"\n\
             [wan]\ninterface = \"wan\"\nadvertise = [\"{wan}:{port}\"]\n\
             [lan]\ninterfaces = [\"lan\"]\n[api]\nsocket = \"{shown}/run/api.sock\"\nread = []\n{settings}"
        );
        fs::write(member.config_file(), text).map_err(Error::io("cannot write the configuration of a node"))?;
        Ok(member)
    }

    /// Gives the node programs of its own, so that [`Self::upgrade`] can replace them. Before it runs.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Broken`] when they are not built.
    pub fn install(&mut self) -> Result<()> {
        let folder = self.directory.join("bin");
        fs::create_dir_all(&folder).map_err(Error::io(format!("cannot make {}", folder.display())))?;
        for name in PROGRAMS {
            fs::copy(program(name)?, folder.join(name)).map_err(Error::io(format!("cannot copy {name}")))?;
        }
        self.programs = Some(folder);
        Ok(())
    }

    /// Puts another build in place of one of the programs, as a package manager does: whoever runs the old one goes on with it, and who
    /// starts next gets the new one. It differs by a byte behind what the kernel loads.
    ///
    /// # Errors
    /// [`Error::Io`].
    ///
    /// # Panics
    /// When the node has no programs of its own.
    pub fn upgrade(&self, part: Part) -> Result<()> {
        let installed = self.programs.as_ref().expect("it was installed").join(part.marks().0);
        let new = installed.with_extension("new");
        let io = || Error::io(format!("cannot replace {}", installed.display()));
        fs::copy(&installed, &new).map_err(io())?;
        let appended = File::options().append(true).open(&new).and_then(|mut file| file.write_all(b"\n"));
        appended.map_err(io())?;
        fs::rename(&new, &installed).map_err(io())
    }

    /// Whether one of the processes runs what is on disk now.
    pub fn is_current(&self, part: Part) -> bool {
        let file = |path: PathBuf| fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
        let name = part.marks().0;
        let on_disk = self.programs.as_ref().map_or_else(|| program(name).ok(), |folder| Some(folder.join(name)));
        let running = self.pid(part).and_then(|pid| file(PathBuf::from(format!("/proc/{pid}/exe"))));
        running.is_some() && running == on_disk.and_then(file)
    }

    /// Has its processes say so much, by the words of `WEIR_LOG`. Before it runs.
    pub fn log_at(&mut self, level: &'static str) {
        self.log_level = Some(level);
    }

    /// The site that it is on.
    pub fn site(&self) -> &'a Site {
        self.site
    }

    /// Its directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn config_file(&self) -> PathBuf {
        self.directory.join("weir.toml")
    }

    fn log_file(&self) -> PathBuf {
        self.directory.join("log")
    }

    /// What its processes said.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    fn command(&self) -> Result<Command> {
        let program = self.programs.as_ref().map_or_else(|| program("weir"), |folder| Ok(folder.join("weir")))?;
        let mut command = self.site.gateway.command(&program.to_string_lossy());
        command.arg("--config").arg(self.config_file());
        Ok(command)
    }

    /// Calls `weir` with these arguments, as a person would, with `--json`.
    ///
    /// # Errors
    /// [`Error::Broken`] with what it said when it fails or prints no JSON.
    pub fn weir(&self, arguments: &[&str]) -> Result<Value> {
        let output = self.output(arguments)?;
        let what = || format!("weir {} on g{}", arguments.join(" "), self.site.number);
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(Error::Broken { what: what(), detail: said });
        }
        serde_json::from_slice(&output.stdout).map_err(|error| Error::Broken {
            what: what(),
            detail: format!("{error}: {}", String::from_utf8_lossy(&output.stdout)),
        })
    }

    /// The same as a person reads it.
    ///
    /// # Errors
    /// As [`Self::weir`].
    pub fn text(&self, arguments: &[&str]) -> Result<String> {
        let output = self.plain(arguments)?;
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            false => Err(Error::Broken {
                what: format!("weir {} on g{}", arguments.join(" "), self.site.number),
                detail: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            }),
        }
    }

    /// The same, whatever comes of it, with what is written beside.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be started.
    pub fn plain(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = self.command()?;
        command.args(arguments).stdin(Stdio::null()).output().map_err(Error::io("cannot start weir"))
    }

    /// The same as JSON, whatever comes of it.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be started.
    pub fn output(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = self.command()?;
        command.arg("--json").args(arguments).stdin(Stdio::null());
        command.output().map_err(Error::io("cannot start weir"))
    }

    /// Starts `weir` with these arguments, and its input and output as they are given: for what is no JSON, or goes on for a while.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be started.
    pub fn spawn(&self, arguments: &[&str], input: Stdio, output: Stdio) -> Result<Child> {
        let mut command = self.command()?;
        command.args(arguments).stdin(input).stdout(output).stderr(Stdio::piped());
        signal::end_with_parent(&mut command);
        command.spawn().map_err(Error::io("cannot start weir"))
    }

    /// Asks its control plane without a process between: what a measurement looks at often takes no core from what it measures.
    ///
    /// # Errors
    /// [`Error::Broken`] with what it said, or that it did not answer.
    pub fn ask(&self, call: &Call) -> Result<Value> {
        let failed = |error: ClientError| Error::Broken {
            what: format!("asking g{}", self.site.number),
            detail: error.to_string(),
        };
        self.call(call)?.map_err(failed)
    }

    /// The same, whatever comes of it.
    ///
    /// # Errors
    /// [`Error::Io`] when there is nothing to ask with.
    pub fn call(&self, call: &Call) -> Result<std::result::Result<Value, ClientError>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(Error::io("cannot start a runtime"))?;
        Ok(runtime.block_on(client::call(&self.directory.join("run").join("api.sock"), call)))
    }

    /// A file with [`PASSPHRASE`] in it that nobody else may read.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn passphrase_file(&self) -> Result<String> {
        let path = self.directory.join("passphrase");
        let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&path);
        let written = file.and_then(|mut file| writeln!(file, "{PASSPHRASE}"));
        written.map_err(Error::io("cannot write a passphrase"))?;
        Ok(path.display().to_string())
    }

    /// Founds a network here.
    ///
    /// # Errors
    /// As [`Self::weir`].
    pub fn found(&self, network: &str) -> Result<Value> {
        let (roots, passphrase) = (self.roots().display().to_string(), self.passphrase_file()?);
        let name = format!("site-{}", self.site.number);
        let subnet = self.site.subnet();
        self.weir(&[
            "init",
            network,
            "--name",
            &name,
            "--subnet",
            &subnet,
            "--pool",
            "10.0.0.0/8",
            "--pool",
            "fd00::/8",
            "--roots",
            &roots,
            "--passphrase-file-a",
            &passphrase,
            "--passphrase-file-b",
            &passphrase,
        ])
    }

    fn roots(&self) -> PathBuf {
        self.directory.join("roots")
    }

    /// Makes a ceremony with a root of the network that was founded here, `a` or `b`, as `ca renew-issuer --issuer …`: on the newest trust
    /// bundle, which it changes. The bundle's file, for `weir ca publish`.
    ///
    /// # Errors
    /// As [`Self::weir`].
    pub fn ceremony(&self, root: &str, arguments: &[&str]) -> Result<String> {
        let bundle = self.directory.join("bundle").display().to_string();
        self.weir(&["ca", "bundle", &bundle])?;
        let (root, passphrase) = (self.root_file(root).display().to_string(), self.passphrase_file()?);
        let all = ["--root", &root, "--passphrase-file", &passphrase, "--bundle", &bundle];
        self.weir(&[&["ca"], arguments, &all].concat())?;
        Ok(bundle)
    }

    /// The same, with a new root in the place of one: the `goes` of `a` and `b`, by the word of the other one.
    ///
    /// # Errors
    /// As [`Self::weir`]; [`Error::Broken`] when the root that goes cannot be read.
    pub fn ceremony_of_another_root(&self, goes: &str, stays: &str) -> Result<String> {
        let id = self.root_id(goes)?.to_string();
        let out = self.roots().join("root-new.pem").display().to_string();
        let passphrase = self.passphrase_file()?;
        self.ceremony(stays, &["rotate-root", "--replace", &id, "--out", &out, "--new-passphrase-file", &passphrase])
    }

    fn root_file(&self, root: &str) -> PathBuf {
        self.roots().join(format!("root-{root}.pem"))
    }

    fn root_id(&self, root: &str) -> Result<KeyId> {
        let file = self.root_file(root);
        let pem = fs::read_to_string(&file).map_err(Error::io(format!("cannot read {}", file.display())))?;
        let key = PrivateKey::from_encrypted_pem(&pem, PASSPHRASE);
        let key =
            key.map_err(|error| Error::Broken { what: format!("opening root {root}"), detail: error.to_string() })?;
        Ok(key.public().id())
    }

    /// Changes its configuration. What runs has read it already.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn reconfigure(&self, change: impl FnOnce(String) -> String) -> Result<()> {
        let (file, failed) = (self.config_file(), || Error::io("cannot change the configuration of a node"));
        let text = fs::read_to_string(&file).map_err(failed())?;
        fs::write(&file, change(text)).map_err(failed())
    }

    /// Starts `weir run` and waits until its API answers.
    ///
    /// # Errors
    /// [`Error::Broken`] with its log.
    ///
    /// # Panics
    /// When it runs already.
    pub fn run(&mut self) -> Result<()> {
        self.launch()?;
        self.wait_for("the API", |member| member.weir(&["status"]).is_ok())
    }

    /// Starts `weir run`. From a thread that lives as long as it shall: it ends with that one.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Broken`] when it is not built.
    ///
    /// # Panics
    /// When it runs already.
    pub fn launch(&mut self) -> Result<()> {
        assert!(self.supervisor.is_none(), "it runs already");
        let log = File::options().create(true).append(true).open(self.log_file());
        let log = log.map_err(Error::io("cannot make the log of a node"))?;
        let mut command = self.command()?;
        command.arg("run").stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        command.envs(self.log_level.map(|level| ("WEIR_LOG", level)));
        signal::end_with_parent(&mut command);
        self.supervisor = Some(command.spawn().map_err(Error::io("cannot start weir run"))?);
        Ok(())
    }

    /// Waits until the packet plane forwards for this node.
    ///
    /// # Errors
    /// [`Error::Broken`] with its log.
    pub fn wait_for_plane(&self) -> Result<()> {
        let runs = |status: &Value| status["plane"]["running"] == Value::Bool(true);
        self.wait_for("the packet plane", |member| member.weir(&["status"]).is_ok_and(|status| runs(&status)))
    }

    /// Waits until sessions with so many peers stand.
    ///
    /// # Errors
    /// [`Error::Broken`] with its log.
    pub fn wait_for_peers(&self, count: u64) -> Result<()> {
        self.wait_for(&format!("{count} peers"), |member| {
            member.weir(&["status"]).is_ok_and(|status| status["peers_connected"].as_u64() >= Some(count))
        })
    }

    /// Waits until something holds.
    ///
    /// # Errors
    /// [`Error::Broken`] with the log when it does not in time.
    pub fn wait_for(&self, what: &str, holds: impl Fn(&Self) -> bool) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !holds(self) {
            if Instant::now() > deadline {
                let what = format!("waiting for {what} on g{}", self.site.number);
                return Err(Error::Broken { what, detail: self.log() });
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Invites a site from here; the token.
    ///
    /// # Errors
    /// As [`Self::weir`].
    pub fn invite(&self, site: &Site) -> Result<String> {
        let (name, subnet) = (format!("site-{}", site.number), site.subnet());
        let invited = self.weir(&["invite", "--name", &name, "--subnet", &subnet])?;
        let token = invited["token"].as_str().map(str::to_owned);
        token.ok_or_else(|| Error::Broken { what: "weir invite".into(), detail: invited.to_string() })
    }

    /// The process id of one of its processes.
    pub fn pid(&self, part: Part) -> Option<u32> {
        let supervisor = self.supervisor.as_ref()?.id();
        let children = fs::read_to_string(format!("/proc/{supervisor}/task/{supervisor}/children")).ok()?;
        let (name, word) = part.marks();
        children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()).find(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let mut words = line.split(|byte| *byte == 0);
            let program = words.next().unwrap_or_default();
            program.ends_with(format!("/{name}").as_bytes()) && words.any(|arg| arg == word.as_bytes())
        })
    }

    /// A connection to its packet plane, beside that of its control plane.
    ///
    /// # Errors
    /// [`Error::Api`].
    pub fn plane(&self) -> Result<Client> {
        Client::connect(&self.plane_socket(), "weir-bench").map_err(Error::from)
    }

    /// Where its packet plane listens.
    pub fn plane_socket(&self) -> PathBuf {
        self.directory.join("run").join("plane.sock")
    }

    /// What its packet plane dropped so far, by reason: engine and programs together.
    ///
    /// # Errors
    /// [`Error::Api`].
    pub fn dropped(&self) -> Result<BTreeMap<String, u64>> {
        let counters = self.plane()?.counters()?;
        Ok(summed(counters.engine_drops.into_iter().chain(counters.bpf_drops)))
    }

    /// The same with what `wan` and `steer` did besides.
    ///
    /// # Errors
    /// [`Error::Api`].
    pub fn counted(&self) -> Result<BTreeMap<String, u64>> {
        let counters = self.plane()?.counters()?;
        Ok(summed(counters.bpf.into_iter().chain(counters.engine_drops).chain(counters.bpf_drops)))
    }

    /// Data for keys that it has not got, so far.
    ///
    /// # Errors
    /// [`Error::Api`].
    pub fn counted_without_keys(&self) -> Result<u64> {
        let counted = self.counted()?;
        Ok(NO_KEYS.iter().filter_map(|name| counted.get(*name)).sum())
    }

    /// Kills one of its processes, as the kernel does when memory is short.
    ///
    /// # Errors
    /// [`Error::Broken`] when it does not run.
    pub fn kill9(&self, part: Part) -> Result<()> {
        self.end(part, Ending::Kill).map(drop)
    }

    /// Makes one of its processes end; its process id. The supervisor starts another.
    ///
    /// # Errors
    /// [`Error::Broken`] when it does not run.
    pub fn end(&self, part: Part, ending: Ending) -> Result<u32> {
        let what = || format!("ending {part:?} of g{}", self.site.number);
        let pid = self.pid(part).ok_or_else(|| Error::Broken { what: what(), detail: "it does not run".into() })?;
        let sent = match ending {
            Ending::Kill => signal::kill9(pid),
            Ending::Stop => signal::terminate(pid),
        };
        sent.map(|()| pid).map_err(Error::io(what()))
    }

    /// Kills the supervisor alone, as the kernel does when memory is short; the processes that it had.
    ///
    /// # Errors
    /// [`Error::Broken`] when it does not run.
    pub fn kill_supervisor(&mut self) -> Result<Vec<u32>> {
        let what = || format!("killing the supervisor of g{}", self.site.number);
        let Some(mut supervisor) = self.supervisor.take() else {
            return Err(Error::Broken { what: what(), detail: "it does not run".into() });
        };
        let id = supervisor.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).map_err(Error::io(what()))?;
        supervisor.kill().and_then(|()| supervisor.wait()).map_err(Error::io(what()))?;
        Ok(children.split_whitespace().filter_map(|pid| pid.parse().ok()).collect())
    }

    /// Has the supervisor stand still: what ends now is not started again before [`Self::release`].
    ///
    /// # Errors
    /// [`Error::Broken`] when it does not run.
    pub fn hold(&self) -> Result<()> {
        self.signal_supervisor("holding", signal::hold)
    }

    /// Lets the supervisor go on.
    ///
    /// # Errors
    /// [`Error::Broken`] when it does not run.
    pub fn release(&self) -> Result<()> {
        self.signal_supervisor("releasing", signal::release)
    }

    /// Has one of its processes stand still until what is returned is dropped. A supervisor takes it for one that runs.
    ///
    /// # Errors
    /// [`Error::Broken`] when it does not run.
    pub fn hold_part(&self, part: Part) -> Result<HeldPart> {
        let what = || format!("holding {part:?} of g{}", self.site.number);
        let pid = self.pid(part).ok_or_else(|| Error::Broken { what: what(), detail: "it does not run".into() })?;
        let held = HeldPart(pid);
        signal::hold(pid).map(|()| held).map_err(Error::io(what()))
    }

    fn signal_supervisor(&self, doing: &str, send: fn(u32) -> std::io::Result<()>) -> Result<()> {
        let what = || format!("{doing} the supervisor of g{}", self.site.number);
        let supervisor = self.supervisor.as_ref();
        let supervisor = supervisor.ok_or_else(|| Error::Broken { what: what(), detail: "it does not run".into() })?;
        send(supervisor.id()).map_err(Error::io(what()))
    }

    /// Everything of it is gone at once, as with its machine: processes, keys, state.
    ///
    /// # Errors
    /// [`Error::Broken`] when it does not run, or one of its processes does not end; [`Error::Io`].
    pub fn destroy(mut self) -> Result<()> {
        self.hold()?;
        for part in [Part::Control, Part::Plane, Part::Issuer] {
            if self.pid(part).is_some() {
                self.kill9(part)?;
            }
        }
        let processes = self.kill_supervisor()?;
        // Who is still at it could write a file into what is being removed.
        self.wait_for("the end of its processes", |_| processes.iter().all(|pid| has_ended(*pid)))?;
        let shown = self.directory.display().to_string();
        fs::remove_dir_all(&self.directory).map_err(Error::io(format!("cannot remove {shown}")))
    }

    /// Stops everything as a person does.
    ///
    /// # Errors
    /// [`Error::Broken`] when it does not end in time, or not well.
    pub fn stop(&mut self) -> Result<()> {
        let Some(mut supervisor) = self.supervisor.take() else { return Ok(()) };
        signal::terminate(supervisor.id()).map_err(Error::io("cannot stop weir run"))?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match supervisor.try_wait().map_err(Error::io("cannot wait for weir run"))? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => {
                    return Err(Error::Broken {
                        what: "a clean stop".into(),
                        detail: format!("{status}: {}", self.log()),
                    });
                }
                None if Instant::now() > deadline => {
                    let _ = supervisor.kill();
                    return Err(Error::Broken { what: "a stop".into(), detail: self.log() });
                }
                None => std::thread::sleep(POLL),
            }
        }
    }
}

fn summed(counts: impl Iterator<Item = NamedCount>) -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    for NamedCount { name, count } in counts {
        *all.entry(name).or_default() += count;
    }
    all
}

/// A process that stands still, and goes on when this is dropped.
#[derive(Debug)]
pub struct HeldPart(u32);

impl Drop for HeldPart {
    fn drop(&mut self) {
        // One that is gone has nothing to go on with.
        let _ = signal::release(self.0);
    }
}

/// Whether a process has ended, be it that nobody has looked at how.
pub fn has_ended(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The program's name stands in brackets and may have any in it (proc_pid_stat(5)).
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
}

impl Drop for Member<'_> {
    fn drop(&mut self) {
        // Whoever wants to know how it ended has called `stop`.
        let _ = self.stop();
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.directory);
        }
    }
}
