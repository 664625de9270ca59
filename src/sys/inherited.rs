//! What the service manager handed to this process (sd_listen_fds(3)): listening sockets and kept files, by name.
//!
//! Promises: each descriptor has one owner here, and none is left open in a program that is run. What is taken for a
//! listener is bound where the configuration says, and labels what is sent to it: bytes that came before the agent was
//! there carry their sender.
//!
//! Does not: judge kept files, or say whose directory a socket is in; whoever takes one does.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Once, PoisonError};

use nix::sys::socket::{SockType, UnixAddr, getsockname, getsockopt, sockopt};
use thiserror::Error;

/// Why a socket that was handed over is not served.
#[derive(Debug, Error)]
pub enum InheritedError {
    /// The environment contradicts itself, or names descriptors that are not open.
    #[error("what the service manager handed over cannot be taken: LISTEN_FDS and LISTEN_FDNAMES do not fit together")]
    Environment(#[source] io::Error),
    /// It is not the socket that the configuration names, or was made without what the agent rests on.
    #[error(
        "the socket that systemd handed over as `{name}` {fault}: set `{line}` in the unit with \
         `FileDescriptorName={name}` (`{unit}`), then `systemctl daemon-reload`, and restart that unit and the agent's"
    )]
    NotUsable {
        /// By which name.
        name: &'static str,
        /// What is wrong with it.
        fault: String,
        /// The line of the unit that mends it.
        line: String,
        /// The unit as it is shipped.
        unit: &'static str,
    },
}

/// The sockets that can be handed over, by the name in their unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The Workload API.
    Workload,
    /// Administration.
    Admin,
    /// SVIDs as systemd credentials.
    Credentials,
}

impl Role {
    /// What `FileDescriptorName=` says.
    pub fn name(self) -> &'static str {
        match self {
            Self::Workload => "workload",
            Self::Admin => "admin",
            Self::Credentials => "credentials",
        }
    }

    /// The unit as it is shipped.
    fn unit(self) -> &'static str {
        match self {
            Self::Workload => "tether-agent.socket",
            Self::Admin => "tether-agent-admin.socket",
            Self::Credentials => "tether-agent-credentials.socket",
        }
    }

    /// Whether each byte must have a sender. What systemd asks for credentials has none: it says all with its address.
    fn is_labelled(self) -> bool {
        !matches!(self, Self::Credentials)
    }
}

/// The descriptors nobody has taken yet. Cheap to clone; what one clone takes is gone from all.
#[derive(Clone, Debug, Default)]
pub struct Inherited(Arc<Mutex<Vec<(String, OwnedFd)>>>);

impl Inherited {
    /// What the environment says was handed to this process: once in its life, later nothing.
    ///
    /// # Errors
    /// The environment contradicts itself.
    pub fn take() -> Result<Self, InheritedError> {
        static TAKEN: Once = Once::new();
        let mut found = Ok(Vec::new());
        TAKEN.call_once(|| found = take_all());
        found.map(Self::of).map_err(InheritedError::Environment)
    }

    /// These, under these names: for whoever plays the service manager.
    pub fn of(descriptors: Vec<(String, OwnedFd)>) -> Self {
        Self(Arc::new(Mutex::new(descriptors)))
    }

    /// Takes all whose name is `wanted`.
    pub fn files(&self, wanted: impl Fn(&str) -> bool) -> Vec<(String, File)> {
        let mut left = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = left.extract_if(.., |(name, _)| wanted(name));
        taken.map(|(name, descriptor)| (name, File::from(descriptor))).collect()
    }

    /// Takes the listener for `role`, which is to be bound to `path`; `None` when there is none.
    ///
    /// # Errors
    /// There is one, and it is not to be trusted: nothing is served rather than something else than was meant.
    pub fn listener(&self, role: Role, path: &Path) -> Result<Option<UnixListener>, InheritedError> {
        let mut found = self.files(|name| name == role.name());
        let Some((_, socket)) = found.pop() else { return Ok(None) };
        let not_usable = |(fault, line): (String, String)| InheritedError::NotUsable {
            name: role.name(),
            fault,
            line,
            unit: role.unit(),
        };
        if !found.is_empty() {
            return Err(not_usable(("is one of several".to_owned(), format!("ListenStream={}", path.display()))));
        }
        let socket = OwnedFd::from(socket);
        judge(&socket, role, path).map_err(not_usable)?;
        let listener = UnixListener::from(socket);
        let nonblocking = listener.set_nonblocking(true);
        nonblocking.map_err(|error| not_usable((format!("cannot be used: {error}"), "NonBlocking=yes".to_owned())))?;
        Ok(Some(listener))
    }

    /// Closes what nobody has taken, and says the names.
    pub fn close_rest(&self) -> Vec<String> {
        self.files(|_| true).into_iter().map(|(name, _)| name).collect()
    }
}

