//! The configuration of spiffe-helper, read as it is: what its keys mean is what they mean there (versions 0.6 to 0.11).
//!
//! The names that its version 0.8 gave up are read too. What this program does not have is named in a warning; a key that
//! no version knows is a mistake.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::config::{text, with_cause};
use super::hcl::{self, Item, Value};
use super::output::{FileSpec, Layout, Output, Part, signal};
use super::reload::Reload;
use crate::base::mistake::{Lines, Mistake};
use crate::client::export::Choice;

/// A configuration of spiffe-helper as one of ours.
#[derive(Debug)]
pub struct Migrated {
    /// Its one output.
    pub output: Output,
    /// The agent's socket, where the file names one.
    pub socket: Option<String>,
    /// Whether it is written once and no more (`daemon_mode = false`).
    pub once: bool,
    /// What is different here, by the names of the keys.
    pub warnings: Vec<String>,
}

/// What the file says, by key.
#[derive(Default)]
struct Raw {
    agent_address: Option<String>,
    cmd: Option<String>,
    cmd_args: Option<String>,
    pid_file_name: Option<String>,
    cert_dir: Option<String>,
    renew_signal: Option<String>,
    hint: Option<String>,
    svid_file_name: Option<String>,
    svid_key_file_name: Option<String>,
    svid_bundle_file_name: Option<String>,
    jwt_bundle_file_name: Option<String>,
    jwt_svids: Vec<(Vec<String>, String)>,
    cert_file_mode: Option<u32>,
    key_file_mode: Option<u32>,
    jwt_bundle_file_mode: Option<u32>,
    jwt_svid_file_mode: Option<u32>,
    add_intermediates_to_bundle: bool,
    include_federated_domains: bool,
    omit_expired: bool,
    daemon_mode: Option<bool>,
    listens: bool,
}

/// Names from before version 0.8, which wrote them in camel case.
const FORMER: [(&str, &str); 10] = [
    ("agentAddress", "agent_address"),
    ("cmdArgs", "cmd_args"),
    ("certDir", "cert_dir"),
    ("renewSignal", "renew_signal"),
    ("svidFileName", "svid_file_name"),
    ("svidKeyFileName", "svid_key_file_name"),
    ("svidBundleFileName", "svid_bundle_file_name"),
    ("jwtBundleFileName", "jwt_bundle_file_name"),
    ("addIntermediatesToBundle", "add_intermediates_to_bundle"),
    ("includeFederatedDomains", "include_federated_domains"),
];

/// Reads such a file. Names of files are below `cert_dir`, which is relative to where this runs, as there.
///
/// # Errors
/// The first thing that is wrong with it, and where.
pub fn read(path: &Path, layout: Layout) -> Result<Migrated, Mistake> {
    let text = text(path)?;
    let place = |at: usize, message: String| {
        let (line, column) = Lines::new(&text).position(at);
        Mistake { path: Arc::from(path), line, column, message }
    };
    let items = hcl::parse(&text).map_err(|error| place(error.at, error.to_string()))?;
    let mut raw = Raw::default();
    let mut warnings = Vec::new();
    for item in &items {
        raw.take(item, &mut warnings).map_err(|message| place(item.at, message))?;
    }
    raw.migrate(layout, warnings).map_err(|message| Mistake::whole(path, message))
}

fn wanted<T>(item: &Item, what: &str, found: Option<T>) -> Result<T, String> {
    found.ok_or_else(|| format!("`{}` must be {what}, and is {}", item.name, item.value))
}

fn string(item: &Item) -> Result<Option<String>, String> {
    let found = match &item.value {
        Value::Text(text) => Some(text.clone()),
        _ => None,
    };
    // An empty one counts as none, as there.
    wanted(item, "a text", found).map(|text| Some(text).filter(|text| !text.is_empty()))
}

fn boolean(item: &Item) -> Result<bool, String> {
    let found = match &item.value {
        Value::Bool(value) => Some(*value),
        Value::Text(text) => text.parse().ok(),
        _ => None,
    };
    wanted(item, "true or false", found)
}

fn mode(item: &Item) -> Result<Option<u32>, String> {
    let found = match &item.value {
        Value::Number(number) => u32::try_from(*number).ok().filter(|mode| *mode <= 0o777),
        _ => None,
    };
    let what = "a mode of a file, such as 0644 (with the zero: else it is no octal number)";
    // Zero counts as none, as there.
    wanted(item, what, found).map(|mode| Some(mode).filter(|mode| *mode != 0))
}

