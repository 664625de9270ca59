//! `tether session`: tasks, for whoever starts, watches and ends them.
//!
//! One's own sessions are asked for on the workload socket, those of all users on the admin socket. Names may be
//! shortened; the agent is told whole ones.

mod print;
mod start;

use serde::Serialize;
use serde_json::Value;

use crate::proto::admin::{EndSessionsRequest, ListSessionsRequest, ResumeSessionRequest, SuspendSessionRequest};
use crate::proto::session::mint_request::Kind;
use crate::proto::session::{
    EndRequest, GetRequest, HeartbeatRequest, ListRequest, MintRequest, MintResponse, Session, State, WatchRequest,
};
use crate::session::SessionDocument;

use super::args::{EndArgs, MintArgs, SessionCommand, TokenKind};
use super::failure::{Exit, Failure};
use super::output::identifier;
use super::{Admin, Context, Sessions};

pub(super) use print::acts;

/// The environment variable with the session a command is about.
pub(super) const SESSION_VARIABLE: &str = "TETHER_SESSION";
/// Whoever shortens an id leaves so many digits.
pub(super) const MIN_DIGITS: usize = 6;
/// The digits of the random part of a session's id.
const ALL_DIGITS: usize = 32;

pub(super) async fn run(command: SessionCommand, context: &mut Context) -> Result<(), Failure> {
    match command {
        SessionCommand::Start(args) => start::run(args, context).await,
        SessionCommand::List { all, admin: false } => list(all, context).await,
        SessionCommand::List { all, admin: true } => list_as_viewer(all, context).await,
        SessionCommand::Show { id, admin: false } => {
            let sessions = context.sessions()?;
            let session = named(id, &sessions, context).await?;
            let session =
                sessions.answer(sessions.client().get(GetRequest { session, ..GetRequest::default() })).await?;
            print::show(&document(&session), context)
        }
        SessionCommand::Show { id, admin: true } => show_as_viewer(id, context).await,
        SessionCommand::Mint(args) => mint(args, context).await,
        SessionCommand::End(args) if args.admin => end_as_operator(args, context).await,
        SessionCommand::End(args) => end(args, context).await,
        SessionCommand::Watch { id } => watch(id, context).await,
        SessionCommand::Heartbeat { id } => {
            let sessions = context.sessions()?;
            let session = named(id, &sessions, context).await?;
            let session = sessions.answer(sessions.client().heartbeat(HeartbeatRequest { session })).await?;
            if context.output.is_json() {
                return context.json(&SessionDocument::from(&session));
            }
            context.output.note(&format!("the next sign of life is due at {}", session.heartbeat_due));
            Ok(())
        }
        SessionCommand::Trace { id } => super::trace::run(id, context).await,
        SessionCommand::Suspend { id } => {
            let admin = context.admin()?;
            let session = named_as_viewer(id, &admin, context).await?;
            admin.answer(admin.sessions().suspend(SuspendSessionRequest { session: session.clone() })).await?;
            context.output.note(&format!("suspended `{session}`: nothing of it stands until it is resumed"));
            Ok(())
        }
        SessionCommand::Resume { id } => {
            let admin = context.admin()?;
            let session = named_as_viewer(id, &admin, context).await?;
            admin.answer(admin.sessions().resume(ResumeSessionRequest { session: session.clone() })).await?;
            context.output.note(&format!("resumed `{session}`"));
            Ok(())
        }
    }
}

/// The whole id of the session a command is about: the one that is named, else that of the environment, else empty,
/// which for the agent is the one the caller is a member of.
pub(super) async fn named(id: Option<String>, sessions: &Sessions, context: &Context) -> Result<String, Failure> {
    let Some(id) = id.or_else(|| context.host.variable(SESSION_VARIABLE).map(str::to_owned)) else {
        return Ok(String::new());
    };
    if is_whole(&id) {
        return Ok(id);
    }
    let prefix = shortened(&id)?;
    let known = sessions.answer(sessions.client().list(ListRequest { all: true })).await?.sessions;
    only(&prefix, known.into_iter().map(|session| session.id), "session", "tether session list --all")
}

