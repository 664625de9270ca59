//! `tether doctor`: what this host offers, and what is lost where something is missing.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use tokio::time::timeout;
use tonic::Status;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::attest::container::{Kind as Engine, examine_socket};
use crate::base::text::chain;
use crate::client::{Endpoint, channel, with_header};
use crate::config;
use crate::peer::Limits;
use crate::proto::admin::StatusRequest;
use crate::proto::admin::agent_client::AgentClient;
use crate::sys::{Kernel, harden};

use super::failure::Failure;
use super::output::{Text, Tone};
use super::{Context, Host, sockets};

/// How long the agent may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// How one thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Health {
    /// As it should be.
    Ok,
    /// Works, with something lost.
    Weak,
    /// Not there.
    Missing,
}

/// One line of the table.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Finding {
    what: &'static str,
    health: Health,
    /// What was found.
    found: String,
    /// What is lost and what to do about it; nothing when it is well.
    lost: Option<&'static str>,
}

#[derive(Serialize)]
struct Document {
    findings: Vec<Finding>,
}

pub(super) fn run(context: &mut Context) -> Result<(), Failure> {
    let mut findings = findings(&context.host);
    context.wait(async |context| {
        findings.extend(agent_sockets(&context.host).await);
        Ok(())
    })?;
    if context.output.is_json() {
        return context.json(&Document { findings });
    }
    let width = findings.iter().map(|finding| finding.what.chars().count()).max().unwrap_or(0);
    for Finding { what, health, found, lost } in &findings {
        let (tone, word) = match health {
            Health::Ok => (Tone::Good, "ok     "),
            Health::Weak => (Tone::Weak, "weak   "),
            Health::Missing => (Tone::Bad, "missing"),
        };
        context.output.line(Text::toned(tone, word).then(format!("  {what:<width$}  {found}")))?;
        if let Some(lost) = lost {
            context.output.line(format!("{:<1$}{lost}", "", width + 11))?;
        }
    }
    Ok(())
}

fn findings(host: &Host) -> Vec<Finding> {
    let mut findings = kernel(&Kernel::probe());
    findings.extend([yama(), cgroups(), ptrace(host), descriptors(), systemd(), bus(host), clock(host)]);
    findings.extend(engines(host));
    findings
}

fn finding(what: &'static str, health: Health, found: impl Into<String>, lost: &'static str) -> Finding {
    Finding { what, health, found: found.into(), lost: (health != Health::Ok).then_some(lost) }
}

fn kernel(kernel: &Kernel) -> Vec<Finding> {
    let has = |there: bool| if there { Health::Ok } else { Health::Weak };
    let found = |there: bool, since: &str| if there { "there".to_owned() } else { format!("needs Linux {since}") };
    [
        (
            "SO_PEERPIDFD",
            kernel.peer_pidfd,
            "6.5",
            "the caller is found by its number, which could be reused at the wrong moment: instances are weak",
        ),
        (
            "pidfs inodes",
            kernel.unique_inode,
            "6.9",
            "instances are named by number and start time, and identities end when the agent restarts: instances are weak",
        ),
        (
            "namespaces by pidfd",
            kernel.pidfd_namespaces,
            "6.11",
            "who owns a caller's pid namespace is read from /proc instead",
        ),
        ("PIDFD_GET_INFO", kernel.pidfd_info, "6.13", "credentials and cgroups are read from /proc, which costs time"),
        (
            "SO_PASSRIGHTS",
            kernel.pass_rights,
            "6.16",
            "descriptors sent along are refused by the agent instead of by the kernel",
        ),
    ]
    .into_iter()
    .map(|(what, there, since, lost)| finding(what, has(there), found(there, since), lost))
    .collect()
}

fn yama() -> Finding {
    let scope = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").map(|scope| scope.trim().to_owned());
    let lost = "a process can trace others of its uid and act as them: set kernel.yama.ptrace_scope = 1, and give each \
                workload its own uid";
    match scope.as_deref() {
        Ok("0") => finding("Yama", Health::Weak, "ptrace_scope is 0", lost),
        Ok(scope) => finding("Yama", Health::Ok, format!("ptrace_scope is {scope}"), lost),
        Err(_) => finding("Yama", Health::Missing, "not in this kernel", lost),
    }
}

