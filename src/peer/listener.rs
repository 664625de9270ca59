//! Where callers come in.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::Stream;
use nix::libc;
use tokio::net::{UnixListener, UnixStream};

use super::conn::{ConnId, PeerConn};
use super::instances::Instances;
use super::limits::Limits;
use super::plain::PlainStream;
use super::refusal::{Observer, PeerInfo, Refusal};
use super::stream::PeerStream;
use super::wire::Outbound;
use crate::base::entropy::Entropy;
use crate::base::exhaustion::Exhaustion;
use crate::base::quota::{Place, Quota};
use crate::sys::socket::{self, SocketError, SocketFile};

/// What a listener needs.
#[derive(Clone)]
pub struct ListenerConfig {
    /// Where instances come from; shared by all listeners.
    pub instances: Instances,
    /// How much callers may take, of this listener.
    pub limits: Limits,
    /// Told of every refusal.
    pub observer: Observer,
    /// Where challenges come from.
    pub entropy: Entropy,
}

/// A listening Unix socket that knows its callers.
pub struct Listener {
    listener: UnixListener,
    config: ListenerConfig,
    open: Quota,
    /// The processes that have connected and are still held.
    processes: Quota,
    next: AtomicU64,
    exhaustion: Exhaustion,
    /// Removed with the listener. One that was handed to us is not ours to remove.
    _file: Option<SocketFile>,
}

impl Listener {
    /// Serves `handed`, if the service manager has bound `path` for us, else binds it with [`Listener::bind`].
    pub fn open(
        handed: Option<std::os::unix::net::UnixListener>,
        path: &Path,
        mode: u32,
        config: ListenerConfig,
    ) -> Result<Self, SocketError> {
        match handed {
            Some(listener) => Self::adopt(listener, path, config),
            None => Self::bind(path, mode, config),
        }
    }

    /// Who connected before this waits in its queue. The file, its mode and its owner are the service manager's.
    fn adopt(
        listener: std::os::unix::net::UnixListener,
        path: &Path,
        config: ListenerConfig,
    ) -> Result<Self, SocketError> {
        let failed = |action| move |source| SocketError::Io { action, path: path.to_owned(), source };
        // What the unit does not say: nothing but senders comes along with bytes.
        let kernel = config.instances.kernel();
        socket::label_messages(&listener, kernel).map_err(failed("set the options of"))?;
        Self::new(listener, config, None).map_err(failed("listen on"))
    }

    /// Listens at `path`; the socket gets exactly `mode`, and is removed with the listener. Call it inside a runtime.
    pub fn bind(path: &Path, mode: u32, config: ListenerConfig) -> Result<Self, SocketError> {
        let failed = |source| SocketError::Io { action: "listen on", path: path.to_owned(), source };
        let listener = socket::listen_at(path, mode, config.instances.kernel())?;
        let file = SocketFile::of(path).map_err(failed)?;
        Self::new(listener, config, Some(file)).map_err(failed)
    }

    fn new(
        listener: std::os::unix::net::UnixListener,
        config: ListenerConfig,
        file: Option<SocketFile>,
    ) -> io::Result<Self> {
        let listener = UnixListener::from_std(listener)?;
        let quota = || Quota::new(config.limits.connections, config.limits.connections_per_uid);
        let (open, processes) = (quota(), quota());
        Ok(Self {
            listener,
            config,
            open,
            processes,
            next: AtomicU64::new(1),
            exhaustion: Exhaustion::default(),
            _file: file,
        })
    }

    /// The open connections.
    pub fn open_connections(&self) -> Quota {
        self.open.clone()
    }

    /// The next connection that is served. Those that are refused are told why, reported to the observer and closed
    /// on the way; want of descriptors is waited out. An error means that the listener itself is broken.
    pub async fn accept(&self) -> io::Result<PeerStream> {
        let half_open = self.config.limits.half_open;
        self.accept_as(goaway, |socket, conn, place| {
            PeerStream::new(socket, conn, self.config.entropy.bytes(), half_open, place)
        })
        .await
    }

