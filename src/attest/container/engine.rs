//! Asking a container engine about one container.
//!
//! Each question has a connection of its own, to root's socket (see [`super::socket`]). First comes `/_ping`, for which no
//! engine has to wait: one that does not answer it is out, and is left alone for a while; one that does, and then does not
//! answer about a container, which it may be starting or removing, costs that container alone. Answers are bounded in
//! size and time, and only the 64 digits of an id ever get into a request.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::answer::Answer;
use super::known::Known;
use super::place::{ContainerId, Place};
use super::socket::{EngineSocket, SocketError};
use super::{Config, Kind};
use crate::attest::guard::{Guard, Outage};
use crate::attest::memo::{Computed, Failure, Memo};
use crate::base::backoff::Backoff;
use crate::base::clock::Clock;
use crate::base::entropy::Entropy;

/// The largest description of a container that is read, in bytes. A usual one has some thousand.
const MAX_ANSWER: usize = 1024 * 1024;
/// The largest answer to `/_ping`.
const MAX_PONG: usize = 1024;
/// The head of an answer, in bytes and in fields.
const MAX_HEAD: usize = 16 * 1024;
const MAX_FIELDS: usize = 64;
/// Questions to one engine at the same time.
const AT_ONCE: usize = 8;
/// Containers that are remembered, a descriptor each, and how long: nothing of a container that runs changes but its name.
const REMEMBERED: usize = 512;
const KEEP: Duration = Duration::from_secs(60);
/// How soon an engine that did not answer is tried again although nobody asks.
const FIRST_TRY: Duration = Duration::from_secs(1);
const LAST_TRY: Duration = Duration::from_secs(60);

/// Why nothing is known of a container.
#[derive(Debug, Error)]
pub(super) enum EngineError {
    /// It is not connected to.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// It did not answer `/_ping` in time.
    #[error("it did not answer within {0:?}")]
    Late(Duration),
    /// It did not answer a short time ago.
    #[error("it did not answer before, and is asked again soon")]
    Resting,
    /// It speaks something else than HTTP, or ended the connection.
    #[error("it does not answer as an engine does")]
    Http(#[source] hyper::Error),
    /// Its answer to `/_ping` is none.
    #[error("it does not answer `/_ping` as an engine does: {0}")]
    NoEngine(StatusCode),
    /// It answers, but not about this container.
    #[error("it did not answer about the container within {0:?}")]
    Busy(Duration),
    /// Too many others wait for an answer.
    #[error("too many containers are asked about at this time: try again")]
    Crowded,
    /// It knows no such container.
    #[error("it knows no such container")]
    Unknown,
    /// It answered with an error.
    #[error("it answered `{0}`")]
    Refused(StatusCode),
    /// The answer is longer than is read.
    #[error("its answer is longer than {MAX_ANSWER} bytes")]
    TooLong,
    /// The answer is no description of a container.
    #[error("its answer is no description of a container: {0}")]
    Malformed(#[source] serde_json::Error),
    /// The answer is about another container.
    #[error("its answer is about another container")]
    Another,
    /// The container has no processes, so none of them can have asked.
    #[error("it says that the container does not run")]
    NotRunning,
    /// The first process of the container, as the engine says, is somewhere else.
    #[error("process {0}, which it names as the first of the container, is not in the container's control group")]
    Elsewhere(i32),
    /// That process cannot be looked at.
    #[error("process {pid}, which it names as the first of the container, cannot be looked at: {why}")]
    Unseen {
        /// Its number.
        pid: i32,
        /// Why.
        why: String,
    },
}

impl Outage for EngineError {
    fn late(patience: Duration) -> Self {
        Self::Late(patience)
    }

    fn resting() -> Self {
        Self::Resting
    }

    fn is_outage(&self) -> bool {
        matches!(self, Self::Socket(_) | Self::Late(_) | Self::Http(_) | Self::NoEngine(_))
    }
}

impl EngineError {
    /// The error with its causes, in words for a person.
    fn words(&self) -> String {
        let mut words = self.to_string();
        let mut source = std::error::Error::source(self);
        // What a transparent error says is what its source says.
        while let Some(error) = source {
            let more = error.to_string();
            if !words.ends_with(&more) {
                words = format!("{words}: {more}");
            }
            source = error.source();
        }
        words
    }
}

/// How an engine answered last.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Health {
    /// It was not asked yet.
    Unasked,
    Well,
    /// It did not, and why.
    Out(String),
}

/// One engine of this host.
#[derive(Clone)]
pub(super) struct Engine(Arc<Inner>);

struct Inner {
    kind: Kind,
    socket: EngineSocket,
    guard: Guard,
    patience: Duration,
    memo: Memo<Place, Arc<Known>>,
    at_once: Semaphore,
    health: watch::Sender<Health>,
    entropy: Entropy,
}

impl Engine {
    /// The engine at `socket`.
    pub fn new(kind: Kind, socket: EngineSocket, config: &Config, clock: Clock, entropy: Entropy) -> Self {
        // Half of the time is for showing that it is there at all: podman may have to be started for that.
        let guard = Guard::new(config.patience / 2, kind.meanwhile(), clock.clone(), entropy.clone());
        Self(Arc::new(Inner {
            kind,
            socket,
            guard,
            patience: config.patience / 2,
            memo: Memo::new(clock, KEEP, REMEMBERED),
            at_once: Semaphore::new(AT_ONCE),
            health: watch::Sender::new(Health::Unasked),
            entropy,
        }))
    }

