//! What clients did, on disk before it counts, and the judgement of what a database shows.
//!
//! **Invariants**
//! - A write is in the file before it is sent, and its acknowledgement is synced to disk before the
//!   client goes on: a ledger never claims less than a client was told.
//! - Each key belongs to one client, which sends one write at a time. So the writes of a key have
//!   an order, and what may be seen of it is the last acknowledged one or an undecided one after
//!   it.
//! - A write that a read has shown is as good as acknowledged: it was durable then.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::sync::Mutex;

use serde::{Deserialize, Serialize};

/// A client, and the number of its write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WriteId {
    /// The client.
    pub client: u32,
    /// Ascending for each client.
    pub n: u32,
}

/// What a write asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// The keys get this write's values, all or none.
    Put(Vec<String>),
    /// The key goes.
    Delete(String),
}

impl Change {
    /// The keys that it touches.
    pub fn keys(&self) -> &[String] {
        match self {
            Self::Put(keys) => keys,
            Self::Delete(key) => std::slice::from_ref(key),
        }
    }
}

/// What the client was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Done, under this seq.
    Acked(u64),
    /// Certainly not done.
    NotApplied,
    /// Nothing, or that nobody knows.
    Unknown,
}

/// The bytes that a write puts under a key: unique, and long enough to fill memtables.
pub fn value(id: WriteId, key: &str) -> String {
    let mut value = format!("{}.{}.{key}.", id.client, id.n);
    let mut state = u64::from(id.client) << 32 | u64::from(id.n) | 1;
    for _ in 0..24 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).rotate_left(17);
        write!(value, "{state:016x}").expect("a string takes all");
    }
    value
}

#[derive(Serialize, Deserialize)]
enum Line {
    Sent(WriteId, Change),
    Told(WriteId, Outcome),
    Seen(WriteId, u64),
}

/// A file of what was sent and told.
#[derive(Debug)]
pub struct Ledger {
    file: Mutex<File>,
}

impl Ledger {
    /// A new ledger.
    ///
    /// # Panics
    /// If the file cannot be made.
    pub fn create(path: &Path) -> Self {
        let file = OpenOptions::new().append(true).create_new(true).open(path);
        Self { file: Mutex::new(file.expect("a new ledger")) }
    }

    /// Notes a write that is about to be sent.
    pub fn sent(&self, id: WriteId, change: &Change) {
        self.append(&Line::Sent(id, change.clone()));
    }

    /// Notes what the client was told; synced when this returns. Blocks.
    ///
    /// # Panics
    /// If it cannot be synced: nothing could be concluded from the test.
    pub fn told(&self, id: WriteId, outcome: Outcome) {
        self.append(&Line::Told(id, outcome));
        let file = self.file.lock().expect("no client panics here").try_clone();
        file.and_then(|file| file.sync_data()).expect("the ledger can be synced");
    }

    /// Notes that a durable read has shown this write, under this seq.
    pub fn seen(&self, id: WriteId, seq: u64) {
        self.append(&Line::Seen(id, seq));
    }

    fn append(&self, line: &Line) {
        let mut line = serde_json::to_string(line).expect("a line is JSON");
        line.push('\n');
        let mut file = self.file.lock().expect("no client panics here");
        file.write_all(line.as_bytes()).expect("the ledger can be written");
    }
}

/// What a database shows: each key's etag and value.
pub type Shown = BTreeMap<String, (u64, String)>;

/// All that was sent, in each client's order.
#[derive(Clone, Debug, Default)]
pub struct History {
    writes: BTreeMap<WriteId, (Change, Outcome)>,
    /// Writes that were read, and their seqs.
    seen: BTreeMap<WriteId, u64>,
}

impl History {
    /// Reads a ledger back.
    ///
    /// # Panics
    /// If it is not one.
    pub fn read(path: &Path) -> Self {
        let mut history = Self::default();
        let text = fs::read_to_string(path).expect("a ledger");
        for line in text.lines() {
            match serde_json::from_str(line).expect("a line of a ledger") {
                Line::Sent(id, change) => history.note(id, change, Outcome::Unknown),
                Line::Told(id, outcome) => {
                    history.writes.get_mut(&id).expect("sent before it was told").1 = outcome;
                }
                Line::Seen(id, seq) => drop(history.seen.insert(id, seq)),
            }
        }
        history
    }

