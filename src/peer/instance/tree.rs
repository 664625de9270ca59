//! Who descends from whom, by the kernel's own parent links.
//!
//! # Why this is evidence
//! A process has the parent that made it. When the parent exits, the kernel gives its children to the nearest of their
//! ancestors that asked for it (`PR_SET_CHILD_SUBREAPER`, as `tether run` does), else to the first process of the pid
//! namespace, which is an ancestor too. So the ancestors of a process only ever become fewer: **no process can become a
//! descendant of one that did not bring it, or a parent of it, into being**, whatever it does and whoever owns it; and
//! below a subreaper that lives no process ceases to be a descendant.
//!
//! There is one way around, which is barred here. Whoever has the power over another pid namespace can start a process in
//! it from outside (`setns`); when the parent of that one's child exits, the child is given to the first process of the
//! namespace, which never was its ancestor. All processes between a member and the root must therefore be in the pid
//! namespace of the root: then none of them was brought there in this way, unless the root itself is the first process of
//! its namespace, as in a container. There, whoever may start processes in the container from outside can make members;
//! and so can, anywhere, whoever has the power to make a member start programs for them (ptrace, the member's own
//! interfaces).
//!
//! # What it does not say
//! What a descendant asks somebody else to start (systemd, cron, a container engine) is none. A member in a pid namespace
//! of its own, as some sandboxes make, is not recognised: such trees need a cgroup.

use std::io;

use nix::libc;

use super::{Instance, LookError};
use crate::sys::procfs::ProcDir;
use crate::sys::{Kernel, PidFd};

/// How many generations are looked at. More than any real tree has; a process farther below is no member.
const MAX_STEPS: usize = 64;
/// How often the walk begins again because a parent has exited on the way.
const MAX_ATTEMPTS: usize = 16;

impl Instance {
    /// Whether this process is `root` or descends from it, by the kernel's parent links, now: both were alive, and were
    /// the instances they are, at the end of this call. Of a root that is over nothing descends.
    ///
    /// The numbers of processes are given anew while one walks from child to parent. Each parent is therefore held by a
    /// handle before its child is asked once more: a child that is alive and names the same number then has that very
    /// process as its parent, since a process that was made meanwhile cannot be anybody's parent who was there before.
    ///
    /// # Errors
    /// [`LookError::Ended`] when this process is over; [`LookError::Unseen`] when the system cannot answer now, also
    /// because processes in between keep exiting.
    pub fn descends_from(&self, root: &Self) -> Result<bool, LookError> {
        let found = self.ascends_to(root);
        // Last: what was found is about the two only if both are still there, and it may have failed because one is not.
        self.look()?;
        match root.look() {
            Ok(_) => found,
            Err(LookError::Ended(_)) => Ok(false),
            Err(unseen) => Err(unseen),
        }
    }

    /// The numbers of this process and its ancestors, the nearest first: whose descendant it may be. They are no evidence:
    /// [`Self::descends_from`] is.
    pub fn lineage(&self) -> Result<Vec<i32>, LookError> {
        let ancestors = Link::of(self).and_then(|first| lineage(&first, None));
        self.look()?;
        let ancestors = ancestors.map_err(LookError::Unseen)?;
        Ok(std::iter::once(self.pid).chain(ancestors).collect())
    }

    fn ascends_to(&self, root: &Self) -> Result<bool, LookError> {
        if self.id.same_process(&root.id) {
            return Ok(true);
        }
        if self.depth()? != root.depth()? {
            return Ok(false);
        }
        Link::of(self).and_then(|first| ascends_to(&first, root.pid)).map_err(LookError::Unseen)
    }

    /// How deep its pid namespace is nested below ours. A parent's is never deeper than a child's, so that where a
    /// process and an ancestor are equally deep all between them are, and those are all in one.
    fn depth(&self) -> Result<usize, LookError> {
        if let Some(depth) = self.depth.get() {
            return Ok(*depth);
        }
        let status = self.status()?;
        if status.pid_namespaces == 0 {
            return Err(LookError::Unseen(io::ErrorKind::Unsupported.into()));
        }
        Ok(*self.depth.get_or_init(|| status.pid_namespaces))
    }
}

/// A process in the chain, held.
trait Kin: Sized {
    /// The number of its parent now; `ESRCH` or `ENOENT` when the process is gone, 0 when the parent is not visible.
    fn parent(&self) -> io::Result<i32>;
    /// The process that has this number now.
    fn open(&self, pid: i32) -> io::Result<Self>;
}

/// Whether one of the ancestors of `first` has the number `root`, whose holder the caller knows to be alive afterwards.
fn ascends_to<K: Kin>(first: &K, root: i32) -> io::Result<bool> {
    Ok(lineage(first, Some(root))?.last() == Some(&root))
}

/// The numbers of the ancestors of `first`, the nearest first, up to `last` where that is one of them.
fn lineage<K: Kin>(first: &K, last: Option<i32>) -> io::Result<Vec<i32>> {
    for _ in 0..MAX_ATTEMPTS {
        match climb(first, last) {
            Err(error) if is_gone(&error) => {}
            answer => return answer,
        }
    }
    Err(io::Error::other("the processes between it and the root keep exiting"))
}

/// One walk; an error of a process that is gone when one of the chain has exited meanwhile.
fn climb<K: Kin>(first: &K, last: Option<i32>) -> io::Result<Vec<i32>> {
    let mut numbers = Vec::new();
    let mut held: Option<K> = None;
    while numbers.len() < MAX_STEPS {
        let child = held.as_ref().unwrap_or(first);
        let number = child.parent()?;
        // The first process of our pid namespace, and one whose parent is outside of it.
        if number <= 0 {
            break;
        }
        numbers.push(number);
        if last == Some(number) {
            break;
        }
        let parent = child.open(number)?;
        if child.parent()? != number {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        held = Some(parent);
    }
    Ok(numbers)
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ESRCH | libc::ENOENT))
}

