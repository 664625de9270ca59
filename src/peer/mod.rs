//! Who is on the other end of a connection, whether it is still there, and whether it is still the same.
//!
//! # What it promises
//! - A connection belongs to one [`Instance`]: one program in one process of this boot, held by a handle that no later
//!   process can be mistaken for. Instances are shared by all connections of the same program in the same process.
//! - Every byte that reaches the server was sent by that process while it was alive. The first byte of anybody else,
//!   and any descriptor that is sent along, ends the connection.
//! - [`PeerConn::proven`] returns `Ok` only after the process answered, with the executable it had at `accept`, a
//!   question that was asked on this very connection. Nothing secret may be released before.
//! - [`Instance::look`] is the check to repeat before each use: alive, same executable, and its credentials now.
//!   Its end is also an event, [`Instance::ended`].
//! - Connections are limited per user before anything is spent on them.
//!
//! # What it does not
//! - It says which file runs and not who steers it: ptrace, LD_PRELOAD and a program that copies its input to its
//!   output are beyond any socket. [`PeerConn::holds_cloexec`] closes the last one for programs that were handed the
//!   connection by somebody else.
//! - A process that connects and then forks keeps the connection for itself: the child's bytes end it.
//! - Where [`Instance::weak`] says so it promises less, and says what.

mod attached;
mod cloexec;
mod conn;
mod id;
mod instance;
mod instances;
mod limits;
mod listener;
mod loopback;
mod plain;
mod refusal;
mod stream;
mod systemd;
#[cfg(test)]
mod tests;
pub mod wire;

pub use conn::{ConnId, Credentials, PeerConn};
pub use id::{InstanceId, InvalidInstanceId};
pub use instance::{Facts, Instance, InstanceEnd, LookError, Weakness};
pub use instances::{InstanceError, Instances};
pub use limits::Limits;
pub use listener::{Listener, ListenerConfig};
pub use loopback::{LoopbackError, LoopbackPeer, LoopbackSocket};
pub use plain::PlainStream;
pub use refusal::{Observer, PeerInfo, Refusal};
pub use stream::PeerStream;
pub use systemd::{NotSystemd, SystemdCaller};
