//! The command line as types. What is parsed here is complete: no command checks its flags again.

mod approval;
mod audit;
mod backup;
mod credential;
mod init;
mod policy;
mod prove;
mod proxy;
mod run;
mod session;
mod verify;
mod write;

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

use crate::config::LogFilter;
use crate::id::{SpiffeId, TrustDomain};

pub use approval::ApprovalCommand;
pub use audit::{AuditCommand, Moment, QueryArgs, VerifyAuditArgs};
pub use backup::{BackupArgs, RestoreArgs};
pub use credential::{CredentialCommand, RevokeArgs};
pub use init::InitArgs;
pub use policy::{CaseFields, ExplainPolicyArgs, PolicyCommand, PolicySource};
pub use prove::{EffectName, ProveArgs, SchemeName};
pub use proxy::{ActAsName, CustodyName, InboundArgs, LogArgs, LogFormatName, OutboundArgs, ProofName, ProxyCommand};
pub use run::RunArgs;
pub use session::{BoundaryName, EndArgs, MembersName, MintArgs, SessionCommand, StartArgs, TokenKind, UserName};
pub use verify::VerifyArgs;
pub use write::WriteArgs;

/// The commit of the SPIFFE specification that is implemented.
pub const SPIFFE_COMMIT: &str = "665a28f";

/// What `--version` prints after the name.
const VERSION: &str = if env!("TETHER_COMMIT").is_empty() {
    // Built from an archive.
    concat!(env!("CARGO_PKG_VERSION"), "\nSPIFFE specification 665a28f")
} else {
    concat!(env!("CARGO_PKG_VERSION"), " (commit ", env!("TETHER_COMMIT"), ")\nSPIFFE specification 665a28f")
};

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failure
  2  usage: the command line is wrong
  3  the caller has no identity, or not the one it asked for
  4  the agent cannot be reached or is not ready
  5  invalid or expired: a token, a configuration, a set of entries
  6  denied by policy, or not in a group that may do this
  7  waiting for an approval

Environment:
  SPIFFE_ENDPOINT_SOCKET  the workload socket, as unix:///path
  TETHER_SESSION          the session a command is about, where none is named
  TETHER_ADMIN_SOCKET     the admin socket, as a path or unix:///path
  TETHER_SECTION__KEY     a setting of the agent, over its configuration file
  NO_COLOR                no colours
Without SPIFFE_ENDPOINT_SOCKET or TETHER_ADMIN_SOCKET, the socket of the installed agent is used if there is one,
else that of an agent you started with --dev.";

/// SPIFFE workload identity, tethered to the process that earned it.
#[derive(Debug, Parser)]
#[command(name = "tether", version = VERSION, after_long_help = EXIT_CODES, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// How to print data. JSON objects have "version": 1.
    #[arg(long, global = true, value_enum, default_value_t = Format::Text)]
    pub output: Format,
    /// The agent's socket for this command, as a path or unix:///path.
    #[arg(long, global = true, value_name = "SOCKET")]
    pub socket: Option<String>,
}

