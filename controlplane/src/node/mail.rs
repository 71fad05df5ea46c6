//! Messages of applications: what people and programs ask of [`Mail`], who may send, and the links that frames go by.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use data_encoding::BASE64;

use super::calls::error;
use super::link::{Code, Links};
use super::message::{FEATURE_MESSAGES, Hello, Message};
use super::{CallId, Node, Timer};
use crate::api::call::Answer;
use crate::api::messages::{
    InboxRow, MessageState, Messages, OutboxRow, OutcomesRequest, ReceiveRequest, Received, SendRequest, Sent,
    TakenAnswer, TakenRequest,
};
use crate::api::types::{Error, ErrorCode, Moment};
use crate::mail::wire::{BODY_LEN_MAX, DATAGRAM_LEN_MAX, Frame, Head, MessageId, PENDING_MAX, Topic, TopicPattern};
use crate::mail::{Delivery, Outcome, Output, SendError, Stage, TTL_DEFAULT};
use crate::pki::id::NodeId;
use crate::policy::{Action, Document, History, MemberView};
use crate::quic::{LinkId, Side};
use crate::random::Random;
use crate::time::Now;

/// Calls that wait for messages, or for the end of messages: half of the API's connections, so that others can be made.
pub(super) const WAITING_MAX: usize = 32;
/// How long a call waits at most: half of what the API's server waits for an answer.
const WAIT_MAX: Duration = Duration::from_secs(30);
/// Messages of one answer, and bytes of their bodies but for the first.
const RECEIVE_MAX: u16 = 64;
const RECEIVE_BYTES_MAX: usize = 1 << 20;
/// How long a link is kept for what else may be sent to a member with which there is none by itself. Ours: dialling costs a tenth of a second.
const LINK_FOR: Duration = Duration::from_secs(300);

/// Calls that wait.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// For messages of these topics, at most so many.
    receives: BTreeMap<CallId, (TopicPattern, usize)>,
    /// For the end of these.
    outcomes: BTreeMap<CallId, Vec<MessageId>>,
    /// For a long message, by the first that was made of it, to be on disk; what is answered then. As many as the outbox has room for.
    sends: BTreeMap<MessageId, (CallId, Vec<Sent>)>,
    /// Members to which datagrams were to go, and until when a link is kept for them.
    datagrams_to: BTreeMap<NodeId, Instant>,
}

impl Waiting {
    /// Whether no more calls may wait for others to act. One that sends ends by itself, when the disk has written.
    fn is_full(&self) -> bool {
        self.receives.len() + self.outcomes.len() >= WAITING_MAX
    }
}

/// Who may send: the same word when a message leaves, when it comes, and when another policy judges what waits.
#[derive(Clone, Copy)]
struct Judge<'a> {
    document: Option<&'a Document>,
    /// That holds where there is no policy.
    default: Action,
}

impl<'a> Judge<'a> {
    fn of(policy: &'a History, default: Action) -> Self {
        Self { document: policy.current().map(|version| &version.document), default }
    }

    /// What a policy says about members that it cannot know yet is no: it may name them, and is asked again when they are known.
    fn allows(self, from: Option<&MemberView>, to: Option<&MemberView>, topic: &Topic) -> bool {
        let Some(document) = self.document else { return self.default == Action::Allow };
        from.zip(to).is_some_and(|(from, to)| document.judge_message(from, to, topic) == Action::Allow)
    }
}

fn wrong(what: impl ToString, remedy: &str) -> Error {
    error(ErrorCode::BadRequest, what.to_string(), remedy)
}

/// What a received message is named by: ids are unique for each sender.
fn receipt(from: NodeId, id: MessageId) -> String {
    format!("{id}.{from}")
}

fn read_receipt(text: &str) -> Option<(NodeId, MessageId)> {
    let (id, from) = text.split_once('.')?;
    Some((from.parse().ok()?, id.parse().ok()?))
}

fn read_receipts(request: &TakenRequest) -> Result<Vec<(NodeId, MessageId)>, Error> {
    if request.ids.len() > usize::from(RECEIVE_MAX) {
        let message = format!("{} ids; at most {RECEIVE_MAX} are read", request.ids.len());
        return Err(wrong(message, "name them in several calls"));
    }
    let ids: Option<Vec<_>> = request.ids.iter().map(|text| read_receipt(text)).collect();
    let remedy = "give the ids as they were received; a datagram has none";
    ids.ok_or_else(|| wrong("that is no id of a received message", remedy))
}

