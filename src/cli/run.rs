//! `tether run`: a command in a session that dies with it.
//!
//! # In which order
//! The session begins before the command does, so that the command never runs outside of one: its members are the
//! descendants of this process, or everything in a cgroup that this process has made and entered. Then the command is
//! started, bound to this process. Whatever ends first takes the others with it: the command, the session, or this
//! process.
//!
//! # What it cannot do
//! Killed by SIGKILL it takes the command itself down, and the agent ends the session; what the command had started goes
//! on without one.

mod measure;
mod tree;

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::pin::pin;
use std::process::Command;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tonic::{Code, Streaming};

use self::measure::Measured;
use self::tree::{OwnGroup, Tree};
use super::args::{BoundaryName, RunArgs, UserName};
use super::failure::{Exit, Failure};
use super::session::SESSION_VARIABLE;
use super::{Context, Sessions};
use crate::base::text::chain;
use crate::client::{ENDPOINT_VARIABLE, Endpoint};
use crate::proto::DENIAL_METADATA;
use crate::proto::session::start_request::User;
use crate::proto::session::{
    Boundary, Budget, DelegateRequest, EndRequest, GetRequest, Launch, Scope, Session, StartRequest, State,
    WatchRequest,
};
use crate::sys::launch;

/// What for, where nothing else is said.
const DEFAULT_PURPOSE: &str = "interactive";
/// Where to, where nothing else is said: anywhere that policy allows.
const DEFAULT_TARGET: &str = "*";
/// How long a command that was interrupted at the terminal has to end by itself before it is told to.
const INTERRUPTED: Duration = Duration::from_secs(1);
/// How long the agent may be away: its session goes on when it is started anew.
const AWAY: Duration = Duration::from_secs(60);
/// How often it is looked whether it is back.
const AGAIN: Duration = Duration::from_millis(200);
/// As shells say it.
const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;

pub(super) async fn run(args: RunArgs, context: &mut Context) -> Result<(), Failure> {
    let failed =
        |what: &str, error: &dyn std::error::Error| Failure::new(Exit::Failure, format!("{what}: {}", chain(error)));
    let sessions = context.sessions()?;
    launch::adopt_orphans().map_err(|error| failed("cannot take on what the command leaves behind", &error))?;
    become_untraceable(&sessions.endpoint, context);
    // From here on no signal ends this process before what it has started.
    let mut signals = Signals::new().map_err(|error| failed("cannot wait for signals", &error))?;

    let tree = match OwnGroup::enter() {
        Ok(group) => Tree::Cgroup(group),
        Err(why) => {
            context.output.note(&format!(
                "no cgroup for the command ({why}): the session covers it and its descendants, which are stopped one by \
                 one; what it asks others to start is not covered"
            ));
            Tree::Descendants
        }
    };
    let session = begin(&args, &tree, &sessions, context).await?;
    let ended = async |exit: Failure| {
        let _ = end(&session.id, &sessions).await;
        exit
    };
    let session = match session.state() {
        State::PendingApproval if args.wait => approved(&session, &sessions, &mut signals, context).await?,
        State::PendingApproval => {
            let what = "the session would wait for an approval, and ends with this command; run it again with --wait";
            return Err(ended(Failure::new(Exit::Waiting, what)).await);
        }
        _ => session.clone(),
    };
    let changes = sessions
        .answer(sessions.client().watch(WatchRequest { session: session.id.clone(), ..WatchRequest::default() }))
        .await?;

    let (program, arguments) = args.command.split_first().ok_or_else(|| Failure::new(Exit::Usage, "no command"))?;
    let mut command = Command::new(program);
    command.args(arguments).env(SESSION_VARIABLE, &session.id).env(ENDPOINT_VARIABLE, sessions.endpoint.to_string());
    let started = launch::spawn_bound(&mut command);
    let child = match started {
        Ok(child) => child.id().cast_signed(),
        Err(error) => {
            let code = if error.kind() == std::io::ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE };
            let text = format!("cannot run `{}`: {error}", program.display());
            return Err(ended(Failure::new(Exit::Command(code), text)).await);
        }
    };
    let watched = Watched { session: &session.id, sessions: &sessions, changes };
    let (why, code) = first_end(child, watched, &mut signals).await;
    let code = finish(Finish { why, code, child, grace: args.grace }, &session.id, &tree, &sessions, context).await;
    match code {
        0 => Ok(()),
        code => Err(Failure::silent(Exit::Command(code))),
    }
}

