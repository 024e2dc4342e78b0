//! The objects that a job found damaged: no job reads a source that holds one until a check,
//! repeated less and less often, finds it sound again (restored from a backup, say).
//!
//! **Invariants**
//! - Only a second, independent read puts an object here; a job that failed does not.
//! - Every object here is in the damage registry of the bucket, and leaves it when it heals or
//!   leaves the tree.

use std::collections::BTreeMap;
use std::time::Duration;

use cairn_common::format::path::Object;
use cairn_common::store::damage::Damage;

/// The first pause before a damaged object is looked at again.
const RECHECK_PAUSE_MIN: Duration = Duration::from_secs(30);
/// The longest: a restored object is found within it, and a damaged one of 64 MiB costs as much
/// reading in an hour as one small job.
const RECHECK_PAUSE_MAX: Duration = Duration::from_mins(10);

/// The damaged objects of the tree: SSTs and run objects.
#[derive(Debug, Default)]
pub struct Blacklist {
    objects: BTreeMap<Object, Next>,
}

/// When an object is looked at again.
#[derive(Debug)]
struct Next {
    pause: Duration,
    /// Boot time of the next look.
    look_at: Duration,
}

impl Blacklist {
    /// A look at this object, the second one at least, found it damaged.
    pub fn add(&mut self, object: Object, cause: &str, damage: &Damage, now: Duration) {
        damage.report(&object, &cause);
        let next = self.objects.entry(object);
        let next = next.or_insert(Next { pause: RECHECK_PAUSE_MIN, look_at: now });
        next.look_at = now + next.pause;
        next.pause = RECHECK_PAUSE_MAX.min(next.pause * 2);
    }

    /// A look found the object sound.
    pub fn heal(&mut self, object: &Object, damage: &Damage) {
        if self.objects.remove(object).is_some() {
            damage.clear(object);
        }
    }

    /// Whether no job may read this object.
    pub fn holds(&self, object: &Object) -> bool {
        self.objects.contains_key(object)
    }

    /// Whether every object may be read.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// Whether it is time to look at the object again; true of one that is not here.
    pub fn is_due(&self, object: &Object, now: Duration) -> bool {
        self.objects.get(object).is_none_or(|next| next.look_at <= now)
    }

    /// The SSTs to look at now.
    pub fn due(&self, now: Duration) -> impl Iterator<Item = Object> {
        let due = self.objects.iter().filter(move |(_, next)| next.look_at <= now);
        due.map(|(object, _)| *object).filter(|object| matches!(object, Object::Sst(_)))
    }

    /// The first of the objects.
    pub fn first(&self) -> Option<Object> {
        self.objects.keys().next().copied()
    }

    /// Forgets what is no longer in the tree.
    pub fn keep(&mut self, is_in_tree: impl Fn(&Object) -> bool, damage: &Damage) {
        self.objects.retain(|object, _| {
            let is_kept = is_in_tree(object);
            if !is_kept {
                damage.clear(object);
            }
            is_kept
        });
    }
}

#[cfg(test)]
mod tests {
    use cairn_common::format::path::OutputId;
    use cairn_common::types::{Epoch, Role};
    use uuid::Uuid;

    use super::*;

    fn sst(number: u128) -> Object {
        let uuid = Uuid::from_u128(number);
        Object::Sst(OutputId { role: Role::Writer, epoch: Epoch(1), uuid })
    }

    #[test]
    fn damaged_object_is_looked_at_less_and_less() {
        let (mut list, damage) = (Blacklist::default(), Damage::default());
        let object = sst(1);
        let mut now = Duration::from_secs(100);
        let mut pauses = Vec::new();
        for _ in 0..7 {
            list.add(object, "a flipped bit", &damage, now);
            assert!(list.holds(&object) && damage.holds(&object));
            assert_eq!(list.due(now).next(), None);
            let pause = (1..=600).find(|s| list.is_due(&object, now + Duration::from_secs(*s)));
            pauses.push(pause.unwrap());
            now += Duration::from_secs(*pauses.last().unwrap());
            assert_eq!(list.due(now).next(), Some(object));
        }
        assert_eq!(pauses, [30, 60, 120, 240, 480, 600, 600]);
        list.heal(&object, &damage);
        assert!(list.is_empty() && damage.count() == 0 && list.due(now).next().is_none());
    }

    #[test]
    fn what_leaves_the_tree_is_forgotten() {
        let (mut list, damage) = (Blacklist::default(), Damage::default());
        list.add(sst(1), "lost", &damage, Duration::ZERO);
        list.add(sst(2), "lost", &damage, Duration::ZERO);
        list.keep(|object| *object == sst(1), &damage);
        assert_eq!((list.first(), damage.count()), (Some(sst(1)), 1));
    }
}
