//! Envoy's Secret Discovery Service on the workload socket, as state of the world.
//!
//! Promises: whoever calls is attested, matched and decided about exactly as a caller of the Workload API, and what it
//! gets is issued, recorded and revoked as there: one X.509-SVID for each identity of a process, on however many streams
//! and by however many names. A secret is sent when it is first named and when it is another; a new revocation list sends
//! authorities, never a certificate. A name that nothing goes by costs a stream nothing but that name, as long as there
//! is another.
//!
//! Does not: take back what Envoy has. A stream that ends leaves it there until its certificate expires; what ends it
//! before is the revocation list that its peers enforce. Nor does it answer the incremental protocol, or the second
//! version of the API.
//!
//! Envoy holds a listener until the first answer, and resets its connections when that is an error, so the error says
//! what there would have been.

mod names;
mod plain;
mod secret;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

pub use self::names::Names;
use self::names::{Found, Wanted};
pub use self::plain::Plain;
use self::secret::{SECRET_TYPE, Secret};
use super::status;
use super::workload::{Open, Updates, caller};
use crate::audit::Event;
use crate::base::drain;
use crate::issue::{self, Issuer, Refusal};
use crate::metrics::{Kind, Reason};
use crate::peer::PeerConn;
use crate::proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use crate::proto::envoy::service::secret::v3::secret_discovery_service_server::SecretDiscoveryService;
use crate::stream::{Update, updates, updates_and_crls};

/// Why a name is refused, in metrics and audit.
const UNKNOWN: &str = "unknown_secret";
/// The most that a client's own words take of a log line.
const MAX_WORDS: usize = 512;

/// When revocation lists go along with the authorities of our own trust domain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SendCrl {
    /// When this node has the lists of all of its CAs.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// How secrets are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The names that are neither SPIFFE IDs nor trust domains.
    pub names: Names,
    /// When there are revocation lists.
    pub crl: SendCrl,
}

/// The service.
#[derive(Clone, Debug)]
pub struct Secrets {
    issuer: Arc<Issuer>,
    settings: Arc<Settings>,
    drain: drain::Watcher,
}

impl Secrets {
    /// Serves what `issuer` issues until `drain` begins.
    pub fn new(issuer: Arc<Issuer>, settings: Settings, drain: drain::Watcher) -> Self {
        Self { issuer, settings: Arc::new(settings), drain }
    }

    /// What goes by these names now, and from then on whenever it is something else.
    fn answers(&self, peer: &PeerConn, wanted: Arc<Wanted>) -> BoxStream<'static, Result<Found, Refusal>> {
        let (settings, feed) = (self.settings.clone(), Arc::new(self.issuer.crls.feed()));
        let has_lists = settings.crl != SendCrl::Never && wanted.own_authorities();
        let judge = move |issuer: Arc<Issuer>, peer: PeerConn| {
            let (wanted, settings, feed) = (wanted.clone(), settings.clone(), feed.clone());
            async move {
                let state = issuer.named_x509(&peer, &wanted.svids()).await?;
                let lists = if has_lists { Some(feed.lists().await) } else { None };
                let found = wanted.find(&state, lists.as_ref(), &settings);
                let credentials = found.serials().map(str::to_owned).collect();
                Ok(Update { state: found, credentials, target: None, renew_at: state.renew_at })
            }
        };
        let (issuer, peer, drain) = (self.issuer.clone(), peer.clone(), self.drain.clone());
        if has_lists {
            updates_and_crls(issuer, peer, drain, judge).boxed()
        } else {
            updates(issuer, peer, drain, judge).boxed()
        }
    }

    /// Why there is nothing by any of these names. `had` says that there was before.
    fn nothing(&self, peer: &PeerConn, found: Found, had: bool) -> Status {
        if let Some(denial) = found.denial() {
            let refusal: Result<(), _> = self.issuer.recorded(peer, Some(Kind::X509), Err(Refusal::Denied(denial)));
            return refusal.map_or_else(|refusal| status::refused(&refusal), |()| Status::internal("BUG: no refusal"));
        }
        let text = found.explain(peer.instance().pid(), &self.settings.names);
        self.unknown(peer, text.clone());
        // What a process had and has no more it was deprived of; a name that never meant anything is a mistake.
        if had { Status::permission_denied(text) } else { Status::not_found(text) }
    }

    /// Counts and audits names that nothing goes by.
    fn unknown(&self, peer: &PeerConn, detail: String) {
        self.issuer.metrics.refused.get_or_create(&Reason { reason: UNKNOWN }).inc();
        self.issuer.audit.record(Event::Refused { caller: issue::caller(peer), reason: UNKNOWN, detail });
    }
}

