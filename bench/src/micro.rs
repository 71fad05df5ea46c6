//! Microbenches: one number for one piece, each with its rival in the same run.
//!
//! Every figure is the median of [`ROUNDS`] rounds; rounds of different subjects are interleaved, so that a machine that is busy for a
//! moment is busy for all of them. Nothing here asserts: tests are not timed.

mod aead;
mod classifier;
mod engine;
mod lookup;

use std::time::Instant;

use serde::Serialize;

use crate::{Result, table};

/// Rounds of each measurement.
pub const ROUNDS: usize = 7;

/// One measured figure.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// What was measured.
    pub what: String,
    /// Median over the rounds, in nanoseconds for one operation.
    pub median_ns: f64,
    /// Fastest round.
    pub best_ns: f64,
    /// Slowest round.
    pub worst_ns: f64,
}

/// Something to measure: its name, and a function that does it so many times and says how long one took, in nanoseconds.
pub(crate) struct Subject<'a> {
    what: String,
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
        Self { what: what.into(), round: Box::new(round) }
    }

    /// A subject that measures a round by itself.
    fn measured(what: impl Into<String>, round: impl FnMut() -> f64 + 'a) -> Self {
        Self { what: what.into(), round: Box::new(round) }
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
    let figure = |(subject, mut samples): (Subject<'_>, Vec<f64>)| {
        samples.sort_by(f64::total_cmp);
        let [best_ns, median_ns, worst_ns] = [samples[0], samples[ROUNDS / 2], samples[ROUNDS - 1]];
        Figure { what: subject.what, median_ns, best_ns, worst_ns }
    };
    subjects.into_iter().zip(samples).map(figure).collect()
}

/// Runs the whole set; `progress` hears what is next.
///
/// # Errors
/// When the eBPF object does not load (it needs root).
pub fn run(mut progress: impl FnMut(&str)) -> Result<Vec<Figure>> {
    progress("AEAD: seal, both libraries");
    let mut figures = compare(aead::subjects());
    progress("longest-prefix match");
    let tables = lookup::Tables::build();
    figures.extend(compare(tables.subjects()));
    progress("engine without I/O");
    figures.extend(compare(engine::subjects()));
    progress("wan, by BPF test run");
    let mut wan = classifier::Wan::load()?;
    figures.extend(compare(wan.subjects()));
    Ok(figures)
}

/// The figures as columns.
pub fn render(figures: &[Figure]) -> String {
    let row = |f: &Figure| {
        [f.what.clone(), format!("{:.0}", f.median_ns), format!("{:.0}", f.best_ns), format!("{:.0}", f.worst_ns)]
    };
    let rows: Vec<_> = figures.iter().map(row).collect();
    table::render(&["one operation", "median ns", "best", "worst"], &rows)
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
        assert_eq!((figures[0].best_ns, figures[0].median_ns, figures[0].worst_ns), (1.0, 7.0, 13.0));
        assert_eq!((figures[1].best_ns, figures[1].median_ns, figures[1].worst_ns), (2.0, 8.0, 14.0));
        assert!(render(&figures).lines().count() == 3);
    }

    #[test]
    fn the_sets_without_a_kernel_run() {
        for subject in aead::subjects().into_iter().take(2).chain(engine::subjects().into_iter().take(1)) {
            let mut subject = subject;
            assert!((subject.round)() > 0.0, "{}", subject.what);
        }
    }
}
