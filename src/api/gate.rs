//! What every call passes before its body is read and before anything is spent on it: the endpoint's metadata, the
//! caller's places, a deadline for the request, and on the admin socket the caller's roles.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;
use tonic::service::Interceptor;
use tower::{Layer, Service};

use super::admin::{RoleSet, Roles};
use super::status;
use crate::audit::{Audit, Event};
use crate::base::drain;
use crate::base::quota::{Place, Quota};
use crate::issue::caller;
use crate::peer::PeerConn;

/// A request that is not whole by then is never going to be.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);
/// How long one may still come in when the agent stops: the next agent waits for this one.
const LAST_BYTES: Duration = Duration::from_millis(250);

/// The service that Envoy calls, whose clients know nothing of a Workload Endpoint.
const SECRETS: &str = "/envoy.service.secret.v3.SecretDiscoveryService/";

/// Stands beside a call of the Secret Discovery Service.
#[derive(Clone, Copy, Debug)]
struct OfSecrets;

/// Finds out which calls are of the Secret Discovery Service, for the layers below.
#[derive(Clone, Copy, Debug, Default)]
pub struct SecretsLayer;

impl<S> Layer<S> for SecretsLayer {
    type Service = SecretsService<S>;
    fn layer(&self, inner: S) -> SecretsService<S> {
        SecretsService { inner }
    }
}

/// The service made by [`SecretsLayer`].
#[derive(Clone, Debug)]
pub struct SecretsService<S> {
    inner: S,
}

impl<S: Service<Request<B>>, B> Service<Request<B>> for SecretsService<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> S::Future {
        if request.uri().path().starts_with(SECRETS) {
            request.extensions_mut().insert(OfSecrets);
        }
        self.inner.call(request)
    }
}

/// The gate of the Workload Endpoint: its metadata exactly once and with exactly its value (SPIFFE Workload Endpoint,
/// section 3), whatever is called, services of ours, health and reflection too; then a place for the call.
///
/// The Secret Discovery Service is no part of that standard, and Envoy does not send the metadata unless it is told to.
/// It keeps out requests that a program was tricked into sending. Such a program speaks HTTP/1 to a URL of somebody's
/// choice; what it would have to send here is HTTP/2 with prior knowledge to a Unix socket, of gRPC's content type,
/// which no URL says.
#[derive(Clone, Debug)]
pub struct WorkloadGate {
    /// The calls that may be open, streams included.
    pub calls: Quota,
}

impl Interceptor for WorkloadGate {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, Status> {
        let metadata = request.metadata();
        if request.extensions().get::<OfSecrets>().is_some() {
            let is_grpc = |value: &str| value.starts_with("application/grpc");
            let content_type = metadata.get("content-type").and_then(|value| value.to_str().ok());
            if !content_type.is_some_and(is_grpc) {
                return Err(status::no_grpc());
            }
        } else {
            let mut values = metadata.get_all(status::HEADER).iter();
            let carried = values.next().is_some_and(|value| value == "true") && values.next().is_none();
            if !carried {
                return Err(status::missing_header());
            }
        }
        let place = take(&self.calls, peer(request.extensions())?)?;
        request.extensions_mut().insert(place);
        Ok(request)
    }
}

/// The place of a call, kept as long as the call or its stream is open.
pub(super) type CallPlace = Arc<Place>;

fn take(calls: &Quota, peer: &PeerConn) -> Result<CallPlace, Status> {
    calls.take(peer.share()).map(Arc::new).map_err(|full| status::too_many("calls open", full))
}

/// Who calls, as the listener put it beside the request.
pub(super) fn peer(extensions: &http::Extensions) -> Result<&PeerConn, Status> {
    extensions.get::<PeerConn>().ok_or_else(|| Status::internal("BUG: the caller is unknown"))
}

/// Ends a request that is not whole in time, so that nobody can hold memory with half-sent ones, or the agent when it stops.
/// Where a call has many request messages, that is each of them.
#[derive(Clone, Debug)]
pub struct DeadlineLayer {
    /// When the agent stops.
    pub stop: drain::Watcher,
}

impl<S> Layer<S> for DeadlineLayer {
    type Service = DeadlineService<S>;
    fn layer(&self, inner: S) -> DeadlineService<S> {
        DeadlineService { inner, stop: self.stop.clone() }
    }
}

/// The service made by [`DeadlineLayer`].
#[derive(Clone, Debug)]
pub struct DeadlineService<S> {
    inner: S,
    stop: drain::Watcher,
}

impl<S: Service<Request<Body>>> Service<Request<Body>> for DeadlineService<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> S::Future {
        let messages = request.extensions().get::<OfSecrets>().map(|_| Messages::default());
        let (deadline, stop) = (Some(deadline(&self.stop)), self.stop.clone());
        self.inner.call(request.map(|body| Body::new(Timely { body, deadline, stop, messages })))
    }
}

