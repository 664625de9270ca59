//! Streams that outlive connections.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use tonic::{Response, Status, Streaming};

use crate::base::backoff::Backoff;
use crate::base::entropy::Entropy;
use crate::id::TrustDomain;
use crate::jwt::JwtAuthorities;
use crate::proto::workload::{JwtBundlesResponse, X509BundlesResponse, X509svidResponse};

use super::workload::{Client, WorkloadApi, X509Bundles, X509Context};
use super::{ClientError, Endpoint};

const FIRST_DELAY: Duration = Duration::from_millis(500);
const LONGEST_DELAY: Duration = Duration::from_secs(30);

/// X509-SVIDs as they change.
pub type X509Watch = Watch<X509svidResponse, X509Context>;
/// X.509 bundles and revocation lists as they change.
pub type X509BundleWatch = Watch<X509BundlesResponse, X509Bundles>;
/// JWT bundles as they change.
pub type JwtBundleWatch = Watch<JwtBundlesResponse, BTreeMap<TrustDomain, JwtAuthorities>>;

pub(super) type Opening<M> = Pin<Box<dyn Future<Output = Result<Response<Streaming<M>>, Status>> + Send>>;

/// A stream of whole states that reconnects (Workload API, section 4.2; Workload Endpoint, section 6).
///
/// [`Watch::next`] reports each failure, so that the caller can tell somebody; calling it again tries again: at once
/// when a stream that had delivered was cut, and with growing delays when there is nothing to be had.
pub struct Watch<M, T> {
    endpoint: Endpoint,
    open: Box<dyn Fn() -> Opening<M> + Send + Sync>,
    read: fn(M) -> Result<T, ClientError>,
    stream: Option<Streaming<M>>,
    backoff: Backoff,
    entropy: Entropy,
    /// Whether the last attempt gave nothing, so that the next one waits.
    failed: bool,
}

impl<M: 'static, T> Watch<M, T> {
    pub(super) fn new(
        api: &WorkloadApi,
        open: fn(Client) -> Opening<M>,
        read: fn(M) -> Result<T, ClientError>,
    ) -> Self {
        let client = api.client.clone();
        Self::of(api.endpoint(), move || open(client.clone()), read)
    }

    /// A stream of any service at `endpoint`.
    pub(super) fn of(
        endpoint: &Endpoint,
        open: impl Fn() -> Opening<M> + Send + Sync + 'static,
        read: fn(M) -> Result<T, ClientError>,
    ) -> Self {
        Self {
            endpoint: endpoint.clone(),
            open: Box::new(open),
            read,
            stream: None,
            backoff: Backoff::new(FIRST_DELAY, LONGEST_DELAY),
            entropy: Entropy::system(),
            failed: false,
        }
    }

    /// The next state; the first one comes as soon as the agent answers.
    ///
    /// # Errors
    /// What went wrong this time. After an error with [`ClientError::is_retryable`] it is worth calling again;
    /// this method does the waiting.
    pub async fn next(&mut self) -> Result<T, ClientError> {
        loop {
            let stream = match &mut self.stream {
                Some(stream) => stream,
                None => {
                    if self.failed {
                        tokio::time::sleep(self.backoff.delay(&self.entropy)).await;
                    }
                    self.failed = true;
                    let opened = (self.open)().await;
                    let opened = opened.map_err(|status| ClientError::from_status(&self.endpoint, &status))?;
                    self.stream.insert(opened.into_inner())
                }
            };
            match stream.message().await {
                Ok(Some(message)) => {
                    self.failed = false;
                    self.backoff.reset();
                    return (self.read)(message);
                }
                Ok(None) => {
                    self.stream = None;
                    if self.failed {
                        return Err(ClientError::Ended);
                    }
                }
                Err(status) => {
                    self.stream = None;
                    return Err(ClientError::from_status(&self.endpoint, &status));
                }
            }
        }
    }
}
