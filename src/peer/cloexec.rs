//! Whether a process holds its connections close-on-exec.
//!
//! The kernel says that of a descriptor, and nowhere which descriptor a socket has: all those of the process have to be
//! looked through, and a process may have very many. So searches take turns by user, one search answers for all
//! connections of an instance that wait for it, and one for which nobody waits any more does not begin.
//!
//! A search answers only for what was asked before it began. Of a connection that came later, what it has seen of the
//! process may be older than the connection.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use nix::libc;

use super::instance::{Instance, LookError};
use crate::base::exhaustion::Exhaustion;
use crate::base::quota::{Queue, Quota, Turns};
use crate::sys::sockdiag;

/// Searches at the same time. Each reads up to 65,536 links.
const AT_ONCE: usize = 4;
/// Searches at the same time for processes of one user.
const AT_ONCE_PER_USER: usize = 2;
/// Searches that run or wait: one for each instance that asks, seldom two.
const QUEUED: usize = 16 * QUEUED_PER_USER;
/// The same of one user, who may start many processes at once.
const QUEUED_PER_USER: usize = 1024;

/// The queue in which the searches of all instances stand.
pub(super) fn queue() -> Queue {
    Queue::new(Turns::new(AT_ONCE, AT_ONCE_PER_USER), Quota::new(QUEUED, QUEUED_PER_USER))
}

/// Answers by the inode number of our end.
type Found = Result<Arc<HashMap<u64, Result<(), Unheld>>>, Unheld>;
type Search = BoxFuture<'static, Found>;

/// The searches of one instance.
#[derive(Debug)]
pub(super) struct Searches {
    queue: Queue,
    next: Mutex<Option<Next>>,
}

/// A search that has not begun.
struct Next {
    /// Gone when nobody waits for it: it is carried on by those who do.
    search: WeakShared<Search>,
    /// Our ends of the connections, with a sign of life of whoever asks.
    sockets: HashMap<u64, Weak<()>>,
}

impl Searches {
    pub(super) fn new(queue: Queue) -> Self {
        Self { queue, next: Mutex::default() }
    }

    /// What is behind the lock is changed at once.
    fn next(&self) -> MutexGuard<'_, Option<Next>> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Instance {
    /// Whether the process holds the connection whose accepted end is `socket` close-on-exec in all its descriptors of
    /// it. Waits for a turn of `share`.
    pub(super) async fn holds_cloexec(self: &Arc<Self>, socket: u64, share: u32) -> Result<(), Unheld> {
        let asking = Arc::new(());
        let found = self.join(socket, Arc::downgrade(&asking), share).await?;
        found.get(&socket).cloned().unwrap_or_else(|| Err(Unheld::now("it was not looked for; ask again")))
    }

    /// The search that will answer for `socket`.
    fn join(self: &Arc<Self>, socket: u64, asking: Weak<()>, share: u32) -> Shared<Search> {
        let mut next = self.searches.next();
        if let Some(Next { search, sockets }) = next.as_mut()
            && let Some(search) = search.upgrade()
        {
            if sockets.len() == sockets.capacity() {
                sockets.retain(|_, asking| asking.strong_count() > 0);
            }
            sockets.insert(socket, asking);
            return search;
        }
        let search = search(self.clone(), share).boxed().shared();
        *next = search.downgrade().map(|search| Next { search, sockets: HashMap::from([(socket, asking)]) });
        search
    }
}

async fn search(instance: Arc<Instance>, share: u32) -> Found {
    let turn = instance.searches.queue.turn(share).await;
    // From here on nobody joins: whoever asks now waits for the next one.
    let asked = instance.searches.next().take().map(|next| next.sockets).unwrap_or_default();
    let turn = turn.map_err(|_| Unheld::now("too many processes of this user are being looked through; ask again"))?;
    let sockets: Vec<u64> =
        asked.into_iter().filter(|(_, asking)| asking.strong_count() > 0).map(|(socket, _)| socket).collect();
    let found = tokio::task::spawn_blocking(move || {
        let _turn = turn; // held by the thread, which may outlast everybody's patience
        find(&instance, &sockets)
    });
    found.await.map(Arc::new).map_err(|_| Unheld::now("the agent is shutting down"))
}

