//! Whose share a caller takes: real user namespaces, with user ids that a user was given. Takes root.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt as _;

use super::*;

/// Owns a user namespace, and the two user ids from [`GIVEN`] on in it.
const NOBODY: u32 = 65_534;
const GIVEN: u32 = 1_500_000_000;

/// A user namespace; gone when this is dropped.
struct Namespace(Child);

impl Namespace {
    /// One that `owner` has made. `None` where this host does not let us.
    fn made_by(owner: u32) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            return None;
        }
        let mut holder = Command::new("unshare");
        holder.args(["--user", "cat"]).uid(owner).gid(owner).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = holder.stderr(Stdio::null()).spawn().ok()?;
        // `cat` answers once it is in there.
        let stdout = holder.stdout.take().expect("piped");
        let running = holder.stdin.as_mut().expect("piped").write_all(b"hello\n").is_ok();
        let mut line = String::new();
        let answered = running && BufReader::new(stdout).read_line(&mut line).is_ok() && line == "hello\n";
        let namespace = Self(holder);
        let mapped = ["uid_map", "gid_map"].iter().all(|map| {
            let path = format!("/proc/{}/{map}", namespace.0.id());
            std::fs::write(path, format!("0 {GIVEN} 2")).is_ok()
        });
        (answered && mapped).then_some(namespace)
    }

    /// A process in it that connects, as the user that has the number `uid` in there.
    fn caller(&self, uid: u32, path: &Path) -> Caller {
        let mut command = Command::new("nsenter");
        command.arg(format!("--user=/proc/{}/ns/user", self.0.id()));
        command.args(["--setuid", &uid.to_string(), "--setgid", &uid.to_string()]);
        command.arg(std::env::current_exe().expect("our file"));
        command.args(["--exact", "peer::tests::caller", "--nocapture"]).env(ROLE, "stay").env(PATH, path);
        Caller(command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("nsenter is there"))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A process that stays until this is dropped.
struct Caller(Child);

impl Drop for Caller {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// A fixture that everybody may connect to, with one connection for each user.
fn for_everybody(kernel: Kernel) -> Fixture {
    let fixture = Fixture::new(kernel, Limits { connections_per_uid: 1, ..Limits::default() });
    let dir = fixture.path.parent().expect("a directory");
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).expect("ours");
    fixture
}

async fn refused(fixture: &Fixture) -> Vec<&'static str> {
    tokio::select! {
        biased;
        _ = fixture.accept() => panic!("there is no room"),
        () = async { while fixture.refusals.labels().is_empty() { tokio::task::yield_now().await } } => {}
    }
    fixture.refusals.labels()
}

#[tokio::test]
async fn a_user_with_many_user_ids_in_a_namespace_of_its_own_has_the_share_of_one() {
    for kernel in all_kernels() {
        let Some(namespace) = Namespace::made_by(NOBODY) else {
            eprintln!("skipped: user namespaces of others take root");
            return;
        };
        let fixture = for_everybody(kernel);
        let _first = namespace.caller(0, &fixture.path);
        let stream = fixture.accept().await;
        assert_eq!(stream.conn().uid(), GIVEN, "it is known by its own user id");
        assert_eq!(stream.conn().share(), NOBODY);
        let _second = namespace.caller(1, &fixture.path);
        assert_eq!(refused(&fixture).await, ["too_many_connections"]);
        let _another = fixture.connect();
        assert_eq!(fixture.accept().await.conn().share(), 0, "others have their share");
    }
}

#[tokio::test]
async fn a_container_that_root_has_made_has_a_share_of_its_own_and_takes_none_of_roots() {
    for kernel in all_kernels() {
        let (Some(namespace), Some(other)) = (Namespace::made_by(0), Namespace::made_by(0)) else {
            eprintln!("skipped: user namespaces of others take root");
            return;
        };
        let fixture = for_everybody(kernel);
        let _root = fixture.connect();
        let _root = fixture.accept().await;
        let _first = namespace.caller(0, &fixture.path);
        let stream = fixture.accept().await;
        let _other = other.caller(0, &fixture.path);
        let other = fixture.accept().await;
        assert_eq!(stream.conn().uid(), other.conn().uid());
        assert_ne!(stream.conn().share(), other.conn().share());
        let _second = namespace.caller(1, &fixture.path);
        assert_eq!(refused(&fixture).await, ["too_many_connections"]);
    }
}
