//! `tether prove`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// `tether prove`.
#[derive(Debug, Args)]
pub struct ProveArgs {
    /// The request's method.
    #[arg(long)]
    pub method: String,
    /// The request's absolute URI. Query and fragment are not part of the proof.
    #[arg(long)]
    pub uri: String,
    /// The session to act in: its id, or the first 6 digits or more of its random part [default: TETHER_SESSION, else the
    /// one this process is a member of].
    #[arg(long, value_name = "ID", conflicts_with = "no_session")]
    pub session: Option<String>,
    /// Prove who this process is and nothing else, even inside a session.
    #[arg(long)]
    pub no_session: bool,
    /// The tool that is called behind the URI, for policy and the audit log.
    #[arg(long, value_name = "NAME")]
    pub tool: Option<String>,
    /// The arguments of the tool, of which the proof carries the digest; - for standard input.
    #[arg(long, value_name = "FILE")]
    pub arguments_file: Option<PathBuf>,
    /// The body of the request, which the proof then covers; - for standard input.
    #[arg(long, value_name = "FILE")]
    pub body_file: Option<PathBuf>,
    /// What the call does, where that is graver than its method says.
    #[arg(long, value_enum)]
    pub effect: Option<EffectName>,
    /// The transaction this call is part of, to be found again in the audit log [default: a random one].
    #[arg(long, value_name = "ID")]
    pub txn: Option<String>,
    /// The form of the proof.
    #[arg(long, value_enum, default_value_t = SchemeName::Wpt)]
    pub scheme: SchemeName,
    /// With --scheme dpop: the access token the proof goes with; - for standard input.
    #[arg(long, value_name = "FILE")]
    pub access_token_file: Option<PathBuf>,
    /// With --scheme dpop: the nonce the server gave.
    #[arg(long)]
    pub nonce: Option<String>,
}

/// What a call does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EffectName {
    /// Changes nothing.
    Read,
    /// Changes something that can be changed back.
    Write,
    /// Cannot be undone.
    Irreversible,
}

/// The form of a proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SchemeName {
    /// WIMSE workload proof token: `Workload-Identity-Token` and `Authorization: WPT`.
    Wpt,
    /// RFC 9449: the header `DPoP`.
    Dpop,
}