    /// What is known of the container whose control group this is. Everybody in it shares one answer, as long as its
    /// first process lives.
    pub async fn container(&self, place: &Place) -> Result<Arc<Known>, Failure> {
        self.0.memo.forget_if(place, |known| !known.is_running());
        let (engine, wanted) = (self.clone(), place.clone());
        let computed = async move {
            let known = engine.find_out(&wanted).await.map_err(|error| engine.words(&error))?;
            Ok(Computed { value: Arc::new(known), keep: true })
        };
        // One question for all users: it waits for nobody but the engine, and not for long.
        self.0.memo.get(0, place.clone(), computed).await
    }

    async fn find_out(&self, place: &Place) -> Result<Known, EngineError> {
        let inner = &self.0;
        let turn = tokio::time::timeout(inner.patience, inner.at_once.acquire()).await;
        let _turn = turn.map_err(|_| EngineError::Crowded)?;
        let mut connection = self.open().await?;
        let answer = tokio::time::timeout(inner.patience, connection.describe(&place.container)).await;
        let answer = answer.unwrap_or(Err(EngineError::Busy(inner.patience)))?;
        Known::of(inner.kind, &answer, place)
    }

    /// A connection to an engine that answers.
    async fn open(&self) -> Result<Connection, EngineError> {
        let opened = self.0.guard.ask(|| async {
            let mut connection = Connection::open(&self.0.socket).await?;
            connection.ping().await?;
            Ok(connection)
        });
        let opened = opened.await;
        match &opened {
            Ok(_) => self.is(Health::Well),
            Err(EngineError::Resting) => {}
            Err(error) => self.is(Health::Out(error.words())),
        }
        opened
    }

    fn is(&self, now: Health) {
        self.0.health.send_if_modified(|health| {
            let changed = *health != now;
            *health = now;
            changed
        });
    }

    /// What is lost while it does not answer; `None` while it does.
    pub fn weaker(&self) -> Option<String> {
        match &*self.0.health.borrow() {
            Health::Unasked | Health::Well => None,
            Health::Out(why) => Some(format!("{}; {}", self.0.kind.meanwhile(), self.out(why))),
        }
    }

