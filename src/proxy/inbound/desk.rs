//! Where each request is decided.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::request::Parts;
use http_body::Body as _;
use http_body_util::BodyExt as _;

use super::super::body::{Body, full, guarded};
use super::super::mcp::{self, Merge, Message, Next};
use super::refusal::Refusal;
use super::room::{Full, Held, Room};
use super::tasks::{OpenTask, Tasks};
use crate::base::clock::Clock;
use crate::client::ClientError;
use crate::client::session::Digest;
use crate::client::tls::PeerCertificates;
use crate::client::verifier::{Check, CheckError, Verified, VerifierClient};
use crate::id::SpiffeId;

/// How long a request waits for an agent that is away, as when it is started anew.
const AGENT_PATIENCE: Duration = Duration::from_secs(5);
/// Between two attempts to ask it.
const PAUSE: Duration = Duration::from_millis(50);

/// How long a body that is read whole may take.
const WHOLE_BODY_PATIENCE: Duration = Duration::from_secs(30);

/// What every request must have, whatever policy says.
#[derive(Clone, Copy, Debug, Default)]
pub struct Demands {
    /// A proof made for this very request.
    pub proof: bool,
    /// To be made in a session.
    pub session: bool,
    /// A proof that covers the body, which is read whole for that, up to so many bytes.
    pub covered_body: Option<usize>,
    /// The least binding level.
    pub min_binding: u32,
}

/// Asks the agent, or nobody.
#[derive(Clone)]
pub(super) struct Desk {
    pub(super) verifier: Option<VerifierClient>,
    pub(super) demands: Demands,
    /// Whether what is behind speaks MCP.
    pub(super) mcp: bool,
    /// For bodies that are held whole.
    pub(super) room: Room,
    /// What is open for each session.
    pub(super) tasks: Tasks,
    pub(super) clock: Clock,
}

/// A request that may go on.
pub(super) struct Admitted {
    /// The agent's word; `None` when nobody was asked.
    pub(super) verified: Option<Verified>,
    /// Its place among what is open for its session, for a request in one.
    pub(super) task: Option<OpenTask>,
    /// What goes on; a body that was read whole has its room until it has passed.
    pub(super) body: Body,
    /// What of the body was read, and passes as it was judged.
    pub(super) whole: Option<usize>,
    /// Errors for what was left out of it, to go with the answer.
    pub(super) merge: Option<Merge>,
}

/// The agent's word on a request, and the place of it among what is open for its session.
type Word = (Verified, Option<OpenTask>);

impl Desk {
    /// Asks whether a request of `id`, which proved `peer`, may go on, and how much of it.
    pub(super) async fn decide(
        &self,
        head: &Parts,
        uri: &str,
        (id, peer): (&SpiffeId, &PeerCertificates),
        body: Body,
    ) -> Result<Admitted, Refusal> {
        let Some(verifier) = &self.verifier else {
            return Ok(Admitted { verified: None, task: None, body, whole: None, merge: None });
        };
        let check = Check::from_peer(&head.method, uri, &head.headers, peer);
        let mut check = check.map_err(Refusal::Refused)?;
        let needs_proof = self.demands.proof || self.demands.session || self.demands.covered_body.is_some();
        // Before the body is read: without a proof there is nothing to read it for.
        if needs_proof && !check.has_proof() {
            return Err(Refusal::unproven("no_proof"));
        }
        check.min_binding = self.demands.min_binding;
        check.require_session = self.demands.session;
        let has_message = self.mcp && mcp::is_message(&head.method);
        let limit = match (self.demands.covered_body, has_message) {
            (Some(limit), true) => Some(limit.min(mcp::MAX_BODY)),
            (None, true) => Some(mcp::MAX_BODY),
            (limit, false) => limit,
        };
        let Some(limit) = limit else {
            let (verified, task) = self.ask(verifier, &check).await?;
            return Ok(Admitted { verified: Some(verified), task, body, whole: None, merge: None });
        };
        let mut held = self.room.of(id, limit);
        let whole = tokio::select! {
            whole = read(body, limit, &mut held) => whole?,
            () = self.clock.pause(WHOLE_BODY_PATIENCE) => return Err(Refusal::Incomplete),
        };
        if self.demands.covered_body.is_some() {
            check.body = Some(Digest::of(&whole));
        }
        if !has_message {
            let word = self.ask(verifier, &check).await?;
            return Ok(Admitted::whole(word, whole, None, held));
        }
        let message = Message::read(&head.headers, whole).map_err(|wrong| {
            tracing::debug!(%wrong, "not a message of MCP");
            Refusal::Answered { outcome: "malformed", answer: wrong.answer() }
        })?;
        check.rpcs = message.rpcs();
        let word = match self.ask(verifier, &check).await {
            Ok(word) => word,
            Err(refusal) => return Err(refusal.to(&message)),
        };
        match message.after(&word.0.rpcs) {
            Next::Forward(bytes) => Ok(Admitted::whole(word, bytes, None, held)),
            Next::Part(bytes, merge) => Ok(Admitted::whole(word, bytes, Some(merge), held)),
            Next::Answer(answer) => Err(Refusal::Answered { outcome: "rpc_refused", answer }),
        }
    }

