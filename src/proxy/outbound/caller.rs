//! Who is on the other end of a program's connection, and whether it still is.
//!
//! # The exec swap, without a challenge
//! A process may connect, send a request, leave the connection to a child and become another program (design, section 4,
//! rule 3). The agent's own socket answers with a question that only the process with its present program can answer; a
//! program that speaks plain HTTP/1.1 answers no questions. So:
//! - the program is that at `accept`. What was sent before is its own only if it opened the connection itself, which is
//!   so when it holds the connection close-on-exec. One that does not is known less well: [`ActFor::weak`];
//! - the same program is looked for at every byte ([`PlainStream`](crate::peer::PlainStream)), before each request, and
//!   again after the agent has signed for it: the agent names a process and sees the program it runs then, so that a
//!   program which changed in between gets what was signed for its successor thrown away, and its connection closed.
//!
//! What is left: a program that sets close-on-exec on what it inherits passes for the one that opened it.

use std::sync::Arc;

use thiserror::Error;

use crate::client::ActFor;
use crate::peer::{Instance, LookError, LoopbackError, LoopbackPeer, PeerConn, Refusal as PeerRefusal};

/// Why whoever is on the other end is not acted for.
#[derive(Debug, Error)]
pub(super) enum NotCaller {
    /// The process that connected is over, or runs another program.
    #[error(transparent)]
    Look(#[from] LookError),
    /// A process with other credentials than those it connected with, which others may have opened the connection for.
    #[error(transparent)]
    Peer(#[from] PeerRefusal),
    /// The connection over loopback is no longer that of one process.
    #[error(transparent)]
    Loopback(#[from] LoopbackError),
    /// Its user has as many connections as one user may have.
    #[error("too many connections of this user are open")]
    TooMany,
    /// The kernel does not give processes a name of their own.
    #[error("this kernel has no pidfs inodes, by which a proxy names processes; Linux 6.9 and later have")]
    Unnamed,
}

/// The process behind one connection.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    known_by: KnownBy,
    acts_for: ActFor,
}

#[derive(Clone, Debug)]
enum KnownBy {
    Socket(PeerConn),
    Port(Arc<LoopbackPeer>),
}

impl Caller {
    /// The process behind a Unix socket.
    pub(super) async fn of_socket(conn: &PeerConn) -> Result<Self, NotCaller> {
        let opened_it = match conn.instance().executable() {
            Ok(_) => conn.holds_cloexec().await,
            Err(unseen) => Err(unseen.to_owned()),
        };
        if let Err(why) = &opened_it {
            tracing::info!(pid = conn.instance().pid(), why, "a program is known less well than it could be");
        }
        let acts_for = named(conn.instance(), opened_it.is_err())?;
        Ok(Self { known_by: KnownBy::Socket(conn.clone()), acts_for })
    }

    /// The process behind a port on the loopback interface.
    pub(super) fn of_port(peer: LoopbackPeer) -> Result<Self, NotCaller> {
        let acts_for = named(peer.instance(), true)?;
        Ok(Self { known_by: KnownBy::Port(Arc::new(peer)), acts_for })
    }

    pub(super) fn instance(&self) -> &Arc<Instance> {
        match &self.known_by {
            KnownBy::Socket(conn) => conn.instance(),
            KnownBy::Port(peer) => peer.instance(),
        }
    }

    /// Whose process it was when it connected.
    pub(super) fn uid(&self) -> u32 {
        match &self.known_by {
            KnownBy::Socket(conn) => conn.uid(),
            KnownBy::Port(peer) => peer.uid(),
        }
    }

    /// How the agent is told of it.
    pub(super) fn acts_for(&self) -> ActFor {
        self.acts_for
    }

    /// What to ask before each request.
    pub(super) async fn still(&self) -> Result<(), NotCaller> {
        match &self.known_by {
            KnownBy::Socket(conn) => {
                let facts = conn.instance().look()?;
                Ok(conn.opened_by(facts.uid, facts.gid).await?)
            }
            KnownBy::Port(peer) => {
                let peer = peer.clone();
                // It reads the table of connections.
                let still = tokio::task::spawn_blocking(move || peer.still()).await;
                Ok(still.unwrap_or(Err(LoopbackError::Gone))?)
            }
        }
    }

    /// What to ask after something was signed for it.
    pub(super) fn look(&self) -> Result<(), NotCaller> {
        Ok(self.instance().look().map(drop)?)
    }
}

fn named(instance: &Instance, weak: bool) -> Result<ActFor, NotCaller> {
    let pidfs_inode = instance.id().pidfs_inode().ok_or(NotCaller::Unnamed)?;
    Ok(ActFor { pid: instance.pid(), pidfs_inode, weak })
}
