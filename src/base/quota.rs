//! What one user may take from the others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// So many at once in all, and so many for each user id; beyond that nobody waits, the answer is no.
#[derive(Clone, Debug)]
pub struct Quota {
    in_all: usize,
    per_uid: usize,
    taken: Arc<Mutex<Taken>>,
    emptied: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Taken {
    in_all: usize,
    by_uid: HashMap<u32, usize>,
}

/// Which limit was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// This user's.
    User(usize),
    /// That of all users together.
    All(usize),
}

/// One place, free again when this is dropped.
#[derive(Debug)]
pub struct Place {
    quota: Quota,
    uid: u32,
}

impl Quota {
    /// A quota with these limits.
    pub fn new(in_all: usize, per_uid: usize) -> Self {
        Self { in_all, per_uid, taken: Arc::default(), emptied: Arc::default() }
    }

    /// Takes a place for `uid`.
    pub fn take(&self, uid: u32) -> Result<Place, Full> {
        let mut taken = self.taken();
        if taken.by_uid.get(&uid).is_some_and(|count| *count >= self.per_uid) {
            return Err(Full::User(self.per_uid));
        }
        if taken.in_all >= self.in_all {
            return Err(Full::All(self.in_all));
        }
        taken.in_all += 1;
        *taken.by_uid.entry(uid).or_default() += 1;
        Ok(Place { quota: self.clone(), uid })
    }

    /// Takes a place for `uid` whatever the limits are: for what was there before they were set.
    pub fn take_anyway(&self, uid: u32) -> Place {
        let mut taken = self.taken();
        taken.in_all += 1;
        *taken.by_uid.entry(uid).or_default() += 1;
        Place { quota: self.clone(), uid }
    }

    /// How many places are taken.
    pub fn len(&self) -> usize {
        self.taken().in_all
    }

    /// Whether no place is taken.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Waits until no place is taken. One can be taken again by the time this returns.
    pub async fn emptied(&self) {
        loop {
            // It hears of what happens from here on.
            let emptied = self.emptied.notified();
            if self.is_empty() {
                return;
            }
            emptied.await;
        }
    }

    /// The counts are whole whenever the lock is free, also after a panic.
    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.quota.taken();
        taken.in_all -= 1;
        if taken.in_all == 0 {
            self.quota.emptied.notify_waiters();
        }
        if let Some(count) = taken.by_uid.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                taken.by_uid.remove(&self.uid);
            }
        }
    }
}

/// So many at once in all, and so many for each user id; beyond that callers wait for their turn, each user in a queue
/// of its own, so that one with many callers does not keep another waiting for all of them.
#[derive(Clone, Debug)]
pub struct Turns {
    in_all: Arc<Semaphore>,
    per_uid: usize,
    by_uid: Arc<Mutex<HashMap<u32, Arc<Semaphore>>>>,
}

/// One turn, over when this is dropped.
#[derive(Debug)]
pub struct Turn {
    turns: Turns,
    uid: u32,
    of_user: Option<OwnedSemaphorePermit>,
    _of_all: Option<OwnedSemaphorePermit>,
}

impl Turns {
    /// Turns with these limits.
    pub fn new(in_all: usize, per_uid: usize) -> Self {
        Self { in_all: Arc::new(Semaphore::new(in_all)), per_uid, by_uid: Arc::default() }
    }

    /// Waits for a turn of `uid`.
    pub async fn turn(&self, uid: u32) -> Turn {
        let queue = self.queues().entry(uid).or_insert_with(|| Arc::new(Semaphore::new(self.per_uid))).clone();
        // Made before it is had, so that giving up while waiting ends it as well.
        let mut turn = Turn { turns: self.clone(), uid, of_user: None, _of_all: None };
        // Semaphores that are never closed do not refuse. First its own queue, so that nobody holds a place of all
        // while waiting for its own.
        turn.of_user = queue.acquire_owned().await.ok();
        turn._of_all = self.in_all.clone().acquire_owned().await.ok();
        turn
    }

    fn queues(&self) -> MutexGuard<'_, HashMap<u32, Arc<Semaphore>>> {
        self.by_uid.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.of_user = None;
        let mut queues = self.turns.queues();
        // Whoever waits or holds a turn has a clone of the queue: with none of them left it is forgotten.
        if queues.get(&self.uid).is_some_and(|queue| Arc::strong_count(queue) == 1) {
            queues.remove(&self.uid);
        }
    }
}

