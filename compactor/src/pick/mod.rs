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
//! | `l0` | `l0_count` SSTs wait in L0 | all of L0, oldest first, up to `inputs_max` |
//! | `bottom` | the upper runs reach `bottom_percent` of the bottom | every run |
//! | `tombstones` | theirs reach `tombstone_percent` of its entries | those runs, to the bottom |
//! | `tier` | `tier_count` neighbours, none larger than those before it together | those |
//! | `depth` | more than `runs_max` runs | the cheapest stretch of `tier_count` neighbours |
//! | `expiry` | SSTs with nothing left to expire reach `expired_percent` of the bottom | the bottom |
//!
//! L0 has a slot of its own: however long the jobs over runs take, L0 is emptied.
//!
//! **Invariants**
//! - The inputs are neighbours in the tree, and none of them is in another job.
//! - At most one job has inputs in L0; its inputs are the oldest of L0, so that what it makes is
//!   older than what stays in L0.
//! - A tree that a job has left alone is not picked for the same reason again: every rule needs
//!   something that the job removes.
//!
//! **Source**: Dayan and Idreos, Dostoevsky (SIGMOD 2018), for lazy levelling; `RocksDB`'s
//! universal compaction for the size ratio.

use std::collections::BTreeSet;
use std::ops::Range;

use cairn_common::lsm::tree::{Stat, Tree};
use uuid::Uuid;

/// What the shape of the tree aims at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PickConfig {
    /// SSTs in L0 that make a job. Default 4: a third of what slows the writer down.
    pub l0_count: usize,
    /// Neighbouring runs of similar size that make a job. Default 4: more means fewer rewrites and
    /// more runs to ask.
    pub tier_count: usize,
    /// Upper runs, all together, in percent of the bottom. Default 50: at most so much space is
    /// lost to versions that are overwritten; the bottom is rewritten each time it is reached.
    pub bottom_percent: u64,
    /// Upper tombstones in percent of the bottom's entries. Default 20: what a tombstone hides at
    /// the bottom is dead space, and work for each scan over it.
    pub tombstone_percent: u64,
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
            tier_count: 4,
            bottom_percent: 50,
            tombstone_percent: 20,
            expired_percent: 20,
            runs_max: 12,
            inputs_max: 24,
        }
    }
}

/// Why a job runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// L0 is to be emptied.
    L0,
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
        if l0.len() < self.config.l0_count.max(1) || !self.all_free(l0) {
            return None;
        }
        let oldest = l0.len() - l0.len().min(self.config.inputs_max);
        Some(Job::new(Reason::L0, &l0[oldest..], &[]))
    }

    fn bottom(&self) -> Option<Job> {
        let (upper, bottom) = self.upper_and_bottom()?;
        let upper_bytes: u64 = upper.iter().map(|run| run.bytes).sum();
        if !reaches(upper_bytes, self.config.bottom_percent, bottom.bytes) {
            return None;
        }
        self.job(Reason::Bottom, 0..upper.len() + 1)
    }

    fn tombstones(&self) -> Option<Job> {
        let (upper, bottom) = self.upper_and_bottom()?;
        let tombstones: u64 = upper.iter().map(|run| run.tombstones).sum();
        if !reaches(tombstones, self.config.tombstone_percent, bottom.entries) {
            return None;
        }
        let newest = upper.iter().position(|run| run.tombstones > 0)?;
        self.job(Reason::Tombstones, newest..upper.len() + 1)
    }

    fn tier(&self) -> Option<Job> {
        let (upper, _) = self.upper_and_bottom()?;
        (0..upper.len()).find_map(|start| {
            let length = similar_length(&upper[start..]);
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
        sources.iter().all(|source| !self.busy.contains(&source.id))
    }
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
