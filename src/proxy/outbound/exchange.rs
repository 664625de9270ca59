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
use crate::base::quota::Turn;
use crate::client::session::Digest;

/// The longest body that is read whole.
const MAX_WHOLE: usize = 4 << 20;
/// A body of this size is no burden: it is kept, to be sent once more. A larger one is sent once and has a place of its
/// own until then.
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
        let (payload, mut known) = self.read(&head, body).await?;
        let mut answer = match (self.send(head, payload, &mut known).await, &known.message) {
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
            let payload = if body.is_end_stream() { Payload::Kept(Bytes::new()) } else { Payload::Once(passing(body)) };
            return Ok((payload, Known::default()));
        }
        // Who is nobody does not make this proxy hold anything.
        self.task().await?;
        let turn = self.proxy.held_whole.turn(self.caller.uid()).await;
        let whole = Limited::new(body, MAX_WHOLE).collect().await.map_err(|error| {
            if error.is::<LengthLimitError>() { Refusal::TooLarge(MAX_WHOLE) } else { Refusal::Incomplete }
        })?;
        let whole = whole.to_bytes();
        let covered = self.proxy.credential == (Credential::Wpt { cover_body: true });
        let body = covered.then(|| Digest::of(&whole));
        let message = if self.reads_message(head) { Some(Message::read(&head.headers, whole.clone())?) } else { None };
        Ok((Payload::whole(whole, turn), Known { body, message }))
    }

    /// Sends it, each time with a new proof: again when a connection that was open turns out to be closed, if that does
    /// no harm; and when the target wants another proof or nonce.
    async fn send(&self, head: Parts, mut payload: Payload, known: &mut Known) -> Result<Response<Body>, Refusal> {
        let credential = &self.proxy.credential;
        let to = head.uri.clone();
        let websocket = wants_websocket(&head.headers);
        let mut tries = 1;
        loop {
            let (task, proven) = self.proven(&head, known).await?;
            // The agent has signed for the program that it saw. Was that this one?
            self.caller.look()?;
            let repeatable = payload.is_kept() && tries < TRIES;
            if !payload.is_kept() {
                // It has the body once more. From here on only the end of the session is a refusal of the call, and with
                // that the connection is cut as a rule.
                known.message = None;
            }
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
        // A proof says in which session it was made. Where there is none, that is asked each time: the end of a session
        // that the program has begun meanwhile must cut what is made in it.
        let mut task = if credential.is_proof() { self.task().await? } else { self.renew().await? };
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

/// The body of a request on its way.
enum Payload {
    /// Kept until there is an answer.
    Kept(Bytes),
    /// Sent once: one that goes through, or is too large to be kept.
    Once(Body),
    Gone,
}

impl Payload {
    /// One that was read whole, by `turn`. That is over with a large one, when it is written, and with a small one now: many
    /// calls of tools that take long are no abuse.
    fn whole(bytes: Bytes, turn: Turn) -> Self {
        if bytes.len() <= SMALL {
            return Self::Kept(bytes);
        }
        Self::Once(full(Bytes::from_owner(Held { bytes, _turn: turn })))
    }

    fn is_kept(&self) -> bool {
        matches!(self, Self::Kept(_))
    }

    fn take(&mut self) -> Body {
        match std::mem::replace(self, Self::Gone) {
            Self::Kept(bytes) => {
                *self = Self::Kept(bytes.clone());
                if bytes.is_empty() { empty() } else { full(bytes) }
            }
            Self::Once(body) => body,
            Self::Gone => empty(),
        }
    }
}

/// Bytes, and the turn that they take as long as they are here.
struct Held {
    bytes: Bytes,
    _turn: Turn,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Whether it is the same to do it twice (RFC 9110, section 9.2.2).
fn is_idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::base::quota::Turns;

    #[tokio::test]
    async fn a_large_body_takes_a_place_until_it_is_written_and_not_until_it_is_answered() {
        let turns = Turns::new(1, 1);
        let mut payload = Payload::whole(Bytes::from(vec![0; SMALL + 1]), turns.turn(1).await);
        assert!(!payload.is_kept());
        let sent = payload.take();
        assert!(turns.turn(1).now_or_never().is_none(), "it is still here");
        let written = sent.collect().await.expect("sent").to_bytes();
        assert_eq!(written.len(), SMALL + 1);
        drop(written);
        assert!(turns.turn(1).now_or_never().is_some());
        assert!(payload.take().is_end_stream(), "it is sent once");
    }

    #[tokio::test]
    async fn a_small_body_takes_no_place_while_it_is_answered_and_is_sent_as_often_as_need_be() {
        let turns = Turns::new(1, 1);
        let mut payload = Payload::whole(Bytes::from(vec![0; SMALL]), turns.turn(1).await);
        assert!(turns.turn(1).now_or_never().is_some());
        for _ in 0..TRIES {
            assert!(payload.is_kept());
            assert_eq!(payload.take().collect().await.expect("sent").to_bytes().len(), SMALL);
        }
    }
}