impl Raw {
    fn take(&mut self, item: &Item, warnings: &mut Vec<String>) -> Result<(), String> {
        let former = FORMER.iter().find(|(former, _)| item.name.eq_ignore_ascii_case(former));
        let name = former.map_or(item.name.as_str(), |(_, name)| name);
        match name {
            "agent_address" => self.agent_address = string(item)?,
            "cmd" => self.cmd = string(item)?,
            "cmd_args" => self.cmd_args = string(item)?,
            "pid_file_name" => self.pid_file_name = string(item)?,
            "cert_dir" => self.cert_dir = string(item)?,
            "renew_signal" => self.renew_signal = string(item)?,
            "hint" => self.hint = string(item)?,
            "svid_file_name" => self.svid_file_name = string(item)?,
            "svid_key_file_name" => self.svid_key_file_name = string(item)?,
            "svid_bundle_file_name" => self.svid_bundle_file_name = string(item)?,
            "jwt_bundle_file_name" => self.jwt_bundle_file_name = string(item)?,
            "jwt_svids" => self.jwt_svids = tokens(item)?,
            "cert_file_mode" => self.cert_file_mode = mode(item)?,
            "key_file_mode" => self.key_file_mode = mode(item)?,
            "jwt_bundle_file_mode" => self.jwt_bundle_file_mode = mode(item)?,
            "jwt_svid_file_mode" => self.jwt_svid_file_mode = mode(item)?,
            "add_intermediates_to_bundle" => self.add_intermediates_to_bundle = boolean(item)?,
            "include_federated_domains" => self.include_federated_domains = boolean(item)?,
            "omit_expired" => self.omit_expired = boolean(item)?,
            "daemon_mode" => self.daemon_mode = Some(boolean(item)?),
            "health_checks" => self.health_checks(item)?,
            // A setting of its version 0.5 and before; connections have no time-out here.
            "timeout" => warnings.push("`timeout` has no meaning here: the agent is waited for".to_owned()),
            name => return Err(format!("`{name}` is no key of spiffe-helper")),
        }
        Ok(())
    }

    fn health_checks(&mut self, item: &Item) -> Result<(), String> {
        let Value::Object(items) = &item.value else { return wanted(item, "a block", None) };
        for inner in items {
            match inner.name.as_str() {
                "listener_enabled" => self.listens = boolean(inner)?,
                "bind_port" | "liveness_path" | "readiness_path" => {}
                name => return Err(format!("`health_checks.{name}` is no key of spiffe-helper")),
            }
        }
        Ok(())
    }

    fn migrate(self, layout: Layout, mut warnings: Vec<String>) -> Result<Migrated, String> {
        let once = self.daemon_mode == Some(false);
        if self.listens {
            let instead = "systemd is told instead (READY=1, STATUS=, WATCHDOG=1), and `--once` ends with an exit code";
            warnings.push(format!("`health_checks.listener_enabled`: nothing listens here; {instead}"));
        }
        let reloads = self.reloads(once)?;
        let files = self.files()?;
        for file in files.iter().filter(|file| file.part.is_secret() && file.mode & 0o007 != 0) {
            let who = "everybody on this host can be the workload";
            warnings.push(format!("`{}` is readable by everybody (mode {:04o}): {who}", file.name, file.mode));
        }
        let output = Output {
            directory: PathBuf::from(self.cert_dir.as_deref().unwrap_or(".")),
            choice: self.hint.map_or(Choice::Default, Choice::Hint),
            layout,
            files,
            federated_in_bundle: self.include_federated_domains,
            intermediates_in_bundle: self.add_intermediates_to_bundle,
            omit_expired: self.omit_expired,
            uid: None,
            gid: None,
            password: None,
            issuer: None,
            reloads,
        };
        // It says so itself where a key is to be readable by everybody.
        output.check(true).map_err(|error| with_cause(&error))?;
        Ok(Migrated { output, socket: self.agent_address, once, warnings })
    }

