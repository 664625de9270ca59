//! What other nodes tell without being asked: one stream to each, opened again whenever it ends.
//!
//! Promises: the first message of a stream replaces what was missed before it; a revocation list is believed by our own
//! bundle alone, and a node is believed about its own sessions alone; what a node does not say for half a minute is said
//! to be silent, with since when and why. The lists of a silent node stay until they end.
//!
//! Does not: know what a silent node revoked or ended since. WITs are asked about at the node itself, so those are
//! refused meanwhile; a certificate is good until it ends.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use serde::Serialize;
use time::OffsetDateTime;
use tokio::sync::{broadcast, watch};

use super::{Node, Nodes, chain};
use crate::base::backoff::Backoff;
use crate::base::drain;
use crate::metrics::NodeLabel;
use crate::session::State;
use crate::user::fetch::Opened;
use crate::verify::told::{HEARTBEAT, Interest, Message, Standing};
use crate::verify::{Inactive, Verifier};
use crate::x509::Certificate;

/// A stream that says nothing for so long is dead.
const SILENCE: Duration = HEARTBEAT.saturating_mul(3);
/// The longest line: all lists of a node in base64, and all sessions.
const MAX_LINE: usize = 16 << 20;
/// The most sessions that are named.
const MAX_NAMED: usize = 4096;
/// The most sessions of one node whose end is remembered; the oldest give way.
const MAX_ENDED: usize = 65_536;
const FIRST_RETRY: Duration = Duration::from_millis(200);
const LAST_RETRY: Duration = Duration::from_secs(30);

/// Since when a node is heard, or why it is not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Heard {
    /// Since then.
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
    /// Why not; `None` while it is heard.
    pub silent: Option<String>,
}

/// Whether each node is heard, by its node id.
pub type HeardNodes = BTreeMap<String, Heard>;

/// A session of another node came to stand elsewhere.
#[derive(Clone, Debug)]
pub(in crate::verify) struct Elsewhere {
    pub(in crate::verify) session: String,
    /// `None` when the node knows nothing of it any more.
    pub(in crate::verify) state: Option<State>,
    pub(in crate::verify) at: Option<OffsetDateTime>,
}

/// The sessions of one node that may not be used, as far as it told.
#[derive(Debug, Default)]
pub(super) struct Unusable {
    states: HashMap<String, (Option<State>, Option<OffsetDateTime>)>,
    over: VecDeque<String>,
}

/// Whether there is no way back from it.
fn is_over(state: Option<State>) -> bool {
    matches!(state, None | Some(State::Ended(_)))
}

impl Unusable {
    /// Notes how a session stands, and says whether that is news. There is no way back from an end.
    fn note(&mut self, standing: &Standing) -> bool {
        let Standing { session, state, at } = standing;
        let known = self.states.get(session).map_or(Some(State::Active), |(state, _)| *state);
        if known == *state || is_over(known) {
            return false;
        }
        if *state == Some(State::Active) {
            self.states.remove(session);
            return true;
        }
        self.states.insert(session.clone(), (*state, *at));
        if is_over(*state) {
            self.over.push_back(session.clone());
            if self.over.len() > MAX_ENDED
                && let Some(oldest) = self.over.pop_front()
            {
                self.states.remove(&oldest);
            }
        }
        true
    }

    /// Forgets what may not be so any more once the node is silent.
    fn keep_ended(&mut self) {
        self.states.retain(|_, (state, _)| is_over(*state));
    }

    /// How a session stands that may not be used, and when it ended.
    fn of(&self, session: &str) -> Option<(Option<State>, Option<OffsetDateTime>)> {
        self.states.get(session).copied()
    }
}

/// Why a stream ended.
enum Ended {
    /// In the usual way, to be opened again: the node stops, or a certificate is over.
    Usual,
    Broken(String),
}

impl Nodes {
    /// Whether each node is heard, as that changes.
    pub fn heard(&self) -> watch::Receiver<HeardNodes> {
        self.heard.subscribe()
    }

    /// The changes of sessions of other nodes from now on.
    pub(in crate::verify) fn changes(&self) -> broadcast::Receiver<Elsewhere> {
        self.changes.subscribe()
    }

    /// How a session of another node stands, where that node told that it may not be used.
    pub(in crate::verify) fn unusable(&self, session: &str) -> Option<Elsewhere> {
        let (node, _) = session.split_once('.')?;
        let (state, at) = self.nodes.get(node)?.unusable().of(session)?;
        Some(Elsewhere { session: session.to_owned(), state, at })
    }
}

