//! Facts of a process from its `/proc` directory: program, credentials, start time, cgroup, open sockets.

use std::collections::{HashMap, HashSet};
use std::io;
use std::str::FromStr;

use nix::dir::Dir;
use nix::fcntl::OFlag;
use nix::libc;
use nix::sys::stat::Mode;

use super::cgroup::Group;
use super::procfs::{FileId, ProcDir};

/// Longer than any `status`, `stat` or `cgroup` file whose process has no more than the 65,536 groups Linux allows.
const FILE_LIMIT: u64 = 1024 * 1024;
/// The most descriptors that are searched for a socket: beyond this a search costs us more than its caller.
const MAX_DESCRIPTORS: usize = 65_536;

/// The credentials in `/proc/PID/status`, read together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The effective user id, in our user namespace.
    pub uid: u32,
    /// The effective group id, in our user namespace.
    pub gid: u32,
    /// The supplementary groups, in our user namespace.
    pub groups: Vec<u32>,
    /// How many pid namespaces the process has a number in, from the one of this `/proc` down to its own: 1 for a process
    /// of the same one, 0 where the kernel does not say.
    pub pid_namespaces: usize,
    /// Whether another process traces it now, and can make it do anything.
    pub is_traced: bool,
}

impl Status {
    /// Whether the process is, or may be, in a pid namespace below the one of this `/proc`.
    pub fn in_nested_pid_namespace(&self) -> bool {
        self.pid_namespaces != 1
    }
}

impl ProcDir {
    /// The program the process runs. Its path may be gone or be another file by now; this is the file itself.
    ///
    /// `ENOENT` when no thread has a program any more: the process is exiting, or is a kernel thread.
    pub fn executable(&self) -> io::Result<FileId> {
        match self.file_id("exe") {
            // The first thread may end before the others do. They run the same program.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => self.executable_of_any_thread().ok_or(error)?,
            other => other,
        }
    }

    fn executable_of_any_thread(&self) -> Option<io::Result<FileId>> {
        let mut threads = self.list("task").ok()?;
        threads.iter().filter_map(Result::ok).find_map(|thread| {
            let name = thread.file_name().to_str().ok()?.to_owned();
            if name.starts_with('.') {
                return None;
            }
            match self.file_id(&format!("task/{name}/exe")) {
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => None,
                other => Some(other),
            }
        })
    }

    /// The credentials of the process now.
    pub fn status(&self) -> io::Result<Status> {
        Status::parse(&self.read_whole("status")?).ok_or_else(|| invalid("status"))
    }

    /// A file that is used only if it was read to its end: one that was cut could lack a group, and a missing group can
    /// make an `unless` pass.
    fn read_whole(&self, name: &str) -> io::Result<Vec<u8>> {
        let content = self.read(name, FILE_LIMIT)?;
        if is_whole(&content) { Ok(content) } else { Err(invalid(name)) }
    }

    /// When the process started, in clock ticks after boot. It stays the same over `execve`.
    pub fn start_time(&self) -> io::Result<u64> {
        parse_stat_field(&self.read_whole("stat")?, 22).ok_or_else(|| invalid("stat"))
    }

    /// The number of its parent, as this `/proc` counts; 0 for a process whose parent it does not show.
    pub fn parent(&self) -> io::Result<i32> {
        parse_stat_field(&self.read_whole("stat")?, 4).ok_or_else(|| invalid("stat"))
    }

