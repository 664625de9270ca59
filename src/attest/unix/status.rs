//! Users and groups in `/proc/PID/status`.

use crate::attest::AttestError;
use crate::sys::procfs::ProcDir;

/// Room for the 65536 groups a process can have, ten digits each, and the rest of the file.
const MAX_BYTES: u64 = 1 << 20;
const FILE: &str = "status";

/// Who the process runs as.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Status {
    /// The effective user.
    pub uid: u32,
    /// The effective group.
    pub gid: u32,
    /// The supplementary groups, in the kernel's order.
    pub groups: Vec<u32>,
}

impl Status {
    pub fn read(proc_dir: &ProcDir) -> Result<Self, AttestError> {
        let content = proc_dir.read(FILE, MAX_BYTES).map_err(|error| AttestError::read(FILE, error))?;
        // A file that was cut could lack groups, and a missing group can make an `unless` pass.
        let complete = (content.len() as u64) < MAX_BYTES;
        let status = if complete { Self::parse(&content) } else { None };
        status.ok_or(AttestError::Malformed { file: FILE })
    }

    /// Takes the effective ids of `Uid:` and `Gid:` (real, effective, saved, file system) and all of `Groups:`. The
    /// process chooses its `Name:`, but the kernel escapes newlines in it, so it cannot forge a line.
    pub fn parse(content: &[u8]) -> Option<Self> {
        let line = |name: &[u8]| {
            let rest = content.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(name))?;
            std::str::from_utf8(rest).ok()
        };
        let effective = |ids: &str| ids.split_ascii_whitespace().nth(1)?.parse().ok();
        let groups = line(b"Groups:")?.split_ascii_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
        Some(Self { uid: effective(line(b"Uid:")?)?, gid: effective(line(b"Gid:")?)?, groups })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_ids_and_all_groups_are_taken() {
        let text =
            b"Name:\t\xff\\nUid:\t9\t9\nUmask:\t0022\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t10 4294967294 \n";
        assert_eq!(Status::parse(text), Some(Status { uid: 2, gid: 6, groups: vec![10, 4294967294] }));
        let none = b"Uid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\nGroups:\t \n";
        assert_eq!(Status::parse(none), Some(Status { uid: 0, gid: 0, groups: vec![] }));
    }

    #[test]
    fn a_file_without_one_of_the_lines_is_refused() {
        for text in [
            "",
            "Uid:\t1\t1\t1\t1\nGid:\t1\t1\t1\t1\n",
            "Uid:\t1\nGid:\t1\t1\nGroups:\t\n",
            "Uid:\t1\t-1\nGid:\t1\t1\nGroups:\t\n",
        ] {
            assert_eq!(Status::parse(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn our_own_status_has_our_effective_ids() {
        let ours = ProcDir::open(std::process::id().cast_signed()).expect("we live");
        let status = Status::read(&ours).expect("readable");
        assert_eq!((status.uid, status.gid), (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw()));
    }
}
