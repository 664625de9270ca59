//! `tether proxy`.

mod inbound;
mod outbound;

use clap::{Args, Subcommand, ValueEnum};

use crate::config::LogFilter;

pub use inbound::{CustodyName, InboundArgs};
pub use outbound::{ActAsName, OutboundArgs, ProofName};

/// `tether proxy`.
#[derive(Debug, Subcommand)]
pub enum ProxyCommand {
    /// In front of a tool: mutual TLS in, plain HTTP out, and the agent's word on each request in between.
    ///
    /// Clients prove a SPIFFE ID by their certificate. Each request is decided by the agent's policy, for which the
    /// proxy's own registration entry lists the public URI under `serves`. The tool learns who calls from headers that the
    /// proxy alone sets (X-Forwarded-Client-Cert, Tether-Spiffe-Id, Tether-Session, Tether-User, Tether-Purpose). A
    /// revoked client is cut at once; what is open for a session ends with it. One process serves one tool. Prints where
    /// it listens, then `ready`.
    Inbound(InboundArgs),
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