/// How data is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run and look after the agent.
    #[command(subcommand)]
    Agent(AgentCommand),
    /// Set up this host: trust domain, a key that wraps the agent's keys, a first identity, and the agent itself. Asks for what
    /// the flags do not say. Run again it changes nothing, or finishes what was cut short.
    Init(InitArgs),
    /// Show how the agent is: trust domain, authorities and their ages, streams, what is weaker and why.
    Status(StatusArgs),
    /// Check what this host offers and what is lost without it.
    Doctor,
    /// Show the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// The agent's log.
    #[command(subcommand)]
    Log(LogCommand),
    /// Fetch documents as a workload does.
    #[command(subcommand)]
    Fetch(FetchCommand),
    /// Validate documents.
    #[command(subcommand)]
    Validate(ValidateCommand),
    /// Registration entries: which process gets which identity.
    #[command(subcommand)]
    Entry(EntryCommand),
    /// Say which selectors a process has, which entries match it, which do not and why.
    Explain(ExplainArgs),
    /// The ledger: who holds which credential, what it is worth to a thief, and revoking it.
    #[command(subcommand)]
    Credential(CredentialCommand),
    /// Sessions: authority that lasts as long as a task.
    #[command(subcommand)]
    Session(SessionCommand),
    /// Run a command in a session that ends with it, and ends it.
    ///
    /// The command and everything it starts are members of a session: TETHER_SESSION is its id. When the command exits,
    /// the session ends and what is left of it is stopped; when the session ends, or on Ctrl-C, all of it is stopped.
    /// In a session already, the new one is a child of that. Exits with the command's code, 128 and the number for a
    /// signal; 126 and 127 when it cannot be started.
    Run(RunArgs),
    /// Print the headers that prove one HTTP request, made with a key that never leaves the agent.
    ///
    /// In a session, if there is one: the one that is named, else that of TETHER_SESSION, else the one this process is a
    /// member of. The proof is good for this method and URI alone, once, for half a minute.
    Prove(ProveArgs),
    /// Check a request as a tool: the headers that `tether prove` prints on standard input, the verdict on standard output.
    ///
    /// One of this caller's registration entries must list the URI under `serves`. Checking uses the proof up. Exit code 0:
    /// the request is good; 5: it is not, and `reason` says why.
    Verify(VerifyArgs),
    /// Keep SVIDs in files fresh, for programs that read files, and tell those programs.
    ///
    /// All files of an output are put in force at once, with owner and mode, and only when something has changed. Then the
    /// program is told, and again until that worked. The registration entry must say `exportable = true`: a key in a file
    /// works for whoever reads it, until it expires. SIGHUP writes and tells anew; SIGTERM ends it, and revokes nothing.
    /// Prints `ready` when the first files are in place.
    Write(Box<WriteArgs>),
    /// What waits for a person's word.
    #[command(subcommand)]
    Approval(ApprovalCommand),
    /// Policies: what identities, sessions and tools are allowed, checked, tested and explained.
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// What happened: who got what, who was refused and why, and whether the record of it is whole.
    #[command(subcommand)]
    Audit(AuditCommand),
    /// What signs.
    #[command(subcommand)]
    Authority(AuthorityCommand),
    /// Write what the running agent cannot make again into a file, with the keys of its authorities. Takes root.
    Backup(BackupArgs),
    /// Put a backup in the place of the state of an agent that is stopped. What was issued before has ended then.
    Restore(RestoreArgs),
    /// Bundles: the authorities of our own and of other trust domains.
    #[command(subcommand)]
    Bundle(BundleCommand),
    /// Mutual TLS for programs that know nothing of SPIFFE.
    #[command(subcommand)]
    Proxy(ProxyCommand),
    /// Print the completion script of a shell.
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write those of all commands.
    Man {
        /// Write a page for each command into this directory.
        #[arg(long, value_name = "DIR")]
        write: Option<PathBuf>,
    },
}

/// `tether agent`.
#[derive(Debug, Subcommand)]
pub enum AgentCommand {
    /// Run the agent until it is told to stop.
    Run(ConfigArgs),
    /// Check configuration, entries and policies without running anything; lists every mistake with file, line and column.
    Check(ConfigArgs),
    /// Tell the running agent to read configuration and entries again; waits and reports.
    Reload,
    /// Succeed only when the agent answers that it is ready.
    Healthcheck,
}

/// Where the agent's configuration comes from.
#[derive(Debug, Default, Args)]
pub struct ConfigArgs {
    /// The configuration file [default: /etc/tether/tether.toml].
    #[arg(long, value_name = "FILE", conflicts_with = "dev")]
    pub config: Option<PathBuf>,
    /// No configuration file and no root: trust domain dev.tether.internal, everything under one directory, an
    /// identity for the calling user. For trying out, not for production.
    #[arg(long)]
    pub dev: bool,
    /// The directory of --dev [default: $XDG_RUNTIME_DIR/tether-dev, else /tmp/tether-dev-UID].
    #[arg(long, value_name = "DIR", requires = "dev")]
    pub dir: Option<PathBuf>,
    /// Override a setting, for example svid.x509_ttl=5m. Can be repeated.
    #[arg(long, value_name = "NAME=VALUE", value_parser = setting)]
    pub set: Vec<(String, String)>,
}

