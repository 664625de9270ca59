//! The sockets: thin, no decisions.

pub mod gate;
pub mod status;
pub mod workload;
