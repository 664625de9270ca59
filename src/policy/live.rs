//! The policies of a running agent, and when they change.

use std::sync::Arc;

use tokio::sync::watch;

use super::compile::{BuiltIn, built_in};
use super::set::PolicySet;

/// The policies in force, replaced as a whole. Cheap to clone; the clones are one.
#[derive(Clone, Debug)]
pub struct Policies(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    set: watch::Sender<Arc<PolicySet>>,
}

impl Policies {
    /// The built-in policies alone.
    pub fn built_in(which: BuiltIn) -> Self {
        Self::of(built_in(which))
    }

    /// This set, for good.
    pub(super) fn of(set: PolicySet) -> Self {
        Self(Arc::new(Shared { set: watch::Sender::new(Arc::new(set)) }))
    }

    /// The policies in force.
    pub fn set(&self) -> Arc<PolicySet> {
        self.0.set.borrow().clone()
    }

    /// The policies in force, and every later set.
    pub fn watch(&self) -> watch::Receiver<Arc<PolicySet>> {
        self.0.set.subscribe()
    }
}