/// What one stream asked for and has.
struct Subscription {
    service: Secrets,
    peer: PeerConn,
    requests: Streaming<DiscoveryRequest>,
    /// What is asked for; nothing before the first request.
    wanted: Option<Arc<Wanted>>,
    answers: Option<BoxStream<'static, Result<Found, Refusal>>>,
    /// The secrets that were sent, by their names, as far as they are still asked for.
    sent: BTreeMap<Arc<str>, Secret>,
    /// Whether any was ever sent.
    had: bool,
    /// The names that were last warned about.
    warned: Vec<Arc<str>>,
    version: String,
    /// Of the last answer; 0 before the first.
    nonce: u64,
    _open: Open,
}

impl Subscription {
    /// The next answer; none when the client is done.
    async fn next(&mut self) -> Result<Option<DiscoveryResponse>, Status> {
        loop {
            tokio::select! {
                biased;
                () = self.service.drain.draining() => return Err(status::refused(&Refusal::Stopping)),
                request = self.requests.message() => match request? {
                    Some(request) => self.take(request)?,
                    None => return Ok(None),
                },
                found = next_of(&mut self.answers) => {
                    let found = found.map_err(|refusal| status::refused(&refusal))?;
                    if let Some(response) = self.answer(found)? {
                        return Ok(Some(response));
                    }
                }
            }
        }
    }

    /// Takes a request: the first one, other names, or what became of the last answer.
    fn take(&mut self, request: DiscoveryRequest) -> Result<(), Status> {
        check_type(&request)?;
        if self.nonce > 0 && request.response_nonce != self.nonce.to_string() {
            tracing::debug!(pid = self.peer.instance().pid(), "a request about an older answer is left out");
            return Ok(());
        }
        if let Some(error) = &request.error_detail {
            // It stays with what it had. Sending the same again would change nothing.
            self.service.issuer.metrics.sds_rejected.inc();
            tracing::warn!(
                pid = self.peer.instance().pid(),
                node = words(request.node.as_ref().map_or("", |node| &node.id)),
                names = words(&request.resource_names.join(" ")),
                version = self.version,
                code = error.code,
                "Envoy rejects its secrets and keeps those it had: {}",
                words(&error.message)
            );
        }
        let only_names = self.wanted.as_ref().is_some_and(|wanted| wanted.is_of_names());
        let wanted = Wanted::parse(&request.resource_names, &self.service.settings.names, only_names)?;
        if self.wanted.as_deref() == Some(&wanted) {
            return Ok(());
        }
        let wanted = Arc::new(wanted);
        self.sent.retain(|name, _| wanted.has(name));
        self.answers = (!wanted.is_empty()).then(|| self.service.answers(&self.peer, wanted.clone()));
        self.wanted = Some(wanted);
        Ok(())
    }

