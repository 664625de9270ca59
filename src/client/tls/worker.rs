//! The thread behind a source: keeps the agent's streams open, and asks for signatures.
//!
//! Handshakes are synchronous in rustls and wait for a signature on whatever thread they run on, which may be the only
//! one of a runtime. So nothing here depends on the program's runtime: this thread has its own, with its own
//! connection.
//!
//! Revocation lists and bundles come from `FetchX509Bundles` alone, which has all lists and wakes for each change; what
//! comes along with certificates may be older, or left out. There is one such stream, and one of identities for each
//! process that is asked for: this program, and those it acts for.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt};
use time::OffsetDateTime;
use tokio::sync::{mpsc, watch};
use tonic::Code;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;

use super::super::watch::Watch;
use super::super::workload::{Client, MAX_ANSWER_BYTES};
use super::super::{ActFor, ClientError, Endpoint, SecurityHeader, WorkloadApi, X509Bundles, channel, with_header};
use super::source::{Custody, Standing};
use super::state::{X509Identity, X509State, read_held, read_own};
use crate::base::clock::Clock;
use crate::proto::session::sessions_client::SessionsClient;
use crate::proto::session::{HoldX509Request, SignTlsRequest};
use crate::proto::workload::X509svidRequest;

/// How long a handshake waits for a signature, in the agent and on the way. It takes well under a millisecond from an
/// agent that works; one that hangs must not hold up the program's threads for long.
pub(super) const SIGNATURE_DEADLINE: Duration = Duration::from_secs(2);
/// Streams of processes this program acts for, on one connection: half of what an agent allows by default, so that none
/// waits for another to end.
const STREAMS_PER_CONNECTION: usize = 128;

/// What the thread is told to do.
pub(super) enum Order {
    /// One signature, for which somebody waits.
    Sign(Job),
    /// Follows the identities of another process.
    Follow(ActFor, watch::Sender<View>),
}

/// A signature somebody waits for.
pub(super) struct Job {
    pub(super) request: SignTlsRequest,
    pub(super) answer: SyncSender<Result<Bytes, ClientError>>,
}

/// What the thread publishes of one process.
#[derive(Debug)]
pub(super) struct View {
    pub(super) state: X509State,
    /// Whether the agent has given all parts of `state` once.
    pub(super) complete: bool,
    /// Grows with each change of `state`.
    pub(super) revision: u64,
    pub(super) standing: Standing,
    /// Set once, instead of ever becoming complete.
    pub(super) refused: Option<Arc<ClientError>>,
}

impl View {
    /// Nothing yet.
    pub(super) fn first(clock: &Clock) -> Self {
        let standing = Standing::Away { since: clock.now(), reason: "not connected yet".to_owned() };
        Self { state: X509State::default(), complete: false, revision: 0, standing, refused: None }
    }
}

type Sessions = SessionsClient<InterceptedService<Channel, SecurityHeader>>;

/// Starts the thread, which ends when nobody can give it orders any more.
pub(super) fn start(
    endpoint: Endpoint,
    custody: Custody,
    clock: Clock,
) -> io::Result<(mpsc::UnboundedSender<Order>, watch::Receiver<View>)> {
    let (orders, taken) = mpsc::unbounded_channel();
    let (publish, view) = watch::channel(View::first(&clock));
    std::thread::Builder::new().name("tether-x509".to_owned()).spawn(move || {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                tracing::error!(%error, "no runtime for the connection to the agent");
                return;
            }
        };
        // Inside: making a channel asks for the runtime.
        runtime.block_on(async { Worker::new(endpoint, clock).run(custody, publish, taken).await });
    })?;
    Ok((orders, view))
}

fn sessions(channel: Channel) -> Sessions {
    SessionsClient::new(with_header(channel)).max_decoding_message_size(MAX_ANSWER_BYTES)
}

struct Worker {
    endpoint: Endpoint,
    clock: Clock,
    /// For signatures, which never wait for room among the streams of others.
    own: Channel,
    /// For streams of other processes, and how many were opened on it.
    others: (Channel, usize),
}

