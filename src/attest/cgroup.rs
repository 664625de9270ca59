//! `cgroup:path`: where the process stands in the control group hierarchy, as seen from our cgroup namespace.
//!
//! The path is `/proc/PID/cgroup` as the kernel writes it: on a host with the unified hierarchy the `0::` line; on
//! hosts that use version 1, or both, the unified line as long as something uses it, else the `name=systemd` line.
//!
//! A process may make control groups below a delegated one and move itself there, so the path is evidence up to the
//! delegated directory, and what follows is the owner's choice. An exact match covers both.

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::{AttestError, Attestor, Findings, Subject, Wanted};
use crate::peer::{Instance, LookError};
use crate::sys::cgroup::Group;
use crate::sys::procfs::ProcDir;

/// Far above a real file: a path has at most 4096 bytes, and there are about a dozen lines.
const MAX_BYTES: u64 = 128 * 1024;
const FILE: &str = "cgroup";

/// Attests `cgroup:path`.
#[derive(Debug)]
pub struct Cgroup;

impl Attestor for Cgroup {
    fn kind(&self) -> &'static str {
        "cgroup"
    }

    fn attest<'a>(&'a self, subject: &'a Subject, _wanted: &'a Wanted) -> BoxFuture<'a, Result<Findings, AttestError>> {
        async { read(&subject.proc_dir).map(|place| findings(&place)) }.boxed()
    }
}

/// Where a process stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// At this path, which begins with a slash.
    At(String),
    /// Outside of the part that our cgroup namespace shows: the path is only relative to it.
    Outside(String),
    /// In no hierarchy that tells: version 1 without systemd's own.
    Nowhere,
}

fn findings(place: &Place) -> Findings {
    let mut findings = Findings::of("cgroup");
    match place {
        Place::At(path) => {
            findings.fact("path", path);
            if path == "/" {
                findings.note("the process is in the root cgroup: it is bound to the node");
            }
        }
        Place::Outside(path) => findings.gap(&["path"], outside(path)),
        Place::Nowhere => findings.note("the process is in no cgroup hierarchy with names: it is bound to the node"),
    }
    findings
}

/// Why a path outside our cgroup namespace says nothing.
pub(crate) fn outside(path: &str) -> String {
    format!("its cgroup `{path}` is outside the agent's cgroup namespace; run the agent in the host's")
}

/// Reads where the process stands.
pub(crate) fn read(proc_dir: &ProcDir) -> Result<Place, AttestError> {
    CgroupPaths::read(proc_dir).map(CgroupPaths::place)
}

/// Where a process stands in the two hierarchies that tell, by paths that begin with a slash.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CgroupPaths {
    /// In the hierarchy of version 2.
    pub unified: Option<String>,
    /// In the hierarchy of version 1 that has systemd's units, on hosts that use that version.
    pub systemd: Option<String>,
}

impl CgroupPaths {
    /// Reads them of a process.
    pub fn read(proc_dir: &ProcDir) -> Result<Self, AttestError> {
        let content = proc_dir.read(FILE, MAX_BYTES).map_err(|error| AttestError::read(FILE, error))?;
        let complete = (content.len() as u64) < MAX_BYTES && content.ends_with(b"\n");
        let text = std::str::from_utf8(&content).ok().filter(|_| complete);
        text.and_then(Self::parse).ok_or(AttestError::Malformed { file: FILE })
    }

