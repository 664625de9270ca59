//! Names of users and groups, from the host's name service.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::{Gid, Group, Uid, User};
use tokio::sync::Semaphore;

use crate::attest::memo::{Computed, Failure, Memo};
use crate::base::clock::Clock;

/// Users and groups whose names are kept.
const CAPACITY: usize = 4096;
/// Look-ups at the same time. A directory service that hangs holds this many threads and no more.
const AT_ONCE: usize = 4;

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
pub(super) struct Names {
    source: Arc<dyn NameSource>,
    memo: Memo<Id, Option<String>>,
    turns: Arc<Semaphore>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Id {
    User(u32),
    Group(u32),
}

impl Names {
    pub fn new(source: impl NameSource + 'static, clock: Clock, keep: Duration) -> Self {
        let memo = Memo::new(clock, keep, CAPACITY);
        Self { source: Arc::new(source), memo, turns: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// The name of a user; `None` when it has none.
    pub async fn user(&self, uid: u32) -> Result<Option<String>, Failure> {
        self.name(Id::User(uid)).await
    }

    /// The name of a group; `None` when it has none.
    pub async fn group(&self, gid: u32) -> Result<Option<String>, Failure> {
        self.name(Id::Group(gid)).await
    }

    async fn name(&self, id: Id) -> Result<Option<String>, Failure> {
        let (source, turns) = (self.source.clone(), self.turns.clone());
        let look_up = async move {
            let turn = turns.acquire_owned().await;
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
        self.memo.get(id, look_up).await
    }
}
