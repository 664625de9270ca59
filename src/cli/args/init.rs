//! `tether init`.

use clap::Args;

use crate::id::TrustDomain;

/// `tether init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// The trust domain: the name in every SPIFFE ID that this host gives, usually a DNS name that is yours. Asked for on a
    /// terminal; not needed where the configuration has one.
    #[arg(long, value_name = "NAME")]
    pub trust_domain: Option<TrustDomain>,
    /// Whose programs get the first identity [default: who called sudo, else root; nobody where there are entries].
    #[arg(long, value_name = "NAME", conflicts_with = "no_entry")]
    pub user: Option<String>,
    /// Who answers for that identity [default: the user].
    #[arg(long, value_name = "TEXT", conflicts_with = "no_entry")]
    pub owner: Option<String>,
    /// No first identity.
    #[arg(long)]
    pub no_entry: bool,
    /// Do not start the agent, now or with the host.
    #[arg(long)]
    pub no_start: bool,
}
