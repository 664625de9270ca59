//! Containers in control group paths.
//!
//! An engine puts each container into a control group that is named after it, directly below one of a few directories.
//! A name alone is nothing: whoever may make a control group names it. So a directory counts as a container's only
//!
//! - at one of the configured places, read from the root downwards, where the first that fits decides: what is further
//!   below was named by the container, or by whoever else was given that subtree;
//! - where root alone may write to every directory above it, so that nobody else can have made it;
//! - in the hierarchy of the kernel: the path comes from `/proc/PID/cgroup` through the handle of the process, and leads to
//!   the very directory whose id the kernel names for the process. Mounts, environment, names of hosts and other paths
//!   that a process chooses are never looked at.

use std::fmt;
use std::io;
use std::str::FromStr;

use nix::libc;
use thiserror::Error;

use crate::attest::{AttestError, CgroupPaths, Subject, outside};
use crate::sys::cgroup::{Group, ROOT_ID, has_two_hierarchies};
use crate::sys::procfs::ProcDir;

use super::Kind;

/// How many hexadecimal digits the id of a container has.
const ID_DIGITS: usize = 64;

/// The id of a container: 64 lower-case hexadecimal digits, and so safe in a URL.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct ContainerId(String);

impl ContainerId {
    /// `None` for anything but the digits.
    pub fn parse(text: &str) -> Option<Self> {
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        (text.len() == ID_DIGITS && text.bytes().all(is_digit)).then(|| Self(text.to_owned()))
    }

    /// All digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first digits, as engines show them.
    pub fn short(&self) -> &str {
        self.0.get(..12).unwrap_or_default()
    }
}

impl fmt::Debug for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.short())
    }
}

impl Kind {
    /// The container in the name of a directory that the engine makes for it.
    fn container_in(self, name: &str) -> Option<ContainerId> {
        let id = match self {
            // The driver `cgroupfs` names it like the container, the driver `systemd` makes a scope.
            Self::Docker => name.strip_prefix("docker-").and_then(|rest| rest.strip_suffix(".scope")).unwrap_or(name),
            Self::Podman => {
                let rest = name.strip_prefix("libpod-")?;
                // The payload is what `--cgroups=split` makes, which units use.
                rest.strip_suffix(".scope").or_else(|| rest.strip_prefix("payload-")).unwrap_or(rest)
            }
        };
        ContainerId::parse(id)
    }
}

/// A directory below which an engine puts containers: a path in which `*` stands for any part of one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parent(Vec<String>);

/// A text that is no place of containers.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "`{0}` is no directory of control groups: write a path from their root, such as `/docker` or `/system.slice`, in \
     which `*` may stand once for a part of each name"
)]
pub struct InvalidParent(String);

impl FromStr for Parent {
    type Err = InvalidParent;

    fn from_str(text: &str) -> Result<Self, InvalidParent> {
        let names = text.strip_prefix('/').ok_or_else(|| InvalidParent(text.to_owned()))?;
        let is_name = |name: &&str| !matches!(*name, "" | "." | "..") && name.matches('*').count() <= 1;
        let names: Vec<&str> = names.split('/').collect();
        match names.iter().all(is_name) && !text.contains(['\0', '\n']) {
            true => Ok(Self(names.into_iter().map(str::to_owned).collect())),
            false => Err(InvalidParent(text.to_owned())),
        }
    }
}

impl Parent {
    fn is(&self, names: &[&str]) -> bool {
        let fits = |(pattern, name): (&String, &&str)| match pattern.split_once('*') {
            None => pattern == name,
            Some((first, last)) => {
                name.len() >= first.len() + last.len() && name.starts_with(first) && name.ends_with(last)
            }
        };
        self.0.len() == names.len() && self.0.iter().zip(names).all(fits)
    }
}

