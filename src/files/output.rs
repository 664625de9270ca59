//! One output: which files of what, in which directory, for whom, and who is told.

use std::collections::HashSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::{Group, User};
use serde::{Deserialize, Deserializer};
use thiserror::Error;

use super::reload::Reload;
use crate::base::durable::{self, DurableError};
use crate::base::secret::Secret;
use crate::bundle::oidc::IssuerUrl;
use crate::client::export::Choice;
use crate::id::SpiffeId;
use crate::x509::pkcs12::{Password, Pkcs12Error};

/// How long a command may take, where nothing else is said.
const EXEC_TIMEOUT: Duration = Duration::from_secs(30);
/// Stands for the name of a trust domain in the names of federated bundles.
pub(super) const TRUST_DOMAIN: &str = "{trust_domain}";
/// The longest file with a password.
const MAX_PASSWORD_FILE: u64 = 4096;
/// Readable or writable by everybody.
const OTHERS: u32 = 0o007;

/// What a file has in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// The SVID and its intermediates, the leaf first, in PEM.
    Certificate,
    /// Its key: PKCS#8 in PEM.
    Key,
    /// The authorities to believe, in PEM.
    Bundle,
    /// Key, SVID and intermediates in one PEM file: no two files that could not belong together.
    Combined,
    /// The key as PKCS#8 in DER.
    KeyDer,
    /// Key, SVID and intermediates as PKCS#12.
    Pkcs12,
    /// The authorities to believe as PKCS#12, as Java's trust stores have them.
    TrustStore,
    /// All revocation lists the agent has, in PEM.
    Crl,
    /// The keys of JWT-SVIDs of the SVID's own trust domain, as a JWK Set.
    Jwks,
    /// The keys of JWT-SVIDs of all trust domains, as spiffe-helper writes them.
    JwtBundles,
    /// The bundle of the SVID's own trust domain as SPIFFE writes it.
    SpiffeBundle,
    /// The discovery document of OpenID Connect for the tokens of the SVID's own trust domain.
    OidcDiscovery,
    /// The keys of those tokens, as the discovery document names them.
    OidcJwks,
    /// The authorities of each other trust domain, in PEM; its name is in the file's name.
    Federated,
    /// A JWT-SVID for these audiences.
    Jwt(Vec<String>),
}

impl Part {
    /// Whether whoever reads it can pretend to be the workload.
    pub fn is_secret(&self) -> bool {
        matches!(self, Self::Key | Self::Combined | Self::KeyDer | Self::Pkcs12 | Self::Jwt(_))
    }

    fn needs_issuer(&self) -> bool {
        matches!(self, Self::OidcDiscovery)
    }

    fn needs_password(&self) -> bool {
        matches!(self, Self::Pkcs12 | Self::TrustStore)
    }
}

/// A file of an output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FileSpec {
    pub(super) part: Part,
    pub(super) name: String,
    pub(super) mode: u32,
}

/// How the files of a set take the place of those before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// All at once: names are links through one link that is pointed elsewhere.
    #[default]
    Swap,
    /// One after the other, each by a rename.
    Plain,
}

/// Names that programs expect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Names {
    /// `svid.pem`, `svid_key.pem`, `bundle.pem`.
    Svid,
    /// `tls.crt`, `tls.key`, `ca.crt`.
    Tls,
}

impl Names {
    fn files(self) -> [(Part, &'static str); 3] {
        let [certificate, key, bundle] = match self {
            Self::Svid => ["svid.pem", "svid_key.pem", "bundle.pem"],
            Self::Tls => ["tls.crt", "tls.key", "ca.crt"],
        };
        [(Part::Key, key), (Part::Certificate, certificate), (Part::Bundle, bundle)]
    }
}

/// The mode of a file, as `chmod` takes it: three or four octal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode(pub u32);

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let octal = matches!(text.len(), 3 | 4) && text.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
        let mode = u32::from_str_radix(text, 8).ok().filter(|mode| octal && *mode <= 0o777);
        mode.map(Self).ok_or_else(|| format!("`{text}` is no mode of a file: write for example `0640`"))
    }
}

