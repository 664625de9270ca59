//! What the benches share: servers to measure, clients to measure with, and how figures are told.

#![allow(dead_code, reason = "each bench uses a part of it")]
#![allow(clippy::disallowed_methods, reason = "a bench measures real time")]
#![allow(clippy::print_stdout, reason = "figures go to standard output")]

pub mod client;
pub mod empty;
pub mod process;
pub mod report;
pub mod stats;

/// What can go wrong here ends the bench with its text.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;
