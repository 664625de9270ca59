//! What a request handler knows of its caller.

use std::fmt;
use std::os::fd::AsFd;
use std::sync::Arc;

use nix::libc;
use tokio::sync::{OnceCell, watch};

use super::instance::{Instance, LookError};
use super::refusal::{Observer, PeerInfo, Refusal};
use crate::sys::socket::Sender;
use crate::sys::{procfs, sockdiag};

/// One connection and the process at its other end. Cheap to clone; it keeps the instance, not the connection.
#[derive(Clone)]
pub struct PeerConn(Arc<Shared>);

struct Shared {
    id: ConnId,
    instance: Arc<Instance>,
    connected_by: Sender,
    /// The inode number of our end.
    socket: u64,
    proof: watch::Sender<Proof>,
    close_on_exec: OnceCell<Result<(), String>>,
    observer: Observer,
}

/// A connection's number, unique while its listener lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(pub(super) u64);

impl fmt::Display for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a process may do on this host, as the kernel says it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// The effective user id, in our user namespace.
    pub uid: u32,
    /// The effective group id, in our user namespace.
    pub gid: u32,
    /// The supplementary groups, in our user namespace.
    pub groups: Vec<u32>,
}

/// Whether it is proven that the instance is who reads and writes this connection.
#[derive(Clone, Debug)]
enum Proof {
    Pending,
    Proven,
    Over(Refusal),
}

impl PeerConn {
    pub(super) fn new(
        id: ConnId,
        instance: Arc<Instance>,
        connected_by: Sender,
        socket: impl AsFd,
        observer: Observer,
    ) -> std::io::Result<Self> {
        Ok(Self(Arc::new(Shared {
            id,
            instance,
            connected_by,
            socket: procfs::file_id(socket)?.ino,
            proof: watch::Sender::new(Proof::Pending),
            close_on_exec: OnceCell::new(),
            observer,
        })))
    }

    /// Its number.
    pub fn id(&self) -> ConnId {
        self.0.id
    }

    /// The user id that connected. What counts towards limits; what counts as evidence is asked anew each time.
    pub fn uid(&self) -> u32 {
        self.0.connected_by.uid
    }

    /// The group id that connected.
    pub fn gid(&self) -> u32 {
        self.0.connected_by.gid
    }

    /// Who is on the other end.
    pub fn instance(&self) -> &Arc<Instance> {
        &self.0.instance
    }

    /// Waits until it is proven that the instance itself, with the executable it had at `accept`, reads what we write
    /// here. Nothing secret may be released before. It takes no longer than [`super::Limits::half_open`], and fails
    /// with the reason when the connection is refused, cut or closed, also later.
    pub async fn proven(&self) -> Result<(), Refusal> {
        let mut proof = self.0.proof.subscribe();
        let seen = proof.wait_for(|proof| !matches!(proof, Proof::Pending)).await;
        match seen.as_deref() {
            Ok(Proof::Proven) => Ok(()),
            Ok(Proof::Over(refusal)) => Err(refusal.clone()),
            Ok(Proof::Pending) | Err(_) => Err(Refusal::Closed),
        }
    }

    /// Waits until the connection is over.
    pub async fn closed(&self) {
        // The sender lives as long as this connection value does, so waiting cannot fail.
        let _ = self.0.proof.subscribe().wait_for(|proof| matches!(proof, Proof::Over(_))).await;
    }

    /// Whether the process holds this connection close-on-exec in all its descriptors of it, so that no other program
    /// can have opened it: what an entry that matches on the executable needs beside [`Self::proven`]. The error says
    /// why not, or why it cannot be told. Found out once for each connection, off the async threads.
    pub async fn holds_cloexec(&self) -> Result<(), String> {
        let find = || async {
            let shared = self.0.clone();
            let found = tokio::task::spawn_blocking(move || shared.find_close_on_exec()).await;
            let found = found.unwrap_or_else(|_| Err("the agent is shutting down".to_owned()));
            if let Err(why) = &found {
                (self.0.observer)(&Refusal::NotCloseOnExec(why.clone()), &self.info());
            }
            found
        };
        self.0.close_on_exec.get_or_init(find).await.clone()
    }

    /// Whether a process that has these credentials now is the one that opened the connection: either they are those
    /// it connected with, or it holds the connection close-on-exec and so has only changed what it may do. Otherwise
    /// it may be a setuid program that copies what somebody else says.
    pub async fn opened_by(&self, uid: u32, gid: u32) -> Result<(), Refusal> {
        if (uid, gid) == (self.uid(), self.gid()) {
            return Ok(());
        }
        self.holds_cloexec().await.map_err(Refusal::NotCloseOnExec)
    }

    /// The credentials of the process now, not as they were when it connected.
    pub fn credentials(&self) -> Result<Credentials, LookError> {
        let status = self.0.instance.status()?;
        Ok(Credentials { uid: status.uid, gid: status.gid, groups: status.groups })
    }

    /// Whom to name in logs and audit.
    pub fn info(&self) -> PeerInfo {
        PeerInfo {
            connection: self.0.id,
            pid: self.0.connected_by.pid,
            uid: self.0.connected_by.uid,
            gid: self.0.connected_by.gid,
            instance: Some(*self.0.instance.id()),
        }
    }

    /// Notes that the instance has answered the challenge.
    pub(super) fn prove(&self) {
        self.0.proof.send_if_modified(|proof| {
            let pending = matches!(proof, Proof::Pending);
            if pending {
                *proof = Proof::Proven;
            }
            pending
        });
    }

    /// Notes that the connection is over. The first reason counts, and is told to the observer.
    pub(super) fn over(&self, refusal: Refusal) {
        let first = self.0.proof.send_if_modified(|proof| {
            let open = !matches!(proof, Proof::Over(_));
            if open {
                *proof = Proof::Over(refusal.clone());
            }
            open
        });
        if first && refusal != Refusal::Closed {
            (self.0.observer)(&refusal, &self.info());
        }
    }
}

impl Shared {
    fn find_close_on_exec(&self) -> Result<(), String> {
        let peer = sockdiag::peer_inode(self.socket).map_err(|error| match error.raw_os_error() {
            Some(libc::ENOENT) => {
                "the caller's end cannot be found: the caller is in another network namespace, or this \
                                   kernel has no unix_diag"
                    .to_owned()
            }
            Some(libc::ENOTCONN) => "the caller's end is closed".to_owned(),
            _ => format!("the caller's end cannot be found: {error}"),
        })?;
        let held = self.instance.proc_dir().descriptors_of_socket(peer);
        // What was read is about this instance only if it still is one.
        self.instance.look().map_err(|error| error.to_string())?;
        match held.map_err(|error| format!("the descriptors of the process cannot be read: {error}"))?.as_slice() {
            [] => Err("the process does not hold the connection".to_owned()),
            held if held.contains(&false) => Err("the process holds the connection open across exec, so that another \
                                                  program may have opened it; set FD_CLOEXEC right when it is made"
                .to_owned()),
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for PeerConn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerConn")
            .field("id", &self.0.id)
            .field("instance", self.0.instance.id())
            .finish_non_exhaustive()
    }
}
