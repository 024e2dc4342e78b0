//! The laws of visibility, against a model that applies a history entry by entry.

use proptest::prelude::*;

use super::*;
use crate::error::Error;
use crate::types::{Op, Payload};

/// The meaning of a history as the head of `visible.rs` tells it, in the plainest words.
#[derive(Clone, Debug, Default)]
struct Model {
    state: Option<(Vec<u8>, Option<u64>, Seq)>,
}

impl Model {
    fn apply(&mut self, seq: Seq, payload: &Payload, expires_ms: Option<u64>) {
        let (op, written_ms, operand) = match payload {
            Payload::Value(value) => {
                self.state = Some((value.to_vec(), expires_ms, seq));
                return;
            }
            Payload::Tombstone => {
                self.state = None;
                return;
            }
            Payload::Operand { op, written_ms, operand } => (*op, *written_ms, operand),
        };
        let number = |text: &[u8]| String::from_utf8(text.to_vec()).ok()?.parse::<i64>().ok();
        if op != MergeOp::Append && number(operand).is_none() {
            return;
        }
        let live = self.state.take().filter(|state| state.1.is_none_or(|at| at > written_ms));
        let base = live.as_ref().map(|state| state.0.clone());
        let value = if op == MergeOp::Append {
            [base.unwrap_or_default(), operand.to_vec()].concat()
        } else {
            let operand = number(operand).unwrap();
            let value = match (op, base.as_deref().and_then(number)) {
                (_, None) => operand,
                (MergeOp::Add, Some(base)) => base.wrapping_add(operand),
                (MergeOp::Max, Some(base)) => base.max(operand),
                (_, Some(base)) => base.min(operand),
            };
            value.to_string().into_bytes()
        };
        let ends = live.and_then(|state| state.1).into_iter().chain(expires_ms).min();
        self.state = Some((value, ends, seq));
    }

    fn read(&self, now_ms: u64) -> Option<Found> {
        let (value, expires_ms, seq) = self.state.clone()?;
        let is_live = expires_ms.is_none_or(|at| at > now_ms);
        is_live.then(|| Found { value: value.into(), seq, expires_ms })
    }
}

fn number() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        6 => (-9..10_i64).prop_map(|n| n.to_string()),
        1 => Just(i64::MAX.to_string()),
        1 => Just(i64::MIN.to_string()),
        1 => Just("+007".to_owned()),
        1 => Just("no number".to_owned()),
        1 => Just(String::new()),
    ]
    .prop_map(Bytes::from)
}

fn merge_op() -> impl Strategy<Value = MergeOp> {
    use MergeOp::{Add, Append, Max, Min};
    prop_oneof![4 => Just(Add), 1 => Just(Max), 1 => Just(Min), 2 => Just(Append)]
}

/// Times are few, so that expiries, writes and reads meet in every order, and coincide.
fn time() -> impl Strategy<Value = u64> {
    1..8_u64
}

fn payload() -> impl Strategy<Value = Payload> {
    let operand = (merge_op(), time(), number())
        .prop_map(|(op, written_ms, operand)| Payload::Operand { op, written_ms, operand });
    prop_oneof![
        2 => number().prop_map(Payload::Value),
        1 => Just(Payload::Tombstone),
        6 => operand,
    ]
}

fn op() -> impl Strategy<Value = Op> {
    (payload(), prop::option::of(time())).prop_map(|(payload, expires_ms)| Op {
        key: "k".into(),
        // Writers never give a tombstone an expiry.
        expires_ms: expires_ms.filter(|_| payload != Payload::Tombstone),
        payload,
    })
}

fn entries(history: &[Op]) -> Vec<Entry> {
    let mut entries: Vec<_> = (1..)
        .zip(history)
        .map(|(seq, op)| Entry {
            key: op.key.clone(),
            seq: Seq(seq),
            payload: op.payload.clone(),
            expires_ms: op.expires_ms,
        })
        .collect();
    entries.reverse();
    entries
}

fn read(entries: &[Entry], now_ms: u64) -> Option<Found> {
    resolve(entries.iter().map(Entry::as_ref), now_ms)
}

