//! Reading the log ahead of the position: GETs in flight, and what they brought, kept by id.
//!
//! **Life of a GET**: it is sent for an id at or behind the end of the walk over what is kept, as
//! many at a time as [`Pace`] allows; its answer is kept with the number of the read of CURRENT
//! before which it came; it is handed out once a later read of CURRENT has vouched for its id.
//!
//! **Invariants**
//! - An answer that came after a read of CURRENT was sent is not handed out by that read.
//! - An absent id carries the time at which it was asked for: whatever was acknowledged before that
//!   time lies before it on the chain.
//! - What is kept and in flight is bounded in objects and in bytes; only the object at the end of
//!   the walk is asked for in any case.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt};
use futures::stream::{FuturesUnordered, StreamExt};

use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::faults::planted;
use crate::format::wal::{WalKind, WalObject};
use crate::store::wal::Wal;
use crate::types::WalId;

/// What was read is judged and applied after so long, so that it is shown: with the read of CURRENT
/// that judges it, a few times a second.
const SHOW_INTERVAL: Duration = Duration::from_millis(100);
/// GETs in flight at least, once there is anything to read: each costs a price, so few of them may
/// be for ids behind the end; all of them hide the latency of the store.
const HANDFUL: usize = 8;
/// GETs in flight at most: a thousand objects a second where a GET takes 60 ms.
const AHEAD_MAX: usize = 64;
/// Bytes of objects in flight and kept: eight of the largest usual ones.
const KEPT_BYTES_MAX: usize = 64 << 20;
/// Objects that are kept: as many as fifteen rounds of the most GETs bring while CURRENT is slow.
const KEPT_OBJECTS_MAX: usize = 1024;
/// Objects that are applied at a time: some milliseconds of work.
const APPLIED_OBJECTS_MAX: usize = 256;

/// What a GET showed.
enum Read {
    Object(WalObject),
    Absent {
        asked_at: Duration,
    },
    /// Nothing is known; a damaged object is damage only if CURRENT vouches for its id.
    Failed(Error),
}

/// An answer, and the number of reads of CURRENT that had been sent when it came.
struct Kept {
    read: Read,
    round: u64,
}

struct Came {
    id: WalId,
    asked_at: Duration,
    answer: Result<Option<WalObject>>,
}

/// What is at a position that CURRENT vouches for.
pub(super) enum Next {
    Object(WalObject),
    /// The end of the chain, as of the time at which it was asked for.
    Absent {
        asked_at: Duration,
    },
    Failed(Error),
    /// It was not asked for, or the answer is not vouched for yet.
    Unknown,
}

/// The walk along the chain over what is kept.
#[derive(Debug)]
struct Walk {
    /// The first id that is not known to be an object.
    next: WalId,
    objects: usize,
    bytes: usize,
}

/// How far ahead of the walk GETs are sent.
#[derive(Debug)]
struct Pace {
    /// Objects that the walk met in the last look.
    expected: usize,
    /// Objects that it met in this one.
    met: usize,
    /// They lie before this id.
    met_to: WalId,
    /// Bytes of an object, of late.
    typical_bytes: usize,
}

/// What was read ahead.
pub(super) struct Ahead {
    wal: Wal,
    clock: Arc<dyn Clock>,
    kept: BTreeMap<WalId, Kept>,
    flights: FuturesUnordered<BoxFuture<'static, Came>>,
    /// The ids of the flights.
    asked: BTreeSet<WalId>,
    walk: Walk,
    pace: Pace,
    /// Reads of CURRENT that were sent.
    round: u64,
}

impl Pace {
    fn new(position: WalId) -> Self {
        // Of objects that are not known yet a handful is in flight.
        let typical_bytes = KEPT_BYTES_MAX / HANDFUL;
        Self { expected: HANDFUL, met: 0, met_to: position, typical_bytes }
    }

    /// The walk met an object, maybe not for the first time.
    fn meet(&mut self, object: &WalObject) {
        if object.header.id >= self.met_to {
            self.met += 1;
            self.met_to = object.next();
        }
    }

