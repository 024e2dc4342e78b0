//! Taking over the log: PROTOCOL T1 to T7, from the claim to the position at which to serve.
//!
//! **Life of a takeover**: claim the epoch; walk the chain from `replay_from` into a memtable
//! (flushing on the way where it grows too large); put a fence at the chain's end, behind all that
//! the old writer may still have in flight; prove twice that the epoch is still ours; wait until
//! the old writer's read lease has run out. If nothing but fences was walked, replay begins behind
//! them from then on, so that the next takeover does not walk them again.
//!
//! **Invariants**
//! - The fence is put at the first absent id; whatever stands there is applied first.
//! - An absent id that a later object shows to have been acknowledged is a hole and not the end:
//!   nothing is written then (T2b).
//! - The log is called damaged only under our own epoch: a later writer may have collected what
//!   this one still walks.
//! - The chain's `prev_seq`s continue without a gap from the tree's flushed seq.
//! - The hold counts from the receipt of the answer that proved the claim, and uses the lease of
//!   the body that the claim replaced.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cairn_common::config::Span;
use cairn_common::env::Env;
use cairn_common::error::{Error, REMEDY, Result};
use cairn_common::faults::planted;
use cairn_common::format::manifest::WalRange;
use cairn_common::format::path::Object;
use cairn_common::format::wal::{WalKind, WalObject, encode_fence, seq_after_fence};
use cairn_common::limits::{SEQ_JUMP, WAL_JUMP};
use cairn_common::lsm::memtable::Memtable;
use cairn_common::read::view::OpenTree;
use cairn_common::store::claim::{Claim, Claimed};
use cairn_common::store::manifest::{Manifests, Snapshot};
use cairn_common::store::sst::SstStore;
use cairn_common::store::wal::{Appended, Behind, Wal};
use cairn_common::types::{Epoch, Seq, WalId};
use futures::future::{BoxFuture, FutureExt as _};
use futures::stream::{self, StreamExt};

use crate::commit::{Identity, Position};
use crate::flush::Flusher;
use crate::front::{Frozen, Start};
use crate::lease;
use crate::prefetch::Prefetched;

/// WAL objects that are fetched at once where the walk begins: hides the store's latency; an
/// overshoot at the chain's end costs as many GETs of nothing.
const AHEAD_START: usize = 8;
/// Behind a fence: often there is nothing, or another fence, if a writer started and wrote nothing.
const AHEAD_BEHIND_FENCE: usize = 1;
/// Most; each stretch doubles up to it.
const AHEAD_MAX: usize = 64;
/// A fence counts as so many WAL objects when it is judged whether a memtable is due: what is
/// behind it can only be asked for once it is here, so it delays the next walk by as much.
const FENCE_WEIGHT: u64 = 64;

/// A log that is ours.
#[derive(Debug)]
pub struct Taken {
    /// Who we are on the chain.
    pub identity: Identity,
    /// What was replayed.
    pub start: Start,
    /// Where the log goes on.
    pub next: Position,
    /// Whether replay can begin there at once: nothing but fences was walked.
    pub is_bare: bool,
    /// What CURRENT says, read after the fence.
    pub snapshot: Snapshot,
    /// Boot time at which that read began: the lease counts from here.
    pub verified_at: Duration,
    /// Until when nothing may be answered.
    pub hold: Holding,
    /// The log.
    pub wal: Wal,
}

/// What is at hand when a takeover begins.
pub struct HeadStart {
    /// CURRENT, as last read: the claim is tried on it before it is read again.
    pub snapshot: Option<Snapshot>,
    /// The log as far as it was read ahead; it is read on beside the claim.
    pub log: BoxFuture<'static, Prefetched>,
    /// Whether there is a hold.
    pub hold: Hold,
}

/// Whether a takeover waits until the old writer's read lease has run out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// As PROTOCOL T7 says.
    AsLeased,
    /// Never: the operator says that the old writer is dead.
    Never,
}

impl HeadStart {
    /// Nothing but CURRENT.
    pub fn at(snapshot: Snapshot) -> Self {
        let log = std::future::ready(Prefetched::new(snapshot.current.replay_from)).boxed();
        Self { snapshot: Some(snapshot), log, hold: Hold::AsLeased }
    }

