//! From what `perf script` prints to stacks with counts.
//!
//! ```text
//!   comm                                   a sample: the thread's name, then frames from the innermost to the outermost, then a blank line
//!   <tab>  ffffffff81 napi_poll
//!   <tab>  ffffffff82 net_rx_action     ─▶    comm;net_rx_action_[k];napi_poll_[k] 1
//! ```

use std::collections::BTreeMap;

/// Name of the thread that runs when nothing else does.
const IDLE: &str = "swapper";
/// Most frames of a stack that are kept, outermost first: what perf records by default.
const DEPTH_MAX: usize = 127;
/// What a frame of the kernel ends with, by convention of flame graphs.
pub(super) const KERNEL: &str = "_[k]";

/// Samples, by stack.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    /// Thread name and frames, outermost first, with the number of samples.
    stacks: BTreeMap<Vec<String>, u64>,
    idle: u64,
}

impl Profile {
    /// Reads the output of `perf script -F comm,ip,sym`. Lines that are neither are skipped.
    pub fn read(script: &str) -> Self {
        let mut profile = Self::default();
        let mut sample: Option<Vec<String>> = None;
        for line in script.lines().chain([""]) {
            if line.trim().is_empty() {
                if let Some(stack) = sample.take() {
                    profile.note(stack);
                }
            } else if line.starts_with(char::is_whitespace) {
                if let Some(stack) = &mut sample {
                    stack.push(frame(line.trim()));
                }
            } else {
                if let Some(stack) = sample.take() {
                    profile.note(stack);
                }
                sample = Some(vec![line.trim().to_owned()]);
            }
        }
        profile
    }

    fn note(&mut self, mut stack: Vec<String>) {
        // The idle thread's time is idle unless an interrupt borrowed it.
        if stack[0] == IDLE && !stack.iter().any(|frame| frame.contains("irq")) {
            self.idle += 1;
            return;
        }
        stack[1..].reverse();
        stack.truncate(DEPTH_MAX + 1);
        *self.stacks.entry(stack).or_default() += 1;
    }

    /// Stacks with their counts: thread name first, then frames, outermost first.
    pub fn stacks(&self) -> impl Iterator<Item = (&[String], u64)> {
        self.stacks.iter().map(|(stack, &count)| (stack.as_slice(), count))
    }

    /// Samples in which a core did something.
    pub fn busy(&self) -> u64 {
        self.stacks.values().sum()
    }

    /// Samples in which a core did nothing.
    pub fn idle(&self) -> u64 {
        self.idle
    }

    /// One line for each stack, as flame-graph tools read it.
    pub fn folded(&self) -> String {
        self.stacks.iter().map(|(stack, count)| format!("{} {count}\n", stack.join(";"))).collect()
    }

    /// Innermost symbols, the busiest first.
    pub fn by_symbol(&self) -> Vec<(String, u64)> {
        self.by(|stack| stack.last())
    }

    /// Threads, the busiest first.
    pub fn by_thread(&self) -> Vec<(String, u64)> {
        self.by(|stack| stack.first())
    }

    fn by(&self, key: impl Fn(&[String]) -> Option<&String>) -> Vec<(String, u64)> {
        let mut counts = BTreeMap::<&str, u64>::new();
        for (stack, count) in self.stacks() {
            *counts.entry(key(stack).map_or("", String::as_str)).or_default() += count;
        }
        let mut counts: Vec<_> = counts.into_iter().map(|(name, count)| (name.to_owned(), count)).collect();
        counts.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        counts
    }
}

/// `address symbol`, with a mark for the kernel's half of the address space. Semicolons would end a frame.
fn frame(line: &str) -> String {
    let (address, symbol) = line.split_once(' ').unwrap_or((line, "[unknown]"));
    let kernel = u64::from_str_radix(address, 16).is_ok_and(|address| address >> 63 == 1);
    let symbol = symbol.trim().replace(';', ":");
    if kernel { symbol + KERNEL } else { symbol }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRIPT: &str = "worker-0 \n\t    ffffffffa1000010 skb_copy\n\t    ffffffffa1000020 udp_sendmsg\n\t          401000 core::run;x\n\n\
        worker-0 \n\t    ffffffffa1000010 skb_copy\n\t    ffffffffa1000020 udp_sendmsg\n\t          401000 core::run;x\n\n\
        swapper \n\t    ffffffffa2000000 pv_native_safe_halt\n\n\
        swapper \n\t    ffffffffa3000000 napi_poll\n\t    ffffffffa3000001 __do_softirq\n\n\
        nostack \n";

    #[test]
    fn stacks_are_folded_outermost_first_and_the_idle_thread_is_left_out() {
        let profile = Profile::read(SCRIPT);
        assert_eq!(
            profile.folded(),
            "nostack 1\nswapper;__do_softirq_[k];napi_poll_[k] 1\nworker-0;core::run:x;udp_sendmsg_[k];skb_copy_[k] 2\n"
        );
        assert_eq!((profile.busy(), profile.idle()), (4, 1));
    }

    #[test]
    fn lists_are_sorted_by_count_and_then_by_name() {
        let profile = Profile::read(SCRIPT);
        let count = |name: &str, count| (name.to_owned(), count);
        assert_eq!(profile.by_symbol(), [count("skb_copy_[k]", 2), count("napi_poll_[k]", 1), count("nostack", 1)]);
        assert_eq!(profile.by_thread()[0], count("worker-0", 2));
    }

    #[test]
    fn anything_can_be_read() {
        for text in ["", "\n\n", "\tffff x\n", "a\nb\n\t\nc", "a\n\tzz\n\t;;;\n", "é\n\tf é\n"] {
            let profile = Profile::read(text);
            assert_eq!(profile.folded().lines().count(), profile.stacks().count(), "{text:?}");
        }
        let deep = format!("a\n{}\n", "\t1 x\n".repeat(1000));
        assert_eq!(Profile::read(&deep).stacks().map(|(stack, _)| stack.len()).max(), Some(DEPTH_MAX + 1));
    }
}
