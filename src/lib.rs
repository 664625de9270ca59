//! tether: a SPIFFE workload identity agent that tethers identity to the runtime that earned it.
//!
//! The modules stand in layer order: a file imports only from its own module and from rows above it, and
//! `tests/layering.rs` enforces that. A request flows down the same list, and each arrow is a type with a private
//! constructor, so the order cannot be got wrong:
//!
//! ```text
//! connection -> PeerConn -> Instance -> Attested -> &Entry -> Grant -> Svid -> ledger + audit -> stream
//!               (kernel)    (pidfd)     (selectors)          (policy)  (authority)
//! ```

#[cfg(feature = "agent")]
pub mod attest;
pub mod base;
pub mod bundle;
#[cfg(feature = "agent")]
pub mod cli;
#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "agent")]
pub mod config;
pub mod id;
pub mod jwt;
pub mod proto;
pub mod selector;
#[cfg(feature = "agent")]
pub mod sys;
pub mod x509;
