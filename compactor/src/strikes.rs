//! Strikes: failed reads of single objects, until it is certain that they are of the object and not
//! of the store.
//!
//! An object may be sound and still not be had: archived by a rule of the bucket, forbidden by a
//! policy, encrypted with a key that is gone, hidden by a proxy. The store then answers for
//! everything else.
//!
//! **Invariant**: two strikes count only if CURRENT was read between them.

use std::collections::BTreeMap;
use std::time::Duration;

use cairn_common::error::Error;
use cairn_common::format::path::Object;

/// Failures after which an object counts as damaged, if the store says that it is.
const STRIKES_IF_DAMAGED: u32 = 2;
/// The same if it only did not give the object: each is a call with tries and pauses of its own.
const STRIKES: u32 = 3;
/// Strikes that are older than this are forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_mins(10);
/// An object that was not had is not asked for again before this time has passed.
const PAUSE: Duration = Duration::from_secs(5);

/// What a failed read says of its object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Says {
    /// It is missing, or not what was written.
    Damaged,
    /// The store did not give it.
    NotGiven,
}

impl Says {
    /// What this error says.
    pub fn of(error: &Error) -> Self {
        match error {
            Error::Corrupt(_) | Error::NotFound(_) => Self::Damaged,
            _ => Self::NotGiven,
        }
    }
}

/// Objects that could not be read.
#[derive(Debug, Default)]
pub struct Strikes {
    objects: BTreeMap<Object, Strike>,
    /// Boot time of the last read of CURRENT that was answered.
    answered_at: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Strike {
    count: u32,
    /// Boot time of the last that counted.
    at: Duration,
    says: Says,
}

impl Strikes {
    /// CURRENT was read: the store answers.
    pub fn store_answered(&mut self, now: Duration) {
        self.answered_at = now;
        self.objects.retain(|_, strike| now.saturating_sub(strike.at) < FORGOTTEN_AFTER);
    }

    /// A read of this object has failed; whether it is the object.
    pub fn add(&mut self, object: Object, says: Says, now: Duration) -> bool {
        let new = Strike { count: 0, at: now, says };
        let strike = self.objects.entry(object).or_insert(new);
        if strike.count == 0 || self.answered_at > strike.at {
            *strike = Strike { count: strike.count + 1, at: now, says };
        }
        let enough = match says {
            Says::Damaged => STRIKES_IF_DAMAGED,
            Says::NotGiven => STRIKES,
        };
        strike.count >= enough
    }

    /// Whether it may be asked for again.
    pub fn is_due(&self, object: &Object, now: Duration) -> bool {
        let strike = self.objects.get(object);
        strike.is_none_or(|strike| strike.says == Says::Damaged || now >= strike.at + PAUSE)
    }

    /// The object was read.
    pub fn forget(&mut self, object: &Object) {
        self.objects.remove(object);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn strikes_count_only_while_the_store_answers() {
        let mut strikes = Strikes::default();
        for second in 1..10 {
            assert!(
                !strikes.add(Object::Current, Says::NotGiven, second * SECOND),
                "nothing answers"
            );
        }
        strikes.store_answered(20 * SECOND);
        assert!(!strikes.add(Object::Current, Says::NotGiven, 21 * SECOND));
        assert!(!strikes.is_due(&Object::Current, 22 * SECOND));
        assert!(strikes.is_due(&Object::Current, 26 * SECOND));
        strikes.store_answered(27 * SECOND);
        assert!(strikes.add(Object::Current, Says::NotGiven, 28 * SECOND), "the third that counts");
        strikes.forget(&Object::Current);
        assert!(!strikes.add(Object::Current, Says::Damaged, 29 * SECOND));
        assert!(strikes.is_due(&Object::Current, 29 * SECOND));
        strikes.store_answered(30 * SECOND);
        assert!(strikes.add(Object::Current, Says::Damaged, 31 * SECOND), "the second is enough");
    }

    #[test]
    fn old_strikes_are_forgotten() {
        let mut strikes = Strikes::default();
        assert!(!strikes.add(Object::Current, Says::Damaged, SECOND));
        strikes.store_answered(SECOND + FORGOTTEN_AFTER);
        assert!(!strikes.add(Object::Current, Says::Damaged, 2 * SECOND + FORGOTTEN_AFTER));
    }
}
