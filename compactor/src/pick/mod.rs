//! Which job to run next: a pure decision about the shape of the tree.
//!
//! **The shape** is lazy levelling: runs of similar size gather and are merged together (tiered),
//! above one bottom run that holds most of the data (levelled). Writes are cheap since an entry is
//! rewritten once per tier; space is bounded since the upper runs are at most a set part of the
//! bottom; and an absent key costs one filter for each of a handful of runs.
//!
//! **The rules**, the first that applies wins:
//!
//! | reason | when | inputs |
//! |---|---|---|
//! | `l0` | L0 is due, see below | all of L0, oldest first, up to `inputs_max` |
//! | `quarantine` | L0 is due and its oldest SST is damaged | that SST, moved unread |
//! | `bottom` | the upper runs reach `bottom_percent` of the bottom | every run |
//! | `tombstones` | upper runs hide or hold much that is dead | those runs, to the bottom |
//! | `tier` | `tier_count` neighbours, none larger than those before it together | those |
//! | `depth` | more than `runs_max` runs | the cheapest stretch of `tier_count` neighbours |
//! | `expiry` | SSTs with nothing left to expire reach `expired_percent` of the bottom | the bottom |
//!
//! L0 has a slot of its own: however long the jobs over runs take, L0 is emptied. It is due when
//! `l0_count` SSTs wait in it; when its tombstones reach `tombstone_percent` of all entries, or its
//! expired bytes `expired_percent` of all bytes, since scans step over what is dead; or when its
//! oldest SST is older than `l0_age_ms`. Upper runs are dead weight when their tombstones reach
//! `tombstone_percent` of the bottom's entries, their expired bytes `expired_percent` of its bytes,
//! or the tombstones that are older than `tombstone_age_ms` one per mille of its entries.
//!
//! **Damage.** A source that cannot be read is in no job that reads it, and neither is what lies on
//! its other side: jobs take neighbours. So runs are merged on each side of a damaged one. In L0
//! that would let it fill up for ever, which ends all writes; therefore a damaged SST that has
//! become the oldest of L0 is moved, unread, into a run of its own. It keeps its place in the
//! order, the reads that need it fail as before, and L0 drains past it.
//!
//! **Invariants**
//! - The inputs are neighbours in the tree, and none of them is in another job.
//! - At most one job has inputs in L0; its inputs are the oldest of L0, so that what it makes is
//!   older than what stays in L0.
//! - No input of a job but that of a quarantine is damaged.
//! - A tree that a job has left alone is not picked for the same reason again: every rule needs
//!   something that the job removes.
//!
//! **Source**: Dayan and Idreos, Dostoevsky (SIGMOD 2018), for lazy levelling; `RocksDB`'s
//! universal compaction for the size ratio.

use std::collections::BTreeSet;
use std::ops::Range;

use cairn_common::faults::planted;
use cairn_common::lsm::tree::{Stat, Tree};
use uuid::Uuid;

/// What the shape of the tree aims at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PickConfig {
    /// SSTs in L0 that make a job. Default 4: a third of what slows the writer down.
    pub l0_count: usize,
    /// Age at which the oldest SST of L0 is merged though there are few. Default 1 h: twice what
    /// four flushes of an almost idle writer take, so that it changes nothing for a busy one.
    pub l0_age_ms: u64,
    /// Neighbouring runs of similar size that make a job. Default 4: more means fewer rewrites and
    /// more runs to ask.
    pub tier_count: usize,
    /// Upper runs, all together, in percent of the bottom. Default 50: at most so much space is
    /// lost to versions that are overwritten; the bottom is rewritten each time it is reached.
    pub bottom_percent: u64,
    /// Upper tombstones in percent of the bottom's entries, and those of L0 in percent of all.
    /// Default 20: what a tombstone hides at the bottom is dead space, and work for each scan over
    /// it.
    pub tombstone_percent: u64,
    /// Tombstones of L0 below which they make no job by themselves. Default 1,000: a scan steps
    /// over them in a tenth of a millisecond.
    pub tombstones_min: u64,
    /// Age at which tombstones are merged into the bottom though they are few. Default 24 h: how
    /// long what was deleted takes up space; the bottom is rewritten at most once in it.
    pub tombstone_age_ms: u64,
    /// Bytes of bottom SSTs whose expiring entries have all expired, in percent. Default 20.
    pub expired_percent: u64,
    /// Runs beyond which some are merged whatever their sizes. Default 12: bounds the filters that
    /// a look-up asks.
    pub runs_max: usize,
    /// Inputs of one job. Default 24: each holds its read-ahead in memory.
    pub inputs_max: usize,
}

