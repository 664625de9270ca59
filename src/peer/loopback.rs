//! Which process of this host is at the other end of a TCP connection over the loopback interface.
//!
//! The kernel does not say it as it does for Unix sockets, so it is found out: the other end's socket is in the table of
//! connections with its user and its inode number, and one process has that socket among its descriptors.
//!
//! Promises: the table and the process are asked before and after, and the answer is about one connection and one
//! process; a socket that several processes hold has no owner. Does not: tell who wrote the bytes. A process can hand its
//! socket to another between two looks, so what is found this way is weaker than what [`super::PeerConn`] proves, and
//! nothing about the program it runs is evidence.

use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use thiserror::Error;

use super::{Instance, InstanceError, Instances, LookError};

/// Where the kernel lists TCP connections of the network namespace we are in.
const TABLES: [&str; 2] = ["/proc/self/net/tcp", "/proc/self/net/tcp6"];
/// More connections than any host has that is asked over loopback.
const MAX_TABLE_BYTES: u64 = 64 << 20;
/// The state `ESTABLISHED`, in hex as in the table.
const ESTABLISHED: &str = "01";

/// Why it cannot be said who is at the other end.
#[derive(Debug, Error)]
pub enum LoopbackError {
    /// The address is not of this host alone.
    #[error("the connection does not come over the loopback interface")]
    NotLoopback,
    /// The kernel has no such connection, any more.
    #[error("the connection is not in the table of connections")]
    Gone,
    /// No process has the socket that we can see.
    #[error("no process that the agent can see has the socket; as root it sees all")]
    NoHolder,
    /// Several processes have the socket.
    #[error("processes {0} and {1} have the socket, and either may have sent the request")]
    Several(i32, i32),
    /// The process has another user than its socket.
    #[error("the process has another user than its socket")]
    AnotherUser,
    /// The process could not be held.
    #[error(transparent)]
    Instance(#[from] InstanceError),
    /// The process could not be looked at.
    #[error(transparent)]
    Look(#[from] LookError),
    /// The system did not answer.
    #[error("cannot read the tables of connections and processes")]
    Io(#[from] io::Error),
}

/// The process at the other end of one connection.
#[derive(Clone, Debug)]
pub struct LoopbackPeer {
    instance: Arc<Instance>,
    socket: LoopbackSocket,
}

/// A line of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Row {
    uid: u32,
    inode: u64,
}

/// The other end of one connection, of which no more is known yet than the user of its socket.
#[derive(Clone, Copy, Debug)]
pub struct LoopbackSocket {
    ours: SocketAddr,
    theirs: SocketAddr,
    row: Row,
}

impl LoopbackSocket {
    /// The other end of the connection from `theirs` to `ours`: one look into the table of connections.
    pub fn find(ours: SocketAddr, theirs: SocketAddr) -> Result<Self, LoopbackError> {
        if !theirs.ip().to_canonical().is_loopback() {
            return Err(LoopbackError::NotLoopback);
        }
        let row = row_of(ours, theirs)?.ok_or(LoopbackError::Gone)?;
        Ok(Self { ours, theirs, row })
    }

    /// Whose it is: enough to count what its user costs, before anything is spent on it.
    pub fn uid(&self) -> u32 {
        self.row.uid
    }

    /// The process that has it. Reads the descriptors of every process: not for async threads, but inside a runtime.
    pub fn peer(self, instances: &Instances) -> Result<LoopbackPeer, LoopbackError> {
        let pid = only_holder(self.row.inode)?;
        let instance = instances.of_pid(pid, None)?;
        let found = LoopbackPeer { instance, socket: self };
        // The number may have been given to another process before it was held.
        found.still()?;
        Ok(found)
    }
}

impl LoopbackPeer {
    /// Whether it is still so.
    pub fn still(&self) -> Result<(), LoopbackError> {
        // Of the process that is held, so that its number cannot be another's meanwhile.
        if self.instance.proc_dir().descriptors_of_socket(self.socket.row.inode)?.is_empty() {
            return Err(LoopbackError::NoHolder);
        }
        if self.instance.look()?.uid != self.socket.row.uid {
            return Err(LoopbackError::AnotherUser);
        }
        match row_of(self.socket.ours, self.socket.theirs)? {
            Some(row) if row == self.socket.row => Ok(()),
            _ => Err(LoopbackError::Gone),
        }
    }

    /// The process.
    pub fn instance(&self) -> &Arc<Instance> {
        &self.instance
    }

    /// Its user.
    pub fn uid(&self) -> u32 {
        self.socket.row.uid
    }
}

/// What the kernel says of the socket at `theirs` that is connected to `ours`.
fn row_of(ours: SocketAddr, theirs: SocketAddr) -> io::Result<Option<Row>> {
    for table in TABLES {
        let file = match fs::File::open(table) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            opened => opened?,
        };
        for line in BufReader::new(file.take(MAX_TABLE_BYTES)).lines().skip(1) {
            if let Some(row) = matching(&line?, ours, theirs) {
                return Ok(Some(row));
            }
        }
    }
    Ok(None)
}

/// The line's user and inode, if it is an open connection between the two from the other end's point of view.
fn matching(line: &str, ours: SocketAddr, theirs: SocketAddr) -> Option<Row> {
    // sl local_address rem_address st tx_queue:rx_queue tr:tm->when retrnsmt uid timeout inode ...
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (local, remote, state) = (address(fields.next()?)?, address(fields.next()?)?, fields.next()?);
    if state != ESTABLISHED || !same(local, theirs) || !same(remote, ours) {
        return None;
    }
    let uid = fields.nth(3)?.parse().ok()?;
    let inode = fields.nth(1)?.parse().ok().filter(|inode| *inode != 0)?;
    Some(Row { uid, inode })
}

/// `0100007F:1F90`: words of the address as this machine has them in memory, and the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let word = |at: usize| Some(u32::from_str_radix(ip.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    let ip: IpAddr = match ip.len() {
        8 => IpAddr::from(word(0)?),
        32 => {
            let mut octets = [0; 16];
            for (at, part) in octets.chunks_exact_mut(4).enumerate() {
                part.copy_from_slice(&word(8 * at)?);
            }
            IpAddr::from(octets)
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

fn same(a: SocketAddr, b: SocketAddr) -> bool {
    a.port() == b.port() && a.ip().to_canonical() == b.ip().to_canonical()
}

/// The one process with this socket.
fn only_holder(inode: u64) -> Result<i32, LoopbackError> {
    let mut found = None;
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        if !has_socket(&Path::new("/proc").join(&name).join("fd"), inode) {
            continue;
        }
        if let Some(other) = found.replace(pid) {
            return Err(LoopbackError::Several(other, pid));
        }
    }
    found.ok_or(LoopbackError::NoHolder)
}

/// Whether one of the descriptors is this socket. What has gone or cannot be seen has none.
fn has_socket(directory: &Path, inode: u64) -> bool {
    let wanted = format!("socket:[{inode}]");
    let Ok(descriptors) = fs::read_dir(directory) else { return false };
    descriptors.flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|target| target.as_os_str() == wanted.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::Kernel;

    #[test]
    fn a_line_of_the_table_is_the_other_end_of_one_connection() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let (ours, theirs) = (at("127.0.0.1:8080"), at("127.0.0.1:40000"));
        let line = |local: &str, remote: &str, state: &str| {
            format!(
                "  7: {local} {remote} {state} 00000000:00000000 00:00000000 00000000  1000        0 4711 1 0 20 4 30 10 -1"
            )
        };
        let (us, them) = ("0100007F:1F90", "0100007F:9C40");
        let mapped = "0000000000000000FFFF00000100007F:9C40";
        let rows = [
            (line(them, us, "01"), true),
            (line(mapped, us, "01"), true),
            (line(us, them, "01"), false),
            (line(them, us, "06"), false),
            (line("0200007F:9C40", us, "01"), false),
            (line("0100007F:9C41", us, "01"), false),
            ("garbage".to_owned(), false),
        ];
        for (line, is_it) in rows {
            let expected = is_it.then_some(Row { uid: 1000, inode: 4711 });
            assert_eq!(matching(&line, ours, theirs), expected, "{line}");
        }
    }