impl<'de> Deserialize<'de> for Mode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A signal by its name, with or without `SIG` in front.
///
/// # Errors
/// There is no such signal.
pub fn signal(text: &str) -> Result<Signal, String> {
    let upper = text.to_ascii_uppercase();
    let name = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    Signal::from_str(&name).map_err(|_| format!("`{text}` is no signal: write for example `HUP`"))
}

fn optional_signal<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Signal>, D::Error> {
    signal(&String::deserialize(deserializer)?).map(Some).map_err(serde::de::Error::custom)
}

fn optional_issuer<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<IssuerUrl>, D::Error> {
    IssuerUrl::parse(&String::deserialize(deserializer)?).map(Some).map_err(serde::de::Error::custom)
}

fn optional_id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SpiffeId>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let not_one = |error| serde::de::Error::custom(format!("`{text}` is not a SPIFFE ID: {error}"));
    SpiffeId::parse(&text).map(Some).map_err(not_one)
}

/// An output as somebody wrote it down: an `[[output]]` table, or flags.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Draft {
    /// Where the files go.
    pub directory: PathBuf,
    /// Which identity.
    #[serde(deserialize_with = "optional_id")]
    pub spiffe_id: Option<SpiffeId>,
    /// Which identity, by its hint.
    pub hint: Option<String>,
    /// How a set takes the place of the one before.
    pub layout: Layout,
    /// A set of names.
    pub names: Option<Names>,
    /// Other files, or other names.
    pub files: FileNames,
    /// JWT-SVIDs.
    pub jwt: Vec<JwtDraft>,
    /// Whether the bundle has the authorities of federated trust domains too.
    pub federated_in_bundle: bool,
    /// Whether the bundle has the intermediates, which the certificate then lacks.
    pub intermediates_in_bundle: bool,
    /// Whether authorities that have expired are left out.
    pub omit_expired: bool,
    /// The mode of what everybody may read.
    pub mode: Option<Mode>,
    /// The mode of keys and tokens.
    pub key_mode: Option<Mode>,
    /// Keys and tokens may be readable by everybody on the host.
    pub world_readable_keys: bool,
    /// Whose files they are.
    pub owner: Option<String>,
    /// Whose group's.
    pub group: Option<String>,
    /// The file with the password of PKCS#12.
    pub password_file: Option<PathBuf>,
    /// The `iss` of JWT-SVIDs, below which discovery document and keys are published.
    #[serde(deserialize_with = "optional_issuer")]
    pub oidc_issuer: Option<IssuerUrl>,
    /// The signal that is sent to the process in `pid_file`.
    #[serde(deserialize_with = "optional_signal")]
    pub signal: Option<Signal>,
    /// The file with the number of the process.
    pub pid_file: Option<PathBuf>,
    /// The name that process must have.
    pub process: Option<String>,
    /// The command that is run.
    pub exec: Vec<String>,
    /// How long it may take, in seconds.
    pub exec_timeout_seconds: Option<u64>,
    /// The systemd unit that is reloaded.
    pub systemd_reload: Option<String>,
}

/// Names of files by what is in them.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FileNames {
    /// [`Part::Certificate`].
    pub certificate: Option<String>,
    /// [`Part::Key`].
    pub key: Option<String>,
    /// [`Part::Bundle`].
    pub bundle: Option<String>,
    /// [`Part::Combined`].
    pub combined: Option<String>,
    /// [`Part::KeyDer`].
    pub key_der: Option<String>,
    /// [`Part::Pkcs12`].
    pub pkcs12: Option<String>,
    /// [`Part::TrustStore`].
    pub truststore: Option<String>,
    /// [`Part::Crl`].
    pub crl: Option<String>,
    /// [`Part::Jwks`].
    pub jwks: Option<String>,
    /// [`Part::SpiffeBundle`].
    pub spiffe_bundle: Option<String>,
    /// [`Part::OidcDiscovery`].
    pub oidc_discovery: Option<String>,
    /// [`Part::OidcJwks`].
    pub oidc_jwks: Option<String>,
    /// [`Part::Federated`], with `{trust_domain}` in the name.
    pub federated: Option<String>,
}