    /// Parses `/proc/PID/cgroup` (cgroups(7)); `None` when a line is not `ID:CONTROLLERS:PATH`.
    fn parse(text: &str) -> Option<Self> {
        let mut paths = Self::default();
        for line in text.lines() {
            let (_id, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            if !path.starts_with('/') {
                return None;
            }
            match controllers {
                "" => paths.unified = Some(path.to_owned()),
                "name=systemd" => paths.systemd = Some(path.to_owned()),
                _ => {} // a version 1 controller: systemd does not keep its units there alone
            }
        }
        Some(paths)
    }

    /// Whether a path is only relative to what our cgroup namespace shows.
    pub fn is_outside(path: &str) -> bool {
        path == "/.." || path.starts_with("/../")
    }

    fn place(self) -> Place {
        // On hosts where only version 1 is used, every process is in the unified root, which says nothing.
        let path = match (self.unified, self.systemd) {
            (Some(root), Some(named)) if root == "/" => named,
            (Some(path), _) | (None, Some(path)) => path,
            (None, None) => return Place::Nowhere,
        };
        if Self::is_outside(&path) { Place::Outside(path) } else { Place::At(path) }
    }
}

/// Whether the process is in the cgroup of version 2 with this id and path, or below it, now.
///
/// # Errors
/// [`LookError::Ended`] when the process is over; [`LookError::Unseen`] when the system cannot answer now.
pub fn is_in_cgroup(instance: &Instance, id: u64, path: &str) -> Result<bool, LookError> {
    let Some(cgroup) = instance.look()?.cgroup_id else { return Ok(false) };
    if cgroup == id {
        return Ok(true);
    }
    let below = is_below(instance, cgroup, id, path);
    // Last: it may have failed because the process is gone, and holds only where the process still is.
    if instance.look()?.cgroup_id != Some(cgroup) {
        let why = "the process was moved to another cgroup while it was looked at: try again";
        return Err(LookError::Unseen(std::io::Error::other(why)));
    }
    below
}

/// Whether the directory `cgroup`, in which the process is, is below the directory `id` at `path`.
fn is_below(instance: &Instance, cgroup: u64, id: u64, path: &str) -> Result<bool, LookError> {
    let paths = match CgroupPaths::read(instance.proc_dir()) {
        Ok(paths) => paths,
        Err(AttestError::Read { source, .. }) => return Err(LookError::Unseen(source)),
        Err(error) => return Err(LookError::Unseen(std::io::Error::other(error))),
    };
    let Some(rest) = paths.unified.as_deref().and_then(|own| own.strip_prefix(path)) else { return Ok(false) };
    if !rest.starts_with('/') {
        return Ok(false);
    }
    let Some(root) = Group::root().map_err(LookError::Unseen)? else { return Ok(false) };
    // A directory that is not there, or is another one now, has nobody in it.
    let Ok(group) = root.below(path) else { return Ok(false) };
    if group.id().map_err(LookError::Unseen)? != id {
        return Ok(false);
    }
    let Ok(own) = group.below(rest) else { return Ok(false) };
    Ok(own.id().map_err(LookError::Unseen)? == cgroup)
}

/// [`read`] of this text.
pub(super) fn parse(text: &str) -> Option<Place> {
    CgroupPaths::parse(text).map(CgroupPaths::place)
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "8:pids:/\n7:blkio:/\n6:freezer:/\n4:memory:/jobs/5443\n3:cpuset:/\n1:cpu,cpuacct:/\n";

    #[test]
    fn every_shape_of_the_file_gives_the_one_path_that_tells() {
        let at = |path: &str| Some(Place::At(path.to_owned()));
        let id = "4f".repeat(32);
        let cases: &[(&str, String, Option<Place>)] = &[
            ("unified", "0::/system.slice/a.service\n".into(), at("/system.slice/a.service")),
            ("unified, root", "0::/\n".into(), at("/")),
            (
                "hybrid, same in both",
                "1:name=systemd:/system.slice/a.service\n0::/system.slice/a.service\n".into(),
                at("/system.slice/a.service"),
            ),
            (
                "hybrid, seen from the host",
                format!("9:name=systemd:/\n{V1}0::/payload/system.slice/a.service\n"),
                at("/payload/system.slice/a.service"),
            ),
            (
                "version 1, systemd's own line",
                format!("9:name=systemd:/system.slice/a.service\n{V1}0::/\n"),
                at("/system.slice/a.service"),
            ),
            ("version 1 without a unified line", format!("9:name=systemd:/user.slice\n{V1}"), at("/user.slice")),
            ("version 1 without systemd", V1.into(), Some(Place::Nowhere)),
            ("no cgroups in the kernel's answer", String::new(), Some(Place::Nowhere)),
            ("container", format!("{V1}0::/docker/{id}\n"), at(&format!("/docker/{id}"))),
            ("payload that runs systemd", "0::/payload/init.scope\n".into(), at("/payload/init.scope")),
            ("a colon in a name", "0::/a:b/c\n".into(), at("/a:b/c")),
            ("removed", "0::/a.service (deleted)\n".into(), at("/a.service (deleted)")),
            ("outside our namespace", "0::/../other\n".into(), Some(Place::Outside("/../other".into()))),
            ("above our namespace", "0::/..\n".into(), Some(Place::Outside("/..".into()))),
            ("only looks like outside", "0::/..a\n".into(), at("/..a")),
            ("no path", "0::\n".into(), None),
            ("no fields", "0\n".into(), None),
        ];
        for (shape, text, place) in cases {
            assert_eq!(parse(text), *place, "{shape}");
        }
    }

    #[test]
    fn a_path_outside_our_namespace_is_a_gap_and_the_root_is_explained() {
        let root = findings(&Place::At("/".into()));
        let outside = findings(&Place::Outside("/../x".into()));
        let mut evidence = super::super::Evidence::default();
        evidence.add(root);
        assert_eq!(evidence.selectors.single_value("cgroup", "path"), Some("/"));
        assert!(evidence.notes[0].text.contains("bound to the node"));
        evidence.add(outside);
        assert!(evidence.gap("cgroup", "path").is_some_and(|gap| gap.why.contains("`/../x`")));
    }

    #[test]
    fn our_own_place_can_be_read() {
        let ours = ProcDir::open(std::process::id().cast_signed()).expect("we live");
        assert_ne!(read(&ours).expect("readable"), Place::Outside("/..".into()));
    }
}
