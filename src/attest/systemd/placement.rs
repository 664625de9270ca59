//! Units in control group paths.
//!
//! systemd gives each unit a control group named like it, inside those of its slices. The first directory that is not
//! a slice is the unit; whatever is below belongs to the unit, and if the unit is delegated its owner names directories
//! there as it likes. So the search stops at the first directory that is not a slice, whether it is a unit or not.

/// The longest unit name (systemd.unit(5)).
const MAX_UNIT_BYTES: usize = 255;
/// Units that have processes, besides slices, which have none of their own.
const KINDS_WITH_PROCESSES: &[&str] = &["service", "scope", "socket", "mount", "swap"];
/// The slice everything is in.
const ROOT_SLICE: &str = "-.slice";

/// The name of a unit that can have processes: `billing.service`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UnitName(String);

impl UnitName {
    /// Checks a name by the rules of systemd.unit(5).
    pub fn parse(name: &str) -> Option<Self> {
        let (stem, kind) = name.rsplit_once('.')?;
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || b":-_.\\@".contains(&byte);
        let valid = !stem.is_empty()
            && !stem.starts_with('@')
            && name.len() <= MAX_UNIT_BYTES
            && name.bytes().all(legal)
            && KINDS_WITH_PROCESSES.contains(&kind);
        valid.then(|| Self(name.to_owned()))
    }

    /// The whole name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The kind of unit: `service`.
    pub fn kind(&self) -> &str {
        self.0.rsplit_once('.').map_or("", |(_, kind)| kind)
    }

    /// The name without the kind of unit: `billing`, `getty@tty1`. Escapes stay as systemd writes them (`\x2d`).
    pub fn stem(&self) -> &str {
        self.0.rsplit_once('.').map_or(self.0.as_str(), |(stem, _)| stem)
    }

    /// The parts before and after the `@` of a unit made from a template.
    pub fn template(&self) -> Option<(&str, &str)> {
        self.stem().split_once('@').filter(|(_, instance)| !instance.is_empty())
    }

    /// The user whose manager this is: 1000 for `user@1000.service`.
    fn user_of_manager(&self) -> Option<u32> {
        let uid = self.0.strip_prefix("user@")?.strip_suffix(".service")?;
        let canonical = uid == "0" || !uid.starts_with(['0', '+']);
        uid.parse().ok().filter(|_| canonical)
    }
}

/// Where a path puts a process.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Placement {
    /// Its unit, with the slice that is in.
    pub unit: Option<(UnitName, String)>,
    /// Its unit within a user's own manager, whose word that is.
    pub user_unit: Option<UserUnit>,
}

/// A unit of a user's manager: the user chose its name.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct UserUnit {
    /// The user.
    pub uid: u32,
    /// The unit.
    pub unit: UnitName,
}

impl Placement {
    /// Reads an absolute path.
    pub fn of(path: &str) -> Self {
        let mut components = path.split('/').filter(|component| !component.is_empty()).map(unescape);
        let Some((unit, slice)) = next_unit(&mut components) else {
            return Self::default();
        };
        let user_unit = unit.user_of_manager().and_then(|uid| {
            let (unit, _) = next_unit(&mut components)?;
            Some(UserUnit { uid, unit })
        });
        Self { unit: Some((unit, slice)), user_unit }
    }
}

/// The path of the control group of the unit that [`Placement`] finds in `path`: of the user's unit, if the user whose
/// word that is has the process, else of the unit. `None` when there is no unit in the path.
pub fn unit_path(path: &str, uid: u32) -> Option<&str> {
    let mut walked = Walked { path, end: 0 };
    let mut components = walked.by_ref().map(unescape);
    let (unit, _) = next_unit(&mut components)?;
    let end = walked.end;
    let mut components = walked.by_ref().map(unescape);
    let user_unit = unit.user_of_manager().filter(|user| *user == uid).and_then(|_| next_unit(&mut components));
    Some(&path[..if user_unit.is_some() { walked.end } else { end }])
}

/// The components of a path, and where the last one that was taken ends.
struct Walked<'a> {
    path: &'a str,
    end: usize,
}

impl<'a> Iterator for Walked<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let rest = &self.path[self.end..];
        let start = self.end + (rest.len() - rest.trim_start_matches('/').len());
        let component = self.path[start..].split('/').next().filter(|component| !component.is_empty())?;
        self.end = start + component.len();
        Some(component)
    }
}

/// The unit in the first component that is not a slice of the one before, and the last slice.
fn next_unit<'a>(components: &mut impl Iterator<Item = &'a str>) -> Option<(UnitName, String)> {
    let mut slice = ROOT_SLICE;
    for component in components {
        if !is_slice_in(component, slice) {
            return UnitName::parse(component).map(|unit| (unit, slice.to_owned()));
        }
        slice = component;
    }
    None
}

/// `a-b.slice` is in `a.slice`, which is in the root slice.
fn is_slice_in(name: &str, parent: &str) -> bool {
    let Some(stem) = name.strip_suffix(".slice").filter(|stem| !stem.is_empty()) else {
        return false;
    };
    match parent.strip_suffix(".slice") {
        Some("-") => !stem.contains('-'),
        Some(parent) => {
            let own = stem.strip_prefix(parent).and_then(|rest| rest.strip_prefix('-'));
            own.is_some_and(|own| !own.is_empty() && !own.contains('-'))
        }
        None => false,
    }
}

