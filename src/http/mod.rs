//! What the agent answers over HTTP, all of it off by default: health, metrics and introspection.
//!
//! - On `http.address`, without TLS: `/livez`, `/readyz`, `/readyz/{part}`, `/metrics`, with sessions
//!   `POST /introspect` for processes of this host, and with `authority.jwt_issuer` what verifiers outside want: the
//!   discovery document and the JWK Set, also below the issuer's path.
//! - On `http.tls_address`, with the agent's own SVID and for clients with one: `POST /introspect` and `GET /keys`, and
//!   for other nodes `POST /changes`.
//!
//! One request for each connection, so that whoever asks is found out for each question.

mod changes;
mod health;
mod introspect;
mod oidc;

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;

use crate::base::drain;
use crate::base::exhaustion::Exhaustion;
use crate::verify::tls::Tls;
use crate::x509::Certificate;

pub use self::health::{Health, Parts, Readiness};
pub use self::introspect::Introspection;
pub use self::oidc::Oidc;

/// A client that has not sent its request by then is cut; and one that has not made itself known.
const HEADER_DEADLINE: Duration = Duration::from_secs(5);
/// No answer takes longer, another node's included.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);
/// A connection that is open when the agent stops has this long to end.
const GRACE: Duration = Duration::from_secs(1);
/// More connections at once than any probe needs.
const MAX_CONNECTIONS: usize = 64;
/// And of verifiers, and of other nodes.
const MAX_TLS_CONNECTIONS: usize = 256;

/// An answer that may go on for long.
type Answer = UnsyncBoxBody<Bytes, Infallible>;

/// The listener without TLS.
#[derive(Clone, Debug)]
pub struct Http {
    /// For probes.
    pub health: Health,
    /// For tools of this host, with sessions.
    pub introspection: Option<Introspection>,
    /// For verifiers outside, with an issuer.
    pub oidc: Option<Oidc>,
}

impl Http {
    /// Serves until the drain begins.
    pub async fn serve(self, listener: TcpListener, drain: drain::Watcher) {
        accept(listener, drain, "http listener", MAX_CONNECTIONS, move |stream, theirs| {
            let http = self.clone();
            async move {
                let Ok(ours) = stream.local_addr() else { return };
                one_request(stream, move |request| {
                    let http = http.clone();
                    async move { http.answer(request, ours, theirs).await }
                })
                .await;
            }
        })
        .await;
    }

    async fn answer(&self, request: Request<Incoming>, ours: SocketAddr, theirs: SocketAddr) -> Response<Answer> {
        let answer = match &self.introspection {
            Some(introspection) if request.uri().path() == introspect::PATH => {
                introspection.over_loopback(request, ours, theirs).await
            }
            _ => match self.oidc.as_ref().and_then(|oidc| oidc.answer(&request)) {
                Some(answer) => answer,
                None => self.health.answer(&request),
            },
        };
        answer.map(Full::boxed_unsync)
    }
}

/// The listener with mutual TLS.
#[derive(Clone, Debug)]
pub struct Https {
    /// For tools with an SVID, and for other nodes.
    pub introspection: Introspection,
    /// Who the agent is and whom it believes.
    pub tls: Tls,
}

impl Https {
    /// Serves until the drain begins, and returns when what was open has ended.
    pub async fn serve(self, listener: TcpListener, drain: drain::Watcher) {
        let acceptor = TlsAcceptor::from(Arc::new(self.tls.server()));
        // Streams end with the listener.
        let (listening, ended) = watch::channel(());
        // Nothing is ever sent: it closes when the last connection is gone.
        let (alive, mut gone) = mpsc::channel::<()>(1);
        accept(listener, drain, "https listener", MAX_TLS_CONNECTIONS, move |stream, _| {
            let (acceptor, https, ended, alive) = (acceptor.clone(), self.clone(), ended.clone(), alive.clone());
            async move {
                // Dropped last: what a connection has of the agent is then gone.
                let _alive = alive;
                let https = https;
                // Why a handshake fails is logged where certificates are judged.
                let Ok(Ok(stream)) = tokio::time::timeout(HEADER_DEADLINE, acceptor.accept(stream)).await else {
                    return;
                };
                let presented: Arc<[CertificateDer<'static>]> =
                    stream.get_ref().1.peer_certificates().unwrap_or_default().into();
                one_request(stream, move |request| {
                    let (https, presented, ended) = (https.clone(), presented.clone(), ended.clone());
                    async move { https.answer(request, &presented, ended).await }
                })
                .await;
            }
        })
        .await;
        drop(listening);
        // One that does not end is left behind.
        let _ = tokio::time::timeout(GRACE, gone.recv()).await;
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
        presented: &[CertificateDer<'static>],
        ended: watch::Receiver<()>,
    ) -> Response<Answer> {
        if request.uri().path() == changes::PATH {
            let (verifier, tls) = (self.introspection.verifier(), self.tls.clone());
            return changes::answer(verifier, request, presented.to_vec(), tls, ended).await;
        }
        let answer = match presented.first().map(|leaf| Certificate::from_der(leaf)) {
            Some(Ok(leaf)) => self.introspection.over_tls(request, &leaf).await,
            _ => text(StatusCode::FORBIDDEN, "there is no certificate\n"),
        };
        answer.map(Full::boxed_unsync)
    }
}

/// Accepts connections until the drain begins, each in a task of its own.
async fn accept<F: Future<Output = ()> + Send + 'static>(
    listener: TcpListener,
    mut drain: drain::Watcher,
    name: &'static str,
    most: usize,
    serve: impl Fn(TcpStream, SocketAddr) -> F,
) {
    let exhaustion = Exhaustion::default();
    let slots = Arc::new(tokio::sync::Semaphore::new(most));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = drain.draining() => return,
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            // TCP also reports what was wrong with a connection that has gone. A pause does no harm then.
            Err(error) => {
                exhaustion.wait_out(name, &error).await;
                continue;
            }
        };
        exhaustion.over();
        let Ok(slot) = slots.clone().try_acquire_owned() else { continue };
        let serving = serve(stream, from);
        tokio::spawn(async move {
            serving.await;
            drop(slot);
        });
    }
}

/// Answers one request; at least the beginning of the answer is there in time.
async fn one_request<F: Future<Output = Response<Answer>>>(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    answer: impl Fn(Request<Incoming>) -> F,
) {
    let service = service_fn(|request| {
        let answered = tokio::time::timeout(ANSWER_DEADLINE, answer(request));
        async move {
            let late = |_| text(StatusCode::SERVICE_UNAVAILABLE, "this took too long\n").map(Full::boxed_unsync);
            Ok::<_, Infallible>(answered.await.unwrap_or_else(late))
        }
    });
    let mut connection = http1::Builder::new();
    connection.timer(TokioTimer::new()).header_read_timeout(HEADER_DEADLINE).keep_alive(false);
    // A probe that hangs up early is no news.
    let _ = connection.serve_connection(TokioIo::new(stream), service).await;
}

fn text(code: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    respond(code, "text/plain; charset=utf-8", body.to_owned())
}

fn respond(code: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    response
}
