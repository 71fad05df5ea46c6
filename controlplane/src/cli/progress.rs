//! One line on a terminal that says how far a look-up is, while it is waited for.
//!
//! ```text
//!  find ──────────────────────────────────────▶ answer     the line is cleared, whatever the answer is
//!  lookups after 0 ─▶ draw ─▶ after 1 ─▶ draw ─▶ …         answered by the node when there is news, so nobody sleeps here
//! ```

use std::cell::Cell;
use std::io::{self, IsTerminal as _, Write};
use std::path::Path;

use crate::api::Call;
use crate::api::client::{self, ClientError};
use crate::api::types::{LookupProgress, Lookups, LookupsRequest};

/// To the beginning of the line, and away with what is there (ECMA-48 §8.3.41).
const CLEAR: &str = "\r\x1b[K";

fn line(progress: &LookupProgress) -> String {
    let LookupProgress { asked, answered, paths, hops, took_ms, .. } = progress;
    let secs = *took_ms as f64 / 1e3;
    format!("asking … {asked} members asked, {answered} answered, {paths} paths, {hops} hops, {secs:.1} s")
}

/// Waits for `answer`, and meanwhile draws what `next` tells of the look-up for `what`, until that tells nothing any more.
async fn drawn<T>(
    answer: impl Future<Output = T>,
    what: &str,
    out: &mut impl Write,
    mut next: impl AsyncFnMut(Option<u64>) -> Option<Lookups>,
) -> T {
    let is_drawn = Cell::new(false);
    let drawing = async {
        let mut after = None;
        while let Some(lookups) = next(after).await {
            after = Some(lookups.change);
            let Some(progress) = lookups.lookups.iter().find(|progress| progress.what == what) else { continue };
            is_drawn.set(true);
            // Who does not see it misses nothing.
            let _ = write!(out, "{CLEAR}{}", line(progress)).and_then(|()| out.flush());
        }
        std::future::pending::<()>().await;
    };
    let answer = tokio::select! {
        biased;
        answer = answer => Some(answer),
        () = drawing => None,
    };
    if is_drawn.get() {
        let _ = out.write_all(CLEAR.as_bytes()).and_then(|()| out.flush());
    }
    answer.expect("what is drawn has no end")
}

/// Makes a call that looks for `what`; where a person sees it, with its progress.
pub(super) async fn call(
    socket: &Path,
    call: &Call,
    what: &str,
    is_shown: bool,
) -> Result<serde_json::Value, ClientError> {
    let answer = client::call(socket, call);
    if !is_shown || !io::stderr().is_terminal() {
        return answer.await;
    }
    let next = async |after| {
        let lookups = client::call(socket, &Call::DhtLookups(LookupsRequest { after })).await.ok()?;
        client::read(socket, &lookups).ok()
    };
    drawn(answer, what, &mut io::stderr(), next).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookups(change: u64, what: &str, asked: u32) -> Lookups {
        let progress =
            LookupProgress { what: what.into(), asked, answered: asked / 2, paths: 4, hops: 2, took_ms: 840 };
        Lookups { change, lookups: vec![progress] }
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    #[test]
    fn each_change_of_ones_own_look_up_is_drawn_over_the_last_and_nothing_stays() {
        let (mut out, mut asked) = (vec![], vec![]);
        let told = [lookups(3, "b", 1), lookups(4, "\x1b[2Jother", 9), lookups(9, "b", 12)];
        let (done, is_done) = tokio::sync::oneshot::channel();
        let mut done = Some(done);
        let mut told = told.into_iter();
        let answer = run(drawn(async { is_done.await.unwrap() }, "b", &mut out, async |after| {
            asked.push(after);
            let next = told.next();
            if next.is_none() {
                done.take().unwrap().send(7).unwrap();
            }
            next
        }));
        assert_eq!((answer, asked), (7, vec![None, Some(3), Some(4), Some(9)]));
        let expected = "\r\x1b[Kasking … 1 members asked, 0 answered, 4 paths, 2 hops, 0.8 s\
                        \r\x1b[Kasking … 12 members asked, 6 answered, 4 paths, 2 hops, 0.8 s\
                        \r\x1b[K";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn what_is_answered_at_once_leaves_the_terminal_alone() {
        let mut out = vec![];
        assert_eq!(run(drawn(async { 7 }, "b", &mut out, async |_| Some(lookups(1, "b", 1)))), 7);
        assert_eq!(run(drawn(async { 8 }, "b", &mut out, async |_| None)), 8);
        assert!(out.is_empty(), "{out:?}");
    }
}
