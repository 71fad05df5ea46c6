//! The network clock: the time by which validity is judged.
//!
//! A box boots in 1970, a time server jumps, a laptop sleeps. So the clock starts at the latest of what is certain to be past (the system
//! clock, the last moment on disk, the build, the own certificate's begin), goes on with the monotonic clock, follows the system clock
//! forward only, and is set, in either direction, by three peers that agree. The system clock itself is never touched.
//!
//! ```text
//!             peers agree, the system clock differs
//!  following ─────────────────────────────────────▸ corrected          following: wall = max(wall + mono passed, system clock)
//!            ◂─────────────────────────────────────                    corrected: wall = wall + mono passed (+ sleep)
//!              the system clock is within 5 s again
//! ```

use std::time::{Duration, Instant};

use super::id::NodeId;
use crate::time::{Now, UnixSecs};

/// Peers that must agree, the design's figure: two may share a fault or an owner.
const PEERS_MIN: usize = 3;
/// How close together they must be, and how close the clock may stay to them without being set.
const AGREE_SECS: u64 = 5;
/// Peers whose word is kept; the oldest makes room.
pub const PEERS_MAX: usize = 32;
/// How long a peer's word counts. Ours: clocks drift 50 ppm, which is 45 ms in that time.
const SAMPLE_AGE_MAX: Duration = Duration::from_secs(900);
/// Differences between two members that nobody hears of.
const SILENT_SECS: u64 = 300;
/// Differences that leave more than joining and time correction possible: leaves are back-dated by as much.
const WARN_SECS: u64 = 3600;
/// How far ahead of everything else the system clock may be and still be written to disk unconfirmed. Ours: a box may lie in a shelf for
/// a year; a clock that jumped by ten must not outlive a restart.
const UNCONFIRMED_SECS_MAX: u64 = 400 * 86_400;
/// Longest step of the system clock that may be a sleep while the clock does not follow it.
const SLEEP_SECS_MAX: u64 = 30 * 86_400;
/// How far behind a proved moment the system clock of a machine is that was never set.
const UNSET: Duration = Duration::from_secs(86_400);
/// Shortest step that is one, and not the rounding of two clocks.
const STEP_SECS_MIN: u64 = 3;

/// What a difference between two clocks means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Skew {
    /// Up to five minutes.
    Silent,
    /// Up to an hour: people hear of it.
    Warning,
    /// More: two sides would judge the same documents differently, so they only join, renew and set the time.
    TimeOnly,
}

impl Skew {
    /// Judges a difference in seconds.
    pub const fn of(secs: u64) -> Self {
        if secs <= SILENT_SECS {
            Self::Silent
        } else if secs <= WARN_SECS {
            Self::Warning
        } else {
            Self::TimeOnly
        }
    }
}

/// What a round of the peers' words did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learned {
    /// Too few agree.
    Nothing,
    /// They agree with us.
    Confirmed,
    /// They agree on another time, which is ours now.
    Corrected {
        /// What we believed.
        from: UnixSecs,
        /// What holds.
        to: UnixSecs,
    },
}

/// What a peer said, as the wall time that it means at `anchor`.
#[derive(Clone, Copy, Debug)]
struct Sample {
    peer: NodeId,
    at: Instant,
    /// The peer's clock then.
    wall: UnixSecs,
}

/// The clock.
#[derive(Clone, Debug)]
pub struct NetworkClock {
    /// The latest look: `wall` was reached when the monotonic clock showed `mono`.
    mono: Instant,
    wall: UnixSecs,
    /// What has not passed into `wall` yet of the second that runs.
    carry: Duration,
    system: UnixSecs,
    corrected: bool,
    /// The latest moment that something other than one jump of the system clock vouches for.
    floor: UnixSecs,
    samples: Vec<Sample>,
}

impl NetworkClock {
    /// Starts with everything that is certain to be past.
    pub fn new(mono: Instant, system: UnixSecs, on_disk: UnixSecs, build: UnixSecs, own_not_before: UnixSecs) -> Self {
        let floor = on_disk.max(build).max(own_not_before);
        let wall = floor.max(system);
        let mut clock =
            Self { mono, wall, carry: Duration::ZERO, system, corrected: false, floor, samples: Vec::new() };
        clock.vouch();
        clock
    }

