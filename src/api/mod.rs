//! The sockets: thin, no decisions.

mod connection;
pub mod admin;
pub mod export;
pub mod credentials;
pub mod gate;
pub mod sds;
pub mod serve;
pub mod sessions;
pub mod status;
pub mod workload;