impl FileNames {
    fn named(self) -> Vec<(Part, String)> {
        let all = [
            (Part::Key, self.key),
            (Part::Certificate, self.certificate),
            (Part::Bundle, self.bundle),
            (Part::Combined, self.combined),
            (Part::KeyDer, self.key_der),
            (Part::Pkcs12, self.pkcs12),
            (Part::TrustStore, self.truststore),
            (Part::Crl, self.crl),
            (Part::Jwks, self.jwks),
            (Part::SpiffeBundle, self.spiffe_bundle),
            (Part::OidcDiscovery, self.oidc_discovery),
            (Part::OidcJwks, self.oidc_jwks),
            (Part::Federated, self.federated),
        ];
        all.into_iter().filter_map(|(part, name)| Some((part, name?))).collect()
    }

    /// Sets the name of one kind, as `KIND=NAME` on a command line has it.
    ///
    /// # Errors
    /// There is no such kind.
    pub fn set(&mut self, text: &str) -> Result<(), String> {
        let kinds = "certificate, key, bundle, combined, key_der, pkcs12, truststore, crl, jwks, spiffe_bundle, \
                     oidc_discovery, oidc_jwks, federated";
        let wrong = || format!("`{text}` is not KIND=NAME, with one of the kinds {kinds}");
        let (kind, name) = text.split_once('=').ok_or_else(wrong)?;
        let place = match kind {
            "certificate" => &mut self.certificate,
            "key" => &mut self.key,
            "bundle" => &mut self.bundle,
            "combined" => &mut self.combined,
            "key_der" => &mut self.key_der,
            "pkcs12" => &mut self.pkcs12,
            "truststore" => &mut self.truststore,
            "crl" => &mut self.crl,
            "jwks" => &mut self.jwks,
            "spiffe_bundle" => &mut self.spiffe_bundle,
            "oidc_discovery" => &mut self.oidc_discovery,
            "oidc_jwks" => &mut self.oidc_jwks,
            "federated" => &mut self.federated,
            _ => return Err(wrong()),
        };
        *place = Some(name.to_owned());
        Ok(())
    }
}

/// A JWT-SVID as somebody wrote it down.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JwtDraft {
    /// Whom it is for.
    pub audience: Vec<String>,
    /// The name of its file.
    pub file: String,
}

/// Why an output cannot be.
#[derive(Debug, Error)]
pub enum OutputError {
    /// There is no directory.
    #[error("`directory` is missing: name where the files go")]
    NoDirectory,
    /// Both `spiffe_id` and `hint`.
    #[error("`spiffe_id` and `hint` both choose the identity: leave one out")]
    TwoChoices,
    /// A name that is not one component, or that the layout needs itself.
    #[error("`{0}` is no name of a file in the directory: one without `/` that does not begin with `..`")]
    Name(String),
    /// Two files of one name.
    #[error("two files are called `{0}`")]
    Twice(String),
    /// The names of federated bundles do not differ.
    #[error("the name of federated bundles needs `{{trust_domain}}` in it, and no other name may have it")]
    Federated,
    /// A key that everybody could read.
    #[error(
        "`{name}` would be readable by everybody (mode {mode:04o}), and whoever reads it is the workload: give it a group, or say `world_readable_keys`"
    )]
    WorldReadable {
        /// The file.
        name: String,
        /// Its mode.
        mode: u32,
    },
    /// There is no such user.
    #[error("there is no user `{0}`")]
    User(String),
    /// There is no such group.
    #[error("there is no group `{0}`")]
    Group(String),
    /// PKCS#12 without a password.
    #[error("PKCS#12 needs a password: name the file that has it as `password_file`")]
    NoPassword,
    /// A discovery document of nobody.
    #[error(
        "a discovery document needs the issuer of the tokens, `oidc_issuer`: what `authority.jwt_issuer` is to the agent"
    )]
    NoIssuer,
    /// The password cannot be read.
    #[error("the password cannot be read")]
    PasswordFile(#[from] DurableError),
    /// The password is not one for PKCS#12.
    #[error("the password of `{}` cannot be used", path.display())]
    Password {
        /// Its file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Pkcs12Error,
    },
    /// A token for nobody.
    #[error("the token `{0}` has no audience")]
    NoAudience(String),
    /// One half of a whole.
    #[error("`{have}` says nothing without `{missing}`")]
    Half {
        /// What is there.
        have: &'static str,
        /// What is not.
        missing: &'static str,
    },
}