/// Where the container of a path is: its id and the length of the part of the path that is its directory.
pub(super) fn container_in_path(kind: Kind, parents: &[Parent], path: &str) -> Option<(ContainerId, usize)> {
    let names: Vec<&str> = path.strip_prefix('/')?.split('/').collect();
    let mut end = 0;
    for (depth, name) in names.iter().enumerate() {
        end += 1 + name.len();
        let is_place = parents.iter().any(|parent| parent.is(&names[..depth]));
        if let Some(id) = is_place.then(|| kind.container_in(name)).flatten() {
            return Some((id, end));
        }
    }
    None
}

/// Whether a path looks like that of a container, wherever: for a remark.
fn looks_like_one(kind: Kind, path: &str) -> bool {
    path.split('/').any(|name| kind.container_in(name).is_some())
}

/// One of the hierarchies that tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Hierarchy {
    /// Version 2.
    Unified,
    /// Systemd's own of version 1.
    Systemd,
}

impl Hierarchy {
    const ALL: [Self; 2] = [Self::Unified, Self::Systemd];

    fn root(self) -> io::Result<Group> {
        let root = match self {
            Self::Unified => Group::root(),
            Self::Systemd => Group::systemd_root(),
        };
        root?.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "it is not mounted below /sys/fs/cgroup"))
    }

    fn of(self, paths: &CgroupPaths) -> Option<&str> {
        match self {
            Self::Unified => paths.unified.as_deref(),
            Self::Systemd => paths.systemd.as_deref(),
        }
    }
}

/// The control group of a container, in which a process was found.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Place {
    /// Whose it is.
    pub container: ContainerId,
    hierarchy: Hierarchy,
    /// The path of the directory.
    path: String,
    /// Its inode number: a container that is started again has another one.
    inode: u64,
}

/// What the control groups of a process say.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Located {
    /// It is in no container of this engine, with a remark if somebody could think it were.
    Outside(Option<String>),
    /// It is in this one.
    In(Place),
    /// It cannot be told.
    Unknown(String),
}

/// Finds the container that a process is in.
pub(super) fn locate(kind: Kind, parents: &[Parent], subject: &Subject) -> Result<Located, AttestError> {
    let paths = CgroupPaths::read(&subject.proc_dir)?;
    // A hierarchy that is not mounted here is nobody's here, whatever those outside use it for.
    let is_used = paths.unified.is_none() || has_two_hierarchies();
    let used = CgroupPaths { systemd: paths.systemd.clone().filter(|_| is_used), ..paths.clone() };
    let located = locate_in(kind, parents, &used, |hierarchy, path| match hierarchy {
        Hierarchy::Unified => subject.cgroup_id.is_none_or(|id| id == ROOT_ID || is_at(path, id)),
        // The kernel names no other way to look at it.
        Hierarchy::Systemd => true,
    });
    // What the paths say holds only if the process was there all the time.
    if CgroupPaths::read(&subject.proc_dir)? != paths {
        return Err(moved(&paths));
    }
    located.map_err(|Moved| moved(&paths))
}

#[derive(Debug, PartialEq, Eq)]
struct Moved;

