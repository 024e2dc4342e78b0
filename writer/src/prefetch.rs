//! The log read ahead of a takeover: what a standby has at hand when the role becomes free.
//!
//! **Invariants**
//! - An id at or after `replay_from` holds one object for ever, so an object that was read is good
//!   whenever that was. What lies before `replay_from` is dropped, and is never stepped over.
//! - An absent id is only a place to try a fence: its create finds out what is there (PROTOCOL T5).

use std::collections::BTreeMap;

use cairn_common::error::{Error, Result};
use cairn_common::format::wal::{WalKind, WalObject};
use cairn_common::store::wal::Wal;
use cairn_common::types::WalId;
use futures::stream::{self, StreamExt};

/// GETs in flight while reading on, at first and at most: hides the store's latency; an overshoot
/// at the chain's end costs as many GETs of nothing.
const AHEAD_MIN: usize = 4;
const AHEAD_MAX: usize = 64;
/// Most bytes of keys and values that are held: a writer's default bound of unflushed bytes. Beyond
/// it the takeover reads the rest itself.
const BYTES_MAX: usize = 256 << 20;

/// WAL objects by id.
#[derive(Debug)]
pub struct Prefetched {
    objects: BTreeMap<WalId, WalObject>,
    bytes: usize,
    /// Where reading goes on: everything on the chain before it, from `replay_from` on, is here.
    position: WalId,
    /// Whether nothing was found there.
    is_end: bool,
}

impl Prefetched {
    /// Nothing yet, of a chain that is replayed from here on.
    pub fn new(replay_from: WalId) -> Self {
        Self { objects: BTreeMap::new(), bytes: 0, position: replay_from, is_end: false }
    }

    /// Nothing, and nothing is to be read ahead: where replay begins is not known.
    pub fn full(anywhere: WalId) -> Self {
        Self { bytes: BYTES_MAX, ..Self::new(anywhere) }
    }

    /// How far it has read.
    pub fn position(&self) -> WalId {
        self.position
    }

    /// Whether nothing was found behind what was read.
    pub fn is_at_end(&self) -> bool {
        self.is_end
    }

    /// Whether nothing was found at this id. Said once: after that it must be asked for.
    pub fn take_end(&mut self, id: WalId) -> bool {
        std::mem::take(&mut self.is_end) && self.position == id
    }

    /// The object at this id, if it was read. It is given once.
    pub fn take(&mut self, id: WalId) -> Option<WalObject> {
        let object = self.objects.remove(&id)?;
        self.bytes = self.bytes.saturating_sub(bytes_of(&object));
        Some(object)
    }

    /// Drops what need not be replayed any more.
    pub fn advance(&mut self, replay_from: WalId) {
        if self.objects.first_key_value().is_some_and(|(first, _)| *first < replay_from) {
            let kept = self.objects.split_off(&replay_from);
            self.objects = kept;
            self.bytes = self.objects.values().map(bytes_of).sum();
        }
        // SUBTLE: below `replay_from` a fence of a stalled taker may lie where data was collected,
        // and lead astray. So the way to the position begins at `replay_from` each time.
        let mut position = replay_from;
        while let Some(object) = self.objects.get(&position) {
            position = object.next();
        }
        self.is_end &= position == self.position;
        self.position = position;
    }

    /// Reads on along the chain, to its end or to the bound of memory.
    ///
    /// Costs a GET for each object, and up to [`AHEAD_MAX`] at the end. Cancel-safe: what was read
    /// stays.
    ///
    /// # Errors
    /// Passing ones; what was read before stays. Damage is left to the takeover, which names it.
    pub async fn read_on(&mut self, wal: &Wal) -> Result<()> {
        let mut ahead = AHEAD_MIN;
        'stretch: while self.bytes < BYTES_MAX {
            let from = self.position;
            let ids = stream::iter((0..).map(|offset| from.plus(offset)));
            let mut objects = ids.map(|id| wal.get(id)).buffered(ahead);
            let stretch_max = ahead * 4;
            let mut count = 0;
            while let Some(object) = objects.next().await {
                match object {
                    Ok(Some(object)) => {
                        let is_fence = object.header.kind != WalKind::Data;
                        self.push(object);
                        count += 1;
                        if is_fence || count >= stretch_max || self.bytes >= BYTES_MAX {
                            ahead = (ahead * 2).min(AHEAD_MAX);
                            continue 'stretch;
                        }
                    }
                    Ok(None) => {
                        self.is_end = true;
                        return Ok(());
                    }
                    Err(Error::Corrupt(_)) => return Ok(()),
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    fn push(&mut self, object: WalObject) {
        self.bytes += bytes_of(&object);
        self.is_end = false;
        let id = self.position;
        self.position = object.next();
        self.objects.insert(id, object);
    }
}

fn bytes_of(object: &WalObject) -> usize {
    let ops = object.batches.iter().flat_map(|batch| &batch.ops);
    ops.map(|op| op.key.len() + op.payload.bytes()).sum()
}
