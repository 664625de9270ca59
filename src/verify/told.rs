//! What this node tells other nodes of the trust domain without being asked: its revocation lists, and how the sessions
//! stand that they asked about.
//!
//! A node asks with `POST /changes` and [`Interest`] as JSON: the sessions whose calls were checked there. It gets JSON
//! lines, each a [`Message`]: all there is first, then what changed, and an empty one when nothing did for a while. It is
//! spoken between agents of one version.
//!
//! Promises: only agents of configured nodes are told, each in one stream; the first message is the state as it is, and
//! those after it are changes; of sessions each is told of those it asked about, and of no others. The stream ends when
//! the certificate does that it was opened with, or when that certificate is no longer believed.
//!
//! Does not: remember over a restart who asked about what. A node names its sessions when it opens its stream.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio::sync::{broadcast, oneshot, watch};

use super::Verifier;
use super::tls::Tls;
use crate::id::SpiffeId;
use crate::session::{Change, State};
use crate::trust::{CrlSet, Handed, Snapshot};
use crate::x509::Certificate;

/// The largest request that opens a stream.
pub const MAX_INTEREST_BYTES: usize = 1 << 20;
/// The most sessions that are remembered for one node; the oldest give way.
const MAX_SESSIONS: usize = 16_384;
/// An empty message is sent after this, so that a silent connection is a dead one.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(10);

/// What opens a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interest {
    /// Sessions of the node that is asked, of which calls were checked.
    pub sessions: Vec<String>,
}

/// One line of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Message {
    /// All lists of the node, where they are not what they were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) lists: Option<Vec<ListLine>>,
    /// Sessions that stand elsewhere than they did, and in the first message all that were named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) sessions: Vec<Standing>,
}

/// A revocation list; both fields in base64.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ListLine {
    /// The certificate of its authority, then what leads towards the bundle, in DER.
    issuer: String,
    /// The list in DER.
    crl: String,
}

/// How a session stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Standing {
    pub(super) session: String,
    /// Absent when nothing is known of it any more: then it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) state: Option<State>,
    /// When it ended.
    #[serde(default, with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub(super) at: Option<OffsetDateTime>,
}

impl ListLine {
    fn of(handed: &Handed) -> Self {
        Self { issuer: STANDARD.encode(&handed.issuer), crl: STANDARD.encode(&handed.der) }
    }

    /// `None` when a field is not base64.
    pub(super) fn read(&self) -> Option<Handed> {
        let decoded = |text: &str| STANDARD.decode(text).ok().map(Bytes::from);
        Some(Handed { issuer: decoded(&self.issuer)?, der: decoded(&self.crl)? })
    }
}

impl Message {
    fn line(&self) -> Bytes {
        let mut line = serde_json::to_vec(self).expect("text, numbers and lists of them are JSON");
        line.push(b'\n');
        line.into()
    }
}

/// Whom this node tells, and of which sessions.
#[derive(Debug, Default)]
pub(super) struct Told(Mutex<HashMap<SpiffeId, Listener>>);

#[derive(Debug, Default)]
struct Listener {
    sessions: HashSet<Arc<str>>,
    order: VecDeque<Arc<str>>,
    /// Dropped when the node opens another stream, which ends this one.
    stream: Option<oneshot::Sender<()>>,
}

impl Listener {
    fn note(&mut self, session: &str) {
        if self.sessions.contains(session) {
            return;
        }
        if self.order.len() >= MAX_SESSIONS
            && let Some(oldest) = self.order.pop_front()
        {
            self.sessions.remove(&oldest);
        }
        let session: Arc<str> = session.into();
        self.order.push_back(session.clone());
        self.sessions.insert(session);
    }
}

impl Told {
    /// Remembers that a node asked about a session.
    pub(super) fn note(&self, node: &SpiffeId, session: &str) {
        self.lock().entry(node.clone()).or_default().note(session);
    }

    fn knows(&self, node: &SpiffeId, session: &str) -> bool {
        self.lock().get(node).is_some_and(|listener| listener.sessions.contains(session))
    }

