//! The sockets: thin, no decisions.

pub mod admin;
mod connection;
pub mod export;
pub mod credentials;
pub mod gate;
pub mod sds;
pub mod serve;
pub mod sessions;
pub mod status;
pub mod workload;