impl Default for PickConfig {
    fn default() -> Self {
        Self {
            l0_count: 4,
            l0_age_ms: 60 * 60 * 1_000,
            tier_count: 4,
            bottom_percent: 50,
            tombstone_percent: 20,
            tombstones_min: 1_000,
            tombstone_age_ms: 24 * 60 * 60 * 1_000,
            expired_percent: 20,
            runs_max: 12,
            inputs_max: 24,
        }
    }
}

impl PickConfig {
    /// This, for a writer that takes no write any more once `l0_stop` SSTs are in L0 (0 = unknown):
    /// a job must begin well before.
    #[must_use]
    pub fn within(&self, l0_stop: u64) -> Self {
        let half = usize::try_from(l0_stop / 2).unwrap_or(usize::MAX).max(1);
        let is_known = l0_stop > 0 && !planted("picker_ignores_l0_stop");
        let l0_count = if is_known { self.l0_count.min(half) } else { self.l0_count };
        Self { l0_count, ..*self }
    }
}

/// Why a job runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// L0 is to be emptied.
    L0,
    /// The oldest SST of L0 is damaged and is to be out of the way.
    Quarantine,
    /// Runs of similar size have gathered.
    Tier,
    /// The upper runs weigh too much against the bottom.
    Bottom,
    /// Tombstones are to meet what they hide.
    Tombstones,
    /// There are too many runs to ask.
    Depth,
    /// Much of the bottom has expired.
    Expiry,
    /// Somebody asked for everything in one run.
    Full,
}

impl Reason {
    /// One word, for logs, metrics and the list of jobs.
    pub fn name(self) -> &'static str {
        match self {
            Self::L0 => "l0",
            Self::Quarantine => "quarantine",
            Self::Tier => "tier",
            Self::Bottom => "bottom",
            Self::Tombstones => "tombstones",
            Self::Depth => "depth",
            Self::Expiry => "expiry",
            Self::Full => "full",
        }
    }
}

/// What to merge into one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Why.
    pub reason: Reason,
    /// SSTs of L0, newest first: the oldest of the tree's.
    pub l0: Vec<Uuid>,
    /// Runs, newest first: neighbours, and the newest of all if the job has SSTs of L0 too.
    pub runs: Vec<Uuid>,
}

impl Job {
    fn new(reason: Reason, l0: &[Stat], runs: &[Stat]) -> Self {
        let ids = |sources: &[Stat]| sources.iter().map(|source| source.id).collect();
        Self { reason, l0: ids(l0), runs: ids(runs) }
    }

    /// Every input, newest first.
    pub fn inputs(&self) -> impl Iterator<Item = Uuid> {
        self.l0.iter().chain(&self.runs).copied()
    }
}

/// The next job, if the tree needs one; `busy` are the inputs of jobs in flight, and what must be
/// left alone.
pub fn pick(tree: &Tree, busy: &BTreeSet<Uuid>, config: &PickConfig) -> Option<Job> {
    pick_l0(tree, busy, config).or_else(|| pick_runs(tree, busy, config))
}

/// The next job of the L0 slot.
pub fn pick_l0(tree: &Tree, busy: &BTreeSet<Uuid>, config: &PickConfig) -> Option<Job> {
    Picker { tree, busy, config }.l0()
}

