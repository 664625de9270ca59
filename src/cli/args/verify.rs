//! `tether verify`.

use std::path::PathBuf;

use clap::Args;

use super::EffectName;

/// `tether verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The request's method.
    #[arg(long)]
    pub method: String,
    /// The URI the request is served at, from your own configuration: never from the request's Host header.
    #[arg(long)]
    pub uri: String,
    /// The tool that is called behind the URI; the proof must not name another.
    #[arg(long, value_name = "NAME")]
    pub tool: Option<String>,
    /// The arguments of the tool, of which the proof must not carry another digest.
    #[arg(long, value_name = "FILE")]
    pub arguments_file: Option<PathBuf>,
    /// The body of the request, which the proof must cover.
    #[arg(long, value_name = "FILE")]
    pub body_file: Option<PathBuf>,
    /// What the call does, where that is graver than its method says.
    #[arg(long, value_enum)]
    pub effect: Option<EffectName>,
    /// A scope the session must have; may be repeated.
    #[arg(long = "scope", value_name = "SCOPE")]
    pub scopes: Vec<String>,
    /// The least binding level that is taken: 2 the key is held by tether, 3 and the process is checked at each use.
    #[arg(long, value_name = "LEVEL", default_value_t = 0)]
    pub min_binding: u32,
    /// Take no request that was made in no session.
    #[arg(long)]
    pub require_session: bool,
}
