//! A real message bus with something on it that answers like logind.

use std::sync::{Arc, Mutex};

use zbus::{ObjectPath, Variant, connection};

use super::*;
use crate::attest::dbus::tests::{Daemon, address};
use crate::base::clock::Clock;
use crate::base::entropy::Entropy;
use crate::user::logins::Logins;
use crate::user::{UserEnd, UserError};

const PATIENCE: Duration = Duration::from_secs(10);

/// A session as the played logind has it.
#[derive(Clone, Debug)]
struct Played {
    uid: u32,
    since: u64,
    state: &'static str,
}

/// What the played logind knows.
#[derive(Default)]
struct Known {
    sessions: HashMap<String, Played>,
    display: HashMap<u32, String>,
    /// Questions are heard and not answered.
    hangs: bool,
}

struct Player {
    connection: Connection,
    known: Arc<Mutex<Known>>,
}

fn session_path(id: &str) -> String {
    format!("/org/freedesktop/login1/session/_3{id}")
}

impl Player {
    async fn start(dir: &Path, known: &Arc<Mutex<Known>>) -> Self {
        let connection = connection::Builder::address(&*address(dir)).build().await.expect("connected");
        let mut calls = MessageStream::from(&connection);
        connection.request_name(SERVICE).await.expect("nobody else has the name");
        let (answering, shown) = (connection.clone(), known.clone());
        tokio::spawn(async move {
            while let Some(Ok(call)) = calls.next().await {
                if call.message_type() == message::Type::MethodCall && !shown.lock().unwrap().hangs {
                    answer(&answering, &call, &shown).await.expect("answered");
                }
            }
        });
        Self { connection, known: known.clone() }
    }

    /// The session is in this state from now on, and logind says so in the way of its version.
    async fn becomes(&self, id: &str, state: &'static str, says: bool) {
        self.known.lock().unwrap().sessions.get_mut(id).expect("there").state = state;
        if says {
            let changed: HashMap<&str, Variant<'_>> = HashMap::from([("State", state.into())]);
            let body = (SESSION, changed, Vec::<&str>::new());
            self.emit(&session_path(id), PROPERTIES, "PropertiesChanged", &body).await;
        }
    }

    async fn removes(&self, id: &str) {
        self.known.lock().unwrap().sessions.remove(id);
        let path = session_path(id);
        let body = (id, ObjectPath::try_from(path.as_str()).expect("a path"));
        self.emit(MANAGER_PATH, MANAGER, "SessionRemoved", &body).await;
    }

    async fn emit<B: serde::Serialize + zbus::DynamicType>(&self, path: &str, interface: &str, name: &str, body: &B) {
        self.connection.emit_signal(None::<&str>, path, interface, name, body).await.expect("sent");
    }
}

async fn answer(connection: &Connection, call: &Message, known: &Mutex<Known>) -> zbus::Result<()> {
    let header = call.header();
    let path = header.path().map(|path| path.as_str().to_owned()).unwrap_or_default();
    match header.member().map(|name| name.as_str()) {
        Some("GetSession") => {
            let body = call.body();
            let (id,): (&str,) = body.deserialize()?;
            if !known.lock().unwrap().sessions.contains_key(id) {
                return connection.reply_error(&header, NO_SUCH_SESSION, &("none",)).await;
            }
            let path = session_path(id);
            connection.reply(&header, &(ObjectPath::try_from(path.as_str())?,)).await
        }
        Some("GetUser") => {
            let (uid,): (u32,) = call.body().deserialize()?;
            if !known.lock().unwrap().display.contains_key(&uid) {
                return connection.reply_error(&header, NO_SUCH_USER, &("none",)).await;
            }
            let path = format!("/org/freedesktop/login1/user/_{uid}");
            connection.reply(&header, &(ObjectPath::try_from(path.as_str())?,)).await
        }
        Some("GetAll") => {
            let properties = match path.rsplit_once("/session/_3") {
                Some((_, id)) => known.lock().unwrap().sessions.get(id).cloned().map(|session| {
                    let user = ObjectPath::try_from("/org/freedesktop/login1/user/_1000").expect("a path");
                    HashMap::from([
                        ("User", Variant::from((session.uid, user))),
                        ("Scope", Variant::from(format!("session-{id}.scope"))),
                        ("Class", "user".into()),
                        ("State", session.state.into()),
                        ("Timestamp", session.since.into()),
                        ("Remote", true.into()),
                    ])
                }),
                None => {
                    let uid = path.rsplit_once('_').and_then(|(_, uid)| uid.parse().ok()).expect("a user's path");
                    known.lock().unwrap().display.get(&uid).cloned().map(|id| {
                        let path = if id.is_empty() { "/".to_owned() } else { session_path(&id) };
                        let path = ObjectPath::try_from(path).expect("a path");
                        HashMap::from([("Display", Variant::from((id, path))), ("UID", uid.into())])
                    })
                }
            };
            match properties {
                Some(properties) => connection.reply(&header, &(properties,)).await,
                None => connection.reply_error(&header, NO_SUCH_SESSION, &("gone",)).await,
            }
        }
        member => panic!("nobody should call {member:?}"),
    }
}