/// What ended first.
enum End {
    /// The command.
    Exited,
    /// The session, for this reason.
    Session(String),
    /// The agent cannot be asked, for longer than it takes to start it anew.
    AgentGone,
    /// This process was told to end, or the command was, at the terminal.
    Signal { at_the_terminal: bool },
}

struct Finish {
    why: End,
    code: Option<u8>,
    child: i32,
    grace: Duration,
}

/// Ends the session and everything that still runs, in the order in which least can be done with what is left.
async fn finish(end_of: Finish, session: &str, tree: &Tree, sessions: &Sessions, context: &mut Context) -> u8 {
    let Finish { why, mut code, child, grace } = end_of;
    if let End::Session(reason) = &why {
        context.output.note(&format!("the session has ended ({reason}): its command is stopped"));
    }
    if matches!(why, End::AgentGone) {
        context.output.note("the agent has not come back, and the session is gone with it: its command is stopped");
    } else if let Err(failure) = end(session, sessions).await {
        context
            .output
            .note(&format!("the session could not be ended, and ends with this process: {}", failure.message));
    }
    let interrupted = matches!(why, End::Signal { at_the_terminal: true });
    if interrupted {
        // The terminal has told all of them already.
        let _late = tokio::time::timeout(INTERRUPTED.min(grace), wait_for(child, &mut code)).await;
    }
    // What has ended before is not collected a second time: its code is kept.
    code = code.or_else(|| tree::reap_for(child));
    if interrupted && code.is_none() {
        // It did not go by itself: that it has to be told once more is no other end.
        code = Some(128 + nix::sys::signal::Signal::SIGINT as u8);
    }
    let down = tree.take_down(grace, child, &mut code).await;
    if !down {
        context.output.note(&format!("{} processes could not be stopped", tree.len()));
    }
    match (code, why) {
        // It was stopped before it was done, whatever it says itself: `tether run … && next` goes no further.
        (Some(0), End::Session(_) | End::AgentGone) => 128 + nix::sys::signal::Signal::SIGTERM as u8,
        (Some(code), _) => code,
        (None, _) => 128 + nix::sys::signal::Signal::SIGKILL as u8,
    }
}

async fn wait_for(child: i32, code: &mut Option<u8>) {
    while code.is_none() {
        *code = tree::reap_for(child);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits for the command, the session or a signal, whichever ends it all.
async fn first_end(child: i32, watched: Watched<'_>, signals: &mut Signals) -> (End, Option<u8>) {
    // One for all turns: how long the agent is away is counted from when it went.
    let mut over = pin!(watched.over());
    loop {
        tokio::select! {
            biased;
            _ = signals.child.recv() => if let Some(code) = tree::reap_for(child) {
                return (End::Exited, Some(code));
            },
            at_the_terminal = signals.end.told() => return (End::Signal { at_the_terminal }, None),
            end = &mut over => return (end, None),
        }
    }
}

/// The session, as it changes.
struct Watched<'a> {
    session: &'a str,
    sessions: &'a Sessions,
    changes: Streaming<Session>,
}

impl Watched<'_> {
    /// Returns when the session has ended, or nobody can be asked any more. An agent that is started anew goes on with the
    /// session, so it is waited for.
    async fn over(mut self) -> End {
        loop {
            match self.changes.message().await {
                Ok(Some(session)) if session.state() == State::Ended => return End::Session(session.end_reason),
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => match tokio::time::timeout(AWAY, self.again()).await {
                    Ok(Some(changes)) => self.changes = changes,
                    Ok(None) | Err(_) => return End::AgentGone,
                },
            }
        }
    }

    /// The changes from now on; `None` when the agent that answers knows of no such session.
    async fn again(&self) -> Option<Streaming<Session>> {
        loop {
            tokio::time::sleep(AGAIN).await;
            let request = WatchRequest { session: self.session.to_owned(), ..WatchRequest::default() };
            match self.sessions.client().watch(request).await {
                Ok(changes) => return Some(changes.into_inner()),
                Err(status) if status.code() == Code::NotFound => return None,
                Err(_) => {}
            }
        }
    }
}