impl<R: Random> Node<R> {
    /// A member has said what it is able to, on the link that messages go by.
    pub(super) fn hello_to_mail(&mut self, link: LinkId, node: NodeId, hello: &Hello, now: Now) {
        if self.mail_wants_link(node) {
            self.timers.set_at_latest(Timer::MailLink(node), now.mono + LINK_FOR);
        }
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if hello.features & FEATURE_MESSAGES != 0 && peer.link == Some(link) && peer.mail_link != Some(link) {
            peer.mail_link = Some(link);
            self.mail.handle_link_up(node, now);
        }
    }

    /// A link is gone.
    pub(super) fn mail_link_gone(&mut self, link: LinkId, node: NodeId) {
        let Some(peer) = self.peers.get_mut(&node).filter(|peer| peer.mail_link == Some(link)) else { return };
        peer.mail_link = None;
        let now = self.clock.seen();
        self.mail.handle_link_down(node, now);
    }

    /// A member said something about messages.
    pub(super) fn heard_mail(&mut self, link: LinkId, frame: Frame, links: &mut dyn Links, now: Now) {
        let node = self.links.get(&link).and_then(|held| held.peer);
        let is_mail = |node: &NodeId| self.peers.get(node).is_some_and(|peer| peer.mail_link == Some(link));
        let Some(node) = node.filter(is_mail) else { return self.counters.count("message_unlinked") };
        let is_allowed = match &frame {
            Frame::Offer { head: Head { topic, .. }, .. } | Frame::Datagram { topic, .. } => {
                let (from, to) = (self.message_view(node), self.own_message_view());
                Judge::of(&self.policy, self.default_action()).allows(from.as_ref(), to.as_ref(), topic)
            }
            Frame::Begin { .. }
            | Frame::Want { .. }
            | Frame::Piece { .. }
            | Frame::Credit(_)
            | Frame::Held { .. }
            | Frame::Taken { .. }
            | Frame::Refused { .. }
            | Frame::Gone { .. }
            | Frame::PutBack { .. } => true,
        };
        if let Err(violation) = self.mail.handle_frame(node, frame, |_| is_allowed, now) {
            tracing::debug!(%violation, peer = %node.short(), "a message is not as agreed");
            self.counters.count(violation.name());
            self.misspoke(link, links, now);
        }
    }

    /// Members, groups or the policy have changed: what waits here is judged again.
    pub(super) fn rejudge_mail(&mut self) {
        let own = self.own_message_view();
        let senders: Vec<NodeId> = self.mail.inbox().senders().collect();
        let views: BTreeMap<NodeId, MemberView> =
            senders.into_iter().filter_map(|node| Some((node, self.message_view(node)?))).collect();
        let (judge, now) = (Judge::of(&self.policy, self.default_action()), self.clock.seen());
        let allows = |from: NodeId, topic: &Topic| judge.allows(views.get(&from), own.as_ref(), topic);
        self.mail.rejudge(allows, now);
    }

    fn own_message_view(&self) -> Option<MemberView> {
        self.message_view(self.id()?)
    }

    /// What the policy has to know of a member to judge its messages: as its certificate says, or its statement.
    fn message_view(&self, node: NodeId) -> Option<MemberView> {
        let shown = self.peers.get(&node).and_then(|peer| peer.member.as_ref());
        let (name, groups) = match shown {
            Some(member) => (member.name.clone(), member.groups.clone()),
            None => {
                let entry = self.directory.entry(node)?;
                (entry.statement.name.clone(), entry.statement.groups.clone())
            }
        };
        Some(MemberView { node, name, groups, prefixes: vec![], addresses: vec![] })
    }

    /// Whether a link is kept to this member for what is to be sent to it.
    pub(super) fn mail_wants_link(&self, node: NodeId) -> bool {
        let until = self.waiting_mail.datagrams_to.get(&node);
        self.mail.outbox().has_for(node) || until.is_some_and(|until| *until > self.clock.looked_at())
    }

