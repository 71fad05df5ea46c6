//! `weir send`, `weir recv` and `weir messages`.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use clap::Args;
use data_encoding::BASE64;

use super::arguments::{Arguments, duration};
use super::table::{Side, Table};
use super::{FAILED, Failure, Outcome, failed, files, print, remote, show};
use crate::api::Call;
use crate::api::messages::{
    MessageState, Messages, OutcomesRequest, ReceiveRequest, Received, SendRequest, Sent, TakenAnswer, TakenRequest,
};
use crate::mail::wire::{BODY_LEN_MAX, PENDING_MAX};
use crate::time::UnixSecs;

/// How long one call waits: the node answers nothing later.
const CALL_WAIT: Duration = Duration::from_secs(30);

/// `weir send`.
#[derive(Debug, Args)]
pub struct Send {
    /// A member's name, id or overlay address; `@` and a group for each other member of it.
    #[arg(value_name = "PEER|@GROUP")]
    pub to: String,
    /// The body; `-` for the standard input.
    #[arg(value_name = "FILE", default_value = "-")]
    pub file: std::path::PathBuf,
    /// What it is about [default: `default`]. Messages of one topic keep their order.
    #[arg(long)]
    pub topic: Option<String>,
    /// How long it is kept for a receiver that does not take it, as 90s, 30m, 1h, 2d [default: 7d].
    #[arg(long, value_parser = duration)]
    pub ttl: Option<Duration>,
    /// Send it once, now or never: at most 16 KiB, and nothing is kept.
    #[arg(long, conflicts_with_all = ["ttl", "wait"])]
    pub datagram: bool,
    /// Wait until an application there has taken it.
    #[arg(long)]
    pub wait: bool,
    /// Wait so long at most [default: until it is taken, refused or past its time].
    #[arg(long, value_parser = duration, requires = "wait")]
    pub timeout: Option<Duration>,
}

/// `weir recv`.
#[derive(Debug, Args)]
pub struct Recv {
    /// Messages of this topic only, or of all that begin alike: `report/*` [default: of all].
    #[arg(long)]
    pub topic: Option<String>,
    /// How many; 0 for all that come, without end.
    #[arg(long, short, default_value_t = 1)]
    pub count: u64,
    /// Wait so long at most for each [default: without end].
    #[arg(long, value_parser = duration)]
    pub timeout: Option<Duration>,
}

/// When a wait ends. One of more years than can be counted does not.
fn deadline(timeout: Option<Duration>) -> Option<Instant> {
    timeout.and_then(|timeout| Instant::now().checked_add(timeout))
}

/// What is left of a wait, of one call's length at most; `None` when it is over.
fn wait_left(until: Option<Instant>) -> Option<Duration> {
    match until {
        None => Some(CALL_WAIT),
        Some(until) => {
            until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()).map(|left| left.min(CALL_WAIT))
        }
    }
}

fn millis(wait: Duration) -> Option<u32> {
    // Half a minute at most, and at least something: none would not wait at all.
    Some(u32::try_from(wait.as_millis()).unwrap_or(u32::MAX).max(1))
}

pub(super) fn send(arguments: &Arguments, send: &Send) -> Outcome {
    let named = |error: io::Error| files::named(&send.file, error);
    let whole: Box<dyn Read> = match send.file == Path::new("-") {
        true => Box::new(io::stdin().lock()),
        false => Box::new(File::open(&send.file).map_err(named)?),
    };
    let body = files::bounded(whole, BODY_LEN_MAX as u64).map_err(named)?;
    let request = SendRequest {
        to: send.to.clone(),
        topic: send.topic.clone(),
        body: BASE64.encode(&body),
        ttl_secs: send.ttl.map(|ttl| ttl.as_secs()),
        datagram: send.datagram,
    };
    let mut sent: Vec<Sent> = remote::ask_for(arguments, &Call::SendMessage(request))?;
    if send.wait {
        wait(arguments, &mut sent, deadline(send.timeout))?;
    }
    if arguments.json {
        remote::json(&sent)?;
    } else {
        print(&sent.iter().map(line).collect::<String>())?;
    }
    let wanted = |sent: &Sent| match sent.state {
        MessageState::Delivered | MessageState::Sent => true,
        MessageState::Queued | MessageState::Held => !send.wait,
        MessageState::Refused | MessageState::Expired | MessageState::Unknown => false,
    };
    if sent.iter().all(wanted) { Ok(()) } else { Err(Failure::Status(FAILED)) }
}

