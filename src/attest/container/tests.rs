//! With engines that lie, and real processes in real control groups. Those need root and a hierarchy of version 2 that
//! can be written to; where these are not, the tests that want them look at nothing.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::*;
use crate::attest::tests::{Sleeper, evidence};
use crate::attest::{Evidence, Wanted};
use crate::selector::Selector;
use crate::sys::cgroup;
use crate::sys::procfs::ProcDir;

const AMPLE: Duration = Duration::from_secs(60);
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A process in a control group like that of a container, below a directory of this test's own.
pub(super) struct Box {
    pub kind: Kind,
    pub id: String,
    parent: PathBuf,
    sleeper: Sleeper,
}

impl Box {
    /// `None` where control groups cannot be made.
    pub fn start(kind: Kind) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            return None;
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let parent = cgroup::mount_point()?.join(format!("tether-container-{}-{number}", std::process::id()));
        fs::create_dir(&parent).ok()?;
        let id = format!("abcdef{:026x}{number:032x}", std::process::id());
        let this = Self { kind, id, parent, sleeper: Sleeper::start() };
        fs::create_dir(this.directory()).expect("made");
        this.enter(this.pid());
        Some(this)
    }

    fn directory(&self) -> PathBuf {
        let prefix = if self.kind == Kind::Podman { "libpod-" } else { "" };
        self.parent.join(format!("{prefix}{}", self.id))
    }

    pub fn pid(&self) -> u32 {
        self.sleeper.0.id()
    }

    pub fn proc_dir(&self) -> ProcDir {
        ProcDir::open(self.pid().cast_signed()).expect("it lives")
    }

    /// Moves a process into it.
    pub fn enter(&self, pid: u32) {
        fs::write(self.directory().join("cgroup.procs"), pid.to_string()).expect("moved");
    }

    /// Moves the process out of it, into the directory above.
    pub fn leave(&self) {
        fs::write(self.parent.join("cgroup.procs"), self.pid().to_string()).expect("moved");
    }

    /// Removes the empty directory and makes another one.
    pub fn make_anew(&self) {
        fs::remove_dir(self.directory()).expect("it is empty");
        fs::create_dir(self.directory()).expect("made");
    }

    /// Gives the directory above to others.
    pub fn delegate(&self, uid: u32, mode: u32) {
        chown(&self.parent, Some(uid), None).expect("we are root");
        fs::set_permissions(&self.parent, fs::Permissions::from_mode(mode)).expect("we are root");
    }

    fn config(&self, patience: Duration) -> Config {
        let name = self.parent.file_name().expect("a name").to_str().expect("text");
        Config { socket: None, parents: vec![format!("/{name}").parse().expect("valid")], patience }
    }

    pub fn parents(&self) -> Vec<Parent> {
        self.config(AMPLE).parents
    }

    pub fn locate(&self) -> Result<Located, AttestError> {
        locate(self.kind, &self.parents(), &self.sleeper.subject())
    }

    /// The attestor with this engine.
    fn attestor(&self, engine: &FakeEngine, patience: Duration) -> Container {
        let socket = EngineSocket::of_user(&engine.path(), nix::unistd::geteuid().as_raw());
        let (clock, _hand) = Clock::manual(time::OffsetDateTime::UNIX_EPOCH);
        Container::asking(self.kind, Some(socket), &self.config(patience), clock, Entropy::system())
    }

    /// The same container in systemd's own hierarchy of version 1, and its process there alone; `None` where there is none.
    fn in_version_1(&self) -> Option<VersionOne> {
        let name = self.parent.file_name().expect("a name");
        let parent = PathBuf::from("/sys/fs/cgroup/systemd").join(name);
        cgroup::has_two_hierarchies().then_some(())?;
        let directory = parent.join(self.directory().file_name().expect("a name"));
        fs::create_dir(&parent).and_then(|()| fs::create_dir(&directory)).expect("made");
        fs::write(directory.join("cgroup.procs"), self.pid().to_string()).expect("moved");
        Some(VersionOne { parent, directory })
    }

    async fn look(&self, attestor: &Container) -> Evidence {
        evidence(attestor.attest(&self.sleeper.subject(), &Wanted::everything()).await.expect("looked at"))
    }

    /// What a truthful engine says of it.
    fn description(&self) -> String {
        describe(&self.id, self.pid(), true)
    }
}

