//! Which cores the workers run on, and why.
//!
//! ```text
//!   cpus that the process may use ─▶ one per physical core ─▶ those of the WAN card's node ─▶ without core 0's ─▶ workers
//!                                                              if it has any                  if two are left
//! ```
//!
//! Two threads of one physical core share its execution units, and sealing keeps those busy: a second worker there would add little. A
//! packet that crosses to another NUMA node is fetched over the interconnect. Core 0 takes the interrupts and timers that nobody else
//! wants. With two physical cores, keeping away from core 0 would cost half of the machine, so both are used, also because a session's
//! lanes spread over the workers that there are at its start.
//!
//! The choice is a pure function of a [`Machine`]; a thin reader makes one from sysfs. It does not pin anything.

use std::collections::BTreeSet;
use std::path::Path;

/// One CPU as the scheduler counts them, that this process may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Cpu {
    /// Its number.
    pub(super) number: usize,
    /// The lowest number among the threads of its physical core, whether or not the process may use that one.
    pub(super) core: usize,
    /// Its NUMA node.
    pub(super) node: usize,
}

/// What there is to choose from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Machine {
    /// What the affinity mask and the cpuset leave to this process.
    pub(super) cpus: Vec<Cpu>,
    /// The node that the WAN device is attached to, where there is such a thing.
    pub(super) wan_node: Option<usize>,
}

/// The CPUs for workers, in order, and the reason in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) cpus: Vec<usize>,
    pub(super) why: String,
}

/// Chooses at most `max` CPUs. There are none only when there were none to choose from.
pub(super) fn choose(machine: &Machine, max: usize) -> Choice {
    let mut why = vec![];
    let mut seen = BTreeSet::new();
    let mut cpus = machine.cpus.clone();
    cpus.sort_unstable_by_key(|cpu| cpu.number);
    let threads = cpus.len();
    cpus.retain(|cpu| seen.insert(cpu.core));
    if cpus.len() < threads {
        why.push("one thread of each physical core".to_owned());
    }
    if let Some(node) = machine.wan_node
        && cpus.iter().any(|cpu| cpu.node != node)
    {
        if cpus.iter().any(|cpu| cpu.node == node) {
            cpus.retain(|cpu| cpu.node == node);
            why.push(format!("those of node {node}, where the WAN device is"));
        } else {
            why.push(format!("none is on node {node}, where the WAN device is"));
        }
    }
    if cpus.iter().any(|cpu| cpu.core == 0) {
        if cpus.len() > 2 {
            cpus.retain(|cpu| cpu.core != 0);
            why.push("core 0 is left to interrupts".to_owned());
        } else {
            why.push("too few to leave core 0 out".to_owned());
        }
    }
    if cpus.len() > max {
        cpus.truncate(max);
        why.push(format!("at most {max} workers"));
    }
    if why.is_empty() {
        why.push("all that this process may use".to_owned());
    }
    Choice { cpus: cpus.iter().map(|cpu| cpu.number).collect(), why: why.join("; ") }
}

/// Whether workers on these CPUs leave no physical core of the process's to anybody else.
pub(super) fn takes_all(machine: &Machine, cpus: &[usize]) -> bool {
    let used: BTreeSet<usize> =
        machine.cpus.iter().filter(|cpu| cpus.contains(&cpu.number)).map(|cpu| cpu.core).collect();
    machine.cpus.iter().all(|cpu| used.contains(&cpu.core))
}

/// Reads the machine from a sysfs tree. What it does not say is taken to be simple: each CPU a core of its own, one node.
pub(super) fn read(sys: &Path, allowed: &[usize], wan: &str) -> Machine {
    let cpu = |&number: &usize| {
        let directory = sys.join(format!("devices/system/cpu/cpu{number}"));
        let siblings = std::fs::read_to_string(directory.join("topology/thread_siblings_list")).unwrap_or_default();
        Cpu { number, core: first_of_list(&siblings).unwrap_or(number), node: node_of(&directory).unwrap_or(0) }
    };
    let node = std::fs::read_to_string(sys.join(format!("class/net/{wan}/device/numa_node"))).ok();
    Machine {
        cpus: allowed.iter().map(cpu).collect(),
        // The kernel writes -1 for a device that is near to no node in particular.
        wan_node: node.and_then(|text| text.trim().parse().ok()),
    }
}

/// The lowest number of a list as the kernel writes it: `0,4` or `0-1`, in ascending order.
fn first_of_list(text: &str) -> Option<usize> {
    text.trim().split([',', '-']).next()?.parse().ok()
}