/// Finds the container of these paths. `is_there` says whether the process is in the directory at its path.
fn locate_in(
    kind: Kind,
    parents: &[Parent],
    paths: &CgroupPaths,
    is_there: impl Fn(Hierarchy, &str) -> bool,
) -> Result<Located, Moved> {
    let known: Vec<_> = Hierarchy::ALL.into_iter().filter_map(|one| Some((one, one.of(paths)?))).collect();
    if known.is_empty() {
        let why = "the process is in no cgroup hierarchy that tells: neither version 2 nor systemd's own";
        return Ok(Located::Unknown(why.to_owned()));
    }
    // The kernel says so of a directory that was removed: the process has left it, or is about to end.
    if known.iter().any(|(_, path)| path.ends_with(" (deleted)")) {
        return Err(Moved);
    }
    let (mut found, mut remark, mut unseen): (Option<Place>, _, _) = (None, None, None);
    for (hierarchy, path) in known {
        if CgroupPaths::is_outside(path) {
            // What the other hierarchy tells counts by itself.
            unseen = Some(outside(path));
            continue;
        }
        let Some((container, end)) = container_in_path(kind, parents, path) else {
            if looks_like_one(kind, path) {
                remark.get_or_insert_with(|| elsewhere(kind, path));
            }
            continue;
        };
        let path_of_container = &path[..end];
        let inode = match made_by_root(hierarchy, path_of_container) {
            Ok(Made::ByRoot { inode }) => inode,
            Ok(Made::ByOthers { above, owner }) => {
                remark = Some(format!(
                    "its control group is named like a container's, and says nothing: user {owner} may write to `{above}`, \
                     and could have named it so"
                ));
                continue;
            }
            Err(error) if is_removed(&error) => return Err(Moved),
            Err(error) => {
                let why = format!("its control group `{path_of_container}` cannot be looked at: {error}");
                return Ok(Located::Unknown(why));
            }
        };
        if !is_there(hierarchy, path) {
            return Err(Moved);
        }
        let place = Place { container, hierarchy, path: path_of_container.to_owned(), inode };
        match &found {
            Some(other) if other.container != place.container => {
                let (a, b) = (other.container.short(), place.container.short());
                let why = format!("its control groups are those of two containers, `{a}` and `{b}`");
                return Ok(Located::Unknown(why));
            }
            Some(_) => {}
            None => found = Some(place),
        }
    }
    Ok(match (found, unseen) {
        (Some(place), _) => Located::In(place),
        (None, Some(why)) => Located::Unknown(why),
        (None, None) => Located::Outside(remark),
    })
}

fn moved(paths: &CgroupPaths) -> AttestError {
    let from = paths.unified.clone().or_else(|| paths.systemd.clone()).unwrap_or_default();
    AttestError::Changed { what: "control group", from, to: "another one".to_owned() }
}

fn is_removed(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}

/// Whether the directory of version 2 at `path` is the one with this inode number.
fn is_at(path: &str, inode: u64) -> bool {
    let own = Hierarchy::Unified.root().and_then(|root| root.below(path)).and_then(|own| own.id());
    own.is_ok_and(|own| own == inode)
}

fn elsewhere(kind: Kind, path: &str) -> String {
    let name = kind.as_str();
    format!(
        "its control group `{path}` is named like a container's, but is not where containers of root's {name} are: if it \
         should be, add the directory above it to attest.{name}.cgroup_parents"
    )
}

/// Who may have made a directory.
enum Made {
    ByRoot { inode: u64 },
    ByOthers { above: String, owner: u32 },
}

/// Looks at every directory above the one at `path`, and then at that.
fn made_by_root(hierarchy: Hierarchy, path: &str) -> io::Result<Made> {
    let mut group = hierarchy.root()?;
    let mut at = 0;
    for name in path.split('/').filter(|name| !name.is_empty()) {
        let (owner, mode) = group.owner_and_mode()?;
        if owner != 0 || mode & 0o022 != 0 {
            let above = if at == 0 { "/" } else { &path[..at] };
            return Ok(Made::ByOthers { above: above.to_owned(), owner });
        }
        group = group.below(name)?;
        at += 1 + name.len();
    }
    Ok(Made::ByRoot { inode: group.id()? })
}

impl Place {
    /// Whether a process is in the container's directory, or below, and that is still the same one.
    pub fn holds(&self, proc_dir: &ProcDir) -> Result<bool, AttestError> {
        let paths = CgroupPaths::read(proc_dir)?;
        let rest = self.hierarchy.of(&paths).and_then(|path| path.strip_prefix(&*self.path));
        let is_below = rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        // Last: an inode number is never used twice, so the path was that of the same directory all the time.
        Ok(is_below && self.stands())
    }

    /// Whether the directory is still there, and the same.
    fn stands(&self) -> bool {
        let now = self.hierarchy.root().and_then(|root| root.below(&self.path)).and_then(|group| group.id());
        now.is_ok_and(|now| now == self.inode)
    }

    /// The path of the directory.
    pub fn path(&self) -> &str {
        &self.path
    }
}

#[cfg(test)]
mod tests;
