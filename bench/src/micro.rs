//! Microbenches: one number for one piece, each with its rival in the same run.
//!
//! Every figure is the median of [`ROUNDS`] rounds; rounds of different subjects are interleaved, so that a machine that is busy for a
//! moment is busy for all of them. Nothing here asserts: tests are not timed.

mod aead;
mod bundling;
mod classifier;
mod engine;
mod lanes;
mod lookup;
mod memory;
mod planes;
mod rings;
mod scale;

use std::time::Instant;

use serde::Serialize;

use crate::plot::figure;
use crate::{Result, table};

/// Rounds of each measurement.
pub const ROUNDS: usize = 7;

/// One measured figure.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// What was measured.
    pub what: String,
    /// What the figures are in.
    pub unit: &'static str,
    /// Median over the rounds.
    pub median: f64,
    /// Smallest of all rounds.
    pub least: f64,
    /// Largest of all rounds.
    pub most: f64,
    /// What was promised.
    pub target: Option<Target>,
}

impl Figure {
    /// What rounds gave. A figure without a round is none.
    pub(crate) fn of(what: String, unit: &'static str, target: Option<Target>, mut rounds: Vec<f64>) -> Option<Self> {
        rounds.sort_by(f64::total_cmp);
        let (least, most) = (*rounds.first()?, *rounds.last()?);
        Some(Self { what, unit, median: rounds[rounds.len() / 2], least, most, target })
    }

    /// Whether it keeps what was promised, if anything was.
    pub fn is_met(&self) -> bool {
        self.target.is_none_or(|target| match target.at_least {
            true => self.median >= target.value,
            false => self.median <= target.value,
        })
    }

    /// The cells of a table.
    pub(crate) fn row(&self) -> [String; 6] {
        let target = self.target.map_or_else(String::new, |target| {
            let sign = if target.at_least { "≥" } else { "≤" };
            format!("{sign} {}{}", figure(target.value), if self.is_met() { "" } else { " MISSED" })
        });
        let [median, least, most] = [self.median, self.least, self.most].map(figure);
        [self.what.clone(), self.unit.to_owned(), median, least, most, target]
    }
}

/// What was promised for a figure.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Target {
    /// The limit.
    pub value: f64,
    /// Whether more than the limit is good.
    pub at_least: bool,
}

/// Something to measure: its name, and a function that does a round and says what it gave, in nanoseconds for one operation unless
/// [`Subject::unit`] says otherwise.
pub(crate) struct Subject<'a> {
    what: String,
    unit: &'static str,
    target: Option<Target>,
    round: Box<dyn FnMut() -> f64 + 'a>,
}

impl<'a> Subject<'a> {
    /// A subject whose `operation` is done `times` times in a round.
    fn timed(what: impl Into<String>, times: u32, mut operation: impl FnMut(u32) + 'a) -> Self {
        let round = move || {
            let start = Instant::now();
            for i in 0..times {
                operation(i);
            }
            start.elapsed().as_nanos() as f64 / f64::from(times)
        };
        Self::measured(what, round)
    }

    /// A subject that measures a round by itself.
    fn measured(what: impl Into<String>, round: impl FnMut() -> f64 + 'a) -> Self {
        Self { what: what.into(), unit: "ns", target: None, round: Box::new(round) }
    }

    fn unit(self, unit: &'static str) -> Self {
        Self { unit, ..self }
    }

    fn at_most(self, value: f64) -> Self {
        Self { target: Some(Target { value, at_least: false }), ..self }
    }

    fn at_least(self, value: f64) -> Self {
        Self { target: Some(Target { value, at_least: true }), ..self }
    }
}

/// Measures subjects against each other, round by round.
fn compare(mut subjects: Vec<Subject<'_>>) -> Vec<Figure> {
    let mut samples = vec![Vec::with_capacity(ROUNDS); subjects.len()];
    for _ in 0..ROUNDS {
        for (subject, samples) in subjects.iter_mut().zip(&mut samples) {
            samples.push((subject.round)());
        }
    }
    let rounds = subjects.into_iter().zip(samples);
    rounds.filter_map(|(subject, rounds)| Figure::of(subject.what, subject.unit, subject.target, rounds)).collect()
}

/// The pieces of which the set is made, in the order in which they are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Piece {
    /// 10,000 sessions and 100,000 routes: memory, and the longest stall. First, while the allocator has nothing to give again.
    Scale,
    /// Copy, checksum, replay window, memory port, rings.
    Memory,
    /// AEAD by both libraries, and the engine without I/O.
    Engine,
    /// Longest-prefix match.
    Lookup,
    /// Bundling: bytes, sends, loss.
    Bundling,
    /// Two workers and interleaved lanes.
    Lanes,
    /// `wan`, by BPF test run.
    Wan,
}