fn cgroups() -> Finding {
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let lost = "the end of a unit is taken from systemd alone, and cgroup:path names the systemd hierarchy";
    if unified {
        finding("cgroup v2", Health::Ok, "unified", lost)
    } else {
        finding("cgroup v2", Health::Weak, "not unified", lost)
    }
}

/// Of this command, which stands for the agent when both are run by the same user.
fn ptrace(host: &Host) -> Finding {
    const CAP_SYS_PTRACE: u32 = 19;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    let lost = "an agent run by this user cannot see the executables of other users: unix:path and unix:sha256 are \
                unavailable to their processes";
    if effective & 1 << CAP_SYS_PTRACE != 0 {
        finding("CAP_SYS_PTRACE", Health::Ok, format!("uid {} has it", host.uid), lost)
    } else {
        finding("CAP_SYS_PTRACE", Health::Weak, format!("uid {} does not have it", host.uid), lost)
    }
}

/// Of this command, which stands for an agent that is started with the same limits.
fn descriptors() -> Finding {
    let lost = "an agent with this limit takes fewer connections than its configuration allows by default: set \
                LimitNOFILE in its unit";
    match harden::allowed_open_files().map(|allowed| (allowed, Limits::fitting(allowed))) {
        Ok((allowed, fitting)) if fitting < Limits::default().connections => {
            finding("descriptors", Health::Weak, format!("{allowed}, for {fitting} connections"), lost)
        }
        Ok((allowed, _)) => finding("descriptors", Health::Ok, allowed.to_string(), lost),
        Err(error) => finding("descriptors", Health::Weak, format!("the limit cannot be read: {error}"), lost),
    }
}

fn systemd() -> Finding {
    let lost = "there are no units: systemd:* selectors match nothing";
    if Path::new("/run/systemd/system").exists() {
        finding("systemd", Health::Ok, "it started this host", lost)
    } else {
        finding("systemd", Health::Missing, "it did not start this host", lost)
    }
}

fn bus(host: &Host) -> Finding {
    let address = host.variable("DBUS_SYSTEM_BUS_ADDRESS").unwrap_or("unix:path=/run/dbus/system_bus_socket");
    let lost = "systemd cannot be asked: systemd:id, fragment_path and invocation_id are unavailable, the rest is read \
                from the cgroup";
    let answers = address.strip_prefix("unix:path=").map(|path| path.split(',').next().unwrap_or(path));
    match answers.map(UnixStream::connect) {
        Some(Ok(_)) => finding("D-Bus", Health::Ok, address, lost),
        Some(Err(error)) => finding("D-Bus", Health::Missing, format!("{address}: {error}"), lost),
        None => finding("D-Bus", Health::Weak, format!("{address}: not a socket path, not tried"), lost),
    }
}

fn clock(host: &Host) -> Finding {
    /// No host that runs this can rightly believe it is an earlier year.
    const EARLIEST: i32 = 2026;
    let now = host.now();
    let lost = "documents carry times: with a wrong clock peers refuse them. Run a time service";
    let synchronised = ["/run/systemd/timesync/synchronized", "/run/chrony"];
    if now.year() < EARLIEST {
        finding("clock", Health::Missing, format!("it says {}", super::output::time(now)), lost)
    } else if synchronised.iter().any(|path| Path::new(path).exists()) {
        finding("clock", Health::Ok, "a time service keeps it", lost)
    } else {
        finding("clock", Health::Weak, format!("no time service seen; it says {}", super::output::time(now)), lost)
    }
}

