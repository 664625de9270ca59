//! Asks systemd-logind about login sessions (org.freedesktop.login1(5), sd-login(3)).
//!
//! logind says over D-Bus when a session is removed. That a session is closing, because the person has logged out while
//! something of theirs runs on, it says only in versions from 2025 on; but every version writes the session's file below
//! `/run/systemd/sessions` anew then, which is what sd_login_monitor(3) goes by, and so do we. The file is a sign to ask
//! again; what is in it is logind's own and is not read.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt, StreamExt};
use notify::event::{AccessKind, AccessMode, EventKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use thiserror::Error;
use tokio::sync::broadcast;
use zbus::{Connection, MatchRule, Message, MessageStream, OwnedObjectPath, OwnedVariant, message};

use crate::attest::dbus::{self, CallError, Link, decode};
use crate::attest::guard::Outage;

pub(super) const SERVICE: &str = "org.freedesktop.login1";
pub(super) const MANAGER_PATH: &str = "/org/freedesktop/login1";
pub(super) const MANAGER: &str = "org.freedesktop.login1.Manager";
pub(super) const SESSION: &str = "org.freedesktop.login1.Session";
pub(super) const USER: &str = "org.freedesktop.login1.User";
pub(super) const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
pub(super) const NO_SUCH_SESSION: &str = "org.freedesktop.login1.NoSuchSession";
pub(super) const NO_SUCH_USER: &str = "org.freedesktop.login1.NoSuchUser";
/// Signs that wait to be read; whoever missed some asks again as well.
const SIGNS: usize = 64;

/// Why logind did not say what was asked.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LoginError {
    /// The bus cannot be reached, or logind is not on it.
    #[error("systemd-logind cannot be asked over D-Bus: {0}; is it installed, running and not masked?")]
    Unreachable(String),
    /// It did not answer in time.
    #[error("systemd-logind did not answer over D-Bus within {0:?}")]
    Late(Duration),
    /// It did not answer a short time ago and is left alone until later.
    #[error("systemd-logind did not answer over D-Bus before, and is asked again soon")]
    Resting,
    /// It answered with an error, or with something else than its interface promises.
    #[error("systemd-logind did not say which session it is: {0}")]
    Refused(String),
}

impl Outage for LoginError {
    fn late(patience: Duration) -> Self {
        Self::Late(patience)
    }

    fn resting() -> Self {
        Self::Resting
    }

    fn is_outage(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Late(_))
    }
}

impl From<CallError> for LoginError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Named(name, words) => Self::Refused(format!("{name}: {words}")),
            CallError::UnknownMethod => Self::Refused("it does not know the method".into()),
            CallError::Refused(words) | CallError::Forbidden(words) => Self::Refused(words),
            CallError::Unreachable(words) => Self::Unreachable(words),
        }
    }
}

/// What logind says of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LoginSession {
    /// Whose it is.
    pub uid: u32,
    /// When it began, in microseconds: a session with the same name later on is another one.
    pub since: u64,
    /// The unit its processes are in.
    pub scope: String,
    /// `user` for somebody who logged in; others are greeters, jobs and managers.
    pub class: String,
    /// Whether the person has logged out, and only something that was left behind runs on.
    pub closing: bool,
}

/// Something may have changed. It ends when logind is no longer heard.
pub(super) type Changes = BoxStream<'static, ()>;

/// Who knows about login sessions. Each answer may take for ever: the caller has a deadline.
pub(super) trait LoginManager: Send + Sync {
    /// The session of that name; `None` when there is none (any more).
    fn session<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<LoginSession>, LoginError>>;

    /// The name of the session that stands for the user, when processes of the user's own manager are asked about:
    /// the graphical one if there is one. `None` when the user is not logged in.
    fn primary<'a>(&'a self, uid: u32) -> BoxFuture<'a, Result<Option<String>, LoginError>>;

    /// Every sign from now on that the session may be over.
    fn changes<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Changes, LoginError>>;
}

/// logind on the system bus.
#[derive(Debug)]
pub(super) struct Logind {
    address: Option<String>,
    questions: Link,
    /// Of its own: a signal that nobody has read yet holds up whatever comes after it.
    signals: Link,
    files: Files,
}