    /// Nothing at all.
    pub fn none() -> Self {
        let log = std::future::ready(Prefetched::full(WalId::FIRST)).boxed();
        Self { snapshot: None, log, hold: Hold::AsLeased }
    }
}

impl fmt::Debug for HeadStart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { snapshot, hold, .. } = self;
        f.debug_struct("HeadStart").field("snapshot", snapshot).field("hold", hold).finish()
    }
}

/// Takes over the log under a fresh epoch.
///
/// Costs a GET for every WAL object since the last flush, and about ten requests more. After a
/// planned hand-over to a standby four of them are in series: the claim, beside which the rest of
/// the log is read; what is checked before the fence; the fence; CURRENT once more.
///
/// # Errors
/// `Fenced` where another claimed meanwhile; `Corrupt` for a damaged chain, also for one that lost
/// an acknowledged object.
pub async fn take_over(takeover: &Takeover, claim: &Claim, head: HeadStart) -> Result<Taken> {
    let HeadStart { snapshot, log, hold } = head;
    let ahead = async {
        let mut log = log.await;
        // SUBTLE: an end that was found before the claim may be none any more; the fence's create
        // finds out, as it does of one found after it.
        if !log.is_at_end()
            && let Err(error) = log.read_on(&takeover.wal).await
        {
            tracing::debug!(%error, "the log was not read to its end beside the claim");
        }
        log
    };
    let claiming = takeover.manifests.claim_over(snapshot, claim);
    let (claimed, mut ahead) = futures::join!(claiming, ahead);
    let claimed = claimed?;
    ahead.advance(claimed.snapshot.current.replay_from);
    tracing::info!(epoch = %claimed.epoch, "claimed the writer's epoch");
    let tree = takeover.open_tree(&claimed.snapshot, None);
    let identity = Identity {
        database: claimed.snapshot.current.database,
        epoch: claimed.epoch,
        writer: claim.uuid,
    };
    let wal = takeover.wal.clone();
    let mut walk = Walk::new(takeover, identity, claimed.snapshot.clone(), (tree, ahead));
    let (snapshot, verified_at) = match walk.fence_the_end().await {
        Err(damaged @ Error::Corrupt(_)) => {
            walk.still_ours().await?;
            return Err(damaged);
        }
        ended => ended?,
    };
    let next = Position { id: walk.position, seq: walk.last_seq };
    let hold = Holding::of(&claimed, hold);
    let is_bare = walk.memtable.is_empty();
    let start = walk.into_start();
    Ok(Taken { identity, start, next, is_bare, snapshot, verified_at, hold, wal })
}

/// Until when a claim answers nothing, and why: PROTOCOL T7.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    /// Boot time before which nothing may be answered.
    pub until: Duration,
    /// The claim of the writer whose lease is waited for; `None` if none is.
    pub after: Option<Held>,
}

/// Whose read lease is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The epoch of that writer.
    pub epoch: Epoch,
    /// Its lease.
    pub lease: Duration,
}

impl Holding {
    fn of(claimed: &Claimed, hold: Hold) -> Self {
        let Claimed { replaced, proven_at, .. } = claimed;
        if replaced.writer.closed || hold == Hold::Never || planted("hold_is_skipped") {
            return Self { until: *proven_at, after: None };
        }
        let lease = Duration::from_millis(replaced.lease_ms);
        let until = *proven_at + lease.mul_f64(1.1).max(lease + Duration::from_millis(100));
        Self { until, after: Some(Held { epoch: replaced.writer.epoch, lease }) }
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { epoch, lease } = self;
        write!(
            f,
            "the writer of epoch {epoch} did not close, so its reads may be answered elsewhere for \
             1.1 of its lease of {}",
            Span(*lease)
        )
    }
}

/// What a takeover works with.
#[derive(Debug)]
pub struct Takeover {
    /// The environment.
    pub env: Env,
    /// CURRENT and manifests.
    pub manifests: Manifests,
    /// The log.
    pub wal: Wal,
    /// SSTs, for the tree.
    pub ssts: Arc<SstStore>,
    /// Makes L0 of what does not fit in memory.
    pub flusher: Flusher,
    /// A walked memtable of this size is flushed on the way.
    pub memtable_bytes: u64,
}

