//! One computation for many callers, kept for a while.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use time::OffsetDateTime;

use crate::base::clock::Clock;

/// Why a computation failed, in words; shared by everybody who waited for it.
pub(crate) type Failure = Arc<str>;

/// What a computation came to.
pub(super) struct Computed<V> {
    pub value: V,
    /// Whether later callers may have it too.
    pub keep: bool,
}

type Outcome<V> = Result<V, Failure>;
type Flight<V> = Shared<BoxFuture<'static, Outcome<V>>>;

/// Answers by key. Callers of one user that ask at the same time share one computation; it goes on when they stop
/// waiting, so that a computation longer than their deadlines still ends as an answer for the next one. Users share
/// what is answered, and no computation: it may have to wait for others of its user. Failures are not kept.
pub(super) struct Memo<K, V> {
    shared: Arc<Mutex<State<K, V>>>,
    clock: Clock,
    keep: Duration,
    capacity: usize,
}

struct State<K, V> {
    done: HashMap<K, (V, OffsetDateTime)>,
    running: HashMap<(u32, K), Flight<V>>,
}

impl<K, V> Memo<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Keeps up to `capacity` answers for `keep`.
    pub fn new(clock: Clock, keep: Duration, capacity: usize) -> Self {
        let shared = Arc::new(Mutex::new(State { done: HashMap::new(), running: HashMap::new() }));
        Self { shared, clock, keep, capacity }
    }

    /// The kept answer, or that of the computation under way for `uid`, or that of `compute`, which is started then.
    pub async fn get(
        &self,
        uid: u32,
        key: K,
        compute: impl Future<Output = Result<Computed<V>, Failure>> + Send + 'static,
    ) -> Outcome<V> {
        let flight = {
            let mut state = lock(&self.shared);
            let now = self.clock.now();
            if let Some((value, at)) = state.done.get(&key)
                && is_fresh(now, *at, self.keep)
            {
                return Ok(value.clone());
            }
            // Looked up and started under one lock: nobody can start a second one in between.
            match state.running.get(&(uid, key.clone())) {
                Some(flight) => {
                    drop(compute); // it may hold an open file, and waiting may be long
                    flight.clone()
                }
                None => {
                    let flight = self.start(uid, key.clone(), compute);
                    state.running.insert((uid, key), flight.clone());
                    flight
                }
            }
        };
        flight.await
    }

    /// Forgets the answer to a question, if `is_wrong` says so of it.
    pub fn forget_if(&self, key: &K, is_wrong: impl FnOnce(&V) -> bool) {
        let mut state = lock(&self.shared);
        if state.done.get(key).is_some_and(|(value, _)| is_wrong(value)) {
            state.done.remove(key);
        }
    }

    fn start(
        &self,
        uid: u32,
        key: K,
        compute: impl Future<Output = Result<Computed<V>, Failure>> + Send + 'static,
    ) -> Flight<V> {
        let (shared, clock, keep, capacity) = (self.shared.clone(), self.clock.clone(), self.keep, self.capacity);
        let task = tokio::spawn(async move {
            // The entry leaves `running` also when the computation panics: or it would fail for ever.
            let outcome = std::panic::AssertUnwindSafe(compute).catch_unwind().await;
            let outcome = outcome.unwrap_or_else(|_| Err("the computation failed unexpectedly".into()));
            let mut state = lock(&shared);
            state.running.remove(&(uid, key.clone()));
            let computed = outcome?;
            if computed.keep {
                let now = clock.now();
                state.make_room(capacity, |at| is_fresh(now, at, keep));
                state.done.insert(key, (computed.value.clone(), now));
            }
            Ok(computed.value)
        });
        task.map(|joined| joined.unwrap_or_else(|_| Err("the agent is stopping".into()))).boxed().shared()
    }
}

impl<K: Clone + Eq + Hash, V> State<K, V> {
    fn make_room(&mut self, capacity: usize, is_fresh: impl Fn(OffsetDateTime) -> bool) {
        if self.done.len() < capacity {
            return;
        }
        self.done.retain(|_, (_, at)| is_fresh(*at));
        if self.done.len() >= capacity
            && let Some(any) = self.done.keys().next().cloned()
        {
            self.done.remove(&any);
        }
    }
}

