//! One request of a program's, to the target and back: one straight path.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONNECTION, HOST, HeaderValue, UPGRADE};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use http_body::Body as _;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Incoming;
use tokio::sync::watch;

use super::super::body::passing;
use super::super::headers::{remove_hop_by_hop, wants_websocket};
use super::super::mcp::{self, Message};
use super::super::{Body, Cut, CutReason, Cuts, UpstreamError, empty, forward, full};
use super::Proxy;
use super::caller::Caller;
use super::credential::{Credential, Known};
use super::program::{Present, Task};
use super::refusal::{Refusal, answered};
use crate::client::session::Digest;

/// The longest body that is read whole.
const MAX_WHOLE: usize = 4 << 20;
/// A body of this size is no burden.
const SMALL: usize = 64 << 10;
/// How often a request is tried, each time with a proof of its own.
const TRIES: u32 = 2;

/// One connection of a program's.
pub(super) struct Connection {
    proxy: Arc<Proxy>,
    caller: Caller,
    program: Arc<Present>,
    /// What its requests are made for.
    task: watch::Sender<Option<Arc<Task>>>,
}

impl Connection {
    pub(super) fn new(proxy: Arc<Proxy>, caller: Caller) -> Arc<Self> {
        let program = Arc::new(proxy.programs.of(&caller));
        Arc::new(Self { proxy, caller, program, task: watch::Sender::new(None) })
    }

    /// Returns when what its requests are made for is over, and the connection with it.
    pub(super) async fn cut(&self) -> CutReason {
        let mut program: Cut = self.program.0.cut();
        let mut task = self.task.subscribe();
        loop {
            let of_task = task.borrow_and_update().as_ref().map(|task| task.lifeline.watch());
            let task_cut = async {
                match of_task {
                    Some(mut cut) => cut.cut().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                reason = program.cut() => return reason,
                reason = task_cut => return reason,
                Ok(()) = task.changed() => {}
            }
        }
    }

    /// The answer to a request: the target's, or why there is none.
    pub(super) async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        match self.exchange(request).await {
            Ok(answer) => answer,
            Err(refusal) => {
                let (pid, error) = (self.caller.instance().pid(), &refusal as &dyn std::error::Error);
                tracing::info!(pid, %method, path, refused = refusal.as_str(), error, "request refused");
                refusal.response()
            }
        }
    }

    async fn exchange(&self, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
        let proxy = &self.proxy;
        let (mut head, body) = request.into_parts();
        if matches!(head.method, Method::TRACE | Method::CONNECT) {
            return Err(Refusal::Method);
        }
        head.uri = proxy.target.locate(&head)?;
        self.caller.still().await?;
        // First: a program that names headers in `Connection` takes away its own, and not what is written here.
        let websocket = wants_websocket(&head.headers);
        remove_hop_by_hop(&mut head.headers);
        if websocket {
            head.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            head.headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        }
        proxy.credential.strip(&mut head.headers);
        head.headers.insert(HOST, proxy.target.host_header());
        // Who is nobody does not make this proxy hold anything.
        self.task().await?;
        let mut turn = None;
        if self.reads_whole(&head) {
            turn = Some(proxy.held_whole.turn(self.caller.uid()).await);
        }
        let (payload, known) = self.read(&head, body).await?;
        // A small one may be held for as long as the target takes: many calls of tools that take long are no abuse.
        drop(turn.take_if(|_| payload.is_small()));
        let mut answer = match (self.send(head, payload, &known).await, &known.message) {
            (Err(refusal), Some(message)) => {
                let refused = refusal.of_call().ok_or(refusal)?;
                tracing::info!(pid = self.caller.instance().pid(), reason = refused.reason, "a call was refused");
                return Ok(answered(message.refused(&refused)));
            }
            (answer, _) => answer?,
        };
        if answer.status() == StatusCode::PROXY_AUTHENTICATION_REQUIRED
            || answer.status() == StatusCode::UNAUTHORIZED && proxy.credential.is_ours_alone()
        {
            return Err(Refusal::NotTaken);
        }
        // What a proof is to contain is no matter of the program's.
        answer.headers_mut().remove("dpop-nonce");
        self.caller.look()?;
        Ok(answer)
    }

    /// Whether a proof cannot be made before the body is here.
    fn reads_whole(&self, head: &Parts) -> bool {
        self.proxy.credential == (Credential::Wpt { cover_body: true }) || self.reads_message(head)
    }

    fn reads_message(&self, head: &Parts) -> bool {
        self.proxy.mcp && mcp::is_message(&head.method)
    }