    /// The inode number of the cgroup v2 directory of the process; `None` where v2 is not mounted or not used, and where
    /// the directory cannot be seen.
    pub fn cgroup_id(&self) -> io::Result<Option<u64>> {
        let content = self.read_whole("cgroup")?;
        let path = content.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"0::"));
        let Some(path) = path.and_then(|path| std::str::from_utf8(path).ok()) else { return Ok(None) };
        let Some(root) = Group::root()? else { return Ok(None) };
        Ok(root.below(path).and_then(|group| group.id()).ok())
    }

    /// Every descriptor the process has of the socket with this inode number: is it closed by `execve`?
    pub fn descriptors_of_socket(&self, inode: u64) -> io::Result<Vec<bool>> {
        self.descriptors_of_sockets(&HashSet::from([inode]))?.remove(&inode).unwrap_or_else(|| Ok(Vec::new()))
    }

    /// The same for many sockets, for which the descriptors are looked through once: those that the process has, each
    /// with what was found out about it.
    pub fn descriptors_of_sockets(&self, inodes: &HashSet<u64>) -> io::Result<HashMap<u64, io::Result<Vec<bool>>>> {
        let mut found = HashMap::new();
        if inodes.is_empty() {
            return Ok(found);
        }
        for (count, entry) in self.list("fd")?.iter().enumerate() {
            if count >= MAX_DESCRIPTORS {
                return Err(io::Error::other(format!("the process has more than {MAX_DESCRIPTORS} descriptors open")));
            }
            let entry = entry?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            // A descriptor that is gone again between listing and reading is none.
            let Ok(target) = self.read_link(&format!("fd/{name}")) else { continue };
            let Some(inode) = target.to_str().and_then(socket_inode).filter(|inode| inodes.contains(inode)) else {
                continue;
            };
            let closed = self.read_whole(&format!("fdinfo/{name}"));
            let closed = closed.and_then(|info| parse_close_on_exec(&info).ok_or_else(|| invalid("fdinfo")));
            match (found.entry(inode).or_insert_with(|| Ok(Vec::new())), closed) {
                (Ok(of_socket), Ok(closed)) => of_socket.push(closed),
                (of_socket @ Ok(_), Err(error)) => *of_socket = Err(error),
                (Err(_), _) => {}
            }
        }
        Ok(found)
    }

    fn list(&self, name: &str) -> io::Result<Dir> {
        Ok(Dir::openat(self, name, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?)
    }
}

fn invalid(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("/proc/PID/{name} does not look as expected"))
}

/// The kernel ends each of these files with a newline.
fn is_whole(content: &[u8]) -> bool {
    (content.len() as u64) < FILE_LIMIT && content.ends_with(b"\n")
}

impl Status {
    /// Takes the effective ids of `Uid:` and `Gid:` (real, effective, saved, file system) and all of `Groups:`. The
    /// process chooses its `Name:`, but the kernel escapes newlines in it, so it cannot forge a line.
    pub fn parse(content: &[u8]) -> Option<Self> {
        let field = |name: &str| {
            let line = content.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(name.as_bytes()))?;
            std::str::from_utf8(line).ok()
        };
        let effective = |name| field(name)?.split_ascii_whitespace().nth(1)?.parse().ok();
        Some(Self {
            uid: effective("Uid:")?,
            gid: effective("Gid:")?,
            groups: field("Groups:")?.split_ascii_whitespace().map(|gid| gid.parse().ok()).collect::<Option<_>>()?,
            pid_namespaces: field("NSpid:").map_or(0, |pids| pids.split_ascii_whitespace().count()),
            is_traced: field("TracerPid:").is_none_or(|pid| pid.trim() != "0"),
        })
    }
}

/// A field of `stat` by its number in proc(5), from the fourth on. The second one, the name of the program in
/// parentheses, may itself hold spaces and parentheses.
fn parse_stat_field<T: FromStr>(content: &[u8], number: usize) -> Option<T> {
    let end_of_name = content.iter().rposition(|byte| *byte == b')')?;
    std::str::from_utf8(&content[end_of_name + 1..]).ok()?.split_ascii_whitespace().nth(number - 3)?.parse().ok()
}

