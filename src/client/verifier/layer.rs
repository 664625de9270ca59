//! A tower layer in front of an HTTP service: hyper, axum, tonic.

use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body::Body;
use http_body_util::{BodyExt, Either, Full, LengthLimitError, Limited};
use tonic::Code;
use tower::{BoxError, Layer, Service};

use super::{Check, CheckError, Class, ClientError, Digest, Effect, Outcome, Refused, Verified, VerifierClient};
use crate::client::tls::PeerCertificates;
use crate::proof::{TargetError, TargetUri};
use crate::proto::APPROVAL_METADATA;

/// Where a tool is reached, from its own configuration: `https://tool.example.com`, or with a path in front of all of its
/// own. What a request says of its host is never asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicBase(String);

impl PublicBase {
    /// Reads an absolute URI without query and fragment.
    ///
    /// # Errors
    /// It is not one.
    pub fn parse(uri: &str) -> Result<Self, TargetError> {
        if uri.contains(['?', '#']) {
            return Err(TargetError::Path);
        }
        Ok(Self(TargetUri::parse(uri)?.as_str().trim_end_matches('/').to_owned()))
    }

    /// Where a request with this path goes; `None` when no proof can be for it.
    fn join(&self, path: &str) -> Option<String> {
        if !path.starts_with('/') {
            return None;
        }
        let target = TargetUri::parse(&format!("{}{path}", self.0)).ok()?;
        Some(target.as_str().to_owned())
    }
}

/// What a tool sees in a request, for the agent to compare with the proof and to ask policy with.
#[derive(Clone, Debug, Default)]
pub struct Described {
    /// The tool's name behind the URI; empty for none.
    pub tool: String,
    /// Its arguments.
    pub arguments: Option<Digest>,
    /// What the call does.
    pub effect: Effect,
    /// Scopes the caller must have.
    pub scopes: Vec<String>,
}

/// Serves only requests that the agent found good, each with its [`Verified`] among the request's extensions.
///
/// - 401 with `WWW-Authenticate: WPT` and `{"error":"unproven"}`: no proof, or none that holds;
/// - 403 with `{"error":"forbidden"}`, or `{"error":"step_up","approval":ID}` when a person has to agree first;
/// - 413 with `{"error":"too_large"}`: see [`Self::cover_body`];
/// - 503 with `{"error":"unavailable"}`: the agent is away or cannot tell. Nothing is served unchecked.
///
/// To gRPC it says the same by gRPC's own status: `UNAUTHENTICATED`, `PERMISSION_DENIED` (with the metadata `tether-approval` where a
/// person has to agree first), `RESOURCE_EXHAUSTED` or `UNAVAILABLE`.
///
/// Where the server puts [`PeerCertificates`] among the extensions of its requests, the caller's certificate is judged with each of
/// them, and a proof must be of the same identity. Then a layer that takes requests outside a session
/// ([`Self::without_session`]) also takes such without a proof, where policy permits `reach`.
///
/// Put it outside of anything that changes the path (axum's `nest` does) or authenticates by other means. Headers are left as they
/// are. The query is not covered by a proof (draft-ietf-wimse-wpt-02): a tool that acts on it takes what matters from the body and
/// covers that.
#[derive(Clone)]
pub struct VerifyLayer(Arc<Settings>);

#[derive(Clone)]
struct Settings {
    verifier: VerifierClient,
    base: PublicBase,
    describe: Arc<dyn Fn(&Parts) -> Described + Send + Sync>,
    min_binding: u32,
    require_session: bool,
    covered_body: Option<usize>,
    report: bool,
}

impl VerifyLayer {
    /// A layer for a tool that is reached at `base`. Requests must be made in a session, by an agent whose key tether holds
    /// (binding level 2).
    pub fn new(verifier: VerifierClient, base: PublicBase) -> Self {
        let describe = Arc::new(|_: &Parts| Described::default());
        let (min_binding, require_session) = (2, true);
        Self(Arc::new(Settings {
            verifier,
            base,
            describe,
            min_binding,
            require_session,
            covered_body: None,
            report: false,
        }))
    }