/// The next job over runs.
pub fn pick_runs(tree: &Tree, busy: &BTreeSet<Uuid>, config: &PickConfig) -> Option<Job> {
    let picker = Picker { tree, busy, config };
    picker
        .bottom()
        .or_else(|| picker.tombstones())
        .or_else(|| picker.tier())
        .or_else(|| picker.depth())
        .or_else(|| picker.expiry())
}

/// The first job on the way to one run of everything; `None` where nothing would come of it.
///
/// L0 goes first and alone: a job over all runs can take hours, and L0 has to be emptied meanwhile.
/// Must wait until nothing is busy: the caller sees to that.
pub fn pick_full(tree: &Tree) -> Option<Job> {
    match (tree.l0.as_slice(), tree.runs.as_slice()) {
        ([], _) => pick_full_runs(tree),
        (l0, []) => Some(Job::new(Reason::Full, l0, &[])),
        (l0, _) => Some(Job::new(Reason::L0, l0, &[])),
    }
}

/// The second job on that way, whatever L0 holds by now.
pub fn pick_full_runs(tree: &Tree) -> Option<Job> {
    let is_clean = |run: &Stat| run.tombstones == 0 && run.operands == 0 && run.expired_bytes == 0;
    match tree.runs.as_slice() {
        [] => None,
        [only] if is_clean(only) => None,
        runs => Some(Job::new(Reason::Full, &[], runs)),
    }
}

struct Picker<'a> {
    tree: &'a Tree,
    busy: &'a BTreeSet<Uuid>,
    config: &'a PickConfig,
}

impl<'a> Picker<'a> {
    fn l0(&self) -> Option<Job> {
        let l0 = self.tree.l0.as_slice();
        let is_busy = l0.iter().any(|sst| self.busy.contains(&sst.id));
        if is_busy || !self.l0_is_due() {
            return None;
        }
        let sound = l0.iter().rev().take_while(|sst| !sst.damaged).count();
        let (reason, count) = match sound {
            0 => (Reason::Quarantine, 1),
            sound => (Reason::L0, sound.min(self.config.inputs_max)),
        };
        Some(Job::new(reason, &l0[l0.len() - count..], &[]))
    }

    fn l0_is_due(&self) -> bool {
        let (l0, config) = (self.tree.l0.as_slice(), self.config);
        let Some(oldest) = l0.last() else { return false };
        l0.len() >= config.l0_count.max(1)
            || oldest.age_ms >= config.l0_age_ms
            || self.l0_is_mostly_dead()
    }

    /// Whether much of what L0 holds is dead, or hides what is.
    fn l0_is_mostly_dead(&self) -> bool {
        if planted("picker_ignores_tombstones") {
            return false;
        }
        let (l0, config) = (self.tree.l0.iter(), self.config);
        let tombstones: u64 = l0.clone().map(|sst| sst.tombstones).sum();
        let expired: u64 = l0.map(|sst| sst.expired_bytes).sum();
        let entries = self.tree.sources().map(|source| source.entries).sum();
        let hides = tombstones >= config.tombstones_min
            && reaches(tombstones, config.tombstone_percent, entries);
        hides || reaches(expired, config.expired_percent, self.tree.bytes())
    }

    fn bottom(&self) -> Option<Job> {
        let (upper, bottom) = self.upper_and_bottom()?;
        let sound = sound_end(upper);
        let upper_bytes: u64 = upper[sound.clone()].iter().map(|run| run.bytes).sum();
        if !reaches(upper_bytes, self.config.bottom_percent, bottom.bytes) {
            return None;
        }
        self.job(Reason::Bottom, sound.start..upper.len() + 1)
    }