/// The signals that this process acts on. It shares the terminal's foreground with the command: stopping, continuing and
/// the size of the window reach both by themselves.
struct Signals {
    child: Signal,
    end: Ends,
}

/// Those after which all is to end.
struct Ends {
    interrupt: Signal,
    quit: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            child: signal(SignalKind::child())?,
            end: Ends {
                interrupt: signal(SignalKind::interrupt())?,
                quit: signal(SignalKind::quit())?,
                terminate: signal(SignalKind::terminate())?,
                hang_up: signal(SignalKind::hangup())?,
            },
        })
    }
}

impl Ends {
    /// Returns when all is to end, with whether the terminal has told the command too.
    async fn told(&mut self) -> bool {
        tokio::select! {
            _ = self.interrupt.recv() => true,
            _ = self.quit.recv() => true,
            _ = self.terminate.recv() => false,
            _ = self.hang_up.recv() => false,
        }
    }
}

/// Keeps other processes of this user from speaking in the name of this one, which the agent believes. An agent of this
/// same user could not see which program this is then, and is in their hands anyway.
fn become_untraceable(endpoint: &Endpoint, context: &mut Context) {
    let own = nix::unistd::geteuid().as_raw();
    let agent = match endpoint {
        Endpoint::Unix(path) => std::fs::metadata(path).map(|found| found.uid()).ok(),
        Endpoint::Tcp(_) => None,
    };
    if own != 0 && agent == Some(own) {
        return;
    }
    if let Err(error) = launch::refuse_tracing() {
        context.output.note(&format!("other processes of yours can trace this one: {error}"));
    }
}

/// Begins the session: a child of the one this process is a member of, if there is one.
async fn begin(args: &RunArgs, tree: &Tree, sessions: &Sessions, context: &mut Context) -> Result<Session, Failure> {
    let parent = match context.host.variable(SESSION_VARIABLE) {
        None => None,
        Some(id) => {
            let request = GetRequest { session: id.to_owned(), ..GetRequest::default() };
            let found = sessions.client().get(request).await.map(tonic::Response::into_inner);
            found.ok().filter(|session| session.state() == State::Active)
        }
    };
    if parent.is_none() && context.host.variable(SESSION_VARIABLE).is_some() {
        context.output.note(&format!("the session in {SESSION_VARIABLE} does not go on: this begins a new one"));
    }
    let mut request = request(args, tree, parent.as_ref(), context)?;
    loop {
        if request.launch.is_none() {
            // The agent ties a cgroup's session to its launcher only when that is one: else it is the launcher's tree.
            request.scope = Scope::Tree.into();
        }
        let answer = match &parent {
            Some(parent) => {
                let request = DelegateRequest { session: parent.id.clone(), child: Some(request.clone()) };
                sessions.client().delegate(request).await
            }
            None => sessions.client().start(request.clone()).await,
        };
        match answer {
            Ok(session) => return Ok(session.into_inner()),
            // It goes on with less: what depends on the measurement is refused by itself.
            Err(status)
                if request.launch.is_some()
                    && status.code() == Code::PermissionDenied
                    && status.metadata().get(DENIAL_METADATA).is_some_and(|label| label == "launch") =>
            {
                context.output.note(&format!("not measured, so it has no launch:* selectors: {}", status.message()));
                request.launch = None;
            }
            Err(status) => return Err(sessions.failure(&status)),
        }
    }
}

