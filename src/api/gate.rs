//! What every call to the Workload Endpoint passes before it reaches a service, and before anything is spent on it.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::{Request, Response};
use tonic::body::Body;
use tower::{Layer, Service};

use super::status;

/// Refuses calls to the Workload Endpoint that do not carry its metadata exactly once and with exactly its value
/// (SPIFFE Workload Endpoint, section 3), whatever they call: services of ours, health and reflection too.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeaderLayer;

impl<S> Layer<S> for HeaderLayer {
    type Service = HeaderGate<S>;
    fn layer(&self, inner: S) -> HeaderGate<S> {
        HeaderGate { inner }
    }
}

/// The service made by [`HeaderLayer`].
#[derive(Clone, Debug)]
pub struct HeaderGate<S> {
    inner: S,
}

impl<S> Service<Request<Body>> for HeaderGate<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let mut values = request.headers().get_all(status::HEADER).iter();
        let carried = values.next().is_some_and(|value| value == "true") && values.next().is_none();
        if !carried {
            return Box::pin(std::future::ready(Ok(status::missing_header().into_http())));
        }
        Box::pin(self.inner.call(request))
    }
}
