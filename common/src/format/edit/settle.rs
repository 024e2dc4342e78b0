//! Settling a swap of unknown outcome by its effect, read back from CURRENT and its manifest.

use uuid::Uuid;

use super::super::current::Current;
use super::super::manifest::Manifest;
use super::Edit;
use crate::types::Epoch;

/// What became of an edit whose swap was answered by silence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// Its effect is there. Never apply it again.
    Done,
    /// Its effect is not there, and the swap may still land: compute again from what is there now,
    /// with a new body under a new name. Whichever lands first makes the other conflict.
    Open,
    /// Another process holds the role: whether it landed cannot be told, and does not matter.
    Fenced {
        /// The epoch of the edit.
        held: Epoch,
        /// The epoch in CURRENT.
        found: Epoch,
    },
}

impl Edit {
    /// What became of this edit, judged from one read of CURRENT and the manifest that it names.
    pub fn settle(&self, current: &Current, manifest: &Manifest) -> Settled {
        let (held, found) = match self {
            Self::Flush(flush) => (flush.epoch, current.writer.epoch),
            Self::Compact(compact) => (compact.epoch, current.compactor.epoch),
            Self::Pin(_) | Self::Release(_) | Self::Retain(_) => (Epoch(0), Epoch(0)),
        };
        if held != found {
            return Settled::Fenced { held, found };
        }
        let done = match self {
            // SUBTLE: never by looking for the SST's id. It may have been compacted away and
            // forgotten since; the position is what nobody else moves under this epoch.
            Self::Flush(flush) => current.replay_from >= flush.replay_from,
            // SUBTLE: nor by looking for the outputs, which may have been compacted on. Inputs
            // leave the tree only through this compactor, so if one is gone the job is over.
            Self::Compact(compact) => compact.misses_an_input(manifest),
            Self::Pin(pin) => manifest.checkpoints.iter().any(|checkpoint| {
                checkpoint.name == pin.name && checkpoint.created_ms == pin.created_ms
            }),
            Self::Release(release) => {
                !manifest.checkpoints.iter().any(|checkpoint| release.names(checkpoint))
            }
            Self::Retain(retain) => {
                let mut objects = manifest.retired.iter().map(|retired| retired.object);
                current.history_from >= retain.history_from
                    && manifest.wal_from >= retain.wal_from
                    && !objects.any(|object| retain.deleted.contains(&object))
            }
        };
        if done { Settled::Done } else { Settled::Open }
    }
}

impl Current {
    /// Whether the claim of the writer's role with this uuid is the newest one.
    pub fn is_writer(&self, uuid: Uuid) -> bool {
        self.writer.uuid == uuid
    }

    /// Whether the claim of the compactor's role with this uuid is the newest one.
    pub fn is_compactor(&self, uuid: Uuid) -> bool {
        self.compactor.uuid == uuid
    }
}
