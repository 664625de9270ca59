//! A file in memory that one process writes and nobody else ever can.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, munmap};

/// A file in memory of a fixed size, written through the one mapping there is of it. What was written outlives the
/// process with whoever holds the descriptor, who can read it and can do nothing else with it.
///
/// It has no name in any file system, is in no core dump, and takes memory only where it was written to. It is locked
/// like the rest of our memory, if that is, for as long as the process lives. After that the kernel may swap it out:
/// `MemorySwapMax=0` in the unit holds while the cgroup is there that it was written in, encrypted swap always does.
#[derive(Debug)]
pub struct Region {
    file: File,
    at: NonNull<u8>,
    size: NonZeroUsize,
}

// SAFETY: the mapping belongs to this value alone and is reached only through it, so it goes where the value goes.
unsafe impl Send for Region {}

impl Region {
    /// A new one, of zeros.
    pub fn new(name: &str, size: NonZeroUsize) -> io::Result<Self> {
        let file = File::from(memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?);
        file.set_len(size.get() as u64)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address the kernel chooses touches no memory of ours. The file has that size, and
        // the seals below keep it from ever being shorter.
        let at = unsafe { mmap(None, size, access, MapFlags::MAP_SHARED, &file, 0) }?;
        let region = Self { file, at: at.cast(), size };
        // In this order: the mapping that is there stays writable, and no other one can be made.
        fcntl(&region.file, FcntlArg::F_ADD_SEALS(seals()))?;
        for advice in [MmapAdvise::MADV_DONTDUMP, MmapAdvise::MADV_DONTFORK] {
            // SAFETY: both say what becomes of copies of the mapping; neither changes what is in it.
            unsafe { madvise(at, size.get(), advice) }?;
        }
        Ok(region)
    }

    /// What is in it.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `at` points to `size` mapped bytes for as long as `self` lives, and nobody but `bytes_mut` writes them.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.size.get()) }
    }

    /// The same, to be written. Who holds the descriptor sees each byte at once.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above. `self` is borrowed for as long as the slice, and the seals keep everybody else from writing.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.size.get()) }
    }
}

impl AsFd for Region {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping is of this size and nothing refers to it any more. That it fails cannot be; it would leave
        // the mapping where it is.
        let _ = unsafe { munmap(self.at.cast(), self.size.get()) };
    }
}

/// Whether a file is a [`Region`] of a process that is gone, or made in the same way: nobody can change it under our
/// eyes.
pub fn is_sealed(file: &File) -> bool {
    // The flag for later writers is enough, and so is the one for all.
    let found = fcntl(file, FcntlArg::F_GET_SEALS).map(SealFlag::from_bits_retain);
    found.is_ok_and(|found| {
        let unwritable = found.intersects(SealFlag::F_SEAL_FUTURE_WRITE | SealFlag::F_SEAL_WRITE);
        unwritable && found.contains(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL)
    })
}

fn seals() -> SealFlag {
    // Writing through the mapping of the maker goes on (Linux 5.1).
    SealFlag::F_SEAL_SEAL | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_FUTURE_WRITE
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::fs::FileExt as _;

    use super::*;

    #[test]
    fn what_is_written_is_seen_by_who_holds_the_file_and_can_be_changed_by_nobody_else() {
        let mut region = Region::new("test", NonZeroUsize::new(1 << 30).unwrap()).unwrap();
        let mut file = File::from(region.as_fd().try_clone_to_owned().unwrap());
        region.bytes_mut()[4096..4099].copy_from_slice(b"one");
        let mut read = [0; 3];
        let mut see = || {
            file.read_exact_at(&mut read, 4096).unwrap();
            read
        };
        assert_eq!(&see(), b"one");
        region.bytes_mut()[4096..4099].copy_from_slice(b"two");
        assert_eq!(&see(), b"two");
        drop(region);
        assert_eq!(&see(), b"two", "it outlives its maker");
        assert!(is_sealed(&file));
        assert!(file.write_all(b"x").is_err() && file.set_len(0).is_err());
        let (size, access) = (NonZeroUsize::new(4096).unwrap(), ProtFlags::PROT_READ | ProtFlags::PROT_WRITE);
        // SAFETY: a mapping that is refused; should it be made, nothing uses it.
        assert!(unsafe { mmap(None, size, access, MapFlags::MAP_SHARED, &file, 0) }.is_err());
    }

    #[test]
    fn files_that_somebody_could_still_change_are_not_sealed() {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let open = File::from(memfd_create("test", flags).unwrap());
        assert!(!is_sealed(&open));
        fcntl(&open, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK)).unwrap();
        assert!(!is_sealed(&open));
        assert!(!is_sealed(&tempfile::tempfile().unwrap()));
    }
}