/// An output that can be.
#[derive(Debug)]
pub struct Output {
    pub(super) directory: PathBuf,
    pub(super) choice: Choice,
    pub(super) layout: Layout,
    pub(super) files: Vec<FileSpec>,
    pub(super) federated_in_bundle: bool,
    pub(super) intermediates_in_bundle: bool,
    pub(super) omit_expired: bool,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) password: Option<Password>,
    pub(super) issuer: Option<IssuerUrl>,
    pub(super) reloads: Vec<Reload>,
}

impl Output {
    /// Checks what somebody wrote down. Users, groups and the password are looked up now.
    pub fn new(draft: Draft) -> Result<Self, OutputError> {
        if draft.directory.as_os_str().is_empty() {
            return Err(OutputError::NoDirectory);
        }
        let choice = match (draft.spiffe_id, draft.hint) {
            (Some(_), Some(_)) => return Err(OutputError::TwoChoices),
            (Some(id), None) => Choice::Id(id),
            (None, Some(hint)) => Choice::Hint(hint),
            (None, None) => Choice::Default,
        };
        let reloads = reloads(
            draft.signal,
            draft.pid_file,
            draft.process,
            draft.exec,
            draft.exec_timeout_seconds,
            draft.systemd_reload,
        )?;
        let modes = (draft.mode.map_or(0o644, |mode| mode.0), draft.key_mode.map_or(0o600, |mode| mode.0));
        let files = file_specs(draft.names, draft.files, draft.jwt, modes)?;
        let (uid, gid) = (draft.owner.map(user).transpose()?, draft.group.map(group).transpose()?);
        let password = draft.password_file.map(|path| password(&path)).transpose()?;
        let output = Self {
            directory: draft.directory,
            choice,
            layout: draft.layout,
            files,
            federated_in_bundle: draft.federated_in_bundle,
            intermediates_in_bundle: draft.intermediates_in_bundle,
            omit_expired: draft.omit_expired,
            uid,
            gid,
            password,
            issuer: draft.oidc_issuer,
            reloads,
        };
        output.check(draft.world_readable_keys)?;
        Ok(output)
    }

    /// What holds of every output, wherever it was written down.
    pub(super) fn check(&self, world_readable_keys: bool) -> Result<(), OutputError> {
        let mut seen = HashSet::new();
        for FileSpec { part, name, mode } in &self.files {
            let legal = !name.is_empty() && !name.contains(['/', '\0']) && name != "." && !name.starts_with("..");
            if !legal {
                return Err(OutputError::Name(name.clone()));
            }
            if name.contains(TRUST_DOMAIN) != (*part == Part::Federated) {
                return Err(OutputError::Federated);
            }
            if !seen.insert(name) {
                return Err(OutputError::Twice(name.clone()));
            }
            if part.is_secret() && mode & OTHERS != 0 && !world_readable_keys {
                return Err(OutputError::WorldReadable { name: name.clone(), mode: *mode });
            }
            if part.needs_password() && self.password.is_none() {
                return Err(OutputError::NoPassword);
            }
            if part.needs_issuer() && self.issuer.is_none() {
                return Err(OutputError::NoIssuer);
            }
            if matches!(part, Part::Jwt(audience) if audience.is_empty()) {
                return Err(OutputError::NoAudience(name.clone()));
            }
        }
        Ok(())
    }