/// What to say when it has passed.
type Deadline = Pin<Box<dyn Future<Output = Status> + Send>>;

fn deadline(stop: &drain::Watcher) -> Deadline {
    let mut stop = stop.clone();
    Box::pin(async move {
        let stopped = async {
            stop.draining().await;
            tokio::time::sleep(LAST_BYTES).await;
        };
        tokio::select! {
            () = tokio::time::sleep(REQUEST_DEADLINE) => Status::deadline_exceeded("the request was not sent in time"),
            () = stopped => Status::unavailable("the agent is stopping: connect again"),
        }
    })
}

/// A body that fails when it is still wanted at its deadline.
struct Timely {
    body: Body,
    /// None between the messages of a call that has many.
    deadline: Option<Deadline>,
    stop: drain::Watcher,
    /// Where in its messages the body is, for such a call.
    messages: Option<Messages>,
}

impl HttpBody for Timely {
    type Data = bytes::Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Status>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            let this = &mut *self;
            if let (Some(messages), Some(Ok(frame))) = (&mut this.messages, &frame) {
                let ended = frame.data_ref().is_some_and(|data| messages.pass(data));
                if ended {
                    this.deadline = messages.is_inside_one().then(|| deadline(&this.stop));
                } else if this.deadline.is_none() && messages.is_inside_one() {
                    this.deadline = Some(deadline(&this.stop));
                }
            }
            return Poll::Ready(frame);
        }
        let Some(deadline) = &mut self.deadline else { return Poll::Pending };
        let late = ready!(deadline.as_mut().poll(cx));
        // It is said once.
        self.deadline = None;
        Poll::Ready(Some(Err(late)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Follows the messages of a gRPC body: a flag, four octets of length, and so many octets.
#[derive(Clone, Copy, Debug, Default)]
struct Messages {
    /// Octets of the prefix that have passed, and the length as far as it is known.
    prefix: usize,
    length: u32,
    /// Octets that have passed of the message after it.
    body: u32,
}

impl Messages {
    const PREFIX: usize = 5;

    /// Whether a message ends in `data`.
    fn pass(&mut self, mut data: &[u8]) -> bool {
        let mut ended = false;
        while let Some((octet, rest)) = data.split_first() {
            if self.prefix < Self::PREFIX {
                if self.prefix > 0 {
                    self.length = (self.length << 8) | u32::from(*octet);
                }
                self.prefix += 1;
                data = rest;
            } else {
                let left = self.length - self.body;
                let passing = u32::try_from(data.len()).unwrap_or(u32::MAX).min(left);
                self.body += passing;
                data = &data[passing as usize..];
            }
            if self.prefix == Self::PREFIX && self.body == self.length {
                *self = Self::default();
                ended = true;
            }
        }
        ended
    }

    fn is_inside_one(&self) -> bool {
        self.prefix > 0
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
        let roles = self.roles.of(&credentials);
        // Who may do nothing here is not asked who opened the connection: that takes a search.
        let refused = if roles.is_empty() && !for_everyone {
            let why = "this needs a role: join one of the groups that [admin] names, or ask as root";
            Some(("role", why.to_owned()))
        } else {
            let opened = peer.opened_by(credentials.uid, credentials.gid).await;
            opened.err().map(|refusal| (refusal.as_str(), refusal.to_string()))
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

#[cfg(test)]
mod tests {
    use super::Messages;

    fn message(length: u32) -> Vec<u8> {
        [&[0][..], &length.to_be_bytes(), &vec![7; length as usize]].concat()
    }

    #[test]
    fn the_ends_of_messages_are_found_wherever_the_wire_cuts_them() {
        let bytes = [message(0), message(3), message(300)].concat();
        for cut in 1..bytes.len() {
            let mut messages = Messages::default();
            let ends = bytes.chunks(cut).filter(|chunk| messages.pass(chunk)).count();
            assert!((1..=3).contains(&ends), "cut at {cut}");
            assert!(!messages.is_inside_one(), "cut at {cut}");
        }
        let mut messages = Messages::default();
        let ends: Vec<usize> = (0..bytes.len()).filter(|at| messages.pass(&bytes[*at..=*at])).collect();
        assert_eq!(ends, [4, 12, 317]);
    }

    #[test]
    fn a_message_that_is_begun_and_not_ended_is_seen() {
        let mut messages = Messages::default();
        assert!(!messages.pass(&[0]));
        assert!(messages.is_inside_one());
        assert!(!messages.pass(&[0, 0, 0, 2, 1]));
        assert!(messages.is_inside_one());
        assert!(messages.pass(&[1, 0]), "and the next one begins");
        assert!(messages.is_inside_one());
    }
}
