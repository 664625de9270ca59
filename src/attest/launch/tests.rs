//! Real launchers: shells, which are believed because the test says so.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Child, ChildStdout, Command, Stdio};

use time::OffsetDateTime;

use super::*;
use crate::attest::{Attestation, Attestors, Wanted};
use crate::base::quota::Turns;
use crate::peer::Instances;
use crate::sys::Kernel;

/// A shell that starts a process at its first line and says its number, and ends with its input.
struct Shell {
    child: Child,
    stdout: BufReader<ChildStdout>,
    started: Vec<i32>,
}

impl Shell {
    fn start() -> Self {
        Self::of(&mut Command::new("sh"))
    }

    fn of(command: &mut Command) -> Self {
        let mut child = command
            .args(["-c", "while read line; do sleep 600 >/dev/null 2>&1 & echo $!; done"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("sh starts");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, stdout, started: Vec::new() }
    }

    fn fork(&mut self) -> i32 {
        self.child.stdin.as_mut().expect("piped").write_all(b"go\n").expect("written");
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("read");
        let started: i32 = line.trim().parse().expect("a number");
        self.started.push(started);
        // Between fork and exec it is still the shell.
        while std::fs::read_to_string(format!("/proc/{started}/comm")).is_ok_and(|comm| comm.trim() != "sleep") {
            std::thread::yield_now();
        }
        started
    }

    fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        for pid in &self.started {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::SIGKILL);
        }
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

struct Host {
    launches: Launches,
    instances: Instances,
    dir: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        Self::with(Config { launchers: vec![shell()], ..Config::default() })
    }

    fn with(config: Config) -> Self {
        let (clock, _hand) = Clock::manual(OffsetDateTime::UNIX_EPOCH);
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).expect("set");
        let instances = Instances::new(Kernel::probe()).expect("proc is mounted");
        Self { launches: Launches::new(config, clock), instances, dir }
    }

    fn instance(&self, pid: i32) -> Arc<Instance> {
        self.instances.of_pid(pid, None).expect("it lives")
    }

    fn write(&self, name: &str, content: &str) -> String {
        let path = self.dir.path().join(name);
        std::fs::create_dir_all(path.parent().expect("below")).expect("made");
        std::fs::write(&path, content).expect("written");
        path.to_str().expect("text").to_owned()
    }

    async fn measure(&self, shell: &Shell, what: LaunchRequest) -> Result<Launch, LaunchError> {
        self.launches.measure(&self.instance(shell.pid()), &what).await
    }

    fn of(&self, pid: i32) -> Vec<String> {
        let found = self.launches.of(&self.instance(pid)).expect("answered");
        found.iter().map(|selector| selector.as_str().to_owned()).collect()
    }
}

fn shell() -> PathBuf {
    let found = Command::new("sh").args(["-c", "command -v sh"]).output().expect("sh runs").stdout;
    std::fs::canonicalize(String::from_utf8(found).expect("text").trim_end()).expect("it is there")
}

fn program(path: &str) -> LaunchRequest {
    LaunchRequest { program: path.to_owned(), ..LaunchRequest::default() }
}

fn launch(name: &str) -> Launch {
    Launch::recorded(&[format!("launch:script:/{name}")]).expect("ours")
}

#[tokio::test]
async fn program_and_script_are_measured_and_told_apart_by_path_and_content() {
    let (host, shell) = (Host::new(), Shell::start());
    let interpreter = host.write("python", "abc");
    let script = host.write("agent.py", "print()");
    let request = LaunchRequest { script: Some(script.clone()), ..program(&interpreter) };
    let launch = host.measure(&shell, request).await.expect("measured");
    let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(launch.selectors()[..2], [format!("launch:path:{interpreter}"), format!("launch:sha256:{digest}")]);
    assert_eq!(launch.selectors()[2], format!("launch:script:{script}"));
    assert!(launch.selectors()[3].starts_with("launch:script_sha256:"));
    assert_eq!(Launch::recorded(launch.selectors()).as_ref(), Some(&launch));
}

