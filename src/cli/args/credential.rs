//! `tether credential`.

use clap::{ArgGroup, Args, Subcommand, ValueEnum};

use crate::proto::admin::CredentialFilter;

/// `tether credential`.
#[derive(Debug, Subcommand)]
pub enum CredentialCommand {
    /// List what was issued and still stands, the newest first.
    List {
        /// Which ones.
        #[command(flatten)]
        holder: Holder,
        /// Also those that were used or have ended. What has expired is not kept.
        #[arg(long)]
        all: bool,
        /// At most this many.
        #[arg(long, value_name = "COUNT", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        limit: u32,
    },
    /// Show one: its holder, who answers for it, what a thief could do with it, and where it is worth something.
    Show {
        /// A serial number or jti; the first 6 digits or more are enough.
        id: String,
    },
    /// Revoke what stands: at once, and for good.
    ///
    /// Streams of a revoked SVID end, verifiers that ask tether refuse it, and the serial number of a certificate
    /// whose key the workload has goes onto the revocation list. This ends what was issued, not what will be: a
    /// process that still matches its entry gets a new one when it asks. To stop that, end the process, or switch the
    /// entry off: `disabled = true` in its file, or `tether entry update ID --disabled true`. --dry-run shows what
    /// would be revoked.
    #[command(group = ArgGroup::new("which").required(true).multiple(true).args(
        ["id", "serial", "jti", "spiffe_id", "pid", "entry", "owner", "kind"]
    ))]
    Revoke(RevokeArgs),
}

/// Picks credentials by who holds them and why.
#[derive(Debug, Default, Args)]
pub struct Holder {
    /// Of this identity; with /* at its end of all below it.
    #[arg(long, value_name = "SPIFFE_ID")]
    pub spiffe_id: Option<String>,
    /// Issued to the process with this id. Numbers are used again: `show` names the very process.
    #[arg(long, value_parser = clap::value_parser!(i32).range(1..))]
    pub pid: Option<i32>,
    /// From this registration entry.
    #[arg(long, value_name = "ID")]
    pub entry: Option<String>,
    /// From entries that this owner answers for.
    #[arg(long)]
    pub owner: Option<String>,
    /// Of this kind.
    #[arg(long, value_enum)]
    pub kind: Option<CredentialKind>,
}

/// `tether credential revoke`.
#[derive(Debug, Args)]
pub struct RevokeArgs {
    /// A serial number or jti; the first 6 digits or more are enough.
    #[arg(conflicts_with_all = ["serial", "jti"])]
    pub id: Option<String>,
    /// The certificate with this serial number, in hex as any tool prints it.
    #[arg(long, value_name = "HEX", conflicts_with = "jti")]
    pub serial: Option<String>,
    /// The token with this jti.
    #[arg(long)]
    pub jti: Option<String>,
    /// Which ones.
    #[command(flatten)]
    pub holder: Holder,
    /// Why, for the audit log.
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub reason: String,
    /// Only say what would be revoked.
    #[arg(long)]
    pub dry_run: bool,
}

/// A kind of credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CredentialKind {
    /// X509-SVIDs.
    X509,
    /// JWT-SVIDs.
    Jwt,
    /// WIT-SVIDs.
    Wit,
}

impl CredentialKind {
    /// The word the agent knows it by.
    fn as_str(self) -> &'static str {
        match self {
            Self::X509 => "x509",
            Self::Jwt => "jwt",
            Self::Wit => "wit",
        }
    }
}

impl Holder {
    /// The same as the agent takes it.
    pub fn filter(self) -> CredentialFilter {
        CredentialFilter {
            spiffe_id: self.spiffe_id.unwrap_or_default(),
            pid: self.pid.unwrap_or_default(),
            entry: self.entry.unwrap_or_default(),
            owner: self.owner.unwrap_or_default(),
            kind: self.kind.map(CredentialKind::as_str).unwrap_or_default().to_owned(),
            ..CredentialFilter::default()
        }
    }
}
