//! The damage registry: which objects of the bucket cannot be read, and why.
//!
//! One per [`Bucket`](super::object::Bucket), shared by its roots. Damage of one object does not
//! end a process: it fails the requests that need the object. This is what `/v1/status`, `/readyz`
//! and the metric `cairn_store_damaged_objects` show of it, so that an operator can restore the
//! object.
//!
//! **Invariants**
//! - One ERROR in the log for each object when it is reported first, one INFO when it can be read
//!   again. Repeated reports change the cause only.
//! - At most [`DAMAGED_MAX`] objects are listed; the others are logged once, all together.
//! - [`Damage::clear`] of an object that is not listed costs one atomic read when nothing is.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use crate::format::path::{Object, ObjectKind};

/// Objects that are listed: more than a person restores one by one, and 20 KiB of a status.
pub const DAMAGED_MAX: usize = 100;

/// An object that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Damaged {
    /// Its name below the root of the database.
    pub object: String,
    /// What is wrong with it.
    pub cause: String,
}

/// The objects that cannot be read.
#[derive(Debug, Default)]
pub struct Damage {
    known: Mutex<Known>,
    /// Objects in `known`.
    count: AtomicUsize,
}

#[derive(Debug, Default)]
struct Known {
    causes: BTreeMap<Object, String>,
    /// An object found no place in the list, and the log said so.
    overflowed: bool,
}

impl Damage {
    /// Takes note of an object that is missing or damaged. Call it once that is certain.
    pub fn report(&self, object: &Object, cause: &dyn Display) {
        let mut known = self.lock();
        if let Some(known) = known.causes.get_mut(object) {
            *known = cause.to_string();
            return;
        }
        let name = object.path();
        if known.causes.len() == DAMAGED_MAX {
            if !std::mem::replace(&mut known.overflowed, true) {
                tracing::error!(
                    object = %name, %cause,
                    "more than {DAMAGED_MAX} objects are damaged; further ones are not listed"
                );
            }
            return;
        }
        known.causes.insert(*object, cause.to_string());
        self.count.store(known.causes.len(), Ordering::Release);
        drop(known);
        tracing::error!(
            object = %name, %cause,
            "an object is damaged: requests that need it fail until it is restored"
        );
    }

    /// Takes note that an object can be read, or is no longer needed.
    pub fn clear(&self, object: &Object) {
        if self.count() == 0 {
            return;
        }
        let mut known = self.lock();
        if known.causes.remove(object).is_some() {
            known.overflowed = false;
            self.count.store(known.causes.len(), Ordering::Release);
            drop(known);
            tracing::info!(object = %object.path(), "an object is no longer damaged");
        }
    }

    /// Clears every object for which `is_needed` is false: what is damaged and in no tree any more
    /// harms nobody.
    pub fn retain(&self, mut is_needed: impl FnMut(&Object) -> bool) {
        if self.count() == 0 {
            return;
        }
        let gone: Vec<Object> =
            self.lock().causes.keys().filter(|object| !is_needed(object)).copied().collect();
        for object in gone {
            self.clear(&object);
        }
    }

    /// Whether the object is listed.
    pub fn holds(&self, object: &Object) -> bool {
        self.count() > 0 && self.lock().causes.contains_key(object)
    }

    /// Whether an object of this kind is listed.
    pub fn holds_any(&self, kind: ObjectKind) -> bool {
        self.count() > 0 && self.lock().causes.keys().any(|object| object.kind() == kind)
    }

    /// How many objects are listed. One atomic read.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// The objects that are listed, by name.
    pub fn list(&self) -> Vec<Damaged> {
        let known = self.lock();
        let damaged = |(object, cause): (&Object, &String)| Damaged {
            object: object.path(),
            cause: cause.clone(),
        };
        known.causes.iter().map(damaged).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::WalId;

    #[test]
    fn damage_is_listed_until_it_is_cleared() {
        let (damage, wal) = (Damage::default(), |id| Object::Wal(WalId(id)));
        assert!(damage.list().is_empty());
        damage.report(&wal(2), &"it is cut short");
        damage.report(&wal(1), &"it is not there");
        damage.report(&wal(2), &"its checksum differs");
        let listed = damage.list();
        let listed: Vec<_> =
            listed.iter().map(|damaged| (&*damaged.object, &*damaged.cause)).collect();
        let (one, two) = (wal(1).path(), wal(2).path());
        assert_eq!(listed, [(&*one, "it is not there"), (&*two, "its checksum differs")]);
        damage.clear(&wal(3));
        damage.clear(&wal(1));
        assert!(damage.holds(&wal(2)) && !damage.holds(&wal(1)));
        assert!(damage.holds_any(ObjectKind::Wal) && !damage.holds_any(ObjectKind::Sst));
        damage.retain(|object| *object != wal(2));
        assert_eq!((damage.count(), damage.list()), (0, vec![]));
    }

    #[test]
    fn list_of_damage_is_bounded() {
        let damage = Damage::default();
        for id in 0..=DAMAGED_MAX {
            damage.report(&Object::Wal(WalId(u64::try_from(id).unwrap())), &"gone");
        }
        assert_eq!(damage.count(), DAMAGED_MAX);
    }
}
