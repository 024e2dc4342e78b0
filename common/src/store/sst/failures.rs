//! What could not be read lately: a damaged or missing object is asked for again about once a
//! second, not at the rate of the requests that need it, and it is found whole again once it is.
//!
//! **Invariants**
//! - Only certain damage is remembered: `Corrupt`, and a missing object once a reload of the
//!   manifest did not explain it ([`Failures::believe`]). A first `NotFound` is passed on, never
//!   remembered.
//! - A failure is of one part of an object, so a damaged block fails no other block.
//! - Every object that fails here is in the damage registry; the read that succeeds after all, or
//!   the tree that no longer names the object, takes it out.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::error::{Error, REMEDY, Result};
use crate::format::path::Object;
use crate::store::damage::Damage;

/// How long a failure is answered from memory: short enough for whoever waits for a restored
/// object, one request a second for the store.
const REMEMBERED_FOR: Duration = Duration::from_secs(1);
/// Failures that are remembered, each about 300 bytes. Beyond it the oldest is forgotten, and its
/// part is asked for at the rate of requests.
const FAILURES_MAX: usize = 1024;

/// What of an object was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    /// All of it: a run, or an object that is not there.
    Whole,
    /// The metadata of an SST.
    Meta,
    /// The block of this index.
    Block(usize),
}

/// A part of an object.
pub(super) type Place = (Object, Part);

/// Parts of objects that could not be read.
#[derive(Debug, Default)]
pub(super) struct Failures {
    known: Mutex<BTreeMap<Place, Failure>>,
    count: AtomicUsize,
}

#[derive(Debug)]
struct Failure {
    error: Error,
    /// Boot time until which nobody asks again.
    until: Duration,
}