struct Scene {
    dir: tempfile::TempDir,
    known: Arc<Mutex<Known>>,
    logind: Arc<Logind>,
}

impl Scene {
    /// User 1000 with the open session `3`.
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("temporary");
        std::fs::create_dir(dir.path().join("sessions")).expect("made");
        let alice = Played { uid: 1000, since: 17, state: "active" };
        let known = Known {
            sessions: HashMap::from([("3".to_owned(), alice)]),
            display: HashMap::from([(1000, "3".to_owned()), (1001, String::new())]),
            hangs: false,
        };
        let logind = Logind::new(Some(address(dir.path())), dir.path().join("sessions"));
        Self { dir, known: Arc::new(Mutex::new(known)), logind: Arc::new(logind) }
    }

    fn logins(&self) -> Logins {
        let (clock, _hand) = Clock::manual(time::OffsetDateTime::UNIX_EPOCH);
        Logins::new(self.logind.clone(), PATIENCE, clock, Entropy::system())
    }

    /// logind writes the session's file anew: with all its contents at once, as it does.
    fn writes(&self, id: &str) {
        let (file, beside) = (self.dir.path().join("sessions").join(id), self.dir.path().join("new"));
        std::fs::write(&beside, "private").expect("written");
        std::fs::rename(beside, file).expect("renamed");
    }
}

#[tokio::test]
async fn what_logind_says_of_sessions_and_users_is_understood() {
    let scene = Scene::new();
    let Some(_daemon) = Daemon::start(scene.dir.path()) else { return };
    let player = Player::start(scene.dir.path(), &scene.known).await;
    let open =
        LoginSession { uid: 1000, since: 17, scope: "session-3.scope".into(), class: "user".into(), closing: false };
    assert_eq!(scene.logind.session("3").await, Ok(Some(open.clone())));
    for state in ["online", "opening", "active"] {
        player.becomes("3", state, false).await;
        assert_eq!(scene.logind.session("3").await, Ok(Some(open.clone())), "{state}");
    }
    player.becomes("3", "closing", false).await;
    assert_eq!(scene.logind.session("3").await, Ok(Some(LoginSession { closing: true, ..open })));
    assert_eq!(scene.logind.session("4").await, Ok(None));
    assert_eq!(scene.logind.primary(1000).await, Ok(Some("3".to_owned())));
    assert_eq!(scene.logind.primary(1001).await, Ok(None), "it lingers");
    assert_eq!(scene.logind.primary(1002).await, Ok(None));
    player.connection.close().await.expect("closed");
    assert!(scene.logind.session("3").await.is_err_and(|error| error.is_outage()), "a bus without logind");
}