impl Takeover {
    /// The tree of `snapshot`; needs no object of it.
    fn open_tree(&self, snapshot: &Snapshot, previous: Option<&OpenTree>) -> Arc<OpenTree> {
        Arc::new(OpenTree::new(&self.ssts, Arc::clone(&snapshot.manifest), previous))
    }
}

struct Walk<'a> {
    takeover: &'a Takeover,
    identity: Identity,
    snapshot: Snapshot,
    tree: Arc<OpenTree>,
    /// Where the memtable's stretch of the chain begins.
    from: WalId,
    position: WalId,
    last_seq: Seq,
    memtable: Arc<Memtable>,
    wal_objects: u64,
    ahead: Prefetched,
}

impl<'a> Walk<'a> {
    fn new(
        takeover: &'a Takeover,
        identity: Identity,
        snapshot: Snapshot,
        (tree, ahead): (Arc<OpenTree>, Prefetched),
    ) -> Self {
        let position = snapshot.current.replay_from;
        let last_seq = snapshot.manifest.flushed_seq;
        let memtable = Arc::new(Memtable::new());
        let (from, wal_objects) = (position, 0);
        Self {
            takeover,
            identity,
            snapshot,
            tree,
            from,
            position,
            last_seq,
            memtable,
            wal_objects,
            ahead,
        }
    }

    /// T2 to T6: walks to the end and fences it, as often as something else comes first. Returns
    /// CURRENT as read after the fence, and when that read began.
    async fn fence_the_end(&mut self) -> Result<(Snapshot, Duration)> {
        loop {
            self.walk().await?;
            if let Some(landed) = self.look_behind().await? {
                self.apply(landed).await?;
                continue;
            }
            let fence = self.fence()?;
            match self.takeover.wal.append(self.position, &fence).await? {
                Appended::Proven => {
                    self.position = self.position.plus(WAL_JUMP);
                    self.last_seq = seq_after_fence(self.last_seq);
                    return self.still_ours().await;
                }
                Appended::Taken(object) if planted("takeover_skips_what_it_met") => {
                    (self.position, self.last_seq) = (object.next(), object.last_seq());
                }
                Appended::Taken(object) => self.apply(object).await?,
            }
        }
    }

    /// T2b and T4: whether this is the end of the log, or an acknowledged object is missing here;
    /// and whether the epoch is still ours. Returns the object that has landed here meanwhile.
    async fn look_behind(&mut self) -> Result<Option<WalObject>> {
        let (end, Takeover { env, wal, .. }) = (self.position, self.takeover);
        let look = retry(env, "cannot list the log", || wal.look_behind(end));
        let (behind, ours) = tokio::join!(look, self.still_ours());
        ours?;
        match behind? {
            Behind::Nothing => Ok(None),
            Behind::Landed(object) => Ok(Some(object)),
            Behind::Proof(proof) => Err(wal.missing(end, proof)),
        }
    }

