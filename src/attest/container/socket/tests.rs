use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;

use super::*;

/// A directory with a socket in it, ours alone.
struct Scene {
    dir: tempfile::TempDir,
    _listener: UnixListener,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("temporary");
        let listener = UnixListener::bind(dir.path().join("engine.sock")).expect("bound");
        Self { dir, _listener: listener }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn connect(&self, name: &str) -> Result<(), SocketError> {
        let uid = nix::unistd::geteuid().as_raw();
        EngineSocket::of_user(&self.path(name), uid).try_connect()
    }

    fn mode(&self, name: &str, mode: u32) {
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(mode)).expect("ours");
    }
}

#[tokio::test]
async fn a_socket_that_nobody_else_can_have_put_there_is_connected_to() {
    let scene = Scene::new();
    scene.connect("engine.sock").expect("trusted");
    let socket = EngineSocket::of_user(&scene.path("engine.sock"), nix::unistd::geteuid().as_raw());
    socket.connect().await.expect("trusted");
    // As `/var/run` leads to `/run`.
    fs::create_dir(scene.path("run")).expect("made");
    symlink("../engine.sock", scene.path("run/relative.sock")).expect("made");
    symlink(scene.dir.path(), scene.path("absolute")).expect("made");
    scene.connect("run/relative.sock").expect("trusted");
    scene.connect("absolute/run/relative.sock").expect("trusted");
    // Nobody can take away what is root's in a directory like /tmp.
    scene.mode("run", 0o1777);
    scene.connect("run/relative.sock").expect("trusted");
}

#[test]
fn what_is_no_socket_of_anybody_is_told_apart() {
    let scene = Scene::new();
    assert!(matches!(scene.connect("absent.sock"), Err(SocketError::Absent { path }) if path.ends_with("absent.sock")));
    assert!(matches!(scene.connect("absent/engine.sock"), Err(SocketError::Absent { .. })));
    fs::write(scene.path("file"), "").expect("written");
    assert!(matches!(scene.connect("file"), Err(SocketError::NotSocket { .. })));
    assert!(matches!(scene.connect(""), Err(SocketError::NotSocket { .. })));
    assert!(matches!(scene.connect("engine.sock/x"), Err(SocketError::NotSocket { .. })));
    symlink("loop", scene.path("loop")).expect("made");
    assert!(matches!(scene.connect("loop"), Err(SocketError::Links { .. })));
    let closed = Scene::new();
    let path = closed.path("engine.sock");
    drop(closed._listener);
    let uid = nix::unistd::geteuid().as_raw();
    assert!(matches!(EngineSocket::of_user(&path, uid).try_connect(), Err(SocketError::Refused { .. })));
}

#[test]
fn a_socket_behind_what_others_may_change_is_refused_at_every_step() {
    let scene = Scene::new();
    fs::create_dir(scene.path("open")).expect("made");
    symlink("../engine.sock", scene.path("open/link.sock")).expect("made");
    symlink("open/link.sock", scene.path("to.sock")).expect("made");
    scene.connect("to.sock").expect("trusted");
    for mode in [0o777, 0o757] {
        scene.mode("open", mode);
        for path in ["open/link.sock", "to.sock", "open/../engine.sock"] {
            assert!(matches!(scene.connect(path), Err(SocketError::Writable { .. })), "{path} {mode:o}");
        }
    }
    scene.connect("engine.sock").expect("that one is not on the way");
}

#[test]
fn what_belongs_to_somebody_else_is_refused_at_every_step() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let scene = Scene::new();
    fs::create_dir(scene.path("theirs")).expect("made");
    symlink("../engine.sock", scene.path("theirs/link.sock")).expect("made");
    chown(scene.path("theirs"), Some(65_534), None).expect("we are root");
    assert!(matches!(scene.connect("theirs/link.sock"), Err(SocketError::Owner { owner: 65_534, .. })));
    symlink("engine.sock", scene.path("link.sock")).expect("made");
    std::os::unix::fs::lchown(scene.path("link.sock"), Some(65_534), None).expect("we are root");
    assert!(matches!(scene.connect("link.sock"), Err(SocketError::Owner { owner: 65_534, .. })));
    scene.mode("engine.sock", 0o666);
    chown(scene.path("engine.sock"), Some(65_534), None).expect("we are root");
    assert!(matches!(scene.connect("engine.sock"), Err(SocketError::Owner { owner: 65_534, .. })));
    // A group may be given the socket, and not the directory.
    chown(scene.path("engine.sock"), Some(0), Some(65_534)).expect("we are root");
    scene.connect("engine.sock").expect("it is root's");
    chown(scene.dir.path(), Some(0), Some(65_534)).expect("we are root");
    scene.mode("", 0o770);
    assert!(matches!(scene.connect("engine.sock"), Err(SocketError::Writable { .. })));
}

#[test]
fn a_refusal_says_what_to_do() {
    let path = || PathBuf::from("/run/docker.sock");
    for (error, what) in [
        (SocketError::Forbidden { path: path() }, "SupplementaryGroups="),
        (SocketError::Absent { path: path() }, "is the engine running?"),
        (SocketError::Owner { path: path(), owner: 7 }, "only what root owns"),
    ] {
        assert!(error.to_string().contains(what), "{error}");
    }
}
