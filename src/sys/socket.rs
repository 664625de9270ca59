//! Unix sockets that say who sent each byte.
//!
//! The options are set before `bind`, so that accepted sockets inherit them and label also what was sent before
//! `accept`. Set later, such bytes would come from process 0.

use std::fs;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, UnixCredentials, bind,
    getsockopt, listen, recvmsg, setsockopt, socket, sockopt,
};
use nix::sys::stat::{Mode, fchmod};
use thiserror::Error;

use super::kernel::Kernel;

/// `SO_PASSRIGHTS`, Linux 6.16; not yet in the libc crate.
const SO_PASSRIGHTS: libc::c_int = 83;
/// The longest path of a Unix socket, in bytes: `sun_path` without its terminating zero.
const MAX_PATH: usize = 107;

/// Why a socket could not be made ready for callers.
#[derive(Debug, Error)]
pub enum SocketError {
    /// The path does not fit into a socket address.
    #[error("`{}` is too long for a socket by {over} bytes; choose a directory with a shorter path", path.display())]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// How many bytes have to go.
        over: usize,
    },
    /// Somebody accepts connections at the path.
    #[error("another agent is listening on `{}`; stop it first, or choose another path", .0.display())]
    InUse(PathBuf),
    /// A file that is not a socket has the path.
    #[error("`{}` exists and is not a socket; remove it, or choose another path", .0.display())]
    NotASocket(PathBuf),
    /// The operating system refused.
    #[error("cannot {action} `{}`", path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The refusal.
        #[source]
        source: io::Error,
    },
}

/// Listens at `path`, and labels every byte that is sent there. The socket has exactly `mode` whatever the umask is.
///
/// A socket that a dead agent left behind is replaced. Of two agents that start in the same instant both may come to
/// that conclusion: the lock on the state directory is what tells them apart.
pub fn listen_at(path: &Path, mode: u32, kernel: &Kernel) -> Result<UnixListener, SocketError> {
    let failed = |action| move |source: io::Error| SocketError::Io { action, path: path.to_owned(), source };
    let length = path.as_os_str().len();
    if length > MAX_PATH {
        return Err(SocketError::PathTooLong { path: path.to_owned(), over: length - MAX_PATH });
    }
    remove_stale(path)?;

    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)
        .map_err(|errno| failed("create a socket for")(errno.into()))?;
    label_messages(&fd, kernel).map_err(failed("set the options of"))?;
    let bound = || -> nix::Result<()> {
        // The mode of the descriptor is what the file starts with: there is no moment in which it is too open.
        fchmod(&fd, Mode::from_bits_truncate(mode))?;
        bind(fd.as_raw_fd(), &UnixAddr::new(path)?)
    };
    bound().map_err(|errno| failed("bind")(errno.into()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed("set the mode of"))?;
    listen(&fd, Backlog::MAXCONN).map_err(|errno| failed("listen on")(errno.into()))?;
    Ok(UnixListener::from(fd))
}

/// Makes the socket say who sent each message, and carry nothing else.
pub fn label_messages(socket: impl AsFd, kernel: &Kernel) -> io::Result<()> {
    setsockopt(&socket, sockopt::PassCred, &true)?;
    if !getsockopt(&socket, sockopt::PassCred)? {
        return Err(Errno::EOPNOTSUPP.into());
    }
    // Whoever handed the socket to us may have asked for more labels, which would not fit beside the credentials.
    set_option(&socket, libc::SO_PASSSEC, false)?;
    if kernel.peer_pidfd {
        set_option(&socket, libc::SO_PASSPIDFD, false)?;
    }
    if kernel.pass_rights {
        refuse_descriptors(&socket)?;
    }
    Ok(())
}

/// Makes the kernel refuse to send descriptors to this socket; `ENOPROTOOPT` before Linux 6.16.
pub fn refuse_descriptors(socket: impl AsFd) -> io::Result<()> {
    set_option(socket, SO_PASSRIGHTS, false)
}

fn set_option(socket: impl AsFd, option: libc::c_int, on: bool) -> io::Result<()> {
    let value = libc::c_int::from(on);
    let size = size_of::<libc::c_int>() as libc::socklen_t;
    let value_at = std::ptr::from_ref(&value).cast();
    // SAFETY: `value_at` points to `size` readable bytes that live until the call returns.
    let result = unsafe { libc::setsockopt(socket.as_fd().as_raw_fd(), libc::SOL_SOCKET, option, value_at, size) };
    Ok(Errno::result(result).map(drop)?)
}

fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let failed = |action| move |source: io::Error| SocketError::Io { action, path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look at")(error)),
        Ok(found) if !found.file_type().is_socket() => return Err(SocketError::NotASocket(path.to_owned())),
        Ok(_) => {}
    }
    // Non-blocking: a listener whose queue is full answers EAGAIN, and is alive.
    let probe = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)
        .map_err(|errno| failed("create a socket for")(errno.into()))?;
    let address = UnixAddr::new(path).map_err(|errno| failed("address")(errno.into()))?;
    match nix::sys::socket::connect(probe.as_raw_fd(), &address) {
        Err(Errno::ECONNREFUSED) => fs::remove_file(path).map_err(failed("remove the stale socket")),
        Err(Errno::ENOENT) => Ok(()),
        Ok(()) | Err(Errno::EAGAIN | Errno::EINPROGRESS | Errno::EPROTOTYPE) => {
            Err(SocketError::InUse(path.to_owned()))
        }
        Err(errno) => Err(failed("find out who listens on")(errno.into())),
    }
}

/// A socket file of ours, which is removed when this is dropped, unless another one has its name by then.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    inode: (u64, u64),
}

impl SocketFile {
    /// The file a listener of ours was just bound to.
    pub fn of(path: &Path) -> io::Result<Self> {
        let meta = fs::symlink_metadata(path)?;
        Ok(Self { path: path.to_owned(), inode: (meta.dev(), meta.ino()) })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|meta| (meta.dev(), meta.ino()) == self.inode) {
            // It is a courtesy to clients: they learn at once that nobody is there.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Who connected, as it was at `connect`. The pid is 0 for a process outside our pid namespace.
pub fn peer_credentials(socket: impl AsFd) -> io::Result<Sender> {
    Ok(getsockopt(&socket, sockopt::PeerCredentials)?.into())
}

/// Whether every holder of the other end has closed it.
pub fn peer_has_closed(socket: impl AsFd) -> bool {
    let fd = socket.as_fd();
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    let polled = poll(&mut fds, PollTimeout::ZERO);
    polled.is_ok() && fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP))
}

/// Whom the kernel names as the sender of bytes, or as the peer of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sender {
    /// The process, in our pid namespace; 0 when it is not in it.
    pub pid: i32,
    /// Its effective user id unless it chose its real or saved one.
    pub uid: u32,
    /// Its effective group id unless it chose its real or saved one.
    pub gid: u32,
}

impl From<UnixCredentials> for Sender {
    fn from(credentials: UnixCredentials) -> Self {
        Self { pid: credentials.pid(), uid: credentials.uid(), gid: credentials.gid() }
    }
}

/// What one read brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// The other end was closed.
    End,
    /// So many bytes, all of one sender; `None` if they are not labelled.
    Bytes {
        /// How many.
        count: usize,
        /// Whose.
        sender: Option<Sender>,
    },
    /// Something other than bytes came along, and was not let in: descriptors.
    Descriptors,
}

/// Room for the label of a message, and for nothing else: the kernel drops descriptors that do not fit before it
/// opens them for us, and says that it dropped something. The alignment is that of a control message header.
#[repr(C, align(16))]
struct ControlBuffer([u8; LABEL]);

// SAFETY: CMSG_SPACE is arithmetic.
const LABEL: usize = unsafe { libc::CMSG_SPACE(size_of::<libc::ucred>() as libc::c_uint) } as usize;

/// Reads without waiting, and says who sent what was read. One call never returns bytes of two senders.
pub fn recv_with_sender(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Received> {
    let mut control = ControlBuffer([0; LABEL]);
    let mut slices = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_fd().as_raw_fd(), &mut slices, Some(&mut control.0), flags)?;

    if message.flags.contains(MsgFlags::MSG_CTRUNC) {
        // There was room for a label, so what was cut off is not one.
        return Ok(Received::Descriptors);
    }
    let mut sender = None;
    for label in message.cmsgs()? {
        match label {
            ControlMessageOwned::ScmCredentials(credentials) => sender = Some(Sender::from(credentials)),
            ControlMessageOwned::ScmRights(descriptors) => {
                // There is no room for any. Should there ever be, they must not stay open.
                for descriptor in descriptors {
                    nix::unistd::close(descriptor)?;
                }
                return Ok(Received::Descriptors);
            }
            _ => return Ok(Received::Descriptors),
        }
    }
    Ok(match message.bytes {
        0 => Received::End,
        count => Received::Bytes { count, sender },
    })
}