    /// Carries out what messages want done, and answers who waits for them.
    pub(super) fn settle_mail(&mut self, links: &mut dyn Links) {
        self.answer_receives();
        self.carry_out_mail(links);
        for first in self.mail.take_stored() {
            let Some((call, mut rows)) = self.waiting_mail.sends.remove(&first) else { continue };
            for row in &mut rows {
                // What has become of it meanwhile: its time may have been short.
                if let Ok(id) = row.id.parse() {
                    let Sent { state, reason, .. } = self.outcome(id);
                    (row.state, row.reason) = (state, reason);
                }
            }
            self.answer(call, Ok(Answer::Sent(rows)));
        }
        if self.mail.take_settled() {
            let waiting: Vec<CallId> = self.waiting_mail.outcomes.keys().copied().collect();
            waiting.into_iter().for_each(|id| self.answer_outcomes(id, false));
        }
        match self.mail.next_deadline() {
            Some(at) => self.timers.set(Timer::Mail, at),
            None => self.timers.cancel(Timer::Mail),
        }
    }

    fn carry_out_mail(&mut self, links: &mut dyn Links) {
        while let Some(output) = self.mail.poll_output() {
            match output {
                Output::Store(batch) => self.store(batch),
                Output::Count(what) => self.counters.count(what),
                Output::Say(node, frame) => {
                    if let Some(link) = self.peers.get(&node).and_then(|peer| peer.mail_link) {
                        self.say(link, &Message::Mail(Box::new(frame)), links);
                    }
                }
            }
        }
    }

    /// A member is cut off for good: what waits for it or came from it counts no more.
    pub(super) fn forget_mail(&mut self, node: NodeId, now: Now) {
        self.waiting_mail.datagrams_to.remove(&node);
        self.mail.forget(node, now);
    }

    /// This node is a member no more.
    pub(super) fn end_mail(&mut self) {
        self.mail.clear(self.clock.seen());
        let Waiting { receives, outcomes, sends, .. } = std::mem::take(&mut self.waiting_mail);
        let sends = sends.into_values().map(|(id, _)| id);
        for id in receives.into_keys().chain(outcomes.into_keys()).chain(sends) {
            self.timers.cancel(Timer::MailCall(id));
            self.answer(id, Err(super::calls::not_a_member()));
        }
        while let Some(output) = self.mail.poll_output() {
            if let Output::Store(batch) = output {
                self.store(batch);
            }
        }
    }

    pub(super) fn send_message(&mut self, id: CallId, request: SendRequest, links: &mut dyn Links, now: Now) {
        let answer = self.sent(request, now);
        // An id is told when its message is on disk.
        self.carry_out_mail(links);
        match answer {
            Ok((rows, Some(first))) => drop(self.waiting_mail.sends.insert(first, (id, rows))),
            Ok((rows, None)) => self.answer(id, Ok(Answer::Sent(rows))),
            Err(error) => self.answer(id, Err(error)),
        }
    }

    /// What is said of each receiver; and the first message of them, if they are being written to disk still.
    fn sent(&mut self, request: SendRequest, now: Now) -> Result<(Vec<Sent>, Option<MessageId>), Error> {
        let SendRequest { to, topic, body, ttl_secs, datagram } = request;
        let topic: Topic = topic
            .map_or_else(|| Ok(Topic::default()), |text| text.parse())
            .map_err(|error| wrong(error, "name a topic as in `report/daily`, or none"))?;
        let body = BASE64.decode(body.as_bytes());
        let body = body.map_err(|error| wrong(format!("the body is not base64: {error}"), "send it in base64"))?;
        let longest = if datagram { DATAGRAM_LEN_MAX } else { BODY_LEN_MAX };
        if body.len() > longest {
            let message = format!("{} bytes are too many: at most {longest} are sent this way", body.len());
            return Err(error(
                ErrorCode::TooLarge,
                message,
                "cut it into several messages of one topic, which keep their order",
            ));
        }
        let to = self.receivers(&to)?;
        let ttl = ttl_secs.map_or(TTL_DEFAULT, Duration::from_secs);
        let body: std::sync::Arc<[u8]> = body.into();
        let denied: BTreeMap<NodeId, String> =
            to.iter().filter_map(|node| Some((*node, self.may_send(*node, &topic).err()?))).collect();
        let allowed: Vec<NodeId> = to.iter().copied().filter(|node| !denied.contains_key(node)).collect();
        let accepted: Vec<Result<Option<MessageId>, String>> = match datagram {
            true => allowed.iter().map(|node| self.datagram_to(*node, &topic, &body, now).map(|()| None)).collect(),
            false => self.mail.send(&allowed, &topic, &body, ttl, now).into_iter().map(|one| self.told(one)).collect(),
        };
        let first = accepted.iter().find_map(|one| one.as_ref().ok().copied().flatten());
        let mut accepted = accepted.into_iter();
        let mut rows = vec![];
        for node in to {
            let said = denied.get(&node).cloned().map(Err).or_else(|| accepted.next());
            let (id, state, reason) = match said {
                Some(Ok(Some(id))) => (id.to_string(), MessageState::Queued, None),
                Some(Ok(None)) => (String::new(), MessageState::Sent, None),
                Some(Err(why)) => (String::new(), MessageState::Refused, Some(why)),
                None => continue,
            };
            if !id.is_empty() {
                self.want_link(node, now);
            }
            rows.push(Sent { name: self.name_of(node), node: node.to_string(), id, state, reason });
        }
        let is_storing =
            |id: &MessageId| self.mail.outbox().stage(*id).is_some_and(|(_, stage)| stage == Stage::Storing);
        Ok((rows, first.filter(is_storing)))
    }

