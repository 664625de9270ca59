//! What other parts keep with an instance, for as long as somebody holds the instance.

use std::any::{Any, TypeId};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// One value of each type. It goes with the instance, so nothing known of one program outlives it.
#[derive(Default)]
pub(super) struct Attached(Mutex<BTreeMap<TypeId, Arc<dyn Any + Send + Sync>>>);

impl Attached {
    /// The value of type `T`, made when it is first asked for.
    pub(super) fn get<T: Any + Default + Send + Sync>(&self) -> Arc<T> {
        let mut values = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let value = values.entry(TypeId::of::<T>()).or_insert_with(|| Arc::new(T::default())).clone();
        value.downcast().expect("a value is kept under its own type")
    }
}

impl fmt::Debug for Attached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Attached")
    }
}