    fn sessions(&self, node: &SpiffeId) -> Vec<Arc<str>> {
        self.lock().get(node).map(|listener| listener.order.iter().cloned().collect()).unwrap_or_default()
    }

    /// The stream of this node from now on; any other that it has ends.
    fn begin<'a>(&self, node: &SpiffeId, named: impl Iterator<Item = &'a str>) -> oneshot::Receiver<()> {
        let (stream, ended) = oneshot::channel();
        let mut nodes = self.lock();
        let listener = nodes.entry(node.clone()).or_default();
        named.for_each(|session| listener.note(session));
        listener.stream = Some(stream);
        ended
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SpiffeId, Listener>> {
        // Whole after every statement: a panic elsewhere leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Verifier {
    /// What the agent of a configured node is told from now on, until the sender of `ended` is dropped; `None` for
    /// anybody else. `presented` is what it proved in TLS, leaf first.
    pub fn feed(
        self: &Arc<Self>,
        presented: Vec<CertificateDer<'static>>,
        interest: &Interest,
        tls: Tls,
        ended: watch::Receiver<()>,
    ) -> Option<Feed> {
        let leaf = Certificate::from_der(presented.first()?).ok()?;
        let node = leaf.svid_id().ok().filter(|id| self.nodes.is_agent_of_one(id))?;
        // Before anything is looked at: what changes meanwhile is not missed.
        let changes = self.sessions.changes();
        let of_this_node = |session: &&str| self.issuer.ledger.is_of_this_node(session);
        let replaced = self.told.begin(&node, interest.sessions.iter().map(String::as_str).filter(of_this_node));
        Some(Feed {
            crls: self.issuer.crls.watch(),
            trust: self.issuer.trust.watch(),
            until: leaf.not_after(),
            verifier: self.clone(),
            sent: None,
            presented,
            changes,
            replaced,
            ended,
            node,
            tls,
        })
    }
}

/// What one node is told.
#[derive(Debug)]
pub struct Feed {
    verifier: Arc<Verifier>,
    node: SpiffeId,
    presented: Vec<CertificateDer<'static>>,
    /// The end of its certificate.
    until: OffsetDateTime,
    tls: Tls,
    crls: watch::Receiver<Arc<CrlSet>>,
    trust: watch::Receiver<Arc<Snapshot>>,
    changes: broadcast::Receiver<Change>,
    replaced: oneshot::Receiver<()>,
    ended: watch::Receiver<()>,
    /// The lists that were sent last; `None` before the first message.
    sent: Option<Vec<Handed>>,
}

impl Feed {
    /// The next line; `None` when the node is told no more in this stream.
    pub async fn next(&mut self) -> Option<Bytes> {
        if self.sent.is_none() {
            return Some(self.everything().await.line());
        }
        let heartbeat = tokio::time::sleep(HEARTBEAT);
        tokio::pin!(heartbeat);
        loop {
            let message = tokio::select! {
                _ = self.ended.changed() => return None,
                _ = &mut self.replaced => return None,
                () = self.tls.clock.sleep_until(self.until) => return None,
                changed = self.trust.changed() => {
                    changed.ok()?;
                    self.is_still_believed()?;
                    None
                }
                changed = self.crls.changed() => {
                    changed.ok()?;
                    self.is_still_believed()?;
                    let current = self.crls.borrow_and_update().clone();
                    self.lists(&current)
                }
                change = self.changes.recv() => match change {
                    Ok(change) => self.standing(&change),
                    // After more changes than are kept: all as they are, so that no end is missed.
                    Err(broadcast::error::RecvError::Lagged(_)) => Some(Message { lists: None, sessions: self.standings() }),
                    Err(broadcast::error::RecvError::Closed) => return None,
                },
                () = &mut heartbeat => Some(Message::default()),
            };
            if let Some(message) = message {
                return Some(message.line());
            }
        }
    }

    async fn everything(&mut self) -> Message {
        self.crls.mark_unchanged();
        self.trust.mark_unchanged();
        let current = self.verifier.issuer.crls.current().await;
        Message { sessions: self.standings(), ..self.lists(&current).unwrap_or_default() }
    }

    fn is_still_believed(&self) -> Option<()> {
        self.tls.believes(&self.presented, Some(&self.node)).then_some(())
    }

    /// The lists of this node, unless they are those that were sent.
    fn lists(&mut self, set: &CrlSet) -> Option<Message> {
        let lists: Vec<Handed> = set.to_hand_over().collect();
        if self.sent.as_ref() == Some(&lists) {
            return None;
        }
        let lines = lists.iter().map(ListLine::of).collect();
        self.sent = Some(lists);
        Some(Message { lists: Some(lines), sessions: Vec::new() })
    }

    fn standing(&self, change: &Change) -> Option<Message> {
        let session = change.session.terms().id.as_str();
        self.verifier.told.knows(&self.node, session).then(|| Message {
            lists: None,
            sessions: vec![Standing {
                session: session.to_owned(),
                state: Some(change.state),
                at: change.session.ended_at(),
            }],
        })
    }

    /// How all sessions stand that the node asked about.
    fn standings(&self) -> Vec<Standing> {
        let asked_about = self.verifier.told.sessions(&self.node);
        let standing = |id: &Arc<str>| {
            let found = self.verifier.sessions.find(id);
            let (state, at) =
                (found.as_ref().map(|session| session.state()), found.and_then(|session| session.ended_at()));
            Standing { session: id.to_string(), state, at }
        };
        asked_about.iter().map(standing).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::EndReason;

    #[test]
    fn a_message_is_a_line_that_is_read_as_it_was_written() {
        let handed = Handed { issuer: Bytes::from_static(b"ca"), der: Bytes::from_static(b"list") };
        let message = Message {
            lists: Some(vec![ListLine::of(&handed)]),
            sessions: vec![
                Standing { session: "n.1".to_owned(), state: Some(State::Active), at: None },
                Standing { session: "n.3".to_owned(), state: None, at: None },
                Standing {
                    session: "n.2".to_owned(),
                    state: Some(State::Ended(EndReason::Operator)),
                    at: Some(OffsetDateTime::UNIX_EPOCH),
                },
            ],
        };
        let line = message.line();
        assert_eq!(
            line,
            "{\"lists\":[{\"issuer\":\"Y2E=\",\"crl\":\"bGlzdA==\"}],\"sessions\":[{\"session\":\"n.1\",\"state\":\"active\"},\
             {\"session\":\"n.3\"},{\"session\":\"n.2\",\"state\":{\"ended\":\"operator\"},\"at\":\"1970-01-01T00:00:00Z\"}]}\n"
        );
        assert_eq!(serde_json::from_slice::<Message>(&line).unwrap(), message);
        assert_eq!(message.lists.unwrap()[0].read(), Some(handed));
        assert_eq!(Message::default().line(), "{}\n");
    }

    #[test]
    fn a_node_is_told_of_what_it_asked_about_and_in_its_last_stream() {
        let id = |text: &str| SpiffeId::parse(text).unwrap();
        let (a, b) = (id("spiffe://td/tether/agent/a"), id("spiffe://td/tether/agent/b"));
        let told = Told::default();
        told.note(&a, "n.1");
        assert!(told.knows(&a, "n.1") && !told.knows(&a, "n.2") && !told.knows(&b, "n.1"));
        let mut first = told.begin(&a, ["n.2"].into_iter());
        assert!(told.knows(&a, "n.1") && told.knows(&a, "n.2"));
        assert!(first.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Empty));
        let _second = told.begin(&a, std::iter::empty());
        assert!(first.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Closed));
        for session in 0..MAX_SESSIONS {
            told.note(&a, &session.to_string());
        }
        assert!(!told.knows(&a, "n.1"), "the oldest gives way");
        assert_eq!(told.sessions(&a).len(), MAX_SESSIONS);
    }
}
