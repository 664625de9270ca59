//! Where each request is decided.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::request::Parts;
use http_body::Body as _;
use http_body_util::BodyExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::super::body::{Body, full};
use super::super::mcp::{self, Merge, Message, Next};
use super::refusal::Refusal;
use crate::base::clock::Clock;
use crate::client::ClientError;
use crate::client::session::Digest;
use crate::client::tls::PeerCertificates;
use crate::client::verifier::{Check, CheckError, Verified, VerifierClient};

/// How long a request waits for an agent that is away, as when it is started anew.
const AGENT_PATIENCE: Duration = Duration::from_secs(5);
/// Between two attempts to ask it.
const PAUSE: Duration = Duration::from_millis(50);

/// How long a body that is read whole may take.
const WHOLE_BODY_PATIENCE: Duration = Duration::from_secs(30);
/// What all bodies that are held whole may take together, and in what it is counted.
const WHOLE_BODIES: usize = 256 << 20;
const BLOCK: usize = 1024;

/// Room for them.
pub(super) fn room() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(WHOLE_BODIES / BLOCK))
}

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
    /// What bodies that are held whole may take together, in blocks.
    pub(super) room: Arc<Semaphore>,
    pub(super) clock: Clock,
}

/// A request that may go on.
pub(super) struct Admitted {
    /// The agent's word; `None` when nobody was asked.
    pub(super) verified: Option<Verified>,
    pub(super) body: Body,
    /// What of the body was read, and passes as it was judged.
    pub(super) whole: Option<usize>,
    /// Errors for what was left out of it, to go with the answer.
    pub(super) merge: Option<Merge>,
    /// The memory that it has, to be kept until it has passed.
    pub(super) held: Option<Held>,
}

/// Room for a body that is held whole.
pub(super) type Held = OwnedSemaphorePermit;

impl Desk {
    /// Asks whether a request may go on, and how much of it.
    pub(super) async fn decide(
        &self,
        head: &Parts,
        uri: &str,
        peer: &PeerCertificates,
        body: Body,
    ) -> Result<Admitted, Refusal> {
        let Some(verifier) = &self.verifier else {
            return Ok(Admitted { verified: None, body, whole: None, merge: None, held: None });
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
            let verified = self.ask(verifier, &check).await?;
            return Ok(Admitted { verified: Some(verified), body, whole: None, merge: None, held: None });
        };
        let held = self.room_for(&body, limit)?;
        let whole = tokio::select! {
            whole = read(body, limit) => whole?,
            () = self.clock.pause(WHOLE_BODY_PATIENCE) => return Err(Refusal::Incomplete),
        };
        if self.demands.covered_body.is_some() {
            check.body = Some(Digest::of(&whole));
        }
        if !has_message {
            let verified = self.ask(verifier, &check).await?;
            return Ok(Admitted::whole(verified, whole, None, held));
        }
        let message = Message::read(&head.headers, whole).map_err(|wrong| {
            tracing::debug!(%wrong, "not a message of MCP");
            Refusal::Answered { outcome: "malformed", answer: wrong.answer() }
        })?;
        check.rpcs = message.rpcs();
        let verified = match self.ask(verifier, &check).await {
            Ok(verified) => verified,
            Err(refusal) => return Err(refusal.to(&message)),
        };
        match message.after(&verified.rpcs) {
            Next::Forward(bytes) => Ok(Admitted::whole(verified, bytes, None, held)),
            Next::Part(bytes, merge) => Ok(Admitted::whole(verified, bytes, Some(merge), held)),
            Next::Answer(answer) => Err(Refusal::Answered { outcome: "rpc_refused", answer }),
        }
    }

    /// Room for a body of at most `limit` bytes: what it says it has, or all of that.
    fn room_for(&self, body: &Body, limit: usize) -> Result<Held, Refusal> {
        let size = body.size_hint();
        if size.lower() > limit as u64 {
            return Err(Refusal::TooLarge);
        }
        let bytes = size.exact().unwrap_or(limit as u64);
        let blocks = u32::try_from(bytes / BLOCK as u64 + 1).unwrap_or(u32::MAX);
        self.room.clone().try_acquire_many_owned(blocks).map_err(|_| Refusal::Busy)
    }

    /// Asks until there is a word, for as long as a restart of the agent takes.
    ///
    /// Asking again is safe: only a word of the agent lets a request pass, each question gets one word at most here, and
    /// what a proof was used for is the agent's memory, not ours. The worst that comes of it is a refusal: of a proof
    /// that was noted by an agent that then could not answer (`replayed`), or that is older than the agent that is asked
    /// at last (`before_start`). The client makes a new one.
    async fn ask(&self, verifier: &VerifierClient, check: &Check) -> Result<Verified, Refusal> {
        let asking = async {
            loop {
                match verifier.check(check).await {
                    Ok(verified) => return Ok(verified),
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
    fn whole(verified: Verified, bytes: Bytes, merge: Option<Merge>, held: Held) -> Self {
        let (verified, whole) = (Some(verified), Some(bytes.len()));
        Self { verified, whole, body: full(bytes), merge, held: Some(held) }
    }
}

/// The whole of a body.
async fn read(mut body: Body, limit: usize) -> Result<Bytes, Refusal> {
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| Refusal::Incomplete)?.into_data() else { break };
        if whole.len() + data.len() > limit {
            return Err(Refusal::TooLarge);
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole.freeze())
}