#[tokio::test]
async fn a_path_is_what_it_leads_to() {
    let (host, shell) = (Host::new(), Shell::start());
    let real = host.write("python3.11", "x");
    let link = host.dir.path().join("python3");
    symlink("python3.11", &link).expect("linked");
    let launch = host.measure(&shell, program(link.to_str().expect("text"))).await.expect("measured");
    assert_eq!(launch.selectors()[0], format!("launch:path:{real}"));
}

#[tokio::test]
async fn only_the_named_programs_are_believed_and_not_while_they_are_traced() {
    let nobody = Host::with(Config { launchers: vec!["/nonexistent/tether".into()], ..Config::default() });
    let shell = Shell::start();
    let path = nobody.write("x", "x");
    let error = nobody.measure(&shell, program(&path)).await.expect_err("refused");
    assert!(matches!(&error, LaunchError::NotALauncher(names) if names.contains("/nonexistent/tether")), "{error}");

    let host = Host::new();
    let pid = nix::unistd::Pid::from_raw(shell.pid());
    if nix::sys::ptrace::seize(pid, nix::sys::ptrace::Options::empty()).is_ok() {
        // Seen from the thread that traces it, as from any other.
        assert!(matches!(host.measure(&shell, program(&path)).await, Err(LaunchError::Traced)));
    }
}

#[tokio::test]
async fn the_launcher_of_another_user_is_believed_only_if_its_user_cannot_trace_it() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let host = Host::new();
    let shell = Shell::of(Command::new("setpriv").args(["--reuid=65534", "--clear-groups", "sh"]));
    let path = host.write("x", "x");
    // `setpriv` becomes the shell.
    let wanted = std::fs::metadata(self::shell()).ok().map(|found| crate::attest::unix::executable::id_of(&found));
    let instance = loop {
        match host.instances.of_pid(shell.pid(), None) {
            Ok(instance) if instance.executable().ok() == wanted => break instance,
            _ => std::thread::yield_now(),
        }
    };
    assert!(matches!(host.launches.measure(&instance, &program(&path)).await, Err(LaunchError::Traceable)));
}

#[tokio::test]
async fn what_is_no_file_or_has_no_absolute_path_is_refused() {
    let (host, shell) = (Host::new(), Shell::start());
    let dir = host.dir.path().to_str().expect("text").to_owned();
    let file = host.write("x", "x");
    for (request, expected) in [
        (program("x"), "not an absolute path"),
        (program("/a\nb"), "not an absolute path"),
        (program(&dir), "not a file"),
        (program(&format!("{dir}/absent")), "cannot be read"),
        (program("/dev/null"), "cannot be read"),
        (LaunchRequest { directory: Some(file.clone()), ..program(&file) }, "not a directory"),
    ] {
        let error = host.measure(&shell, request.clone()).await.expect_err("refused").to_string();
        assert!(error.contains(expected), "{request:?}: {error}");
    }
}

#[tokio::test]
async fn the_digest_of_a_directory_is_that_of_its_content_modes_names_and_links() {
    let (host, shell) = (Host::new(), Shell::start());
    let file = host.write("x", "x");
    let dir = host.dir.path().join("agent");
    host.write("agent/main.py", "abc");
    host.write("agent/lib/a.py", "");
    symlink("main.py", dir.join("run")).expect("linked");
    let mode =
        |name: &str, mode| std::fs::set_permissions(dir.join(name), PermissionsExt::from_mode(mode)).expect("set");
    mode("main.py", 0o644);
    mode("lib/a.py", 0o600);
    mode("lib", 0o755);
    let measure = async || {
        let directory = Some(dir.to_str().expect("text").to_owned());
        let launch = host.measure(&shell, LaunchRequest { directory, ..program(&file) }).await.expect("measured");
        launch.selectors()[3].clone()
    };
    // As anybody would compute it from the documentation.
    let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let records = format!("d 0755 lib\0f 0600 {nothing} lib/a.py\0f 0644 {abc} main.py\0l run\0main.py\0");
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, records.as_bytes());
    let first = measure().await;
    assert_eq!(first, format!("launch:dir_sha256:{}", crate::base::entropy::hex(digest.as_ref())));

    mode("main.py", 0o755);
    let other_mode = measure().await;
    std::fs::write(dir.join("main.py"), "abd").expect("written");
    let other_content = measure().await;
    std::fs::rename(dir.join("run"), dir.join("run2")).expect("renamed");
    let other_name = measure().await;
    let all = std::collections::BTreeSet::from([first, other_mode, other_content, other_name]);
    assert_eq!(all.len(), 4, "each change is seen");
}