    /// What a request is, from its head: `describe` gives tool, effect and scopes by the path, for one.
    #[must_use]
    pub fn describe(self, describe: impl Fn(&Parts) -> Described + Send + Sync + 'static) -> Self {
        self.with(|settings| settings.describe = Arc::new(describe))
    }

    /// The least binding level that is taken.
    #[must_use]
    pub fn min_binding(self, level: u32) -> Self {
        self.with(|settings| settings.min_binding = level)
    }

    /// Takes requests outside a session too: then a [`Verified`] may have none.
    #[must_use]
    pub fn without_session(self) -> Self {
        self.with(|settings| settings.require_session = false)
    }

    /// Demands that the proof covers the body, which is read whole for that, up to `limit` bytes. Otherwise bodies pass by unread.
    #[must_use]
    pub fn cover_body(self, limit: usize) -> Self {
        self.with(|settings| settings.covered_body = Some(limit))
    }

    /// Reports each call to the agent once its response has begun: done by a status below 400, refused below 500, failed
    /// otherwise and when there is none. Not for gRPC, whose status comes after the body: [`VerifierClient::report`] is.
    #[must_use]
    pub fn report(self) -> Self {
        self.with(|settings| settings.report = true)
    }

    fn with(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(Arc::make_mut(&mut self.0));
        self
    }
}

impl<S> Layer<S> for VerifyLayer {
    type Service = Verify<S>;

    fn layer(&self, inner: S) -> Verify<S> {
        Verify { settings: self.0.clone(), inner }
    }
}

/// A service behind a [`VerifyLayer`].
#[derive(Clone)]
pub struct Verify<S> {
    settings: Arc<Settings>,
    inner: S,
}

impl<S, B, R> Service<Request<B>> for Verify<S>
where
    S: Service<Request<Either<Full<Bytes>, B>>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Either<Full<Bytes>, R>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        // The service that was found ready is the one that is called.
        let next = self.inner.clone();
        let mut inner = mem::replace(&mut self.inner, next);
        let settings = self.settings.clone();
        Box::pin(async move {
            let (mut parts, body) = request.into_parts();
            let (verified, body) = match settings.admit(&parts, body).await {
                Ok(admitted) => admitted,
                Err(denial) => return Ok(denial.response(&parts).map(Either::Left)),
            };
            let mut report = settings.report.then(|| Report::new(settings.verifier.clone(), verified.clone()));
            parts.extensions.insert(verified);
            let response = inner.call(Request::from_parts(parts, body)).await?;
            if let Some(report) = &mut report {
                report.by_status(response.status());
            }
            Ok(response.map(Either::Right))
        })
    }
}

/// Why a request is answered here.
enum Denial {
    Check(CheckError),
    TooLarge,
    /// The caller stopped sending.
    Broken,
}

impl From<CheckError> for Denial {
    fn from(error: CheckError) -> Self {
        Self::Check(error)
    }
}

impl From<Refused> for Denial {
    fn from(refused: Refused) -> Self {
        Self::Check(refused.into())
    }
}

impl Settings {
    async fn admit<B>(&self, parts: &Parts, body: B) -> Result<(Verified, Either<Full<Bytes>, B>), Denial>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<BoxError>,
    {
        let uri = self.base.join(parts.uri.path()).ok_or_else(|| Refused {
            class: Class::Unproven,
            reason: "another_uri".to_owned(),
            approval: None,
        })?;
        // Before the body is read: without a proof there is nothing to read it for.
        let mut check = match parts.extensions.get::<PeerCertificates>() {
            Some(peer) => Check::from_peer(&parts.method, uri, &parts.headers, peer)?,
            None => Check::new(&parts.method, uri, &parts.headers)?,
        };
        if self.require_session && !check.has_proof() {
            return Err(Check::no_proof().into());
        }
        let (digest, body) = match self.covered_body {
            Some(limit) => {
                let whole = read(body, limit).await?;
                (Some(Digest::of(&whole)), Either::Left(Full::new(whole)))
            }
            None => (None, Either::Right(body)),
        };
        let described = (self.describe)(parts);
        check.body = digest;
        check.tool = described.tool;
        check.arguments = described.arguments;
        check.effect = described.effect;
        check.scopes = described.scopes;
        check.min_binding = self.min_binding;
        check.require_session = self.require_session;
        Ok((self.verifier.check(&check).await?, body))
    }
}