    /// What the outbox says, as a person is told it.
    fn told(&mut self, accepted: Result<MessageId, SendError>) -> Result<Option<MessageId>, String> {
        accepted.map(Some).map_err(|why| {
            self.counters.count("message_outbox_full");
            format!("{why}; `weir messages` shows them")
        })
    }

    /// Who is meant: a member, or all others of a group.
    fn receivers(&self, to: &str) -> Result<Vec<NodeId>, Error> {
        let own = self.id();
        let Some(group) = to.strip_prefix('@') else {
            let node = self.find(to)?;
            return match Some(node) == own {
                true => Err(wrong("that is this node itself", "send to another member")),
                false => Ok(vec![node]),
            };
        };
        let members = self.directory.entries().filter(|entry| entry.statement.groups.iter().any(|of| of == group));
        let others: Vec<NodeId> = members.map(|entry| entry.record.node).filter(|node| Some(*node) != own).collect();
        match others.is_empty() {
            true => {
                let message = format!("nobody else is in the group {group}");
                Err(error(ErrorCode::NotFound, message, "`weir members` shows who is in which"))
            }
            false => Ok(others),
        }
    }

    /// What the receiver will say, as far as it can be known here.
    fn may_send(&mut self, to: NodeId, topic: &Topic) -> Result<(), String> {
        let (from, receiver) = (self.own_message_view(), self.message_view(to));
        if Judge::of(&self.policy, self.default_action()).allows(from.as_ref(), receiver.as_ref(), topic) {
            return Ok(());
        }
        self.counters.count("message_denied_here");
        let name = self.name_of(to);
        let own = self.id().map(|own| self.name_of(own)).unwrap_or_default();
        Err(format!("the policy does not allow it: `weir policy explain {own} {name} --topic {topic}` says why"))
    }

    fn datagram_to(&mut self, node: NodeId, topic: &Topic, body: &[u8], now: Now) -> Result<(), String> {
        // A link may not be kept with this member; the next one finds it.
        self.waiting_mail.datagrams_to.retain(|_, until| *until > now.mono);
        if self.waiting_mail.datagrams_to.len() < super::link::LINKS_MAX {
            self.waiting_mail.datagrams_to.insert(node, now.mono + LINK_FOR);
        }
        self.want_link(node, now);
        self.mail.send_datagram(node, topic.clone(), body.to_vec(), now).map_err(|why| {
            self.counters.count("message_datagram_unsent");
            format!("{why}; send it without --datagram, and it is kept until there is one")
        })
    }

    /// Dials a member for which something waits, unless that is due anyway: whoever does not answer is dialled ever more rarely.
    fn want_link(&mut self, node: NodeId, now: Now) {
        let known = self.peer(node);
        if known.link.is_some() {
            self.timers.set_at_latest(Timer::MailLink(node), now.mono + LINK_FOR);
        } else if known.dialling.is_none() && !self.timers.is_set(Timer::Connect(node)) {
            self.timers.set(Timer::Connect(node), now.mono);
        }
    }

    /// Lets go of a link that was dialled here for messages only, once nothing waits for the member at its end.
    pub(super) fn mail_link_over(&mut self, node: NodeId, links: &mut dyn Links, now: Now) {
        let Some(link) = self.peers.get(&node).and_then(|peer| peer.link) else { return };
        if self.links.get(&link).is_none_or(|held| held.side == Side::Accepted) {
            return;
        }
        let is_kept = self.keeps_link(node);
        if self.mail_wants_link(node) || !is_kept && (self.is_relayed_by(link) || self.is_only_link(link)) {
            self.timers.set(Timer::MailLink(node), now.mono + LINK_FOR);
        } else if !is_kept {
            self.drop_link(link, Code::Done, "no message is left for it", links);
        }
    }