impl Worker {
    fn new(endpoint: Endpoint, clock: Clock) -> Self {
        let (own, others) = (channel(&endpoint), (channel(&endpoint), 0));
        Self { endpoint, clock, own, others }
    }

    async fn run(mut self, custody: Custody, publish: watch::Sender<View>, mut orders: mpsc::UnboundedReceiver<Order>) {
        let api = WorkloadApi::over(self.endpoint.clone(), self.own.clone());
        let sessions = sessions(self.own.clone());
        let (bundles, believed) = watch::channel(Believed::default());
        tokio::spawn(follow_bundles(api.clone(), bundles));
        let identities = match custody {
            Custody::Tether => held_identities(&self.endpoint, sessions.clone(), None),
            Custody::Program => own_identities(&api),
        };
        self.follow(None, identities, &believed, publish);
        while let Some(order) = orders.recv().await {
            match order {
                Order::Sign(job) => drop(tokio::spawn(sign(sessions.clone(), self.endpoint.clone(), job))),
                Order::Follow(other, publish) => {
                    let sessions = self.room();
                    let identities = held_identities(&self.endpoint, sessions, Some(other));
                    self.follow(Some(other), identities, &believed, publish);
                }
            }
        }
    }

    /// A connection with room for one more stream.
    fn room(&mut self) -> Sessions {
        if self.others.1 == STREAMS_PER_CONNECTION {
            self.others = (channel(&self.endpoint), 0);
        }
        self.others.1 += 1;
        sessions(self.others.0.clone())
    }

    fn follow(
        &self,
        acts_for: Option<ActFor>,
        identities: Stream,
        believed: &watch::Receiver<Believed>,
        publish: watch::Sender<View>,
    ) {
        let (clock, believed) = (self.clock.clone(), believed.clone());
        tokio::spawn(Follower { acts_for, clock, identities, believed, publish, last: None, trouble: None }.run());
    }
}

/// What peers are judged by: the last that was received, and what went wrong since.
#[derive(Default)]
struct Believed {
    bundles: Option<Arc<X509Bundles>>,
    trouble: Option<Arc<ClientError>>,
}

async fn follow_bundles(api: WorkloadApi, publish: watch::Sender<Believed>) {
    let mut watch = api.watch_x509_bundles();
    loop {
        match watch.next().await {
            Ok(bundles) => {
                publish.send_replace(Believed { bundles: Some(Arc::new(bundles)), trouble: None });
            }
            Err(error) => publish.send_modify(|believed| believed.trouble = Some(Arc::new(error))),
        }
    }
}

type Stream = BoxStream<'static, Result<Arc<[X509Identity]>, ClientError>>;

/// Identities whose keys tether holds: of this program, or of the process it acts for.
fn held_identities(endpoint: &Endpoint, sessions: Sessions, acts_for: Option<ActFor>) -> Stream {
    let hold = move || {
        let mut sessions = sessions.clone();
        let request = HoldX509Request { on_behalf_of: acts_for.map(ActFor::to_wire), ..HoldX509Request::default() };
        Box::pin(async move { sessions.hold_x509(request).await }) as _
    };
    stream_of(Watch::of(endpoint, hold, read_held))
}

/// Identities of this program that come with their keys.
fn own_identities(api: &WorkloadApi) -> Stream {
    let fetch = |mut client: Client| Box::pin(async move { client.fetch_x509svid(X509svidRequest {}).await }) as _;
    stream_of(Watch::new(api, fetch, read_own))
}

/// A watch as a stream: its state survives when somebody stops waiting for the next item.
fn stream_of<M, T>(watch: Watch<M, T>) -> BoxStream<'static, Result<T, ClientError>>
where
    M: prost::Message + Default + 'static,
    T: Send + 'static,
{
    stream::unfold(watch, |mut watch| async move { Some((watch.next().await, watch)) }).boxed()
}

/// Puts together what is known of one process, until nobody wants to know.
struct Follower {
    /// `None` for this program itself.
    acts_for: Option<ActFor>,
    clock: Clock,
    identities: Stream,
    believed: watch::Receiver<Believed>,
    publish: watch::Sender<View>,
    last: Option<Arc<[X509Identity]>>,
    trouble: Option<Arc<ClientError>>,
}

