//! Real processes with real login uids, where the kernel has them; logind is played.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};

use super::*;
use crate::attest::NameSource;
use crate::base::clock::Clock;
use crate::base::entropy::Entropy;
use crate::peer::Instances;
use crate::sys::Kernel;
use crate::user::logind::{Changes, LoginError, LoginManager, LoginSession};

const AMPLE: Duration = Duration::from_secs(60);

/// Sessions by name, and the primary ones by user.
#[derive(Clone, Default)]
struct Played {
    sessions: HashMap<&'static str, LoginSession>,
    primary: HashMap<u32, &'static str>,
    is_gone: bool,
}

impl Played {
    fn answer<T: Send + 'static>(&self, answer: T) -> BoxFuture<'static, Result<T, LoginError>> {
        let gone = LoginError::Unreachable("no bus".into());
        std::future::ready(if self.is_gone { Err(gone) } else { Ok(answer) }).boxed()
    }
}

impl LoginManager for Played {
    fn session<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<LoginSession>, LoginError>> {
        self.answer(self.sessions.get(id).cloned())
    }

    fn primary<'a>(&'a self, uid: u32) -> BoxFuture<'a, Result<Option<String>, LoginError>> {
        self.answer(self.primary.get(&uid).map(|id| (*id).to_owned()))
    }

    fn changes<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Changes, LoginError>> {
        self.answer(stream::pending().boxed())
    }
}

/// One name: user 1000 is alice.
struct Alice;

impl NameSource for Alice {
    fn user(&self, uid: u32) -> io::Result<Option<String>> {
        match uid {
            7 => Err(io::Error::other("the directory is down")),
            1000 => Ok(Some("alice".to_owned())),
            _ => Ok(None),
        }
    }

    fn group(&self, _: u32) -> io::Result<Option<String>> {
        panic!("nobody asks")
    }
}

fn session(uid: u32, scope: &str, class: &str) -> LoginSession {
    LoginSession { uid, since: 1, scope: scope.to_owned(), class: class.to_owned(), closing: false }
}

fn local(played: Played, booted: &str) -> Local {
    let (clock, _hand) = Clock::manual(time::OffsetDateTime::UNIX_EPOCH);
    Local {
        agent: "spiffe://example.org/tether/agent/n1".to_owned(),
        node: "n1".to_owned(),
        names: Names::new(Alice, clock.clone(), AMPLE),
        patience: AMPLE,
        logins: Logins::new(Arc::new(played), AMPLE, clock, Entropy::system()),
        booted: booted.into(),
    }
}

/// A process that wrote this as its login uid, or nothing; `None` where the kernel does not let it, because its own
/// login uid is set or there is none.
struct Claimant(Child);