    /// Looks at both clocks of the machine.
    pub fn tick(&mut self, mono: Instant, system: UnixSecs) -> Now {
        let passed = mono.saturating_duration_since(self.mono) + self.carry;
        let secs = Duration::from_secs(passed.as_secs());
        self.carry = passed - secs;
        self.mono = self.mono.max(mono);
        self.wall = self.wall.plus(secs);
        self.floor = self.floor.plus(secs);
        let step = system.0.saturating_sub(self.system.plus(secs).0);
        self.system = system;
        if self.corrected && difference(system, self.wall) <= AGREE_SECS {
            self.corrected = false;
        }
        // A clock that jumps away by more than a machine sleeps, while peers of late agree with what we had, is broken. One that jumps to
        // what we have was set at last.
        if !self.corrected
            && step > SLEEP_SECS_MAX
            && difference(system, self.wall) > AGREE_SECS
            && self.agreed().is_some_and(|at| difference(at, self.wall) <= AGREE_SECS)
        {
            self.corrected = true;
            return Now { mono: self.mono, wall: self.wall };
        }
        if !self.corrected {
            self.wall = self.wall.max(system);
            self.vouch();
        } else if (STEP_SECS_MIN..=SLEEP_SECS_MAX).contains(&step) {
            // The monotonic clock stands still while the machine sleeps; a wrong system clock still counts the hours.
            self.wall = self.wall.plus(Duration::from_secs(step));
        }
        Now { mono: self.mono, wall: self.wall }
    }

    fn vouch(&mut self) {
        if self.wall.0.saturating_sub(self.floor.0) <= UNCONFIRMED_SECS_MAX {
            self.floor = self.wall;
        }
    }

    /// Takes the word of a peer whose certificate chains to a pinned root: its clock showed `their_wall` when ours showed `at`. Call
    /// [`Self::tick`] first.
    pub fn learn(&mut self, peer: NodeId, their_wall: UnixSecs, at: Instant) -> Learned {
        self.samples
            .retain(|sample| sample.peer != peer && self.mono.saturating_duration_since(sample.at) <= SAMPLE_AGE_MAX);
        if self.samples.len() >= PEERS_MAX {
            // In the order of their arrival.
            self.samples.remove(0);
        }
        self.samples.push(Sample { peer, at, wall: their_wall });
        let Some(agreed) = self.agreed() else { return Learned::Nothing };
        let from = self.wall;
        if difference(agreed, from) <= AGREE_SECS {
            self.floor = self.floor.max(self.wall);
            return Learned::Confirmed;
        }
        self.wall = agreed;
        self.carry = Duration::ZERO;
        self.floor = agreed;
        self.corrected = difference(self.system, agreed) > AGREE_SECS;
        Learned::Corrected { from, to: agreed }
    }

    /// A certificate that begins then proves that it is not earlier. That is believed by a machine whose own clock is further behind than
    /// clocks go slow: a box that boots in 1970 after weeks in the dark, to which everything is from the future.
    pub fn at_least(&mut self, proved: UnixSecs) -> bool {
        if proved <= self.wall || self.system.plus(UNSET) >= proved {
            return false;
        }
        (self.wall, self.floor, self.carry) = (proved, self.floor.max(proved), Duration::ZERO);
        true
    }

    /// What most of the peers believe it is now, if they are enough.
    fn agreed(&self) -> Option<UnixSecs> {
        let here = |sample: &Sample| sample.wall.plus(self.mono.saturating_duration_since(sample.at)).0;
        let mut walls: Vec<u64> = self.samples.iter().map(here).collect();
        walls.sort_unstable();
        let end = |from: usize| walls.partition_point(|wall| *wall <= walls[from].saturating_add(AGREE_SECS));
        let (from, count) = (0..walls.len()).map(|from| (from, end(from) - from)).max_by_key(|(_, count)| *count)?;
        // Three liars among ten agree easily; they are not most.
        let most = count >= PEERS_MIN && count * 2 > walls.len();
        most.then(|| UnixSecs(walls[from + count / 2]))
    }

    /// Whether peers that are enough to set the clock have said of late that it is another time. Until that is settled, nothing is past its
    /// end.
    pub fn is_doubted(&self) -> bool {
        self.agreed().is_some_and(|agreed| difference(agreed, self.wall) > AGREE_SECS)
    }

    /// When [`Self::tick`] was last called.
    pub const fn looked_at(&self) -> Instant {
        self.mono
    }

    /// What [`Self::tick`] said last.
    pub const fn seen(&self) -> Now {
        Now { mono: self.mono, wall: self.wall }
    }

    /// What to write to disk, so that a restart does not fall behind it.
    pub const fn to_disk(&self) -> UnixSecs {
        self.floor
    }

    /// Seconds by which a peer's clock is ahead of ours, and what that means.
    pub fn skew(&self, their_wall: UnixSecs) -> (i64, Skew) {
        let ahead = ahead(their_wall, self.wall);
        (ahead, Skew::of(ahead.unsigned_abs()))
    }

    /// Seconds by which the network's clock is ahead of the machine's.
    pub fn ahead_secs(&self) -> i64 {
        ahead(self.wall, self.system)
    }