    /// The answer that tells what the client does not have yet; none when it has everything.
    fn answer(&mut self, found: Found) -> Result<Option<DiscoveryResponse>, Status> {
        if found.secrets().is_empty() {
            return Err(self.service.nothing(&self.peer, found, self.had));
        }
        let missing: Vec<Arc<str>> = found.missing().cloned().collect();
        if missing != self.warned {
            if !missing.is_empty() {
                let text = found.explain(self.peer.instance().pid(), &self.service.settings.names);
                self.service.unknown(&self.peer, text);
            }
            self.warned = missing;
        }
        self.sent.retain(|name, _| found.secrets().contains_key(name));
        let is_new = |(name, secret): &(&Arc<str>, &Secret)| self.sent.get(*name) != Some(secret);
        let new: Vec<_> = found.secrets().iter().filter(is_new).map(|(name, s)| (name.clone(), s.clone())).collect();
        if new.is_empty() {
            return Ok(None);
        }
        self.nonce += 1;
        self.version = found.version();
        self.had = true;
        let resources = new.iter().map(|(name, secret)| secret.resource(name)).collect();
        self.sent.extend(new);
        Ok(Some(response(resources, self.version.clone(), self.nonce.to_string())))
    }
}

/// The next item of a stream that is there; where there is none, there never will be.
async fn next_of<T>(stream: &mut Option<BoxStream<'static, Result<T, Refusal>>>) -> Result<T, Refusal> {
    match stream {
        Some(stream) => stream.next().await.unwrap_or(Err(Refusal::Stopping)),
        None => std::future::pending().await,
    }
}

fn response(resources: Vec<prost_types::Any>, version_info: String, nonce: String) -> DiscoveryResponse {
    DiscoveryResponse { version_info, resources, type_url: SECRET_TYPE.to_owned(), nonce }
}

/// The client's own words, short and on one line.
fn words(text: &str) -> String {
    text.chars().take(MAX_WORDS).flat_map(char::escape_debug).collect()
}

fn check_type(request: &DiscoveryRequest) -> Result<(), Status> {
    match request.type_url.as_str() {
        "" | SECRET_TYPE => Ok(()),
        other => {
            let why = format!("is `{}`: there are resources of the type `{SECRET_TYPE}` alone", words(other));
            Err(status::bad_field("type_url", why))
        }
    }
}

#[tonic::async_trait]
impl SecretDiscoveryService for Secrets {
    type StreamSecretsStream = Updates<DiscoveryResponse>;
    type DeltaSecretsStream = Updates<DeltaDiscoveryResponse>;

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        let (peer, place) = caller(&request)?;
        let subscription = Subscription {
            service: self.clone(),
            peer,
            requests: request.into_inner(),
            wanted: None,
            answers: None,
            sent: BTreeMap::new(),
            had: false,
            warned: Vec::new(),
            version: String::new(),
            nonce: 0,
            _open: Open::new(&self.issuer, place, "StreamSecrets"),
        };
        let answers = stream::unfold(Some(subscription), |subscription| async move {
            let mut subscription = subscription?;
            match subscription.next().await.transpose()? {
                Ok(response) => Some((Ok(response), Some(subscription))),
                Err(status) => Some((Err(status), None)),
            }
        });
        let answers: Pin<Box<dyn Stream<Item = _> + Send>> = Box::pin(answers);
        Ok(Response::new(answers))
    }

    async fn fetch_secrets(&self, request: Request<DiscoveryRequest>) -> Result<Response<DiscoveryResponse>, Status> {
        let (peer, _place) = caller(&request)?;
        let request = request.into_inner();
        check_type(&request)?;
        let wanted = Arc::new(Wanted::parse(&request.resource_names, &self.settings.names, false)?);
        let found = self.answers(&peer, wanted).next().await.unwrap_or(Err(Refusal::Stopping));
        let found = found.map_err(|refusal| status::refused(&refusal))?;
        if found.secrets().is_empty() {
            return Err(self.nothing(&peer, found, false));
        }
        if found.missing().next().is_some() {
            self.unknown(&peer, found.explain(peer.instance().pid(), &self.settings.names));
        }
        let resources = found.secrets().iter().map(|(name, secret)| secret.resource(name)).collect();
        Ok(Response::new(response(resources, found.version(), String::new())))
    }

    async fn delta_secrets(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        Err(Status::unimplemented(
            "secrets are served as state of the world: write `api_type: GRPC`, not `DELTA_GRPC`, where the configuration \
             says how secrets are asked for",
        ))
    }
}