    #[tokio::test]
    async fn the_process_that_connected_is_found_until_it_closes() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = listener.local_addr().unwrap();
        let client = std::net::TcpStream::connect(ours).unwrap();
        let theirs = client.local_addr().unwrap();
        let (_accepted, from) = listener.accept().unwrap();
        assert_eq!(from, theirs);
        let instances = Instances::new(Kernel::probe()).unwrap();
        let found = LoopbackSocket::find(ours, theirs).unwrap().peer(&instances).unwrap();
        assert_eq!(found.instance().pid(), i32::try_from(std::process::id()).unwrap());
        assert_eq!(found.uid(), nix::unistd::geteuid().as_raw());
        drop(client);
        assert!(matches!(found.still(), Err(LoopbackError::NoHolder | LoopbackError::Gone)));
    }

    #[tokio::test]
    async fn a_socket_that_two_processes_have_is_nobodys() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = listener.local_addr().unwrap();
        let client = std::net::TcpStream::connect(ours).unwrap();
        let theirs = client.local_addr().unwrap();
        let inherited = client.try_clone().unwrap();
        let mut child =
            std::process::Command::new("sleep").arg("60").stdin(std::os::fd::OwnedFd::from(inherited)).spawn().unwrap();
        let instances = Instances::new(Kernel::probe()).unwrap();
        let found = LoopbackSocket::find(ours, theirs).unwrap().peer(&instances);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(matches!(found, Err(LoopbackError::Several(..))), "{found:?}");
    }

    #[test]
    fn who_comes_from_elsewhere_is_not_looked_for() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let found = LoopbackSocket::find(at("192.0.2.1:80"), at("192.0.2.2:40000"));
        assert!(matches!(found, Err(LoopbackError::NotLoopback)));
    }
}
