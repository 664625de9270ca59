//! Names of users and groups, from the host's name service.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::{Gid, Group, Uid, User};

use crate::attest::memo::{Computed, Failure, Memo};
use crate::base::clock::Clock;
use crate::base::quota::{Queue, Quota, Turns};

/// Users and groups whose names are kept.
const CAPACITY: usize = 4096;
/// Look-ups at the same time. A directory service that hangs holds this many threads and no more.
const AT_ONCE: usize = 4;
/// Look-ups at the same time for processes of one user.
const AT_ONCE_PER_USER: usize = 2;
/// Look-ups that wait. They cost some memory.
const QUEUED: usize = 64 * QUEUED_PER_USER;
/// Look-ups that wait for processes of one user: those of a few that are in as many groups as are looked at.
const QUEUED_PER_USER: usize = 4 * super::MAX_GROUPS;

/// Where names come from. Calls may block.
pub trait NameSource: Send + Sync {
    /// The name of a user; `None` when it has none.
    fn user(&self, uid: u32) -> io::Result<Option<String>>;
    /// The name of a group; `None` when it has none.
    fn group(&self, gid: u32) -> io::Result<Option<String>>;
}

/// The host's name service switch (nsswitch.conf(5)).
#[derive(Debug)]
pub struct Nss;

impl NameSource for Nss {
    fn user(&self, uid: u32) -> io::Result<Option<String>> {
        Ok(User::from_uid(Uid::from_raw(uid))?.map(|user| user.name))
    }

    fn group(&self, gid: u32) -> io::Result<Option<String>> {
        Ok(Group::from_gid(Gid::from_raw(gid))?.map(|group| group.name))
    }
}

/// Names, kept for a short time and looked up off the async threads, once for many callers.
pub(crate) struct Names {
    source: Arc<dyn NameSource>,
    memo: Memo<Id, Option<String>>,
    queue: Queue,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Id {
    User(u32),
    Group(u32),
}

impl Names {
    pub fn new(source: impl NameSource + 'static, clock: Clock, keep: Duration) -> Self {
        let memo = Memo::new(clock, keep, CAPACITY);
        let queue = Queue::new(Turns::new(AT_ONCE, AT_ONCE_PER_USER), Quota::new(QUEUED, QUEUED_PER_USER));
        Self { source: Arc::new(source), memo, queue }
    }

    /// The name of a user; `None` when it has none.
    pub async fn user(&self, uid: u32) -> Result<Option<String>, Failure> {
        self.name(uid, Id::User(uid)).await
    }

    /// The name of a group that a process of `uid` is in; `None` when it has none.
    pub async fn group(&self, uid: u32, gid: u32) -> Result<Option<String>, Failure> {
        self.name(uid, Id::Group(gid)).await
    }

    /// The name of `id`, looked up in a turn of the user `asking`.
    async fn name(&self, asking: u32, id: Id) -> Result<Option<String>, Failure> {
        let (source, queue) = (self.source.clone(), self.queue.clone());
        let look_up = async move {
            let Ok(turn) = queue.turn(asking).await else {
                return Err("too many names are being looked up for its user; ask again".into());
            };
            let looked_up = tokio::task::spawn_blocking(move || {
                let _turn = turn; // held by the thread, which may outlast everybody's patience
                match id {
                    Id::User(uid) => source.user(uid),
                    Id::Group(gid) => source.group(gid),
                }
            });
            match looked_up.await {
                Ok(Ok(value)) => Ok(Computed { value, keep: true }),
                Ok(Err(error)) => Err(format!("the name service failed: {error}").into()),
                Err(_) => Err("the name service failed unexpectedly".into()),
            }
        };
        self.memo.get(asking, id, look_up).await
    }
}