    /// How many ids from the end of the walk on are asked for at a time: what is left of as many as
    /// came in the last look, and a handful to see the end; once the walk is longer than that,
    /// twice what it is longer by, so that it triples with each round trip. A single one if nothing
    /// came: most looks at an idle log find nothing, and each GET has a price.
    fn lead(&self) -> usize {
        if (self.met, self.expected) == (0, 0) || planted("follower_shows_only_whole_stretches") {
            return 1;
        }
        let (left, over) =
            (self.expected.saturating_sub(self.met), self.met.saturating_sub(self.expected));
        (left + HANDFUL.max(2 * over)).min(AHEAD_MAX)
    }

    /// A look begins.
    fn begin_look(&mut self) {
        self.expected = std::mem::take(&mut self.met);
    }
}

impl Ahead {
    pub(super) fn new(wal: Wal, clock: Arc<dyn Clock>, position: WalId) -> Self {
        Self {
            wal,
            clock,
            kept: BTreeMap::new(),
            flights: FuturesUnordered::new(),
            asked: BTreeSet::new(),
            walk: Walk::at(position),
            pace: Pace::new(position),
            round: 0,
        }
    }

    /// R2: reads along the chain from `position` until its end is known, or there is enough to be
    /// applied.
    ///
    /// Cancel-safe: what came is kept.
    pub(super) async fn read(&mut self, position: WalId) {
        let began = self.clock.boot();
        self.kept.retain(|_, kept| !matches!(kept.read, Read::Failed(_)));
        self.walk = Walk::at(position);
        loop {
            self.keep_all_that_came();
            self.extend_walk();
            if self.is_end_known() || self.is_full() {
                return;
            }
            self.fill();
            let came = self.flights.next();
            let hurries = self.walk.objects > 0 && !planted("follower_shows_only_whole_stretches");
            let came = if hurries {
                let passed = self.clock.boot().saturating_sub(began);
                match tokio::time::timeout(SHOW_INTERVAL.saturating_sub(passed), came).await {
                    Ok(came) => came,
                    Err(_) => return,
                }
            } else {
                came.await
            };
            self.keep(came.expect("the end of the walk has been asked for"));
        }
    }

    /// R3: awaits a read of CURRENT, which vouches for what has come before; reads on meanwhile.
    pub(super) async fn vouched<T>(&mut self, current: impl Future<Output = T>) -> T {
        self.round += 1;
        let mut current = pin!(current);
        loop {
            self.extend_walk();
            if !self.is_end_known() && !self.is_full() {
                self.fill();
            }
            tokio::select! {
                biased;
                current = &mut current => return current,
                Some(came) = self.flights.next() => self.keep(came),
            }
        }
    }

    /// What is at `position`; an object and a failure are handed out once.
    pub(super) fn next(&mut self, position: WalId) -> Next {
        match self.kept.get(&position) {
            Some(Kept { round, .. }) if *round >= self.round => return Next::Unknown,
            Some(Kept { read: Read::Absent { asked_at }, .. }) => {
                return Next::Absent { asked_at: *asked_at };
            }
            Some(_) | None => {}
        }
        match self.kept.remove(&position).map(|kept| kept.read) {
            Some(Read::Object(object)) => Next::Object(object),
            Some(Read::Failed(error)) => Next::Failed(error),
            Some(Read::Absent { .. }) | None => Next::Unknown,
        }
    }

    /// Forgets what lies before the position.
    pub(super) fn pass(&mut self, position: WalId) {
        self.kept = self.kept.split_off(&position);
        self.ground_before(position);
    }

    /// Forgets everything.
    pub(super) fn forget(&mut self) {
        self.kept.clear();
        self.ground();
    }

    /// A look has reached the chain's end. Objects are kept for the next, which asks again for what
    /// was absent.
    pub(super) fn end_look(&mut self) {
        self.ground();
        self.kept.retain(|_, kept| matches!(kept.read, Read::Object(_)));
        self.pace.begin_look();
    }

    /// Cancels the GETs in flight.
    pub(super) fn ground(&mut self) {
        self.flights.clear();
        self.asked.clear();
    }

    fn keep_all_that_came(&mut self) {
        while let Some(Some(came)) = self.flights.next().now_or_never() {
            self.keep(came);
        }
    }

    fn extend_walk(&mut self) {
        while let Some(Kept { read: Read::Object(object), .. }) = self.kept.get(&self.walk.next) {
            self.pace.meet(object);
            self.walk.objects += 1;
            self.walk.bytes += bytes_of(object);
            self.walk.next = object.next();
            let is_fence = object.header.kind != WalKind::Data;
            if is_fence {
                // What is in flight lies behind the fence, and not on the chain.
                self.ground_before(self.walk.next);
            }
        }
    }