impl Node {
    /// Refuses a session that the node told may not be used.
    pub(super) fn stands(&self, session: &str) -> Result<(), Inactive> {
        let Some((state, _)) = self.unusable().of(session) else { return Ok(()) };
        match state {
            Some(State::Active) => Ok(()),
            Some(State::PendingApproval) => Err(Inactive::SessionPending),
            Some(State::Suspended) => Err(Inactive::SessionSuspended),
            Some(State::Ended(reason)) => Err(Inactive::SessionEnded(Some(reason))),
            None => Err(Inactive::SessionEnded(None)),
        }
    }
}

impl Verifier {
    /// Whether each node is heard, as that changes.
    pub fn heard_nodes(&self) -> watch::Receiver<HeardNodes> {
        self.nodes.heard()
    }

    /// Listens to every configured node until the agent stops.
    pub async fn follow_nodes(self: Arc<Self>, mut drain: drain::Watcher) {
        let each = self.nodes.nodes.keys().map(|id| self.follow(id));
        tokio::select! {
            () = drain.draining() => {}
            _ = futures_util::future::join_all(each) => drain.draining().await,
        }
    }

    async fn follow(&self, id: &str) {
        let Some(node) = self.nodes.nodes.get(id) else { return };
        node.tls.own.there().await;
        let mut backoff = Backoff::new(FIRST_RETRY, LAST_RETRY);
        loop {
            match self.listen(id, node, &mut backoff).await {
                Ended::Usual => {}
                Ended::Broken(why) => self.is_silent(id, node, why),
            }
            tokio::time::sleep(backoff.delay(&self.issuer.entropy)).await;
        }
    }

    /// One stream, to its end.
    async fn listen(&self, id: &str, node: &Node, backoff: &mut Backoff) -> Ended {
        let sessions = self.memory.sessions_of_node(id, MAX_NAMED);
        let interest = serde_json::to_vec(&Interest { sessions }).unwrap_or_default();
        // Before the connection is judged: what changes meanwhile is seen.
        let (mut trust, mut crls) = (node.tls.trust.watch(), node.tls.crls.watch());
        let opened = node.fetcher.open(&node.changes_at, "application/json", Bytes::from(interest)).await;
        let mut stream = match opened {
            Ok(stream) if stream.status == http::StatusCode::OK => Lines { stream, buffer: BytesMut::new() },
            Ok(stream) => return Ended::Broken(refused(node, &stream)),
            Err(error) => return Ended::Broken(chain(&error)),
        };
        let leaf = stream.stream.peer.first().and_then(|leaf| Certificate::from_der(leaf).ok());
        let Some(until) = leaf.map(|leaf| leaf.not_after()) else { return Ended::Usual };
        loop {
            let line = tokio::select! {
                line = tokio::time::timeout(SILENCE, stream.next()) => line,
                () = node.tls.clock.sleep_until(until) => return Ended::Usual,
                _ = trust.changed() => match node.tls.believes(&stream.stream.peer, Some(&node.agent)) {
                    true => continue,
                    false => return Ended::Broken("its certificate is not believed any more".to_owned()),
                },
                _ = crls.changed() => match node.tls.believes(&stream.stream.peer, Some(&node.agent)) {
                    true => continue,
                    false => return Ended::Broken("its certificate was revoked".to_owned()),
                },
            };
            let taken = match line {
                Err(_) => return Ended::Broken(format!("`{}` says nothing any more", node.changes_at.as_str())),
                Ok(Err(why)) => return Ended::Broken(why),
                Ok(Ok(None)) => return Ended::Usual,
                Ok(Ok(Some(line))) => self.take(id, node, &line).await,
            };
            if let Err(why) = taken {
                return Ended::Broken(why);
            }
            backoff.reset();
            self.is_heard(id);
        }
    }

    /// Takes one message of a node.
    async fn take(&self, id: &str, node: &Node, line: &[u8]) -> Result<(), String> {
        let unreadable = || format!("`{}` sends what is no message", node.changes_at.as_str());
        let message: Message = serde_json::from_slice(line).map_err(|_| unreadable())?;
        // Sessions first: lists may not be believed.
        for standing in message.sessions {
            self.take_standing(id, node, standing);
        }
        let Some(lists) = message.lists else { return Ok(()) };
        let lists: Option<Vec<_>> = lists.iter().map(|list| list.read()).collect();
        let lists = lists.ok_or_else(unreadable)?;
        let (crls, from) = (node.tls.crls.clone(), id.to_owned());
        let taken = tokio::task::spawn_blocking(move || crls.take(&from, &lists)).await;
        taken.map_err(|_| "the agent is stopping".to_owned())?.map_err(|error| chain(&error))
    }

