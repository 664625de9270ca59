//! Ties: to what a credential is bound, as values that can be written down.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::peer::InstanceId;
use crate::sys::BootId;

/// Whose end revokes a credential.
///
/// Its text is stable: `process:PID:INSTANCE`, `cgroup:BOOT:ID:PATH`, `unit:BOOT:INVOCATION:NAME`, `session:ID`
/// or `node`; before one of a cgroup, a unit or the node `exported:`. What has a boot in it belongs to that boot.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Tie {
    /// One program in one process.
    Process {
        /// Which.
        instance: InstanceId,
        /// Its number, to find it again.
        pid: i32,
    },
    /// A cgroup of version 2 with everything below it.
    Cgroup {
        /// The boot in which it was made.
        boot: BootId,
        /// Its inode number: another directory at the same path is another tie.
        id: u64,
        /// Where it is.
        path: CgroupPath,
    },
    /// One start of a systemd unit, where its cgroup is of version 1.
    Unit {
        /// The boot in which it was started.
        boot: BootId,
        /// The unit: `billing.service`.
        name: String,
        /// Which start of it: 32 hex digits.
        invocation: String,
    },
    /// A session, by its id. Whoever keeps sessions says when it ends: nothing else is watched for it.
    Session(String),
    /// The node: nothing that happens on it ends this.
    Node,
    /// A cgroup, a unit or the node, for what was handed out to be written to files. When that ends, files are still in
    /// use: it goes on for [`LINGER`], for one that is started again to put others in their place.
    Exported(Box<Tie>),
}

/// How long what may be in files stands after the end of the unit that it was handed out to.
pub const LINGER: Duration = Duration::from_secs(60);

impl Tie {
    /// The boot it belongs to; `None` for the node, and for sessions, whose members have one.
    pub fn boot(&self) -> Option<BootId> {
        match self {
            Self::Process { instance, .. } => Some(instance.boot()),
            Self::Cgroup { boot, .. } | Self::Unit { boot, .. } => Some(*boot),
            Self::Exported(of) => of.boot(),
            Self::Session(_) | Self::Node => None,
        }
    }

    /// The same for what is handed out to be written to files. A process and a session have no files that outlive them:
    /// theirs stays what it is.
    pub fn exported(self) -> Self {
        match self {
            Self::Cgroup { .. } | Self::Unit { .. } | Self::Node => Self::Exported(Box::new(self)),
            Self::Process { .. } | Self::Session(_) | Self::Exported(_) => self,
        }
    }

    /// Whether what is tied to it may be in files.
    pub fn is_exported(&self) -> bool {
        matches!(self, Self::Exported(_))
    }
}

/// The absolute path of a cgroup below the root of its hierarchy, as we see it: without `.`, `..` or empty components.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CgroupPath(String);

impl CgroupPath {
    /// Checks a path; `None` when it could lead elsewhere, or is not one line.
    pub fn parse(path: &str) -> Option<Self> {
        let normal = |component: &str| !matches!(component, "" | "." | "..");
        let below = path.strip_prefix('/')?;
        let valid = (below.is_empty() || below.split('/').all(normal)) && !path.contains(['\n', '\0']);
        valid.then(|| Self(path.to_owned()))
    }

    /// The text, which begins with a slash.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CgroupPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Tie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process { instance, pid } => write!(f, "process:{pid}:{instance}"),
            Self::Cgroup { boot, id, path } => write!(f, "cgroup:{boot}:{id}:{path}"),
            Self::Unit { boot, name, invocation } => write!(f, "unit:{boot}:{invocation}:{name}"),
            Self::Session(id) => write!(f, "session:{id}"),
            Self::Node => f.write_str("node"),
            Self::Exported(of) => write!(f, "exported:{of}"),
        }
    }
}

impl From<Tie> for String {
    fn from(tie: Tie) -> Self {
        tie.to_string()
    }
}

/// The text is no tie.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{0}` names nothing that a credential could be tied to")]
pub struct InvalidTie(String);

impl FromStr for Tie {
    type Err = InvalidTie;

