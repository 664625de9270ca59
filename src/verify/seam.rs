//! What the verifier needs of the sessions of this node.

use std::fmt;

use super::{Agreed, Call, SessionView};
use crate::policy::{Decision, Question};
use crate::session::State;

/// A call that waits for a person, or was allowed by one.
#[derive(Clone, Copy, Debug)]
pub struct AskedFor<'a> {
    /// The session.
    pub session: &'a SessionView,
    /// The request.
    pub call: &'a Call,
    /// What everybody says of it.
    pub agreed: &'a Agreed,
    /// Why a person is asked.
    pub why: &'a str,
    /// The policies that want it.
    pub policies: &'a [String],
}

/// The sessions of this node, its approvals and its policy.
#[tonic::async_trait]
pub trait Tasks: fmt::Debug + Send + Sync {
    /// Looks at who acts in the session; what is gone ends it.
    async fn look(&self, session: &str);
    /// The session as it is; `None` when nothing is known of it any more.
    fn view(&self, session: &str) -> Option<(SessionView, State)>;
    /// What policy says now.
    fn decide(&self, question: &Question<'_>) -> Decision;
    /// Whether the approval with this id was given for exactly this, and holds.
    fn is_approved(&self, approval: &str, asked: &AskedFor<'_>) -> bool;
    /// Uses an approval of this node for exactly this, if there is one; else asks for one. `Ok`: used, `Err`: what to
    /// approve.
    async fn approval(&self, asked: &AskedFor<'_>) -> Result<String, Option<String>>;
}

/// No sessions: no session stands.
#[derive(Debug)]
pub struct NoTasks;

#[tonic::async_trait]
impl Tasks for NoTasks {
    async fn look(&self, _: &str) {}

    fn view(&self, _: &str) -> Option<(SessionView, State)> {
        None
    }

    fn decide(&self, _: &Question<'_>) -> Decision {
        Decision {
            allowed: false,
            obligations: crate::policy::Obligations::default(),
            policies: [].into(),
            errors: Vec::new(),
            set: "".into(),
        }
    }

    fn is_approved(&self, _: &str, _: &AskedFor<'_>) -> bool {
        false
    }

    async fn approval(&self, _: &AskedFor<'_>) -> Result<String, Option<String>> {
        Err(None)
    }
}