fn setting(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE, for example svid.x509_ttl=5m")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// `tether status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Go on: a live screen on a terminal, and elsewhere one document after the other, whenever something changed.
    #[arg(long)]
    pub watch: bool,
}

/// `tether config`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Show every setting as the agent would run with it.
    Show {
        /// Where the configuration comes from.
        #[command(flatten)]
        source: ConfigArgs,
        /// Also where each value came from: default, file and line, environment, flag.
        #[arg(long)]
        origin: bool,
    },
    /// Print a configuration file with every setting, its default and its documentation.
    Example,
}

/// `tether log`.
#[derive(Debug, Subcommand)]
pub enum LogCommand {
    /// Show the log level, or change it until the next start.
    Level {
        /// A level (error, warn, info, debug, trace) or one for each part (info,tether::peer=trace).
        #[arg(value_parser = |text: &str| text.parse::<LogFilter>())]
        level: Option<LogFilter>,
    },
}

/// `tether fetch`.
#[derive(Debug, Subcommand)]
pub enum FetchCommand {
    /// X509-SVIDs with their keys and bundles.
    X509 {
        /// Only this identity; without it all are shown and the default one is written.
        #[arg(long, value_name = "SPIFFE_ID")]
        spiffe_id: Option<SpiffeId>,
        /// Where the documents go.
        #[command(flatten)]
        delivery: Delivery,
    },
    /// JWT-SVIDs.
    Jwt {
        /// Whom the token is for. Can be repeated.
        #[arg(long, value_name = "AUDIENCE", required = true, action = ArgAction::Append)]
        audience: Vec<String>,
        /// Only this identity; without it the default one is printed.
        #[arg(long, value_name = "SPIFFE_ID")]
        spiffe_id: Option<SpiffeId>,
        /// Where the documents go.
        #[command(flatten)]
        delivery: Delivery,
    },
    /// WIT-SVIDs with the keys they name. The agent offers them when `wit.enabled` is set.
    Wit {
        /// Only this identity; without it all are shown and the default one is written.
        #[arg(long, value_name = "SPIFFE_ID")]
        spiffe_id: Option<SpiffeId>,
        /// Where the documents go.
        #[command(flatten)]
        delivery: Delivery,
    },
    /// The bundles this workload may have.
    Bundle {
        /// Only this trust domain's.
        #[arg(long, value_name = "TRUST_DOMAIN")]
        trust_domain: Option<TrustDomain>,
        /// Where the documents go.
        #[command(flatten)]
        delivery: Delivery,
    },
}

/// Where fetched documents go, and how often.
#[derive(Debug, Args)]
pub struct Delivery {
    /// Write files into this directory instead of printing.
    #[arg(long, value_name = "DIR")]
    pub write: Option<PathBuf>,
    /// Go on, once for each change.
    #[arg(long)]
    pub watch: bool,
}

/// `tether validate`.
#[derive(Debug, Subcommand)]
pub enum ValidateCommand {
    /// Have the agent validate a JWT-SVID.
    Jwt {
        /// The audience it must be for.
        #[arg(long, value_name = "AUDIENCE")]
        audience: String,
        /// The token, or - for standard input, which other users cannot see in the list of processes.
        #[arg(default_value = "-", allow_hyphen_values = true)]
        token: String,
    },
}

/// `tether entry`.
#[derive(Debug, Subcommand)]
pub enum EntryCommand {
    /// List all entries with where each came from.
    List,
    /// Show one entry in the file format.
    Show {
        /// Its id.
        id: String,
    },
    /// Create an entry in the agent's store.
    Create(EntryInput),
    /// Change an entry in the agent's store: the given fields, or all of it with --file.
    Update {
        /// Its id.
        id: String,
        /// What it becomes.
        #[command(flatten)]
        input: EntryInput,
    },
    /// Delete an entry from the agent's store.
    Delete {
        /// Its id.
        id: String,
    },
    /// Create or update all entries of a file, or none when one is wrong.
    Apply {
        /// The file, or - for standard input.
        file: PathBuf,
        /// Only say what would happen.
        #[arg(long)]
        dry_run: bool,
    },
    /// Take over entries of another system.
    Import(ImportArgs),
}

