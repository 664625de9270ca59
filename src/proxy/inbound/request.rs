//! One request, from its head to the end of its answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use http::header::{self, HeaderValue};
use http::{Request, Response, Uri};
use hyper::body::Incoming;

use super::super::body::{Body, passing, with_trailers};
use super::super::cut::Lifeline;
use super::super::exchange::{Cuts, forward};
use super::super::headers::forget_named;
use super::Shared;
use super::desk::Admitted;
use super::identity::{Identity, remove_claims, remove_proof};
use super::public::{Target, target};
use super::refusal::Refusal;
use super::tasks::OpenTask;
use crate::client::tls::{Guard, PeerCertificates};
use crate::client::verifier::{Outcome, Verified, VerifierClient};

/// A connection whose peer is known.
pub(super) struct Connection {
    pub(super) shared: Arc<Shared>,
    pub(super) guard: Guard,
    pub(super) certificates: PeerCertificates,
    pub(super) identity: Identity,
    pub(super) lifeline: Lifeline,
}

/// What lasts as long as a request does.
struct Open {
    _task: Option<OpenTask>,
    report: Option<Report>,
}

impl Connection {
    /// Answers a request: by the upstream, if it may go there.
    pub(super) async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        let shared = &self.shared;
        let begun = shared.clock.now();
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let answered = self.pass(request).await;
        let took = (shared.clock.now() - begun).as_seconds_f64();
        shared.metrics.request_duration.observe(took.max(0.0));
        match answered {
            Ok(response) => {
                shared.metrics.request("passed");
                response
            }
            Err(refusal) => {
                shared.metrics.request(refusal.as_str());
                let (peer, reason) = (self.guard.peer(), refusal.reason());
                if let Refusal::Upstream(error) = &refusal {
                    tracing::warn!(%peer, %method, path, error = error as &dyn std::error::Error, "no answer");
                } else {
                    tracing::info!(%peer, %method, path, error = refusal.as_str(), reason, "request refused");
                }
                refusal.response()
            }
        }
    }

    async fn pass(&self, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
        let shared = &self.shared;
        if shared.clock.now() >= self.guard.not_after() {
            // It came while the connection was told to finish; the next one brings the next certificate.
            return Err(Refusal::unproven("peer_expired"));
        }
        let (mut head, body) = request.into_parts();
        // Before anything is said: what a client names in `Connection` is removed, and it may name anything.
        forget_named(&mut head.headers);
        let Target { uri, authority, path } =
            target(&shared.public, shared.encoded_slashes, &head).map_err(Refusal::Misdirected)?;
        let asked = shared.clock.now();
        let peer = (self.guard.peer(), &self.certificates);
        let decided = shared.desk.decide(&head, &uri, peer, passing(body)).await;
        shared.metrics.check_duration.observe((shared.clock.now() - asked).as_seconds_f64().max(0.0));
        let Admitted { verified, task, body, whole, merge } = decided?;

        let cut = task.as_ref().map(OpenTask::cut);
        let report = shared.desk.verifier.as_ref().zip(verified.as_ref());
        let report = report.and_then(|(verifier, verified)| Report::new(verifier, verified));
        let open = Arc::new(Open { _task: task, report });

        remove_claims(&mut head.headers);
        remove_proof(&mut head.headers);
        self.identity.tell(&mut head.headers, &authority, verified.as_ref());
        // What clients may not say they may not say at the end either.
        let body = with_trailers(body, remove_claims);
        if let Ok(host) = HeaderValue::from_str(&authority) {
            head.headers.insert(header::HOST, host);
        }
        if let Some(length) = whole {
            head.headers.insert(header::CONTENT_LENGTH, length.into());
        }
        if merge.is_some() {
            // What is added to the answer has to be able to.
            head.headers.remove(header::ACCEPT_ENCODING);
        }
        head.uri = Uri::from(path);
        let to = shared.upstream_uri(&authority);
        let cuts = Cuts { connection: self.lifeline.watch(), request: cut };
        let request = Request::from_parts(head, body);
        let answer = forward(&shared.upstream, &to, request, cuts, open.clone()).await;
        let answer = answer.map_err(Refusal::Upstream)?;
        if let Some(report) = &open.report {
            report.began(answer.status().as_u16());
        }
        Ok(match merge {
            Some(merge) => merge.into(answer).map(passing),
            None => answer,
        })
    }
}

/// Says what became of a call when it is over, whatever ends it.
struct Report {
    verifier: VerifierClient,
    call: Verified,
    outcome: AtomicU8,
}

const FAILED: u8 = 0;
const REFUSED: u8 = 1;
const DONE: u8 = 2;

impl Report {
    /// Outside a session there is no transaction to report on.
    fn new(verifier: &VerifierClient, call: &Verified) -> Option<Self> {
        call.txn.as_ref()?;
        call.session.as_ref()?;
        Some(Self { verifier: verifier.clone(), call: call.clone(), outcome: AtomicU8::new(FAILED) })
    }

    fn began(&self, status: u16) {
        let outcome = match status {
            ..400 => DONE,
            400..500 => REFUSED,
            500.. => FAILED,
        };
        self.outcome.store(outcome, Ordering::Relaxed);
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        // Outside a runtime everything is over.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let outcome = match self.outcome.load(Ordering::Relaxed) {
            DONE => Outcome::Done,
            REFUSED => Outcome::Refused,
            _ => Outcome::Failed,
        };
        let (verifier, call) = (self.verifier.clone(), self.call.clone());
        runtime.spawn(async move {
            if let Err(error) = verifier.report(&call, outcome, "", None).await {
                tracing::warn!(txn = call.txn, %error, "the outcome of a call was not reported");
            }
        });
    }
}