impl Claimant {
    fn start(login_uid: Option<u32>) -> Option<Self> {
        let claim = login_uid.map(|uid| format!("printf {uid} > /proc/self/loginuid || exit; ")).unwrap_or_default();
        let script = format!("{claim}echo ready; read line");
        let mut command = Command::new("sh");
        command.args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("sh starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("read");
        let this = Self(child);
        (line == "ready\n").then_some(this)
    }

    fn instance(&self) -> Arc<Instance> {
        let instances = Instances::new(Kernel::probe()).expect("/proc");
        instances.of_pid(self.0.id().cast_signed(), None).expect("it lives")
    }
}

impl Drop for Claimant {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether this kernel has login uids and ours is unset, so that a process can be made to claim one.
fn can_claim() -> bool {
    let own = std::fs::read_to_string("/proc/self/loginuid");
    own.is_ok_and(|own| own.trim_end() == UNSET.to_string())
}

#[tokio::test]
async fn a_process_of_no_login_has_no_user() {
    let expected = match std::fs::read_to_string("/proc/self/loginuid") {
        Err(_) => "no_audit",
        Ok(own) if own.trim_end() == UNSET.to_string() => "no_login",
        Ok(_) => return, // these tests run in a login
    };
    let claimant = Claimant::start(None).expect("it claims nothing");
    for booted in ["/nonexistent", "/"] {
        let error = local(Played::default(), booted).user_of(&claimant.instance()).await.unwrap_err();
        assert_eq!(error.as_str(), expected, "{booted}");
        assert!(error.to_string().contains("subject token"), "it says what to do: {error}");
    }
}

#[tokio::test]
async fn a_login_uid_that_a_process_gave_itself_proves_nobody_else() {
    if !can_claim() {
        return;
    }
    let own = nix::unistd::geteuid().as_raw();
    let forger = Claimant::start(Some(own + 1000)).expect("any process may do this");
    assert_eq!(login_uid(forger.instance().proc_dir()).unwrap(), Some(own + 1000), "the kernel believes it");
    let error = local(Played::default(), "/nonexistent").user_of(&forger.instance()).await.unwrap_err();
    assert_eq!(error.as_str(), "unproven_login");
    // On a host of systemd not even itself: it is in no login session.
    for claimed in [own, own + 1000] {
        let claimant = Claimant::start(Some(claimed)).expect("any process may do this");
        let error = local(Played::default(), "/").user_of(&claimant.instance()).await.unwrap_err();
        assert_eq!(error.as_str(), "no_login_session", "{error}");
    }
}

#[tokio::test]
async fn without_logind_a_process_that_runs_as_its_login_uid_is_of_that_user_who_has_no_end() {
    if !can_claim() || local_pid_namespace_is_nested() {
        return;
    }
    let own = nix::unistd::geteuid().as_raw();
    let claimant = Claimant::start(Some(own)).expect("any process may do this");
    let user = local(Played::default(), "/nonexistent").user_of(&claimant.instance()).await.unwrap();
    assert_eq!((user.subject, user.issuer.as_str()), (own.to_string(), "spiffe://example.org/tether/agent/n1"));
    assert_eq!(user.proof, UserProof::Local { uid: own, node: "n1".into(), login_session: None });
}

fn local_pid_namespace_is_nested() -> bool {
    let dir = ProcDir::open(std::process::id().cast_signed()).expect("us");
    dir.status().expect("readable").in_nested_pid_namespace()
}

#[tokio::test]
async fn a_process_that_has_gone_has_no_user() {
    let mut claimant = Claimant::start(None).expect("it claims nothing");
    let instance = claimant.instance();
    claimant.0.kill().expect("ours");
    claimant.0.wait().expect("ours");
    let error = local(Played::default(), "/nonexistent").user_of(&instance).await.unwrap_err();
    assert_eq!(error.as_str(), "process_gone");
}

#[tokio::test]
async fn the_login_session_is_that_of_the_control_group_and_logind_must_say_the_same() {
    let played = Played {
        sessions: HashMap::from([
            ("3", session(1000, "session-3.scope", "user")),
            ("4", session(1001, "session-4.scope", "user")),
            ("5", LoginSession { closing: true, ..session(1000, "session-5.scope", "user") }),
            ("6", session(1000, "session-6.scope", "background")),
            ("7", session(1000, "session-3.scope", "user")),
            ("c1", session(1000, "session-c1.scope", "greeter")),
            ("c2", session(1000, "session-c2.scope", "user-early")),
            ("8", session(1002, "session-8.scope", "manager")),
        ]),
        primary: HashMap::from([(1000, "3"), (1001, "3"), (1002, "8"), (1003, "9")]),
        is_gone: false,
    };
    let local = local(played, "/");
    for (uid, path, expected) in [
        (1000, "/user.slice/user-1000.slice/session-3.scope", Ok("3")),
        (1000, "/user.slice/user-1000.slice/session-3.scope/below", Ok("3")),
        (1000, "/user.slice/user-1000.slice/session-c2.scope", Ok("c2")),
        // The user's own manager stands for the session that logind calls the user's.
        (1000, "/user.slice/user-1000.slice/user@1000.service/app.slice/app-x.scope", Ok("3")),
        (1000, "/user.slice/user-1000.slice/user@1000.service", Ok("3")),
        (1001, "/user.slice/user-1001.slice/user@1001.service", Err("other_user")),
        (1002, "/user.slice/user-1002.slice/user@1002.service", Err("no_login_session")),
        (1003, "/user.slice/user-1003.slice/user@1003.service", Err("no_login_session")),
        (1004, "/user.slice/user-1004.slice/user@1004.service", Err("no_login_session")),
        // The login uid is another's.
        (0, "/user.slice/user-1000.slice/session-3.scope", Err("other_user")),
        (1001, "/user.slice/user-1000.slice/session-3.scope", Err("other_user")),
        (1000, "/user.slice/user-1001.slice/session-4.scope", Err("other_user")),
        (1000, "/user.slice/user-1000.slice/session-4.scope", Err("other_user")),
        (1000, "/user.slice/user-1000.slice/user@1001.service", Err("no_login_session")),
        // Over, or nobody's, or not where logind has it.
        (1000, "/user.slice/user-1000.slice/session-5.scope", Err("no_login_session")),
        (1000, "/user.slice/user-1000.slice/session-6.scope", Err("no_login_session")),
        (1000, "/user.slice/user-1000.slice/session-7.scope", Err("no_login_session")),
        (1000, "/user.slice/user-1000.slice/session-c1.scope", Err("no_login_session")),
        (1000, "/user.slice/user-1000.slice/session-99.scope", Err("no_login_session")),
        // Names that anybody may choose further down, or that logind never gives.
        (1000, "/system.slice/cron.service", Err("no_login_session")),
        (1000, "/system.slice/docker-0.scope/user.slice/user-1000.slice/session-3.scope", Err("no_login_session")),
        (1000, "/user.slice/user-1000.slice/x/session-3.scope", Err("no_login_session")),
        (1000, "/user.slice/user-1000.slice/session-.scope", Err("no_login_session")),
        (1000, "/user.slice/user-1000.slice/session-3.scope.d", Err("no_login_session")),
        (1000, "/user.slice/user-1000.slice/session-..scope", Err("no_login_session")),
        (1000, "/user.slice/user-+1000.slice/session-3.scope", Err("no_login_session")),
        (1000, "/user.slice/user-01000.slice/session-3.scope", Err("no_login_session")),
        (1000, "/user.slice/user-1000.slice", Err("no_login_session")),
        (1000, "/", Err("no_login_session")),
    ] {
        let found = local.session(uid, &Place::At(path.to_owned())).await;
        assert_eq!(
            found.as_deref().map_err(|error| error.as_str()),
            expected.as_deref().map_err(|label| *label),
            "{uid} {path}"
        );
    }
    for place in [Place::Outside("/../x".to_owned()), Place::Nowhere] {
        assert_eq!(local.session(1000, &place).await.unwrap_err().as_str(), "no_login_session");
    }
}

#[tokio::test]
async fn a_logind_that_cannot_be_asked_proves_nobody_and_it_may_later() {
    let local = local(Played { is_gone: true, ..Played::default() }, "/");
    for path in ["/user.slice/user-1000.slice/session-3.scope", "/user.slice/user-1000.slice/user@1000.service"] {
        let error = local.session(1000, &Place::At(path.to_owned())).await.unwrap_err();
        assert!(error.as_str() == "logind_unavailable" && error.is_temporary(), "{path}");
    }
}
