//! `tether session start`.

use std::time::Duration;

use crate::cli::args::{BoundaryName, MembersName, StartArgs, UserName};
use crate::cli::failure::{Exit, Failure};
use crate::cli::{Context, Sessions};
use crate::proto::session::start_request::User;
use crate::proto::session::{Boundary, Budget, Process, Scope, Session, StartRequest, State, WatchRequest};
use crate::session::SessionDocument;
use crate::sys::pidfd::PidFd;

pub(super) async fn run(args: StartArgs, context: &mut Context) -> Result<(), Failure> {
    let wait = args.wait;
    let request = request(args, context)?;
    let sessions = context.sessions()?;
    let session = sessions.answer(sessions.client().start(request)).await?;
    match session.state() {
        State::PendingApproval if wait => {
            waiting(&session).lines().for_each(|line| context.output.note(line));
            let session = decided(session.id, &sessions).await?;
            print(&session, context)
        }
        State::PendingApproval => {
            print(&session, context)?;
            Err(waiting(&session))
        }
        _ => print(&session, context),
    }
}

/// The id alone, so that `TETHER_SESSION=$(tether session start ...)` works.
fn print(session: &Session, context: &mut Context) -> Result<(), Failure> {
    if context.output.is_json() {
        return context.json(&SessionDocument::from(session));
    }
    Ok(context.output.line(&session.id)?)
}

fn waiting(session: &Session) -> Failure {
    Failure::waiting(&format!("the session `{}` waits for an approval", session.id), &session.approval)
}

/// The session once an approver has spoken.
async fn decided(session: String, sessions: &Sessions) -> Result<Session, Failure> {
    let mut changes =
        sessions.answer(sessions.client().watch(WatchRequest { session, ..WatchRequest::default() })).await?;
    while let Some(session) = changes.message().await.map_err(|status| sessions.failure(&status))? {
        match session.state() {
            State::PendingApproval => {}
            State::Ended if session.end_reason == "policy_denied" => {
                return Err(Failure::new(Exit::Denied, "an approver said no"));
            }
            State::Ended => {
                return Err(Failure::new(Exit::Invalid, format!("the session ended: {}", session.end_reason)));
            }
            _ => return Ok(session),
        }
    }
    Err(Failure::new(Exit::Unreachable, "the agent ended the stream: it is stopping"))
}

fn request(args: StartArgs, context: &mut Context) -> Result<StartRequest, Failure> {
    let (scope, process) = members(args.pid, args.scope)?;
    let user = match (args.user, &args.subject_token) {
        (Some(UserName::Local), _) => Some(User::LocalUser(true)),
        (_, Some(file)) => Some(User::SubjectToken(context.host.read(file)?.trim().to_owned())),
        (Some(UserName::None) | None, None) => None,
    };
    let boundary = match args.boundary {
        BoundaryName::ToolCall => Boundary::ToolCall,
        BoundaryName::Request => Boundary::Request,
        BoundaryName::Task => Boundary::Task,
    };
    Ok(StartRequest {
        purpose: args.purpose,
        targets: args.target,
        scopes: args.scope_name,
        boundary: boundary.into(),
        budget: Some(Budget { max_tokens: args.max_tokens, max_calls: args.max_calls }),
        ttl_seconds: seconds("--ttl", args.ttl)?,
        heartbeat_seconds: seconds("--heartbeat", args.heartbeat)?,
        scope: scope.into(),
        process,
        spiffe_id: args.spiffe_id.map(|id| id.to_string()).unwrap_or_default(),
        user,
        resumes: args.resumes.unwrap_or_default(),
        ..StartRequest::default()
    })
}

/// Who acts. This command is gone when it has printed the id, so it cannot be the one.
fn members(pid: Option<i32>, scope: Option<MembersName>) -> Result<(Scope, Option<Process>), Failure> {
    let scope = match (pid, scope) {
        (_, Some(MembersName::Cgroup)) => Scope::Cgroup,
        (Some(_), Some(MembersName::Tree)) => Scope::Tree,
        (Some(_), Some(MembersName::Process) | None) => Scope::Process,
        (None, _) => {
            return Err(Failure::new(
                Exit::Usage,
                "say who acts: a session ends with its process, and this command ends at once",
            )
            .and([
                "  --pid N                one running process of yours",
                "  --pid N --scope tree   it and all it starts; for the shell you type in: --pid $$ --scope tree",
                "  --scope cgroup         every process in the cgroup of this command",
                "to start a command in a session that ends with it: tether run --purpose P --target T -- COMMAND",
            ]));
        }
    };
    let process = pid.map(|pid| Ok::<_, Failure>(Process { pid, pidfs_inode: inode(pid)? })).transpose()?;
    Ok((scope, process))
}

/// What tells the process from a later one with its number; 0 where the kernel has no such thing.
fn inode(pid: i32) -> Result<u64, Failure> {
    let inode = PidFd::open(pid).and_then(|process| process.unique_inode());
    let inode = inode.map_err(|error| Failure::new(Exit::Failure, format!("there is no process {pid}: {error}")))?;
    Ok(inode.unwrap_or_default())
}

/// Whole seconds, at least one.
fn seconds(flag: &str, span: Option<Duration>) -> Result<u32, Failure> {
    let Some(span) = span else { return Ok(0) };
    match u32::try_from(span.as_secs()) {
        Ok(seconds) if seconds > 0 && span.subsec_nanos() == 0 => Ok(seconds),
        _ => Err(Failure::new(Exit::Usage, format!("{flag} takes whole seconds, at least one"))),
    }
}