    /// Where its files go.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Whether anything in it is made from an X.509-SVID or a bundle; tokens alone need none.
    pub(super) fn needs_x509(&self) -> bool {
        self.files.iter().any(|file| !matches!(file.part, Part::Jwt(_)))
    }

    /// The audiences of its tokens, in the order of its files.
    pub(super) fn audiences(&self) -> impl Iterator<Item = &Vec<String>> {
        self.files.iter().filter_map(|file| match &file.part {
            Part::Jwt(audience) => Some(audience),
            _ => None,
        })
    }
}

fn file_specs(
    names: Option<Names>,
    files: FileNames,
    tokens: Vec<JwtDraft>,
    (mode, key_mode): (u32, u32),
) -> Result<Vec<FileSpec>, OutputError> {
    let given = files.named();
    let names = match names {
        None if given.is_empty() && tokens.is_empty() => Some(Names::Svid),
        names => names,
    };
    let expected =
        names.into_iter().flat_map(Names::files).filter(|(part, _)| given.iter().all(|(own, _)| own != part));
    let expected: Vec<(Part, String)> = expected.map(|(part, name)| (part, name.to_owned())).collect();
    let tokens = tokens.into_iter().map(|token| (Part::Jwt(token.audience), token.file));
    let all = expected.into_iter().chain(given).chain(tokens);
    let spec = |(part, name): (Part, String)| {
        let mode = if part.is_secret() { key_mode } else { mode };
        FileSpec { part, name, mode }
    };
    Ok(all.map(spec).collect())
}

fn reloads(
    signal: Option<Signal>,
    pid_file: Option<PathBuf>,
    process: Option<String>,
    exec: Vec<String>,
    exec_timeout: Option<u64>,
    unit: Option<String>,
) -> Result<Vec<Reload>, OutputError> {
    let half = |have, missing| OutputError::Half { have, missing };
    let mut reloads = Vec::new();
    match (signal, pid_file, process) {
        (Some(signal), Some(pid_file), process) => reloads.push(Reload::Signal { signal, pid_file, process }),
        (Some(_), None, _) => return Err(half("signal", "pid_file")),
        (None, Some(_), _) => return Err(half("pid_file", "signal")),
        (None, None, Some(_)) => return Err(half("process", "signal")),
        (None, None, None) => {}
    }
    match (exec.is_empty(), exec_timeout) {
        (true, Some(_)) => return Err(half("exec_timeout_seconds", "exec")),
        (true, None) => {}
        (false, seconds) => reloads.push(Reload::Exec {
            argv: exec.into_iter().map(OsString::from).collect(),
            timeout: seconds.map_or(EXEC_TIMEOUT, Duration::from_secs),
        }),
    }
    reloads.extend(unit.map(Reload::Unit));
    Ok(reloads)
}

fn user(name: String) -> Result<u32, OutputError> {
    match name.parse() {
        Ok(uid) => Ok(uid),
        Err(_) => match User::from_name(&name) {
            Ok(Some(user)) => Ok(user.uid.as_raw()),
            _ => Err(OutputError::User(name)),
        },
    }
}

fn group(name: String) -> Result<u32, OutputError> {
    match name.parse() {
        Ok(gid) => Ok(gid),
        Err(_) => match Group::from_name(&name) {
            Ok(Some(group)) => Ok(group.gid.as_raw()),
            _ => Err(OutputError::Group(name)),
        },
    }
}

fn password(path: &Path) -> Result<Password, OutputError> {
    let wrong = |source| OutputError::Password { path: path.to_owned(), source };
    let content = Secret::new(durable::read(path, MAX_PASSWORD_FILE)?);
    let text = std::str::from_utf8(content.expose()).map_err(|_| wrong(Pkcs12Error::Password))?;
    let text = Secret::new(text.trim_end_matches(['\r', '\n']).to_owned());
    Password::new(text).map_err(wrong)
}