/// What is wrong with a socket, and the line that mends it.
fn judge(socket: &OwnedFd, role: Role, path: &Path) -> Result<(), (String, String)> {
    let listen = || format!("ListenStream={}", path.display());
    let Ok(kind) = getsockopt(socket, sockopt::SockType) else {
        return Err(("is not a socket".to_owned(), listen()));
    };
    let Ok(address) = getsockname::<UnixAddr>(socket.as_raw_fd()) else {
        return Err(("is not a Unix socket".to_owned(), listen()));
    };
    if kind != SockType::Stream {
        return Err(("is not a stream socket".to_owned(), listen()));
    }
    match address.path().map(PathBuf::from) {
        Some(bound) if bound == path => {}
        Some(bound) => {
            return Err((format!("is `{}`, and `listen.{}` is another", bound.display(), role.name()), listen()));
        }
        None => return Err(("has no path".to_owned(), listen())),
    }
    if getsockopt(socket, sockopt::AcceptConn) != Ok(true) {
        return Err(("does not listen".to_owned(), "Accept=no".to_owned()));
    }
    if role.is_labelled() && getsockopt(socket, sockopt::PassCred) != Ok(true) {
        let fault = "does not say who sent what was sent before the agent was there".to_owned();
        return Err((fault, "PassCredentials=yes".to_owned()));
    }
    Ok(())
}

fn take_all() -> io::Result<Vec<(String, OwnedFd)>> {
    // Those of another process are none of ours, and their names no mistake.
    if std::env::var("LISTEN_PID").ok() != Some(std::process::id().to_string()) {
        return Ok(Vec::new());
    }
    let all = sd_notify::listen_fds_with_names()?;
    // SAFETY: the service manager opened the descriptors for this process, and the environment said so with our process
    // id in it. Nothing else here knows of them, for this runs once.
    Ok(all.map(|(descriptor, name)| (name, unsafe { OwnedFd::from_raw_fd(descriptor) })).collect())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::net::{UnixDatagram, UnixStream};

    use super::*;
    use crate::sys::Kernel;
    use crate::sys::socket::listen_at;

    fn refused(role: Role, path: &Path, socket: impl Into<OwnedFd>) -> String {
        let inherited = Inherited::of(vec![(role.name().to_owned(), socket.into())]);
        inherited.listener(role, path).expect_err("it is not to be trusted").to_string()
    }

    #[test]
    fn a_listener_as_the_unit_makes_it_is_taken_once_and_what_is_left_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = listen_at(&path, 0o600, &Kernel::probe()).unwrap();
        let other = OwnedFd::from(UnixDatagram::unbound().unwrap());
        let inherited = Inherited::of(vec![("workload".to_owned(), listener.into()), ("other".to_owned(), other)]);
        assert!(inherited.listener(Role::Admin, &path).unwrap().is_none());
        assert!(inherited.listener(Role::Workload, &path).unwrap().is_some());
        assert!(inherited.clone().listener(Role::Workload, &path).unwrap().is_none());
        assert_eq!(inherited.close_rest(), ["other"]);
        assert!(path.exists(), "nothing is removed");
    }

    #[test]
    fn any_other_socket_is_refused_with_the_line_of_the_unit_that_mends_it() {
        let dir = tempfile::tempdir().unwrap();
        let (path, elsewhere) = (dir.path().join("s"), dir.path().join("elsewhere"));
        let labelled = |path: &Path| listen_at(path, 0o600, &Kernel::probe()).unwrap();
        let unlabelled = UnixListener::bind(&path).unwrap();
        let datagram = UnixDatagram::bind(dir.path().join("datagram")).unwrap();
        let connected = UnixStream::connect(&path).unwrap();
        let accepted = unlabelled.accept().unwrap().0;
        let rows: Vec<(&str, OwnedFd, &str, &str)> = vec![
            ("a file", tempfile::tempfile().unwrap().into(), "is not a socket", "ListenStream="),
            ("TCP", TcpListener::bind("127.0.0.1:0").unwrap().into(), "is not a Unix socket", "ListenStream="),
            ("datagrams", datagram.into(), "is not a stream socket", "ListenStream="),
            ("another path", labelled(&elsewhere).into(), "elsewhere`", "ListenStream="),
            ("no path", connected.into(), "has no path", "ListenStream="),
            ("a connection", accepted.into(), "does not listen", "Accept=no"),
            ("no labels", unlabelled.into(), "does not say who sent", "PassCredentials=yes"),
        ];
        for (what, socket, fault, line) in rows {
            let words = refused(Role::Workload, &path, socket);
            let complete = words.contains(fault) && words.contains(line) && words.contains("tether-agent.socket");
            assert!(complete, "{what}: {words}");
        }
    }

    #[test]
    fn what_is_asked_for_by_address_alone_needs_no_labels() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let socket = OwnedFd::from(UnixListener::bind(&path).unwrap());
        let inherited = Inherited::of(vec![("credentials".to_owned(), socket)]);
        assert!(inherited.listener(Role::Credentials, &path).unwrap().is_some());
    }

    #[test]
    fn two_of_one_name_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let first = listen_at(&path, 0o600, &Kernel::probe()).unwrap();
        let second = first.try_clone().unwrap();
        let both = vec![("admin".to_owned(), first.into()), ("admin".to_owned(), second.into())];
        let words = Inherited::of(both).listener(Role::Admin, &path).expect_err("refused").to_string();
        assert!(words.contains("several") && words.contains("tether-agent-admin.socket"), "{words}");
    }

    #[test]
    fn a_process_that_was_handed_nothing_has_nothing() {
        assert!(Inherited::take().unwrap().close_rest().is_empty());
    }
}
