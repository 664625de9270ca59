//! The part of systemd that an agent has to do with: it binds sockets, is notified, and keeps descriptors.

use std::fs::File;
use std::io::{ErrorKind, IoSliceMut};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use tether::sys::Kernel;
use tether::sys::socket::listen_at;

use crate::harness::PATIENCE;
use crate::program::AgentProcess;

/// A service manager with one service, whose directory is `dir`.
pub struct Manager {
    dir: PathBuf,
    notified: UnixDatagram,
    path: PathBuf,
    listeners: Vec<(&'static str, UnixListener)>,
    /// What the agent has stored.
    pub stored: Vec<(String, File)>,
    /// More of the agent's environment.
    pub env: Vec<(&'static str, &'static str)>,
    /// More of its arguments.
    pub arguments: Vec<&'static str>,
}

impl Manager {
    /// One that keeps descriptors and binds nothing.
    pub fn new(dir: &Path) -> Self {
        let path = dir.join("notify");
        let notified = UnixDatagram::bind(&path).unwrap();
        notified.set_read_timeout(Some(PATIENCE)).unwrap();
        let (env, arguments) = (vec![("FDSTORE", "4")], Vec::new());
        Self { dir: dir.to_owned(), notified, path, listeners: Vec::new(), stored: Vec::new(), env, arguments }
    }

    /// One that has bound both sockets as the socket units say.
    pub fn with_sockets(dir: &Path) -> Self {
        let mut manager = Self::new(dir);
        for (name, path) in [("workload", manager.workload()), ("admin", manager.admin())] {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            manager.listeners.push((name, listen_at(&path, 0o666, &Kernel::probe()).unwrap()));
        }
        // As DirectoryMode= and the agent want them.
        for made in [dir.join("agent"), dir.join("agent/workload"), dir.join("agent/admin")] {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = if made.ends_with("agent") { 0o700 } else { 0o755 };
            std::fs::set_permissions(made, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        manager
    }

    /// The workload socket.
    pub fn workload(&self) -> PathBuf {
        self.dir.join("agent/workload/workload.sock")
    }

    /// The admin socket.
    pub fn admin(&self) -> PathBuf {
        self.dir.join("agent/admin/admin.sock")
    }

    /// Starts the agent with everything there is for it, and waits until it is ready.
    pub fn start(&mut self) -> AgentProcess {
        self.settle();
        let mut env = self.env.clone();
        env.push(("NOTIFY_SOCKET", self.path.to_str().unwrap()));
        let listeners = self.listeners.iter().map(|(name, listener)| (*name, listener.as_fd()));
        let stored = self.stored.iter().map(|(name, file)| (name.as_str(), file.as_fd()));
        let handed: Vec<(&str, BorrowedFd<'_>)> = listeners.chain(stored).collect();
        AgentProcess::handed(&self.dir, &self.arguments, &env, &handed)
    }

    /// Kills the agent, and takes what it had sent until then.
    pub fn kill(&mut self, agent: AgentProcess) {
        agent.kill();
        self.settle();
    }

    /// Takes notifications until one of them is `wanted`, which is returned.
    pub fn until(&mut self, wanted: &str) -> String {
        loop {
            let said = self.next().expect("notified in time");
            if said.contains(wanted) {
                return said;
            }
        }
    }

    /// Takes all notifications that were sent.
    pub fn settle(&mut self) {
        self.notified.set_nonblocking(true).unwrap();
        while self.next().is_some() {}
        self.notified.set_nonblocking(false).unwrap();
    }

    /// The next notification, acted upon as systemd does; `None` when none comes within what the socket waits.
    pub fn next(&mut self) -> Option<String> {
        let mut text = [0; 4096];
        let mut space = nix::cmsg_space!([i32; 4]);
        let mut buffers = [IoSliceMut::new(&mut text)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let received = recvmsg::<()>(self.notified.as_raw_fd(), &mut buffers, Some(&mut space), flags);
        let message = match received {
            Ok(message) => message,
            Err(error) if std::io::Error::from(error).kind() == ErrorKind::WouldBlock => return None,
            Err(error) => panic!("{error}"),
        };
        let mut sent = Vec::new();
        for control in message.cmsgs().unwrap() {
            if let ControlMessageOwned::ScmRights(fds) = control {
                // SAFETY: the kernel made these descriptors for this message, and nobody else knows of them.
                sent.extend(fds.into_iter().map(|fd| File::from(unsafe { OwnedFd::from_raw_fd(fd) })));
            }
        }
        let length = message.bytes;
        let text = String::from_utf8_lossy(&text[..length]).into_owned();
        let name = text.lines().find_map(|line| line.strip_prefix("FDNAME=")).unwrap_or("stored").to_owned();
        if text.lines().any(|line| line == "FDSTORE=1") {
            self.stored.extend(sent.into_iter().map(|file| (name.clone(), file)));
        } else if text.lines().any(|line| line == "FDSTOREREMOVE=1") {
            self.stored.retain(|(stored, _)| *stored != name);
        }
        Some(text)
    }

    /// How long [`Manager::next`] waits.
    pub fn wait_for(&self, time: std::time::Duration) {
        self.notified.set_read_timeout(Some(time)).unwrap();
    }
}
