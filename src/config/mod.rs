//! The agent's configuration: one list of settings, each with its type, its default and its documentation.
//!
//! The structs below are the only place a setting is written down. The loader, the errors about unknown names,
//! `tether config show` and the shipped `tether.toml` are all derived from them, so they cannot disagree.
//! A [`Config`] that exists is complete and consistent: nothing later has to check it again.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::attest::container::Kind as Engine;
use crate::id::TrustDomain;
use crate::policy::{AudienceCaps, DEFAULT_DIRECTORY};
use crate::telemetry;
use crate::user::IssuerTable;
use crate::verify::NodeUrls;
use crate::x509::KeyType;

mod check;
mod example;
mod files;
mod load;
mod parts;
mod settings;
mod value;

#[cfg(test)]
mod tests;

pub use example::{SectionDoc, SettingDoc, Shown, example, reference, show};
pub use files::drop_in_dir;
pub use load::{Loaded, Mistake, Mistakes, Origin, Place, Position, Source, fuzz_file};
pub use value::{AuthorityKind, ByteSize, KernelInterfaces, LogFilter, OnAuditFailure, SdsCrl, duration};

use settings::settings;

/// Where the configuration of an installed agent is.
pub const SYSTEM_FILE: &str = "/etc/tether/tether.toml";
/// The trust domain of an agent started with `--dev`.
pub const DEV_TRUST_DOMAIN: &str = "dev.tether.internal";

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

settings! {
    /// Configuration of the tether agent.
    ///
    /// Every setting is listed with its default. Drop-ins override this file: every `*.toml` in the directory of its name
    /// with `.d` (/etc/tether/tether.toml.d), in the order of their names; of a setting that stands in several, the last
    /// counts, whole. The environment variable TETHER_SECTION__KEY (for example TETHER_SVID__X509_TTL, or
    /// TETHER_TRUST_DOMAIN for the settings before the first section) overrides the files, and
    /// `--set section.key=value` overrides both. Names that do not exist are errors. `tether agent check` says
    /// whether the files are right, `tether config show --origin` which value came from where.
    pub struct Config {
        /// The trust domain whose SPIFFE IDs this agent issues. Required; `tether init` sets it in a drop-in.
        trust_domain: TrustDomain = settings::unset_trust_domain();
        /// Where authorities, stored entries, the ledger and the audit log are kept. Created with mode 0700.
        state_dir: PathBuf = PathBuf::from("/var/lib/tether");
        /// Registration entries: every `*.toml` in this directory is loaded, and again when one changes.
        entries_dir: PathBuf = PathBuf::from("/etc/tether/entries.d");
        /// Policies: every `*.cedar` in this directory is loaded beside the built-in ones, and again when one changes. A set
        /// with a mistake is refused whole and the one before stays; at the start the agent is refused with it. Only the
        /// default directory may be missing.
        policies_dir: PathBuf = PathBuf::from(DEFAULT_DIRECTORY);
        section authority: Authority;
        section svid: Svid;
        section wit: Wit;
        section sds: Sds;
        section sessions: Sessions;
        section listen: Listen;
        section http: Http;
        section limits: Limits;
        section attest: Attest;
        section admin: Admin;
        section audit: Audit;
        section log: Log;
        fixed dev: bool = false, "Whether this is `agent run --dev`, which has one built-in entry and needs no owners.";
    }
}

settings! {
    /// What signs.
    pub struct Authority {
        /// "embedded": a root made by this agent, kept in state_dir. "disk": a root or intermediate from files, so
        /// that several nodes share one trust domain. A change replaces the signing CAs; an embedded root stays in
        /// state_dir, unused, until it ends.
        kind: AuthorityKind = AuthorityKind::Embedded;
        /// The kind of key of authorities and of X509-SVIDs: "ec-p256", "ec-p384" or "rsa-2048".
        key_type: KeyType = KeyType::EcP256;
        /// The kind of key that signs JWT-SVIDs and WIT-SVIDs. Absent: as key_type.
        jwt_key_type: Option<KeyType> = None;
        /// The `iss` claim of JWT-SVIDs, a URL for verifiers that speak OpenID Connect: https://, and no slash at its end.
        /// They look for the keys below it, see docs/outside-services.md. Absent: no `iss`.
        jwt_issuer: Option<String> = None;
        /// How long the embedded root is valid.
        root_ttl: Duration = 365 * DAY;
        /// How long a signing CA is valid. It signs in the first half of that; SVIDs never outlive it.
        ca_ttl: Duration = DAY;
        /// How long a key that signs JWT-SVIDs or WIT-SVIDs is valid.
        jwt_key_ttl: Duration = 30 * DAY;
        /// How long a new authority is published in every bundle before it signs.
        propagation: Duration = Duration::from_secs(10);
        /// The same for keys that sign JWT-SVIDs, which outside services keep for hours. Absent: a day with jwt_issuer (a
        /// sixth of jwt_key_ttl, if that is less), else as propagation.
        jwt_propagation: Option<Duration> = None;
        /// With kind "disk": the CA certificate in PEM, followed by those that lead to the root when it is an
        /// intermediate.
        cert_file: Option<PathBuf> = None;
        /// With kind "disk": its private key, PKCS#8 in PEM, readable by the agent alone.
        key_file: Option<PathBuf> = None;
        /// With kind "disk": the roots in PEM, when cert_file is an intermediate.
        bundle_file: Option<PathBuf> = None;
    }
}