#[tokio::test]
async fn a_login_that_is_held_ends_in_each_of_the_ways_in_which_logind_tells_it() {
    for way in ["removed", "says closing", "writes closing"] {
        let scene = Scene::new();
        let Some(_daemon) = Daemon::start(scene.dir.path()) else { return };
        let player = Player::start(scene.dir.path(), &scene.known).await;
        let logins = scene.logins();
        let login = logins.hold("3", 1000).await.expect("logged in");
        let same = logins.hold("3", 1000).await.expect("logged in");
        assert!(Arc::ptr_eq(&login, &same), "followed once");
        // Signs that it goes on end nobody.
        scene.writes("3");
        scene.writes("4");
        player.becomes("3", "online", true).await;
        let waiting = tokio::spawn(async move { login.ended().await });
        match way {
            "removed" => player.removes("3").await,
            "says closing" => player.becomes("3", "closing", true).await,
            _ => {
                player.becomes("3", "closing", false).await;
                scene.writes("3");
            }
        }
        assert_eq!(waiting.await.expect("not lost"), UserEnd::LoggedOut, "{way}");
        assert_eq!(same.ended().await, UserEnd::LoggedOut, "also for who comes late");
        assert!(matches!(logins.hold("3", 1000).await, Err(UserError::LoggedOut)), "{way}");
    }
}

#[tokio::test]
async fn another_users_session_and_another_session_of_the_same_name_are_not_held() {
    let scene = Scene::new();
    let Some(_daemon) = Daemon::start(scene.dir.path()) else { return };
    let player = Player::start(scene.dir.path(), &scene.known).await;
    let logins = scene.logins();
    assert!(matches!(logins.hold("3", 1001).await, Err(UserError::LoggedOut)));
    assert!(matches!(logins.hold("4", 1000).await, Err(UserError::LoggedOut)));
    let login = logins.hold("3", 1000).await.expect("logged in");
    scene.known.lock().unwrap().sessions.get_mut("3").expect("there").since = 18;
    player.becomes("3", "active", true).await;
    assert_eq!(login.ended().await, UserEnd::LoggedOut, "the name was given to another session");
}

#[tokio::test]
async fn while_the_bus_is_gone_nobody_has_logged_out_and_a_logout_meanwhile_is_seen_when_it_is_back() {
    let scene = Scene::new();
    let logins = scene.logins();
    assert!(matches!(logins.hold("3", 1000).await, Err(UserError::Logind(LoginError::Unreachable(_)))), "no bus");
    let logins = scene.logins();
    let Some(daemon) = Daemon::start(scene.dir.path()) else { return };
    let player = Player::start(scene.dir.path(), &scene.known).await;
    let login = logins.hold("3", 1000).await.expect("logged in");
    drop((player, daemon));
    // The bus is another one, logind the same as before: it goes on.
    let daemon = Daemon::start(scene.dir.path()).expect("it was there before");
    let player = Player::start(scene.dir.path(), &scene.known).await;
    let mut waiting = Box::pin(login.ended());
    assert!(tokio::time::timeout(Duration::from_millis(50), &mut waiting).await.is_err());
    drop((player, daemon));
    scene.known.lock().unwrap().sessions.clear();
    let _daemon = Daemon::start(scene.dir.path()).expect("it was there before");
    let _player = Player::start(scene.dir.path(), &scene.known).await;
    assert_eq!(waiting.await, UserEnd::LoggedOut);
}

#[tokio::test]
async fn a_logind_that_hangs_is_an_error_in_time_and_then_at_once() {
    let scene = Scene::new();
    let Some(_daemon) = Daemon::start(scene.dir.path()) else { return };
    let _player = Player::start(scene.dir.path(), &scene.known).await;
    scene.known.lock().unwrap().hangs = true;
    let (clock, _hand) = Clock::manual(time::OffsetDateTime::UNIX_EPOCH);
    let logins = Logins::new(scene.logind.clone(), Duration::from_millis(20), clock, Entropy::system());
    assert!(matches!(logins.open_session("3").await, Err(UserError::Logind(LoginError::Late(_)))));
    assert!(matches!(logins.open_session("3").await, Err(UserError::Logind(LoginError::Resting))));
}