struct VersionOne {
    parent: PathBuf,
    directory: PathBuf,
}

impl Drop for VersionOne {
    fn drop(&mut self) {
        let procs = fs::read_to_string(self.directory.join("cgroup.procs")).unwrap_or_default();
        for pid in procs.lines() {
            let _ = fs::write("/sys/fs/cgroup/systemd/cgroup.procs", pid);
        }
        let _ = fs::remove_dir(&self.directory).and_then(|()| fs::remove_dir(&self.parent));
    }
}

impl Drop for Box {
    fn drop(&mut self) {
        self.sleeper.stop();
        // The kernel lets go of a process that was reaped a moment later.
        while fs::remove_dir(self.directory()).is_err_and(|error| error.kind() == std::io::ErrorKind::ResourceBusy) {
            std::thread::yield_now();
        }
        let _ = fs::remove_dir(&self.parent);
    }
}

fn describe(id: &str, pid: u32, running: bool) -> String {
    let digest = "0a".repeat(32);
    format!(
        r#"{{"Id":"{id}","Name":"/web","Image":"sha256:{digest}","State":{{"Running":{running},"Pid":{pid}}},
            "Config":{{"Image":"web:1","Labels":{{"app":"web"}},"Env":["A=b"]}}}}"#
    )
}

/// What an engine does with a question.
#[derive(Clone)]
enum Reply {
    Json(&'static str, String),
    Raw(Vec<u8>),
    Hang,
}

fn ok(body: impl Into<String>) -> Reply {
    Reply::Json("200 OK", body.into())
}

type Script = Arc<dyn Fn(&str) -> Reply + Send + Sync>;

/// Whoever listens where an engine should.
pub(super) struct FakeEngine {
    dir: tempfile::TempDir,
    asked: Arc<Mutex<Vec<String>>>,
}

impl FakeEngine {
    fn start(script: impl Fn(&str) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_in(tempfile::tempdir().expect("temporary"), script)
    }

    fn start_in(dir: tempfile::TempDir, script: impl Fn(&str) -> Reply + Send + Sync + 'static) -> Self {
        let listener = UnixListener::bind(dir.path().join("engine.sock")).expect("bound");
        let (script, asked): (Script, _) = (Arc::new(script), Arc::<Mutex<Vec<String>>>::default());
        let heard = asked.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, script.clone(), heard.clone()));
            }
        });
        Self { dir, asked }
    }

    /// One that is there, and is asked about nothing.
    pub(super) fn well_in(dir: tempfile::TempDir) -> Self {
        Self::start_in(dir, |_| ok("OK"))
    }

    /// One that is there, and answers this about any container.
    fn saying(reply: Reply) -> Self {
        Self::start(move |path| if path == "/_ping" { ok("OK") } else { reply.clone() })
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("engine.sock")
    }

    /// The questions about containers.
    fn questions(&self) -> Vec<String> {
        self.asked.lock().expect("whole").iter().filter(|path| *path != "/_ping").cloned().collect()
    }
}