    fn tombstones(&self) -> Option<Job> {
        let (upper, bottom) = self.upper_and_bottom()?;
        let (config, sound) = (self.config, sound_end(upper));
        let runs = &upper[sound.clone()];
        let tombstones = |run: &Stat| run.tombstones;
        let aged =
            |run: &Stat| if run.age_ms < config.tombstone_age_ms { 0 } else { run.tombstones };
        let expired = |run: &Stat| run.expired_bytes;
        let sum = |part: &dyn Fn(&Stat) -> u64| -> u64 { runs.iter().map(part).sum() };
        let hides = reaches(sum(&tombstones), config.tombstone_percent, bottom.entries)
            || reaches(sum(&aged) * 10, 1, bottom.entries);
        // Under operands what has expired would have to stay, and the same job be picked again.
        let holds = reaches(sum(&expired), config.expired_percent, bottom.bytes)
            && !self.tree.has_operands_above(runs.first()?.id, &runs.iter().collect::<Vec<_>>());
        let is_dead =
            |run: &Stat| (hides && run.tombstones > 0) || (holds && run.expired_bytes > 0);
        let newest = runs.iter().position(is_dead)?;
        self.job(Reason::Tombstones, sound.start + newest..upper.len() + 1)
    }

    fn tier(&self) -> Option<Job> {
        let (upper, _) = self.upper_and_bottom()?;
        (0..upper.len()).find_map(|start| {
            let sound = upper[start..].iter().take_while(|run| !run.damaged).count();
            let length = similar_length(&upper[start..start + sound]);
            let is_tier = length >= self.config.tier_count.max(2);
            is_tier.then(|| self.job(Reason::Tier, start..start + length)).flatten()
        })
    }

    fn depth(&self) -> Option<Job> {
        let (upper, _) = self.upper_and_bottom()?;
        if upper.len() < self.config.runs_max {
            return None;
        }
        let count = self.config.tier_count.clamp(2, upper.len());
        let stretches = (0..=upper.len() - count).map(|start| start..start + count);
        let bytes = |range: &Range<usize>| -> u64 {
            upper[range.clone()].iter().map(|run| run.bytes).sum()
        };
        let free = stretches.filter(|range| self.all_free(&upper[range.clone()]));
        self.job(Reason::Depth, free.min_by_key(bytes)?)
    }

    fn expiry(&self) -> Option<Job> {
        let last = self.tree.runs.len().checked_sub(1)?;
        let bottom = &self.tree.runs[last];
        let is_due = bottom.expired_bytes > 0
            && reaches(bottom.expired_bytes, self.config.expired_percent, bottom.bytes)
            // Ghosts would have to stay, and the same job would be picked again.
            && !self.tree.has_operands_above(bottom.id, &[bottom]);
        is_due.then(|| self.job(Reason::Expiry, last..last + 1)).flatten()
    }

    /// A job over these runs, oldest first where they are too many; `None` where one is busy.
    fn job(&self, reason: Reason, range: Range<usize>) -> Option<Job> {
        let start = range.start.max(range.end.saturating_sub(self.config.inputs_max));
        let runs = &self.tree.runs[start..range.end];
        self.all_free(runs).then(|| Job::new(reason, &[], runs))
    }

    fn upper_and_bottom(&self) -> Option<(&'a [Stat], &'a Stat)> {
        let (bottom, upper) = self.tree.runs.split_last()?;
        (!upper.is_empty()).then_some((upper, bottom))
    }

    fn all_free(&self, sources: &[Stat]) -> bool {
        sources.iter().all(|source| !source.damaged && !self.busy.contains(&source.id))
    }
}

/// The oldest of the upper runs, from behind the last damaged one.
fn sound_end(upper: &[Stat]) -> Range<usize> {
    let start = upper.iter().rposition(|run| run.damaged).map_or(0, |at| at + 1);
    start..upper.len()
}

/// How many runs from the first on are of similar size: none is larger than those in front of it
/// together, and a fifth more.
fn similar_length(runs: &[Stat]) -> usize {
    let mut bytes = 0_u64;
    let fits = |run: &&Stat| {
        let is_similar = bytes == 0 || run.bytes <= bytes + bytes / 5;
        bytes += run.bytes;
        is_similar
    };
    runs.iter().take_while(fits).count()
}

/// Whether `part` is at least so many percent of `whole`; of nothing, if there is any.
fn reaches(part: u64, percent: u64, whole: u64) -> bool {
    part > 0 && u128::from(part) * 100 >= u128::from(percent) * u128::from(whole)
}

#[cfg(test)]
mod tests;