    /// Seconds by which the machine's own clock is ahead of the network's, and what that means for its owner.
    pub fn system_skew(&self) -> (i64, Skew) {
        self.skew(self.system)
    }
}

/// Seconds by which `one` is later than `other`, as far as they can be told.
pub fn ahead(one: UnixSecs, other: UnixSecs) -> i64 {
    let secs = |at: UnixSecs| i64::try_from(at.0).unwrap_or(i64::MAX);
    secs(one).saturating_sub(secs(other))
}

fn difference(one: UnixSecs, other: UnixSecs) -> u64 {
    one.0.abs_diff(other.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3600;
    const YEAR: u64 = 365 * 86_400;
    const TRUE: u64 = 1_796_000_000;
    const BUILD: u64 = TRUE - 100 * 86_400;

    /// A machine: what is true, what its system clock shows, and its clock.
    struct Machine {
        start: Instant,
        passed: u64,
        system: u64,
        clock: NetworkClock,
    }

    impl Machine {
        fn new(system: u64, on_disk: u64) -> Self {
            let start = Instant::now();
            let clock = NetworkClock::new(start, UnixSecs(system), UnixSecs(on_disk), UnixSecs(BUILD), UnixSecs(0));
            Self { start, passed: 0, system, clock }
        }

        fn run(&mut self, secs: u64) -> u64 {
            self.passed += secs;
            self.system += secs;
            self.look()
        }

        fn look(&mut self) -> u64 {
            self.clock.tick(self.start + Duration::from_secs(self.passed), UnixSecs(self.system)).wall.0
        }

        fn hear(&mut self, peer: u8, wall: u64) -> Learned {
            self.clock.learn(NodeId([peer; 32]), UnixSecs(wall), self.start + Duration::from_secs(self.passed))
        }
    }

    #[test]
    fn a_box_that_boots_in_1970_starts_at_its_build_and_learns() {
        let mut machine = Machine::new(60, 0);
        assert_eq!(machine.run(10), BUILD + 10);
        assert_eq!(machine.clock.skew(UnixSecs(TRUE)).1, Skew::TimeOnly);
        assert_eq!((machine.hear(1, TRUE), machine.hear(2, TRUE + 2)), (Learned::Nothing, Learned::Nothing));
        let to = UnixSecs(TRUE + 2);
        assert_eq!(machine.hear(3, TRUE + 4), Learned::Corrected { from: UnixSecs(BUILD + 10), to });
        assert_eq!(machine.run(100), TRUE + 102);
        assert_eq!(machine.clock.system_skew().1, Skew::TimeOnly);
        // Its time server answers at last: the system clock is followed again.
        machine.system = TRUE + 103;
        assert_eq!(machine.run(5), TRUE + 108);
        machine.system += 8 * HOUR;
        assert_eq!(machine.run(0), TRUE + 108 + 8 * HOUR);
    }

    #[test]
    fn a_jump_that_peers_of_late_contradict_is_doubted_until_they_are_heard() {
        let mut machine = Machine::new(TRUE, 0);
        machine.run(10);
        for peer in 1..=2 {
            assert_eq!(machine.hear(peer, TRUE + 10), Learned::Nothing);
        }
        machine.system += 20 * 86_400;
        machine.run(1);
        assert!(!machine.clock.is_doubted(), "two are too few to say");
        let mut machine = Machine::new(TRUE, 0);
        let heard = [1, 2, 3].map(|peer| machine.hear(peer, TRUE));
        assert_eq!(heard, [Learned::Nothing, Learned::Nothing, Learned::Confirmed]);
        machine.run(10);
        assert!(!machine.clock.is_doubted());
        machine.system += 20 * 86_400;
        assert_eq!((machine.run(1), machine.clock.is_doubted()), (TRUE + 20 * 86_400 + 11, true));
        assert!(matches!(machine.hear(1, TRUE + 11), Learned::Corrected { .. }));
        assert!(!machine.clock.is_doubted());
    }

    #[test]
    fn the_last_moment_on_disk_holds_against_a_clock_that_lost_its_battery() {
        let mut machine = Machine::new(0, TRUE - 5);
        assert_eq!(machine.run(1), TRUE - 4);
        assert_eq!(machine.clock.to_disk().0, TRUE - 4);
    }

    #[test]
    fn a_jump_of_ten_years_is_undone_by_peers_and_never_reaches_the_disk() {
        let mut machine = Machine::new(TRUE, TRUE - HOUR);
        assert_eq!(machine.run(10), TRUE + 10);
        machine.system += 10 * YEAR;
        assert_eq!(machine.run(10), TRUE + 20 + 10 * YEAR);
        assert_eq!(machine.clock.to_disk().0, TRUE + 20);
        for peer in 1..3 {
            assert_eq!(machine.hear(peer, TRUE + 20), Learned::Nothing);
        }
        let from = UnixSecs(TRUE + 20 + 10 * YEAR);
        assert_eq!(machine.hear(3, TRUE + 20), Learned::Corrected { from, to: UnixSecs(TRUE + 20) });
        assert_eq!(machine.run(HOUR), TRUE + 20 + HOUR);
        // The system clock comes back by itself.
        machine.system -= 10 * YEAR;
        assert_eq!(machine.run(0), TRUE + 20 + HOUR);
        assert_eq!(machine.clock.system_skew(), (0, Skew::Silent));
    }

    #[test]
    fn steps_of_two_hours_are_followed_forward_only() {
        let mut machine = Machine::new(TRUE, 0);
        machine.system -= 2 * HOUR;
        assert_eq!(machine.run(60), TRUE + 60);
        assert_eq!(machine.clock.system_skew(), (-2 * 3600, Skew::TimeOnly));
        machine.system += 4 * HOUR;
        assert_eq!(machine.run(60), TRUE + 120 + 2 * HOUR);
        machine.system -= 2 * HOUR;
        assert_eq!(machine.run(60), TRUE + 180 + 2 * HOUR);
        for peer in 1..=3 {
            machine.hear(peer, TRUE + 180);
        }
        assert_eq!(machine.run(60), TRUE + 240);
    }

    #[test]
    fn eight_hours_of_sleep_count_whether_the_system_clock_is_right_or_wrong() {
        let mut machine = Machine::new(TRUE, 0);
        machine.run(60);
        machine.system += 8 * HOUR;
        assert_eq!(machine.run(1), TRUE + 61 + 8 * HOUR);
        let mut wrong = Machine::new(TRUE + 10 * YEAR, TRUE);
        for peer in 1..=3 {
            wrong.hear(peer, TRUE);
        }
        assert_eq!(wrong.run(60), TRUE + 60);
        wrong.system += 8 * HOUR;
        assert_eq!(wrong.run(1), TRUE + 61 + 8 * HOUR);
    }

    #[test]
    fn neither_few_nor_scattered_nor_outvoted_peers_set_the_clock() {
        let mut machine = Machine::new(TRUE, 0);
        machine.run(1);
        // One peer three times is one peer.
        for _ in 0..3 {
            assert_eq!(machine.hear(1, TRUE + HOUR), Learned::Nothing);
        }
        // Within 5 s, and 6 s.
        assert_eq!(
            (machine.hear(2, TRUE + HOUR + 3), machine.hear(3, TRUE + HOUR + 6)),
            (Learned::Nothing, Learned::Nothing)
        );
        // Three agree, and as many do not.
        assert_eq!((machine.hear(4, TRUE + 1), machine.hear(5, TRUE + 1)), (Learned::Nothing, Learned::Nothing));
        assert_eq!(
            machine.hear(3, TRUE + HOUR + 5),
            Learned::Corrected { from: UnixSecs(TRUE + 1), to: UnixSecs(TRUE + HOUR + 3) }
        );
        assert_eq!(machine.hear(6, TRUE + 1), Learned::Nothing);
    }

    #[test]
    fn old_words_do_not_count() {
        let mut machine = Machine::new(60, 0);
        machine.run(1);
        machine.hear(1, TRUE);
        machine.hear(2, TRUE);
        machine.run(901);
        assert_eq!(machine.hear(3, TRUE + 901), Learned::Nothing);
        machine.hear(1, TRUE + 901);
        assert!(matches!(machine.hear(2, TRUE + 901), Learned::Corrected { .. }));
    }

    #[test]
    fn the_words_of_a_limited_number_of_peers_are_kept() {
        let mut machine = Machine::new(TRUE, 0);
        for peer in 0..=PEERS_MAX {
            machine.hear(peer as u8, TRUE);
            assert_eq!(machine.clock.samples.len(), (peer + 1).min(PEERS_MAX));
        }
        assert_eq!(machine.clock.samples[0].peer, NodeId([1; 32]));
    }

    #[test]
    fn differences_are_judged_at_their_limits() {
        let judged = [0, 300, 301, 3600, 3601].map(Skew::of);
        assert_eq!(judged, [Skew::Silent, Skew::Silent, Skew::Warning, Skew::Warning, Skew::TimeOnly]);
    }

    #[test]
    fn fractions_of_a_second_add_up() {
        let mut machine = Machine::new(0, TRUE);
        for tenth in 1..=25 {
            machine.clock.tick(machine.start + Duration::from_millis(tenth * 100), UnixSecs(0));
        }
        assert_eq!(machine.clock.wall, UnixSecs(TRUE + 2));
    }
}
