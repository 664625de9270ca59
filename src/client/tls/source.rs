//! A live view of this program's identities and of whom to believe.

use std::fmt;
use std::sync::Arc;

use thiserror::Error;
use time::OffsetDateTime;
use tokio::sync::{mpsc, watch};

use super::super::{ActFor, ClientError, Endpoint, EndpointError};
use super::state::X509State;
use super::worker::{self, Order, View};
use crate::base::clock::Clock;
use crate::id::SpiffeId;

/// Who holds the private keys of a source's identities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Custody {
    /// tether. No key ever is in this program: each handshake asks the agent for one signature (`HoldX509` and
    /// `SignTls`), which checks that it is still this program that asks. A stolen memory image or file identifies
    /// nobody. Needs tether, and the agent at every handshake.
    Tether,
    /// This program. Keys come with the certificates (`FetchX509SVID`) and stay in memory. Works with every SPIFFE
    /// Workload API, and while the agent restarts; whoever copies the key can use it until it expires.
    Program,
}

/// Why there is no source.
#[derive(Debug, Error)]
pub enum SourceError {
    /// The endpoint's address is wrong or missing.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// The agent answered in a way that trying again does not change, as one without `HoldX509` does.
    #[error("the agent gives no X.509 identities")]
    Refused(#[source] Arc<ClientError>),
    /// The system refuses a further thread.
    #[error("cannot start the thread that talks to the agent")]
    Thread(#[source] std::io::Error),
    /// The thread that talks to the agent ended.
    #[error("the thread that talks to the agent ended")]
    Stopped,
}

/// Whether what a source has is kept up to date.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Both streams of the agent are open.
    Live,
    /// The agent is away, or refuses. What was received is kept and used until it expires; the source goes on trying.
    Away {
        /// Since when.
        since: OffsetDateTime,
        /// The last failure.
        reason: String,
    },
    /// Of a source that acts for another process ([`X509Source::on_behalf_of`]): that process is gone, or this program may
    /// not act for it any more. For good: it has no identities from then on.
    Ended {
        /// What the agent said.
        reason: String,
    },
}

/// X509-SVIDs, bundles and revocation lists, always the newest, from a thread of its own that keeps the agent's streams
/// open and reconnects by the standard's rules.
///
/// Cheap to clone; the thread ends with the last clone and the last TLS configuration made from one. It needs nothing
/// of the async runtime it is used from, nor any runtime at all.
#[derive(Clone)]
pub struct X509Source {
    shared: Arc<Shared>,
    presents: Option<SpiffeId>,
}

struct Shared {
    orders: mpsc::UnboundedSender<Order>,
    view: watch::Receiver<View>,
    clock: Clock,
    /// The process whose identities these are; `None` for this one.
    acts_for: Option<ActFor>,
}

impl X509Source {
    /// Waits until the agent at `endpoint` has given everything. There is no limit of time: while the agent is not
    /// there, or has no identity for this program yet, it is asked again, and each failure is logged.
    ///
    /// # Errors
    /// Trying again cannot help.
    pub async fn connect(endpoint: Endpoint, custody: Custody) -> Result<Self, SourceError> {
        Self::connect_by(endpoint, custody, Clock::system()).await
    }

    /// [`Self::connect`] to the agent that `SPIFFE_ENDPOINT_SOCKET` names in this process's environment.
    ///
    /// # Errors
    /// The variable is not set or is not an endpoint, or trying again cannot help.
    pub async fn from_env(custody: Custody) -> Result<Self, SourceError> {
        Self::connect(Endpoint::from_env(|name| std::env::var(name).ok())?, custody).await
    }

    /// [`Self::connect`] with another clock, which decides what has expired.
    ///
    /// # Errors
    /// Trying again cannot help.
    pub async fn connect_by(endpoint: Endpoint, custody: Custody, clock: Clock) -> Result<Self, SourceError> {
        let (orders, view) = worker::start(endpoint, custody, clock.clone()).map_err(SourceError::Thread)?;
        Self::settled(Shared { orders, view, clock, acts_for: None }).await
    }

