//! `tether proxy inbound`: mutual TLS in front of a tool that knows nothing of it.
//!
//! ```text
//! connection -> Seat -> handshake -> Guard -> request -> Target -> Verified -> upstream
//!              (limits)  (SVID, --allow) (CRL)       (public URI)  (the agent's word)
//! ```
//!
//! Promises: nothing reaches the upstream but over a connection whose peer was judged in its handshake, and again whenever
//! bundles or revocation lists change; each request was decided on by the agent, with that peer, unless it was told not to
//! ask; what is open for a session ends with it; the upstream learns who calls from the proxy alone.
//!
//! Does not: balance, cache, rewrite paths, or protect the way from here to the upstream: that is loopback or a Unix
//! socket, so whoever can connect there as a local process is taken at its word by the tool.

mod desk;
mod identity;
mod public;
mod refusal;
mod request;
mod room;
mod subscription;
mod tasks;

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use http::Uri;
use http::uri::{Authority, Scheme};
use prometheus_client::registry::Registry;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use self::desk::Desk;
use self::identity::Identity;
use self::request::Connection;
use self::room::Room;
use self::subscription::Subscriber;
use self::tasks::Tasks;
use super::metrics::Metrics;
use super::{
    Accepted, Address, Connector, CutReason, Ended, Lifeline, Limits, Listener, Places, Protocol, Seat, Upstream, serve,
};
use crate::base::clock::Clock;
use crate::base::drain;
use crate::base::exhaustion::Exhaustion;
use crate::client::session::SessionClient;
use crate::client::tls::{
    Authorize, Custody, Cut, Guard, PeerCertificates, SourceError, Standing, X509Source, server_config,
};
use crate::client::verifier::VerifierClient;
use crate::client::{ClientError, Endpoint};
use crate::http::{Health, Http, Readiness};
use crate::id::SpiffeId;

pub use self::desk::Demands;
pub use self::public::{Misdirected, PublicError, PublicUri, Target, target};

/// What an inbound proxy is to do.
#[derive(Clone, Debug)]
pub struct Inbound {
    /// The agent.
    pub endpoint: Endpoint,
    /// Where clients come in.
    pub listen: Address,
    /// What is behind.
    pub upstream: Address,
    /// Whether HTTP/2 is spoken there.
    pub upstream_http2: bool,
    /// Who may connect; none: whoever proves an identity.
    pub allow: Vec<SpiffeId>,
    /// Where clients reach it; none: where it listens.
    pub public: Vec<PublicUri>,
    /// Whether the agent decides on each request. If not, [`Self::allow`] is all there is.
    pub policy: bool,
    /// What every request must have.
    pub demands: Demands,
    /// The identity to present; `None` for the default one.
    pub identity: Option<SpiffeId>,
    /// Who holds its key.
    pub custody: Custody,
    /// Whether the upstream gets the whole certificate of the client.
    pub with_certificate: bool,
    /// Whether a path may have escaped slashes.
    pub encoded_slashes: bool,
    /// Whether what is behind is an MCP server: then policy sees the calls inside requests. Needs [`Self::policy`].
    pub mcp: bool,
    /// Where metrics and health are answered, without TLS.
    pub metrics: Option<SocketAddr>,
    /// What clients may take.
    pub limits: Limits,
    /// The time.
    pub clock: Clock,
}

impl Inbound {
    /// In front of `upstream`, with everything else as it is by default.
    pub fn new(endpoint: Endpoint, listen: Address, upstream: Address) -> Self {
        Self {
            endpoint,
            listen,
            upstream,
            upstream_http2: false,
            allow: Vec::new(),
            public: Vec::new(),
            policy: true,
            demands: Demands::default(),
            identity: None,
            custody: Custody::Tether,
            with_certificate: false,
            encoded_slashes: false,
            mcp: false,
            metrics: None,
            limits: Limits::default(),
            clock: Clock::system(),
        }
    }
}