impl Logind {
    /// logind on the bus at `address`, or on the system bus; its files of sessions are in `sessions`.
    pub fn new(address: Option<String>, sessions: PathBuf) -> Self {
        let (questions, signals) = (Link::default(), Link::default());
        Self { address, questions, signals, files: Files { dir: sessions, watching: OnceLock::new() } }
    }

    async fn find(&self, id: &str) -> Result<Option<LoginSession>, LoginError> {
        let connection = self.questions.connect(self.address.as_deref()).await?;
        let Some(path) = object(&connection, "GetSession", &(id,)).await? else { return Ok(None) };
        let Some(properties) = properties(&connection, &path, SESSION).await? else { return Ok(None) };
        describe(properties).map(Some)
    }

    async fn primary_of(&self, uid: u32) -> Result<Option<String>, LoginError> {
        let connection = self.questions.connect(self.address.as_deref()).await?;
        let Some(path) = object(&connection, "GetUser", &(uid,)).await? else { return Ok(None) };
        let Some(mut properties) = properties(&connection, &path, USER).await? else { return Ok(None) };
        let display: Option<(String, OwnedObjectPath)> = take(&mut properties, "Display");
        let (id, _path) = display.ok_or_else(|| LoginError::Refused("the user has no `Display`".into()))?;
        Ok(Some(id).filter(|id| !id.is_empty()))
    }

    async fn listen(&self, id: &str) -> Result<Changes, LoginError> {
        let connection = self.signals.connect(self.address.as_deref()).await?;
        let broken = |error: zbus::Error| LoginError::Unreachable(error.to_string());
        let mut heard = vec![self.files.signs(id)];
        // Without an object there are no changes of its own to hear: it is over, as asking will show.
        let path = object(&connection, "GetSession", &(id,)).await?;
        for rule in rules(id, path.as_ref()).map_err(broken)? {
            let signals = MessageStream::for_match_rule(rule, &connection, None).await.map_err(broken)?;
            heard.push(signals.map(|message| message.ok().map(drop)).boxed());
        }
        let owner = dbus::other_owner(SERVICE).map_err(broken)?;
        let owner = MessageStream::for_match_rule(owner, &connection, None).await.map_err(broken)?;
        heard.push(owner.map(|_| None).boxed());
        // With the first stream that ends all do.
        let ends = |signs: BoxStream<'static, Option<()>>| signs.chain(stream::iter([None]));
        let all = stream::select_all(heard.into_iter().map(ends));
        Ok(all.take_while(|sign| std::future::ready(sign.is_some())).map(drop).boxed())
    }
}

impl LoginManager for Logind {
    fn session<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<LoginSession>, LoginError>> {
        self.find(id).boxed()
    }

    fn primary<'a>(&'a self, uid: u32) -> BoxFuture<'a, Result<Option<String>, LoginError>> {
        self.primary_of(uid).boxed()
    }

    fn changes<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Changes, LoginError>> {
        self.listen(id).boxed()
    }
}