impl Follower {
    async fn run(mut self) {
        // What came before this began has been seen by nobody.
        self.believed.mark_changed();
        loop {
            let going_on = tokio::select! {
                () = self.publish.closed() => return,
                Some(next) = self.identities.next() => match next {
                    Ok(identities) => {
                        (self.last, self.trouble) = (Some(identities), None);
                        self.tell()
                    }
                    Err(error) if self.acts_for.is_some() && is_final(&error) => self.end(Arc::new(error)),
                    Err(error) => {
                        self.trouble = Some(Arc::new(error));
                        self.tell()
                    }
                },
                Ok(()) = self.believed.changed() => self.tell(),
            };
            if !going_on {
                return;
            }
        }
    }

    /// Publishes what there is now, and whether both streams give it; `false` when they never will.
    fn tell(&mut self) -> bool {
        let (bundles, trouble) = {
            let believed = self.believed.borrow_and_update();
            (believed.bundles.clone(), self.trouble.clone().or_else(|| believed.trouble.clone()))
        };
        let state = self.last.clone().zip(bundles).map(|(identities, bundles)| X509State { identities, bundles });
        let (own, now) = (self.acts_for.is_none(), self.clock.now());
        self.publish.send_modify(|view| {
            let was_complete = view.complete;
            if let Some(state) = state.filter(|state| !(view.complete && view.state.is(state))) {
                view.state = state;
                view.complete = true;
                view.revision += 1;
            }
            match trouble {
                None if !view.complete => {}
                None => {
                    if own && was_complete && view.standing != Standing::Live {
                        tracing::info!("the agent is back");
                    }
                    view.standing = Standing::Live;
                }
                Some(error) if !error.is_retryable() && !view.complete => view.refused = Some(error),
                Some(error) => miss(view, own, now, error.to_string()),
            }
        });
        self.publish.borrow().refused.is_none()
    }

    /// The process is gone, or is not acted for any more: nothing of it is presented from now on.
    fn end(&self, error: Arc<ClientError>) -> bool {
        self.publish.send_modify(|view| {
            if !view.complete {
                view.refused = Some(error);
                return;
            }
            view.state.identities = Arc::new([]);
            view.revision += 1;
            view.standing = Standing::Ended { reason: error.to_string() };
        });
        false
    }
}

/// A stream failed, and is tried again.
fn miss(view: &mut View, own: bool, now: OffsetDateTime, reason: String) {
    let since = match &view.standing {
        Standing::Away { since, .. } => *since,
        Standing::Live | Standing::Ended { .. } => now,
    };
    // Once for each absence, and once for all processes: the attempts that follow say the same.
    if own && view.standing == Standing::Live {
        let until = first_end(&view.state);
        tracing::warn!(reason, until, "the agent is away: what it gave is used until it expires");
    } else if own && !view.complete {
        tracing::warn!(reason, "no identity yet");
    }
    view.standing = Standing::Away { since, reason };
}

/// Whether the agent has said for good that it gives nothing for another process. For this program itself it never is: an
/// operator may register it any moment, and it is there.
fn is_final(error: &ClientError) -> bool {
    matches!(
        error,
        ClientError::NoIdentity(_)
            | ClientError::Denied(_)
            | ClientError::Invalid(_)
            | ClientError::NotOffered(_)
            | ClientError::Failed { code: Code::NotFound | Code::FailedPrecondition, .. }
    )
}

/// When the first of the identities expires, for people.
fn first_end(state: &X509State) -> Option<String> {
    state.identities().iter().map(X509Identity::not_after).min().map(|end: OffsetDateTime| end.to_string())
}

async fn sign(mut sessions: Sessions, endpoint: Endpoint, job: Job) {
    let signed = tokio::time::timeout(SIGNATURE_DEADLINE, sessions.sign_tls(job.request)).await;
    let answer = match signed {
        Ok(Ok(response)) => Ok(response.into_inner().signature),
        Ok(Err(status)) => Err(ClientError::from_status(&endpoint, &status)),
        Err(_) => Err(ClientError::NotReady("no signature within the time a handshake waits".to_owned())),
    };
    // Who no longer waits has given up on the handshake.
    let _ = job.answer.send(answer);
}
