//! The handles that somebody holds, by the name of their object: trees that are opened one after
//! the other share them, wherever in the tree an object has moved.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::format::path::OutputId;

/// Names of dropped handles are cleared when so many names are kept, or twice what is alive.
const NAMES_MIN: usize = 1024;

/// Handles by name, kept alive by others.
pub(super) struct Live<T> {
    names: Mutex<Names<T>>,
}

struct Names<T> {
    by_id: BTreeMap<OutputId, Weak<T>>,
    clear_at: usize,
}

impl<T> Default for Live<T> {
    fn default() -> Self {
        Self { names: Mutex::new(Names { by_id: BTreeMap::new(), clear_at: NAMES_MIN }) }
    }
}

impl<T> Live<T> {
    /// The handle of this name if one is alive and `is_same`, or what `make` makes.
    pub(super) fn get(
        &self,
        id: OutputId,
        is_same: impl FnOnce(&T) -> bool,
        make: impl FnOnce() -> T,
    ) -> Arc<T> {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let alive = names.by_id.get(&id).and_then(Weak::upgrade);
        if let Some(alive) = alive.filter(|alive| is_same(alive)) {
            return alive;
        }
        let made = Arc::new(make());
        names.by_id.insert(id, Arc::downgrade(&made));
        if names.by_id.len() >= names.clear_at {
            names.by_id.retain(|_, handle| handle.strong_count() > 0);
            names.clear_at = NAMES_MIN.max(2 * names.by_id.len());
        }
        made
    }
}

impl<T> fmt::Debug for Live<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::types::{Epoch, Role};

    #[test]
    fn handles_are_shared_while_they_live() {
        let id = |number| OutputId {
            role: Role::Writer,
            epoch: Epoch(1),
            uuid: Uuid::from_u128(number),
        };
        let live = Live::default();
        let first = live.get(id(1), |_| true, || 1);
        assert!(Arc::ptr_eq(&first, &live.get(id(1), |_| true, || 2)));
        assert_eq!(*live.get(id(1), |_| false, || 3), 3, "another object of that name");
        drop(first);
        for number in 2..10_000 {
            live.get(id(number), |_| true, || 4);
        }
        let names = live.names.lock().unwrap();
        assert!(names.by_id.len() <= NAMES_MIN);
    }
}