settings! {
    /// The documents that are issued.
    pub struct Svid {
        /// How long an X509-SVID is valid. Renewed at half of it. An entry may say otherwise.
        x509_ttl: Duration = 15 * MINUTE;
        /// How long a JWT-SVID or WIT-SVID is valid. An entry may say otherwise.
        jwt_ttl: Duration = 5 * MINUTE;
        /// The longest that a JWT-SVID for an audience is valid, whatever its entry says; of several audiences the
        /// smallest counts, and "*" stands for those not named: { "https://pay.example.com" = "30s", "*" = "5m" }. In
        /// the environment and with --set: https://pay.example.com=30s,*=5m.
        jwt_ttl_caps: AudienceCaps = AudienceCaps::default();
    }
}

settings! {
    /// Tasks, keys that tether holds for workloads, and proofs made with them: tether.session.v1 on the workload socket.
    pub struct Sessions {
        /// Whether these services are offered.
        enabled: bool = true;
        /// How long a session lasts that does not say.
        default_ttl: Duration = 15 * MINUTE;
        /// How long a session lasts at most, whatever it says.
        max_ttl: Duration = 8 * 60 * MINUTE;
        /// How many sessions may be above one: how often a task can be handed on.
        max_depth: u32 = 8;
        /// Sessions of one uid that have not ended.
        per_uid: u32 = 4_096;
        /// Sessions that have not ended.
        total: u32 = 65_536;
        /// Whose tokens prove a user, by the URL that is their `iss`:
        ///
        /// [sessions.issuers."https://login.example.com"]
        /// audience = "tether", which must be the token's `aud`, and no other beside it;
        /// jwks_url or jwks_file, its keys; absent: where its OpenID Connect discovery document says;
        /// algorithms = ["ES256", "RS256"]; authorized_parties = [..], the clients (`azp`) it may be made for;
        /// max_age, how long ago it may have been issued; max_ttl, how long it proves the user at most;
        /// ca_file, the roots of the issuer's server instead of the host's.
        ///
        /// In the environment and with --set the same as an inline table: { "https://.." = { audience = "tether" } }.
        issuers: IssuerTable = IssuerTable::new();
        /// Other nodes of the trust domain whose sessions tools on this node may be called in: their node ids and where
        /// their agents answer ([http] tls_address). A request of any other node is refused. These nodes also tell each
        /// other what they revoke and which sessions end: configure each at the other. { "NODE" =
        /// "https://node.example.org:9466" }; in the environment and with --set: NODE=https://node.example.org:9466,....
        nodes: NodeUrls = NodeUrls::default();
        /// Where other nodes reach the tls_address of this one: stands in the tokens of sessions. Exactly what their
        /// `nodes` say.
        introspect_url: Option<String> = None;
        /// The programs that are believed about what they launch, which gives launch:* selectors: absolute paths. Empty:
        /// the agent's own program, for `tether run`.
        launchers: Vec<String> = Vec::new();
    }
}

settings! {
    /// The WIT profile of the Workload API. The standard calls it incubating, and asks that it be chosen.
    pub struct Wit {
        /// Whether workloads get WIT-SVIDs and their bundles (FetchWITSVID, FetchWITBundles), and the keys that sign them
        /// are in the published bundle. They live as long as JWT-SVIDs.
        enabled: bool = false;
    }
}

settings! {
    /// Envoy's Secret Discovery Service on the workload socket, see docs/envoy.md. Beside the names below, a SPIFFE ID
    /// names the certificate of that identity, and a trust domain its authorities.
    pub struct Sds {
        /// Whether it is offered.
        enabled: bool = true;
        /// The name of the certificate of a process's default identity.
        default_svid_name: String = "default".to_owned();
        /// The name of the authorities of this trust domain.
        default_bundle_name: String = "ROOTCA".to_owned();
        /// The name of the authorities of this trust domain and those that the process's entries federate with.
        default_all_bundles_name: String = "ALL".to_owned();
        /// Whether revocation lists go along with the authorities of this trust domain. With any, Envoy refuses every peer
        /// whose CA has none, and an agent has the lists of its own CAs alone. "auto": when no other node issues in the
        /// trust domain, as far as its bundle tells: with authority.kind "embedded" and no further authority set. "always":
        /// also with kind "disk", for a trust domain of one node. "never".
        crl: SdsCrl = SdsCrl::Auto;
    }
}