/// The same for an operator, who must name one.
async fn named_as_viewer(id: Option<String>, admin: &Admin, context: &Context) -> Result<String, Failure> {
    let id = id.or_else(|| context.host.variable(SESSION_VARIABLE).map(str::to_owned));
    let id = id.ok_or_else(|| {
        Failure::new(Exit::Usage, format!("name the session, as an argument or in {SESSION_VARIABLE}"))
    })?;
    if is_whole(&id) {
        return Ok(id);
    }
    let prefix = shortened(&id)?;
    let request = ListSessionsRequest { all: true, limit: u32::MAX, ..ListSessionsRequest::default() };
    let known = documents(&admin.answer(admin.sessions().list(request)).await?.json)?;
    let known = known.iter().filter_map(|session| session["id"].as_str().map(str::to_owned));
    only(&prefix, known, "session", "tether session list --all --admin")
}

/// `NODE.RANDOM` with all digits of the latter.
fn is_whole(id: &str) -> bool {
    id.split_once('.').is_some_and(|(node, random)| !node.is_empty() && random.len() == ALL_DIGITS)
}

/// The beginning of the random part of an id.
fn shortened(id: &str) -> Result<String, Failure> {
    let digits = id.rsplit_once('.').map_or(id, |(_, random)| random).to_ascii_lowercase();
    if digits.len() < MIN_DIGITS || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        let text =
            format!("`{}` names nothing: give an id, or {MIN_DIGITS} or more of its first digits", identifier(id));
        return Err(Failure::new(Exit::Usage, text));
    }
    Ok(digits)
}

/// The one id whose random part begins with `prefix`.
pub(super) fn only(
    prefix: &str,
    known: impl Iterator<Item = String>,
    what: &str,
    look: &str,
) -> Result<String, Failure> {
    let random = |id: &str| id.rsplit_once('.').map_or_else(|| id.to_owned(), |(_, random)| random.to_owned());
    let mut fitting: Vec<String> = known.filter(|id| random(id).starts_with(prefix)).collect();
    fitting.sort();
    fitting.dedup();
    match fitting.as_slice() {
        [one] => Ok(one.clone()),
        [] => Err(Failure::new(Exit::Failure, format!("no {what} begins with `{prefix}`: see `{look}`"))),
        more => {
            let text = format!("{} {what}s begin with `{prefix}`: give more digits", more.len());
            Err(Failure::new(Exit::Failure, text))
        }
    }
}

async fn list(all: bool, context: &mut Context) -> Result<(), Failure> {
    let sessions = context.sessions()?;
    let listed = sessions.answer(sessions.client().list(ListRequest { all })).await?.sessions;
    let documents: Vec<Value> = listed.iter().map(document).collect();
    print::list(documents, None, context)
}

async fn list_as_viewer(all: bool, context: &mut Context) -> Result<(), Failure> {
    let admin = context.admin()?;
    let request = ListSessionsRequest { all, ..ListSessionsRequest::default() };
    let listed = admin.answer(admin.sessions().list(request)).await?;
    print::list(documents(&listed.json)?, Some(listed.total), context)
}

async fn show_as_viewer(id: Option<String>, context: &mut Context) -> Result<(), Failure> {
    let admin = context.admin()?;
    let session = named_as_viewer(id, &admin, context).await?;
    let request = ListSessionsRequest { all: true, session: session.clone(), ..ListSessionsRequest::default() };
    let listed = documents(&admin.answer(admin.sessions().list(request)).await?.json)?;
    match listed.first() {
        Some(document) => print::show(document, context),
        None => Err(Failure::new(Exit::Failure, format!("there is no session `{}`", identifier(&session)))),
    }
}

/// The document of a session, for what reads its fields by name.
fn document(session: &Session) -> Value {
    serde_json::to_value(SessionDocument::from(session)).unwrap_or_default()
}

fn documents(json: &[String]) -> Result<Vec<Value>, Failure> {
    let parsed = json.iter().map(|text| serde_json::from_str(text)).collect::<Result<_, _>>();
    parsed.map_err(|error| Failure::new(Exit::Failure, format!("the agent sent what is not JSON: {error}")))
}