    pub(super) fn receive_messages(&mut self, id: CallId, request: ReceiveRequest, now: Now) {
        let ReceiveRequest { topic, count, wait_ms } = request;
        let topics: TopicPattern = match topic.map_or(Ok(TopicPattern::any()), |text| text.parse()) {
            Ok(topics) => topics,
            Err(why) => return self.answer(id, Err(wrong(why, "name a topic, or the beginning of some and `*`"))),
        };
        let max = usize::from(count.unwrap_or(1).clamp(1, RECEIVE_MAX));
        let taken = self.mail.take(&topics, max, RECEIVE_BYTES_MAX, id.0, now.mono);
        let wait = Duration::from_millis(wait_ms.unwrap_or(0).into()).min(WAIT_MAX);
        if !taken.is_empty() || wait.is_zero() {
            return self.answer_received(id, &taken);
        }
        if self.waiting_mail.is_full() {
            return self.answer(id, Err(busy()));
        }
        self.waiting_mail.receives.insert(id, (topics, max));
        self.timers.set(Timer::MailCall(id), now.mono + wait);
    }

    fn answer_receives(&mut self) {
        if !self.mail.take_arrived() {
            return;
        }
        let waiting: Vec<_> = self.waiting_mail.receives.iter().map(|(id, what)| (*id, what.clone())).collect();
        for (id, (topics, max)) in waiting {
            let taken = self.mail.take(&topics, max, RECEIVE_BYTES_MAX, id.0, self.clock.looked_at());
            if !taken.is_empty() {
                self.waiting_mail.receives.remove(&id);
                self.timers.cancel(Timer::MailCall(id));
                self.answer_received(id, &taken);
            }
        }
    }

    fn answer_received(&mut self, id: CallId, taken: &[Delivery]) {
        let row = |delivery: &Delivery| Received {
            name: self.name_of(delivery.from),
            node: delivery.from.to_string(),
            id: delivery.id.map(|id| receipt(delivery.from, id)).unwrap_or_default(),
            topic: delivery.topic.to_string(),
            sent_at: Moment(delivery.sent),
            body: BASE64.encode(&delivery.body),
        };
        let rows = taken.iter().map(row).collect();
        self.answer(id, Ok(Answer::Received(rows)));
    }

    pub(super) fn messages_taken(&mut self, id: CallId, request: &TakenRequest, links: &mut dyn Links) {
        let answer = read_receipts(request).map(|ids| self.mail.taken(&ids) as u64);
        // What is to be on disk comes before the answer.
        self.carry_out_mail(links);
        self.answer(id, answer.map(|messages| Answer::Taken(TakenAnswer { messages })));
    }

    pub(super) fn messages_returned(&mut self, id: CallId, request: &TakenRequest, now: Now) {
        let answer = read_receipts(request).map(|ids| self.mail.returned(&ids, now.mono) as u64);
        self.answer(id, answer.map(|messages| Answer::Taken(TakenAnswer { messages })));
    }

    pub(super) fn message_outcomes(&mut self, id: CallId, request: &OutcomesRequest, now: Now) {
        let ids: Result<Vec<MessageId>, _> = request.ids.iter().map(|text| text.parse()).collect();
        let ids = match ids {
            Ok(ids) if ids.len() <= PENDING_MAX => ids,
            Ok(ids) => {
                let message = format!("{} ids; at most {PENDING_MAX} are read", ids.len());
                return self.answer(id, Err(wrong(message, "ask in several calls")));
            }
            Err(why) => return self.answer(id, Err(wrong(why, "give the ids that `weir send` told"))),
        };
        let wait = Duration::from_millis(request.wait_ms.unwrap_or(0).into()).min(WAIT_MAX);
        if wait.is_zero() || !self.is_any_open(&ids) {
            return self.answer_with_outcomes(id, &ids);
        }
        if self.waiting_mail.is_full() {
            return self.answer(id, Err(busy()));
        }
        self.waiting_mail.outcomes.insert(id, ids);
        self.timers.set(Timer::MailCall(id), now.mono + wait);
    }

    fn is_any_open(&self, ids: &[MessageId]) -> bool {
        ids.iter().any(|id| self.mail.outbox().stage(*id).is_some())
    }

