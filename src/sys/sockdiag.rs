//! The other end of a connection, by inode number (sock_diag(7), `UNIX_DIAG_PEER`).
//!
//! A socket that was accepted lives in the network namespace of the client, and only sockets of our own namespace can
//! be asked about here: for the others the answer is an error, never a wrong number.

use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recvfrom, sendto, socket,
};

/// linux/sock_diag.h and linux/unix_diag.h.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const UDIAG_SHOW_PEER: u32 = 0x4;
const UNIX_DIAG_PEER: u16 = 2;
const NLMSG_HEADER: usize = 16;
const UNIX_DIAG_MSG: usize = 16;
const RTATTR_HEADER: usize = 4;

/// The inode number of the socket that is connected to the one with `inode`.
///
/// `ENOENT`: no such socket in our network namespace, or a kernel without unix_diag. `ENOTCONN`: it has no peer.
pub fn peer_inode(inode: u64) -> io::Result<u64> {
    let inode = u32::try_from(inode).map_err(|_| io::Error::from(Errno::ERANGE))?;
    // The kernel answers before sendto returns, so there is nothing to wait for.
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let netlink = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkSockDiag)?;
    sendto(netlink.as_raw_fd(), &request(inode), &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let mut answer = [0; 512];
    let (count, from) = recvfrom::<NetlinkAddr>(netlink.as_raw_fd(), &mut answer)?;
    if from.is_none_or(|from| from.pid() != 0) {
        return Err(Errno::EPROTO.into());
    }
    parse(&answer[..count], inode).map(u64::from)
}

fn request(inode: u32) -> Vec<u8> {
    let family = u8::try_from(libc::AF_UNIX).unwrap_or_default();
    let any_state = u32::MAX;
    let no_cookie = [u32::MAX; 2];
    let mut body = vec![family, 0, 0, 0];
    for word in [any_state, inode, UDIAG_SHOW_PEER, no_cookie[0], no_cookie[1]] {
        body.extend(word.to_ne_bytes());
    }
    let length = (NLMSG_HEADER + body.len()) as u32;
    let flags = libc::NLM_F_REQUEST as u16;
    let (sequence, port) = (0u32, 0u32);
    let mut message = Vec::with_capacity(length as usize);
    message.extend(length.to_ne_bytes());
    message.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend(sequence.to_ne_bytes());
    message.extend(port.to_ne_bytes());
    message.extend(body);
    message
}

fn parse(answer: &[u8], asked: u32) -> io::Result<u32> {
    let garbled = || io::Error::from(Errno::EBADMSG);
    let length = word(answer, 0).ok_or_else(garbled)? as usize;
    let message = answer.get(..length).ok_or_else(garbled)?;
    let body = message.get(NLMSG_HEADER..).ok_or_else(garbled)?;
    match half(message, 4).ok_or_else(garbled)? {
        kind if i32::from(kind) == libc::NLMSG_ERROR => {
            let code = word(body, 0).ok_or_else(garbled)?.cast_signed();
            return Err(io::Error::from_raw_os_error(code.saturating_neg()));
        }
        SOCK_DIAG_BY_FAMILY if word(body, 4) == Some(asked) => {}
        _ => return Err(garbled()),
    }
    let mut attributes = body.get(UNIX_DIAG_MSG..).ok_or_else(garbled)?;
    while !attributes.is_empty() {
        let length = usize::from(half(attributes, 0).ok_or_else(garbled)?);
        let value = attributes.get(RTATTR_HEADER..length).ok_or_else(garbled)?;
        if half(attributes, 2) == Some(UNIX_DIAG_PEER) {
            // A socket whose peer is closed has peer 0.
            return word(value, 0).filter(|peer| *peer != 0).ok_or_else(|| Errno::ENOTCONN.into());
        }
        attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Err(Errno::ENOTCONN.into())
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::procfs::file_id;
    use std::os::unix::net::UnixStream;

    #[test]
    fn the_two_ends_of_a_connection_name_each_other() {
        let (a, b) = UnixStream::pair().expect("a pair");
        let (a_inode, b_inode) = (file_id(&a).expect("a").ino, file_id(&b).expect("b").ino);
        assert_eq!(peer_inode(a_inode).expect("connected"), b_inode);
        assert_eq!(peer_inode(b_inode).expect("connected"), a_inode);
        drop(b);
        assert_eq!(peer_inode(a_inode).expect_err("closed").raw_os_error(), Some(libc::ENOTCONN));
    }

    #[test]
    fn a_socket_that_is_not_there_has_no_peer() {
        let (a, _b) = UnixStream::pair().expect("a pair");
        let inode = file_id(&a).expect("a").ino;
        drop(a);
        assert_eq!(peer_inode(inode).expect_err("gone").raw_os_error(), Some(libc::ENOENT));
    }

    #[test]
    fn an_answer_that_is_cut_anywhere_is_an_error_and_no_panic() {
        let mut answer = request(7);
        answer.truncate(NLMSG_HEADER);
        answer.extend([1, 1, 1, 0]);
        answer.extend(7u32.to_ne_bytes());
        answer.extend([0; 8]);
        answer.extend(8u16.to_ne_bytes());
        answer.extend(UNIX_DIAG_PEER.to_ne_bytes());
        answer.extend(9u32.to_ne_bytes());
        let length = answer.len() as u32;
        answer[..4].copy_from_slice(&length.to_ne_bytes());
        assert_eq!(parse(&answer, 7).expect("whole"), 9);
        assert!(parse(&answer, 8).is_err(), "about another socket");
        for cut in 0..answer.len() {
            assert!(parse(&answer[..cut], 7).is_err(), "{cut}");
        }
    }
}