    /// A source of another process's identities, for a program that acts for it ([`ActFor`]), as a proxy does. tether holds
    /// the keys, whoever holds those of this program. Thread, bundles and revocation lists are shared with this source.
    ///
    /// It ends when the agent says that the process is gone or is not acted for any more ([`Self::ended`]); the process
    /// is no longer asked about once the last clone of it is dropped.
    ///
    /// # Errors
    /// The agent gives nothing for this process: it is gone, has no identity, or this program may not act for it. An agent
    /// that is away is waited for.
    pub async fn on_behalf_of(&self, other: ActFor) -> Result<Self, SourceError> {
        let (publish, view) = watch::channel(View::first(self.clock()));
        self.orders().send(Order::Follow(other, publish)).map_err(|_| SourceError::Stopped)?;
        let (orders, clock) = (self.orders().clone(), self.clock().clone());
        Self::settled(Shared { orders, view, clock, acts_for: Some(other) }).await
    }

    /// Waits for the first state.
    async fn settled(mut shared: Shared) -> Result<Self, SourceError> {
        let settled = shared.view.wait_for(|view| view.complete || view.refused.is_some()).await;
        if let Some(reason) = settled.map_err(|_| SourceError::Stopped)?.refused.clone() {
            return Err(SourceError::Refused(reason));
        }
        Ok(Self { shared: Arc::new(shared), presents: None })
    }

    /// The same source, presenting the identity `id` instead of the default one. While the agent gives no such
    /// identity, none is presented and handshakes fail.
    #[must_use]
    pub fn presenting(&self, id: SpiffeId) -> Self {
        Self { shared: self.shared.clone(), presents: Some(id) }
    }

    /// What it has now.
    pub fn state(&self) -> X509State {
        self.shared.view.borrow().state.clone()
    }

    /// Whether that is kept up to date.
    pub fn standing(&self) -> Standing {
        self.shared.view.borrow().standing.clone()
    }

    /// Returns when [`Self::standing`] is one that `wanted` picks, or never.
    pub async fn standing_is(&self, wanted: impl Fn(&Standing) -> bool) {
        let mut view = self.shared.view.clone();
        if view.wait_for(|view| wanted(&view.standing)).await.is_err() {
            // The thread ended, which it does only with this source; nothing changes any more.
            std::future::pending().await
        }
    }

    /// Returns when the process this source acts for is gone or is not acted for any more, with what the agent said; or never.
    /// Connections that were made for it are then to be closed.
    pub async fn ended(&self) -> String {
        self.standing_is(|standing| matches!(standing, Standing::Ended { .. })).await;
        match self.standing() {
            Standing::Ended { reason } => reason,
            // There is no way back from the end.
            Standing::Live | Standing::Away { .. } => std::future::pending().await,
        }
    }

    /// What it has from now on.
    pub fn changes(&self) -> Changes {
        let view = self.shared.view.clone();
        let seen = view.borrow().revision;
        Changes { view, seen }
    }

    /// The identity that handshakes present.
    pub(super) fn presented(&self) -> Option<&SpiffeId> {
        self.presents.as_ref()
    }

    pub(super) fn orders(&self) -> &mpsc::UnboundedSender<Order> {
        &self.shared.orders
    }

    /// The process that signatures are asked for.
    pub(super) fn acts_for(&self) -> Option<ActFor> {
        self.shared.acts_for
    }

    pub(super) fn clock(&self) -> &Clock {
        &self.shared.clock
    }
}

impl fmt::Debug for X509Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut source = f.debug_struct("X509Source");
        source.field("presents", &self.presents).field("acts_for", &self.shared.acts_for).finish_non_exhaustive()
    }
}

/// The states of a source as they come.
#[derive(Debug)]
pub struct Changes {
    view: watch::Receiver<View>,
    seen: u64,
}

impl Changes {
    /// The next state; of several since the last call, the newest. `None` when the source is gone.
    pub async fn next(&mut self) -> Option<X509State> {
        let seen = self.seen;
        let view = self.view.wait_for(|view| view.revision != seen).await.ok()?;
        self.seen = view.revision;
        Some(view.state.clone())
    }
}