    fn from_str(text: &str) -> Result<Self, InvalidTie> {
        parse(text)
            // One text per value: anything that would be written differently is refused.
            .filter(|tie| tie.to_string() == text)
            .ok_or_else(|| InvalidTie(text.to_owned()))
    }
}

impl TryFrom<String> for Tie {
    type Error = InvalidTie;

    fn try_from(text: String) -> Result<Self, InvalidTie> {
        text.parse()
    }
}

fn parse(text: &str) -> Option<Tie> {
    if text == "node" {
        return Some(Tie::Node);
    }
    let (kind, rest) = text.split_once(':')?;
    if kind == "exported" {
        return parse(rest).map(Tie::exported).filter(Tie::is_exported);
    }
    if kind == "session" {
        return (!rest.is_empty() && !rest.contains(char::is_whitespace)).then(|| Tie::Session(rest.to_owned()));
    }
    let (first, rest) = rest.split_once(':')?;
    if kind == "process" {
        return Some(Tie::Process { pid: first.parse().ok()?, instance: rest.parse().ok()? });
    }
    let boot = first.parse().ok()?;
    let (which, place) = rest.split_once(':')?;
    match kind {
        "cgroup" => Some(Tie::Cgroup { boot, id: which.parse().ok()?, path: CgroupPath::parse(place)? }),
        "unit" => {
            let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
            let valid = which.len() == 32 && which.bytes().all(is_hex);
            let named = !place.is_empty() && place.bytes().all(|byte| byte.is_ascii_graphic());
            (valid && named).then(|| Tie::Unit { boot, invocation: which.to_owned(), name: place.to_owned() })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOT: &str = "8f3c2a10-0001-4e6b-9d55-00c0ffee0000";

    #[test]
    fn the_text_of_a_tie_reads_back_as_the_same_tie() {
        let invocation = "0f".repeat(16);
        for text in [
            "node".to_owned(),
            format!("process:17:{BOOT}/pidfd-4242/exe-64769-5551"),
            format!("process:17:{BOOT}/pid-17-99120/exe-unknown"),
            format!("cgroup:{BOOT}:5440:/system.slice/a.service"),
            format!("cgroup:{BOOT}:18446744073709551615:/a:b/c d"),
            format!("cgroup:{BOOT}:12:/"),
            format!("unit:{BOOT}:{invocation}:a:b@c.service"),
            "exported:node".to_owned(),
            format!("exported:cgroup:{BOOT}:5440:/system.slice/a.service"),
        ] {
            let tie: Tie = text.parse().expect(&text);
            assert_eq!(tie.to_string(), text);
            assert_eq!(serde_json::from_str::<Tie>(&serde_json::to_string(&tie).expect("json")).expect("tie"), tie);
        }
    }

    #[test]
    fn a_text_that_could_mean_something_else_is_refused() {
        let invocation = "0f".repeat(16);
        for text in [
            String::new(),
            "nodes".into(),
            "node:".into(),
            "exported:".into(),
            "exported:exported:node".into(),
            "exported:session:x".into(),
            format!("exported:process:17:{BOOT}/pidfd-4242/exe-64769-5551"),
            format!("process:017:{BOOT}/pidfd-4242/exe-64769-5551"),
            format!("process:17:{BOOT}/pidfd-4242"),
            format!("cgroup:{BOOT}:5440:system.slice"),
            format!("cgroup:{BOOT}:5440:/a/../b"),
            format!("cgroup:{BOOT}:5440:/a//b"),
            format!("cgroup:{BOOT}:5440:/a/"),
            format!("cgroup:{BOOT}:5440:/a\nb"),
            format!("cgroup:{BOOT}:+5440:/a"),
            "cgroup:x:5440:/a".into(),
            format!("unit:{BOOT}:{invocation}:"),
            format!("unit:{BOOT}:{}:a.service", invocation.to_uppercase()),
            format!("unit:{BOOT}:0f:a.service"),
            format!("unit:{BOOT}:{invocation}:a b.service"),
        ] {
            assert!(text.parse::<Tie>().is_err(), "{text}");
        }
    }
}
