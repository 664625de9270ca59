//! Who logged in: the kernel's login uid of a process, and the login session that it is in.
//!
//! The login uid is written once, by pam_loginuid(8), when somebody logs in; every process inherits it, also through
//! `su`, `sudo` and set-uid programs, and only CAP_AUDIT_CONTROL changes one that is set. It is read in our user
//! namespace, whatever namespace the process is in.
//!
//! Alone it is no proof. A process whose login uid is unset, such as every service of systemd, may write any number as its
//! own, without a privilege (measured on Linux 6.18). So:
//!
//! - On a host that systemd started, the process must be in a control group that only root puts processes in: the scope of
//!   a login session, or the user's own manager. logind must say that this session is open and that of a person with that
//!   very uid. For processes of the user's manager it is the session that logind calls the user's own (`Display`). A job
//!   of cron, a lingering manager without a login, and a service that wrote itself a login uid are refused.
//! - Elsewhere the process must run as that very user, in no pid namespace below ours (so in no container): then whoever
//!   writes a login uid can claim to be nobody but itself. There is no login session whose end could be seen.
//!
//! What this does not prove: that the person is at the keyboard, or meant to start this process. Whatever runs in a login
//! session, the user's cron jobs through `systemd-run --user` included, speaks for the user while the session lasts.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::libc;

use super::logins::{Login, Logins};
use super::{User, UserError, UserProof};
use crate::attest::{Names, Place, place_of};
use crate::peer::Instance;
use crate::sys::procfs::ProcDir;

/// What the kernel writes for a process that descends from no login.
const UNSET: u32 = u32::MAX;
/// Longer than any number.
const MAX_BYTES: u64 = 16;
const FILE: &str = "loginuid";

/// Finds local users.
pub(super) struct Local {
    /// The SPIFFE ID that vouches for them.
    pub agent: String,
    pub node: String,
    pub names: Names,
    /// How long to wait for the name service.
    pub patience: Duration,
    pub logins: Logins,
    /// The directory that exists when systemd started the host (sd_booted(3)).
    pub booted: PathBuf,
}

/// The part of the hierarchy of control groups in which the processes of somebody who logged in are.
#[derive(Clone, Debug, PartialEq, Eq)]
enum LoginGroup {
    /// `/user.slice/user-UID.slice/session-ID.scope`.
    Session { uid: u32, id: String },
    /// `/user.slice/user-UID.slice/user@UID.service`: the user's own manager, and all it started.
    Manager { uid: u32 },
}

impl Local {
    /// Who logged in, if the process descends from a login.
    pub async fn user_of(&self, instance: &Instance) -> Result<User, UserError> {
        let uid = login_uid(instance.proc_dir());
        let group = place_of(instance.proc_dir());
        let status = instance.status()?;
        // What was read above is about this instance only if it still is one: `status` looked afterwards.
        let uid = uid?.ok_or(UserError::NoLogin)?;
        let login_session = if self.booted.is_dir() {
            let group = group.map_err(|_| UserError::Unreadable("cgroup"))?;
            Some(self.session(uid, &group).await?)
        } else {
            let unproven = |why: String| Err(UserError::Unproven { uid, why });
            if status.uid != uid {
                return unproven(format!("it runs as user {}", status.uid));
            }
            if status.in_nested_pid_namespace() {
                return unproven("it is in a pid namespace of its own".to_owned());
            }
            None
        };
        let unnamed = |why: String| UserError::Name { uid, why };
        let name = tokio::time::timeout(self.patience, self.names.user(uid)).await;
        let name = name.map_err(|_| unnamed("the name service did not answer in time".to_owned()))?;
        let name = name.map_err(|why| unnamed(why.to_string()))?;
        instance.look()?;
        Ok(User {
            issuer: self.agent.clone(),
            subject: name.unwrap_or_else(|| uid.to_string()),
            proof: UserProof::Local { uid, node: self.node.clone(), login_session },
        })
    }

    /// Holds the login session of a user of this node.
    pub async fn hold(&self, uid: u32, login_session: &str) -> Result<Arc<Login>, UserError> {
        self.logins.hold(login_session, uid).await
    }

    /// The name of the open session, of a person with this login uid, that a process in this control group is in.
    async fn session(&self, uid: u32, place: &Place) -> Result<String, UserError> {
        let no_session = |why: String| UserError::NoSession { uid, why };
        let path = match place {
            Place::At(path) => path,
            Place::Outside(path) => return Err(no_session(crate::attest::outside(path))),
            Place::Nowhere => return Err(no_session("it is in no cgroup hierarchy that systemd uses".to_owned())),
        };
        let group = LoginGroup::of(path).ok_or_else(|| no_session(format!("its control group is `{path}`")))?;
        if group.uid() != uid {
            return Err(UserError::OtherUser { uid, session: group.uid() });
        }
        let (id, is_own) = match group {
            LoginGroup::Session { id, .. } => (id, true),
            LoginGroup::Manager { .. } => {
                let lingers =
                    || no_session("it is one of the user's own manager, and the user is not logged in".to_owned());
                (self.logins.primary(uid).await?.ok_or_else(lingers)?, false)
            }
        };
        let session = self.logins.open_session(&id).await?;
        let session = session.ok_or_else(|| no_session(format!("the login session `{id}` is over")))?;
        if session.uid != uid {
            return Err(UserError::OtherUser { uid, session: session.uid });
        }
        if is_own && session.scope != format!("session-{id}.scope") {
            return Err(no_session(format!("logind has the login session `{id}` in `{}`", session.scope)));
        }
        if !is_persons(&session.class) {
            return Err(no_session(format!("the login session `{id}` is of class `{}`", session.class)));
        }
        Ok(id)
    }
}

/// Whether sessions of this class are begun by a person who logs in (sd_session_get_class(3)): not by a greeter, a job or
/// a manager.
fn is_persons(class: &str) -> bool {
    matches!(class, "user" | "user-early" | "user-light" | "user-early-light")
}

impl LoginGroup {
    /// Where root alone puts processes. What a user may name begins further down, and is not looked at.
    fn of(path: &str) -> Option<Self> {
        let mut components = path.strip_prefix("/user.slice/user-")?.split('/');
        let number = components.next()?.strip_suffix(".slice")?;
        // As systemd writes it: no sign, no zeros in front.
        let uid = number.parse::<u32>().ok().filter(|uid| uid.to_string() == number)?;
        let unit = components.next()?;
        if unit.strip_prefix("user@").and_then(|unit| unit.strip_suffix(".service")) == Some(number) {
            return Some(Self::Manager { uid });
        }
        let id = unit.strip_prefix("session-")?.strip_suffix(".scope")?;
        // As logind checks the names it gives (session_id_valid).
        let is_name = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
        is_name.then(|| Self::Session { uid, id: id.to_owned() })
    }

    fn uid(&self) -> u32 {
        match self {
            Self::Session { uid, .. } | Self::Manager { uid } => *uid,
        }
    }
}

/// The kernel's login uid of the process; `None` when it is unset. About our process only if that is looked at after.
fn login_uid(proc_dir: &ProcDir) -> Result<Option<u32>, UserError> {
    let content = proc_dir.read(FILE, MAX_BYTES).map_err(|error: io::Error| match error.raw_os_error() {
        Some(libc::ENOENT) => UserError::NoAudit,
        _ => UserError::Unreadable(FILE),
    })?;
    let uid = std::str::from_utf8(&content).ok().and_then(|text| text.trim_end().parse::<u32>().ok());
    Ok(Some(uid.ok_or(UserError::Unreadable(FILE))?).filter(|uid| *uid != UNSET))
}

#[cfg(test)]
mod tests;
