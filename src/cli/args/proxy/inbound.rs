//! `tether proxy inbound`.

use std::net::SocketAddr;

use clap::{Args, ValueEnum};

use super::LogArgs;
use crate::id::SpiffeId;
use crate::proxy::inbound::PublicUri;
use crate::proxy::{Address, AddressError};

/// `tether proxy inbound`.
#[derive(Debug, Args)]
pub struct InboundArgs {
    /// Where clients connect: HOST:PORT or unix:/path.
    #[arg(long, value_name = "ADDR")]
    pub listen: Address,
    /// The tool: http://127.0.0.1:PORT or unix:/path. It is on this host: the way to it is not encrypted.
    #[arg(long, value_name = "URL", value_parser = upstream)]
    pub upstream: Address,
    /// Speak HTTP/2 to the tool, as gRPC needs it. Otherwise HTTP/1.1 is spoken to it, whatever clients speak.
    #[arg(long)]
    pub upstream_http2: bool,
    /// Who may connect; may be given several times. Without it whoever proves an identity may, and policy decides.
    #[arg(long, value_name = "SPIFFE_ID")]
    pub allow: Vec<SpiffeId>,
    /// Where clients reach the tool, as proofs and policies name it: https://tool.example.com; may be given several times.
    /// A request for another host is refused [default: https:// and the listening address; on loopback also as localhost,
    /// 127.0.0.1 and [::1]].
    #[arg(long, value_name = "URL", value_parser = |text: &str| PublicUri::parse(text))]
    pub public: Vec<PublicUri>,
    /// Do not ask the agent about requests: --allow decides, at the handshake alone. Sessions, users and proofs then mean
    /// nothing.
    #[arg(long, requires = "allow", conflicts_with_all = ["require_proof", "require_session", "cover_body", "min_binding", "mcp"])]
    pub no_policy: bool,
    /// Take only requests that come with a proof of their own (WPT), whatever policy says.
    #[arg(long)]
    pub require_proof: bool,
    /// Take only requests that are made in a session, which is proven.
    #[arg(long)]
    pub require_session: bool,
    /// Take only requests whose proof covers the body, which is read whole for that, up to so many bytes.
    #[arg(long, value_name = "BYTES")]
    pub cover_body: Option<usize>,
    /// The least binding level of what a client presents: 1 its key is in its memory, 2 tether holds it, 3 and its process
    /// is checked at each use.
    #[arg(long, value_name = "LEVEL", default_value_t = 0)]
    pub min_binding: u32,
    /// The tool is an MCP server (Streamable HTTP): policy sees each method, tool and digest of arguments.
    #[arg(long)]
    pub mcp: bool,
    /// The identity to present, if the proxy has several [default: its first].
    #[arg(long, value_name = "SPIFFE_ID")]
    pub spiffe_id: Option<SpiffeId>,
    /// Who holds the proxy's key.
    #[arg(long, value_enum, default_value_t = CustodyName::Tether)]
    pub custody: CustodyName,
    /// Pass the client's whole certificate on, as Cert in X-Forwarded-Client-Cert.
    #[arg(long)]
    pub forward_certificate: bool,
    /// Take paths with escaped slashes (%2F), for tools that do not read them as slashes.
    #[arg(long)]
    pub encoded_slashes: bool,
    /// How long the tool may take until its answer begins, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    pub upstream_timeout: u64,
    /// Connections at once.
    #[arg(long, value_name = "NUMBER", default_value_t = 4096)]
    pub max_connections: usize,
    /// Connections at once from one IP address (IPv6: from one /64).
    #[arg(long, value_name = "NUMBER", default_value_t = 1024)]
    pub max_connections_per_address: usize,
    /// Answer /metrics, /livez and /readyz here, on loopback.
    #[arg(long, value_name = "ADDR")]
    pub metrics: Option<SocketAddr>,
    /// What is logged.
    #[command(flatten)]
    pub log: LogArgs,
}

/// Who holds the proxy's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CustodyName {
    /// tether: it is asked for a signature at each handshake, and nothing can be stolen from the proxy.
    Tether,
    /// The proxy: handshakes go on while the agent restarts, and whoever reads its memory has the key until it expires.
    Proxy,
}

/// An address as a URL.
fn upstream(text: &str) -> Result<Address, AddressError> {
    let Some(rest) = text.strip_prefix("http://") else { return Address::parse(text) };
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    match Address::parse(authority) {
        Err(_) if !authority.contains(['/', '?', '#']) => Address::parse(&format!("{authority}:80")),
        address => address,
    }
}
