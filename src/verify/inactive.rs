//! Why a request is not what its caller says.

use thiserror::Error;

use crate::ledger::Reason;
use crate::proof::{ProofError, ReplayError};
use crate::session::EndReason;
use crate::x509::X509Error;

/// Why a request is not what its caller says. For the log of who asked, and for audit; never for who presented it.
#[derive(Debug, Error)]
pub enum Inactive {
    /// There is no WIT with a proof in the headers: a WIT alone proves nothing.
    #[error("the request carries no `Workload-Identity-Token` with one `Authorization: WPT`")]
    NoProof,
    /// The WIT or the proof does not hold.
    #[error(transparent)]
    Proof(#[from] ProofError),
    /// The WIT does not name a node of this trust domain, so nobody can be asked whether it stands.
    #[error("the WIT was not issued by a node that can be asked whether it stands")]
    AnotherNode,
    /// The WIT is of this node, and not in its ledger.
    #[error("the WIT is not in the ledger of this node")]
    Unknown,
    /// The WIT was revoked.
    #[error("the WIT was revoked: {}", .0.as_str())]
    Revoked(Reason),
    /// This agent held its key, and does not any more.
    #[error("the key of the WIT was wiped: its process is over, or the WIT")]
    Wiped,
    /// The process could not be looked at.
    #[error("the process that the WIT was issued to cannot be looked at now")]
    Unseen,
    /// The proof was presented before, or it cannot be told.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// The session has ended, or nothing is known of it any more.
    #[error("the session has ended{}", because(*.0))]
    SessionEnded(Option<EndReason>),
    /// An operator suspended the session.
    #[error("the session is suspended")]
    SessionSuspended,
    /// The session waits for an approver.
    #[error("the session waits for an approval")]
    SessionPending,
    /// The asker takes requests of sessions alone.
    #[error("the request was made in no session")]
    NoSession,
    /// What the proof says of the session is not what the session is.
    #[error("`{0}` of the proof is not that of its session")]
    Claim(&'static str),
    /// The token is for another target.
    #[error("the token is for another target")]
    Target,
    /// The token lacks a scope.
    #[error("the token lacks the scope `{0}`")]
    Scope(String),
    /// The credential is worth less than the asker takes.
    #[error("the binding level is {found}, and the asker takes no less than {wanted}")]
    Binding {
        /// What it is worth.
        found: u8,
        /// What it should be.
        wanted: u8,
    },
    /// The proof was made for another tool.
    #[error("the proof is for another tool")]
    Tool,
    /// The proof was made for other arguments.
    #[error("the proof is for other arguments")]
    Arguments,
    /// The proof says that the call does less than its method does.
    #[error("the proof says of the call that it does less than its method does")]
    Effect,
    /// The token is for one call and had it.
    #[error("the token is good for one call, and had it")]
    Used,
    /// Policy does not permit the call.
    #[error("policy does not permit the call{}", named(.0))]
    Policy(Vec<String>),
    /// A person must agree first.
    #[error("policy wants an approval of the call first{}", waiting(.0.as_deref()))]
    StepUp(Option<String>),
    /// The certificate that the caller proved in TLS is not believed.
    #[error("the certificate of the TLS connection is not believed")]
    Peer(#[from] X509Error),
    /// That certificate was issued here and does not stand any more.
    #[error("the certificate of the TLS connection was revoked{}", .0.map_or_else(String::new, |why| format!(": {}", why.as_str())))]
    PeerRevoked(Option<Reason>),
    /// The WIT identifies another than the certificate of the TLS connection does.
    #[error("the WIT is of another SPIFFE ID than the certificate of the TLS connection")]
    PeerOfAnother,
    /// A token for one call came with several.
    #[error("the token is good for one call, and the request carries several")]
    Several,
    /// It cannot be written down that the request was accepted.
    #[error("it cannot be written down that the request was accepted")]
    Unrecorded,
    /// The node that issued the WIT is not configured.
    #[error("the WIT was issued by node `{0}`, which is not in `sessions.nodes`")]
    NodeUnknown(String),
    /// The node that issued the WIT does not say in time whether it stands.
    #[error("node `{node}`, which issued the WIT, does not say whether it stands: {why}")]
    NodeUnreachable {
        /// Which.
        node: String,
        /// What happened.
        why: String,
    },
    /// The node that issued the WIT says that it does not stand, and not why.
    #[error("node `{0}`, which issued the WIT, says that it does not stand; its audit log says why")]
    NotAtNode(String),
}

fn named(policies: &[String]) -> String {
    if policies.is_empty() { String::new() } else { format!(": {}", policies.join(", ")) }
}

fn because(reason: Option<EndReason>) -> String {
    reason.map_or_else(String::new, |reason| format!(": {}", reason.as_str()))
}

fn waiting(approval: Option<&str>) -> String {
    approval.map_or_else(String::new, |id| format!(": `tether approval approve {id}`"))
}

impl Inactive {
    /// One of a small fixed set: those of `CheckResponse.reason` in `proto/session.proto`.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::NoProof => "no_proof",
            Self::Proof(error) => error.as_str(),
            Self::AnotherNode => "another_node",
            Self::Unknown => "unknown",
            Self::Revoked(_) | Self::NotAtNode(_) => "revoked",
            Self::Wiped => "ended",
            Self::Unseen => "unseen",
            Self::Replay(error) => error.as_str(),
            Self::SessionEnded(_) => "session_ended",
            Self::SessionSuspended => "session_suspended",
            Self::SessionPending => "session_pending",
            Self::NoSession => "no_session",
            Self::Claim(_) => "proof_of_another_token",
            Self::Target => "target",
            Self::Scope(_) => "scope",
            Self::Binding { .. } => "binding",
            Self::Tool => "tool",
            Self::Arguments => "arguments",
            Self::Effect => "effect",
            Self::Used => "used",
            Self::Policy(_) => "policy",
            Self::StepUp(_) => "step_up",
            Self::Peer(X509Error::Revoked) | Self::PeerRevoked(_) => "peer_revoked",
            Self::Peer(X509Error::Expired(_)) => "peer_expired",
            Self::Peer(_) => "peer",
            Self::PeerOfAnother => "peer_of_another",
            Self::Several => "tool",
            Self::Unrecorded => "busy",
            Self::NodeUnknown(_) => "node_unknown",
            Self::NodeUnreachable { .. } => "node_unreachable",
        }
    }

    /// What to approve, where that would help.
    pub fn approval(&self) -> Option<&str> {
        if let Self::StepUp(approval) = self { approval.as_deref() } else { None }
    }
}
