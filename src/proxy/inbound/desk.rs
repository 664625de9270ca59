//! Where each request is decided.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::request::Parts;
use http_body::Body as _;
use http_body_util::BodyExt as _;

use super::super::body::{Body, full};
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
    pub(super) clock: Clock,
}

impl Desk {
    /// Asks whether a request may go on. `None`: nobody is asked, the handshake was enough.
    pub(super) async fn decide(
        &self,
        head: &Parts,
        uri: &str,
        peer: &PeerCertificates,
        body: Body,
    ) -> Result<(Option<Verified>, Body), Refusal> {
        let Some(verifier) = &self.verifier else { return Ok((None, body)) };
        let check = Check::from_peer(&head.method, uri, &head.headers, peer);
        let mut check = check.map_err(Refusal::Refused)?;
        let needs_proof = self.demands.proof || self.demands.session || self.demands.covered_body.is_some();
        // Before the body is read: without a proof there is nothing to read it for.
        if needs_proof && !check.has_proof() {
            return Err(Refusal::unproven("no_proof"));
        }
        let mut body = body;
        if let Some(limit) = self.demands.covered_body {
            let whole = read(body, limit).await?;
            check.body = Some(Digest::of(&whole));
            body = full(whole);
        }
        check.min_binding = self.demands.min_binding;
        check.require_session = self.demands.session;
        Ok((Some(self.ask(verifier, &check).await?), body))
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

/// The whole of a body.
async fn read(mut body: Body, limit: usize) -> Result<Bytes, Refusal> {
    if body.size_hint().lower() > limit as u64 {
        return Err(Refusal::TooLarge);
    }
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
