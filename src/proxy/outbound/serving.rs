//! Where programs come in.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use super::super::{Address, Ended, Io, Lifeline, Listener as TcpSide, Places, Protocol, Seat, Socket, serve};
use super::caller::{Caller, NotCaller};
use super::exchange::Connection;
use super::refusal::Refusal;
use super::{Proxy, Settings, StartError};
use crate::base::drain;
use crate::base::entropy::Entropy;
use crate::base::exhaustion::Exhaustion;
use crate::base::quota::{Place, Quota, Turns};
use crate::peer::{self, Instances, Listener, ListenerConfig, LoopbackError, LoopbackSocket, PlainStream};
use crate::sys::Kernel;

/// Searches for the process behind a port at one time, of all and of one user: each reads the descriptors of every
/// process.
const SEARCHES: (usize, usize) = (4, 2);
/// The connections of one user among all: a part, so that no user has all.
const OF_ONE_USER: usize = 4;

/// The socket that programs connect to.
pub(super) struct Listening {
    address: Address,
    side: Side,
}

enum Side {
    Unix(Listener),
    Loopback(Loopback),
}

/// Programs that come over the loopback interface.
struct Loopback {
    listener: TcpSide,
    instances: Instances,
    /// All connections come from few addresses here: users are told apart.
    places: Places,
    of_users: Quota,
    searches: Turns,
}

impl Listening {
    pub(super) async fn new(settings: &Settings) -> Result<Self, StartError> {
        let failed = |source| StartError::Io { action: format!("listen on `{}`", settings.listen), source };
        let kernel = Kernel::probe();
        let instances = Instances::new(kernel).map_err(failed)?;
        let limits = &settings.limits;
        let of_user = (limits.connections / OF_ONE_USER).max(1);
        match &settings.listen {
            Address::Unix(path) => {
                let limits = peer::Limits {
                    connections: limits.connections,
                    connections_per_uid: of_user,
                    half_open: limits.handshake,
                };
                let observer = Arc::new(|refusal: &peer::Refusal, info: &peer::PeerInfo| {
                    if matches!(refusal, peer::Refusal::NotCloseOnExec(_)) {
                        return; // it is known less well, and not refused
                    }
                    tracing::info!(pid = info.pid, uid = info.uid, refused = refusal.as_str(), %refusal, "connection refused");
                });
                let config = ListenerConfig { instances, limits, observer, entropy: Entropy::system() };
                let listener = Listener::bind(path, settings.mode, config)?;
                Ok(Self { address: settings.listen.clone(), side: Side::Unix(listener) })
            }
            Address::Tcp { .. } => {
                let listener = TcpSide::bind(&settings.listen).await.map_err(failed)?;
                let address = listener.address().map_err(failed)?;
                // A name may mean more than it says.
                if !address.is_local() {
                    return Err(StartError::NotLocal(address));
                }
                let places = Places::new(limits.connections, limits.connections);
                let (of_users, searches) =
                    (Quota::new(limits.connections, of_user), Turns::new(SEARCHES.0, SEARCHES.1));
                Ok(Self { address, side: Side::Loopback(Loopback { listener, instances, places, of_users, searches }) })
            }
        }
    }

    pub(super) fn address(&self) -> &Address {
        &self.address
    }
}

/// A proxy that listens.
pub struct Bound {
    listening: Listening,
    proxy: Arc<Proxy>,
}

impl Bound {
    pub(super) fn new(listening: Listening, proxy: Proxy) -> Self {
        Self { listening, proxy: Arc::new(proxy) }
    }

    /// Where programs connect, with the port that was found.
    pub fn address(&self) -> &Address {
        self.listening.address()
    }

    /// Serves until `shutdown`, and what is open then until it is done, or the time for that is over.
    ///
    /// # Errors
    /// The socket is broken.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> io::Result<()> {
        let Self { listening, proxy } = self;
        let (trigger, watcher) = drain::channel();
        let accepting = async {
            match listening.side {
                Side::Unix(listener) => accept_unix(&listener, &proxy, &watcher).await,
                Side::Loopback(loopback) => accept_loopback(Arc::new(loopback), &proxy, &watcher).await,
            }
        };
        let ended = tokio::select! {
            ended = accepting => ended,
            () = shutdown => Ok(()),
        };
        drop(watcher);
        if tokio::time::timeout(proxy.limits.drain, trigger.drain()).await.is_err() {
            tracing::warn!("what was still open has been cut");
        }
        ended
    }
}