/// The inode number in what the link of a socket's descriptor says.
fn socket_inode(target: &str) -> Option<u64> {
    target.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

fn parse_close_on_exec(content: &[u8]) -> Option<bool> {
    let flags = content.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"flags:"))?;
    let flags = i32::from_str_radix(std::str::from_utf8(flags).ok()?.trim(), 8).ok()?;
    Some(flags & libc::O_CLOEXEC != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    fn ourselves() -> ProcDir {
        ProcDir::open(std::process::id().cast_signed()).expect("it is us")
    }

    #[test]
    fn a_program_cannot_choose_its_start_time_or_its_parent_by_its_name() {
        let stat = b"42 (a) 1 (b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 777 20 21\n";
        assert_eq!(parse_stat_field(stat, 22), Some(777_u64));
        assert_eq!(parse_stat_field(stat, 4), Some(1_i32));
    }

    #[test]
    fn the_effective_ids_and_all_groups_are_taken_whatever_the_program_is_called() {
        let content = b"Name:\t\xff\\nUid:\t9\t9\nUmask:\t0022\nTracerPid:\t77\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nNSpid:\t9\t1\n\
                        Groups:\t10 4294967294 \n";
        let expected = Status { uid: 2, gid: 6, groups: vec![10, 4_294_967_294], pid_namespaces: 2, is_traced: true };
        assert_eq!(Status::parse(content), Some(expected));
        let root = b"Uid:\t0\t0\t0\t0\nTracerPid:\t0\nGid:\t0\t0\t0\t0\nGroups:\t \nNSpid:\t9\n";
        let expected = Status { uid: 0, gid: 0, groups: vec![], pid_namespaces: 1, is_traced: false };
        assert_eq!(Status::parse(root), Some(expected));
    }

    #[test]
    fn a_status_without_one_of_the_lines_is_refused() {
        for text in [
            "",
            "Uid:\t1\t1\t1\t1\nGid:\t1\t1\t1\t1\n",
            "Uid:\t1\nGid:\t1\t1\nGroups:\t\n",
            "Uid:\t1\t-1\nGid:\t1\t1\nGroups:\t\n",
            "Uid:\t1\t1\nGid:\t1\t1\nGroups:\t1 4294967296\n",
        ] {
            assert_eq!(Status::parse(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn a_file_that_was_cut_is_not_whole() {
        assert!(is_whole(b"Groups:\t1 2 \n"));
        assert!(!is_whole(b"Groups:\t1 2"));
        assert!(!is_whole(&vec![b'\n'; usize::try_from(FILE_LIMIT).expect("it fits")]));
    }

    #[test]
    fn our_own_credentials_are_what_the_kernel_says_otherwise() {
        let status = ourselves().status().expect("readable");
        assert_eq!(status.uid, nix::unistd::geteuid().as_raw());
        assert_eq!(status.gid, nix::unistd::getegid().as_raw());
    }

    #[test]
    fn a_socket_is_found_with_its_close_on_exec_flag_and_a_foreign_one_is_not() {
        let (socket, other) = UnixStream::pair().expect("a pair");
        let inode = super::super::procfs::file_id(&socket).expect("an inode").ino;
        assert_eq!(ourselves().descriptors_of_socket(inode).expect("readable"), [true]);
        nix::fcntl::fcntl(socket.as_fd(), nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).expect("set");
        assert_eq!(ourselves().descriptors_of_socket(inode).expect("readable"), [false]);
        drop((socket, other));
        assert_eq!(ourselves().descriptors_of_socket(inode).expect("readable"), [false; 0]);
    }

    #[test]
    fn the_cgroup_by_proc_is_the_cgroup_by_pidfd() {
        let pidfd = crate::sys::PidFd::open(std::process::id().cast_signed()).expect("us");
        if let (Ok(info), Ok(Some(id))) = (pidfd.info(), ourselves().cgroup_id()) {
            assert_eq!(info.cgroup_id, Some(id));
        }
    }

    #[test]
    fn the_program_of_a_process_whose_first_thread_has_ended_is_still_seen() {
        // Only a process of ours can be made to do this without a helper program: a thread group of one is the
        // ordinary case, and the search by thread must agree with it.
        let dir = ourselves();
        assert_eq!(
            dir.executable_of_any_thread().expect("a thread").expect("readable"),
            dir.executable().expect("readable")
        );
    }
}
