//! What a job does with its inputs: which SSTs are merged, and which move as they are. Pure.
//!
//! An SST whose keys overlap no other input would be copied byte for byte by a merge; it is named
//! in the output instead, which costs nothing (a trivial move). So data that arrive in key order
//! are never rewritten, and a merge into the bottom rewrites only what the upper runs touch.
//!
//! **Invariants**
//! - Pieces ascend and share no key; every input SST is in exactly one.
//! - At the bottom nothing moves that holds what must not stay there: tombstones, operands, entries
//!   that have expired.

use cairn_common::format::manifest::SstInfo;
use cairn_common::lsm::visible::Rules;

/// How a job makes its output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// In key order.
    pub pieces: Vec<Piece>,
    /// What the merge may drop.
    pub rules: Rules,
}

/// A stretch of keys of the output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// This SST as it is.
    Move(Box<SstInfo>),
    /// What comes of merging these: by source, newest first, each ascending; none is empty.
    Merge(Vec<Vec<SstInfo>>),
}

impl Plan {
    /// Bytes to read.
    pub fn bytes(&self) -> u64 {
        let merged = self.pieces.iter().map(|piece| match piece {
            Piece::Move(_) => 0,
            Piece::Merge(sources) => sources.iter().flatten().map(|sst| sst.bytes).sum(),
        });
        merged.sum()
    }
}

/// The plan for these inputs, newest source first, the SSTs of each ascending.
///
/// An SST smaller than `move_bytes_min` is merged with its neighbours rather than moved, so that
/// runs do not fill with crumbs.
pub fn plan(sources: &[Vec<SstInfo>], rules: Rules, move_bytes_min: u64) -> Plan {
    let mut pieces: Vec<Piece> = Vec::new();
    for cluster in clusters(sources) {
        let lone = match cluster.as_slice() {
            [(_, sst)] if may_move(sst, rules) => Some(*sst),
            _ => None,
        };
        if let Some(sst) = lone.filter(|sst| sst.bytes >= move_bytes_min) {
            pieces.push(Piece::Move(Box::new(sst.clone())));
            continue;
        }
        if !matches!(pieces.last(), Some(Piece::Merge(_))) {
            pieces.push(Piece::Merge(vec![Vec::new(); sources.len()]));
        }
        if let Some(Piece::Merge(merged)) = pieces.last_mut() {
            for (source, sst) in cluster {
                merged[source].push(sst.clone());
            }
        }
    }
    let pieces = pieces.into_iter().map(|piece| settle(piece, rules)).collect();
    Plan { pieces, rules }
}

/// SSTs that overlap, directly or through others, with the index of their source; ascending.
fn clusters(sources: &[Vec<SstInfo>]) -> Vec<Vec<(usize, &SstInfo)>> {
    let indexed = sources.iter().enumerate();
    let mut ssts: Vec<(usize, &SstInfo)> =
        indexed.flat_map(|(source, ssts)| ssts.iter().map(move |sst| (source, sst))).collect();
    // Stable: where long keys were cut to the same bound, SSTs of one source keep their order.
    ssts.sort_by(|(_, a), (_, b)| a.first_key.cmp(&b.first_key));
    let mut clusters: Vec<Vec<(usize, &SstInfo)>> = Vec::new();
    let mut end: Option<&[u8]> = None;
    for (source, sst) in ssts {
        match (clusters.last_mut(), end) {
            (Some(cluster), Some(last)) if &*sst.first_key <= last => cluster.push((source, sst)),
            _ => clusters.push(vec![(source, sst)]),
        }
        end = end.max(Some(&sst.last_key));
    }
    clusters
}

/// Whether the rules leave every entry of a lone SST as it is.
fn may_move(sst: &SstInfo, rules: Rules) -> bool {
    let has_expired = sst.expires.is_some_and(|expires| expires.earliest_ms <= rules.now_ms);
    !rules.bottom || (sst.tombstones == 0 && sst.operands == 0 && !has_expired)
}

/// Drops sources that a merge has nothing of, and moves what it would only copy.
fn settle(piece: Piece, rules: Rules) -> Piece {
    let Piece::Merge(mut sources) = piece else { return piece };
    sources.retain(|source| !source.is_empty());
    match sources.as_mut_slice() {
        [only] if only.len() == 1 && may_move(&only[0], rules) => {
            Piece::Move(Box::new(only.remove(0)))
        }
        _ => Piece::Merge(sources),
    }
}

#[cfg(test)]
mod tests;