/// systemd puts an underscore before names that the kernel could take for one of its own files.
fn unescape(component: &str) -> &str {
    component.strip_prefix('_').unwrap_or(component)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_is_the_first_directory_that_is_not_a_slice_or_there_is_none() {
        let container = format!("/docker/{}/system.slice/a.service", "4f".repeat(32));
        let cases: &[(&str, Option<(&str, &str)>)] = &[
            ("/system.slice/billing.service", Some(("billing.service", "system.slice"))),
            ("/system.slice/system-getty.slice/getty@tty1.service", Some(("getty@tty1.service", "system-getty.slice"))),
            ("/prod.slice/run-u3.service", Some(("run-u3.service", "prod.slice"))),
            ("/init.scope", Some(("init.scope", "-.slice"))),
            ("/user.slice/user-1000.slice/session-3.scope", Some(("session-3.scope", "user-1000.slice"))),
            ("/system.slice/dev-mqueue.mount", Some(("dev-mqueue.mount", "system.slice"))),
            ("/system.slice/a\\x2db.service", Some(("a\\x2db.service", "system.slice"))),
            ("/system.slice/_cgroup.service", Some(("cgroup.service", "system.slice"))),
            // Below a unit every name is its owner's choice.
            ("/system.slice/ci.service/billing.service", Some(("ci.service", "system.slice"))),
            ("/system.slice/ci.service/system.slice/billing.service", Some(("ci.service", "system.slice"))),
            (
                "/machine.slice/machine-t1.scope/payload/system.slice/a.service",
                Some(("machine-t1.scope", "machine.slice")),
            ),
            // Directories that systemd did not make.
            (&container, None),
            ("/payload/system.slice/a.service", None),
            ("/system.slice/custom/a.service", None),
            ("/a.slice/b.slice/a.service", None),
            ("/a.slice/a-b-c.slice/a.service", None),
            ("/a-b.slice/a.service", None),
            ("/.slice/a.service", None),
            // No unit at all.
            ("/", None),
            ("/system.slice", None),
            ("/a.timer", None),
            ("/.service", None),
            ("/@a.service", None),
            ("/a b.service", None),
            ("/a.service (deleted)", None),
        ];
        for (path, expected) in cases {
            let found = Placement::of(path).unit;
            let found = found.as_ref().map(|(unit, slice)| (unit.as_str(), slice.as_str()));
            assert_eq!(found, *expected, "{path}");
        }
    }

    #[test]
    fn a_user_unit_is_one_in_the_manager_of_that_user() {
        let cases: &[(&str, Option<(u32, &str)>)] = &[
            ("/user.slice/user-1000.slice/user@1000.service/app.slice/a.service", Some((1000, "a.service"))),
            ("/user.slice/user-1000.slice/user@1000.service/app.slice/app-x.slice/b.scope", Some((1000, "b.scope"))),
            ("/user.slice/user-1000.slice/user@1000.service/init.scope", Some((1000, "init.scope"))),
            ("/user.slice/user-1000.slice/user@1000.service/x/a.service", None),
            ("/user.slice/user-1000.slice/user@1000.service", None),
            ("/user.slice/user-1000.slice/user@01000.service/a.service", None),
            ("/user.slice/user-1000.slice/session-3.scope/user@0.service/a.service", None),
            ("/system.slice/a.service/user@1000.service/a.service", None),
        ];
        for (path, expected) in cases {
            let found = Placement::of(path).user_unit;
            assert_eq!(found.as_ref().map(|found| (found.uid, found.unit.as_str())), *expected, "{path}");
        }
    }

    #[test]
    fn the_control_group_of_a_unit_is_the_one_nobody_in_it_could_have_made() {
        const MANAGER: &str = "/user.slice/user-1000.slice/user@1000.service";
        let app = format!("{MANAGER}/app.slice/app-x.scope");
        let cases: &[(&str, u32, Option<&str>)] = &[
            ("/system.slice/a.service", 0, Some("/system.slice/a.service")),
            ("/system.slice/ci.service/job-1", 0, Some("/system.slice/ci.service")),
            ("/system.slice/ci.service/system.slice/a.service", 0, Some("/system.slice/ci.service")),
            ("//system.slice//a.service/", 0, Some("//system.slice//a.service")),
            ("/init.scope", 0, Some("/init.scope")),
            (&format!("{app}/own/choice"), 1000, Some(&app)),
            // The word of a user counts for that user's processes alone.
            (&format!("{app}/own/choice"), 0, Some(MANAGER)),
            (&format!("{MANAGER}/x/a.service"), 1000, Some(MANAGER)),
            (MANAGER, 1000, Some(MANAGER)),
            ("/docker/4f4f", 0, None),
            ("/system.slice", 0, None),
            ("/", 0, None),
        ];
        for (path, uid, expected) in cases {
            assert_eq!(unit_path(path, *uid), *expected, "{path} of {uid}");
        }
    }

    #[test]
    fn names_are_taken_apart_as_systemd_writes_them() {
        type Case = (&'static str, &'static str, Option<(&'static str, &'static str)>);
        let cases: &[Case] = &[
            ("billing.service", "billing", None),
            ("a.b.service", "a.b", None),
            ("getty@tty1.service", "getty@tty1", Some(("getty", "tty1"))),
            ("a@b@c.service", "a@b@c", Some(("a", "b@c"))),
            ("a@.service", "a@", None),
            ("a@x\\x2dy.service", "a@x\\x2dy", Some(("a", "x\\x2dy"))),
        ];
        for (text, stem, template) in cases {
            let name = UnitName::parse(text).expect("valid");
            assert_eq!((name.stem(), name.template()), (*stem, *template), "{text}");
        }
        assert_eq!(UnitName::parse(&format!("{}.service", "a".repeat(247))).map(|name| name.0.len()), Some(255));
        assert_eq!(UnitName::parse(&format!("{}.service", "a".repeat(248))), None);
    }
}
