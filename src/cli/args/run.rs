//! `tether run`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::session::{BoundaryName, UserName};
use crate::config::duration;

/// `tether run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// What for: a name that policy knows, such as ticket/triage [default: interactive; within a session, its own].
    #[arg(long)]
    pub purpose: Option<String>,
    /// Where to: a URI prefix, the audience of a bearer token, or * for any. Can be repeated [default: * where policy
    /// allows it; within a session, its own].
    #[arg(long, value_name = "URI")]
    pub target: Vec<String>,
    /// A scope, as in OAuth. Can be repeated [default: none; within a session, its own].
    #[arg(long)]
    pub scope: Vec<String>,
    /// How long it lasts at most, for example 15m [default: that of the agent].
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub ttl: Option<Duration>,
    /// What it is limited to [default: task; within a session, its own].
    #[arg(long, value_enum)]
    pub boundary: Option<BoundaryName>,
    /// How many requests may be proven; 0 for any number.
    #[arg(long, value_name = "COUNT", default_value_t = 0, hide_default_value = true)]
    pub max_calls: u32,
    /// How many tokens may be minted; 0 for any number.
    #[arg(long, value_name = "COUNT", default_value_t = 0, hide_default_value = true)]
    pub max_tokens: u32,
    /// The person it acts for: local is whoever logged in, as the kernel knows for this process.
    #[arg(long, value_enum, conflicts_with = "subject_token")]
    pub user: Option<UserName>,
    /// The person it acts for, by a token of a configured issuer; - for standard input.
    #[arg(long, value_name = "FILE")]
    pub subject_token: Option<PathBuf>,
    /// Measure everything in this directory too: the selectors launch:dir and launch:dir_sha256.
    #[arg(long, value_name = "DIR")]
    pub measure_dir: Option<PathBuf>,
    /// Where an approver must agree first, wait for that.
    #[arg(long)]
    pub wait: bool,
    /// How long what still runs may take to end by itself before it is killed.
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "5s")]
    pub grace: Duration,
    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}
