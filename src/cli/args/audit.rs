//! `tether audit`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::audit::Link;
use crate::config::duration;

/// `tether audit`.
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Print the last records, and with --follow those to come. With --output json each is the very line that is on disk.
    Tail {
        /// How many from before.
        #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 10, value_parser = clap::value_parser!(u32).range(0..=10_000))]
        lines: u32,
        /// Go on with each that is written, until interrupted.
        #[arg(short, long)]
        follow: bool,
    },
    /// Print the records that match, the oldest first. With --output json each is the very line that is on disk.
    Query(QueryArgs),
    /// Hold every record that is kept against the chain: what was changed, left out, put elsewhere or cut off is named,
    /// and the exit code is 5.
    ///
    /// Note the last record it prints (`last SEQ:HASH`) somewhere else: with --noted, a later run shows whether everything
    /// up to that record is still what it was, even if whoever changed it could write to all files of the agent.
    Verify(VerifyAuditArgs),
}

/// `tether audit query`.
#[derive(Debug, Args)]
pub struct QueryArgs {
    /// From this time on: RFC 3339, or how long ago, for example 2h.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub since: Option<Moment>,
    /// Before this time: RFC 3339, or how long ago.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub until: Option<Moment>,
    /// Of this type, for example token_minted. Can be repeated.
    #[arg(long, value_name = "EVENT")]
    pub event: Vec<String>,
    /// Of this session; the first 6 digits or more of its random part are enough.
    #[arg(long, value_name = "ID")]
    pub session: Option<String>,
    /// Also of the sessions below it.
    #[arg(long, requires = "session")]
    pub below: bool,
    /// Of this transaction.
    #[arg(long, value_name = "ID")]
    pub txn: Option<String>,
    /// About this identity; with /* at its end about all below it.
    #[arg(long, value_name = "SPIFFE_ID")]
    pub spiffe_id: Option<String>,
    /// For this person: alice@NODE, or ISSUER#SUBJECT.
    #[arg(long, value_name = "USER")]
    pub user: Option<String>,
    /// At most this many.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: Option<u32>,
}

/// `tether audit verify`.
#[derive(Debug, Args)]
pub struct VerifyAuditArgs {
    /// Read the files of this directory, without an agent.
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// With --dir: the file that says which record was the last [default: DIR.head].
    #[arg(long, value_name = "FILE", requires = "dir")]
    pub head: Option<PathBuf>,
    /// A record that was noted before, as SEQ:HASH.
    #[arg(long, value_name = "SEQ:HASH", value_parser = link)]
    pub noted: Option<Link>,
}

/// A point in time, as a person says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// A time.
    At(OffsetDateTime),
    /// So long ago.
    Ago(Duration),
}

fn moment(text: &str) -> Result<Moment, String> {
    let at = OffsetDateTime::parse(text, &Rfc3339).map(Moment::At);
    at.or_else(|_| duration(text).map(Moment::Ago))
        .map_err(|_| "write a time such as 2026-11-23T10:00:00Z, or how long ago, such as 2h".to_owned())
}

fn link(text: &str) -> Result<Link, String> {
    Link::parse(text).ok_or_else(|| "write SEQ:HASH as `tether audit verify` printed it".to_owned())
}