/// A connected pair whose first end labels what it receives, for tests.
pub fn labelled_pair(kernel: &Kernel) -> io::Result<(UnixStream, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    label_messages(&ours, kernel)?;
    ours.set_nonblocking(true)?;
    Ok((ours, theirs))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{ControlMessage, sendmsg};
    use std::io::{IoSlice, Write};
    use std::os::fd::OwnedFd;
    use std::process::{Command, Stdio};

    #[test]
    fn bytes_carry_the_process_that_sent_them_and_two_senders_are_never_merged() {
        let (ours, mut theirs) = labelled_pair(&Kernel::probe()).expect("a pair");
        theirs.write_all(b"one").expect("written");
        let stdout = Stdio::from(OwnedFd::from(theirs.try_clone().expect("cloned")));
        let mut child = Command::new("printf").arg("two").stdout(stdout).spawn().expect("printf starts");
        let child_pid = child.id().cast_signed();
        child.wait().expect("it ends");

        let mut buffer = [0; 64];
        let mut read = || recv_with_sender(&ours, &mut buffer).expect("bytes are there");
        let from =
            |pid| move |received| matches!(received, Received::Bytes { count: 3, sender: Some(s) } if s.pid == pid);
        assert!(from(std::process::id().cast_signed())(read()));
        assert!(from(child_pid)(read()));
        drop(theirs);
        assert_eq!(read(), Received::End);
    }

    #[test]
    fn descriptors_are_refused_and_never_opened_here() {
        // A kernel that would refuse them at the sender is told not to.
        let (ours, theirs) = labelled_pair(&Kernel::baseline()).expect("a pair");
        let passed = [theirs.as_raw_fd(); 3];
        let rights = [ControlMessage::ScmRights(&passed)];
        sendmsg::<()>(theirs.as_raw_fd(), &[IoSlice::new(b"take")], &rights, MsgFlags::empty(), None).expect("sent");
        let received = recv_with_sender(&ours, &mut [0; 64]).expect("readable");
        assert!(received == Received::Descriptors, "{received:?}");
        // The other end is ours alone: had a copy of it been opened here, closing it would not end the connection.
        drop(theirs);
        assert_eq!(recv_with_sender(&ours, &mut [0; 64]).expect("readable"), Received::End);
    }

    #[test]
    fn a_kernel_with_the_option_refuses_descriptors_at_the_sender() {
        let kernel = Kernel::probe();
        let (_ours, theirs) = labelled_pair(&kernel).expect("a pair");
        let passed = [theirs.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&passed)];
        let sent = sendmsg::<()>(theirs.as_raw_fd(), &[IoSlice::new(b"take")], &rights, MsgFlags::empty(), None);
        assert_eq!(sent.is_err(), kernel.pass_rights);
    }

    #[test]
    fn bytes_sent_before_accept_are_labelled() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("s");
        let listener = listen_at(&path, 0o600, &Kernel::probe()).expect("listening");
        UnixStream::connect(&path).expect("connected").write_all(b"early").expect("written");
        let (socket, _) = listener.accept().expect("accepted");
        let received = recv_with_sender(&socket, &mut [0; 64]).expect("readable");
        let pid = std::process::id().cast_signed();
        assert!(matches!(received, Received::Bytes { sender: Some(sender), .. } if sender.pid == pid), "{received:?}");
    }

    #[test]
    fn a_socket_left_behind_is_replaced_and_one_that_answers_is_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("s");
        drop(listen_at(&path, 0o600, &Kernel::probe()).expect("listening"));
        let _second = listen_at(&path, 0o666, &Kernel::probe()).expect("the first one is dead");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o7777, 0o666);
        let error = listen_at(&path, 0o666, &Kernel::probe()).expect_err("it answers");
        assert!(matches!(error, SocketError::InUse(_)), "{error}");
    }

    #[test]
    fn a_file_that_is_not_a_socket_is_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("s");
        fs::write(&path, "precious").expect("written");
        let error = listen_at(&path, 0o600, &Kernel::probe()).expect_err("refused");
        assert!(matches!(error, SocketError::NotASocket(_)), "{error}");
        assert_eq!(fs::read(&path).expect("still there"), b"precious");
    }

    #[test]
    fn a_path_that_does_not_fit_is_refused_with_what_is_too_much() {
        let path = PathBuf::from(format!("/tmp/{}", "x".repeat(110)));
        let error = listen_at(&path, 0o600, &Kernel::probe()).expect_err("refused");
        assert!(matches!(error, SocketError::PathTooLong { over: 8, .. }), "{error}");
    }

    #[test]
    fn a_socket_file_goes_with_its_owner_unless_another_one_took_its_place() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("s");
        let _listener = listen_at(&path, 0o600, &Kernel::probe()).expect("listening");
        drop(SocketFile::of(&path).expect("there"));
        assert!(!path.exists());
        let _again = listen_at(&path, 0o600, &Kernel::probe()).expect("listening");
        let file = SocketFile { path: path.clone(), inode: (0, 0) };
        drop(file);
        assert!(path.exists());
    }
}