    /// Cancels the GETs in flight if all of them are for ids before `next`.
    fn ground_before(&mut self, next: WalId) {
        if self.asked.range(next..).next().is_none() {
            self.ground();
        }
    }

    /// Whether something else than an object is known of the end of the walk.
    fn is_end_known(&self) -> bool {
        self.kept.contains_key(&self.walk.next)
    }

    /// Whether the walk is as long as is applied at a time.
    fn is_full(&self) -> bool {
        self.walk.objects >= APPLIED_OBJECTS_MAX || self.walk.bytes >= KEPT_BYTES_MAX
    }

    /// Sends GETs for what is not known from the end of the walk on, up to the first absent id.
    fn fill(&mut self) {
        let lead = self.pace.lead();
        let mut in_flight = self.asked.range(self.walk.next..).count();
        let mut bytes = self.walk.bytes + in_flight * self.pace.typical_bytes;
        for offset in 0.. {
            let id = self.walk.next.plus(wal_count(offset));
            match self.kept.get(&id) {
                Some(Kept { read: Read::Object(object), .. }) => {
                    bytes += bytes_of(object);
                    continue;
                }
                Some(_) => return,
                None if self.asked.contains(&id) => continue,
                None => {}
            }
            let has_room = (offset < lead || in_flight < lead.min(HANDFUL))
                && self.flights.len() < 2 * AHEAD_MAX
                && in_flight + self.kept.len() < KEPT_OBJECTS_MAX
                && bytes + self.pace.typical_bytes <= KEPT_BYTES_MAX;
            if offset > 0 && !has_room {
                return;
            }
            in_flight += 1;
            bytes += self.pace.typical_bytes;
            let (wal, asked_at) = (self.wal.clone(), self.clock.boot());
            let get = async move { Came { id, asked_at, answer: wal.get(id).await } };
            self.asked.insert(id);
            self.flights.push(get.boxed());
        }
    }

    fn keep(&mut self, came: Came) {
        let Came { id, asked_at, answer } = came;
        self.asked.remove(&id);
        let read = match answer {
            Ok(Some(object)) => {
                let typical = (self.pace.typical_bytes * 3 + bytes_of(&object)) / 4;
                self.pace.typical_bytes = typical.max(1);
                Read::Object(object)
            }
            Ok(None) => Read::Absent { asked_at },
            Err(error) => Read::Failed(error),
        };
        if id >= self.walk.next {
            self.kept.insert(id, Kept { read, round: self.round });
        }
    }
}

impl Walk {
    fn at(next: WalId) -> Self {
        Self { next, objects: 0, bytes: 0 }
    }
}

impl fmt::Debug for Ahead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut fields = f.debug_struct("Ahead");
        fields.field("walk", &self.walk).field("pace", &self.pace).finish_non_exhaustive()
    }
}

fn wal_count(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

/// Bytes of keys and values of an object.
fn bytes_of(object: &WalObject) -> usize {
    let ops = object.batches.iter().flat_map(|batch| &batch.ops);
    ops.map(|op| op.key.len() + op.payload.bytes()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(expected: usize, met: usize) -> Pace {
        Pace { expected, met, met_to: WalId::FIRST, typical_bytes: 1 }
    }

    #[test]
    fn gets_ahead_triple_with_each_round() {
        let (mut met, mut leads) = (0, Vec::new());
        for _ in 0..6 {
            leads.push(pace(0, met).lead());
            met += leads.last().unwrap();
        }
        assert_eq!(leads, [1, 8, 18, 54, 64, 64], "an idle log is asked for one object");
    }

    #[test]
    fn a_look_begins_as_wide_as_the_last_was_long() {
        assert_eq!(pace(20, 0).lead(), 28);
        assert_eq!(pace(20, 15).lead(), 13, "the same ids");
        assert_eq!(pace(20, 21).lead(), 8, "it may be a little longer than the last");
        assert_eq!(pace(20, 30).lead(), 20);
        let mut idle = pace(20, 0);
        idle.begin_look();
        assert_eq!(idle.lead(), 1);
    }
}
