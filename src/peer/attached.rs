//! What other parts keep with an instance: for as long as it has a connection, or as it is held.

use std::any::{Any, TypeId};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

type Values = BTreeMap<TypeId, Arc<dyn Any + Send + Sync>>;

/// One value of each type and kind. Those that are attached go with the last connection of the instance, not with its
/// last holder: the ledger holds instances that have left, and what is attached may be a private key. Those that are
/// remembered go with the instance.
#[derive(Default)]
pub(super) struct Attached(Mutex<State>);

#[derive(Default)]
struct State {
    connections: usize,
    values: Values,
    remembered: Values,
}

impl Attached {
    /// The value of type `T`, made when it is first asked for. Without a connection it is kept by nobody.
    pub(super) fn get<T: Any + Default + Send + Sync>(&self) -> Arc<T> {
        let mut state = self.lock();
        if state.connections == 0 {
            return Arc::default();
        }
        value_in(&mut state.values)
    }

    /// The value of type `T` that stays, made when it is first asked for.
    pub(super) fn remembered<T: Any + Default + Send + Sync>(&self) -> Arc<T> {
        value_in(&mut self.lock().remembered)
    }

    /// Notes one more connection.
    pub(super) fn connected(&self) {
        self.lock().connections += 1;
    }

    /// Notes that a connection is over.
    pub(super) fn disconnected(&self) {
        let mut state = self.lock();
        state.connections -= 1;
        let gone = if state.connections == 0 { std::mem::take(&mut state.values) } else { Values::new() };
        drop(state);
        // Not under the lock: what a value does when it is dropped is its own affair.
        drop(gone);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn value_in<T: Any + Default + Send + Sync>(values: &mut Values) -> Arc<T> {
    let value = values.entry(TypeId::of::<T>()).or_insert_with(|| Arc::new(T::default())).clone();
    value.downcast().expect("a value is kept under its own type")
}

impl fmt::Debug for Attached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Attached")
    }
}
