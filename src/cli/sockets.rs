//! Which agent a command talks to: the named one, else the installed one, else the caller's own `--dev` agent.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::client::{ENDPOINT_VARIABLE, Endpoint};
use crate::config::{self, Config};

use super::Host;
use super::failure::{Exit, Failure};

/// The environment variable that names the admin socket.
pub const ADMIN_VARIABLE: &str = "TETHER_ADMIN_SOCKET";

/// The workload socket. What the caller named is taken as named; a variable must be a URI (Workload Endpoint,
/// section 4).
pub fn workload(host: &Host, named: Option<&str>) -> Result<Endpoint, Failure> {
    if let Some(text) = named {
        return parse("--socket", text);
    }
    if let Some(uri) = host.variable(ENDPOINT_VARIABLE) {
        return Endpoint::parse(uri)
            .map_err(|error| Failure::new(Exit::Usage, format!("environment variable {ENDPOINT_VARIABLE}: {error}")));
    }
    find(host, ENDPOINT_VARIABLE, |config| &config.listen.workload)
}

/// The admin socket.
pub fn admin(host: &Host, named: Option<&str>) -> Result<Endpoint, Failure> {
    if let Some(text) = named {
        return parse("--socket", text);
    }
    if let Some(text) = host.variable(ADMIN_VARIABLE) {
        return parse(&format!("environment variable {ADMIN_VARIABLE}"), text);
    }
    find(host, ADMIN_VARIABLE, |config| &config.listen.admin)
}

/// A path, or an endpoint URI.
fn parse(origin: &str, text: &str) -> Result<Endpoint, Failure> {
    if text.starts_with('/') {
        return Ok(Endpoint::Unix(PathBuf::from(text)));
    }
    Endpoint::parse(text).map_err(|error| Failure::new(Exit::Usage, format!("{origin}: {error}")))
}

fn find(host: &Host, variable: &str, socket: fn(&Config) -> &PathBuf) -> Result<Endpoint, Failure> {
    let system = host.path(socket(&Config::default()));
    if system.exists() {
        return Ok(Endpoint::Unix(system));
    }
    let dev_dirs = config::dev_directories(&host.env, host.uid);
    for dir in &dev_dirs {
        let path = socket(&Config::for_dev(dir)).clone();
        if is_private_to(dir, host.uid) && path.exists() {
            return Ok(Endpoint::Unix(path));
        }
    }
    let tried: Vec<_> = [system].iter().chain(&dev_dirs).map(|path| format!("`{}`", path.display())).collect();
    let advice = match installed(host) {
        Installed::Not => "start one with `tether agent run --dev`",
        Installed::Bare => "set this host up with `sudo tether init`",
        Installed::SetUp => "start it with `sudo systemctl start tether-agent.socket tether-agent.service`",
    };
    Err(Failure::new(
        Exit::Unreachable,
        format!("no agent found (looked at {}); {advice}, or set {variable}", tried.join(", ")),
    ))
}

/// How far an agent is installed on this host.
enum Installed {
    Not,
    /// The package is there, and no trust domain.
    Bare,
    SetUp,
}

fn installed(host: &Host) -> Installed {
    let file = host.path(Path::new(config::SYSTEM_FILE));
    let unit = host.path(Path::new("/usr/lib/systemd/system/tether-agent.service"));
    if !unit.exists() {
        return Installed::Not;
    }
    // Only root may read all of it on some hosts: what cannot be read was set up by somebody.
    let source = config::Source { file: Some(file), ..config::Source::default() };
    let unset = config::Place::Setting("trust_domain".to_owned());
    let lacks_domain = |mistakes: config::Mistakes| mistakes.0.iter().any(|mistake| mistake.place == unset);
    if source.load().err().is_some_and(lacks_domain) { Installed::Bare } else { Installed::SetUp }
}

/// Whether nobody but `uid` can have put anything there. In `/tmp` somebody else may have made the directory.
fn is_private_to(dir: &Path, uid: u32) -> bool {
    fs::symlink_metadata(dir).is_ok_and(|meta| meta.is_dir() && meta.uid() == uid && meta.mode() & 0o077 == 0)
}