    fn files(&self) -> Result<Vec<FileSpec>, String> {
        let (cert, key) = (self.cert_file_mode.unwrap_or(0o644), self.key_file_mode.unwrap_or(0o600));
        let (bundle, token) = (self.jwt_bundle_file_mode.unwrap_or(0o600), self.jwt_svid_file_mode.unwrap_or(0o600));
        let x509 = [
            (Part::Key, &self.svid_key_file_name, key),
            (Part::Certificate, &self.svid_file_name, cert),
            (Part::Bundle, &self.svid_bundle_file_name, cert),
        ];
        let named = x509.iter().filter(|(_, name, _)| name.is_some()).count();
        if !matches!(named, 0 | 3) {
            let three = "`svid_file_name`, `svid_key_file_name` and `svid_bundle_file_name`";
            return Err(format!("{three}: all of them or none"));
        }
        let others = [(Part::JwtBundles, &self.jwt_bundle_file_name, bundle)];
        let named = x509
            .into_iter()
            .chain(others)
            .filter_map(|(part, name, mode)| Some(FileSpec { part, name: name.clone()?, mode }));
        let tokens = self.jwt_svids.iter().map(|(audience, name)| FileSpec {
            part: Part::Jwt(audience.clone()),
            name: name.clone(),
            mode: token,
        });
        let files: Vec<FileSpec> = named.chain(tokens).collect();
        if files.is_empty() {
            return Err(
                "it names no file: `svid_file_name` and its two neighbours, `jwt_svids` or `jwt_bundle_file_name`"
                    .to_owned(),
            );
        }
        Ok(files)
    }

    fn reloads(&self, once: bool) -> Result<Vec<Reload>, String> {
        let renew = self.renew_signal.as_deref().map(signal).transpose()?;
        let mut reloads = Vec::new();
        // There, neither is looked at when files are written once.
        if once {
            return Ok(reloads);
        }
        match (&self.pid_file_name, renew) {
            (Some(file), Some(signal)) => {
                reloads.push(Reload::Signal { signal, pid_file: PathBuf::from(file), process: None });
            }
            (Some(_), None) => return Err("`pid_file_name` needs `renew_signal`".to_owned()),
            (None, _) => {}
        }
        if let Some(cmd) = &self.cmd {
            let arguments = self.cmd_args.as_deref().unwrap_or_default();
            let argv = std::iter::once(cmd.clone()).chain(words(arguments)?).map(OsString::from).collect();
            reloads.push(Reload::Child { argv, signal: renew });
        }
        Ok(reloads)
    }
}

fn tokens(item: &Item) -> Result<Vec<(Vec<String>, String)>, String> {
    // One may stand without its brackets.
    let list = match &item.value {
        Value::List(list) => list.as_slice(),
        one @ Value::Object(_) => std::slice::from_ref(one),
        _ => return wanted(item, "a list of objects", None),
    };
    let token = |value: &Value| {
        let Value::Object(items) = value else { return wanted(item, "a list of objects", None) };
        let (mut audience, mut extra, mut file) = (None, Vec::new(), None);
        for inner in items {
            match inner.name.as_str() {
                "jwt_audience" => audience = string(inner)?,
                "jwt_extra_audiences" => extra = strings(inner)?,
                "jwt_svid_file_name" => file = string(inner)?,
                name => return Err(format!("`jwt_svids` has no key `{name}`")),
            }
        }
        match (audience, file) {
            (Some(audience), Some(file)) => Ok((std::iter::once(audience).chain(extra).collect(), file)),
            _ => Err("each of `jwt_svids` needs `jwt_audience` and `jwt_svid_file_name`".to_owned()),
        }
    };
    list.iter().map(token).collect()
}

fn strings(item: &Item) -> Result<Vec<String>, String> {
    let Value::List(list) = &item.value else { return wanted(item, "a list of texts", None) };
    let text = |value: &Value| match value {
        Value::Text(text) => Ok(text.clone()),
        _ => wanted(item, "a list of texts", None),
    };
    list.iter().map(text).collect()
}

/// Splits as a line of values separated by blanks: in quotation marks a blank is one, and a doubled mark is a mark.
/// Nothing else has a meaning: it is no shell.
fn words(line: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut rest = line.trim_matches(' ');
    while !rest.is_empty() {
        let Some(mut quoted) = rest.strip_prefix('"') else {
            let (word, after) = rest.split_once(' ').unwrap_or((rest, ""));
            if word.contains('"') {
                return Err(format!("`cmd_args`: a quotation mark inside of `{word}`"));
            }
            words.push(word.to_owned());
            rest = after.trim_start_matches(' ');
            continue;
        };
        let mut word = String::new();
        loop {
            let (before, after) = quoted.split_once('"').ok_or("`cmd_args`: a quotation mark is not closed")?;
            word.push_str(before);
            match after.strip_prefix('"') {
                Some(more) => {
                    word.push('"');
                    quoted = more;
                }
                None => {
                    quoted = after;
                    break;
                }
            }
        }
        if !quoted.is_empty() && !quoted.starts_with(' ') {
            return Err("`cmd_args`: a closing quotation mark has no blank after it".to_owned());
        }
        words.push(word);
        rest = quoted.trim_start_matches(' ');
    }
    Ok(words)
}

#[cfg(test)]
mod tests;