/// An entry as a file or field by field.
#[derive(Debug, Default, Args)]
pub struct EntryInput {
    /// The whole entry from a file in the entry format, or - for standard input.
    #[arg(long, value_name = "FILE", conflicts_with_all = EntryFields::NAMES)]
    pub file: Option<PathBuf>,
    /// The fields.
    #[command(flatten)]
    pub fields: EntryFields,
}

/// The fields of an entry. Lists are repeated flags and replace what was there.
#[derive(Debug, Default, Args)]
pub struct EntryFields {
    /// A unique name for the entry; generated when absent.
    #[arg(long, value_name = "ID", id = "entry_id")]
    pub id: Option<String>,
    /// The identity it gives, perhaps with placeholders such as {systemd.name}.
    #[arg(long, value_name = "SPIFFE_ID")]
    pub spiffe_id: Option<String>,
    /// A selector that must hold.
    #[arg(long = "match", value_name = "SELECTOR", id = "match")]
    pub matches: Vec<String>,
    /// A selector that must not hold.
    #[arg(long, value_name = "SELECTOR")]
    pub unless: Vec<String>,
    /// Who answers for the entry.
    #[arg(long)]
    pub owner: Option<String>,
    /// What the workload is told the identity is for.
    #[arg(long)]
    pub hint: Option<String>,
    /// The lifetime of X509-SVIDs, for example 15m.
    #[arg(long, value_name = "DURATION")]
    pub x509_ttl: Option<String>,
    /// The lifetime of JWT-SVIDs, for example 5m.
    #[arg(long, value_name = "DURATION")]
    pub jwt_ttl: Option<String>,
    /// The lifetime of X509-SVIDs given as credentials of a systemd unit, for example 12h.
    #[arg(long, value_name = "DURATION")]
    pub credential_ttl: Option<String>,
    /// An audience JWT-SVIDs may have; * for any.
    #[arg(long = "audience", value_name = "AUDIENCE", id = "audiences")]
    pub audiences: Vec<String>,
    /// A URI prefix for which the workload may check proofs.
    #[arg(long, value_name = "URI_PREFIX")]
    pub serves: Vec<String>,
    /// A SPIFFE ID in whose name the workload may ask; with /* at its end all below it.
    #[arg(long, value_name = "SPIFFE_ID")]
    pub may_act_for: Vec<String>,
    /// A DNS name in X509-SVIDs.
    #[arg(long = "dns-name", value_name = "NAME", id = "dns_names")]
    pub dns_names: Vec<String>,
    /// A trust domain whose bundle the workload gets.
    #[arg(long, value_name = "TRUST_DOMAIN")]
    pub federates_with: Vec<String>,
    /// Whose end ends the identity: process, unit or node.
    #[arg(long)]
    pub bind: Option<String>,
    /// Whether each JWT-SVID is accepted once.
    #[arg(long, value_name = "BOOL")]
    pub single_use: Option<bool>,
    /// Whether keys and tokens may be written to files.
    #[arg(long, value_name = "BOOL")]
    pub exportable: Option<bool>,
    /// Whether the entry is switched off: it gives nothing any more, and what it gave is revoked.
    #[arg(long, value_name = "BOOL")]
    pub disabled: Option<bool>,
    /// When the entry ends, in RFC 3339.
    #[arg(long, value_name = "TIME")]
    pub expires_at: Option<String>,
}

impl EntryFields {
    const NAMES: [&'static str; 19] = [
        "entry_id",
        "spiffe_id",
        "match",
        "unless",
        "owner",
        "hint",
        "x509_ttl",
        "jwt_ttl",
        "credential_ttl",
        "audiences",
        "serves",
        "may_act_for",
        "dns_names",
        "federates_with",
        "bind",
        "single_use",
        "exportable",
        "disabled",
        "expires_at",
    ];
}

