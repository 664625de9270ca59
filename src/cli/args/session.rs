//! `tether session`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use crate::config::duration;
use crate::id::SpiffeId;

/// `tether session`.
#[derive(Debug, Subcommand)]
pub enum SessionCommand {
    /// Begin a task for a running process, or for a cgroup, and print the session's id.
    ///
    /// `tether run` begins a task for a command that it starts, and ends it with the command. This is for what runs
    /// already: `--pid N` for one process of yours (with `--scope tree` also for all it starts, which is what a shell
    /// wants: `--pid $$ --scope tree`), `--scope cgroup` for every process in the cgroup of this command.
    Start(StartArgs),
    /// List the sessions of your user id, the newest first.
    List {
        /// Also those that have ended in the last hour.
        #[arg(long)]
        all: bool,
        /// Ask as a viewer on the admin socket: the sessions of all users.
        #[arg(long)]
        admin: bool,
    },
    /// Show one: who acts for whom, what for, at what, and until when.
    Show {
        /// Its id; the first 6 digits or more of its random part are enough [default: TETHER_SESSION, else the one this
        /// process is a member of].
        id: Option<String>,
        /// Ask as a viewer on the admin socket: also a session of another user.
        #[arg(long)]
        admin: bool,
    },
    /// Print a token of the session for one target.
    Mint(MintArgs),
    /// End a task and all below it, and print what became of what it was given.
    End(EndArgs),
    /// Print each change of one session, or of all of your user id, as it happens.
    Watch {
        /// Its id; the first 6 digits or more of its random part are enough.
        id: Option<String>,
    },
    /// Give a sign of life for a session that was started with --heartbeat.
    Heartbeat {
        /// Its id; the first 6 digits or more of its random part are enough [default: TETHER_SESSION].
        id: Option<String>,
    },
    /// As a viewer: show a task as a tree, from its start to its end, with all below it: tokens, calls, decisions, what
    /// tools reported. Read from the audit log, as far back as it goes.
    Trace {
        /// Its id; the first 6 digits or more of its random part are enough [default: TETHER_SESSION].
        id: Option<String>,
    },
    /// As an operator: nothing is signed for it, and nothing of it stands, until it is resumed.
    Suspend {
        /// Its id; the first 6 digits or more of its random part are enough [default: TETHER_SESSION].
        id: Option<String>,
    },
    /// As an operator: let a suspended session go on.
    Resume {
        /// Its id; the first 6 digits or more of its random part are enough [default: TETHER_SESSION].
        id: Option<String>,
    },
}

/// `tether session start`.
#[derive(Debug, Args)]
pub struct StartArgs {
    /// What for: a name that policy knows, such as ticket/triage.
    #[arg(long)]
    pub purpose: String,
    /// Where to: a URI prefix such as https://tool.example.com/api/, or the audience of a bearer token. Can be repeated.
    #[arg(long, value_name = "URI", required = true)]
    pub target: Vec<String>,
    /// A scope, as in OAuth. Can be repeated.
    #[arg(long, value_name = "SCOPE")]
    pub scope_name: Vec<String>,
    /// How long it lasts at most, for example 15m [default: that of the agent].
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub ttl: Option<Duration>,
    /// What it is limited to.
    #[arg(long, value_enum, default_value_t = BoundaryName::Task)]
    pub boundary: BoundaryName,
    /// How many requests may be proven; 0 for any number.
    #[arg(long, value_name = "COUNT", default_value_t = 0, hide_default_value = true)]
    pub max_calls: u32,
    /// How many tokens may be minted; 0 for any number.
    #[arg(long, value_name = "COUNT", default_value_t = 0, hide_default_value = true)]
    pub max_tokens: u32,
    /// End it when `tether session heartbeat` was not called for so long.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub heartbeat: Option<Duration>,
    /// The person it acts for: local is whoever logged in, as the kernel knows for the process that acts.
    #[arg(long, value_enum, conflicts_with = "subject_token")]
    pub user: Option<UserName>,
    /// The person it acts for, by a token of a configured issuer; - for standard input.
    #[arg(long, value_name = "FILE")]
    pub subject_token: Option<PathBuf>,
    /// The identity to act as [default: the first one of the process].
    #[arg(long, value_name = "SPIFFE_ID")]
    pub spiffe_id: Option<SpiffeId>,
    /// The process that acts: one of your own user id.
    #[arg(long, value_parser = clap::value_parser!(i32).range(1..))]
    pub pid: Option<i32>,
    /// Who acts: the one process, its cgroup, or it and all it starts [default: process].
    #[arg(long, value_enum)]
    pub scope: Option<MembersName>,
    /// Where an approver must agree first, wait for that.
    #[arg(long)]
    pub wait: bool,
    /// The ended session this goes on with, for the audit log.
    #[arg(long, value_name = "ID")]
    pub resumes: Option<String>,
}

/// `tether session mint`.
#[derive(Debug, Args)]
pub struct MintArgs {
    /// The session; the first 6 digits or more of its random part are enough [default: TETHER_SESSION].
    pub id: Option<String>,
    /// One of the session's targets, or a URI below it.
    #[arg(long, value_name = "URI")]
    pub target: String,
    /// A scope of the session's. Can be repeated [default: all].
    #[arg(long)]
    pub scope: Vec<String>,
    /// What kind of token.
    #[arg(long, value_enum, default_value_t = TokenKind::Wit)]
    pub kind: TokenKind,
}

/// `tether session end`.
#[derive(Debug, Args)]
pub struct EndArgs {
    /// Its id; the first 6 digits or more of its random part are enough [default: TETHER_SESSION].
    pub id: Option<String>,
    /// Ask as an operator on the admin socket: also a session of another user.
    #[arg(long)]
    pub admin: bool,
    /// With --admin: why, for the audit log.
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true, requires = "admin")]
    pub reason: String,
}

/// What a session is limited to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum BoundaryName {
    /// Every token is good for one call.
    ToolCall,
    /// One request of the user.
    Request,
    /// One task.
    Task,
}

/// Who acts in a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MembersName {
    /// One program in one process.
    Process,
    /// Every process in its cgroup and below.
    Cgroup,
    /// The process and all its descendants.
    Tree,
}

/// The person a session acts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum UserName {
    /// Whoever logged in on this host.
    Local,
    /// Nobody: the agent acts for itself.
    None,
}

/// A kind of token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TokenKind {
    /// Of use with proofs alone, which the agent makes.
    Wit,
    /// A bearer token, for a service that takes nothing better: whoever has it can use it.
    Jwt,
}