    fn note(&mut self, id: WriteId, change: Change, outcome: Outcome) {
        self.writes.insert(id, (change, outcome));
    }

    /// How many writes were acknowledged, refused, and left undecided.
    pub fn counts(&self) -> (usize, usize, usize) {
        let count = |wanted: fn(&Outcome) -> bool| {
            self.writes.values().filter(|(_, outcome)| wanted(outcome)).count()
        };
        (
            count(|outcome| matches!(outcome, Outcome::Acked(_))),
            count(|outcome| *outcome == Outcome::NotApplied),
            count(|outcome| *outcome == Outcome::Unknown),
        )
    }

    /// The highest acknowledged seq.
    pub fn seq(&self) -> u64 {
        let seqs = self.writes.values().map(|(_, outcome)| match outcome {
            Outcome::Acked(seq) => *seq,
            _ => 0,
        });
        seqs.max().unwrap_or(0)
    }

    /// Every key that was ever written.
    pub fn keys(&self) -> BTreeSet<&str> {
        let keys = self.writes.values().flat_map(|(change, _)| change.keys());
        keys.map(String::as_str).collect()
    }

    /// What is wrong with what a database shows, one line a finding: acknowledged writes that are
    /// lost, values that nobody may see, torn batches.
    pub fn judge(&self, shown: &Shown) -> Vec<String> {
        let mut findings = Vec::new();
        let mut shows = BTreeMap::new();
        let known = self.keys();
        for id in self.seen.keys() {
            if self.writes.get(id).is_none_or(|(_, outcome)| *outcome == Outcome::NotApplied) {
                findings.push(format!("{id:?}: read, though it was refused"));
            }
        }
        for key in shown.keys().filter(|key| !known.contains(key.as_str())) {
            findings.push(format!("{key}: nobody wrote it"));
        }
        for &key in &known {
            match self.explain(key, shown.get(key)) {
                Ok(id) => drop(shows.insert(key, id)),
                Err(finding) => findings.push(format!("{key}: {finding}")),
            }
        }
        for (id, (change, _)) in &self.writes {
            let shown = || change.keys().iter().filter_map(|key| shows.get(key.as_str()));
            let (is_there, lacks) =
                (shown().any(|shown| *shown == Some(*id)), shown().any(|shown| *shown < Some(*id)));
            if is_there && lacks {
                findings.push(format!("{id:?}: torn batch {change:?}"));
            }
        }
        findings
    }