async fn read<B>(body: B, limit: usize) -> Result<Bytes, Denial>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    match Limited::new(body, limit).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Denial::TooLarge),
        Err(_) => Err(Denial::Broken),
    }
}

impl Denial {
    /// What the caller is told; the reason goes to the log alone.
    fn response(&self, parts: &Parts) -> Response<Full<Bytes>> {
        let (method, path) = (&parts.method, parts.uri.path());
        let (status, error, approval) = match self {
            Self::Check(CheckError::Refused(refused)) => {
                tracing::info!(%method, path, reason = refused.reason, "request refused");
                let status = match refused.class {
                    Class::Unproven => StatusCode::UNAUTHORIZED,
                    Class::Forbidden | Class::StepUp => StatusCode::FORBIDDEN,
                    Class::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
                };
                (status, refused.class.as_str(), refused.approval.as_deref())
            }
            Self::Check(CheckError::Agent(error)) => {
                let hint = match error {
                    ClientError::Denied(_) => "list the URI under `serves` in this tool's registration entry",
                    _ => "is the agent running?",
                };
                tracing::error!(%method, path, %error, hint, "request refused: it cannot be checked");
                (StatusCode::SERVICE_UNAVAILABLE, Class::Unavailable.as_str(), None)
            }
            Self::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "too_large", None),
            Self::Broken => (StatusCode::BAD_REQUEST, "incomplete", None),
        };
        if is_grpc(parts) {
            return grpc_answer(status, error, approval);
        }
        let body = match approval {
            Some(approval) => serde_json::json!({ "error": error, "approval": approval }),
            None => serde_json::json!({ "error": error }),
        };
        let mut response = Response::new(Full::from(body.to_string()));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("WPT"));
        }
        response
    }
}

/// Whether the caller speaks gRPC, which has statuses of its own and reads no body of another kind.
fn is_grpc(parts: &Parts) -> bool {
    let kind = parts.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    kind.is_some_and(|kind| kind.starts_with("application/grpc"))
}

/// The same as an answer of trailers alone, with the status that gRPC has for it.
fn grpc_answer(status: StatusCode, error: &'static str, approval: Option<&str>) -> Response<Full<Bytes>> {
    let code = match status {
        StatusCode::UNAUTHORIZED => Code::Unauthenticated,
        StatusCode::FORBIDDEN => Code::PermissionDenied,
        StatusCode::PAYLOAD_TOO_LARGE => Code::ResourceExhausted,
        StatusCode::BAD_REQUEST => Code::Cancelled,
        _ => Code::Unavailable,
    };
    let mut response = Response::new(Full::default());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", HeaderValue::from(i32::from(code)));
    headers.insert("grpc-message", HeaderValue::from_static(error));
    if let Some(approval) = approval.and_then(|approval| HeaderValue::from_str(approval).ok()) {
        headers.insert(APPROVAL_METADATA, approval);
    }
    response
}

/// Reports when it is dropped, so that a call whose service fails, or whose caller goes away, is reported too.
struct Report {
    verifier: VerifierClient,
    call: Verified,
    outcome: Outcome,
}

impl Report {
    fn new(verifier: VerifierClient, call: Verified) -> Self {
        Self { verifier, call, outcome: Outcome::Failed }
    }

    fn by_status(&mut self, status: StatusCode) {
        self.outcome = match status.as_u16() {
            ..400 => Outcome::Done,
            400..500 => Outcome::Refused,
            500.. => Outcome::Failed,
        };
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        // Outside a session there is no transaction to report on; outside a runtime everything is over.
        let (Some(_), Ok(runtime)) = (&self.call.txn, tokio::runtime::Handle::try_current()) else { return };
        let (verifier, call, outcome) = (self.verifier.clone(), self.call.clone(), self.outcome);
        runtime.spawn(async move {
            if let Err(error) = verifier.report(&call, outcome, "", None).await {
                tracing::warn!(txn = call.txn, %error, "the outcome of a call was not reported");
            }
        });
    }
}
