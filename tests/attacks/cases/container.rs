//! Who only looks as if it were in a container, and engines that are not root's.
//!
//! The naive server finds the container as older agents did: by the last id in the control groups of the process, or else
//! in its mounts; and believes whoever answers where an engine should.

use std::os::unix::fs::{chown, lchown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use super::Attack;
use crate::engine::{Trusted, serve};
use crate::needs::{self, cgroup_root};
use crate::roles::{GOT, NOTHING};
use crate::stage::{Actor, NOBODY, Running, Stage};
use crate::target::{Rule, Side, Target};

pub const ATTACKS: &[Attack] = &[
    Attack::new("a process of a container has what its labels give", honest)
        .needing(needs::cgroups)
        .on(&[Side::Tether, Side::OldKernel]),
    Attack::new("a delegated control group is named like a container", named_like_a_container).needing(needs::cgroups),
    Attack::new("a container names a control group of its own like another container", named_inside)
        .needing(needs::cgroups),
    Attack::new("mounts look like those of a container", mounted_like_a_container).needing(containers_and_namespaces),
    Attack::new("a user's own engine answers at a socket of the user's", engine_of_a_user).needing(needs::cgroups),
    Attack::new("a user's link leads to the socket of the engine", engine_behind_a_link).needing(needs::cgroups),
    Attack::new("a user's engine answers at a socket that was given to root", engine_given_to_root)
        .needing(needs::cgroups),
    Attack::new("root's engine names a process of another container as the first", another_first_process)
        .needing(needs::cgroups),
];

fn containers_and_namespaces() -> Result<(), String> {
    needs::cgroups()?;
    needs::user_namespaces()
}

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// Control groups of two containers, the trusted one with a process in it, as an engine of root's makes them.
struct Containers {
    parent: PathBuf,
    trusted: String,
    other: String,
    first: Running,
}

impl Containers {
    fn new(stage: &Stage) -> Self {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let parent = cgroup_root().unwrap().join(format!("tether-attack-{}-{number}", std::process::id()));
        std::fs::create_dir(&parent).unwrap();
        let id = |digit: &str| format!("{}{number:032x}", digit.repeat(32));
        // Nobody: its part is to be there.
        let first = Actor::new(stage.thief(), "fetch-when-told").arg(stage.path("nowhere")).start();
        let this = Self { parent, trusted: id("a"), other: id("b"), first };
        std::fs::create_dir(this.directory(&this.trusted)).unwrap();
        std::fs::create_dir(this.directory(&this.other)).unwrap();
        let procs = this.directory(&this.trusted).join("cgroup.procs");
        std::fs::write(procs, this.first.pid().to_string()).unwrap();
        this
    }

    fn directory(&self, id: &str) -> PathBuf {
        self.parent.join(id)
    }

    fn place(&self) -> String {
        format!("/{}", self.parent.file_name().unwrap().to_str().unwrap())
    }

    fn rule(&self, socket: &Path) -> Rule {
        Rule::Container { socket: socket.to_owned(), parent: self.place() }
    }

    /// An engine of root's that tells the truth, but for the first process of the container, which is `first`.
    fn engine(&self, stage: &Stage, first: impl Fn(&str) -> u32 + Send + 'static) -> PathBuf {
        let socket = stage.path("engine.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let trusted = Trusted::Only(self.trusted.clone());
        std::thread::spawn(move || serve(&listener, &trusted, first));
        socket
    }

    /// A process that root put into the control group, and that is nobody's from then on.
    fn inside(&self, id: &str, stage: &Stage, role: &str, arguments: &[&Path]) -> Running {
        entering(&self.directory(id), stage, role, arguments)
    }
}

/// A process of nobody's in a control group into which root puts it.
fn entering(directory: &Path, stage: &Stage, role: &str, arguments: &[&Path]) -> Running {
    let script =
        "echo 0 > \"$1/cgroup.procs\" && shift && exec setpriv --reuid=65534 --regid=65534 --clear-groups \"$@\"";
    let mut actor = Actor::new("sh", role).arg("-c").arg(script).arg("sh").arg(directory).arg(stage.thief());
    for argument in arguments {
        actor = actor.arg(argument);
    }
    actor.start()
}

impl Drop for Containers {
    fn drop(&mut self) {
        self.first.kill();
        // Processes of the attack may be there for a moment after they were killed.
        let mut left = vec![self.parent.clone()];
        while let Some(directory) = left.last().cloned() {
            let inner = std::fs::read_dir(&directory).into_iter().flatten().flatten().map(|entry| entry.path());
            match inner.filter(|path| path.is_dir()).last() {
                Some(inner) => left.push(inner),
                None => match std::fs::remove_dir(&directory) {
                    Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => std::thread::yield_now(),
                    _ => drop(left.pop()),
                },
            }
        }
    }
}

fn own(_: &str) -> u32 {
    std::process::id()
}

fn honest(side: Side) {
    let stage = Stage::new();
    let containers = Containers::new(&stage);
    let first = containers.first.pid();
    let socket = containers.engine(&stage, move |_| first);
    let mut target = Target::serving(&stage, side, &containers.rule(&socket));
    let mut workload = containers.inside(&containers.trusted, &stage, "fetch", &[target.socket()]);
    assert_eq!(workload.verdict(), GOT, "it is in the trusted container");
    workload.wait_for_exit();
    // The engine names the first process of the trusted one for the other too: it is not in there.
    let mut other = containers.inside(&containers.other, &stage, "fetch", &[target.socket()]);
    assert_eq!(other.verdict(), NOTHING);
    target.recorded(&["unavailable"]);
    other.wait_for_exit();
}

fn named_like_a_container(side: Side) {
    let stage = Stage::new();
    let containers = Containers::new(&stage);
    let first = containers.first.pid();
    let socket = containers.engine(&stage, move |_| first);
    let mut target = Target::serving(&stage, side, &containers.rule(&socket));
    let delegated = containers.directory(&"c".repeat(8));
    std::fs::create_dir(&delegated).unwrap();
    for owned in [delegated.clone(), delegated.join("cgroup.procs")] {
        chown(&owned, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let forged = delegated.join(&containers.trusted);
    let mut attacker = entering(&delegated, &stage, "enter-cgroup", &[&forged, target.socket()]);
    let verdict = attacker.verdict();
    target.judge(&verdict, &["no_identity"]);
    attacker.wait_for_exit();
}

/// Its own control group is the container's to write to, as inside a privileged or nested one.
fn named_inside(side: Side) {
    let stage = Stage::new();
    let containers = Containers::new(&stage);
    let (first, other) = (containers.first.pid(), containers.other.clone());
    let mut of_other = containers.inside(&other, &stage, "fetch-when-told", &[&stage.path("nowhere")]);
    assert_eq!(of_other.line(), "running");
    let of_other_pid = of_other.pid();
    let named = other.clone();
    let socket = containers.engine(&stage, move |id| if id == named { of_other_pid } else { first });
    let mut target = Target::serving(&stage, side, &containers.rule(&socket));
    let own = containers.directory(&other);
    for owned in [own.clone(), own.join("cgroup.procs")] {
        chown(&owned, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let forged = own.join(&containers.trusted);
    let mut attacker = containers.inside(&other, &stage, "enter-cgroup", &[&forged, target.socket()]);
    let verdict = attacker.verdict();
    target.judge(&verdict, &["no_identity"]);
    attacker.wait_for_exit();
    of_other.kill();
}

fn mounted_like_a_container(side: Side) {
    let stage = Stage::new();
    let containers = Containers::new(&stage);
    let first = containers.first.pid();
    let socket = containers.engine(&stage, move |_| first);
    let mut target = Target::serving(&stage, side, &containers.rule(&socket));
    let script = "mount -t tmpfs none /mnt && mkdir -p \"/mnt/containers/$0\" /mnt/to && \
                  mount --bind \"/mnt/containers/$0\" /mnt/to && exec \"$@\"";
    let namespace = ["unshare", "--map-root-user", "--mount", "sh", "-c", script, &containers.trusted];
    let attacker = Actor::under(&namespace, stage.thief(), "fetch").arg(target.socket());
    let verdict = attacker.unprivileged().start().verdict();
    target.judge(&verdict, &["no_identity"]);
}

/// Somebody in a container without the label, and an engine of the same user that lies about it.
fn with_lying_engine(side: Side, path: impl FnOnce(&Stage, &Path) -> PathBuf) {
    let stage = Stage::new();
    let containers = Containers::new(&stage);
    let theirs = stage.path("theirs");
    std::fs::create_dir(&theirs).unwrap();
    chown(&theirs, Some(NOBODY), Some(NOBODY)).unwrap();
    let mut workload =
        containers.inside(&containers.other, &stage, "fetch-when-told", &[&stage.path("s/workload.sock")]);
    assert_eq!(workload.line(), "running");
    let pid = workload.pid().to_string();
    let engine = Actor::new(stage.thief(), "engine").arg(theirs.join("engine.sock")).arg(&pid);
    let mut engine = engine.unprivileged().start();
    assert_eq!(engine.line(), "listening");
    let socket = path(&stage, &theirs);
    let mut target = Target::serving(&stage, side, &containers.rule(&socket));
    assert_eq!(target.socket(), stage.path("s/workload.sock"));
    workload.go_on();
    let verdict = workload.verdict();
    target.judge(&verdict, &["unavailable"]);
    workload.wait_for_exit();
}

fn engine_of_a_user(side: Side) {
    with_lying_engine(side, |_, theirs| theirs.join("engine.sock"));
}

fn engine_behind_a_link(side: Side) {
    with_lying_engine(side, |stage, theirs| {
        let link = stage.path("engine.sock");
        symlink(theirs.join("engine.sock"), &link).unwrap();
        lchown(&link, Some(0), Some(0)).unwrap();
        link
    });
}

fn engine_given_to_root(side: Side) {
    with_lying_engine(side, |_, theirs| {
        let socket = theirs.join("engine.sock");
        chown(&socket, Some(0), Some(0)).unwrap();
        chown(theirs, Some(0), Some(0)).unwrap();
        socket
    });
}

/// As one that is out of date does, when the number is somebody else's by now.
fn another_first_process(side: Side) {
    let stage = Stage::new();
    let containers = Containers::new(&stage);
    let socket = containers.engine(&stage, own);
    let mut target = Target::serving(&stage, side, &containers.rule(&socket));
    let mut workload = containers.inside(&containers.trusted, &stage, "fetch", &[target.socket()]);
    let verdict = workload.verdict();
    target.judge(&verdict, &["unavailable"]);
    workload.wait_for_exit();
}
