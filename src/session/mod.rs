//! A session: authority that lasts exactly as long as the task.

pub mod approvals;
mod model;

pub use self::model::{Boundary, Budget, EndReason, Members, SessionId, State, Terms};