async fn accept_unix(listener: &Listener, proxy: &Arc<Proxy>, drain: &drain::Watcher) -> io::Result<()> {
    loop {
        let stream: PlainStream = listener.accept_plain().await?;
        let (proxy, drain) = (proxy.clone(), drain.clone());
        tokio::spawn(async move {
            let caller = Caller::of_socket(stream.conn()).await;
            converse(proxy, caller, stream, drain).await;
        });
    }
}

async fn accept_loopback(loopback: Arc<Loopback>, proxy: &Arc<Proxy>, drain: &drain::Watcher) -> io::Result<()> {
    let exhaustion = Exhaustion::default();
    loop {
        let accepted = match loopback.listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                exhaustion.wait_out("proxy", &error).await;
                continue;
            }
        };
        exhaustion.over();
        let Some(seat) = loopback.places.take(accepted.ip()) else { continue };
        let (Socket::Tcp(stream), Some(theirs)) = (accepted.socket, accepted.from) else { continue };
        let (loopback, proxy, drain) = (loopback.clone(), proxy.clone(), drain.clone());
        tokio::spawn(async move {
            let _seat: Seat = seat;
            let Ok(ours) = stream.local_addr() else { return };
            let (caller, _place) = match loopback.find(ours, theirs).await {
                Ok((caller, place)) => (Ok(caller), Some(place)),
                Err(unknown) => (Err(unknown), None),
            };
            converse(proxy, caller, stream, drain).await;
        });
    }
}

impl Loopback {
    /// Its user is known by one look, and pays before every process is looked through.
    async fn find(&self, ours: SocketAddr, theirs: SocketAddr) -> Result<(Caller, Place), NotCaller> {
        let socket = aside(move || LoopbackSocket::find(ours, theirs)).await?;
        let place = self.of_users.take(socket.uid()).map_err(|_| NotCaller::TooMany)?;
        let turn = self.searches.turn(socket.uid()).await;
        let instances = self.instances.clone();
        let peer = aside(move || socket.peer(&instances)).await?;
        drop(turn);
        Ok((Caller::of_port(peer)?, place))
    }
}

/// Runs what reads much.
async fn aside<T: Send + 'static>(
    search: impl FnOnce() -> Result<T, LoopbackError> + Send + 'static,
) -> Result<T, LoopbackError> {
    tokio::task::spawn_blocking(search).await.unwrap_or(Err(LoopbackError::Gone))
}

/// Serves one connection. Whoever cannot be known is told so, at each request.
async fn converse(proxy: Arc<Proxy>, caller: Result<Caller, NotCaller>, io: impl Io, drain: drain::Watcher) {
    let (limits, clock) = (proxy.limits.clone(), proxy.clock.clone());
    let lifeline = Lifeline::default();
    let caller = match caller {
        Ok(caller) => caller,
        Err(unknown) => {
            let refusal = Arc::new(Refusal::from(unknown));
            tracing::info!(error = &*refusal as &dyn std::error::Error, "nobody is acted for");
            let refuse = move |_| {
                let refusal = refusal.clone();
                async move { refusal.response() }
            };
            serve(io, Protocol::Either, &limits, &clock, &lifeline, drain, refuse).await;
            return;
        }
    };
    let pid = caller.instance().pid();
    let connection = Connection::new(proxy, caller);
    let answering = connection.clone();
    let answer = move |request| answering.clone().answer(request);
    let ended = tokio::select! {
        biased;
        reason = connection.cut() => Ended::Cut(reason),
        ended = serve(io, Protocol::Either, &limits, &clock, &lifeline, drain, answer) => ended,
    };
    if let Ended::Cut(reason) = ended {
        tracing::info!(pid, reason = reason.as_str(), "a program's connection is cut");
    }
}