/// Asks until each message that was accepted has come to its end: as many in a call as the node reads, and it waits for the first ones.
fn wait(arguments: &Arguments, sent: &mut [Sent], until: Option<Instant>) -> Outcome {
    let is_open = |sent: &Sent| matches!(sent.state, MessageState::Queued | MessageState::Held);
    loop {
        let ids: Vec<String> = sent.iter().filter(|sent| is_open(sent)).map(|sent| sent.id.clone()).collect();
        let Some(left) = wait_left(until).filter(|_| !ids.is_empty()) else { return Ok(()) };
        let mut wait_ms = millis(left);
        for ids in ids.chunks(PENDING_MAX) {
            let request = OutcomesRequest { ids: ids.to_vec(), wait_ms: wait_ms.take() };
            let known: Vec<Sent> = remote::ask_for(arguments, &Call::MessageOutcomes(request))?;
            let known: HashMap<String, Sent> = known.into_iter().map(|now| (now.id.clone(), now)).collect();
            for sent in sent.iter_mut() {
                if let Some(now) = known.get(&sent.id) {
                    (sent.state, sent.reason) = (now.state, now.reason.clone());
                }
            }
        }
    }
}

fn line(sent: &Sent) -> String {
    let reason = sent.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    let id = if sent.id.is_empty() { String::new() } else { format!(" {}", sent.id) };
    super::table::printable(&format!("{}: {}{id}{reason}", sent.name, sent.state)) + "\n"
}

/// Prints each message and only then says that it is ours: who is stopped between the two gets that one again. What cannot be printed is given back.
pub(super) fn recv(arguments: &Arguments, recv: &Recv) -> Outcome {
    let mut left = if recv.count == 0 { u64::MAX } else { recv.count };
    let mut until = deadline(recv.timeout);
    while left > 0 {
        let Some(wait) = wait_left(until) else { return Err(Failure::Status(FAILED)) };
        let request = ReceiveRequest {
            topic: recv.topic.clone(),
            count: Some(u16::try_from(left).unwrap_or(u16::MAX)),
            wait_ms: millis(wait),
        };
        let received: Vec<Received> = remote::ask_for(arguments, &Call::ReceiveMessages(request))?;
        if received.is_empty() {
            continue;
        }
        let ids = |messages: &[Received]| TakenRequest {
            ids: messages.iter().filter(|one| !one.id.is_empty()).map(|one| one.id.clone()).collect(),
        };
        for (at, message) in received.iter().enumerate() {
            if let Err(why) = out(arguments, message) {
                let _: TakenAnswer = remote::ask_for(arguments, &Call::MessagesReturned(ids(&received[at..])))?;
                return Err(failed(format!(
                    "what came cannot be printed: {why}; the messages that were not printed are there for others"
                )));
            }
            if !message.id.is_empty() {
                let ours = ids(std::slice::from_ref(message));
                let _: TakenAnswer = remote::ask_for(arguments, &Call::MessagesTaken(ours))?;
            }
        }
        left -= received.len() as u64;
        until = deadline(recv.timeout);
    }
    Ok(())
}

/// The body as it is, or with what is known of it on one line of JSON.
fn out(arguments: &Arguments, message: &Received) -> io::Result<()> {
    let bytes = if arguments.json {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        line
    } else {
        BASE64.decode(message.body.as_bytes()).map_err(io::Error::other)?
    };
    let mut stdout = io::stdout().lock();
    stdout.write_all(&bytes).and_then(|()| stdout.flush())
}

/// What `weir messages` shows.
pub(super) fn waiting(messages: &Messages, now: UnixSecs) -> String {
    use Side::{Left, Right};
    let columns = [
        ("FOR", Left),
        ("WAIT", Right),
        ("BYTES", Right),
        ("HELD THERE", Right),
        ("SINCE", Left),
        ("FIRST ENDS", Left),
        ("LINK", Left),
    ];
    let mut outbox = Table::new(columns);
    for row in &messages.outbox {
        outbox.row([
            row.name.clone(),
            row.messages.to_string(),
            row.bytes.to_string(),
            row.held.to_string(),
            show::distance(row.oldest_at, now),
            show::distance(row.expires_at, now),
            if row.linked { "up" } else { "none" }.to_owned(),
        ]);
    }
    let columns = [("FROM", Left), ("TOPIC", Left), ("WAIT", Right), ("BYTES", Right), ("COMING", Right)];
    let mut inbox = Table::new(columns);
    for row in &messages.inbox {
        let [messages, bytes, coming] = [row.messages, row.bytes, row.coming].map(|number| number.to_string());
        inbox.row([row.name.clone(), row.topic.clone(), messages, bytes, coming]);
    }
    let outbox = outbox.text("Nothing waits for others.");
    let inbox = inbox.text("Nothing waits here.");
    format!("{outbox}\n{inbox}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_that_no_clock_reaches_is_none() {
        assert_eq!(deadline(Some(Duration::MAX)), None);
        assert!(deadline(Some(Duration::from_secs(1))).is_some_and(|until| wait_left(Some(until)).is_some()));
        assert_eq!(wait_left(deadline(Some(Duration::ZERO))), None);
        assert_eq!(wait_left(None), Some(CALL_WAIT));
    }
}
