//! Files in memory that cannot be changed once written.

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// A new file in memory with what `write` writes, and then sealed: nobody who gets it can change it.
///
/// It has no name in any file system. The kernel may swap it out: locking our own memory does not hold for it, and
/// `MemorySwapMax=0` in the unit does only while the cgroup is there that it was written in. Encrypted swap always does.
pub fn sealed<E: From<io::Error>>(name: &str, write: impl FnOnce(&mut File) -> Result<(), E>) -> Result<File, E> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let mut file = File::from(memfd_create(name, flags).map_err(io::Error::from)?);
    write(&mut file)?;
    file.seek(SeekFrom::Start(0))?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(all_seals())).map_err(io::Error::from)?;
    Ok(file)
}

/// Whether a file was made by [`sealed`], or in the same way: nobody can change it under our eyes.
pub fn is_sealed(file: &File) -> bool {
    let seals = fcntl(file, FcntlArg::F_GET_SEALS).map(SealFlag::from_bits_truncate);
    seals.is_ok_and(|seals| seals.contains(all_seals()))
}

fn all_seals() -> SealFlag {
    SealFlag::F_SEAL_SEAL | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    #[test]
    fn a_sealed_file_reads_as_it_was_written_and_cannot_be_changed() {
        let write = |file: &mut File| file.write_all(b"as it was");
        let mut file = sealed::<io::Error>("test", write).unwrap();
        let mut read = String::new();
        file.read_to_string(&mut read).unwrap();
        assert_eq!(read, "as it was");
        assert!(is_sealed(&file));
        assert!(file.write_all(b"x").is_err() && file.set_len(0).is_err());
        assert!(!is_sealed(&tempfile::tempfile().unwrap()));
    }
}
