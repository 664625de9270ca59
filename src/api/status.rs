//! The one table from refusals to gRPC statuses and public text (SPIFFE Workload Endpoint, section 6).
//!
//! Clients retry Unavailable and PermissionDenied with backoff and report InvalidArgument and Unimplemented at once,
//! so the code says what a caller should do; the text says it to a person.

use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

use crate::authority::AuthorityError;
use crate::base::quota::Full;
use crate::base::text::chain;
use crate::held::HeldError;
use crate::issue::{Invalid, Refusal};
use crate::peer::{InstanceError, LookError};
use crate::proto::{APPROVAL_METADATA, DENIAL_METADATA, SESSION_END_METADATA};
use crate::session::approvals::ApprovalError;
use crate::session::{EndReason, SessionError};
use crate::store::StoreError;
use crate::trust::TrustError;

/// The metadata key that every call to a Workload Endpoint carries.
pub const HEADER: &str = "workload.spiffe.io";

/// A call without the metadata that shows it was meant for a Workload Endpoint (section 3).
pub fn missing_header() -> Status {
    Status::invalid_argument(format!(
        "the metadata `{HEADER}: true` is missing: every call to a Workload Endpoint carries it"
    ))
}

/// A call that does without that metadata is none of gRPC.
pub fn no_grpc() -> Status {
    Status::invalid_argument("the content type is not that of gRPC")
}

/// A mandatory field is empty or malformed.
pub fn bad_field(field: &str, why: impl std::fmt::Display) -> Status {
    Status::invalid_argument(format!("`{field}` {why}"))
}

/// Too much at once.
pub fn too_many(what: &str, full: Full) -> Status {
    let (whose, limit) = match full {
        Full::User(limit) => ("this user has", limit),
        Full::All(limit) => ("all users together have", limit),
    };
    Status::unavailable(format!("{whose} {limit} {what} already, which is the limit: close some and try again"))
}

/// A caller gets nothing.
pub fn refused(refusal: &Refusal) -> Status {
    let code = match refusal {
        Refusal::NoIdentity { .. } | Refusal::NotGranted(_) | Refusal::Denied(_) => Code::PermissionDenied,
        Refusal::NoSuchHint(_) | Refusal::NotExportable { .. } => Code::PermissionDenied,
        Refusal::Connection(_) | Refusal::Look(LookError::Ended(_)) => Code::PermissionDenied,
        Refusal::Look(LookError::Unseen(_))
        | Refusal::Attestation(_)
        | Refusal::Unavailable { .. }
        | Refusal::Stopping => Code::Unavailable,
        Refusal::Revoked(_) => Code::PermissionDenied,
        Refusal::Changed
        | Refusal::Authority(_)
        | Refusal::Key(_)
        | Refusal::Bond(_)
        | Refusal::Holder(_)
        | Refusal::Ledger(_)
        | Refusal::Audit(_) => Code::Unavailable,
        Refusal::Held(error) => held(error),
        Refusal::NoTargetInode => Code::InvalidArgument,
        Refusal::Target(InstanceError::Io { .. }) => Code::Unavailable,
        Refusal::Target(InstanceError::NoInodes) => Code::FailedPrecondition,
        Refusal::Target(_) => Code::NotFound,
    };
    let mut status = Status::new(code, refusal.to_string());
    if code == Code::PermissionDenied {
        status.metadata_mut().insert(DENIAL_METADATA, MetadataValue::from_static(refusal.as_str()));
    }
    status
}