fn request(
    args: &RunArgs,
    tree: &Tree,
    parent: Option<&Session>,
    context: &mut Context,
) -> Result<StartRequest, Failure> {
    let user = match (args.user, &args.subject_token) {
        (Some(UserName::Local), _) => Some(User::LocalUser(true)),
        (_, Some(file)) => Some(User::SubjectToken(context.host.read(file)?.trim().to_owned())),
        (Some(UserName::None) | None, None) => None,
    };
    let boundary = match (args.boundary, parent) {
        (Some(BoundaryName::ToolCall), _) => Boundary::ToolCall,
        (Some(BoundaryName::Request), _) => Boundary::Request,
        (Some(BoundaryName::Task), _) | (None, None) => Boundary::Task,
        (None, Some(parent)) => parent.boundary(),
    };
    let or_else = |given: &[String], inherited: fn(&Session) -> &Vec<String>, default: &[&str]| match parent {
        _ if !given.is_empty() => given.to_vec(),
        Some(parent) => inherited(parent).clone(),
        None => default.iter().map(|text| (*text).to_owned()).collect(),
    };
    let ttl_seconds = match args.ttl.map(|span| u32::try_from(span.as_secs())) {
        None => 0,
        Some(Ok(seconds)) if seconds > 0 => seconds,
        Some(_) => return Err(Failure::new(Exit::Usage, "--ttl takes at least a second")),
    };
    let default_purpose = if parent.is_some() { "" } else { DEFAULT_PURPOSE };
    Ok(StartRequest {
        purpose: args.purpose.clone().unwrap_or_else(|| default_purpose.to_owned()),
        targets: or_else(&args.target, |parent| &parent.targets, &[DEFAULT_TARGET]),
        scopes: or_else(&args.scope, |parent| &parent.scopes, &[]),
        boundary: boundary.into(),
        budget: Some(Budget { max_tokens: args.max_tokens, max_calls: args.max_calls }),
        ttl_seconds,
        scope: match tree {
            Tree::Cgroup(_) => Scope::Cgroup,
            Tree::Descendants => Scope::Tree,
        }
        .into(),
        user,
        launch: what(args)?,
        ..StartRequest::default()
    })
}

/// What is to be launched, for the agent to measure; `None` when it cannot be told what it is.
fn what(args: &RunArgs) -> Result<Option<Launch>, Failure> {
    let failed = |error: std::io::Error| Failure::new(Exit::Failure, format!("cannot tell where this is: {error}"));
    let cwd = std::env::current_dir().map_err(failed)?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let text = |path: &Path| path.to_str().map(str::to_owned);
    let Some(Measured { program, script }) = measure::measured(&args.command, &path, &cwd) else { return Ok(None) };
    let directory = args.measure_dir.as_ref().map(|dir| cwd.join(dir));
    let Some(program) = text(&program) else { return Ok(None) };
    let (script, directory) = (script.as_deref().and_then(text), directory.as_deref().and_then(text));
    Ok(Some(Launch { program, script: script.unwrap_or_default(), directory: directory.unwrap_or_default() }))
}

/// Waits for the approver's word.
async fn approved(
    session: &Session,
    sessions: &Sessions,
    signals: &mut Signals,
    context: &mut Context,
) -> Result<Session, Failure> {
    let waiting = Failure::waiting(&format!("the session `{}` waits for an approval", session.id), &session.approval);
    waiting.lines().for_each(|line| context.output.note(line));
    let request = WatchRequest { session: session.id.clone(), ..WatchRequest::default() };
    let mut changes = sessions.answer(sessions.client().watch(request)).await?;
    loop {
        let change = tokio::select! {
            change = changes.message() => change.map_err(|status| sessions.failure(&status))?,
            _ = signals.end.told() => {
                end(&session.id, sessions).await?;
                return Err(Failure::silent(Exit::Waiting));
            }
        };
        let Some(session) = change else {
            return Err(Failure::new(Exit::Unreachable, "the agent ended the stream: it is stopping"));
        };
        match session.state() {
            State::PendingApproval => {}
            State::Active => return Ok(session),
            _ if session.end_reason == "policy_denied" => {
                return Err(Failure::new(Exit::Denied, "an approver said no"));
            }
            _ => return Err(Failure::new(Exit::Invalid, format!("the session ended: {}", session.end_reason))),
        }
    }
}

async fn end(session: &str, sessions: &Sessions) -> Result<(), Failure> {
    sessions.answer(sessions.client().end(EndRequest { session: session.to_owned() })).await.map(drop)
}
