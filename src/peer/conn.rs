//! What a request handler knows of its caller.

use std::fmt;
use std::os::fd::AsFd;
use std::sync::Arc;

use tokio::sync::{OnceCell, watch};

use super::cloexec::Unheld;
use super::instance::{Connected, Instance, LookError};
use super::refusal::{Observer, PeerInfo, Refusal};
use crate::sys::procfs;
use crate::sys::socket::Sender;

/// One connection and the process at its other end. Cheap to clone; it keeps the instance and what is attached to it,
/// not the connection.
#[derive(Clone)]
pub struct PeerConn(Arc<Shared>);

struct Shared {
    id: ConnId,
    connected: Connected,
    connected_by: Sender,
    /// Whose share it takes of what is limited by user.
    share: u32,
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
        share: u32,
        socket: impl AsFd,
        observer: Observer,
    ) -> std::io::Result<Self> {
        Ok(Self(Arc::new(Shared {
            id,
            connected: Connected::new(instance),
            connected_by,
            share,
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

    /// The user id that connected. What counts as evidence is asked anew each time.
    pub fn uid(&self) -> u32 {
        self.0.connected_by.uid
    }

    /// Whose share it takes of what is limited by user: see [`Instance::share`].
    pub fn share(&self) -> u32 {
        self.0.share
    }

    /// The group id that connected.
    pub fn gid(&self) -> u32 {
        self.0.connected_by.gid
    }

    /// Who is on the other end.
    pub fn instance(&self) -> &Arc<Instance> {
        self.0.connected.instance()
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

    /// Whether the process holds this connection close-on-exec in all its descriptors of it, so that no other program
    /// can have opened it: what an entry that matches on the executable needs beside [`Self::proven`]. The error says
    /// why not, or why it cannot be told. Found out once for each connection, off the async threads and in a turn of its
    /// user; what could not be found out for want of descriptors, memory or turns is tried again.
    pub async fn holds_cloexec(&self) -> Result<(), String> {
        let find = || async {
            let found = self.instance().holds_cloexec(self.0.socket, self.0.share).await;
            if let Err(unheld) = &found {
                (self.0.observer)(&Refusal::NotCloseOnExec(unheld.why.clone()), &self.info());
            }
            found.map_or_else(Unheld::settle, |()| Ok(Ok(())))
        };
        self.0.close_on_exec.get_or_try_init(find).await.cloned().unwrap_or_else(Err)
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
        let status = self.instance().status()?;
        Ok(Credentials { uid: status.uid, gid: status.gid, groups: status.groups })
    }

    /// Whom to name in logs and audit.
    pub fn info(&self) -> PeerInfo {
        PeerInfo {
            connection: self.0.id,
            pid: self.0.connected_by.pid,
            uid: self.0.connected_by.uid,
            gid: self.0.connected_by.gid,
            instance: Some(*self.instance().id()),
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

impl fmt::Debug for PeerConn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerConn")
            .field("id", &self.0.id)
            .field("instance", self.instance().id())
            .finish_non_exhaustive()
    }
}