impl Piece {
    /// Every piece.
    pub const ALL: [Self; 7] =
        [Self::Scale, Self::Memory, Self::Engine, Self::Lookup, Self::Bundling, Self::Lanes, Self::Wan];

    fn figures(self) -> Result<Vec<Figure>> {
        Ok(match self {
            Self::Scale => scale::figures(),
            Self::Memory => compare(memory::subjects().into_iter().chain(rings::subjects()).collect()),
            Self::Engine => {
                let mut figures = compare(aead::subjects().into_iter().chain(engine::subjects()).collect());
                let raw = aead::seal_1400();
                let ratios: Vec<_> = RATIOS.iter().filter_map(|ratio| ratio.of(&figures, &raw)).collect();
                figures.extend(ratios);
                figures
            }
            Self::Lookup => compare(lookup::Tables::build().subjects()),
            Self::Bundling => compare(bundling::subjects()),
            Self::Lanes => compare(lanes::subjects()),
            Self::Wan => classifier::figures()?,
        })
    }
}

/// Measures these pieces, each once and in their own order; `progress` hears what is next.
///
/// # Errors
/// When the eBPF object does not load (it needs root).
pub fn run(pieces: &[Piece], mut progress: impl FnMut(&str)) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for piece in Piece::ALL.into_iter().filter(|piece| pieces.contains(piece)) {
        progress(&format!("{piece:?}").to_lowercase());
        figures.extend(piece.figures()?);
    }
    Ok(figures)
}

/// A figure of the engine that is promised in terms of what sealing as much costs without it.
struct Ratio {
    of: &'static str,
    at_most: f64,
}

const RATIOS: [Ratio; 2] =
    [Ratio { of: engine::SEAL_WHOLE, at_most: 1.25 }, Ratio { of: engine::SEAL_CUT, at_most: 1.4 }];

impl Ratio {
    fn of(&self, figures: &[Figure], raw: &str) -> Option<Figure> {
        let find = |what: &str| figures.iter().find(|figure| figure.what == what);
        let (of, to) = (find(self.of)?, find(raw)?);
        Some(Figure {
            what: format!("{} / {raw}", self.of),
            unit: "ratio",
            median: of.median / to.median,
            least: of.least / to.least,
            most: of.most / to.most,
            target: Some(Target { value: self.at_most, at_least: false }),
        })
    }
}

/// The figures as columns.
pub fn render(figures: &[Figure]) -> String {
    let rows: Vec<_> = figures.iter().map(Figure::row).collect();
    table::render(&["one operation", "unit", "median", "least", "most", "target"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_the_median_of_its_rounds_and_rounds_take_turns() {
        let order = std::cell::RefCell::new(vec![]);
        let subject = |name: &'static str, order: &std::cell::RefCell<Vec<&'static str>>| {
            order.borrow_mut().push(name);
            order.borrow().len() as f64
        };
        let figures = compare(vec![
            Subject::measured("a", || subject("a", &order)),
            Subject::measured("b", || subject("b", &order)),
        ]);
        assert_eq!(order.borrow()[..4], ["a", "b", "a", "b"]);
        assert_eq!((figures[0].least, figures[0].median, figures[0].most), (1.0, 7.0, 13.0));
        assert_eq!((figures[1].least, figures[1].median, figures[1].most), (2.0, 8.0, 14.0));
        assert!(render(&figures).lines().count() == 3);
    }

    #[test]
    fn the_engine_is_set_against_the_library_that_it_uses() {
        let names: Vec<_> = aead::subjects().into_iter().map(|subject| subject.what).collect();
        let raw = names.iter().filter(|name| name.starts_with("seal 1400 B") && name.ends_with(", as the engine"));
        assert!(raw.clone().count() == 2 && names.contains(&aead::seal_1400()), "{names:?}");
        let figure = |what: &str, median| Figure { what: what.to_owned(), median, least: median, ..EMPTY };
        let figures = [figure(engine::SEAL_WHOLE, 300.0), figure(&aead::seal_1400(), 200.0)];
        let ratio = RATIOS[0].of(&figures, &aead::seal_1400()).map(|ratio| ratio.median);
        assert_eq!((ratio, RATIOS[1].of(&figures, &aead::seal_1400()).is_none()), (Some(1.5), true));
    }

    const EMPTY: Figure = Figure { what: String::new(), unit: "ns", median: 0.0, least: 0.0, most: 0.0, target: None };

    #[test]
    fn the_sets_without_a_kernel_run() {
        let engine = engine::subjects().into_iter().take(1);
        for subject in aead::subjects().into_iter().take(2).chain(engine).chain(rings::subjects()) {
            let mut subject = subject;
            assert!((subject.round)() > 0.0, "{}", subject.what);
        }
    }
}