/// The object that a method of the manager names; `None` when there is no such session or user.
async fn object<B: serde::Serialize + zbus::DynamicType>(
    connection: &Connection,
    method: &str,
    body: &B,
) -> Result<Option<OwnedObjectPath>, LoginError> {
    match dbus::call(connection, SERVICE, MANAGER_PATH, MANAGER, method, body).await {
        Ok(reply) => Ok(Some(decode(&reply)?)),
        Err(CallError::Named(name, _)) if matches!(name.as_str(), NO_SUCH_SESSION | NO_SUCH_USER) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

type Properties = HashMap<String, OwnedVariant>;

/// The properties of an object; `None` when it has gone.
async fn properties(
    connection: &Connection,
    path: &OwnedObjectPath,
    interface: &str,
) -> Result<Option<Properties>, LoginError> {
    let reply: Result<Message, CallError> =
        dbus::call(connection, SERVICE, path.as_str(), PROPERTIES, "GetAll", &(interface,)).await;
    match reply {
        Ok(reply) => Ok(Some(decode(&reply)?)),
        Err(CallError::Named(name, _)) if matches!(name.as_str(), NO_SUCH_SESSION | NO_SUCH_USER) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn take<T: TryFrom<OwnedVariant>>(properties: &mut Properties, name: &str) -> Option<T> {
    properties.remove(name).and_then(|value| T::try_from(value).ok())
}

fn describe(mut properties: Properties) -> Result<LoginSession, LoginError> {
    let user: Option<(u32, OwnedObjectPath)> = take(&mut properties, "User");
    let mut text = |name: &str| take::<String>(&mut properties, name);
    let (scope, class, state) = (text("Scope"), text("Class"), text("State"));
    let since = take(&mut properties, "Timestamp");
    let described = (user, scope, class, state, since);
    let (Some((uid, _)), Some(scope), Some(class), Some(state), Some(since)) = described else {
        return Err(LoginError::Refused("the session has no user, scope, class, state or time".into()));
    };
    Ok(LoginSession { uid, since, scope, class, closing: state == "closing" })
}

/// What logind sends about a session.
fn rules(id: &str, path: Option<&OwnedObjectPath>) -> zbus::Result<Vec<MatchRule<'static>>> {
    let from_logind = || MatchRule::builder().msg_type(message::Type::Signal).sender(SERVICE);
    let removed = from_logind().path(MANAGER_PATH).member("SessionRemoved").arg(0, id.to_owned()).build()?;
    let mut rules = vec![removed];
    if let Some(path) = path {
        let path = path.as_str().to_owned();
        rules.push(from_logind().path(path).interface(PROPERTIES).member("PropertiesChanged").build()?);
    }
    Ok(rules)
}

/// The files that logind keeps of its sessions, watched from when they are first asked about.
#[derive(Debug)]
struct Files {
    dir: PathBuf,
    watching: OnceLock<Option<Watching>>,
}

#[derive(Debug)]
struct Watching {
    /// The names of the files that changed; empty for one that is not known.
    signs: broadcast::Sender<String>,
    _watcher: RecommendedWatcher,
}

impl Files {
    /// Signs about the session's file. None ever, where they cannot be watched.
    fn signs(&self, id: &str) -> BoxStream<'static, Option<()>> {
        let watching = self.watching.get_or_init(|| {
            Watching::start(&self.dir)
                .inspect_err(|error| {
                    let dir = self.dir.display();
                    tracing::warn!(%error, %dir, "a logout is seen only once nothing of the login session runs any more");
                })
                .ok()
        });
        let Some(watching) = watching else { return stream::pending().boxed() };
        let id = id.to_owned();
        stream::unfold(watching.signs.subscribe(), move |mut signs| {
            let id = id.clone();
            async move {
                loop {
                    match signs.recv().await {
                        Ok(name) if name == id || name.is_empty() => return Some((Some(()), signs)),
                        Ok(_) => {}
                        Err(broadcast::error::RecvError::Lagged(_)) => return Some((Some(()), signs)),
                        Err(broadcast::error::RecvError::Closed) => return None,
                    }
                }
            }
        })
        .boxed()
    }
}

impl Watching {
    fn start(dir: &Path) -> notify::Result<Self> {
        let (signs, _) = broadcast::channel(SIGNS);
        let sender = signs.clone();
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            let names = match event {
                // Somebody's reading.
                Ok(event) if is_reading(event.kind) => return,
                Ok(event) if !event.need_rescan() => {
                    event.paths.iter().filter_map(|path| path.file_name()?.to_str().map(str::to_owned)).collect()
                }
                // All we know is that something was missed.
                _ => vec![String::new()],
            };
            for name in names {
                // Without anybody who listens there is nobody to tell.
                let _ = sender.send(name);
            }
        })?;
        watcher.watch(dir, RecursiveMode::NonRecursive)?;
        Ok(Self { signs, _watcher: watcher })
    }
}

fn is_reading(kind: EventKind) -> bool {
    matches!(kind, EventKind::Access(access) if access != AccessKind::Close(AccessMode::Write))
}

#[cfg(test)]
pub(super) mod tests;