/// Why a proxy cannot start.
#[derive(Debug, Error)]
pub enum StartError {
    /// Nobody is asked, and everybody would be let in.
    #[error("without policy only --allow decides: name at least one SPIFFE ID by it")]
    NobodyDecides,
    /// The agent has no sessions, and so nobody to ask.
    #[error(
        "the agent decides on requests only with sessions on: set `[sessions] enabled = true`, or run with --no-policy and \
         --allow, which decides by the client's identity alone"
    )]
    NoVerifier,
    /// The upstream is on another host: its way there would be open.
    #[error("the upstream `{0}` is not on this host: use a loopback address or `unix:/path`")]
    RemoteUpstream(Address),
    /// Metrics are for this host.
    #[error("metrics are answered without TLS, so `{0}` must be a loopback address")]
    OpenMetrics(SocketAddr),
    /// It is not known where clients reach the proxy.
    #[error(transparent)]
    Public(#[from] PublicError),
    /// An address cannot be listened on.
    #[error("cannot listen on `{address}`")]
    Listen {
        /// Which.
        address: String,
        /// The refusal.
        #[source]
        source: std::io::Error,
    },
    /// The agent gives no identity.
    #[error("the agent gives this proxy no identity")]
    Source(#[from] SourceError),
    /// The agent cannot be asked.
    #[error("the agent cannot be asked")]
    Agent(#[from] ClientError),
}

/// What all connections of a proxy share.
struct Shared {
    endpoint: Endpoint,
    source: X509Source,
    custody: Custody,
    authorize: Authorize,
    acceptor: TlsAcceptor,
    identity: Option<SpiffeId>,
    with_certificate: bool,
    public: Vec<PublicUri>,
    encoded_slashes: bool,
    desk: Desk,
    upstream: Upstream,
    limits: Limits,
    clock: Clock,
    metrics: Metrics,
    /// Ends what is open when the time to finish is over.
    stop: Lifeline,
}

impl Shared {
    /// The scheme and authority under which requests go to the upstream.
    fn upstream_uri(&self, authority: &str) -> Uri {
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(Scheme::HTTP);
        // HTTP/2 says by it for whom a request is; in HTTP/1.1 it is all one, and `Host` says it.
        let named = self.upstream.is_http2().then(|| authority.parse().ok()).flatten();
        parts.authority = Some(named.unwrap_or(Authority::from_static("upstream")));
        parts.path_and_query = Some(http::uri::PathAndQuery::from_static("/"));
        Uri::from_parts(parts).unwrap_or_default()
    }
}

/// A proxy that has everything it needs and listens, and does not serve yet.
pub struct Bound {
    /// Where it listens.
    pub address: Address,
    /// Where metrics are.
    pub metrics: Option<SocketAddr>,
    /// Where clients reach it.
    pub public: Vec<PublicUri>,
    /// Who it is to them.
    pub identity: Option<SpiffeId>,
    listener: Listener,
    http: Option<(TcpListener, Http)>,
    readiness: Readiness,
    shared: Arc<Shared>,
}

/// Makes sure of the agent, gets an identity, and listens.
///
/// # Errors
/// Something is missing; each error says what to do about it.
pub async fn build(settings: Inbound) -> Result<Bound, StartError> {
    let Inbound { endpoint, limits, clock, .. } = settings;
    if !settings.policy && settings.allow.is_empty() {
        return Err(StartError::NobodyDecides);
    }
    if !settings.upstream.is_local() {
        return Err(StartError::RemoteUpstream(settings.upstream));
    }
    if let Some(open) = settings.metrics.filter(|address| !address.ip().is_loopback()) {
        return Err(StartError::OpenMetrics(open));
    }
    if settings.policy {
        match SessionClient::new(endpoint.clone()).list(false).await {
            Err(crate::client::session::SessionError::Agent(ClientError::NotOffered(_))) => {
                return Err(StartError::NoVerifier);
            }
            // It may be away for now: it is waited for below, and each request is checked anyway.
            Err(error) => tracing::warn!(%error, "the agent cannot be asked for now"),
            Ok(_) => {}
        }
    }
    let listen = |address: String| move |source| StartError::Listen { address, source };
    let listener = Listener::bind(&settings.listen).await.map_err(listen(settings.listen.to_string()))?;
    let address = listener.address().map_err(listen(settings.listen.to_string()))?;
    let public = if settings.public.is_empty() { PublicUri::of_listener(&address)? } else { settings.public };

    let mut source = X509Source::connect_by(endpoint.clone(), settings.custody, clock.clone()).await?;
    if let Some(id) = &settings.identity {
        source = source.presenting(id.clone());
    }
    let identity = settings.identity.or_else(|| source.state().identity(None).map(|own| own.id().clone()));
    let authorize = match settings.allow.is_empty() {
        true => Authorize::Anyone,
        false => settings.allow.into_iter().collect(),
    };
    let mut tls = server_config(&source, authorize.clone());
    tls.alpn_protocols = Protocol::ALPN.iter().map(|name| name.to_vec()).collect();

    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let readiness = Readiness::waiting(&["proxy", "agent"]);
    let http = match settings.metrics {
        Some(address) => {
            let listener = TcpListener::bind(address).await.map_err(listen(address.to_string()))?;
            let health = Health { readiness: readiness.clone(), registry: Arc::new(registry) };
            Some((listener, Http { health, introspection: None, oidc: None }))
        }
        None => None,
    };
    let upstream = Upstream::new(Connector::to(settings.upstream), settings.upstream_http2, &limits, clock.clone());
    let verifier = settings.policy.then(|| VerifierClient::new(endpoint.clone()));
    let desk = Desk {
        verifier,
        demands: settings.demands,
        mcp: settings.mcp,
        room: Room::default(),
        tasks: Tasks::default(),
        clock: clock.clone(),
    };
    let shared = Shared {
        custody: settings.custody,
        authorize,
        acceptor: TlsAcceptor::from(Arc::new(tls)),
        identity: identity.clone(),
        with_certificate: settings.with_certificate,
        public: public.clone(),
        encoded_slashes: settings.encoded_slashes,
        desk,
        endpoint,
        upstream,
        limits,
        clock,
        metrics,
        source,
        stop: Lifeline::default(),
    };
    let metrics = http.as_ref().and_then(|(listener, _)| listener.local_addr().ok());
    Ok(Bound { address, metrics, public, identity, listener, http, readiness, shared: Arc::new(shared) })
}

impl Bound {
    /// Serves until `shutdown` completes, on a runtime with several threads. Then nothing new begins, and what is open
    /// has [`Limits::drain`] to finish.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let Self { listener, http, readiness, shared, .. } = self;
        let (trigger, watcher) = drain::channel();
        let mut duties = JoinSet::new();
        if shared.desk.verifier.is_some() {
            let (tasks, metrics) = (shared.desk.tasks.clone(), shared.metrics.clone());
            let cut = move |reason, how_many| metrics.cut(reason, how_many);
            duties.spawn(tasks.follow(Subscriber::new(&shared.endpoint), cut));
        }
        // Probes are answered until the end.
        let (_probed, probes) = drain::channel();
        if let Some((listener, http)) = http {
            duties.spawn(http.serve(listener, probes));
        }
        duties.spawn(report_agent(shared.source.clone(), readiness.clone()));
        readiness.set("proxy", Ok(()));
        tokio::select! {
            () = accept(listener, shared.clone(), watcher) => {}
            () = shutdown => {}
        }
        readiness.set("proxy", Err("stopping".to_owned()));
        tokio::select! {
            () = trigger.drain() => {}
            () = shared.clock.pause(shared.limits.drain) => {
                tracing::warn!("some requests did not end in time; they are cut");
                shared.stop.cut(CutReason::Stopped);
            }
        }
        duties.abort_all();
    }
}

/// Keeps readiness up to date.
async fn report_agent(source: X509Source, readiness: Readiness) {
    loop {
        readiness.set("agent", Ok(()));
        source.standing_is(|standing| *standing != Standing::Live).await;
        readiness.set("agent", Err("the agent is away".to_owned()));
        source.standing_is(|standing| *standing == Standing::Live).await;
    }
}

/// Accepts connections, for ever. What is open when this is dropped goes on.
async fn accept(listener: Listener, shared: Arc<Shared>, drain: drain::Watcher) {
    let places = Places::new(shared.limits.connections, shared.limits.connections_per_address);
    let exhaustion = Exhaustion::default();
    loop {
        let accepted = match listener.accept().await {
            Ok(accepted) => accepted,
            // TCP also reports what was wrong with a connection that has gone. A pause does no harm then.
            Err(error) => {
                exhaustion.wait_out("proxy", &error).await;
                continue;
            }
        };
        exhaustion.over();
        let Some(seat) = places.take(accepted.ip()) else {
            shared.metrics.connections_refused.inc();
            continue;
        };
        tokio::spawn(connection(shared.clone(), accepted, seat, drain.clone()));
    }
}

/// Serves one connection until it and everything that came of it is over.
async fn connection(shared: Arc<Shared>, accepted: Accepted, seat: Seat, drain: drain::Watcher) {
    let (from, place) = (accepted.from, accepted.to_string());
    let mut accepting = shared.acceptor.accept(accepted.socket);
    // A handshake may wait for the agent on its thread: what else that thread had to do is done by another one meanwhile.
    let handshake = std::future::poll_fn(|cx| match shared.custody {
        Custody::Tether => tokio::task::block_in_place(|| Pin::new(&mut accepting).poll(cx)),
        Custody::Program => Pin::new(&mut accepting).poll(cx),
    });
    let mut stop = shared.stop.watch();
    let stream = tokio::select! {
        stream = handshake => match stream {
            Ok(stream) => stream,
            // Why a certificate is not believed is logged where it is judged.
            Err(error) => {
                tracing::debug!(from = place, %error, "no handshake");
                return shared.metrics.handshake("failed");
            }
        },
        () = shared.clock.pause(shared.limits.handshake) => return shared.metrics.handshake("late"),
        _ = stop.cut() => return,
    };
    let tls = stream.get_ref().1;
    let protocol = Protocol::of_alpn(tls.alpn_protocol());
    let Some(certificates) = PeerCertificates::of(tls) else { return shared.metrics.handshake("failed") };
    let guard = match Guard::new(&shared.source, &shared.authorize, &certificates) {
        Ok(guard) => guard,
        // Revoked since.
        Err(error) => {
            tracing::info!(from = place, error = &error as &dyn std::error::Error, "a peer was refused");
            return shared.metrics.handshake("failed");
        }
    };
    shared.metrics.handshake("ok");
    shared.metrics.connections.inc();
    let lifeline = Lifeline::default();
    let identity =
        Identity::new(guard.peer().clone(), &certificates, shared.identity.as_ref(), shared.with_certificate, from);
    let peer = guard.peer().clone();
    tracing::debug!(%peer, from = place, "connected");
    let watching = watch_over(guard.clone(), lifeline.clone(), stop);
    let connection = Connection { shared: shared.clone(), guard, certificates, identity, lifeline: lifeline.clone() };
    let connection = Arc::new(connection);
    let serving = async {
        let held = lifeline.watch();
        let handle = move |request| connection.clone().answer(request);
        let ended = serve(stream, protocol, &shared.limits, &shared.clock, &lifeline, drain, handle).await;
        drop(held);
        // WebSockets go on.
        lifeline.unwatched().await;
        ended
    };
    let ended = tokio::select! {
        ended = serving => ended,
        never = watching => match never {},
    };
    if let Ended::Cut(reason) = ended {
        tracing::info!(%peer, from = place, reason = reason.as_str(), "a connection was cut");
        shared.metrics.cut(reason, 1);
    }
    shared.metrics.connections.dec();
    drop(seat);
}

/// Ends a connection when its peer is not believed any more, and lets it finish when the peer's certificate has ended.
async fn watch_over(guard: Guard, lifeline: Lifeline, mut stop: super::Cut) -> std::convert::Infallible {
    let expiry = async {
        guard.expired().await;
        lifeline.finish();
        std::future::pending().await
    };
    tokio::select! {
        why = guard.cut() => {
            tracing::debug!(error = &why as &dyn std::error::Error, "an open connection is not to go on");
            lifeline.cut(match why {
                Cut::Peer(_) => CutReason::PeerRevoked,
                Cut::Ended(_) => CutReason::IdentityLost,
            });
        }
        reason = stop.cut() => lifeline.cut(reason),
        never = expiry => match never {},
    }
    std::future::pending().await
}