impl Failures {
    /// Whether nothing is remembered. One atomic read.
    fn is_empty(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    /// The failure of a part that was asked for within the last second.
    pub(super) fn recall(&self, (object, part): Place, now: Duration) -> Option<Error> {
        if self.is_empty() {
            return None;
        }
        let known = self.lock();
        let places = [(object, Part::Whole), (object, part)];
        let mut failures = places.iter().filter_map(|place| known.get(place));
        failures.find(|failure| now < failure.until).map(|failure| failure.error.repeat())
    }

    /// Takes note of how a read of a part ended, and returns that.
    ///
    /// # Errors
    /// The read's; `Corrupt` for a missing object that is believed to be missing.
    pub(super) fn settle<T>(
        &self,
        (object, part): Place,
        read: Result<T>,
        now: Duration,
        damage: &Damage,
    ) -> Result<T> {
        match read {
            Ok(value) => {
                self.forget(&[(object, Part::Whole), (object, part)], damage);
                Ok(value)
            }
            Err(error @ Error::Corrupt(_)) => {
                self.remember((object, part), &error, now, damage);
                Err(error)
            }
            Err(Error::NotFound(_)) if self.is_believed(&object) => {
                let error = missing(&object);
                self.remember((object, Part::Whole), &error, now, damage);
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    /// Takes note that an object which the newest manifest names is missing; returns the error.
    pub(super) fn believe(&self, object: Object, now: Duration, damage: &Damage) -> Error {
        let error = missing(&object);
        self.remember((object, Part::Whole), &error, now, damage);
        error
    }

    /// Forgets the objects for which `is_needed` is false.
    pub(super) fn retain(&self, is_needed: impl Fn(&Object) -> bool, damage: &Damage) {
        if self.is_empty() {
            return;
        }
        let places: Vec<Place> = self.lock().keys().copied().collect();
        let gone: Vec<Place> =
            places.into_iter().filter(|(object, _)| !is_needed(object)).collect();
        self.forget(&gone, damage);
    }

    /// An object was suspected as a whole, and every part that was asked for is sound: it is
    /// damaged only if a part of it is known to be.
    pub(super) fn acquit(&self, object: &Object, damage: &Damage) {
        let parts = (*object, Part::Whole)..=(*object, Part::Block(usize::MAX));
        if self.lock().range(parts).next().is_none() {
            damage.clear(object);
        }
    }

    fn is_believed(&self, object: &Object) -> bool {
        !self.is_empty() && self.lock().contains_key(&(*object, Part::Whole))
    }

    fn remember(&self, place: Place, error: &Error, now: Duration, damage: &Damage) {
        let failure = Failure { error: error.repeat(), until: now + REMEMBERED_FOR };
        let mut known = self.lock();
        known.insert(place, failure);
        let oldest = (known.len() > FAILURES_MAX)
            .then(|| known.iter().min_by_key(|(_, failure)| failure.until))
            .flatten()
            .map(|(place, _)| *place);
        self.count.store(known.len(), Ordering::Release);
        drop(known);
        let cause = match error {
            Error::Corrupt(failure) => failure.cause.as_ref().map(ToString::to_string),
            _ => None,
        };
        damage.report(&place.0, &cause.unwrap_or_else(|| error.to_string()));
        if let Some(oldest) = oldest {
            self.forget(&[oldest], damage);
        }
    }

    fn forget(&self, places: &[Place], damage: &Damage) {
        if self.is_empty() {
            return;
        }
        let mut known = self.lock();
        for place in places {
            let (object, _) = place;
            let was_known = known.remove(place).is_some();
            let parts = (*object, Part::Whole)..=(*object, Part::Block(usize::MAX));
            if was_known && known.range(parts).next().is_none() {
                damage.clear(object);
            }
        }
        self.count.store(known.len(), Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Place, Failure>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The error of an object that is missing though the newest manifest names it.
fn missing(object: &Object) -> Error {
    let cause = format!("it is not there, and the newest manifest names it: {REMEDY}");
    Error::corrupt(object.path(), cause)
}

/// The same error for those who wait together.
pub(super) fn shared<T>(read: Result<T>) -> Result<T, Arc<Error>> {
    read.map_err(Arc::new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::WalId;

    const OBJECT: Object = Object::Wal(WalId(7));
    const SECOND: Duration = Duration::from_secs(1);

    fn corrupt() -> Result<()> {
        Err(Error::corrupt("sst/x", "a checksum differs"))
    }

    #[test]
    fn damage_is_asked_for_once_a_second() {
        let (failures, damage) = (Failures::default(), Damage::default());
        let [one, two] = [1, 2].map(|index| (OBJECT, Part::Block(index)));
        assert!(failures.settle(one, corrupt(), SECOND, &damage).is_err());
        assert!(matches!(failures.recall(one, SECOND), Some(Error::Corrupt(_))));
        assert!(failures.recall(two, SECOND).is_none(), "another block");
        assert!(failures.recall(one, 2 * SECOND).is_none(), "it may be whole by now");
        assert_eq!(damage.list()[0].cause, "a checksum differs");
        assert!(failures.settle(two, corrupt(), SECOND, &damage).is_err());
        failures.settle(one, Ok(()), 2 * SECOND, &damage).unwrap();
        assert!(damage.holds(&OBJECT), "the other block is still damaged");
        failures.settle(two, Ok(()), 2 * SECOND, &damage).unwrap();
        assert_eq!(damage.count(), 0);
    }

    #[test]
    fn missing_object_is_believed_only_when_told() {
        let (failures, damage) = (Failures::default(), Damage::default());
        let place = (OBJECT, Part::Meta);
        let absent = || Err::<(), _>(Error::NotFound("x".into()));
        let first = failures.settle(place, absent(), SECOND, &damage);
        assert!(matches!(first, Err(Error::NotFound(_))) && damage.count() == 0);
        assert!(matches!(failures.believe(OBJECT, SECOND, &damage), Error::Corrupt(_)));
        assert!(failures.recall((OBJECT, Part::Block(3)), SECOND).is_some(), "no part is there");
        let again = failures.settle(place, absent(), 3 * SECOND, &damage);
        assert!(matches!(again, Err(Error::Corrupt(_))));
        failures.settle(place, Ok(()), 5 * SECOND, &damage).unwrap();
        assert_eq!(damage.count(), 0);
        let later = failures.settle(place, absent(), 6 * SECOND, &damage);
        assert!(matches!(later, Err(Error::NotFound(_))), "it was there in between");
    }

    #[test]
    fn memory_of_failures_is_bounded() {
        let (failures, damage) = (Failures::default(), Damage::default());
        for index in 0..2 * FAILURES_MAX {
            let now = Duration::from_millis(u64::try_from(index).unwrap());
            drop(failures.settle((OBJECT, Part::Block(index)), corrupt(), now, &damage));
        }
        assert_eq!(failures.lock().len(), FAILURES_MAX);
        failures.retain(|_| false, &damage);
        assert!(failures.is_empty() && damage.count() == 0);
    }
}
