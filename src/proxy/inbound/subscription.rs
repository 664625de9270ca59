//! What the agent tells of sessions, from a moment that is known.
//!
//! The library's [`StatusWatch`](crate::client::verifier::StatusWatch) opens itself when it is first asked, and anew
//! between two changes without a word. Here it matters since when the agent is heard: a request may be passed on by its
//! word only if the end of the session cannot be missed after that.

use tonic::Streaming;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;

use super::super::cut::CutReason;
use crate::client::{ClientError, Endpoint, SecurityHeader, channel, with_header};
use crate::proto::session as wire;
use crate::proto::session::verifier_client::VerifierClient;

/// Who subscribes.
pub(super) struct Subscriber {
    client: VerifierClient<InterceptedService<Channel, SecurityHeader>>,
    endpoint: Endpoint,
}

/// A subscription that is in force.
pub(super) struct Subscription {
    stream: Streaming<wire::StatusChange>,
    endpoint: Endpoint,
}

/// A session that changed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Changed {
    /// Which.
    pub(super) session: String,
    /// Why nothing of it may go on; `None` when it stands.
    pub(super) over: Option<CutReason>,
}

impl Subscriber {
    /// At the agent at `endpoint`.
    pub(super) fn new(endpoint: &Endpoint) -> Self {
        Self { client: VerifierClient::new(with_header(channel(endpoint))), endpoint: endpoint.clone() }
    }

    /// Subscribes. What changes after this has returned is told: the agent subscribes before its answer begins.
    pub(super) async fn subscribe(&self) -> Result<Subscription, ClientError> {
        let answer = self.client.clone().watch(wire::WatchCheckedRequest {}).await;
        let answer = answer.map_err(|status| ClientError::from_status(&self.endpoint, &status))?;
        Ok(Subscription { stream: answer.into_inner(), endpoint: self.endpoint.clone() })
    }
}

impl Subscription {
    /// The next change. After an error there are none.
    pub(super) async fn next(&mut self) -> Result<Changed, ClientError> {
        match self.stream.message().await {
            Ok(Some(change)) => read(change),
            Ok(None) => Err(ClientError::Ended),
            Err(status) => Err(ClientError::from_status(&self.endpoint, &status)),
        }
    }
}

fn read(change: wire::StatusChange) -> Result<Changed, ClientError> {
    let over = match change.state() {
        wire::State::Active => None,
        wire::State::Suspended => Some(CutReason::SessionSuspended),
        wire::State::Ended => Some(CutReason::SessionEnded),
        // A session whose call was checked does not wait to begin.
        wire::State::PendingApproval | wire::State::Unspecified => {
            return Err(ClientError::Malformed("the state of a session is unknown".to_owned()));
        }
    };
    Ok(Changed { session: change.session, over })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_in_a_state_that_is_unknown_is_not_taken_to_stand() {
        let change = |state: i32| {
            read(wire::StatusChange { session: "s".to_owned(), state, ..Default::default() })
                .map(|changed| changed.over)
        };
        assert_eq!(change(wire::State::Active.into()).unwrap(), None);
        assert_eq!(change(wire::State::Suspended.into()).unwrap(), Some(CutReason::SessionSuspended));
        assert_eq!(change(wire::State::Ended.into()).unwrap(), Some(CutReason::SessionEnded));
        for unknown in [wire::State::Unspecified.into(), wire::State::PendingApproval.into(), 99] {
            assert!(change(unknown).is_err(), "{unknown}");
        }
    }
}