async fn serve(mut stream: UnixStream, script: Script, asked: Arc<Mutex<Vec<String>>>) {
    let mut request = Vec::new();
    loop {
        while !request.ends_with(b"\r\n\r\n") {
            match stream.read_u8().await {
                Ok(byte) => request.push(byte),
                Err(_) => return,
            }
        }
        let line = String::from_utf8(std::mem::take(&mut request)).expect("text");
        let path = line.split(' ').nth(1).expect("a path").to_owned();
        let reply = script(&path);
        asked.lock().expect("whole").push(path);
        let bytes = match reply {
            Reply::Json(status, body) => {
                format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
            }
            Reply::Raw(bytes) => {
                let _ = stream.write_all(&bytes).await;
                return;
            }
            Reply::Hang => std::future::pending().await,
        };
        if stream.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn a_process_in_a_container_has_what_the_engine_says_of_it() {
    for kind in [Kind::Docker, Kind::Podman] {
        let Some(container) = Box::start(kind) else { return };
        let engine = FakeEngine::saying(ok(container.description()));
        let attestor = container.attestor(&engine, AMPLE);
        let found = container.look(&attestor).await;
        assert_eq!(found.gaps, []);
        let name = kind.as_str();
        for fact in ["name:web", "label:app:web", "env:A=b", "image_id:web:1"] {
            let fact = Selector::parse(&format!("{name}:{fact}")).expect("valid");
            assert!(found.selectors.contains(&fact), "{fact} {found:?}");
        }
        assert!(found.notes.iter().any(|note| note.text.contains("is in container `web`")), "{:?}", found.notes);
        assert_eq!(engine.questions(), [format!("/containers/{}/json", container.id)]);
        assert_eq!(attestor.weaker(), None);
    }
}

#[tokio::test]
async fn processes_outside_of_containers_have_neither_facts_nor_gaps_and_the_engine_is_not_asked() {
    let Some(container) = Box::start(Kind::Docker) else { return };
    let engine = FakeEngine::saying(ok(container.description()));
    let attestor = container.attestor(&engine, AMPLE);
    container.leave();
    assert_eq!(container.look(&attestor).await, Evidence::default());
    // One whose directory a user could have made.
    container.enter(container.pid());
    container.delegate(65_534, 0o755);
    let forged = container.look(&attestor).await;
    assert_eq!((forged.selectors.len(), forged.gaps.len(), forged.notes.len()), (0, 0, 1));
    assert_eq!(engine.questions(), Vec::<String>::new());
}

#[tokio::test]
async fn on_hosts_with_both_versions_either_hierarchy_tells_and_two_that_disagree_say_nothing() {
    let Some(container) = Box::start(Kind::Docker) else { return };
    let Some(version_1) = container.in_version_1() else { return };
    let engine = FakeEngine::saying(ok(container.description()));
    let attestor = container.attestor(&engine, AMPLE);
    let both = container.look(&attestor).await;
    assert_eq!((both.gaps.len(), both.selectors.len()), (0, 5));
    container.leave();
    let version_1_alone = container.look(&attestor).await;
    assert_eq!((&version_1_alone.selectors, version_1_alone.gaps.len()), (&both.selectors, 0));
    chown(&version_1.parent, Some(65_534), None).expect("we are root");
    assert_eq!(container.look(&attestor).await.selectors.len(), 0, "a user could have made it");
    chown(&version_1.parent, Some(0), None).expect("we are root");
    // The process moves on to another container in one of them.
    container.enter(container.pid());
    let other = version_1.parent.join("c".repeat(64));
    fs::create_dir(&other).expect("made");
    fs::write(other.join("cgroup.procs"), container.pid().to_string()).expect("moved");
    let disagree = container.look(&attestor).await;
    assert!(disagree.gap("docker", "name").is_some_and(|gap| gap.why.contains("two containers")), "{disagree:?}");
    fs::write(version_1.directory.join("cgroup.procs"), container.pid().to_string()).expect("moved");
    fs::remove_dir(&other).expect("it is empty");
}

#[tokio::test]
async fn where_the_engine_is_not_asked_its_containers_are_gaps_and_others_are_not() {
    let Some(container) = Box::start(Kind::Docker) else { return };
    let (clock, _hand) = Clock::manual(time::OffsetDateTime::UNIX_EPOCH);
    let attestor = Container::asking(Kind::Docker, None, &container.config(AMPLE), clock, Entropy::system());
    let inside = container.look(&attestor).await;
    assert!(inside.gap("docker", "label").is_some_and(|gap| gap.why.contains("attest.docker.socket")));
    container.leave();
    assert_eq!(container.look(&attestor).await, Evidence::default());
}

#[tokio::test]
async fn an_answer_that_is_not_about_this_very_container_is_not_believed() {
    let Some(container) = Box::start(Kind::Docker) else { return };
    let other = Box::start(Kind::Docker).expect("the first could be made");
    let mut gone = Sleeper::start();
    let gone_pid = gone.0.id();
    gone.stop();
    let (id, pid) = (&container.id, container.pid());
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let twice = container.description().replacen('{', r#"{"Id":"x","#, 1);
    let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"Id\"".to_vec();
    let long_head = format!("HTTP/1.1 200 OK\r\nX: {}\r\nContent-Length: 0\r\n\r\n", "x".repeat(64 * 1024));
    let many_fields = format!("HTTP/1.1 200 OK\r\n{}Content-Length: 0\r\n\r\n", "X: y\r\n".repeat(200));
    let mut endless = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", u64::MAX / 2).into_bytes();
    endless.resize(2 * 1024 * 1024, b' ');
    let cases = [
        (ok(describe(&other.id, pid, true)), "another container"),
        (ok(describe(&id.to_uppercase(), pid, true)), "another container"),
        (ok(describe(id, other.pid(), true)), "not in the container's control group"),
        (ok(describe(id, std::process::id(), true)), "not in the container's control group"),
        (ok(describe(id, 1, true)), "not in the container's control group"),
        (ok(describe(id, gone_pid, true)), "cannot be looked at"),
        (ok(describe(id, 0, true)), "does not run"),
        (ok(describe(id, pid, false)), "does not run"),
        (Reply::Json("404 Not Found", String::new()), "knows no such container"),
        (Reply::Json("500 Internal Server Error", container.description()), "500"),
        (Reply::Json("301 Moved Permanently", container.description()), "301"),
        (ok("{}"), "no description"),
        (ok(""), "no description"),
        (ok("null"), "no description"),
        (ok(&container.description()[..40]), "no description"),
        (ok(deep), "no description"),
        (ok(twice), "no description"),
        (ok(format!("{}{}", container.description(), " ".repeat(1024 * 1024))), "longer than"),
        (Reply::Raw(endless), "longer than"),
        (Reply::Raw(chunked), "does not answer as an engine does"),
        (Reply::Raw(b"SSH-2.0-x\r\n\r\n".to_vec()), "does not answer as an engine does"),
        (Reply::Raw(Vec::new()), "does not answer as an engine does"),
        (Reply::Raw(long_head.into_bytes()), "does not answer as an engine does"),
        (Reply::Raw(many_fields.into_bytes()), "does not answer as an engine does"),
    ];
    for (reply, why) in cases {
        let engine = FakeEngine::saying(reply);
        let found = container.look(&container.attestor(&engine, AMPLE)).await;
        assert_eq!(found.selectors.len(), 0, "{why}");
        let gap = found.gap("docker", "label").expect("a gap");
        assert!(gap.why.contains(why), "`{}` should say `{why}`", gap.why);
    }
}

#[tokio::test]
async fn a_process_older_than_the_first_of_its_container_is_not_believed_to_be_in_that_run() {
    let Some(container) = Box::start(Kind::Docker) else { return };
    let ticks = |pid: u32| ProcDir::open(pid.cast_signed()).and_then(|dir| dir.start_time()).expect("it lives");
    // Ticks are coarse: one that starts soon after may have started in the same one.
    let starts = std::iter::repeat_with(Sleeper::start);
    let young = starts.into_iter().find(|one| ticks(one.0.id()) > ticks(container.pid())).expect("time goes on");
    container.enter(young.0.id());
    let engine = FakeEngine::saying(ok(describe(&container.id, young.0.id(), true)));
    let found = container.look(&container.attestor(&engine, AMPLE)).await;
    assert!(found.gap("docker", "name").is_some_and(|gap| gap.why.contains("older")), "{found:?}");
}

#[tokio::test]
async fn a_process_that_leaves_its_container_while_the_engine_is_asked_has_nothing_of_it() {
    let Some(container) = Box::start(Kind::Docker) else { return };
    let first = Sleeper::start();
    container.enter(first.0.id());
    // Younger than the first, as every other process of a container is.
    let mover = Sleeper::start();
    container.enter(mover.0.id());
    let (id, named, pid) = (container.id.clone(), first.0.id(), mover.0.id());
    let elsewhere = container.parent.join("cgroup.procs");
    let engine = FakeEngine::start(move |path| {
        if path != "/_ping" {
            fs::write(&elsewhere, pid.to_string()).expect("moved");
        }
        if path == "/_ping" { ok("OK") } else { ok(describe(&id, named, true)) }
    });
    let attestor = container.attestor(&engine, AMPLE);
    let found = attestor.attest(&mover.subject(), &Wanted::everything()).await;
    assert!(matches!(found, Err(AttestError::Changed { .. })), "{found:?}");
}

#[tokio::test]
async fn a_thousand_processes_of_a_container_cost_one_question_while_its_first_process_lives() {
    let Some(container) = Box::start(Kind::Docker) else { return };
    let first = Arc::new(Mutex::new(Sleeper::start()));
    container.enter(first.lock().expect("whole").0.id());
    let (id, named) = (container.id.clone(), first.lock().expect("whole").0.id());
    let others = container.pid();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let engine = FakeEngine::start(move |path| match path {
        "/_ping" => ok("OK"),
        _ if count.fetch_add(1, Ordering::SeqCst) == 0 => ok(describe(&id, named, true)),
        _ => ok(describe(&id, others, true)),
    });
    let attestor = container.attestor(&engine, AMPLE);
    // The process that asks is not older than itself.
    let known = engine_of(&attestor);
    let Ok(Located::In(place)) = container.locate() else { panic!("it is in its container") };
    let all = join_all((0..1000).map(|_| known.container(&place))).await;
    assert!(all.iter().all(Result::is_ok));
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    first.lock().expect("whole").stop();
    assert!(known.container(&place).await.is_ok());
    assert_eq!(asked.load(Ordering::SeqCst), 2, "the run that was described is over");
}

fn engine_of(attestor: &Container) -> &Engine {
    attestor.engine.as_ref().expect("configured")
}

#[tokio::test]
async fn a_hung_engine_is_a_gap_and_then_left_alone_and_an_engine_that_is_back_is_heard() {
    let Some(container) = Box::start(Kind::Docker) else { return };
    let description = container.description();
    let hung = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let is_hung = hung.clone();
    let engine = FakeEngine::start(move |path| match path {
        _ if is_hung.load(Ordering::SeqCst) => Reply::Hang,
        "/_ping" => ok("OK"),
        _ => ok(description.clone()),
    });
    let attestor = container.attestor(&engine, Duration::from_millis(30));
    let late = container.look(&attestor).await;
    assert!(late.gap("docker", "name").is_some_and(|gap| gap.why.contains("did not answer within")), "{late:?}");
    let resting = container.look(&attestor).await;
    assert!(resting.gap("docker", "name").is_some_and(|gap| gap.why.contains("is asked again soon")), "{resting:?}");
    let weaker = attestor.weaker().expect("it is out");
    assert!(weaker.contains("until docker answers") && weaker.contains("engine.sock"), "{weaker}");
    // The manual clock never moves, so this one's rest would not end; a new one has none.
    hung.store(false, Ordering::SeqCst);
    let attestor = container.attestor(&engine, AMPLE);
    assert_eq!(container.look(&attestor).await.gaps, []);
    assert_eq!(attestor.weaker(), None);
}

#[tokio::test]
async fn a_container_the_engine_does_not_answer_about_costs_no_other_container() {
    let Some(stuck) = Box::start(Kind::Docker) else { return };
    let other = Box::start(Kind::Docker).expect("the first could be made");
    let (stuck_path, description) = (format!("/containers/{}/json", stuck.id), other.description());
    let engine = FakeEngine::start(move |path| match path {
        "/_ping" => ok("OK"),
        path if path == stuck_path => Reply::Hang,
        _ => ok(description.clone()),
    });
    let socket = EngineSocket::of_user(&engine.path(), nix::unistd::geteuid().as_raw());
    let (clock, _hand) = Clock::manual(time::OffsetDateTime::UNIX_EPOCH);
    let mut config = stuck.config(Duration::from_secs(2));
    config.parents.extend(other.config(AMPLE).parents);
    let attestor = Container::asking(Kind::Docker, Some(socket), &config, clock, Entropy::system());
    let found = stuck.look(&attestor).await;
    assert!(found.gap("docker", "name").is_some_and(|gap| gap.why.contains("about the container")), "{found:?}");
    assert_eq!(attestor.weaker(), None, "the engine is well");
    assert_eq!(other.look(&attestor).await.gaps, []);
}
