//! What this kernel can do, found out once, and which boot of it this is.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::str::FromStr;

use super::pidfd::PidFd;
use super::socket;

/// The calls that not every supported kernel has. What is missing is replaced by something weaker, and said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// `SO_PEERPIDFD`, Linux 6.5: the process that connected, without a moment in which its number could be reused.
    pub peer_pidfd: bool,
    /// pidfs, Linux 6.9: an inode number that no other process of this boot has.
    pub unique_inode: bool,
    /// Namespaces by pidfd, Linux 6.11.
    pub pidfd_namespaces: bool,
    /// `PIDFD_GET_INFO`, Linux 6.13: credentials and cgroup without `/proc`.
    pub pidfd_info: bool,
    /// `SO_PASSRIGHTS`, Linux 6.16: senders of descriptors are refused by the kernel.
    pub pass_rights: bool,
}

impl Kernel {
    /// Tries every call on ourselves.
    pub fn probe() -> Self {
        let ourselves = PidFd::open(std::process::id().cast_signed());
        let pair = UnixStream::pair();
        Self {
            peer_pidfd: pair.as_ref().is_ok_and(|(socket, _)| PidFd::of_peer(socket).is_ok()),
            unique_inode: ourselves.as_ref().is_ok_and(|pidfd| matches!(pidfd.unique_inode(), Ok(Some(_)))),
            pidfd_namespaces: ourselves.as_ref().is_ok_and(|pidfd| pidfd.pid_namespace().is_ok()),
            pidfd_info: ourselves.as_ref().is_ok_and(|pidfd| pidfd.info().is_ok()),
            pass_rights: pair.as_ref().is_ok_and(|(socket, _)| socket::refuse_descriptors(socket).is_ok()),
        }
    }

    /// A kernel with none of these calls: what is left works since Linux 5.3. The fallbacks are tested with it.
    pub const fn baseline() -> Self {
        Self { peer_pidfd: false, unique_inode: false, pidfd_namespaces: false, pidfd_info: false, pass_rights: false }
    }

    /// The calls by name and whether they are there, for a person.
    pub fn features(&self) -> [(&'static str, bool); 5] {
        [
            ("SO_PEERPIDFD (Linux 6.5)", self.peer_pidfd),
            ("unique pidfd inodes (Linux 6.9)", self.unique_inode),
            ("pidfd namespaces (Linux 6.11)", self.pidfd_namespaces),
            ("PIDFD_GET_INFO (Linux 6.13)", self.pidfd_info),
            ("SO_PASSRIGHTS (Linux 6.16)", self.pass_rights),
        ]
    }
}

/// One boot of one machine.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BootId([u8; 16]);

impl BootId {
    /// The boot we run in.
    pub fn current() -> io::Result<Self> {
        let text = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        text.trim_end()
            .parse()
            .map_err(|InvalidBootId| io::Error::new(io::ErrorKind::InvalidData, "boot id is no UUID"))
    }
}

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is not a lower-case hyphenated UUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidBootId;

impl FromStr for BootId {
    type Err = InvalidBootId;

    fn from_str(text: &str) -> Result<Self, InvalidBootId> {
        let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b'-').collect();
        let mut id = [0; 16];
        if digits.len() != 32 {
            return Err(InvalidBootId);
        }
        for (byte, pair) in id.iter_mut().zip(digits.chunks(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| InvalidBootId)?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| InvalidBootId)?;
        }
        // One text per value: anything that would be written differently is refused.
        if Self(id).to_string() == text { Ok(Self(id)) } else { Err(InvalidBootId) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_id_is_the_same_each_time_and_reads_back_from_its_text() {
        let boot = BootId::current().expect("readable");
        assert_eq!(BootId::current().expect("readable"), boot);
        assert_eq!(boot.to_string().parse(), Ok(boot));
    }

    #[test]
    fn a_text_that_is_not_written_like_a_boot_id_is_refused() {
        let text = "8f3c2a10-0001-4e6b-9d55-00c0ffee0000";
        assert!(BootId::from_str(text).is_ok());
        for wrong in ["", "8f3c2a10", &text.to_uppercase(), &text.replace('-', ""), &format!("{text}0")] {
            assert_eq!(BootId::from_str(wrong), Err(InvalidBootId), "{wrong}");
        }
    }

    #[test]
    fn what_a_newer_call_needs_is_there_when_the_newer_call_is() {
        let kernel = Kernel::probe();
        assert!(!kernel.pidfd_info || kernel.unique_inode);
        assert!(!kernel.unique_inode || kernel.peer_pidfd);
    }
}