#[tokio::test]
async fn a_directory_beyond_the_limits_or_with_other_things_in_it_has_no_digest() {
    let limits = Config { launchers: vec![shell()], max_entries: 3, max_directory_bytes: 4, ..Config::default() };
    let (host, shell) = (Host::with(limits), Shell::start());
    let file = host.write("x", "x");
    for name in ["many/a", "many/b", "many/c", "many/d"] {
        host.write(name, "");
    }
    host.write("large/a", "12345");
    host.write("pipe/a", "");
    nix::unistd::mkfifo(&host.dir.path().join("pipe/fifo"), nix::sys::stat::Mode::S_IRWXU).expect("made");
    for (name, expected) in [("many", "more than 3"), ("large", "more than 4 bytes"), ("pipe", "`fifo`")] {
        let directory = Some(host.dir.path().join(name).to_str().expect("text").to_owned());
        let error = host.measure(&shell, LaunchRequest { directory, ..program(&file) }).await.expect_err("refused");
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[tokio::test]
async fn the_facts_hold_for_the_tree_and_for_nobody_else_until_the_guard_is_dropped() {
    let (host, mut tree, mut other) = (Host::new(), Shell::start(), Shell::start());
    let (child, stranger) = (tree.fork(), other.fork());
    let launched = host.launches.add(LaunchedBy::Tree(host.instance(tree.pid())), &launch("a")).expect("added");
    let expected = ["launch:script:/a"];
    assert_eq!(host.of(child), expected);
    assert_eq!(host.of(tree.pid()), expected);
    assert_eq!(host.of(stranger), [""; 0]);
    let again = host.launches.add(LaunchedBy::Tree(host.instance(tree.pid())), &launch("b"));
    assert!(matches!(again, Err(LaunchError::Again)));
    drop(launched);
    assert_eq!(host.of(child), [""; 0]);
}

#[tokio::test]
async fn of_a_launch_within_a_launch_the_inner_one_counts() {
    let (host, mut tree) = (Host::new(), Shell::start());
    let (child, sibling) = (tree.fork(), tree.fork());
    let _outer = host.launches.add(LaunchedBy::Tree(host.instance(tree.pid())), &launch("outer")).expect("added");
    let _inner = host.launches.add(LaunchedBy::Process(host.instance(child)), &launch("inner")).expect("added");
    assert_eq!(host.of(child), ["launch:script:/inner"]);
    assert_eq!(host.of(sibling), ["launch:script:/outer"]);
}

#[tokio::test]
async fn the_selectors_are_attested_as_soon_as_they_hold_and_no_longer() {
    let (host, mut tree) = (Host::new(), Shell::start());
    let child = host.instance(tree.fork());
    let (clock, _hand) = Clock::manual(OffsetDateTime::UNIX_EPOCH);
    let attestors = Attestors::default().with(MemberOfLaunch, Duration::from_secs(60));
    let attestation = Attestation::new(attestors, host.launches.clone(), Turns::new(8, 8), clock);
    let wanted = Arc::new(Wanted::keys([("launch", "script")]));
    let selector = Selector::parse("launch:script:/a").expect("a selector");
    let holds = async || {
        let attested = attestation.attest(&child, &wanted).await.expect("it lives");
        assert!(attested.evidence().gap_for(&selector).is_none());
        attested.evidence().selectors.contains(&selector)
    };
    assert!(!holds().await);
    let launched = host.launches.add(LaunchedBy::Tree(host.instance(tree.pid())), &launch("a")).expect("added");
    assert!(holds().await);
    drop(launched);
    assert!(!holds().await);
}

#[test]
fn only_launch_selectors_are_taken_back() {
    assert!(Launch::recorded(&["launch:path:/a".to_owned()]).is_some());
    for wrong in ["unix:uid:0", "launch:uid:0", "x"] {
        assert!(Launch::recorded(&[wrong.to_owned()]).is_none(), "{wrong}");
    }
}