/// An answer from the future was stored before the clock was set back, and its age is not known.
fn is_fresh(now: OffsetDateTime, at: OffsetDateTime, keep: Duration) -> bool {
    at <= now && now - at < keep
}

/// Locks a mutex whose data no panic can leave half changed.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn count(runs: &Arc<AtomicUsize>, keep: bool) -> impl Future<Output = Result<Computed<usize>, Failure>> + use<> {
        let runs = runs.clone();
        async move {
            tokio::task::yield_now().await;
            Ok(Computed { value: runs.fetch_add(1, Ordering::SeqCst), keep })
        }
    }

    #[tokio::test]
    async fn many_callers_share_one_computation_and_its_answer_until_it_is_old() {
        let (clock, hand) = Clock::manual(OffsetDateTime::UNIX_EPOCH);
        let memo = Memo::new(clock, Duration::from_secs(60), 8);
        let runs = Arc::new(AtomicUsize::new(0));
        let all = futures_util::future::join_all((0..50).map(|_| memo.get(7, "a", count(&runs, true)))).await;
        assert!(all.iter().all(|answer| *answer == Ok(0)));
        hand.advance(Duration::from_secs(59));
        assert_eq!(memo.get(7, "a", count(&runs, true)).await, Ok(0));
        hand.advance(Duration::from_secs(1));
        assert_eq!(memo.get(7, "a", count(&runs, true)).await, Ok(1));
        assert_eq!(memo.get(7, "b", count(&runs, true)).await, Ok(2));
    }

    #[tokio::test]
    async fn failures_panics_and_answers_not_to_be_kept_are_computed_again() {
        let (clock, _hand) = Clock::manual(OffsetDateTime::UNIX_EPOCH);
        let memo = Memo::new(clock, Duration::from_secs(60), 8);
        let runs = Arc::new(AtomicUsize::new(0));
        assert_eq!(memo.get(7, "a", async { Err("no".into()) }).await, Err("no".into()));
        assert!(memo.get(7, "a", async { panic!("as the test wants") }).await.is_err());
        assert_eq!(memo.get(7, "a", count(&runs, false)).await, Ok(0));
        assert_eq!(memo.get(7, "a", count(&runs, false)).await, Ok(1));
    }

    #[tokio::test]
    async fn a_computation_goes_on_when_its_first_caller_stops_waiting() {
        let (clock, _hand) = Clock::manual(OffsetDateTime::UNIX_EPOCH);
        let memo = Memo::new(clock, Duration::from_secs(60), 8);
        let (go, wait) = tokio::sync::oneshot::channel::<()>();
        let slow = async move {
            let _ = wait.await;
            Ok(Computed { value: 7, keep: true })
        };
        assert_eq!(memo.get(7, "a", slow).now_or_never(), None);
        go.send(()).expect("it still runs");
        let unused = async { Err("not started: it is known already".into()) };
        assert_eq!(memo.get(7, "a", unused).await, Ok(7));
    }

    #[tokio::test]
    async fn a_user_does_not_wait_for_the_computation_of_another_and_has_its_answer() {
        let (clock, _hand) = Clock::manual(OffsetDateTime::UNIX_EPOCH);
        let memo = Memo::new(clock, Duration::from_secs(60), 8);
        assert_eq!(memo.get(1, "a", std::future::pending()).now_or_never(), None);
        let runs = Arc::new(AtomicUsize::new(0));
        assert_eq!(memo.get(2, "a", count(&runs, true)).await, Ok(0));
        assert_eq!(memo.get(1, "a", std::future::pending()).await, Ok(0));
    }

    #[tokio::test]
    async fn no_more_answers_are_kept_than_there_is_room_for() {
        let (clock, _hand) = Clock::manual(OffsetDateTime::UNIX_EPOCH);
        let memo = Memo::new(clock, Duration::from_secs(60), 4);
        for key in 0..100 {
            assert_eq!(memo.get(7, key, async move { Ok(Computed { value: key, keep: true }) }).await, Ok(key));
        }
        assert_eq!(lock(&memo.shared).done.len(), 4);
    }
}