    fn answer_with_outcomes(&mut self, id: CallId, ids: &[MessageId]) {
        let rows = ids.iter().map(|id| self.outcome(*id)).collect();
        self.answer(id, Ok(Answer::Sent(rows)));
    }

    /// Answers when all of them have come to their end, or in any case.
    fn answer_outcomes(&mut self, id: CallId, in_any_case: bool) {
        let is_over = |ids: &Vec<MessageId>| in_any_case || !self.is_any_open(ids);
        if self.waiting_mail.outcomes.get(&id).is_none_or(|ids| !is_over(ids)) {
            return;
        }
        let Some(ids) = self.waiting_mail.outcomes.remove(&id) else { return };
        self.timers.cancel(Timer::MailCall(id));
        self.answer_with_outcomes(id, &ids);
    }

    fn outcome(&self, id: MessageId) -> Sent {
        let outbox = self.mail.outbox();
        let (node, state, reason) = match (outbox.stage(id), outbox.outcome(id)) {
            (Some((node, Stage::Held)), _) => (Some(node), MessageState::Held, None),
            (Some((node, _)), _) => (Some(node), MessageState::Queued, None),
            (None, Some((node, outcome))) => {
                let (state, reason) = match outcome {
                    Outcome::Taken => (MessageState::Delivered, None),
                    Outcome::Expired => (MessageState::Expired, Some("nobody took it in time".to_owned())),
                    Outcome::Refused(why) => (MessageState::Refused, Some(why.to_string())),
                    Outcome::Parted => (MessageState::Refused, Some("the receiver is no member any more".to_owned())),
                };
                (Some(node), state, reason)
            }
            (None, None) => (None, MessageState::Unknown, None),
        };
        let name = node.map(|node| self.name_of(node)).unwrap_or_default();
        Sent { name, node: node.map(|node| node.to_string()).unwrap_or_default(), id: id.to_string(), state, reason }
    }

    /// A call has waited for long enough.
    pub(super) fn mail_call_over(&mut self, id: CallId) {
        if self.waiting_mail.receives.remove(&id).is_some() {
            self.answer_received(id, &[]);
        }
        self.answer_outcomes(id, true);
    }

    /// Whoever made this call did not hear its answer.
    pub fn handle_unheard(&mut self, id: CallId, links: &mut dyn Links) {
        self.mail.give_back(id.0, self.clock.looked_at());
        self.settle(links);
    }

    pub(super) fn messages(&self) -> Messages {
        let mut rows: BTreeMap<NodeId, OutboxRow> = BTreeMap::new();
        for (node, _, queued) in self.mail.outbox().waiting() {
            let row = rows.entry(node).or_insert_with(|| OutboxRow {
                name: self.name_of(node),
                node: node.to_string(),
                linked: self.mail.outbox().is_linked(node),
                messages: 0,
                bytes: 0,
                held: 0,
                oldest_at: Moment(queued.sent),
                expires_at: Moment(queued.not_after),
            });
            row.messages += 1;
            row.bytes += queued.body.len() as u64;
            row.held += u64::from(queued.stage == Stage::Held);
            row.expires_at = row.expires_at.min(Moment(queued.not_after));
        }
        let inbox = self.mail.inbox().waiting(self.clock.looked_at()).into_iter().map(|row| InboxRow {
            name: self.name_of(row.from),
            node: row.from.to_string(),
            topic: row.topic.to_string(),
            messages: row.messages,
            bytes: row.bytes,
            coming: row.coming,
        });
        Messages { outbox: rows.into_values().collect(), inbox: inbox.collect() }
    }
}

fn busy() -> Error {
    error(
        ErrorCode::Busy,
        format!("{WAITING_MAX} calls wait for messages already"),
        "receive in fewer programs, or wait less long",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::parse;

    #[test]
    fn a_policy_allows_nothing_of_members_that_it_cannot_know_yet() {
        let document = parse("default = \"allow\"").unwrap();
        let member =
            MemberView { node: NodeId([1; 32]), name: "a".into(), groups: vec![], prefixes: vec![], addresses: vec![] };
        let (known, topic) = (Some(&member), Topic::default());
        for (from, to, is_allowed) in [(known, known, true), (None, known, false), (known, None, false)] {
            let says = |document, default| Judge { document, default }.allows(from, to, &topic);
            assert_eq!(says(Some(&document), Action::Deny), is_allowed);
            // Without one there is nothing to know.
            assert!(says(None, Action::Allow) && !says(None, Action::Deny));
        }
    }
}