    fn take_standing(&self, id: &str, node: &Node, standing: Standing) {
        let is_its_own = standing.session.split_once('.').is_some_and(|(of, _)| of == id);
        if !is_its_own || !node.unusable().note(&standing) {
            return;
        }
        node.good().forget_session(&standing.session);
        let Standing { session, state, at } = standing;
        // Nobody listening is fine.
        let _ = self.nodes.changes.send(Elsewhere { session, state, at });
    }

    fn is_heard(&self, id: &str) {
        let now = self.issuer.clock.now();
        let changed = self.nodes.heard.send_if_modified(|heard| {
            let Some(node) = heard.get_mut(id).filter(|node| node.silent.is_some()) else { return false };
            *node = Heard { since: now, silent: None };
            true
        });
        if changed {
            tracing::info!(node = id, "the node is heard: its revocations and ends of sessions are known here");
            self.issuer.metrics.node_heard.get_or_create(&NodeLabel { node: id.to_owned() }).set(1);
        }
    }

    fn is_silent(&self, id: &str, node: &Node, why: String) {
        let now = self.issuer.clock.now();
        node.unusable().keep_ended();
        self.nodes.heard.send_if_modified(|heard| {
            let Some(heard) = heard.get_mut(id).filter(|heard| heard.silent.as_ref() != Some(&why)) else {
                return false;
            };
            tracing::warn!(node = id, why, "the node is silent: what it revokes and ends is not known here");
            heard.since = if heard.silent.is_none() { now } else { heard.since };
            heard.silent = Some(why);
            true
        });
        self.issuer.metrics.node_heard.get_or_create(&NodeLabel { node: id.to_owned() }).set(0);
    }
}

fn refused(node: &Node, stream: &Opened) -> String {
    let at = node.changes_at.as_str();
    if stream.status == http::StatusCode::FORBIDDEN {
        return format!("`{at}` does not have this node in its own `sessions.nodes`");
    }
    format!("`{at}` answers {}", stream.status)
}

/// An answer, line by line.
struct Lines {
    stream: Opened,
    buffer: BytesMut,
}

impl Lines {
    /// The next line; `None` at the end. Nothing is lost when this is dropped while it waits.
    async fn next(&mut self) -> Result<Option<Bytes>, String> {
        let mut searched = 0;
        loop {
            if let Some(end) = self.buffer[searched..].iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(searched + end).freeze();
                self.buffer.advance(1);
                return Ok(Some(line));
            }
            searched = self.buffer.len();
            if searched > MAX_LINE {
                return Err(format!("a line of more than {MAX_LINE} bytes"));
            }
            match self.stream.piece().await {
                Ok(Some(piece)) => self.buffer.extend_from_slice(&piece),
                Ok(None) if self.buffer.is_empty() => return Ok(None),
                Ok(None) => return Err("the connection ended in the middle of a line".to_owned()),
                Err(error) => return Err(chain(&error)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::EndReason;

    #[test]
    fn what_a_node_told_of_a_session_holds_until_it_tells_otherwise_and_an_end_for_good() {
        let of = |session: &str, state| Standing { session: session.to_owned(), state, at: None };
        let (active, suspended) = (Some(State::Active), Some(State::Suspended));
        let ended = Some(State::Ended(EndReason::Operator));
        let mut unusable = Unusable::default();
        let rows = [
            (active, false, None),
            (suspended, true, Some(suspended)),
            (suspended, false, Some(suspended)),
            (active, true, None),
            (ended, true, Some(ended)),
            (active, false, Some(ended)),
            (None, false, Some(ended)),
        ];
        for (state, is_news, expected) in rows {
            assert_eq!(unusable.note(&of("n.1", state)), is_news, "{state:?}");
            assert_eq!(unusable.of("n.1").map(|(state, _)| state), expected, "{state:?}");
        }
        assert!(unusable.note(&of("n.2", suspended)) && unusable.note(&of("n.3", None)));
        unusable.keep_ended();
        assert!(unusable.of("n.1").is_some() && unusable.of("n.3").is_some());
        assert!(unusable.of("n.2").is_none(), "nobody says any more that it is suspended");
        for session in 0..MAX_ENDED {
            unusable.note(&of(&format!("n.x{session}"), ended));
        }
        assert!(unusable.of("n.1").is_none(), "the oldest gives way");
        assert_eq!(unusable.states.len(), MAX_ENDED);
    }
}
