//! `tether policy`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::id::SpiffeId;
use crate::policy::DEFAULT_DIRECTORY;

/// `tether policy`.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Check policies without an agent; lists every mistake with file, line and column.
    Check {
        /// Directories, of which every `*.cedar` is checked, and files: all of them together are one set.
        #[arg(value_name = "PATH", default_value = DEFAULT_DIRECTORY)]
        paths: Vec<PathBuf>,
        /// Check them beside the built-in policies of an agent started with --dev.
        #[arg(long)]
        dev: bool,
    },
    /// Ask policies what files of cases ask, and compare the answers with what those expect. Needs no agent.
    Test {
        /// Files of cases in TOML; `-` is standard input.
        #[arg(value_name = "FILE", required = true)]
        files: Vec<PathBuf>,
        #[command(flatten)]
        source: PolicySource,
    },
    /// Say what would be decided, by which policies, and what in each of the others does not hold.
    ///
    /// The running agent answers, or with --dir the policies in files.
    Explain(Box<ExplainPolicyArgs>),
    /// Show the policies that are in force in the running agent.
    Show,
    /// Print the schema: all that policies may speak of.
    Schema,
}

/// Which policies are asked without an agent.
#[derive(Debug, Args)]
pub struct PolicySource {
    /// A directory of policies, or one file of them; may be given more than once.
    #[arg(long = "dir", value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// With the built-in policies of an agent started with --dev.
    #[arg(long)]
    pub dev: bool,
}

/// `tether policy explain`.
#[derive(Debug, Args)]
pub struct ExplainPolicyArgs {
    /// A file with one case, as for `tether policy test`; `-` is standard input.
    #[arg(long, value_name = "FILE", conflicts_with = "CaseFields")]
    pub case: Option<PathBuf>,
    #[command(flatten)]
    pub source: PolicySource,
    #[command(flatten)]
    pub fields: CaseFields,
}

/// A case in flags.
#[derive(Debug, Default, Args)]
#[group(id = "CaseFields", multiple = true)]
pub struct CaseFields {
    /// issue, start, delegate, mint, call, or read, write or irreversible for a call with that effect.
    #[arg(long, value_name = "ACTION")]
    pub action: Option<String>,
    /// Who acts.
    #[arg(long, value_name = "SPIFFE_ID")]
    pub agent: Option<SpiffeId>,
    /// The registration entry that gives the agent its identity.
    #[arg(long, value_name = "ID")]
    pub entry: Option<String>,
    /// Who answers for that entry.
    #[arg(long, value_name = "OWNER")]
    pub owner: Option<String>,
    /// The person the agent acts for: ISSUER#SUBJECT, or NAME@NODE for a user of a host.
    #[arg(long, value_name = "USER")]
    pub user: Option<String>,
    /// What the session is for.
    #[arg(long, value_name = "PURPOSE")]
    pub purpose: Option<String>,
    /// Where the session may go; may be given more than once.
    #[arg(long = "target", value_name = "URI")]
    pub targets: Vec<String>,
    /// What the session may do; may be given more than once.
    #[arg(long = "scope", value_name = "SCOPE")]
    pub scopes: Vec<String>,
    /// The URI that is called, or that a token is minted for.
    #[arg(long, value_name = "URI")]
    pub uri: Option<String>,
    /// The method of the call.
    #[arg(long, value_name = "METHOD")]
    pub method: Option<String>,
    /// The name of the tool behind the URI.
    #[arg(long, value_name = "NAME")]
    pub tool: Option<String>,
    /// What is issued: x509, jwt or wit; or minted: wit or jwt.
    #[arg(long, value_name = "KIND")]
    pub kind: Option<String>,
    /// An audience of the JWT-SVID that is issued; may be given more than once.
    #[arg(long = "audience", value_name = "AUDIENCE")]
    pub audiences: Vec<String>,
    /// The binding level.
    #[arg(long, value_name = "0..4", value_parser = clap::value_parser!(u8).range(0..=4))]
    pub binding: Option<u8>,
    /// As if an approver had agreed.
    #[arg(long)]
    pub approved: bool,
    /// When, in UTC such as 2026-03-01T09:30:00Z; now if it is not given.
    #[arg(long, value_name = "TIME")]
    pub time: Option<String>,
}