/// Blocks.
fn find(instance: &Instance, sockets: &[u64]) -> HashMap<u64, Result<(), Unheld>> {
    let ends: Vec<_> = sockets.iter().map(|socket| (*socket, other_end(*socket))).collect();
    let wanted: HashSet<u64> = ends.iter().filter_map(|(_, end)| end.as_ref().ok().copied()).collect();
    let mut held = instance.proc_dir().descriptors_of_sockets(&wanted);
    // What was read is about this instance only if it still is one.
    let stands = instance.look().map(drop).map_err(|error| match error {
        LookError::Ended(end) => Unheld::ever(end),
        LookError::Unseen(_) => Unheld::now(error),
    });
    let mut judged = |end: Result<u64, Unheld>| {
        let end = end?;
        stands.clone()?;
        let held = held.as_mut().map_err(|error| unreadable(error))?;
        match held.remove(&end) {
            None => Err(Unheld::ever("the process does not hold the connection")),
            Some(Err(error)) => Err(unreadable(&error)),
            Some(Ok(descriptors)) if descriptors.contains(&false) => Err(Unheld::ever(
                "the process holds the connection open across exec, so that another program may have opened it; set \
                 FD_CLOEXEC right when it is made",
            )),
            Some(Ok(_)) => Ok(()),
        }
    };
    ends.into_iter().map(|(socket, end)| (socket, judged(end))).collect()
}

fn other_end(socket: u64) -> Result<u64, Unheld> {
    sockdiag::peer_inode(socket).map_err(|error| match error.raw_os_error() {
        Some(libc::ENOENT) => Unheld::ever(
            "the caller's end cannot be found: the caller is in another network namespace, or this kernel has no \
             unix_diag",
        ),
        Some(libc::ENOTCONN) => Unheld::ever("the caller's end is closed"),
        _ => Unheld::unknown("the caller's end cannot be found", &error),
    })
}

fn unreadable(error: &io::Error) -> Unheld {
    Unheld::unknown("the descriptors of the process cannot be read", error)
}

/// Why it is not known that the process holds its connection close-on-exec.
#[derive(Clone, Debug)]
pub(super) struct Unheld {
    /// In words for a person.
    pub(super) why: String,
    /// Whether the answer stands for the life of the connection.
    definite: bool,
}

impl Unheld {
    fn ever(why: impl fmt::Display) -> Self {
        Self { why: why.to_string(), definite: true }
    }

    fn now(why: impl fmt::Display) -> Self {
        Self { why: why.to_string(), definite: false }
    }

    /// It could not be found out. What only lasts as long as we lack something says nothing about the caller; whatever
    /// else may be its doing, and a search that it can have repeated at will costs us more than it.
    fn unknown(what: &str, error: &io::Error) -> Self {
        let definite = !Exhaustion::is_meant(error);
        Self { why: format!("{what}: {error}"), definite }
    }

    /// The answer that is kept, or else the one for now alone.
    pub(super) fn settle(self) -> Result<Result<(), String>, String> {
        if self.definite { Ok(Err(self.why)) } else { Err(self.why) }
    }
}

impl fmt::Debug for Next {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Next").field("sockets", &self.sockets.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn want_of_descriptors_is_no_answer_for_the_life_of_a_connection_and_everything_else_is() {
        for (errno, kept) in [
            (libc::EMFILE, false),
            (libc::ENFILE, false),
            (libc::ENOMEM, false),
            (libc::ENOBUFS, false),
            (libc::EACCES, true),
            (libc::EPERM, true),
        ] {
            let unheld = Unheld::unknown("it cannot be told", &io::Error::from_raw_os_error(errno));
            assert_eq!(unheld.settle().is_ok(), kept, "{errno}");
        }
        assert_eq!(Unheld::ever("no").settle(), Ok(Err("no".to_owned())));
        assert_eq!(Unheld::now("no").settle(), Err("no".to_owned()));
    }
}