/// The node is named by a link beside the topology: `cpu3/node1`.
fn node_of(cpu: &Path) -> Option<usize> {
    let entries = std::fs::read_dir(cpu).ok()?;
    entries.flatten().find_map(|entry| entry.file_name().to_str()?.strip_prefix("node")?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `cores` physical cores of `threads` threads, numbered as x86 does: all first threads, then all second ones; nodes in blocks.
    fn machine(cores: usize, threads: usize, nodes: usize, wan_node: Option<usize>) -> Machine {
        let cpu = |number: usize| {
            let core = number % cores;
            Cpu { number, core, node: core * nodes / cores }
        };
        Machine { cpus: (0..cores * threads).map(cpu).collect(), wan_node }
    }

    #[track_caller]
    fn chosen(machine: &Machine, max: usize, cpus: &[usize], why: &str) {
        assert_eq!(choose(machine, max), Choice { cpus: cpus.to_vec(), why: why.to_owned() });
    }

    #[test]
    fn small_machines_are_used_whole() {
        chosen(&machine(1, 1, 1, None), 16, &[0], "too few to leave core 0 out");
        chosen(&machine(2, 1, 1, Some(0)), 16, &[0, 1], "too few to leave core 0 out");
        chosen(&machine(3, 1, 1, None), 16, &[1, 2], "core 0 is left to interrupts");
        chosen(&Machine::default(), 16, &[], "all that this process may use");
    }

    #[test]
    fn one_thread_of_each_physical_core_works() {
        let why = "one thread of each physical core; core 0 is left to interrupts";
        chosen(&machine(4, 2, 1, None), 16, &[1, 2, 3], why);
        let why = "one thread of each physical core; too few to leave core 0 out";
        chosen(&machine(1, 2, 1, None), 16, &[0], why);
    }

    #[test]
    fn the_wan_devices_node_is_preferred() {
        let far = "one thread of each physical core; those of node 1, where the WAN device is";
        chosen(&machine(8, 2, 2, Some(1)), 16, &[4, 5, 6, 7], far);
        let near = "those of node 0, where the WAN device is; core 0 is left to interrupts";
        chosen(&machine(8, 1, 2, Some(0)), 16, &[1, 2, 3], near);
        chosen(&machine(4, 1, 2, None), 16, &[1, 2, 3], "core 0 is left to interrupts");
        let none = "none is on node 7, where the WAN device is; core 0 is left to interrupts";
        chosen(&machine(4, 1, 2, Some(7)), 16, &[1, 2, 3], none);
    }

    #[test]
    fn the_affinity_mask_is_kept_to() {
        let mut masked = machine(4, 2, 1, None);
        masked.cpus.retain(|cpu| [4, 5, 6].contains(&cpu.number));
        chosen(&masked, 16, &[5, 6], "core 0 is left to interrupts");
        masked.cpus.retain(|cpu| cpu.number == 6);
        chosen(&masked, 16, &[6], "all that this process may use");
    }

    #[test]
    fn there_are_no_more_than_allowed() {
        let all: Vec<usize> = (1..=16).collect();
        chosen(&machine(17, 1, 1, None), 16, &all, "core 0 is left to interrupts");
        chosen(&machine(18, 1, 1, None), 16, &all, "core 0 is left to interrupts; at most 16 workers");
    }

    #[test]
    fn a_core_is_left_over_when_no_thread_of_it_works() {
        let two = machine(2, 1, 1, None);
        assert!(takes_all(&two, &[0, 1]) && !takes_all(&two, &[1]));
        let smt = machine(2, 2, 1, None);
        assert!(takes_all(&smt, &[0, 3]) && !takes_all(&smt, &[1, 3]));
    }

    struct Tree(std::path::PathBuf);

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn sysfs_is_read_and_what_it_does_not_say_is_simple() {
        let sys = Tree(std::env::temp_dir().join(format!("weir-cores-{}", std::process::id())));
        let write = |path: &str, text: &str| {
            let path = sys.0.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("devices/system/cpu/cpu5/topology/thread_siblings_list", "1,5\n");
        write("devices/system/cpu/cpu5/node1/cpulist", "");
        write("devices/system/cpu/cpu6/topology/thread_siblings_list", "6-7\n");
        write("devices/system/cpu/cpu7/topology/thread_siblings_list", "nonsense\n");
        write("class/net/eth0/device/numa_node", "1\n");
        write("class/net/eth1/device/numa_node", "-1\n");
        let machine = read(&sys.0, &[5, 6, 7, 8], "eth0");
        let cpus = [(5, 1, 1), (6, 6, 0), (7, 7, 0), (8, 8, 0)];
        let cpus = cpus.map(|(number, core, node)| Cpu { number, core, node }).to_vec();
        assert_eq!(machine, Machine { cpus, wan_node: Some(1) });
        assert_eq!(read(&sys.0, &[], "eth1").wan_node, None);
        assert_eq!(read(&sys.0, &[], "eth2").wan_node, None);
    }
}