/// Turns for which only so many may wait, for work that costs something while it waits and goes on when nobody wants
/// it any more.
#[derive(Clone, Debug)]
pub struct Queue {
    turns: Turns,
    places: Quota,
}

/// A place in the queue and the turn it came to; both are free again when this is dropped.
#[derive(Debug)]
pub struct QueueTurn {
    _turn: Turn,
    _place: Place,
}

impl Queue {
    /// A queue for `turns`, in which `places` counts who waits and who has a turn.
    pub fn new(turns: Turns, places: Quota) -> Self {
        Self { turns, places }
    }

    /// Waits for a turn of `uid`, unless too many do already.
    pub async fn turn(&self, uid: u32) -> Result<QueueTurn, Full> {
        let place = self.places.take(uid)?;
        Ok(QueueTurn { _turn: self.turns.turn(uid).await, _place: place })
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn one_user_at_its_limit_does_not_keep_out_another_and_a_free_place_can_be_taken_again() {
        let quota = Quota::new(3, 2);
        let first = quota.take(1000).unwrap();
        let _second = quota.take(1000).unwrap();
        assert_eq!(quota.take(1000).unwrap_err(), Full::User(2));
        let _other = quota.take(0).unwrap();
        assert_eq!(quota.take(1).unwrap_err(), Full::All(3));
        drop(first);
        quota.take(1000).unwrap();
        assert_eq!(quota.len(), 2);
    }

    #[tokio::test]
    async fn whoever_waits_for_an_empty_quota_is_told_when_the_last_place_is_free() {
        let quota = Quota::new(2, 2);
        quota.emptied().await;
        let (first, second) = (quota.take(1).expect("free"), quota.take(2).expect("free"));
        let waiting = tokio::spawn({
            let quota = quota.clone();
            async move { quota.emptied().await }
        });
        tokio::task::yield_now().await;
        drop(first);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished(), "one place is taken");
        drop(second);
        waiting.await.expect("it is told");
    }

    #[tokio::test]
    async fn a_user_waits_for_its_own_turn_while_another_is_served() {
        let turns = Turns::new(10, 1);
        let held = turns.turn(1).await;
        let waiting = tokio::spawn({
            let turns = turns.clone();
            async move { drop(turns.turn(1).await) }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(turns.turn(2).await);
        drop(held);
        waiting.await.unwrap();
        assert!(turns.queues().is_empty(), "users without callers take no memory");
    }

    #[tokio::test]
    async fn a_user_that_gives_up_waiting_takes_no_memory() {
        let turns = Turns::new(10, 1);
        let held = turns.turn(1).await;
        let mut waiting = Box::pin(turns.turn(1));
        assert!((&mut waiting).now_or_never().is_none());
        drop(held);
        drop(waiting);
        assert!(turns.queues().is_empty());
    }

    #[tokio::test]
    async fn of_two_users_that_wait_each_gets_every_other_turn_whatever_their_numbers() {
        let turns = Turns::new(1, 1);
        let order = Arc::new(Mutex::new(Vec::new()));
        let held = turns.turn(0).await;
        let uids = [1, 1, 1, 1, 2];
        let all = uids.map(|uid| {
            let (turns, order) = (turns.clone(), order.clone());
            async move {
                let _turn = turns.turn(uid).await;
                order.lock().unwrap().push(uid);
            }
        });
        let mut all = Box::pin(futures_util::future::join_all(all));
        assert!((&mut all).now_or_never().is_none());
        drop(held);
        all.await;
        assert_eq!(order.lock().unwrap()[..2], [1, 2]);
    }

    #[tokio::test]
    async fn a_queue_that_is_full_for_one_user_is_open_to_another() {
        let queue = Queue::new(Turns::new(2, 1), Quota::new(10, 2));
        let held = queue.turn(1).await.unwrap();
        let mut waiting = Box::pin(queue.turn(1));
        assert!((&mut waiting).now_or_never().is_none());
        assert_eq!(queue.turn(1).await.unwrap_err(), Full::User(2));
        queue.turn(2).await.unwrap();
        drop(held);
        waiting.await.unwrap();
        queue.turn(1).await.unwrap();
    }
}
