//! Datagrams that the kernel merged into a train although they belong to another worker.

use weir_abi::drop::DropReason;

use super::counters::Counters;
use super::port::BURST_LEN;

/// Consecutive datagrams of one frame that belong to another worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForeignRun {
    /// The frame's number in the burst.
    pub frame: usize,
    /// Whose they are, by their receiver indices.
    pub worker: u8,
    start: usize,
    end: usize,
}

impl ForeignRun {
    /// Where they stand in the frame.
    pub fn range(&self) -> std::ops::Range<usize> {
        self.start..self.end
    }
}

/// Most foreign runs of one burst; four of every train.
pub const FOREIGN_RUNS_MAX: usize = 4 * BURST_LEN;

/// The foreign runs of a burst, in order.
pub(super) struct Foreign(pub(super) Vec<ForeignRun>);

impl Foreign {
    pub(super) fn push(&mut self, frame: usize, start: usize, len: usize, worker: u8, counters: &Counters) {
        if let Some(run) = self.0.last_mut()
            && run.frame == frame
            && run.end == start
            && run.worker == worker
        {
            run.end += len;
        } else if self.0.len() < FOREIGN_RUNS_MAX {
            self.0.push(ForeignRun { frame, worker, start, end: start + len });
        } else {
            counters.drop(DropReason::HandoffFull);
        }
    }
}
