//! Opening files with the rights of somebody else.

use std::marker::PhantomData;

use nix::unistd::{Gid, Uid, geteuid, setfsgid, setfsuid};

use super::Status;

/// Whose rights to files count.
#[derive(Clone, Debug)]
pub struct FileAccess {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
}

/// While it lives, the thread opens files with no more rights than the user it was made for.
#[derive(Debug)]
pub struct Assumed {
    before: Option<(Uid, Gid)>,
    /// It is the thread's.
    _thread: PhantomData<*const ()>,
}

impl FileAccess {
    /// The rights of a process with these credentials.
    pub fn of(status: &Status) -> Self {
        Self { uid: status.uid, gid: status.gid, groups: status.groups.clone() }
    }

    /// Whether the permissions of a file let them read it. Access control lists are not seen: what only they allow is not
    /// allowed here.
    pub fn may_read(&self, owner: u32, group: u32, mode: u32) -> bool {
        if self.uid == 0 {
            return true;
        }
        let shift = if self.uid == owner {
            6
        } else if self.gid == group || self.groups.contains(&group) {
            3
        } else {
            0
        };
        (mode >> shift) & 0o4 != 0
    }

    /// Takes on user and group for what this thread opens (`setfsuid`), where we are root: with that go the capabilities
    /// that override permissions. The supplementary groups stay ours; [`Self::may_read`] is asked besides.
    pub fn assume(&self) -> Assumed {
        let before = geteuid().is_root().then(|| {
            // The group first: afterwards we may not.
            let gid = setfsgid(Gid::from_raw(self.gid));
            (setfsuid(Uid::from_raw(self.uid)), gid)
        });
        Assumed { before, _thread: PhantomData }
    }
}

impl Drop for Assumed {
    fn drop(&mut self) {
        if let Some((uid, gid)) = self.before {
            setfsuid(uid);
            setfsgid(gid);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_class_that_fits_first_decides_who_may_read() {
        let user = FileAccess { uid: 7, gid: 8, groups: vec![9] };
        for (owner, group, mode, expected) in [
            (7, 0, 0o400, true),
            (7, 8, 0o044, false),
            (0, 8, 0o040, true),
            (0, 9, 0o040, true),
            (0, 9, 0o004, false),
            (0, 0, 0o004, true),
            (0, 0, 0o660, false),
        ] {
            assert_eq!(user.may_read(owner, group, mode), expected, "{owner}:{group} {mode:o}");
        }
    }

    #[test]
    fn a_thread_that_took_on_a_user_cannot_open_what_is_closed_to_it_and_can_again_afterwards() {
        if !geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().expect("a directory, closed to others");
        let file = dir.path().join("file");
        std::fs::write(&file, "x").expect("written");
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("it is ours");
        let user = FileAccess { uid: 65_534, gid: 65_534, groups: Vec::new() };
        let assumed = user.assume();
        assert!(std::fs::File::open(&file).is_err());
        drop(assumed);
        assert!(std::fs::File::open(&file).is_ok());
    }
}