    /// Asks until there is a word, for as long as a restart of the agent takes.
    ///
    /// Asking again is safe: only a word of the agent lets a request pass, each question gets one word at most here, and
    /// what a proof was used for is the agent's memory, not ours. The worst that comes of it is a refusal: of a proof
    /// that was noted by an agent that then could not answer (`replayed`), or that is older than the agent that is asked
    /// at last (`before_start`). The client makes a new one.
    ///
    /// What may be in a session is asked only while the agent tells which sessions end, so that no end is missed after its word.
    async fn ask(&self, verifier: &VerifierClient, check: &Check) -> Result<Word, Refusal> {
        let asking = async {
            loop {
                let heard = match check.has_proof() {
                    true => Some(self.tasks.heard().await),
                    false => None,
                };
                match verifier.check(check).await {
                    Ok(verified) => {
                        let task = match (&verified.session, heard) {
                            (Some(session), Some(heard)) => Some(self.tasks.enter(session, heard)),
                            // There is no session without a proof.
                            (Some(_), None) => return Err(Refusal::Unchecked),
                            (None, _) => None,
                        };
                        return Ok((verified, task));
                    }
                    Err(CheckError::Refused(refused)) => return Err(Refusal::Refused(refused)),
                    Err(CheckError::Agent(error @ (ClientError::Unreachable { .. } | ClientError::NotReady(_)))) => {
                        tracing::debug!(%error, "a request waits for the agent");
                        tokio::time::sleep(PAUSE).await;
                    }
                    Err(CheckError::Agent(error)) => {
                        let hint = match error {
                            ClientError::Denied(_) => {
                                "list the URI under `serves` in the registration entry of this proxy"
                            }
                            _ => "is the agent running, with sessions on?",
                        };
                        tracing::error!(%error, hint, "requests are refused: they cannot be checked");
                        return Err(Refusal::Unchecked);
                    }
                }
            }
        };
        tokio::select! {
            biased;
            decided = asking => decided,
            () = self.clock.pause(AGENT_PATIENCE) => Err(Refusal::Unchecked),
        }
    }
}

impl Admitted {
    fn whole((verified, task): Word, bytes: Bytes, merge: Option<Merge>, held: Held) -> Self {
        let (verified, whole) = (Some(verified), Some(bytes.len()));
        Self { verified, task, whole, body: guarded(full(bytes), None, held), merge }
    }
}

/// The whole of a body. `held` gets room for what it says it has at once, and otherwise for what has come.
async fn read(mut body: Body, limit: usize, held: &mut Held) -> Result<Bytes, Refusal> {
    let busy = |Full| Refusal::Busy;
    let least = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if least > limit {
        return Err(Refusal::TooLarge);
    }
    held.reach(least).map_err(busy)?;
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| Refusal::Incomplete)?.into_data() else { break };
        if whole.len() + data.len() > limit {
            return Err(Refusal::TooLarge);
        }
        held.reach(whole.len() + data.len()).map_err(busy)?;
        whole.extend_from_slice(&data);
    }
    Ok(whole.freeze())
}
