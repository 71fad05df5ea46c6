//! Where the time goes: a subject under load, sampled by `perf`, as a flame graph and as two short lists.
//!
//! ```text
//!   rig ─▶ subject ─▶ load ┬──────────────────────────▶ end
//!                          └─ perf record -a -g ─▶ perf script ─▶ [`fold`] ─▶ [`flame`], top lists
//! ```
//!
//! All cores are sampled, the kernel included: on this rig hosts, gateways and softirq share them. Stacks of user space end early where a
//! program was built without frame pointers; its own symbol is right all the same.

pub mod flame;
pub mod fold;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use self::fold::Profile;
use crate::compare::subject::Subject;
use crate::external::tcp_transfers;
use crate::generator::{Amount, flood};
use crate::rig::{Family, Rig};
use crate::sink::{Sink, SinkConfig};
use crate::stream::{Sizes, Stream};
use crate::{Error, Result, table};

/// Samples a second on each core: not a divisor of any timer's rate.
const FREQUENCY: &str = "997";
/// The load runs this much longer than it is sampled, half before and half after.
const LEAD: Duration = Duration::from_millis(600);
/// Rows of the lists.
const TOP: usize = 20;

/// What the gateways carry meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// TCP streams over IPv4.
    Tcp {
        /// How many at once.
        streams: u32,
    },
    /// The generator, flat out over IPv4.
    Udp {
        /// Frame sizes.
        sizes: Sizes,
        /// Flows.
        flows: u32,
    },
}

/// Runs a subject under a load for `duration` and says what the cores did.
///
/// # Errors
/// [`Error::MissingProgram`] without perf; [`Error::Broken`] when the subject cannot take part; others of whichever step failed.
pub fn record(subject: &Subject, load: Load, duration: Duration) -> Result<Profile> {
    perf(&["--version"])?;
    let broken = |detail| Error::Broken { what: subject.name(), detail };
    let ready = subject.ready(false, &mut |_| {}).map_err(broken)?;
    let rig = Rig::new(ready.rig())?;
    let _running = ready.start(&rig)?;
    let (h1, h2) = (rig.h1(), rig.h2());
    let data = std::env::temp_dir().join(format!("{}-perf.data", rig.name()));
    let _data = Removed(&data);
    // iperf3 counts whole seconds.
    let long = Duration::from_secs((duration + LEAD).as_secs() + 1);
    let name = data.to_string_lossy();
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| match load {
            Load::Tcp { streams } => tcp_transfers(h1, h2, h2.lan.v4.into(), long, streams).map(drop),
            Load::Udp { sizes, flows } => {
                let _sink = Sink::attach(h2, h2.lan.name, SinkConfig::default())?;
                let stream = Stream { sizes, flows, ..Stream::new(rig.forward(Family::V4)) };
                flood(h1, h1.lan.name, &stream, Amount::Duration(long)).map(drop)
            }
        });
        std::thread::sleep(LEAD / 2);
        let seconds = duration.as_secs_f64().to_string();
        let recorded = perf(&["record", "-a", "-g", "-q", "-F", FREQUENCY, "-o", &name, "--", "sleep", &seconds]);
        sender.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        recorded
    })?;
    Ok(Profile::read(&perf(&["script", "-i", &name, "-F", "comm,ip,sym"])?))
}

/// A file that is removed at the end.
struct Removed<'a>(&'a Path);

impl Drop for Removed<'_> {
    fn drop(&mut self) {
        // When perf wrote none, there is none.
        let _ = fs::remove_file(self.0);
    }
}

fn perf(arguments: &[&str]) -> Result<String> {
    let program = "perf";
    let output =
        Command::new(program).args(arguments).stdin(Stdio::null()).output().map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Error::MissingProgram { program, package: "linux-perf" },
            _ => Error::Io { what: "cannot run perf".into(), source: error },
        })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let detail = format!("{} (as root, with kernel.perf_event_paranoid at 1 or less?)", said.trim());
    Err(Error::ProgramFailed { program, detail })
}

/// The busiest symbols and threads, with their shares of the time that any core was busy.
pub fn tables(profile: &Profile) -> String {
    let list = |heading: &str, counts: Vec<(String, u64)>| {
        let share = |count: u64| format!("{:.1}", count as f64 * 100.0 / profile.busy().max(1) as f64);
        let rows: Vec<_> = counts.into_iter().take(TOP).map(|(name, count)| [share(count), name]).collect();
        table::render(&["busy %", heading], &rows)
    };
    format!(
        "{} samples, {} of them idle\n\n{}\n{}",
        profile.busy() + profile.idle(),
        profile.idle(),
        list("symbol, itself", profile.by_symbol()),
        list("thread", profile.by_thread()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_shares_of_the_busy_time() {
        let profile = Profile::read("a\n\t1 x\n\na\n\t1 x\n\nb\n\t1 y\n\nc\n\t1 z\n\nswapper\n\tffff0 idle\n\n");
        let text = tables(&profile);
        assert!(text.starts_with("5 samples, 1 of them idle"), "{text}");
        assert!(text.contains("50.0    x\n") && text.contains("25.0    b\n"), "{text}");
    }
}