    /// What is to be known of the body before a proof can be made.
    async fn read(&self, head: &Parts, body: Incoming) -> Result<(Payload, Known), Refusal> {
        if !self.reads_whole(head) {
            let payload = if body.is_end_stream() { Payload::Whole(Bytes::new()) } else { Payload::Passing(body) };
            return Ok((payload, Known::default()));
        }
        let whole = Limited::new(body, MAX_WHOLE).collect().await.map_err(|error| {
            if error.is::<LengthLimitError>() { Refusal::TooLarge(MAX_WHOLE) } else { Refusal::Incomplete }
        })?;
        let whole = whole.to_bytes();
        let covered = self.proxy.credential == (Credential::Wpt { cover_body: true });
        let body = covered.then(|| Digest::of(&whole));
        let message = if self.reads_message(head) { Some(Message::read(&head.headers, whole.clone())?) } else { None };
        Ok((Payload::Whole(whole), Known { body, message }))
    }

    /// Sends it, each time with a new proof: again when a connection that was open turns out to be closed, if that does
    /// no harm; and when the target wants another proof or nonce.
    async fn send(&self, head: Parts, mut payload: Payload, known: &Known) -> Result<Response<Body>, Refusal> {
        let credential = &self.proxy.credential;
        let to = head.uri.clone();
        let websocket = wants_websocket(&head.headers);
        let mut tries = 1;
        loop {
            let (task, proven) = self.proven(&head, known).await?;
            // The agent has signed for the program that it saw. Was that this one?
            self.caller.look()?;
            let repeatable = payload.is_whole() && tries < TRIES;
            let request = Request::from_parts(proven, payload.take());
            let (mut over, upstream) = (task.lifeline.watch(), task.upstream(websocket));
            let cuts = Cuts { connection: self.program.0.cut(), request: Some(over.clone()) };
            let answer = tokio::select! {
                biased;
                reason = over.cut() => return Err(Refusal::SessionEnded(reason.as_str().to_owned())),
                answer = forward(&upstream, &to, request, cuts, self.program.clone()) => answer,
            };
            match answer {
                Err(UpstreamError::Broken(_)) if repeatable && is_idempotent(&head.method) => {}
                Err(error) => return Err(error.into()),
                Ok(answer) => {
                    let unauthorised = answer.status() == StatusCode::UNAUTHORIZED;
                    let learned = credential.learn(&task, answer.headers());
                    if unauthorised && credential.is_ours_alone() {
                        super::bearer::forget(&task).await;
                    }
                    // Nothing was done: the agent of the target may know no proof from before its start, for one.
                    let worth_another = learned || credential.is_ours_alone();
                    if !(unauthorised && worth_another && repeatable) {
                        return Ok(answer);
                    }
                }
            }
            tries += 1;
            tracing::debug!(method = %head.method, "the request is sent once more, with another proof of its own");
        }
    }

    /// The head with what it is to show, and what it is made for now.
    async fn proven(&self, head: &Parts, known: &Known) -> Result<(Arc<Task>, Parts), Refusal> {
        let Proxy { credential, clock, .. } = &*self.proxy;
        let mut task = self.task().await?;
        for _ in 0..TRIES {
            let mut proven = head.clone();
            let session = credential.attach(&mut proven, known, &self.program.0, &task, clock).await?;
            if session == task.session {
                return Ok((task, proven));
            }
            // The program has begun a session, or is in another one than before.
            task = self.renew().await?;
        }
        Err(Refusal::NotNow("the program's session changes faster than requests are made".to_owned()))
    }

    /// What its requests are made for, as far as is known.
    async fn task(&self) -> Result<Arc<Task>, Refusal> {
        let known = self.task.borrow().clone();
        match known {
            Some(task) => Ok(task),
            None => self.renew().await,
        }
    }

    async fn renew(&self) -> Result<Arc<Task>, Refusal> {
        let task = self.program.0.task().await?;
        self.task.send_replace(Some(task.clone()));
        Ok(task)
    }
}

/// A body that is here, or one that goes through.
enum Payload {
    Whole(Bytes),
    Passing(Incoming),
    Gone,
}

impl Payload {
    fn is_small(&self) -> bool {
        matches!(self, Self::Whole(bytes) if bytes.len() <= SMALL)
    }

    fn is_whole(&self) -> bool {
        matches!(self, Self::Whole(_))
    }

    /// The body; one that goes through is there once.
    fn take(&mut self) -> Body {
        match std::mem::replace(self, Self::Gone) {
            Self::Whole(bytes) => {
                *self = Self::Whole(bytes.clone());
                if bytes.is_empty() { empty() } else { full(bytes) }
            }
            Self::Passing(body) => passing(body),
            Self::Gone => empty(),
        }
    }
}

/// Whether it is the same to do it twice (RFC 9110, section 9.2.2).
fn is_idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE)
}
