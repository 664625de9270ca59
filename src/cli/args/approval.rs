//! `tether approval`.

use std::time::Duration;

use clap::Subcommand;

use crate::config::duration;

/// `tether approval`.
#[derive(Debug, Subcommand)]
pub enum ApprovalCommand {
    /// List what waits for a person's word, the newest first.
    List {
        /// Also what was decided, used or has expired in the last day.
        #[arg(long)]
        all: bool,
    },
    /// Allow what one approval asks for: exactly that, once, for a quarter of an hour, unless you say otherwise.
    ///
    /// Needs the approver role, and a user id that is neither that of the agent that asks nor that of the person it acts
    /// for.
    Approve {
        /// Its id; the first 6 digits or more are enough.
        id: String,
        /// How long it holds, for example 30m. A session that is allowed to start ends then at the latest.
        #[arg(long, value_name = "DURATION", value_parser = duration)]
        ttl: Option<Duration>,
        /// How often it can be used.
        #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
        uses: u32,
        /// Why, for the audit log and for the agent's owner.
        #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
        note: String,
    },
    /// Refuse what one approval asks for, or take back what was approved: what it allowed ends before this returns.
    ///
    /// What is refused in a session cannot be asked for again in it.
    Deny {
        /// Its id; the first 6 digits or more are enough.
        id: String,
        /// Why, for the audit log and for the agent's owner.
        #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
        note: String,
    },
}