/// Something about a session is refused. FailedPrecondition says that the same call may do later, or in another session.
pub fn session(error: &SessionError) -> Status {
    let code = match error {
        SessionError::Refused(refusal) => return refused(refusal),
        SessionError::NotFound | SessionError::NoProcess(_) => Code::NotFound,
        SessionError::Field { .. } | SessionError::Ambiguous(_) | SessionError::InNone => Code::InvalidArgument,
        SessionError::User(error) if error.is_temporary() => Code::Unavailable,
        SessionError::NotMember(_)
        | SessionError::Exceeds { .. }
        | SessionError::Target(_)
        | SessionError::Scope(_)
        | SessionError::Denied(_)
        | SessionError::User(_)
        | SessionError::Launch(_) => Code::PermissionDenied,
        SessionError::StepUp { .. }
        | SessionError::Pending
        | SessionError::Suspended
        | SessionError::Ended(_)
        | SessionError::Budget(_)
        | SessionError::NoToken
        | SessionError::Withdrawn(_)
        | SessionError::Clock(_) => Code::FailedPrecondition,
        SessionError::Approval(error) => approval_code(error),
        SessionError::TooMany(_) | SessionError::TooManyTokens => Code::ResourceExhausted,
        SessionError::Held(error) => held(error),
        SessionError::Bond(_) | SessionError::Unheld(_) | SessionError::Journal(_) | SessionError::Audit(_) => {
            Code::Unavailable
        }
    };
    let text = match error {
        SessionError::TooMany(full) => return too_many_sessions(*full),
        error => chain(error),
    };
    let mut status = Status::new(code, text);
    let metadata = status.metadata_mut();
    metadata.insert(DENIAL_METADATA, MetadataValue::from_static(error.as_str()));
    let ended = match error {
        SessionError::Ended(reason) => Some(reason.as_str()),
        SessionError::Budget(_) => Some(EndReason::BudgetSpent.as_str()),
        _ => None,
    };
    if let Some(reason) = ended {
        metadata.insert(SESSION_END_METADATA, MetadataValue::from_static(reason));
    }
    if let SessionError::StepUp { approval, .. } = error
        && let Ok(approval) = MetadataValue::try_from(approval)
    {
        metadata.insert(APPROVAL_METADATA, approval);
    }
    status
}

fn too_many_sessions(full: Full) -> Status {
    Status::resource_exhausted(too_many("sessions", full).message().to_owned())
}

/// An approver's word was not taken.
pub fn approval(error: &ApprovalError) -> Status {
    let mut status = Status::new(approval_code(error), chain(error));
    if status.code() == Code::PermissionDenied {
        // Not for want of a role.
        status.metadata_mut().insert(DENIAL_METADATA, MetadataValue::from_static("own_approval"));
    }
    status
}

fn approval_code(error: &ApprovalError) -> Code {
    match error {
        ApprovalError::Unknown(_) => Code::NotFound,
        ApprovalError::OwnAgent(_) | ApprovalError::OwnUser(_) | ApprovalError::Refused(_) => Code::PermissionDenied,
        ApprovalError::Decided { .. } | ApprovalError::NotUsable { .. } => Code::FailedPrecondition,
        ApprovalError::TooManyOfSession(_) | ApprovalError::TooManyOfUid { .. } | ApprovalError::TooMany(_) => {
            Code::ResourceExhausted
        }
        ApprovalError::Text { .. } | ApprovalError::Terms => Code::InvalidArgument,
        ApprovalError::Store(_) | ApprovalError::Audit(_) | ApprovalError::Stopping => Code::Unavailable,
    }
}

fn held(error: &HeldError) -> Code {
    match error {
        HeldError::NotHeld => Code::PermissionDenied,
        HeldError::Purpose | HeldError::Tls(_) => Code::InvalidArgument,
        HeldError::OtherIdentity => Code::Internal,
        HeldError::Processes(_) | HeldError::Keys | HeldError::Sign(_) | HeldError::Key(_) => Code::Unavailable,
        HeldError::Table(_) | HeldError::Described(_) => Code::Unavailable,
    }
}

/// A token is not valid. The standard names no code; this is the one other implementations use.
pub fn invalid_token(error: &Invalid) -> Status {
    Status::invalid_argument(format!("the JWT-SVID is not valid: {error}"))
}

/// An administrative change could not be made.
pub fn authority(error: &AuthorityError) -> Status {
    match error {
        AuthorityError::Unknown(_) => Status::not_found(error.to_string()),
        AuthorityError::RootOnDisk => Status::failed_precondition(error.to_string()),
        error => Status::unavailable(chain(error)),
    }
}

/// A bundle could not be changed.
pub fn trust(error: &TrustError) -> Status {
    match error {
        TrustError::Bundle(_) | TrustError::Own(_) => Status::invalid_argument(chain(error)),
        TrustError::Name(..) => Status::internal(chain(error)),
        TrustError::Unknown(_) => Status::not_found(error.to_string()),
        TrustError::Store(error) => store(error),
    }
}

/// The store could not do what was asked.
pub fn store(error: &StoreError) -> Status {
    match error {
        StoreError::Conflict { .. } => Status::aborted(error.to_string()),
        error => Status::unavailable(chain(error)),
    }
}