    /// The write that explains what a key shows; `None` = no write at all.
    fn explain(&self, key: &str, shown: Option<&(u64, String)>) -> Result<Option<WriteId>, String> {
        let of_key = self
            .writes
            .iter()
            .filter(|(_, (change, _))| change.keys().iter().any(|touched| touched == key));
        let writes: Vec<_> =
            of_key.filter(|(_, (_, outcome))| *outcome != Outcome::NotApplied).collect();
        let decided = |(id, (_, outcome)): &(&WriteId, &(Change, Outcome))| match outcome {
            Outcome::Acked(seq) => Some(*seq),
            _ => self.seen.get(id).copied(),
        };
        let last_acked = writes.iter().rposition(|write| decided(write).is_some());
        let candidates = &writes[last_acked.unwrap_or(0)..];
        for write @ (id, (change, _)) in candidates.iter().rev() {
            let fits = match (change, shown) {
                (Change::Delete(_), None) => true,
                (Change::Put(_), Some((etag, text))) => {
                    decided(write).is_none_or(|seq| seq == *etag) && *text == value(**id, key)
                }
                _ => false,
            };
            if fits {
                return Ok(Some(**id));
            }
        }
        match (last_acked, shown) {
            (None, None) => Ok(None),
            (_, None) => Err(format!("lost: {:?} was acknowledged", candidates[0])),
            (_, Some((etag, text))) => {
                let start: String = text.chars().take(30).collect();
                Err(format!("shows {start:?} at {etag}, which is none of {candidates:?}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: [&str; 2] = ["a", "b"];

    fn id(n: u32) -> WriteId {
        WriteId { client: 1, n }
    }

    fn put(keys: &[&str]) -> Change {
        Change::Put(keys.iter().map(|&key| key.to_owned()).collect())
    }

    fn history(writes: &[(u32, Change, Outcome)]) -> History {
        let mut history = History::default();
        for (n, change, outcome) in writes {
            history.note(id(*n), change.clone(), *outcome);
        }
        history
    }

    fn shown(entries: &[(&str, u32, u64)]) -> Shown {
        let entry =
            |&(key, n, etag): &(&str, u32, u64)| (key.to_owned(), (etag, value(id(n), key)));
        entries.iter().map(entry).collect()
    }

    #[test]
    fn an_acknowledged_write_is_there() {
        let history = history(&[(1, put(&["a"]), Outcome::Acked(7))]);
        assert_eq!(history.judge(&shown(&[("a", 1, 7)])), Vec::<String>::new());
        assert_eq!(history.judge(&Shown::new()).len(), 1, "lost");
        assert_eq!(history.judge(&shown(&[("a", 1, 8)])).len(), 1, "under another seq");
        assert_eq!(history.judge(&shown(&[("a", 1, 7), ("c", 1, 7)])).len(), 1, "nobody's");
    }

    #[test]
    fn an_undecided_write_may_be_there_until_a_later_one_is_acknowledged() {
        let undecided = (1, put(&["a"]), Outcome::Unknown);
        let before = history(std::slice::from_ref(&undecided));
        assert!(before.judge(&Shown::new()).is_empty());
        assert!(before.judge(&shown(&[("a", 1, 3)])).is_empty());
        let after = history(&[undecided, (2, put(&["a"]), Outcome::Acked(9))]);
        assert!(after.judge(&shown(&[("a", 2, 9)])).is_empty());
        assert_eq!(after.judge(&shown(&[("a", 1, 3)])).len(), 1);
    }

    #[test]
    fn an_undecided_write_that_was_read_stays() {
        let writes = [(1, put(&["a"]), Outcome::Acked(7)), (2, put(&["a"]), Outcome::Unknown)];
        let mut history = history(&writes);
        history.seen.insert(id(2), 8);
        assert!(history.judge(&shown(&[("a", 2, 8)])).is_empty());
        assert_eq!(history.judge(&shown(&[("a", 1, 7)])).len(), 1);
        history.note(id(2), put(&["a"]), Outcome::NotApplied);
        assert_eq!(history.judge(&shown(&[("a", 1, 7)])).len(), 1, "it was never to be read");
    }

    #[test]
    fn a_refused_write_is_never_there() {
        let history = history(&[(1, put(&["a"]), Outcome::NotApplied)]);
        assert!(history.judge(&Shown::new()).is_empty());
        assert_eq!(history.judge(&shown(&[("a", 1, 3)])).len(), 1);
    }

    #[test]
    fn a_deletion_counts_like_a_write() {
        let delete = Change::Delete("a".into());
        let writes = [(1, put(&["a"]), Outcome::Acked(7)), (2, delete, Outcome::Acked(8))];
        assert!(history(&writes).judge(&Shown::new()).is_empty());
        assert_eq!(history(&writes).judge(&shown(&[("a", 1, 7)])).len(), 1, "came back");
    }

    #[test]
    fn a_batch_is_there_whole_or_not_at_all() {
        let writes = [(1, put(&KEYS), Outcome::Acked(7)), (2, put(&KEYS), Outcome::Unknown)];
        let history = history(&writes);
        assert!(history.judge(&shown(&[("a", 1, 7), ("b", 1, 7)])).is_empty());
        assert!(history.judge(&shown(&[("a", 2, 8), ("b", 2, 8)])).is_empty());
        assert_eq!(history.judge(&shown(&[("a", 2, 8), ("b", 1, 7)])).len(), 1);
    }

    #[test]
    fn a_batch_that_is_partly_overwritten_is_not_torn() {
        let writes = [(1, put(&KEYS), Outcome::Unknown), (2, put(&["b"]), Outcome::Acked(8))];
        assert!(history(&writes).judge(&shown(&[("a", 1, 7), ("b", 2, 8)])).is_empty());
    }

    #[test]
    fn a_ledger_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger");
        let ledger = Ledger::create(&path);
        ledger.sent(id(1), &put(&KEYS));
        ledger.told(id(1), Outcome::Acked(5));
        ledger.sent(id(2), &Change::Delete("a".into()));
        let history = History::read(&path);
        assert_eq!((history.counts(), history.seq()), ((1, 0, 1), 5));
        assert_eq!(history.keys().len(), 2);
    }
}
