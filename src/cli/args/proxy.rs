//! `tether proxy`.

mod outbound;

use clap::{Args, Subcommand, ValueEnum};

use crate::config::LogFilter;

pub use outbound::{ActAsName, OutboundArgs, ProofName};

/// `tether proxy`.
#[derive(Debug, Subcommand)]
pub enum ProxyCommand {
    /// Beside a program: plain HTTP in, mutual TLS and proofs out, in the name of the program that asks.
    ///
    /// Programs connect to a Unix socket, or to a port on the loopback interface, and need to know nothing of SPIFFE. The
    /// proxy knows each by its process and acts for it; for that the proxy's own registration entry lists their identities
    /// under `may_act_for`. Requests go to one target and nowhere else. Prints where it listens, then `ready`.
    Outbound(OutboundArgs),
}

/// What a proxy logs, and how.
#[derive(Debug, Args)]
pub struct LogArgs {
    /// What is logged, on standard error: a level (error, warn, info, debug, trace), or one for each part.
    #[arg(long, value_name = "LEVEL", default_value = "info", value_parser = |text: &str| text.parse::<LogFilter>())]
    pub log_level: LogFilter,
    /// How log lines look.
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = LogFormatName::Text)]
    pub log_format: LogFormatName,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormatName {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}