settings! {
    /// The Unix sockets.
    pub struct Listen {
        /// The SPIFFE Workload API, open to everyone on this host: who may have what is decided by attestation.
        /// Containers mount its directory, never the socket, so it shares that directory with nothing.
        workload: PathBuf = PathBuf::from("/run/tether/workload/workload.sock");
        /// Administration. Who may do what is decided by the [admin] groups.
        admin: PathBuf = PathBuf::from("/run/tether/admin/admin.sock");
        /// SVIDs as systemd credentials: what units name in LoadCredential=, usually "/run/tether/credentials.sock".
        /// Only systemd itself is answered, see docs/systemd-credentials.md. Absent: nowhere.
        credentials: Option<PathBuf> = None;
    }
}

settings! {
    /// Over HTTP: health and metrics (/livez, /readyz, /readyz/{part}, /metrics), and with sessions introspection
    /// (POST /introspect, RFC 7662) for tools of this host.
    pub struct Http {
        /// Where to listen, for example "127.0.0.1:9465". Absent: nowhere.
        address: Option<SocketAddr> = None;
        /// Allow an address that other hosts can reach. Health and metrics need no authentication.
        allow_remote: bool = false;
        /// Where tools with an SVID and other nodes ask about requests of sessions, for example "0.0.0.0:9466": mutual
        /// TLS with the agent's own SVID. Absent: nowhere.
        tls_address: Option<SocketAddr> = None;
    }
}

settings! {
    /// What one caller can take from the others. Reaching a limit refuses with a message and is counted.
    pub struct Limits {
        /// Open connections on the workload socket.
        connections: u32 = 16_384;
        /// Of these, how many one uid may have.
        connections_per_uid: u32 = 4_096;
        /// Calls in progress on one connection, streams included.
        streams_per_connection: u32 = 256;
        /// Calls in progress on the workload socket, streams included.
        calls: u32 = 16_384;
        /// Of these, how many one uid may have.
        calls_per_uid: u32 = 4_096;
        /// The largest request on the workload socket.
        workload_message: ByteSize = ByteSize::kib(32);
        /// The largest request on the admin socket: a whole set of entries has to fit.
        admin_message: ByteSize = ByteSize::mib(64);
        /// Attestations in progress at one time.
        attestations: u32 = 64;
        /// Of these, how many one uid may cause.
        attestations_per_uid: u32 = 16;
        /// Credentials of one uid that have not expired. Each takes some 300 bytes of memory.
        credentials_per_uid: u32 = 1_000_000;
        /// Certificates of one uid that have not expired, with keys in workloads: each can come to stand on a revocation
        /// list, which travels with every bundle.
        certificates_per_uid: u32 = 16_384;
        /// How long a connection may take to show who sends on it before it is closed.
        half_open: Duration = Duration::from_secs(10);
        /// How long open calls may go on after the agent was told to stop.
        drain: Duration = Duration::from_secs(5);
    }
}

settings! {
    /// How a process is examined.
    pub struct Attest {
        /// How long one attestor may take. Entries that need what it could not say are unavailable to the caller.
        deadline: Duration = Duration::from_secs(1);
        section unix: AttestUnix;
        section systemd: AttestSystemd;
        section docker: AttestDocker;
        section podman: AttestPodman;
        section peer: AttestPeer;
    }
}

settings! {
    /// Selectors unix:*.
    pub struct AttestUnix {
        /// Executables above this size get no unix:sha256; entries that need one are unavailable to them.
        max_hash: ByteSize = ByteSize::mib(1024);
        /// How long the names of users and groups are remembered.
        name_cache: Duration = MINUTE;
    }
}

settings! {
    /// Selectors systemd:*.
    pub struct AttestSystemd {
        /// The D-Bus address systemd is asked at. Absent: DBUS_SYSTEM_BUS_ADDRESS, else the system bus.
        bus_address: Option<String> = None;
    }
}

settings! {
    /// Selectors docker:*, see docs/containers.md.
    pub struct AttestDocker {
        /// Docker's socket, usually "/run/docker.sock". It and everything on the way to it belong to root, and root's
        /// process answers, or it is not asked. The agent needs its group, which makes the agent as powerful as root.
        /// Absent: docker is not asked, and entries that need docker:* are unavailable to processes in its containers.
        socket: Option<PathBuf> = None;
        /// The directories of control groups directly below which docker puts containers: those of `--cgroup-parent`. In a
        /// path, `*` stands for a part of one name. Only where root alone may write to all of them.
        cgroup_parents: Vec<String> = usual_parents(Engine::Docker);
    }
}

