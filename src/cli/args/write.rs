//! `tether write`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgAction, ArgGroup, Args, ValueEnum};
use nix::sys::signal::Signal;

use crate::bundle::oidc::IssuerUrl;
use crate::files::{FileNames, Layout, Mode, Names, signal};
use crate::id::SpiffeId;

/// Which files, where, for whom, and who is told.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("source").required(true).args(["config", "spiffe_helper", "directory"]))]
pub struct WriteArgs {
    /// Several outputs: a file with `[[output]]` tables.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The configuration of spiffe-helper, as it is.
    #[arg(long, value_name = "FILE")]
    pub spiffe_helper: Option<PathBuf>,
    /// One output: the directory for its files. Nobody but root, you and --owner may be able to change what is in it.
    #[arg(long, value_name = "DIR")]
    pub directory: Option<PathBuf>,
    /// Write once and end; what fails is not tried again.
    #[arg(long)]
    pub once: bool,
    /// How a new set of files takes the place of the old one [default: swap].
    #[arg(long, value_enum, conflicts_with = "config")]
    pub layout: Option<LayoutName>,
    /// The one output.
    #[command(flatten)]
    pub one: OneOutput,
}

/// How a set takes the place of the one before.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LayoutName {
    /// All at once: the names are links through one link that is pointed elsewhere.
    Swap,
    /// One after the other, each by a rename: for programs that do not take links.
    Plain,
}

impl From<LayoutName> for Layout {
    fn from(name: LayoutName) -> Self {
        match name {
            LayoutName::Swap => Self::Swap,
            LayoutName::Plain => Self::Plain,
        }
    }
}

/// A set of file names.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum NamesName {
    /// svid.pem, svid_key.pem, bundle.pem.
    Svid,
    /// tls.crt, tls.key, ca.crt.
    Tls,
}

impl From<NamesName> for Names {
    fn from(name: NamesName) -> Self {
        match name {
            NamesName::Svid => Self::Svid,
            NamesName::Tls => Self::Tls,
        }
    }
}

/// The flags of one output.
#[derive(Debug, Args)]
pub struct OneOutput {
    /// The identity; without it, the first whose entry is exportable.
    #[arg(long, value_name = "SPIFFE_ID", requires = "directory", conflicts_with = "hint")]
    pub spiffe_id: Option<SpiffeId>,
    /// The identity with this hint.
    #[arg(long, requires = "directory")]
    pub hint: Option<String>,
    /// Certificate, key and bundle under the names a program expects [default: svid, if no file is named].
    #[arg(long, value_enum, requires = "directory")]
    pub names: Option<NamesName>,
    /// A file by what is in it: certificate, key, bundle, combined (key and chain in one), key_der, pkcs12, truststore,
    /// crl, jwks, spiffe_bundle, oidc_discovery and oidc_jwks (for outside services), federated (with {trust_domain} in its
    /// name). Can be repeated.
    #[arg(long = "file", value_name = "KIND=NAME", requires = "directory", action = ArgAction::Append)]
    pub files: Vec<String>,
    /// A JWT-SVID for an audience, in a file. Repeated with the same file, it is for all of the audiences.
    #[arg(long, value_name = "NAME=AUDIENCE", value_parser = token, requires = "directory", action = ArgAction::Append)]
    pub jwt: Vec<(String, String)>,
    /// The mode of certificates, bundles and lists [default: 0644].
    #[arg(long, requires = "directory")]
    pub mode: Option<Mode>,
    /// The mode of keys and tokens [default: 0600].
    #[arg(long, value_name = "MODE", requires = "directory")]
    pub key_mode: Option<Mode>,
    /// Let everybody on this host read keys and tokens, where --key-mode says so.
    #[arg(long, requires = "key_mode")]
    pub world_readable_keys: bool,
    /// Whose files they are: a name or a number.
    #[arg(long, value_name = "USER", requires = "directory")]
    pub owner: Option<String>,
    /// Whose group's they are.
    #[arg(long, requires = "directory")]
    pub group: Option<String>,
    /// The file with the password of PKCS#12.
    #[arg(long, value_name = "FILE", requires = "directory")]
    pub password_file: Option<PathBuf>,
    /// The `iss` of JWT-SVIDs, for --file oidc_discovery=NAME.
    #[arg(long, value_name = "URL", value_parser = IssuerUrl::parse, requires = "directory")]
    pub oidc_issuer: Option<IssuerUrl>,
    /// Put the authorities of federated trust domains into the bundle too.
    #[arg(long, requires = "directory")]
    pub federated_in_bundle: bool,
    /// Send this signal to the process in --pid-file, if it handles it.
    #[arg(long, value_name = "NAME", value_parser = signal, requires = "pid_file")]
    pub signal: Option<Signal>,
    /// The file with the number of the process to signal.
    #[arg(long, value_name = "FILE", requires = "signal")]
    pub pid_file: Option<PathBuf>,
    /// The name the process must have, so that the signal goes to no other one with its number.
    #[arg(long, value_name = "NAME", requires = "signal")]
    pub process: Option<String>,
    /// Reload this systemd unit, or restart it where it cannot be reloaded, if it runs.
    #[arg(long, value_name = "UNIT", requires = "directory")]
    pub systemd_reload: Option<String>,
    /// Run the command after `--`; no shell.
    #[arg(long, requires_all = ["directory", "command"])]
    pub exec: bool,
    /// How long the command may take, in seconds [default: 30].
    #[arg(long, value_name = "SECONDS", requires = "exec")]
    pub exec_timeout: Option<u64>,
    /// The command of --exec and its arguments.
    #[arg(last = true, value_name = "COMMAND", requires = "exec")]
    pub command: Vec<OsString>,
}

impl OneOutput {
    /// The names in --file.
    pub fn names_of_files(&self) -> Result<FileNames, String> {
        let mut names = FileNames::default();
        self.files.iter().try_for_each(|text| names.set(text))?;
        Ok(names)
    }
}

fn token(text: &str) -> Result<(String, String), String> {
    let (file, audience) =
        text.split_once('=').ok_or("write NAME=AUDIENCE, for example token=https://api.example.com")?;
    Ok((file.to_owned(), audience.to_owned()))
}