fn earliest_write(entries: &[Entry]) -> u64 {
    let written = entries.iter().filter_map(|entry| match entry.payload {
        Payload::Operand { written_ms, .. } => Some(written_ms),
        _ => None,
    });
    written.min().unwrap_or(u64::MAX)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn resolve_follows_the_model(history in prop::collection::vec(op(), 0..10), now in 0..9_u64) {
        let mut model = Model::default();
        for entry in entries(&history).iter().rev() {
            model.apply(entry.seq, &entry.payload, entry.expires_ms);
        }
        prop_assert_eq!(read(&entries(&history), now), model.read(now));
    }

    #[test]
    fn compaction_changes_no_read(
        history in prop::collection::vec(op(), 0..12),
        // Each step compacts a stretch of what is left: where it begins, how long, and when.
        steps in prop::collection::vec((0..12_usize, 1..12_usize, 0..3_u64), 1..5),
        later in 0..4_u64,
    ) {
        let mut versions = entries(&history);
        let before = versions.clone();
        let mut now = 1;
        for (from, length, passed) in steps {
            now += passed;
            let from = from.min(versions.len());
            let to = (from + length).min(versions.len());
            let rules = Rules {
                bottom: to == versions.len(),
                now_ms: now,
                newer_operands_from_ms: earliest_write(&versions[..from]).min(now),
            };
            let kept = compact(&versions[from..to], rules);
            prop_assert!(kept.len() <= to - from);
            versions.splice(from..to, kept);
            prop_assert!(versions.is_sorted_by(|a, b| a.seq > b.seq));
        }
        prop_assert_eq!(read(&versions, now + later), read(&before, now + later));
    }

    #[test]
    fn bottom_leaves_one_live_value_or_nothing(
        history in prop::collection::vec(op(), 0..10), now in 0..9_u64,
    ) {
        let kept = compact(&entries(&history), Rules::bottom(now));
        let values: Vec<_> = kept
            .iter()
            .map(Entry::as_ref)
            .filter(|entry| matches!(entry.payload, PayloadRef::Value(_)) && !entry.is_expired(now))
            .collect();
        prop_assert_eq!(values.len(), kept.len());
        prop_assert_eq!(kept.len(), usize::from(read(&entries(&history), now).is_some()));
    }

    #[test]
    fn compaction_is_idempotent(
        history in prop::collection::vec(op(), 0..10), now in 0..9_u64, bottom: bool,
    ) {
        let rules = if bottom { Rules::bottom(now) } else { Rules::upper(now) };
        let once = compact(&entries(&history), rules);
        prop_assert_eq!(compact(&once, rules), once);
    }

    #[test]
    fn fold_ops_equals_applying_ops_one_by_one(
        below in prop::collection::vec(op(), 0..4),
        batch in prop::collection::vec((op(), 0..3_u8), 0..6),
        written in time(),
        now in 0..9_u64,
    ) {
        // One batch is stamped with one time; its operations go to three keys.
        let batch: Vec<Op> = batch.into_iter().map(|(mut op, key)| {
            op.key = Bytes::copy_from_slice(&[key]);
            if let Payload::Operand { written_ms, .. } = &mut op.payload {
                *written_ms = written;
            }
            op
        }).collect();
        let Ok(folded) = fold_ops(batch.clone()) else { return Ok(()) };
        for key in 0..3_u8 {
            let of_key = |ops: &[Op]| -> Vec<Op> {
                let of_key = ops.iter().filter(|op| *op.key == [key]);
                below.iter().chain(of_key).cloned().collect()
            };
            prop_assert!(of_key(&folded).len() <= below.len() + 1, "keys are distinct");
            let seen = |ops: &[Op]| {
                let found = read(&entries(&of_key(ops)), now);
                found.map(|found| (found.value, found.expires_ms))
            };
            prop_assert_eq!(seen(&folded), seen(&batch));
        }
    }
}

fn value(seq: u64, value: &str, expires_ms: Option<u64>) -> Entry {
    let payload = Payload::Value(Bytes::copy_from_slice(value.as_bytes()));
    Entry { key: "k".into(), seq: Seq(seq), payload, expires_ms }
}

fn operand(seq: u64, op: MergeOp, written_ms: u64, operand: &str) -> Entry {
    let operand = Bytes::copy_from_slice(operand.as_bytes());
    let payload = Payload::Operand { op, written_ms, operand };
    Entry { key: "k".into(), seq: Seq(seq), payload, expires_ms: None }
}

fn tombstone(seq: u64) -> Entry {
    Entry { key: "k".into(), seq: Seq(seq), payload: Payload::Tombstone, expires_ms: None }
}

#[test]
fn newest_version_wins() {
    let found = read(&[value(3, "c", None), value(2, "b", None), tombstone(1)], 0);
    assert_eq!(found, Some(Found { value: "c".into(), seq: Seq(3), expires_ms: None }));
    assert_eq!(read(&[tombstone(3), value(2, "b", None)], 0), None);
    let kept = compact(&[value(3, "c", None), value(2, "b", None)], Rules::upper(0));
    assert_eq!(kept, [value(3, "c", None)]);
}

#[test]
fn resolving_a_plain_value_copies_nothing() {
    let stored = Bytes::from("a value");
    let entry = value(1, "a value", None);
    let mut resolver = Resolver::new(0);
    assert!(resolver.push(entry.as_ref(), || stored.clone()).is_break());
    let found = resolver.finish().unwrap();
    assert_eq!(found.value.as_ptr(), stored.as_ptr());
    assert_eq!(resolver.operands.capacity(), 0, "nothing was allocated");
    assert!(resolver.finish().is_none(), "the next key starts empty");
}

#[test]
fn tombstones_go_at_the_bottom_alone() {
    let versions = [tombstone(2), value(1, "a", None)];
    assert_eq!(compact(&versions, Rules::upper(0)), [tombstone(2)]);
    assert_eq!(compact(&versions, Rules::bottom(0)), []);
}