/// A process held by its pidfd, and by its directory where the kernel does not tell by the pidfd.
struct Link<'a> {
    pidfd: Handle<'a>,
    proc_dir: Option<ProcDir>,
    kernel: Kernel,
}

enum Handle<'a> {
    Instance(&'a PidFd),
    Ancestor(PidFd),
}

impl<'a> Link<'a> {
    fn of(instance: &'a Instance) -> io::Result<Self> {
        Self::new(Handle::Instance(instance.pidfd()), instance.pid, instance.kernel)
    }

    fn new(pidfd: Handle<'a>, pid: i32, kernel: Kernel) -> io::Result<Self> {
        let proc_dir = if kernel.pidfd_info { None } else { Some(ProcDir::open(pid)?) };
        Ok(Self { pidfd, proc_dir, kernel })
    }

    fn pidfd(&self) -> &PidFd {
        match &self.pidfd {
            Handle::Instance(pidfd) => pidfd,
            Handle::Ancestor(pidfd) => pidfd,
        }
    }
}

impl Kin for Link<'_> {
    fn parent(&self) -> io::Result<i32> {
        let number = match &self.proc_dir {
            None => self.pidfd().info()?.parent,
            Some(dir) => dir.parent()?,
        };
        // A process that has exited has given its children away, and without a pidfd that tells, its number may have been
        // another's when the directory was opened.
        if self.pidfd().is_alive() { Ok(number) } else { Err(io::Error::from_raw_os_error(libc::ESRCH)) }
    }

    fn open(&self, pid: i32) -> io::Result<Self> {
        Self::new(Handle::Ancestor(PidFd::open(pid)?), pid, self.kernel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::collections::HashMap;

    /// Changes who is whose parent.
    type Happens = Box<dyn Fn(&mut HashMap<i32, i32>)>;

    /// A host: the parents by number, and what happens when a number is opened.
    struct Host {
        parents: RefCell<HashMap<i32, i32>>,
        on_open: RefCell<Vec<(i32, Happens)>>,
    }

    impl Host {
        fn new(links: &[(i32, i32)]) -> Self {
            Self { parents: RefCell::new(links.iter().copied().collect()), on_open: RefCell::default() }
        }

        fn when_opened(self, pid: i32, happens: impl Fn(&mut HashMap<i32, i32>) + 'static) -> Self {
            self.on_open.borrow_mut().push((pid, Box::new(happens)));
            self
        }

        fn process(&self, pid: i32) -> Fake<'_> {
            Fake(self, pid)
        }
    }

    struct Fake<'a>(&'a Host, i32);

    impl Kin for Fake<'_> {
        fn parent(&self) -> io::Result<i32> {
            self.0.parents.borrow().get(&self.1).copied().ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))
        }

        fn open(&self, pid: i32) -> io::Result<Self> {
            let mut pending = self.0.on_open.borrow_mut();
            if let Some(at) = pending.iter().position(|(when, _)| *when == pid) {
                let (_, happens) = pending.remove(at);
                happens(&mut self.0.parents.borrow_mut());
            }
            self.0.parents.borrow().contains_key(&pid).then_some(Fake(self.0, pid)).ok_or_else(|| {
                io::Error::from_raw_os_error(libc::ESRCH) // nobody has the number
            })
        }
    }

    #[test]
    fn ancestors_are_found_and_others_are_not() {
        let host = Host::new(&[(1, 0), (10, 1), (20, 10), (30, 20), (40, 1)]);
        for (child, root, expected) in
            [(30, 20, true), (30, 10, true), (30, 1, true), (30, 40, false), (10, 30, false), (40, 10, false)]
        {
            assert_eq!(ascends_to(&host.process(child), root).expect("answered"), expected, "{child} below {root}");
        }
    }

    #[test]
    fn a_number_that_was_given_to_a_child_of_the_root_meanwhile_makes_no_descendant() {
        // 30 is the child of 20, a stranger. While we reach for 20 it exits, and its number goes to a child of the root.
        let host = Host::new(&[(1, 0), (10, 1), (20, 1), (30, 20)]).when_opened(20, |parents| {
            parents.insert(30, 1);
            parents.insert(20, 10);
        });
        assert!(!ascends_to(&host.process(30), 10).expect("answered"));
    }

    #[test]
    fn a_descendant_whose_parent_exits_meanwhile_is_found_at_the_subreaper() {
        let host = Host::new(&[(1, 0), (10, 1), (20, 10), (30, 20)]).when_opened(20, |parents| {
            parents.insert(30, 10);
            parents.remove(&20);
        });
        assert!(ascends_to(&host.process(30), 10).expect("answered"));
    }

    #[test]
    fn a_chain_without_end_is_left() {
        let links: Vec<_> = (2..=200).map(|pid| (pid, pid - 1)).chain([(1, 0)]).collect();
        let host = Host::new(&links);
        let steps = i32::try_from(MAX_STEPS).expect("small");
        assert!(ascends_to(&host.process(200), 200 - steps).expect("answered"));
        assert!(!ascends_to(&host.process(200), 200 - steps - 1).expect("answered"));
    }

    #[test]
    fn a_process_that_is_gone_is_no_answer() {
        assert!(ascends_to(&Host::new(&[(1, 0)]).process(30), 1).is_err());
    }
}