    /// T2: applies the chain up to its first absent id.
    async fn walk(&mut self) -> Result<()> {
        while let Some(object) = self.ahead.take(self.position) {
            self.apply(object).await?;
        }
        if self.ahead.take_end(self.position) {
            return Ok(());
        }
        let mut ahead = AHEAD_START;
        let mut pause = lease::pause("cannot read the log");
        'stretch: loop {
            let from = self.position;
            // A few stretches of the largest at a time: the last of one delays the next.
            let count = if ahead < AHEAD_MAX { ahead } else { ahead * 4 };
            let mut objects = stream::iter((0..).map(|offset| from.plus(offset)).take(count))
                .map(|id| self.takeover.wal.get(id))
                .buffered(ahead);
            ahead = (ahead * 2).min(AHEAD_MAX);
            while let Some(object) = objects.next().await {
                let object = match object {
                    Ok(Some(object)) => object,
                    Ok(None) => return Ok(()),
                    Err(error) if is_passing(&error) => {
                        pause.wait(&self.takeover.env, &error).await;
                        continue 'stretch;
                    }
                    Err(error) => return Err(error),
                };
                let is_fence = object.header.kind != WalKind::Data;
                self.apply(object).await?;
                if is_fence {
                    ahead = AHEAD_BEHIND_FENCE;
                    continue 'stretch;
                }
            }
        }
    }

    /// Applies the object at the position and moves on.
    async fn apply(&mut self, object: WalObject) -> Result<()> {
        let header = &object.header;
        if header.epoch > self.identity.epoch {
            return Err(Error::Fenced { held: self.identity.epoch, found: header.epoch });
        }
        if header.prev_seq != self.last_seq {
            let name = Object::Wal(self.position).path();
            let cause = format!(
                "it continues seq {}, but the chain before it ends at {}: an object of the log is \
                 missing; {REMEDY}",
                header.prev_seq, self.last_seq
            );
            return Err(Error::corrupt(name, cause));
        }
        self.last_seq = object.last_seq();
        self.position = header.next();
        for batch in &object.batches {
            self.memtable.insert(batch);
        }
        let is_fence = object.header.kind != WalKind::Data;
        self.wal_objects += if is_fence { FENCE_WEIGHT } else { 1 };
        if self.memtable.bytes() >= self.takeover.memtable_bytes {
            self.flush().await?;
        }
        Ok(())
    }

    /// T3: moves what was walked so far into the tree.
    async fn flush(&mut self) -> Result<()> {
        let wal = WalRange { from: self.from, to: self.position };
        let memtable = std::mem::replace(&mut self.memtable, Arc::new(Memtable::new()));
        // The rest of the log may have been written at any time after the last flush.
        let time_ms = self.snapshot.manifest.time_ms;
        let frozen = Frozen { memtable, wal, last_seq: self.last_seq, time_ms };
        let known = self.snapshot.clone();
        self.snapshot = self.takeover.flusher.flush(known, self.identity.epoch, &frozen).await?;
        self.tree = self.takeover.open_tree(&self.snapshot, Some(&self.tree));
        self.from = self.position;
        self.wal_objects = 0;
        Ok(())
    }

    /// T4 and T6: reads CURRENT again; the epoch must still be ours.
    async fn still_ours(&mut self) -> Result<(Snapshot, Duration)> {
        let held = self.identity.epoch;
        let Takeover { env, manifests, .. } = self.takeover;
        let (asked_at, changed) = retry(env, "cannot read CURRENT", || async {
            let asked_at = env.clock.boot();
            let changed = manifests.refresh(&self.snapshot).await?;
            Ok((asked_at, changed))
        })
        .await?;
        if let Some(changed) = changed {
            self.snapshot = changed;
        }
        let found = self.snapshot.current.writer.epoch;
        if found != held {
            return Err(Error::Fenced { held, found });
        }
        Ok((self.snapshot.clone(), asked_at))
    }

    fn fence(&self) -> Result<Bytes> {
        let Position { id, seq } = Position { id: self.position, seq: self.last_seq };
        if id > WalId::MAX || seq.0 >= Seq::MAX.0 - SEQ_JUMP {
            let cause = format!("no fence can follow seq {seq}: {REMEDY}");
            return Err(Error::corrupt(Object::Wal(id).path(), cause));
        }
        Ok(encode_fence(&self.identity.stamp(Position { id, seq }, id)))
    }

    fn into_start(self) -> Start {
        // Fences hold no data: an SST to come holds the chain from here on.
        let is_bare = self.memtable.is_empty();
        let from = if is_bare { self.position } else { self.from };
        Start {
            tree: self.tree,
            memtable: self.memtable,
            wal: WalRange { from, to: self.position },
            wal_objects: if is_bare { 0 } else { self.wal_objects },
            last_seq: self.last_seq,
            next_seq: self.last_seq.next(),
        }
    }
}

fn is_passing(error: &Error) -> bool {
    matches!(error, Error::Unavailable(_) | Error::Indeterminate(_))
}

/// Does a read again until the store answers.
async fn retry<T, F, Fut>(env: &Env, what: &'static str, mut read: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T>>,
{
    let mut pause = lease::pause(what);
    loop {
        match read().await {
            Err(error) if is_passing(&error) => pause.wait(env, &error).await,
            settled => return settled,
        }
    }
}
