//! What a request handler knows of its caller.

use std::fmt;
use std::os::fd::AsFd;
use std::sync::Arc;

use nix::libc;
use tokio::sync::{OnceCell, watch};

use super::instance::{Connected, Instance, LookError};
use super::refusal::{Observer, PeerInfo, Refusal};
use crate::base::exhaustion::Exhaustion;
use crate::sys::socket::Sender;
use crate::sys::{procfs, sockdiag};

/// One connection and the process at its other end. Cheap to clone; it keeps the instance and what is attached to it,
/// not the connection.
#[derive(Clone)]
pub struct PeerConn(Arc<Shared>);

struct Shared {
    id: ConnId,
    connected: Connected,
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
            connected: Connected::new(instance),
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
    /// why not, or why it cannot be told. Found out once for each connection, off the async threads; what could not be
    /// found out for want of descriptors or memory is tried again.
    pub async fn holds_cloexec(&self) -> Result<(), String> {
        let find = || async {
            let shared = self.0.clone();
            let found = tokio::task::spawn_blocking(move || shared.find_close_on_exec()).await;
            let found = found.unwrap_or_else(|_| Err(Unheld::now("the agent is shutting down")));
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

impl Shared {
    fn find_close_on_exec(&self) -> Result<(), Unheld> {
        let peer = sockdiag::peer_inode(self.socket).map_err(|error| match error.raw_os_error() {
            Some(libc::ENOENT) => Unheld::ever(
                "the caller's end cannot be found: the caller is in another network namespace, or this kernel has no \
                 unix_diag",
            ),
            Some(libc::ENOTCONN) => Unheld::ever("the caller's end is closed"),
            _ => Unheld::unknown("the caller's end cannot be found", &error),
        })?;
        let held = self.connected.instance().proc_dir().descriptors_of_socket(peer);
        // What was read is about this instance only if it still is one.
        self.connected.instance().look().map_err(|error| match error {
            LookError::Ended(end) => Unheld::ever(end),
            LookError::Unseen(_) => Unheld::now(error),
        })?;
        match held.map_err(|error| Unheld::unknown("the descriptors of the process cannot be read", &error))?.as_slice()
        {
            [] => Err(Unheld::ever("the process does not hold the connection")),
            held if held.contains(&false) => Err(Unheld::ever(
                "the process holds the connection open across exec, so that another program may have opened it; set \
                 FD_CLOEXEC right when it is made",
            )),
            _ => Ok(()),
        }
    }
}

/// Why it is not known that the process holds its connection close-on-exec.
#[derive(Debug)]
struct Unheld {
    why: String,
    /// Whether the answer stands for the life of the connection.
    definite: bool,
}

impl Unheld {
    fn ever(why: impl fmt::Display) -> Self {
        Self { why: why.to_string(), definite: true }
    }

    fn now(why: impl fmt::Display) -> Self {
        Self { why: why.to_string(), definite: false }
    }

    /// It could not be found out. What only lasts as long as we lack something says nothing about the caller; whatever
    /// else may be its doing, and a search that it can have repeated at will costs us more than it.
    fn unknown(what: &str, error: &std::io::Error) -> Self {
        let definite = !Exhaustion::is_meant(error);
        Self { why: format!("{what}: {error}"), definite }
    }

    /// The answer that is kept, or else the one for now alone.
    fn settle(self) -> Result<Result<(), String>, String> {
        if self.definite { Ok(Err(self.why)) } else { Err(self.why) }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn want_of_descriptors_is_no_answer_for_the_life_of_a_connection_and_everything_else_is() {
        for (errno, kept) in [
            (libc::EMFILE, false),
            (libc::ENFILE, false),
            (libc::ENOMEM, false),
            (libc::ENOBUFS, false),
            (libc::EACCES, true),
            (libc::EPERM, true),
        ] {
            let unheld = Unheld::unknown("it cannot be told", &std::io::Error::from_raw_os_error(errno));
            assert_eq!(unheld.settle().is_ok(), kept, "{errno}");
        }
        assert_eq!(Unheld::ever("no").settle(), Ok(Err("no".to_owned())));
        assert_eq!(Unheld::now("no").settle(), Err("no".to_owned()));
    }
}
