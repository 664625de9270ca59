//! What some attacks need of the host. A test whose need is not met is reported as ignored, with the reason.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::statvfs::{FsFlags, statvfs};

use crate::stage::NOBODY;

/// A need, and why it is not met.
pub type Need = fn() -> Result<(), String>;

pub fn nothing() -> Result<(), String> {
    Ok(())
}

pub fn root() -> Result<(), String> {
    if nix::unistd::geteuid().is_root() { Ok(()) } else { Err("needs root".to_owned()) }
}

/// Taking descriptors of processes of the same user.
pub fn tracing() -> Result<(), String> {
    let scope = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    if root().is_ok() || matches!(scope.trim(), "" | "0") {
        return Ok(());
    }
    Err("Yama (kernel.yama.ptrace_scope) forbids taking descriptors of others".to_owned())
}

/// Tracing, by an attack that knows the registers of one processor.
pub fn tracing_on_this_processor() -> Result<(), String> {
    if cfg!(target_arch = "x86_64") { tracing() } else { Err("needs x86-64".to_owned()) }
}

/// User namespaces for everybody.
pub fn user_namespaces() -> Result<(), String> {
    let mut probe = Command::new("unshare");
    probe.args(["--map-root-user", "--pid", "--fork", "true"]);
    if root().is_ok() {
        probe.uid(NOBODY).gid(NOBODY);
    }
    succeeds(&mut probe).map_err(|why| format!("needs user namespaces for unprivileged users: {why}"))
}

pub fn mount_namespaces() -> Result<(), String> {
    let mut probe = Command::new("unshare");
    probe.args(["--map-root-user", "--mount", "true"]);
    succeeds(&mut probe).map_err(|why| format!("needs mount namespaces: {why}"))
}

/// Starts a command in a network namespace of its own.
pub const NETWORK_NAMESPACE: &[&str] = &["unshare", "--map-root-user", "--net"];

pub fn network_namespaces() -> Result<(), String> {
    let mut probe = Command::new(NETWORK_NAMESPACE[0]);
    probe.args(&NETWORK_NAMESPACE[1..]).arg("true");
    succeeds(&mut probe).map_err(|why| format!("needs network namespaces: {why}"))
}

/// A limit of process numbers that holds for one pid namespace: the host's must not be touched.
pub fn pid_max_of_a_namespace() -> Result<(), String> {
    root()?;
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").map_err(|error| error.to_string())?;
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= (6, 14) {
        return Ok(());
    }
    Err(format!("needs Linux 6.14, where kernel.pid_max belongs to a pid namespace; this is {}", release.trim()))
}

/// Processes with numbers of our choice.
pub fn choosing_numbers() -> Result<(), String> {
    root()?;
    let status = std::fs::read_to_string("/proc/self/status").map_err(|error| error.to_string())?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or(0);
    const CAP_SYS_ADMIN: u32 = 21;
    const CAP_CHECKPOINT_RESTORE: u32 = 40;
    let may = [CAP_SYS_ADMIN, CAP_CHECKPOINT_RESTORE].into_iter().any(|bit| effective & (1 << bit) != 0);
    if may { Ok(()) } else { Err("needs CAP_CHECKPOINT_RESTORE, to choose the number of a process".to_owned()) }
}

/// Files that run as their owner.
pub fn setuid_files() -> Result<(), String> {
    root()?;
    let mount = statvfs(&std::env::temp_dir()).map_err(|errno| errno.to_string())?;
    let ignored = mount.flags().contains(FsFlags::ST_NOSUID);
    if ignored { Err("needs a temporary directory that is not mounted nosuid".to_owned()) } else { Ok(()) }
}

/// Control groups that can be given away.
pub fn cgroups() -> Result<(), String> {
    root()?;
    let probe = cgroup_root()?.join(format!("tether-attack-probe-{}", std::process::id()));
    std::fs::create_dir(&probe).map_err(|error| format!("needs a writable cgroup v2 hierarchy: {error}"))?;
    std::fs::remove_dir(&probe).map_err(|error| error.to_string())
}

/// Where cgroup v2 is mounted.
pub fn cgroup_root() -> Result<PathBuf, String> {
    let places = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new);
    let found = places.into_iter().find(|place| place.join("cgroup.procs").exists());
    found.map(Path::to_owned).ok_or_else(|| "needs cgroup v2".to_owned())
}

/// Runs a command that says by its exit whether it could do what it was for.
fn succeeds(command: &mut Command) -> Result<(), String> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()) }
}
