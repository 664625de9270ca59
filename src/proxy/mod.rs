//! Mutual TLS for programs that know nothing of SPIFFE: in front of a tool, and beside an agent.
//!
//! What both proxies share is here: listening ([`Address`], [`Listener`]), serving HTTP/1.1 and HTTP/2 on any stream of
//! bytes ([`serve`]), talking to what is behind ([`Upstream`], [`forward`]), and the rules for headers ([`headers`]).
//!
//! Promises: bodies stream both ways, trailers included, and are never held back; what one connection says of itself
//! (hop-by-hop headers, framing) never reaches the next; a request whose framing two readers could read in two ways is
//! refused; every limit is a number in [`Limits`]; what is open can be cut at any moment ([`Lifeline`]).
//!
//! Does not: cache, retry what may have had an effect, or change bodies.

mod address;
mod body;
mod cut;
mod exchange;
mod gate;
pub mod headers;
pub mod inbound;
mod limits;
mod listener;
pub mod mcp;
pub mod metrics;
pub mod outbound;
mod serve;
mod upgrade;
mod upstream;

pub use self::address::{Address, AddressError};
pub use self::body::{Body, BoxError, Progress, empty, full};
pub use self::cut::{Cut, CutReason, Lifeline, Phase};
pub use self::exchange::{Cuts, forward};
pub use self::limits::{Limits, Places, Seat};
pub use self::listener::{Accepted, Io, Listener, Socket};
pub use self::serve::{Ended, Protocol, serve};
pub use self::upstream::{Connector, Link, Upstream, UpstreamError};