    /// Asks whether it is there, at first and, whenever it was not, until it is. Never ends.
    pub async fn attend(&self) {
        let mut health = self.0.health.subscribe();
        loop {
            let mut backoff = Backoff::new(FIRST_TRY, LAST_TRY);
            while *health.borrow_and_update() != Health::Well {
                let is_there = self.open().await.is_ok();
                if !is_there {
                    tokio::time::sleep(backoff.delay(&self.0.entropy)).await;
                }
            }
            // The sender is ours: it does not go away.
            let _ = health.changed().await;
        }
    }

    fn words(&self, error: &EngineError) -> Failure {
        self.out(&error.words()).into()
    }

    fn out(&self, why: &str) -> String {
        format!("{} at `{}`: {why}", self.0.kind.as_str(), self.0.socket.path().display())
    }
}

/// One connection.
struct Connection {
    sender: http1::SendRequest<Empty<Bytes>>,
    /// What moves its bytes, and stops when this is dropped.
    _driver: JoinSet<()>,
}

impl Connection {
    async fn open(socket: &EngineSocket) -> Result<Self, EngineError> {
        let stream = TokioIo::new(socket.connect().await?);
        let mut builder = http1::Builder::new();
        builder.max_buf_size(MAX_HEAD).max_headers(MAX_FIELDS);
        let (sender, connection) = builder.handshake(stream).await.map_err(EngineError::Http)?;
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            // How it ends is seen by whoever reads the answer.
            let _ = connection.await;
        });
        Ok(Self { sender, _driver: driver })
    }

    async fn ping(&mut self) -> Result<(), EngineError> {
        let (status, _) = self.get("/_ping", MAX_PONG).await?;
        if status == StatusCode::OK { Ok(()) } else { Err(EngineError::NoEngine(status)) }
    }

    async fn describe(&mut self, id: &ContainerId) -> Result<Answer, EngineError> {
        let (status, body) = self.get(&format!("/containers/{}/json", id.as_str()), MAX_ANSWER).await?;
        match status {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Err(EngineError::Unknown),
            other => return Err(EngineError::Refused(other)),
        }
        let answer: Answer = serde_json::from_slice(&body).map_err(EngineError::Malformed)?;
        if answer.id == id.as_str() { Ok(answer) } else { Err(EngineError::Another) }
    }

    async fn get(&mut self, path: &str, limit: usize) -> Result<(StatusCode, Bytes), EngineError> {
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = path.parse().expect("it is made of letters, digits and slashes");
        request.headers_mut().insert(header::HOST, header::HeaderValue::from_static("localhost"));
        let answer = self.sender.send_request(request).await.map_err(EngineError::Http)?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), limit).collect().await.map_err(|error| {
            if error.is::<LengthLimitError>() {
                return EngineError::TooLong;
            }
            error.downcast::<hyper::Error>().map_or(EngineError::TooLong, |error| EngineError::Http(*error))
        })?;
        Ok((status, body.to_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attest::container::tests::FakeEngine;

    #[tokio::test]
    async fn an_engine_that_is_out_is_tried_until_it_is_there_without_anybody_asking() {
        let dir = tempfile::tempdir().expect("temporary");
        let socket = EngineSocket::of_user(&dir.path().join("engine.sock"), nix::unistd::geteuid().as_raw());
        let config = Config { patience: Duration::from_secs(60), ..Config::usual(Kind::Podman) };
        let engine = Engine::new(Kind::Podman, socket, &config, Clock::system(), Entropy::system());
        assert_eq!(engine.weaker(), None, "it was not asked yet");
        let mut health = engine.0.health.subscribe();
        let attending = tokio::spawn({
            let engine = engine.clone();
            async move { engine.attend().await }
        });
        health.wait_for(|health| matches!(health, Health::Out(_))).await.expect("it is there");
        assert!(engine.weaker().is_some_and(|why| why.contains("there is no socket")));
        let _there = FakeEngine::well_in(dir);
        health.wait_for(|health| *health == Health::Well).await.expect("it is there");
        assert_eq!(engine.weaker(), None);
        attending.abort();
    }
}
