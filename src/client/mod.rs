//! What a Rust workload links: the SPIFFE Workload API as a client, mutual TLS with what it gives ([`tls`]), sessions for
//! agents ([`session`]), checks for tools ([`verifier`]), and none of the daemon's dependencies.
//!
//! Promises: documents are parsed before they are handed out, so an [`X509Svid`] has a chain, a key and a bundle that
//! belong together; a [`Watch`] reconnects by the standard's rules and every update is the whole state. Keys stay in
//! memory and are wiped when dropped; revocation lists are enforced by [`X509Bundles::verify_peer`],
//! which alone judges peers: an [`X509Context`] does not, because an agent may leave lists out beside SVIDs.
//!
//! Does not: cache, refresh tokens, or write files.

mod act_for;
mod channel;
mod endpoint;
mod error;
#[cfg(feature = "agent")]
pub(crate) mod export;
pub mod session;
pub mod tls;
pub mod verifier;
mod watch;
mod wit;
mod workload;

#[cfg(all(test, feature = "agent"))]
pub(crate) mod fake;
#[cfg(all(test, feature = "agent"))]
mod tests;

pub use act_for::ActFor;
pub use channel::channel;
pub use endpoint::{ENDPOINT_VARIABLE, Endpoint, EndpointError};
pub use error::ClientError;
pub use watch::{JwtBundleWatch, Watch, X509BundleWatch, X509Watch};
pub use wit::{WitBundleWatch, WitSvid, WitWatch};
pub use workload::{
    JwtSvid, SecurityHeader, ValidatedJwt, WorkloadApi, X509Bundles, X509Context, X509Svid, with_header,
};
