//! The thread behind a source: keeps the agent's two streams open, and asks for signatures.
//!
//! Handshakes are synchronous in rustls and wait for a signature on whatever thread they run on, which may be the only
//! one of a runtime. So nothing here depends on the program's runtime: this thread has its own, with its own
//! connection.
//!
//! Revocation lists and bundles come from `FetchX509Bundles` alone, which has all lists and wakes for each change; what
//! comes along with certificates may be older, or left out.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt};
use time::OffsetDateTime;
use tokio::sync::{mpsc, watch};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;

use super::super::watch::Watch;
use super::super::workload::{Client, MAX_ANSWER_BYTES};
use super::super::{ClientError, Endpoint, SecurityHeader, WorkloadApi, X509Bundles, channel, with_header};
use super::source::{Custody, Standing};
use super::state::{X509Identity, X509State, read_held, read_own};
use crate::base::clock::Clock;
use crate::proto::session::sessions_client::SessionsClient;
use crate::proto::session::{HoldX509Request, SignTlsRequest};
use crate::proto::workload::X509svidRequest;

/// How long a handshake waits for a signature, in the agent and on the way. It takes well under a millisecond from an
/// agent that works; one that hangs must not hold up the program's threads for long.
pub(super) const SIGNATURE_DEADLINE: Duration = Duration::from_secs(2);

/// A signature somebody waits for.
pub(super) struct Job {
    pub(super) request: SignTlsRequest,
    pub(super) answer: SyncSender<Result<Bytes, ClientError>>,
}

/// What the thread publishes.
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

type Sessions = SessionsClient<InterceptedService<Channel, SecurityHeader>>;

/// Starts the thread, which ends when nobody can send it jobs any more.
pub(super) fn start(
    endpoint: Endpoint,
    custody: Custody,
    clock: Clock,
) -> io::Result<(mpsc::UnboundedSender<Job>, watch::Receiver<View>)> {
    let (jobs, taken) = mpsc::unbounded_channel();
    let standing = Standing::Away { since: clock.now(), reason: "not connected yet".to_owned() };
    let first = View { state: X509State::default(), complete: false, revision: 0, standing, refused: None };
    let (publish, view) = watch::channel(first);
    std::thread::Builder::new().name("tether-x509".to_owned()).spawn(move || {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                tracing::error!(%error, "no runtime for the connection to the agent");
                return;
            }
        };
        runtime.block_on(Worker { clock, publish, received: Received::default() }.run(&endpoint, custody, taken));
    })?;
    Ok((jobs, view))
}

/// A message of one of the two streams.
enum News {
    Identities(Arc<[X509Identity]>),
    Bundles(Arc<X509Bundles>),
}

/// The two streams; each is away or not.
#[derive(Clone, Copy)]
enum Part {
    Identities,
    Bundles,
}

#[derive(Default)]
struct Received {
    identities: Option<Arc<[X509Identity]>>,
    bundles: Option<Arc<X509Bundles>>,
    /// Whether a stream gives nothing now, by [`Part`].
    failing: [bool; 2],
}

struct Worker {
    clock: Clock,
    publish: watch::Sender<View>,
    received: Received,
}

impl Worker {
    async fn run(mut self, endpoint: &Endpoint, custody: Custody, mut jobs: mpsc::UnboundedReceiver<Job>) {
        let channel = channel(endpoint);
        let sessions = SessionsClient::new(with_header(channel.clone())).max_decoding_message_size(MAX_ANSWER_BYTES);
        let mut news = open(endpoint, custody, &WorkloadApi::over(endpoint.clone(), channel), &sessions);
        loop {
            tokio::select! {
                // A handshake is waiting for each job.
                biased;
                job = jobs.recv() => match job {
                    Some(job) => drop(tokio::spawn(sign(sessions.clone(), endpoint.clone(), job))),
                    None => return,
                },
                Some((part, outcome)) = news.next() => match outcome {
                    Ok(news) => self.accept(part, news),
                    Err(error) if error.is_retryable() || self.publish.borrow().complete => self.miss(part, &error),
                    Err(error) => {
                        self.publish.send_modify(|view| view.refused = Some(Arc::new(error)));
                        return;
                    }
                },
            }
        }
    }

    fn accept(&mut self, part: Part, news: News) {
        match news {
            News::Identities(identities) => self.received.identities = Some(identities),
            News::Bundles(bundles) => self.received.bundles = Some(bundles),
        }
        self.received.failing[part as usize] = false;
        let (Some(identities), Some(bundles)) = (&self.received.identities, &self.received.bundles) else { return };
        let state = X509State { identities: identities.clone(), bundles: bundles.clone() };
        let live = self.received.failing == [false; 2];
        self.publish.send_modify(|view| {
            if view.complete && live && view.standing != Standing::Live {
                tracing::info!("the agent is back");
            }
            view.state = state;
            view.complete = true;
            view.revision += 1;
            if live {
                view.standing = Standing::Live;
            }
        });
    }

    fn miss(&mut self, part: Part, error: &ClientError) {
        self.received.failing[part as usize] = true;
        let (reason, now) = (error.to_string(), self.clock.now());
        self.publish.send_modify(|view| {
            let since = match &view.standing {
                Standing::Away { since, .. } => *since,
                Standing::Live => now,
            };
            // Once for each absence: the attempts that follow say the same.
            if view.standing == Standing::Live {
                let until = first_end(&view.state);
                tracing::warn!(reason, until, "the agent is away: what it gave is used until it expires");
            } else if !view.complete {
                tracing::warn!(reason, "no identity yet");
            }
            view.standing = Standing::Away { since, reason };
        });
    }
}

/// When the first of the identities expires, for people.
fn first_end(state: &X509State) -> Option<String> {
    state.identities().iter().map(X509Identity::not_after).min().map(|end: OffsetDateTime| end.to_string())
}

type Stream = BoxStream<'static, (Part, Result<News, ClientError>)>;

/// Both streams in one, each reconnecting by itself.
fn open(endpoint: &Endpoint, custody: Custody, api: &WorkloadApi, sessions: &Sessions) -> Stream {
    let bundles = follow(Part::Bundles, api.watch_x509_bundles(), |bundles| News::Bundles(Arc::new(bundles)));
    let identities = match custody {
        Custody::Program => {
            let fetch =
                |mut client: Client| Box::pin(async move { client.fetch_x509svid(X509svidRequest {}).await }) as _;
            follow(Part::Identities, Watch::new(api, fetch, read_own), News::Identities)
        }
        Custody::Tether => {
            let sessions = sessions.clone();
            let hold = move || {
                let mut sessions = sessions.clone();
                Box::pin(async move { sessions.hold_x509(HoldX509Request::default()).await }) as _
            };
            follow(Part::Identities, Watch::of(endpoint, hold, read_held), News::Identities)
        }
    };
    stream::select(identities, bundles).boxed()
}

/// A watch as a stream: its state survives when somebody stops waiting for the next item.
fn follow<M, T>(part: Part, watch: Watch<M, T>, news: fn(T) -> News) -> Stream
where
    M: prost::Message + Default + 'static,
    T: 'static,
{
    stream::unfold(watch, move |mut watch| async move {
        let next = watch.next().await.map(news);
        Some(((part, next), watch))
    })
    .boxed()
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