/// The container engines, as the configuration of the installed agent names them.
fn engines(host: &Host) -> [Finding; 2] {
    let file = Some(host.path(Path::new(config::SYSTEM_FILE)));
    let loaded = config::Source { file, dev: None, env: host.env.clone(), flags: Vec::new() }.load();
    let attest = loaded.map(|loaded| loaded.config.attest).ok();
    let named = |socket: fn(&config::Attest) -> &Option<PathBuf>| attest.as_ref().map(|attest| socket(attest).clone());
    [
        engine(
            Engine::Docker,
            named(|attest| &attest.docker.socket),
            "docker:* is unavailable to processes in docker's containers, if the agent fares like this command",
        ),
        engine(
            Engine::Podman,
            named(|attest| &attest.podman.socket),
            "podman:* is unavailable to processes in podman's containers, if the agent fares like this command",
        ),
    ]
}

/// Whether an engine can be asked: `None` when the configuration cannot be read.
fn engine(engine: Engine, socket: Option<Option<PathBuf>>, lost: &'static str) -> Finding {
    let what = engine.as_str();
    let Some(socket) = socket else {
        return finding(what, Health::Ok, format!("not known: {} cannot be read", config::SYSTEM_FILE), lost);
    };
    let Some(socket) = socket else {
        let usual = engine.usual_socket();
        let is_here = if Path::new(usual).exists() { format!("; it is at {usual}") } else { String::new() };
        return finding(what, Health::Ok, format!("not asked: attest.{what}.socket is not set{is_here}"), lost);
    };
    match examine_socket(&socket) {
        Ok(()) => finding(what, Health::Ok, format!("{}, root's", socket.display()), lost),
        Err(why) => finding(what, Health::Missing, why, lost),
    }
}

/// The sockets of the agent. Each is asked something, which costs it nothing: a connection that says nothing is one more
/// that the agent must count among those it has cut.
async fn agent_sockets(host: &Host) -> [Finding; 2] {
    let (workload, admin) = (sockets::workload(host, None), sockets::admin(host, None));
    let of_workload = async |endpoint: &Endpoint| {
        let mut client = HealthClient::new(with_header(channel(endpoint)));
        answered(client.check(HealthCheckRequest::default())).await
    };
    // Who may not ask is told so, which is an answer.
    let of_admin = async |endpoint: &Endpoint| {
        let mut client = AgentClient::new(channel(endpoint));
        answered(client.status(StatusRequest {})).await
    };
    let lost = ["no workload can fetch anything", "status, explain and entries cannot be asked for"];
    [
        socket("workload socket", workload, of_workload, 0o666, lost[0]).await,
        socket("admin socket", admin, of_admin, 0, lost[1]).await,
    ]
}

/// Whether the agent answers at all, and why not.
async fn answered<T>(call: impl Future<Output = Result<T, Status>>) -> Result<(), String> {
    match timeout(PATIENCE, call).await {
        Ok(Err(status)) => std::error::Error::source(&status).map_or(Ok(()), |unreachable| Err(chain(unreachable))),
        Ok(Ok(_)) => Ok(()),
        Err(_) => Err(format!("no answer within {} seconds", PATIENCE.as_secs())),
    }
}

/// Whether the socket answers, and whether everyone it is meant for may open it (`mode` bits for all).
async fn socket(
    what: &'static str,
    endpoint: Result<Endpoint, Failure>,
    ask: impl AsyncFn(&Endpoint) -> Result<(), String>,
    mode: u32,
    lost: &'static str,
) -> Finding {
    let endpoint = match endpoint {
        Err(failure) => return finding(what, Health::Missing, failure.message, lost),
        Ok(endpoint) => endpoint,
    };
    let Endpoint::Unix(path) = &endpoint else {
        return finding(what, Health::Weak, format!("{endpoint}: not tried"), lost);
    };
    let shown = path.display();
    if let Err(why) = ask(&endpoint).await {
        return finding(what, Health::Missing, format!("{shown}: {why}"), lost);
    }
    match fs::metadata(path) {
        Ok(meta) if meta.permissions().mode() & mode == mode => finding(what, Health::Ok, shown.to_string(), lost),
        Ok(meta) => {
            let found = format!("{shown} has mode {:04o}, owner {}", meta.mode() & 0o7777, meta.uid());
            finding(what, Health::Weak, found, "users other than its owner cannot open it")
        }
        Err(error) => finding(what, Health::Missing, format!("{shown}: {error}"), lost),
    }
}
