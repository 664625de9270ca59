//! `tether proxy outbound`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::LogArgs;
use crate::id::SpiffeId;
use crate::proxy::Address;
use crate::proxy::outbound::Target;

/// `tether proxy outbound`.
#[derive(Debug, Args)]
pub struct OutboundArgs {
    /// Where programs connect: unix:/path, 127.0.0.1:PORT or [::1]:PORT. A program behind a port is known less well than
    /// one behind a socket: its proofs have binding level 2 at most, and its executable is no evidence.
    #[arg(long, value_name = "ADDR")]
    pub listen: Address,
    /// Where their requests go: https://HOST or https://HOST:PORT.
    #[arg(long, value_name = "URI", value_parser = |text: &str| Target::parse(text))]
    pub target: Target,
    /// The SPIFFE ID of the target. Nobody else is talked to.
    #[arg(long, value_name = "SPIFFE_ID", required_unless_present = "bearer", conflicts_with = "bearer")]
    pub peer: Option<SpiffeId>,
    /// How each request proves whose it is.
    #[arg(long, value_enum, default_value_t = ProofName::Wpt, conflicts_with = "bearer")]
    pub proof: ProofName,
    /// Let the proof cover the body too, which is read whole for that, up to 4 MiB.
    #[arg(long, conflicts_with = "bearer")]
    pub cover_body: bool,
    /// The target is an MCP server: name the tool that is called and a digest of its arguments in the proof, for policy and
    /// approvals. What is refused is answered as MCP has it.
    #[arg(long, conflicts_with = "bearer")]
    pub mcp: bool,
    /// For an outside service that knows no SPIFFE: show it a bearer JWT-SVID for this audience, as
    /// `Authorization: Bearer`, which the program never sees. The service is known by its host name and a certificate from
    /// the roots of this host.
    #[arg(long, value_name = "AUDIENCE")]
    pub bearer: Option<String>,
    /// The roots for an outside service, instead of the host's: certificates in PEM.
    #[arg(long, value_name = "FILE", requires = "bearer")]
    pub roots: Option<PathBuf>,
    /// The name to ask for in the TLS handshake [default: the target's host].
    #[arg(long, value_name = "NAME")]
    pub server_name: Option<String>,
    /// In whose name requests are made.
    #[arg(long = "as", value_enum, value_name = "WHO", default_value_t = ActAsName::Program)]
    pub act_as: ActAsName,
    /// The mode of the Unix socket [default: 0666, and 0600 with --as proxy].
    #[arg(long, value_name = "OCTAL", value_parser = octal)]
    pub mode: Option<u32>,
    /// What is logged.
    #[command(flatten)]
    pub log: LogArgs,
}

/// How a request is proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ProofName {
    /// By a Workload Identity Token and a proof of this very request.
    Wpt,
    /// By a DPoP proof, for the access token that the program sends as `Authorization: DPoP`.
    Dpop,
    /// By the certificate of the connection alone.
    None,
}

/// In whose name requests are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ActAsName {
    /// Of the program that sends them.
    Program,
    /// Of the proxy itself, whoever can connect.
    Proxy,
}

fn octal(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
    mode.ok_or_else(|| "write permissions in octal, such as 0660".to_owned())
}
