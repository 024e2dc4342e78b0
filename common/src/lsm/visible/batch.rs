//! What the operations of one batch mean together: one operation a key.

use std::collections::HashMap;

use bytes::Bytes;

use super::{Operand, Pair, State, is_operand, pair};
use crate::error::{Error, Result};
use crate::types::{Op, Payload, Seq};

/// Folds the operations of one batch, so that each key stands in it once, where it stood first.
///
/// What was folded away frees its memory: operations may share one allocation, so where some are
/// gone the others are copied out of it. Costs that copy, and nothing where keys are distinct.
///
/// # Errors `Invalid`: an operand that is no number where one is needed; or operands of one key
/// that differ in kind or write time and have no value or tombstone of the same batch below them.
pub fn fold_ops(ops: Vec<Op>) -> Result<Vec<Op>> {
    let count = ops.len();
    let mut places: HashMap<Bytes, usize> = HashMap::with_capacity(count);
    let mut folded: Vec<Op> = Vec::with_capacity(ops.len());
    for op in ops {
        if let Payload::Operand { op: kind, operand, .. } = &op.payload
            && !is_operand(*kind, operand)
        {
            return Err(Error::Invalid(format!("an operand of {kind:?} is a decimal i64")));
        }
        if let Some(&place) = places.get(&op.key) {
            let older = folded[place].clone();
            folded[place] = fold_two(older, op)?;
        } else {
            places.insert(op.key.clone(), folded.len());
            folded.push(op);
        }
    }
    drop(places);
    Ok(if folded.len() < count { repacked(folded) } else { folded })
}

/// The same operations in one allocation that holds nothing else.
fn repacked(mut ops: Vec<Op>) -> Vec<Op> {
    let mut bytes = Vec::new();
    bytes.reserve_exact(ops.iter_mut().flat_map(parts).map(|part| part.len()).sum());
    for part in ops.iter_mut().flat_map(parts) {
        bytes.extend_from_slice(part);
    }
    let mut rest = Bytes::from(bytes);
    for part in ops.iter_mut().flat_map(parts) {
        *part = rest.split_to(part.len());
    }
    ops
}

/// Everything of an operation that lies on the heap.
fn parts(op: &mut Op) -> impl Iterator<Item = &mut Bytes> {
    let argument = match &mut op.payload {
        Payload::Value(bytes) | Payload::Operand { operand: bytes, .. } => Some(bytes),
        Payload::Tombstone => None,
    };
    std::iter::once(&mut op.key).chain(argument)
}

fn fold_two(older: Op, newer: Op) -> Result<Op> {
    let Payload::Operand { op, written_ms, operand } = newer.payload else {
        return Ok(newer);
    };
    let (key, seq) = (newer.key, Seq::ZERO);
    let newer = Operand { op, written_ms, bytes: operand, expires_ms: newer.expires_ms, seq };
    let expires_ms = older.expires_ms;
    let state = match older.payload {
        Payload::Value(value) => State { value: Some(value), expires_ms, seq }.apply(newer),
        Payload::Tombstone => State { value: None, expires_ms, seq }.apply(newer),
        Payload::Operand { op, written_ms, operand } => {
            match pair(Operand { op, written_ms, bytes: operand, expires_ms, seq }, newer) {
                Pair::Base(state) => state,
                Pair::One(Operand { op, written_ms, bytes: operand, expires_ms, .. }) => {
                    let payload = Payload::Operand { op, written_ms, operand };
                    return Ok(Op { key, payload, expires_ms });
                }
                Pair::Two(older, newer) => {
                    return Err(Error::Invalid(format!(
                        "one batch cannot merge a key with both {:?} and {:?}",
                        older.op, newer.op
                    )));
                }
            }
        }
    };
    let State { value, expires_ms, .. } = state;
    let payload = value.map_or(Payload::Tombstone, Payload::Value);
    Ok(Op { key, payload, expires_ms })
}