    /// The same for callers that do not speak HTTP/2, or not to tether: nobody is asked anything.
    pub async fn accept_plain(&self) -> io::Result<PlainStream> {
        self.accept_as(|refusal| format!("HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\ncontent-type: text/plain\r\n\r\n{refusal}\n").into_bytes(), PlainStream::new).await
    }

    async fn accept_as<T>(
        &self,
        parting: fn(&Refusal) -> Vec<u8>,
        made: impl Fn(UnixStream, PeerConn, Place) -> T,
    ) -> io::Result<T> {
        loop {
            match self.listener.accept().await {
                Ok((socket, _)) => {
                    self.exhaustion.over();
                    if let Some((socket, conn, place)) = self.receive(socket, parting) {
                        return Ok(made(socket, conn, place));
                    }
                }
                Err(error) if Exhaustion::is_meant(&error) => self.exhaustion.wait_out("socket", &error).await,
                Err(error) => match error.raw_os_error() {
                    Some(libc::ECONNABORTED | libc::EINTR | libc::EPROTO) => {}
                    _ => return Err(error),
                },
            }
        }
    }

    /// [`Self::accept`] as the stream that servers take. It ends after an error.
    pub fn incoming(self) -> impl Stream<Item = io::Result<PeerStream>> + Send {
        futures_util::stream::unfold(Some(self), |listener| async move {
            let listener = listener?;
            let next = listener.accept().await;
            let listener = next.is_ok().then_some(listener);
            Some((next, listener))
        })
    }

    /// What a caller costs grows from line to line, so each line comes only after the one before let it through.
    fn receive(&self, socket: UnixStream, parting: fn(&Refusal) -> Vec<u8>) -> Option<(UnixStream, PeerConn, Place)> {
        let connection = ConnId(self.next.fetch_add(1, Ordering::Relaxed));
        let mut info = PeerInfo { connection, pid: 0, uid: u32::MAX, gid: u32::MAX, instance: None };
        match self.admit(&socket, &mut info) {
            Ok((conn, place)) => Some((socket, conn, place)),
            Err(refusal) => {
                (self.config.observer)(&refusal, &info);
                // Best effort: a new socket has room for it, unless the caller is gone.
                let _ = socket.try_write(&parting(&refusal));
                None
            }
        }
    }

    fn admit(&self, socket: &UnixStream, info: &mut PeerInfo) -> Result<(PeerConn, Place), Refusal> {
        let ListenerConfig { instances, observer, .. } = &self.config;
        let unidentified = |error: io::Error| Refusal::Unidentified(error.to_string());
        let caller = socket::peer_credentials(socket).map_err(unidentified)?;
        (info.pid, info.uid, info.gid) = (caller.pid, caller.uid, caller.gid);
        let mut place = self.open.take(caller.uid).map_err(Refusal::of_connections)?;
        let instance = instances.of_peer(socket)?;
        let share = instance.share(caller.uid);
        if share != caller.uid {
            drop(place);
            place = self.open.take(share).map_err(Refusal::of_connections)?;
        }
        instance.count(&self.processes, share).map_err(Refusal::of_processes)?;
        // Inherited from the listener; once more, because everything rests on it.
        socket::label_messages(socket, instances.kernel()).map_err(unidentified)?;
        let conn =
            PeerConn::new(info.connection, instance, caller, share, socket, observer.clone()).map_err(unidentified)?;
        Ok((conn, place))
    }
}

/// Why, in the least HTTP/2 that a client understands.
fn goaway(refusal: &Refusal) -> Vec<u8> {
    let mut outbound = Outbound::new([0; 8]);
    outbound.goaway(0, refusal.code(), &refusal.to_string());
    outbound.pending().to_vec()
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listener").field("listener", &self.listener).finish_non_exhaustive()
    }
}
