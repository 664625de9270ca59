//! The ground everything stands on: time, entropy, secrets, durable files, stopping. Nothing here knows SPIFFE.

#[cfg(feature = "agent")]
pub mod archive;
pub mod backoff;
pub mod clock;
#[cfg(feature = "agent")]
pub mod directory;
#[cfg(feature = "agent")]
pub mod drain;
#[cfg(feature = "agent")]
pub mod durable;
pub mod entropy;
#[cfg(feature = "agent")]
pub mod exhaustion;
#[cfg(feature = "agent")]
pub mod files;
#[cfg(feature = "agent")]
pub mod frames;
#[cfg(feature = "agent")]
pub mod mistake;
#[cfg(feature = "agent")]
pub mod ownership;
pub mod secret;
#[cfg(feature = "agent")]
pub mod quota;
pub mod text;
