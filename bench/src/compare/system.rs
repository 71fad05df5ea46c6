//! What the kernel tells of the machine and of processes: `/proc`, and how long one core takes to wake another.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::rig::Namespace;
use crate::sys::cpu;
use crate::{Error, Result};

/// Ticks of `/proc/stat` in a second: `USER_HZ`, which the kernel fixes at 100 on every machine that we run on.
const TICKS_PER_SEC: f64 = 100.0;
/// Round trips of a wake measurement.
const WAKES: u32 = 2_000;

/// The machine, as a reader of figures wants to know it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Name of the processor.
    pub cpu: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// Kernel release.
    pub kernel: String,
    /// Whether it is a virtual machine: the processor says so.
    pub virtualised: bool,
    /// Memory, MB.
    pub memory_mb: u64,
}

impl Machine {
    /// This machine. What cannot be read is empty.
    pub fn this() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let field = |name: &str| cpuinfo.lines().find(|l| l.starts_with(name)).and_then(|l| l.split(": ").nth(1));
        let flags = field("flags").unwrap_or_default();
        Self {
            cpu: field("model name").unwrap_or_default().to_owned(),
            cores: cpu::allowed().map_or(0, |cores| cores.len()),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            virtualised: flags.split(' ').any(|flag| flag == "hypervisor"),
            memory_mb: kilobytes(&read("/proc/meminfo"), "MemTotal:").unwrap_or(0) * 1024 / 1_000_000,
        }
    }
}

/// The commit that this was built from, as git says it where the program is run; `None` outside a repository.
pub fn commit() -> Option<String> {
    let output = Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=12"]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}

/// Seconds that all cores together have been busy since boot: everything but idle, waiting for disks, and what a hypervisor took.
///
/// # Errors
/// [`Error::Io`] when `/proc/stat` cannot be read.
pub fn busy_seconds() -> Result<f64> {
    let text = fs::read_to_string("/proc/stat").map_err(Error::io("cannot read /proc/stat"))?;
    busy_ticks(&text)
        .map(|ticks| ticks as f64 / TICKS_PER_SEC)
        .ok_or_else(|| Error::Broken { what: "reading /proc/stat".into(), detail: "no line for all cores".into() })
}

/// `cpu user nice system idle iowait irq softirq steal …` (`proc(5)`); guest time is in user already.
fn busy_ticks(stat: &str) -> Option<u64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = line.split_whitespace().map_while(|word| word.parse().ok()).collect();
    let [user, nice, system, _idle, _iowait, irq, softirq, ..] = ticks[..] else { return None };
    Some(user + nice + system + irq + softirq)
}

/// Whom a subject's work is done by: what its own time and memory are read from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Workers {
    /// Processes.
    pub processes: Vec<u32>,
    /// Threads of this process.
    pub threads: Vec<u32>,
}

impl Workers {
    /// Seconds that they have run so far, each by itself. Softirq time that they lent to the kernel is in it.
    pub fn run_seconds(&self) -> Vec<f64> {
        let nanos = |schedstat: &Path| -> u64 {
            let text = fs::read_to_string(schedstat).unwrap_or_default();
            text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0)
        };
        let process = |pid: &u32| {
            let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
            tasks.map(|task| nanos(&task.path().join("schedstat"))).sum::<u64>()
        };
        let thread = |tid: &u32| nanos(Path::new(&format!("/proc/self/task/{tid}/schedstat")));
        let all = self.processes.iter().map(process).chain(self.threads.iter().map(thread));
        all.map(|ns| ns as f64 / 1e9).collect()
    }

    /// Resident memory of the largest process, MB; `None` when there is none of its own.
    pub fn memory_mb(&self) -> Option<f64> {
        let resident = |pid: &u32| {
            let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            kilobytes(&text, "VmRSS:")
        };
        self.processes.iter().filter_map(resident).max().map(|kb| kb as f64 * 1024.0 / 1e6)
    }
}

/// Resident memory of this process, bytes.
pub fn resident_bytes() -> u64 {
    kilobytes(&fs::read_to_string("/proc/self/status").unwrap_or_default(), "VmRSS:").unwrap_or(0) * 1024
}

/// Resident memory of a process, KiB (`proc_pid_status(5)`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resident {
    /// What it holds for itself: heap, stacks, what it wrote over.
    pub anonymous: u64,
    /// Pages of files, above all of the program itself: shared with whoever runs the same, and dropped when memory is short.
    pub file: u64,
}

