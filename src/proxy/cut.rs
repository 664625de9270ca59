//! Ending what is open: at once, or after what goes on.

use std::sync::Arc;

use tokio::sync::watch;

/// Why something that was open was cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CutReason {
    /// The certificate of the peer was revoked, or its trust domain's bundle is gone.
    PeerRevoked,
    /// The session in which the request was made has ended.
    SessionEnded,
    /// The session was suspended.
    SessionSuspended,
    /// Whether the session goes on could not be found out again after the agent was away.
    SessionUnknown,
    /// The process that was acted for has exited, or runs another program.
    ProgramEnded,
    /// The process that was acted for has no identity any more, or another one.
    IdentityLost,
    /// It did not finish in time when the proxy was told to stop.
    Stopped,
}

impl CutReason {
    /// Its stable name, in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PeerRevoked => "peer_revoked",
            Self::SessionEnded => "session_ended",
            Self::SessionSuspended => "session_suspended",
            Self::SessionUnknown => "session_unknown",
            Self::ProgramEnded => "program_ended",
            Self::IdentityLost => "identity_lost",
            Self::Stopped => "stopped",
        }
    }
}

/// How something open stands. There is no way back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Phase {
    /// It goes on.
    #[default]
    Open,
    /// Nothing new begins; what has begun goes on.
    Finishing,
    /// Everything ends now.
    Cut(CutReason),
}

/// Ends a connection, or a request, from outside. Clones are of the same.
#[derive(Clone, Debug, Default)]
pub struct Lifeline(Arc<watch::Sender<Phase>>);

/// Learns of it.
#[derive(Clone, Debug)]
pub struct Cut(watch::Receiver<Phase>);

impl Lifeline {
    /// Lets nothing new begin.
    pub fn finish(&self) {
        self.0.send_if_modified(|phase| {
            let opened = *phase == Phase::Open;
            if opened {
                *phase = Phase::Finishing;
            }
            opened
        });
    }

    /// Ends everything. The first reason counts.
    pub fn cut(&self, reason: CutReason) {
        self.0.send_if_modified(|phase| {
            let first = !matches!(phase, Phase::Cut(_));
            if first {
                *phase = Phase::Cut(reason);
            }
            first
        });
    }

    /// How it stands.
    pub fn phase(&self) -> Phase {
        *self.0.borrow()
    }

    /// Returns when nobody is left who learns of it: everything on a connection is over.
    pub async fn unwatched(&self) {
        self.0.closed().await;
    }

    /// What learns of it.
    pub fn watch(&self) -> Cut {
        Cut(self.0.subscribe())
    }
}

impl Cut {
    /// How it stands.
    pub fn phase(&self) -> Phase {
        *self.0.borrow()
    }

    /// Returns when nothing new is to begin.
    pub async fn finishing(&mut self) {
        self.until(|phase| phase != Phase::Open).await;
    }

    /// Returns when everything is to end, with the reason.
    pub async fn cut(&mut self) -> CutReason {
        match self.until(|phase| matches!(phase, Phase::Cut(_))).await {
            Phase::Cut(reason) => reason,
            Phase::Open | Phase::Finishing => std::future::pending().await,
        }
    }

    async fn until(&mut self, wanted: impl Fn(Phase) -> bool) -> Phase {
        let reached = self.0.wait_for(|phase| wanted(*phase)).await.map(|phase| *phase);
        match reached {
            Ok(phase) => phase,
            // Nobody is left who could end it.
            Err(_) => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_reason_counts_and_nothing_that_was_cut_only_finishes() {
        let lifeline = Lifeline::default();
        let mut cut = lifeline.watch();
        lifeline.cut(CutReason::PeerRevoked);
        lifeline.cut(CutReason::Stopped);
        lifeline.finish();
        assert_eq!(cut.cut().await, CutReason::PeerRevoked);
        cut.finishing().await;
    }
}
