//! What every call passes before its body is read and before anything is spent on it: the endpoint's metadata, the
//! caller's places, a deadline for the request, and on the admin socket the caller's roles.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Sleep;
use tonic::Status;
use tonic::body::Body;
use tonic::service::Interceptor;
use tower::{Layer, Service};

use super::admin::{RoleSet, Roles};
use super::status;
use crate::audit::{Audit, Event};
use crate::base::quota::{Place, Quota};
use crate::issue::caller;
use crate::peer::PeerConn;

/// A request that is not whole by then is never going to be.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);

/// The gate of the Workload Endpoint: its metadata exactly once and with exactly its value (SPIFFE Workload Endpoint,
/// section 3), whatever is called, services of ours, health and reflection too; then a place for the call.
#[derive(Clone, Debug)]
pub struct WorkloadGate {
    /// The calls that may be open, streams included.
    pub calls: Quota,
}

impl Interceptor for WorkloadGate {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, Status> {
        let mut values = request.metadata().get_all(status::HEADER).iter();
        let carried = values.next().is_some_and(|value| value == "true") && values.next().is_none();
        if !carried {
            return Err(status::missing_header());
        }
        let place = take(&self.calls, peer(request.extensions())?)?;
        request.extensions_mut().insert(place);
        Ok(request)
    }
}

/// The place of a call, kept as long as the call or its stream is open.
pub(super) type CallPlace = Arc<Place>;

fn take(calls: &Quota, peer: &PeerConn) -> Result<CallPlace, Status> {
    calls.take(peer.uid()).map(Arc::new).map_err(|full| status::too_many("calls open", full))
}

/// Who calls, as the listener put it beside the request.
pub(super) fn peer(extensions: &http::Extensions) -> Result<&PeerConn, Status> {
    extensions.get::<PeerConn>().ok_or_else(|| Status::internal("BUG: the caller is unknown"))
}

/// Ends a request that is not whole in time, so that nobody can hold memory with half-sent ones.
#[derive(Clone, Copy, Debug, Default)]
pub struct DeadlineLayer;

impl<S> Layer<S> for DeadlineLayer {
    type Service = DeadlineService<S>;
    fn layer(&self, inner: S) -> DeadlineService<S> {
        DeadlineService { inner }
    }
}

/// The service made by [`DeadlineLayer`].
#[derive(Clone, Debug)]
pub struct DeadlineService<S> {
    inner: S,
}

impl<S: Service<Request<Body>>> Service<Request<Body>> for DeadlineService<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> S::Future {
        let timely = |body| Body::new(Timely { body, deadline: Box::pin(tokio::time::sleep(REQUEST_DEADLINE)) });
        self.inner.call(request.map(timely))
    }
}

/// A body that fails when it is still wanted at its deadline.
struct Timely {
    body: Body,
    deadline: Pin<Box<Sleep>>,
}

impl HttpBody for Timely {
    type Data = bytes::Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Status>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            return Poll::Ready(frame);
        }
        ready!(self.deadline.as_mut().poll(cx));
        Poll::Ready(Some(Err(Status::deadline_exceeded("the request was not sent in time"))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The one call that callers without a role may make: about processes of their own user.
const FOR_EVERYONE: &str = "/tether.admin.v1.Agent/Explain";

/// Who administers, found out before the body of a call is read.
#[derive(Clone, Debug)]
pub struct Administrator {
    /// The connection.
    pub peer: PeerConn,
    /// The user id now.
    pub uid: u32,
    /// What it may do.
    pub roles: RoleSet,
    _place: CallPlace,
}

/// Decides the roles of each caller of the admin socket, by its credentials as the kernel has them now.
#[derive(Clone, Debug)]
pub struct RoleLayer {
    /// Who may do what.
    pub roles: Roles,
    /// The calls that may be open.
    pub calls: Quota,
    /// Where refusals go.
    pub audit: Audit,
}

impl RoleLayer {
    async fn admit(&self, peer: PeerConn, for_everyone: bool) -> Result<Administrator, Status> {
        let place = take(&self.calls, &peer)?;
        let denied = |why: String| Status::permission_denied(why);
        peer.proven().await.map_err(|refusal| denied(refusal.to_string()))?;
        let credentials = peer.credentials().map_err(|error| denied(error.to_string()))?;
        let admitted = peer.opened_by(credentials.uid, credentials.gid).await;
        let roles = self.roles.of(&credentials);
        let refused = match &admitted {
            Err(refusal) => Some((refusal.as_str(), refusal.to_string())),
            Ok(()) if roles.is_empty() && !for_everyone => {
                let why = "this needs a role: join one of the groups that [admin] names, or ask as root";
                Some(("role", why.to_owned()))
            }
            Ok(()) => None,
        };
        if let Some((reason, detail)) = refused {
            self.audit.record(Event::Refused { caller: caller(&peer), reason, detail: detail.clone() });
            return Err(denied(detail));
        }
        Ok(Administrator { peer, uid: credentials.uid, roles, _place: place })
    }
}

impl<S> Layer<S> for RoleLayer {
    type Service = RoleService<S>;
    fn layer(&self, inner: S) -> RoleService<S> {
        RoleService { gate: self.clone(), inner }
    }
}

/// The service made by [`RoleLayer`].
#[derive(Clone, Debug)]
pub struct RoleService<S> {
    gate: RoleLayer,
    inner: S,
}

impl<S> Service<Request<Body>> for RoleService<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let gate = self.gate.clone();
        // The service that was polled ready is the one to call.
        let ready = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, ready);
        let peer = peer(request.extensions()).cloned();
        let for_everyone = request.uri().path() == FOR_EVERYONE;
        Box::pin(async move {
            let admitted = match peer {
                Ok(peer) => gate.admit(peer, for_everyone).await,
                Err(status) => Err(status),
            };
            match admitted {
                Ok(administrator) => {
                    request.extensions_mut().insert(administrator);
                    inner.call(request).await
                }
                Err(status) => Ok(status.into_http()),
            }
        })
    }
}