#[test]
fn expired_value_leaves_a_ghost_above_the_bottom() {
    let ghost = Entry { expires_ms: Some(5), ..tombstone(1) };
    let expired = [value(1, "a", Some(5))];
    assert_eq!(compact(&expired, Rules::upper(4)), expired);
    assert_eq!(compact(&expired, Rules::upper(5)).as_slice(), std::slice::from_ref(&ghost));
    assert_eq!(compact(&expired, Rules::bottom(5)), []);
    // An operand from before the expiry may still be in a newer source.
    let rules = Rules { bottom: true, now_ms: 5, newer_operands_from_ms: 4 };
    assert_eq!(compact(&expired, rules).as_slice(), std::slice::from_ref(&ghost));
    assert_eq!(read(&[operand(2, MergeOp::Add, 4, "1"), ghost], 6), None);
}

#[test]
fn operand_over_an_expired_base_starts_afresh_and_over_a_live_one_dies_with_it() {
    let base = value(1, "10", Some(5));
    let after = [operand(2, MergeOp::Add, 5, "1"), base.clone()];
    let found = read(&after, 100).unwrap();
    assert_eq!((&*found.value, found.expires_ms), (&b"1"[..], None));
    let before = [operand(2, MergeOp::Add, 4, "1"), base];
    let found = read(&before, 4).unwrap();
    assert_eq!((&*found.value, found.expires_ms), (&b"11"[..], Some(5)));
    assert_eq!(read(&before, 5), None);
}

#[test]
fn operands_fold_only_within_one_write_time() {
    let add = |seq, written_ms, n: &str| operand(seq, MergeOp::Add, written_ms, n);
    let kept = compact(&[add(4, 2, "8"), add(3, 1, "4"), add(2, 1, "2")], Rules::upper(9));
    assert_eq!(kept, [add(4, 2, "8"), add(3, 1, "6")]);
    let kept = compact(&kept, Rules::bottom(9));
    assert_eq!(kept, [value(4, "14", None)]);
}

#[test]
fn add_wraps_and_ignores_what_is_no_number() {
    let max = i64::MAX.to_string();
    let wrapped = [operand(2, MergeOp::Add, 0, "1"), value(1, &max, None)];
    assert_eq!(*read(&wrapped, 0).unwrap().value, *i64::MIN.to_string().as_bytes());
    let over_text = [operand(2, MergeOp::Add, 0, "7"), value(1, "text", None)];
    assert_eq!(&*read(&over_text, 0).unwrap().value, b"7");
    let no_number = [operand(2, MergeOp::Add, 0, "x"), value(1, "5", None)];
    let found = read(&no_number, 0).unwrap();
    assert_eq!((&*found.value, found.seq), (&b"5"[..], Seq(1)));
}

#[test]
fn batch_that_cannot_be_one_entry_per_key_is_refused() {
    let op = |op, operand: &'static str| Op {
        key: "k".into(),
        payload: Payload::Operand { op, written_ms: 0, operand: operand.into() },
        expires_ms: None,
    };
    let two_kinds = vec![op(MergeOp::Add, "1"), op(MergeOp::Max, "2")];
    assert!(matches!(fold_ops(two_kinds.clone()), Err(Error::Invalid(_))));
    assert!(matches!(fold_ops(vec![op(MergeOp::Min, "x")]), Err(Error::Invalid(_))));
    let put = Op { key: "k".into(), payload: Payload::Value("5".into()), expires_ms: None };
    let on_a_put = [vec![put], two_kinds].concat();
    let folded = fold_ops(on_a_put).unwrap();
    assert_eq!(folded.len(), 1);
    assert_eq!(folded[0].payload, Payload::Value("6".into()));
}

#[test]
fn what_a_batch_folds_away_frees_its_memory() {
    let mut shared = Bytes::from(vec![b'x'; 1 << 20]);
    let mut part = |bytes| shared.split_to(bytes);
    let put = |key: Bytes, value| Op { key, payload: Payload::Value(value), expires_ms: None };
    let (k, l) = (part(1), Bytes::from_static(b"l"));
    let batch = vec![put(k.clone(), part(900_000)), put(l, part(7)), put(k, part(9))];
    let folded = fold_ops(batch.clone()).unwrap();
    assert_eq!(folded, [batch[2].clone(), batch[1].clone()]);
    drop((batch, shared));
    let values = folded.into_iter().map(|op| match op.payload {
        Payload::Value(value) => value,
        _ => panic!("only values were put"),
    });
    let values: Vec<_> = values.collect();
    let capacity = |value: Bytes| value.try_into_mut().map(|bytes| bytes.capacity());
    let mut values = values.into_iter();
    let (first, second) = (values.next().unwrap(), values.next().unwrap());
    drop(first);
    assert_eq!(capacity(second), Ok(7), "the last 7 of 18 bytes");
}

#[test]
fn write_times_round_up_to_whole_seconds() {
    assert_eq!([0, 1, 1_000, 1_001].map(write_time_ms), [0, 1_000, 1_000, 2_000]);
}