settings! {
    /// Selectors podman:*, for containers that root runs, see docs/containers.md.
    pub struct AttestPodman {
        /// The socket of root's podman, usually "/run/podman/podman.sock". The same holds for it as for docker's.
        socket: Option<PathBuf> = None;
        /// The directories of control groups directly below which podman puts containers; as for docker.
        cgroup_parents: Vec<String> = usual_parents(Engine::Podman);
    }
}

fn usual_parents(engine: Engine) -> Vec<String> {
    engine.usual_parents().iter().map(|parent| (*parent).to_owned()).collect()
}

settings! {
    /// How the process behind a connection is held.
    pub struct AttestPeer {
        /// "auto": everything the kernel offers. "baseline": as if the kernel were older than 6.5, which makes every
        /// instance weak; for tests.
        kernel: KernelInterfaces = KernelInterfaces::Auto;
    }
}

settings! {
    /// Who may use the admin socket, by Unix group (name or number). Root, and the user the agent runs as, may do
    /// everything.
    pub struct Admin {
        /// May look: status, entries, credentials, authorities, bundles, and explain for any process.
        viewers: Vec<String> = vec!["tether-viewers".to_owned()];
        /// May also change them, and end sessions.
        operators: Vec<String> = vec!["tether-admin".to_owned()];
        /// May look, and approve what policy wants a person's word for; never what is asked by a process of their own user
        /// id, or for themselves. Approvers may not change anything, and operators may not approve.
        approvers: Vec<String> = vec!["tether-approvers".to_owned()];
    }
}

settings! {
    /// The audit log: a chain of records in files, see docs/audit.md.
    pub struct Audit {
        /// Where its files are, in a directory of mode 0700 that is the agent's alone. Absent: "audit" in state_dir. The file
        /// `audit.head` in state_dir says which record was the last.
        dir: Option<PathBuf> = None;
        /// A file that has reached this size is left alone, and a new one begun.
        rotate: ByteSize = ByteSize::mib(64);
        /// How many files are kept: with more, the oldest is removed, and a record says so. At least 2.
        keep: u32 = 16;
        /// How long a record is kept at most; files are removed whole, so some go up to a quarter earlier. Absent: as long
        /// as `keep` allows.
        keep_for: Option<Duration> = None;
        /// What happens when a record cannot be written, as on a full disk: "refuse" lets nothing happen that would not be
        /// recorded, so nothing is issued; with "alarm" it happens, and how many records are lost is recorded afterwards. In
        /// both cases the agent is not ready and says why.
        on_failure: OnAuditFailure = OnAuditFailure::Refuse;
    }
}

settings! {
    /// The log, on standard error. Never holds keys or tokens. Nothing waits for its reader: what it does not take in time
    /// is lost, and counted.
    pub struct Log {
        /// A level (error, warn, info, debug, trace), or one for each part: "info,tether::peer=trace". `tether log
        /// level` changes it until the next start.
        level: LogFilter = LogFilter::info();
        /// "text", "json", or "auto": entries of the journal with fields, such as TETHER_SPIFFE_ID,
        /// where standard error is the journal, and text elsewhere.
        format: telemetry::Format = telemetry::Format::Auto;
    }
}

impl Config {
    /// The configuration `agent run --dev` starts from: no file, no root, everything under `dir`.
    ///
    /// The one entry such an agent begins with is made by the agent, which sees [`Config::dev`].
    pub fn for_dev(dir: &Path) -> Self {
        let mut config = Self {
            trust_domain: TrustDomain::parse(DEV_TRUST_DOMAIN).expect("the name is legal; a test starts from it"),
            state_dir: dir.join("state"),
            entries_dir: dir.join("entries.d"),
            policies_dir: dir.join("policies"),
            dev: true,
            ..Self::default()
        };
        config.listen.workload = dir.join("workload/workload.sock");
        config.listen.admin = dir.join("admin/admin.sock");
        // Groups of an installed agent mean nothing here: the agent's own user may do everything.
        config.admin = Admin { viewers: Vec::new(), operators: Vec::new(), approvers: Vec::new() };
        config
    }
}

/// Where an agent started with `--dev` by `uid` may have its directory; it takes the first one.
pub fn dev_directories(env: &BTreeMap<String, String>, uid: u32) -> Vec<PathBuf> {
    let runtime = env.get("XDG_RUNTIME_DIR").filter(|dir| dir.starts_with('/'));
    let runtime = runtime.map(|dir| Path::new(dir).join("tether-dev"));
    runtime.into_iter().chain([PathBuf::from(format!("/tmp/tether-dev-{uid}"))]).collect()
}
