//! tether: a SPIFFE workload identity agent that tethers identity to the runtime that earned it.
//!
//! The modules stand in layer order: a file imports only from its own module and from rows above it, and
//! `tests/layering.rs` enforces that. A request flows down the same list, and each arrow is a type with a private
//! constructor, so the order cannot be got wrong:
//!
//! ```text
//! connection -> PeerConn -> Instance -> Attested -> &Entry -> Grant -> Svid -> audit -> stream
//!               (kernel)    (pidfd)     (selectors)          (policy)  (authority)
//! ```

pub mod base;
#[cfg(feature = "agent")]
pub mod sys;
pub mod proto;
pub mod id;
pub mod selector;
pub mod x509;
pub mod jwt;
pub mod wit;
pub mod proof;
pub mod bundle;
#[cfg(feature = "agent")]
pub mod store;
#[cfg(feature = "agent")]
pub mod metrics;
#[cfg(feature = "agent")]
pub mod audit;
#[cfg(feature = "agent")]
pub mod peer;
#[cfg(feature = "agent")]
pub mod attest;
#[cfg(feature = "agent")]
pub mod registry;
#[cfg(feature = "agent")]
pub mod bond;
#[cfg(feature = "agent")]
pub mod user;
#[cfg(feature = "agent")]
pub mod policy;
#[cfg(feature = "agent")]
pub mod authority;
#[cfg(feature = "agent")]
pub mod ledger;
#[cfg(feature = "agent")]
pub mod held;
#[cfg(feature = "agent")]
pub mod trust;
#[cfg(feature = "agent")]
pub mod issue;
#[cfg(feature = "agent")]
pub mod session;
#[cfg(feature = "agent")]
pub mod verify;
#[cfg(feature = "agent")]
pub mod ends;
#[cfg(feature = "agent")]
pub mod stream;
#[cfg(feature = "agent")]
pub mod telemetry;
#[cfg(feature = "agent")]
pub mod http;
#[cfg(feature = "agent")]
pub mod api;
pub mod client;
#[cfg(feature = "agent")]
pub mod files;
#[cfg(feature = "agent")]
pub mod proxy;
#[cfg(feature = "agent")]
pub mod config;
#[cfg(feature = "agent")]
pub mod agent;
#[cfg(feature = "agent")]
pub mod cli;