/// `tether entry import`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("parents").required(true).args(["parent_id", "all_parents"]))]
pub struct ImportArgs {
    /// Whose format the file is in.
    #[arg(long, value_enum)]
    pub from: ImportSource,
    /// What `spire-server entry show -output json` printed, or - for standard input.
    pub file: PathBuf,
    /// Take the entries below this parent. Can be repeated.
    #[arg(long, value_name = "SPIFFE_ID")]
    pub parent_id: Vec<SpiffeId>,
    /// Take the entries of all parents: every process that matches gets them, on whatever node it was meant for.
    #[arg(long)]
    pub all_parents: bool,
    /// Who answers for the entries.
    #[arg(long)]
    pub owner: String,
    /// The trust domain the entries must be in; without it, that of the running agent.
    #[arg(long, value_name = "TRUST_DOMAIN")]
    pub trust_domain: Option<TrustDomain>,
    /// Print the entries in the file format instead of creating them, for a file in entries.d.
    #[arg(long, conflicts_with = "dry_run")]
    pub print: bool,
    /// Only say what would happen.
    #[arg(long)]
    pub dry_run: bool,
}

/// A format entries are imported from.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ImportSource {
    /// SPIRE.
    Spire,
}

/// `tether explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// The process; without it, this command's own.
    #[arg(long)]
    pub pid: Option<i32>,
    /// List the kinds of selectors there are.
    #[arg(long, conflicts_with = "pid")]
    pub kinds: bool,
}

/// `tether authority`.
#[derive(Debug, Subcommand)]
pub enum AuthorityCommand {
    /// Show all authorities, prepared, active and retired.
    Show,
    /// Prepare a new authority; it signs once every bundle has it.
    Rotate {
        /// Which kind.
        #[arg(long, value_enum, default_value_t = RotateKind::X509Signing)]
        kind: RotateKind,
        /// Do not wait: peers that have not learnt the new one yet refuse what it signs.
        #[arg(long)]
        now: bool,
    },
    /// Take an authority out of the bundle at once; all it signed is issued anew.
    Revoke {
        /// Its id, from `tether authority show`.
        id: String,
    },
}

/// What can be rotated.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum RotateKind {
    /// The CA that signs X509-SVIDs.
    X509Signing,
    /// The root above it.
    X509Root,
    /// The key that signs JWT-SVIDs.
    Jwt,
    /// The key that signs WIT-SVIDs.
    Wit,
}

impl RotateKind {
    /// The word the agent knows it by.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::X509Signing => "x509-signing",
            Self::X509Root => "x509-root",
            Self::Jwt => "jwt",
            Self::Wit => "wit",
        }
    }
}

/// `tether bundle`.
#[derive(Debug, Subcommand)]
pub enum BundleCommand {
    /// Show what the agent believes each trust domain by.
    Show {
        /// Only this trust domain's.
        trust_domain: Option<TrustDomain>,
    },
    /// Set the bundle of another trust domain, or further authorities of our own.
    Set {
        /// Whose.
        trust_domain: TrustDomain,
        /// PEM certificates or a SPIFFE bundle (JWK set); - for standard input.
        file: PathBuf,
    },
    /// Delete the bundle of another trust domain, or the further authorities of our own.
    Delete {
        /// Whose.
        trust_domain: TrustDomain,
    },
    /// Print one bundle as a document.
    Export {
        /// Whose; without it our own.
        trust_domain: Option<TrustDomain>,
        /// In which form.
        #[arg(long, value_enum, default_value_t = BundleFormat::Spiffe)]
        format: BundleFormat,
        /// Instead of printing: write what services outside that speak OpenID Connect want, the discovery document and
        /// the keys of JWT-SVIDs, below this directory. Put it on a web server under authority.jwt_issuer.
        #[arg(long, value_name = "DIR", conflicts_with_all = ["format", "trust_domain"])]
        oidc: Option<PathBuf>,
    },
}

/// The form of an exported bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BundleFormat {
    /// The SPIFFE bundle format: a JWK set with X.509 and JWT authorities.
    Spiffe,
    /// The X.509 authorities in PEM.
    Pem,
    /// The revocation lists of this node's X.509 authorities in PEM.
    Crl,
}