impl Resident {
    /// That of another process; `None` when there is none of that id.
    pub fn of(pid: u32) -> Option<Self> {
        Self::read(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
    }

    fn read(status: &str) -> Option<Self> {
        Some(Self { anonymous: kilobytes(status, "RssAnon:")?, file: kilobytes(status, "RssFile:")? })
    }
}

fn kilobytes(text: &str, field: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(field))?.split_whitespace().next()?.parse().ok()
}

/// What an interface has sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transmitted {
    /// Bytes, with Ethernet headers.
    pub bytes: u64,
    /// Packets; a train that the device cuts is one.
    pub packets: u64,
}

/// Reads what an interface has sent so far.
///
/// # Errors
/// [`Error::Io`] when the namespace cannot be entered, [`Error::NoInterface`].
pub fn transmitted(namespace: &Namespace, interface: &str) -> Result<Transmitted> {
    let text = namespace
        .enter(|| fs::read_to_string("/proc/thread-self/net/dev"))?
        .map_err(Error::io("cannot read /proc/net/dev"))?;
    counted(&text, interface)
        .ok_or_else(|| Error::NoInterface { interface: interface.to_owned(), namespace: namespace.name().to_owned() })
}

/// Eight columns of what was received come before what was sent: bytes, packets, ….
fn counted(dev: &str, interface: &str) -> Option<Transmitted> {
    let columns = dev.lines().find_map(|line| line.trim_start().strip_prefix(interface)?.strip_prefix(':'))?;
    let numbers: Vec<u64> = columns.split_whitespace().map_while(|word| word.parse().ok()).collect();
    let [bytes, packets] = numbers.get(8..10)? else { return None };
    Some(Transmitted { bytes: *bytes, packets: *packets })
}

/// How long it takes to wake a thread that sleeps on another core, µs: half of a round trip between two pinned threads. On a machine with
/// one core both share it. Every hop of a gateway that sleeps costs at least this.
///
/// # Errors
/// [`Error::Io`].
pub fn wake_us() -> Result<f64> {
    let failed = || Error::io("cannot measure how long a core takes to wake another");
    let cores = cpu::allowed().map_err(failed())?;
    let (Some(&first), Some(&last)) = (cores.first(), cores.last()) else {
        return Err(failed()(std::io::ErrorKind::NotFound.into()));
    };
    let (near, far) = UnixStream::pair().map_err(failed())?;
    let echo = move || {
        cpu::pin(last)?;
        let mut byte = [0];
        // The end of the other thread closes its side.
        while (&far).read(&mut byte)? == 1 {
            (&far).write_all(&byte)?;
        }
        Ok::<_, std::io::Error>(())
    };
    let ask = move || {
        cpu::pin(first)?;
        let mut byte = [0];
        let start = Instant::now();
        for _ in 0..WAKES {
            (&near).write_all(&byte)?;
            (&near).read_exact(&mut byte)?;
        }
        Ok::<_, std::io::Error>(start.elapsed().as_secs_f64() * 1e6 / f64::from(2 * WAKES))
    };
    // Threads of their own: the caller's stays where it may run.
    std::thread::scope(|scope| {
        scope.spawn(echo);
        scope.spawn(ask).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
    .map_err(failed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_is_everything_but_idle_iowait_and_steal() {
        let stat = "cpu  1 20 300 4000 50000 600000 7000000 80000000 9 9\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(busy_ticks(stat), Some(7_600_321));
        assert_eq!(busy_ticks("cpu 1 2"), None);
        assert_eq!(busy_ticks(""), None);
    }

    #[test]
    fn counters_of_an_interface_are_those_it_sent() {
        let dev = "Inter-|   Receive\n face |bytes\n    lo: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n  wan:21 2 3 4 5 6 7 8 29 210 1 1 1 1 1 1\n";
        assert_eq!(counted(dev, "wan"), Some(Transmitted { bytes: 29, packets: 210 }));
        assert_eq!(counted(dev, "wa"), None);
    }

    #[test]
    fn this_process_has_memory_and_has_run() {
        let workers = Workers { processes: vec![std::process::id()], threads: vec![cpu::thread_id()] };
        assert!(workers.memory_mb().unwrap() > 0.5);
        assert!(resident_bytes() > 500_000);
        let resident = Resident::of(std::process::id()).unwrap();
        assert!(resident.anonymous > 100 && resident.file > 100, "{resident:?}");
        assert_eq!(Resident::read("VmRSS:\t 30 kB\nRssAnon:\t  10 kB\n"), None);
        assert_eq!(workers.run_seconds().len(), 2);
        assert_eq!(Workers::default().memory_mb(), None);
        assert!(Machine::this().cores > 0);
    }

    #[test]
    fn waking_takes_less_than_a_second_and_more_than_nothing() {
        let us = wake_us().unwrap();
        assert!(us > 0.1 && us < 1e6, "{us}");
    }
}
