//! A process that names another file as its executable, as a checkpoint is restored: the kernel allows it to root of a
//! user namespace, if it may execute the file and has nothing of its own executable mapped any more.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use nix::libc;
use nix::sched::{CloneFlags, unshare};

use super::{call, connect, say_whether};

/// Asks in the name of a program that never ran.
pub fn masquerade(socket: &str, trusted: &str) {
    unshare(CloneFlags::CLONE_NEWUSER).unwrap();
    let ourselves = std::env::current_exe().unwrap();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    for line in maps.lines().filter(|line| line.ends_with(ourselves.to_str().unwrap())) {
        replace_by_copy(line);
    }
    set_executable(&File::open(trusted).unwrap()).unwrap();
    say_whether(call(&connect(socket)));
}

/// Puts anonymous memory with the same content and rights in the place of a mapping of our file.
fn replace_by_copy(line: &str) {
    let mut words = line.split(' ');
    let (from, to) = words.next().unwrap().split_once('-').unwrap();
    let address = |text| usize::from_str_radix(text, 16).unwrap();
    let (from, length) = (address(from), address(to) - address(from));
    let rights = words.next().unwrap().chars().fold(0, |rights, letter| match letter {
        'r' => rights | libc::PROT_READ,
        'w' => rights | libc::PROT_WRITE,
        'x' => rights | libc::PROT_EXEC,
        _ => rights,
    });
    let place = std::ptr::with_exposed_provenance_mut::<libc::c_void>(from);
    let anonymous = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let moved = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    // SAFETY: `from` and `length` are a mapping of this process that is readable, as those of a program are, and this
    // is its only thread; the copy is as long. When it takes the place of the original no byte and no right differs,
    // so whatever runs or points there goes on.
    unsafe {
        let copy = libc::mmap(std::ptr::null_mut(), length, libc::PROT_READ | libc::PROT_WRITE, anonymous, -1, 0);
        assert_ne!(copy, libc::MAP_FAILED);
        std::ptr::copy_nonoverlapping(place.cast::<u8>(), copy.cast::<u8>(), length);
        assert_eq!(libc::mprotect(copy, length, rights), 0);
        assert_eq!(libc::mremap(copy, length, length, moved, place), place);
    }
}

/// `struct prctl_mm_map` (linux/prctl.h).
#[repr(C)]
struct MemoryMap {
    /// Code, data, heap, stack, arguments, environment: where each begins and ends.
    places: [u64; 11],
    auxiliary_vector: u64,
    auxiliary_vector_size: u32,
    executable: u32,
}

fn set_executable(file: &File) -> io::Result<()> {
    const PR_SET_MM_MAP: libc::c_ulong = 14;
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().collect();
    // Numbered as in proc(5), where the name of the program is the second.
    let field = |number: usize| fields[number - 3].parse::<u64>().unwrap();
    // SAFETY: with zero it only says where the heap ends.
    let heap_end = unsafe { libc::sbrk(0) }.addr() as u64;
    let map = MemoryMap {
        places: [
            field(26),
            field(27),
            field(45),
            field(46),
            field(47),
            heap_end,
            field(28),
            field(48),
            field(49),
            field(50),
            field(51),
        ],
        auxiliary_vector: 0,
        auxiliary_vector_size: 0,
        executable: file.as_raw_fd().cast_unsigned(),
    };
    // SAFETY: `map` is what the kernel reads, of the size that it is told; apart from the executable nothing changes.
    let done = unsafe { libc::prctl(libc::PR_SET_MM, PR_SET_MM_MAP, &raw const map, size_of::<MemoryMap>(), 0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