async fn mint(args: MintArgs, context: &mut Context) -> Result<(), Failure> {
    let sessions = context.sessions()?;
    let session = named(args.id, &sessions, context).await?;
    let kind = match args.kind {
        TokenKind::Wit => Kind::Wit,
        TokenKind::Jwt => Kind::Jwt,
    };
    let request =
        MintRequest { session, target: args.target, scopes: args.scope, kind: kind.into(), ..MintRequest::default() };
    let minted = sessions.answer(sessions.client().mint(request)).await?;
    if context.output.is_json() {
        context.json(&TokenDocument::from(&minted))?;
    } else {
        context.output.document(&minted.token)?;
    }
    let MintResponse { binding, binding_meaning, target, expires_at, .. } = &minted;
    context.output.note(&format!("binding level {binding}: {binding_meaning}"));
    match kind {
        Kind::Jwt => context.output.note(&format!(
            "a thief can use it at `{target}` until {expires_at}, unless that service asks tether: then it ends with the session"
        )),
        Kind::Wit => context.output.note("it is worth nothing without a proof: `tether prove` makes one for each request"),
    }
    Ok(())
}

async fn end(args: EndArgs, context: &mut Context) -> Result<(), Failure> {
    let sessions = context.sessions()?;
    let session = named(args.id, &sessions, context).await?;
    let receipt = sessions.answer(sessions.client().end(EndRequest { session })).await?;
    print::receipt(&receipt, context)
}

async fn end_as_operator(args: EndArgs, context: &mut Context) -> Result<(), Failure> {
    let admin = context.admin()?;
    let session = named_as_viewer(args.id, &admin, context).await?;
    let request = EndSessionsRequest { session, reason: args.reason, ..EndSessionsRequest::default() };
    let ended = admin.answer(admin.sessions().end(request)).await?.ended;
    if context.output.is_json() {
        return context.json(&EndedDocument { ended: &ended });
    }
    if ended.is_empty() {
        context.output.note("it had ended before");
    }
    for id in &ended {
        context.output.line(id)?;
    }
    Ok(())
}

async fn watch(id: Option<String>, context: &mut Context) -> Result<(), Failure> {
    let sessions = context.sessions()?;
    // All of them unless one is named: the environment names the one that other commands are about.
    let session = match id {
        Some(id) => named(Some(id), &sessions, context).await?,
        None => String::new(),
    };
    let of_one = !session.is_empty();
    let mut changes =
        sessions.answer(sessions.client().watch(WatchRequest { session, ..WatchRequest::default() })).await?;
    while let Some(session) = changes.message().await.map_err(|status| sessions.failure(&status))? {
        if context.output.is_json() {
            context.json(&SessionDocument::from(&session))?;
        } else {
            context.output.line(&print::line(&session, context.host.now()))?;
        }
        if of_one && session.state() == State::Ended {
            return Ok(());
        }
    }
    Err(Failure::new(Exit::Unreachable, "the agent ended the stream: it is stopping"))
}

#[derive(Serialize)]
struct EndedDocument<'a> {
    ended: &'a [String],
}

#[derive(Serialize)]
struct TokenDocument<'a> {
    session: &'a str,
    kind: String,
    token: &'a str,
    id: &'a str,
    target: &'a str,
    scopes: &'a [String],
    expires_at: &'a str,
    one_use: bool,
    binding: u32,
    binding_meaning: &'a str,
}

impl<'a> From<&'a MintResponse> for TokenDocument<'a> {
    fn from(minted: &'a MintResponse) -> Self {
        Self {
            session: &minted.session,
            kind: minted.kind().as_str_name().to_lowercase(),
            token: &minted.token,
            id: &minted.id,
            target: &minted.target,
            scopes: &minted.scopes,
            expires_at: &minted.expires_at,
            one_use: minted.one_use,
            binding: minted.binding,
            binding_meaning: &minted.binding_meaning,
        }
    }
}
