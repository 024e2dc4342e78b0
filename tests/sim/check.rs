//! Whether a history keeps the promises: P1 to P6 of the design, read off the last state.
//!
//! **Method**. The markers of the last scan give the seq of every batch that is in the database;
//! that is the order. Folding the batches in it gives the state of every key at every seq, with
//! which every answer ever given must agree: equality, not plausibility.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use cairn_common::types::Seq;

use crate::ledger::{
    Batch, Change, Entry, Found, History, Place, Read, Tick, Told, batch_of, marker, value,
};
use crate::world::WALL_ERROR_MAX_MS;

/// What is under a key after some seq, for as long as it lasts.
#[derive(Clone, Debug)]
struct Lasting {
    entry: Entry,
    expires_ms: Option<u64>,
}

/// What the history of a key says: after which seq, what is there.
type Versions = BTreeMap<Seq, Option<Lasting>>;

/// What may be under a key for one whose clock says `now_ms`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted<'a> {
    Exactly(Option<&'a Entry>),
    /// It has expired for those whose clocks are ahead, and one of them may have compacted it.
    EntryOrNothing(&'a Entry),
}

impl Wanted<'_> {
    fn is(self, found: Option<&Entry>) -> bool {
        match self {
            Self::Exactly(want) => found == want,
            Self::EntryOrNothing(want) => found.is_none_or(|found| found == want),
        }
    }

    fn brief(self) -> String {
        match self {
            Self::Exactly(want) => brief(want),
            Self::EntryOrNothing(want) => format!("{} or absent", brief(Some(want))),
        }
    }
}

/// The order of what is in the database, and what follows from it.
struct Truth {
    order: BTreeMap<Seq, u64>,
    keys: BTreeMap<Bytes, Versions>,
}

/// Checks a history against the last state of the database; returns what is wrong.
pub(crate) fn check(history: &History, last: &[(Bytes, Entry)], now_ms: u64) -> Vec<String> {
    let mut wrong = Vec::new();
    let truth = Truth::read_off(history, last, &mut wrong);
    // The whole of the last state is what its markers say.
    truth.check_prefix(b"", last, (Seq::MAX, now_ms), &mut wrong);
    truth.check_told(history, &mut wrong);
    check_seqs_are_unique(history, &mut wrong);
    check_deposed_promise_nothing(history, &mut wrong);
    truth.check_real_time(history, &mut wrong);
    for read in &history.reads {
        truth.check_read(read, &mut wrong);
    }
    check_reads_go_forward(history, &mut wrong);
    wrong
}

impl Truth {
    fn read_off(history: &History, last: &[(Bytes, Entry)], wrong: &mut Vec<String>) -> Self {
        let mut truth = Self { order: BTreeMap::new(), keys: BTreeMap::new() };
        for (key, (found, seq)) in last.iter().filter(|(key, _)| key.starts_with(b"m/")) {
            let id = batch_of(found).filter(|id| marker(*id) == key && value(*id) == found);
            match id.filter(|id| history.batches.contains_key(id)) {
                Some(id) => {
                    if let Some(other) = truth.order.insert(*seq, id) {
                        wrong.push(format!("batches {id} and {other} are both at {seq}"));
                    }
                }
                None => wrong.push(format!("{key:?} holds {found:?}, which nobody wrote")),
            }
        }
        for (seq, id) in &truth.order {
            for (key, change) in &history.batches[id].changes {
                let versions = truth.keys.entry(key.clone()).or_default();
                let before = versions.last_key_value().and_then(|(_, state)| state.clone());
                versions.insert(*seq, applied(*id, *change, *seq, before.as_ref()));
            }
        }
        truth
    }

    /// What was there, as if nothing ever expired.
    fn state(&self, key: &[u8], seq: Seq) -> Option<&Lasting> {
        let (_, state) = self.keys.get(key)?.range(..=seq).next_back()?;
        state.as_ref()
    }

    fn at(&self, key: &[u8], seq: Seq, now_ms: u64) -> Wanted<'_> {
        match self.state(key, seq) {
            Some(Lasting { expires_ms: Some(at), .. }) if *at <= now_ms => Wanted::Exactly(None),
            Some(Lasting { entry, expires_ms: Some(at) }) if *at <= now_ms + WALL_ERROR_MAX_MS => {
                Wanted::EntryOrNothing(entry)
            }
            state => Wanted::Exactly(state.map(|state| &state.entry)),
        }
    }

    fn check_told(&self, history: &History, wrong: &mut Vec<String>) {
        let places: BTreeMap<u64, Seq> = self.order.iter().map(|(seq, id)| (*id, *seq)).collect();
        for (id, batch) in &history.batches {
            let place = places.get(id).copied();
            match batch.told {
                Told::Durable(seq) if place != Some(seq) => {
                    wrong.push(format!("batch {id}, acknowledged at {seq}, is at {place:?}"));
                }
                Told::Memory(seq) if place.is_some_and(|place| place != seq) => {
                    wrong.push(format!("batch {id}, taken at {seq}, is at {place:?}"));
                }
                Told::NotApplied if place.is_some() => {
                    wrong.push(format!("batch {id}, told not to be applied, is at {place:?}"));
                }
                Told::Precondition(etag) => {
                    if place.is_some() {
                        wrong.push(format!("batch {id}, refused, is at {place:?}"));
                    }
                    self.check_refusal(*id, batch, etag, history, wrong);
                }
                _ => {}
            }
            if let (Some(wanted), Some(place)) = (&batch.wanted, place) {
                let found = self.state(&wanted.key, Seq(place.0 - 1)).map(|state| state.entry.1);
                if found != wanted.etag {
                    let want = wanted.etag;
                    wrong.push(format!("batch {id} wanted {want:?} and was applied on {found:?}"));
                }
            }
        }
    }

    /// A refusal names an etag that the key had at some moment while it was decided.
    #[expect(clippy::too_many_arguments, reason = "a check takes the claim and the evidence")]
    fn check_refusal(
        &self,
        id: u64,
        batch: &Batch,
        etag: Option<Seq>,
        history: &History,
        wrong: &mut Vec<String>,
    ) {
        let Some(wanted) = &batch.wanted else { return };
        if wanted.etag == etag {
            wrong.push(format!("batch {id} was refused for {etag:?}, which it wanted"));
        }
        let nothing = Versions::new();
        let versions = self.keys.get(&wanted.key).unwrap_or(&nothing);
        // The state with this etag, and when it ended: it must not have ended before the request.
        let mut states = vec![(None, versions.keys().next().copied())];
        let next = versions.keys().skip(1).map(|seq| Some(*seq)).chain([None]);
        let etags = versions.values().map(|state| state.as_ref().map(|state| state.entry.1));
        states.extend(etags.zip(next));
        let acknowledged_before = |seq: Seq| {
            let batch_then = &history.batches[&self.order[&seq]];
            batch_then.ended < batch.began && matches!(batch_then.told, Told::Durable(_))
        };
        let possible = states
            .iter()
            .any(|(state, ended)| *state == etag && !ended.is_some_and(acknowledged_before));
        if !possible {
            wrong.push(format!("batch {id} was refused for {etag:?}, which was not there then"));
        }
    }

    fn check_read(&self, read: &Read, wrong: &mut Vec<String>) {
        match &read.found {
            Found::Keys(keys) => {
                for (key, found) in keys {
                    let want = self.at(key, read.seq, read.now_ms);
                    if !want.is(found.as_ref()) {
                        let Read { place, seq, .. } = read;
                        let (found, want) = (brief(found.as_ref()), want.brief());
                        wrong.push(format!("{place:?} at {seq}: {key:?} is {found}, not {want}"));
                    }
                }
            }
            Found::Prefix(prefix, entries) => {
                let before = wrong.len();
                self.check_prefix(prefix, entries, (read.seq, read.now_ms), wrong);
                for text in wrong.iter_mut().skip(before) {
                    *text = format!("{:?} at {}: {text}", read.place, read.seq);
                }
            }
        }
    }

    fn check_prefix(
        &self,
        prefix: &[u8],
        entries: &[(Bytes, Entry)],
        (seq, now_ms): (Seq, u64),
        wrong: &mut Vec<String>,
    ) {
        let found: BTreeMap<_, _> = entries.iter().map(|(key, entry)| (key, entry)).collect();
        if found.len() != entries.len() || !entries.is_sorted_by(|a, b| a.0 < b.0) {
            wrong.push(format!("a scan of {prefix:?} is out of order"));
        }
        let expected = self.keys.keys().filter(|key| key.starts_with(prefix));
        for key in expected {
            let (found, want) = (found.get(key).copied(), self.at(key, seq, now_ms));
            if !want.is(found) {
                wrong.push(format!("{key:?} is {}, not {}", brief(found), want.brief()));
            }
        }
        for key in found.keys().filter(|key| !self.keys.contains_key(**key)) {
            wrong.push(format!("{key:?} is there, and nobody wrote it"));
        }
    }

    /// What begins after an acknowledgement comes after it: later writes, and reads at the writer;
    /// reads elsewhere as far as the reader vouches for its freshness.
    fn check_real_time(&self, history: &History, wrong: &mut Vec<String>) {
        let mut acknowledged: BTreeMap<Tick, Seq> = BTreeMap::new();
        let told = history.batches.values().filter_map(|batch| match batch.told {
            Told::Durable(seq) => Some((batch.ended, seq)),
            _ => None,
        });
        let mut highest = Seq::ZERO;
        for (tick, seq) in told.collect::<BTreeMap<_, _>>() {
            highest = highest.max(seq);
            acknowledged.insert(tick, highest);
        }
        let before = |tick: Tick| {
            acknowledged.range(..tick).next_back().map_or(Seq::ZERO, |(_, highest)| *highest)
        };
        for (id, batch) in &history.batches {
            // A writer that has not heard yet that it is fenced still takes batches into memory.
            // They are lost, which is all that their seq does not promise.
            let seq = match batch.told {
                Told::Durable(seq) => seq,
                Told::Memory(seq) if self.order.contains_key(&seq) => seq,
                _ => continue,
            };
            let highest = before(batch.began);
            if seq <= highest {
                wrong.push(format!(
                    "batch {id} is at {seq}, though {highest} was acknowledged before"
                ));
            }
        }
        for read in &history.reads {
            let known = match read.place {
                Place::Writer => Some(read.began),
                Place::Reader(_) => read.fresh_as_of,
            };
            if let Some(known) = known
                && read.seq < before(known)
            {
                let (place, seq, highest) = (&read.place, read.seq, before(known));
                wrong
                    .push(format!("{place:?} answered at {seq}, after {highest} was acknowledged"));
            }
        }
    }
}

/// What a change makes of a key.
fn applied(id: u64, change: Change, seq: Seq, before: Option<&Lasting>) -> Option<Lasting> {
    match change {
        Change::Put => Some(Lasting { entry: (value(id), seq), expires_ms: None }),
        Change::PutUntil(at) => Some(Lasting { entry: (value(id), seq), expires_ms: Some(at) }),
        Change::Delete => None,
        Change::Add { amount, written_ms } => {
            let is_live = |state: &&Lasting| state.expires_ms.is_none_or(|at| at > written_ms);
            let base = before.filter(is_live);
            let number = base.map_or(0, |Lasting { entry: (value, _), .. }| {
                std::str::from_utf8(value).unwrap_or_default().parse().unwrap_or(0)
            });
            let sum = i64::wrapping_add(number, amount).to_string().into();
            let expires_ms = base.and_then(|state| state.expires_ms);
            Some(Lasting { entry: (sum, seq), expires_ms })
        }
    }
}

/// A seq that was told of one batch is never told of another, whatever became of it.
fn check_seqs_are_unique(history: &History, wrong: &mut Vec<String>) {
    let mut owners = BTreeMap::new();
    for (id, batch) in &history.batches {
        if let Told::Durable(seq) | Told::Memory(seq) = batch.told
            && let Some(other) = owners.insert(seq, id)
        {
            wrong.push(format!("batches {other} and {id} were both told {seq}"));
        }
    }
}

/// Once a newer writer serves, an older one takes nothing into memory: its read lease is over.
fn check_deposed_promise_nothing(history: &History, wrong: &mut Vec<String>) {
    for (id, batch) in &history.batches {
        let newer = history.reigns.range((Bound::Excluded(batch.asked), Bound::Unbounded));
        let deposed =
            newer.filter(|(_, began)| **began < batch.began).map(|(epoch, _)| epoch).next();
        if let (Told::Memory(seq), Some(newer)) = (batch.told, deposed) {
            let by = batch.asked;
            wrong.push(format!("epoch {by} took batch {id} as {seq}, while {newer} served"));
        }
    }
}

/// Reads at one place that follow each other never go back.
fn check_reads_go_forward(history: &History, wrong: &mut Vec<String>) {
    let mut by_place: BTreeMap<&Place, Vec<&Read>> = BTreeMap::new();
    for read in &history.reads {
        by_place.entry(&read.place).or_default().push(read);
    }
    for (place, reads) in by_place {
        let mut shown: BTreeMap<Tick, Seq> = BTreeMap::new();
        let mut ended: Vec<_> = reads.iter().map(|read| (read.ended, read.seq)).collect();
        ended.sort_unstable();
        let mut highest = Seq::ZERO;
        for (tick, seq) in ended {
            highest = highest.max(seq);
            shown.insert(tick, highest);
        }
        for read in reads {
            let before = shown.range(..read.began).next_back().map(|(_, seq)| *seq);
            if before.is_some_and(|before| read.seq < before) {
                wrong.push(format!("{place:?} went back from {before:?} to {}", read.seq));
            }
        }
    }
}

/// An entry without its padding.
fn brief(entry: Option<&Entry>) -> String {
    match entry {
        Some((value, seq)) => {
            let text = String::from_utf8_lossy(value);
            format!("{}@{seq}", text.trim_end_matches('x'))
        }
        None => "absent".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use cairn_common::types::Epoch;

    use super::*;
    use crate::ledger::{Ledger, Wanted};

    const SECOND: Duration = Duration::from_secs(1);

    fn put(ledger: &Ledger, key: &'static str, told: Told) -> u64 {
        let id = ledger.begin(Epoch(1), vec![(Bytes::from(key), Change::Put)], None);
        ledger.end(id, told, SECOND);
        id
    }

    fn read(ledger: &Ledger, place: Place, seq: u64, key: &'static str, found: Option<Entry>) {
        let began = ledger.tick();
        let found = Found::Keys(vec![(key.into(), found)]);
        let seq = Seq(seq);
        ledger.read(Read { place, began, ended: 0, seq, now_ms: 0, found, fresh_as_of: None });
    }

    /// What the database would hold had these batches been applied.
    fn state(history: &History, applied_at: &[(u64, u64)]) -> Vec<(Bytes, Entry)> {
        let mut keys: BTreeMap<Bytes, Option<Lasting>> = BTreeMap::new();
        for (seq, id) in applied_at {
            for (key, change) in &history.batches[id].changes {
                let before = keys.get(key).cloned().flatten();
                keys.insert(key.clone(), applied(*id, *change, Seq(*seq), before.as_ref()));
            }
        }
        keys.into_iter().filter_map(|(key, state)| Some((key, state?.entry))).collect()
    }

    fn verdict(ledger: &Ledger, applied_at: &[(u64, u64)]) -> String {
        let history = ledger.snapshot();
        let last = state(&history, applied_at);
        check(&history, &last, 0).join("\n")
    }

    #[test]
    fn an_honest_history_passes() {
        let ledger = Ledger::default();
        let one = put(&ledger, "a", Told::Durable(Seq(5)));
        read(&ledger, Place::Writer, 5, "a", Some((value(one), Seq(5))));
        let two = put(&ledger, "a", Told::Unknown);
        read(&ledger, Place::Writer, 9, "a", Some((value(two), Seq(9))));
        read(&ledger, Place::Reader("r".into()), 5, "a", Some((value(one), Seq(5))));
        put(&ledger, "a", Told::Unknown);
        assert_eq!(verdict(&ledger, &[(5, one), (9, two)]), "");
    }

    #[test]
    fn every_broken_promise_is_found() {
        type Story = fn(&Ledger) -> Vec<(u64, u64)>;
        let reader = || Place::Reader("r".into());
        let stories: [(&str, Story); 10] = [
            ("acknowledged at 5, is at None", |ledger| {
                put(ledger, "a", Told::Durable(Seq(5)));
                vec![]
            }),
            ("told not to be applied", |ledger| vec![(5, put(ledger, "a", Told::NotApplied))]),
            ("absent, not 1:@5", |ledger| {
                let one = put(ledger, "a", Told::Durable(Seq(5)));
                read(ledger, Place::Writer, 5, "a", None);
                vec![(5, one)]
            }),
            ("after 5 was acknowledged", |ledger| {
                let one = put(ledger, "a", Told::Durable(Seq(5)));
                read(ledger, Place::Writer, 4, "a", None);
                vec![(5, one)]
            }),
            ("though 9 was acknowledged before", |ledger| {
                let nine = put(ledger, "a", Told::Durable(Seq(9)));
                vec![(5, put(ledger, "a", Told::Durable(Seq(5)))), (9, nine)]
            }),
            ("were both told 5", |ledger| {
                put(ledger, "a", Told::Memory(Seq(5)));
                vec![(5, put(ledger, "a", Told::Durable(Seq(5))))]
            }),
            ("epoch 1 took batch 1 as 5, while 2 served", |ledger| {
                ledger.reign(Epoch(1));
                ledger.reign(Epoch(2));
                put(ledger, "a", Told::Memory(Seq(5)));
                vec![]
            }),
            ("went back", |ledger| {
                let one = put(ledger, "a", Told::Unknown);
                read(ledger, Place::Reader("r".into()), 5, "b", None);
                read(ledger, Place::Reader("r".into()), 4, "b", None);
                vec![(5, one)]
            }),
            ("wanted Some(Seq(5)) and was applied on Some(Seq(6))", |ledger| {
                let (one, two) = (put(ledger, "a", Told::Unknown), put(ledger, "a", Told::Unknown));
                let wanted = Wanted { key: "a".into(), etag: Some(Seq(5)) };
                let three = ledger.begin(Epoch(1), vec![("a".into(), Change::Put)], Some(wanted));
                vec![(5, one), (6, two), (7, three)]
            }),
            ("which was not there then", |ledger| {
                let one = put(ledger, "a", Told::Durable(Seq(5)));
                let two = put(ledger, "a", Told::Durable(Seq(6)));
                let wanted = Wanted { key: "a".into(), etag: None };
                let three = ledger.begin(Epoch(1), vec![("a".into(), Change::Put)], Some(wanted));
                ledger.end(three, Told::Precondition(Some(Seq(5))), SECOND);
                vec![(5, one), (6, two)]
            }),
        ];
        for (want, story) in stories {
            let ledger = Ledger::default();
            let applied_at = story(&ledger);
            let found = verdict(&ledger, &applied_at);
            assert!(found.contains(want), "{want:?} was not found in {found:?}");
        }
        let ledger = Ledger::default();
        let one = put(&ledger, "a", Told::Durable(Seq(5)));
        let began = ledger.tick();
        let found = Found::Keys(vec![]);
        let fresh_as_of = Some(ledger.tick_at(SECOND * 2) + 1);
        let (place, seq, now_ms) = (reader(), Seq(4), 0);
        ledger.read(Read { place, began, ended: 0, seq, now_ms, found, fresh_as_of });
        assert!(verdict(&ledger, &[(5, one)]).contains("after 5 was acknowledged"));
    }

    #[test]
    fn a_torn_batch_is_found() {
        let ledger = Ledger::default();
        let changes =
            vec![("a".into(), Change::Put), ("b".into(), Change::Add { amount: 3, written_ms: 0 })];
        let id = ledger.begin(Epoch(1), changes, None);
        ledger.end(id, Told::Durable(Seq(5)), SECOND);
        let history = ledger.snapshot();
        let mut last = state(&history, &[(5, id)]);
        assert_eq!(check(&history, &last, 0), Vec::<String>::new());
        last.retain(|(key, _)| key != "b");
        assert!(check(&history, &last, 0).join("").contains("b\"b\" is absent, not 3@5"));
        let mut doubled = state(&history, &[(5, id)]);
        doubled[1].1.0 = "6".into();
        assert!(check(&history, &doubled, 0).join("").contains("is 6@5, not 3@5"));
    }

    #[test]
    fn what_expires_is_there_until_then_and_ends_with_what_it_was_added_to() {
        let ledger = Ledger::default();
        let (at, add) = (90_000, |written_ms| Change::Add { amount: 3, written_ms });
        for change in [Change::PutUntil(at), add(at - 1), add(at)] {
            let id = ledger.begin(Epoch(1), vec![("e".into(), change)], None);
            ledger.end(id, Told::Durable(Seq(id)), SECOND);
        }
        let history = ledger.snapshot();
        let last = state(&history, &[(1, 1), (2, 2), (3, 3)]);
        let truth = Truth::read_off(&history, &last, &mut Vec::new());
        let three = |seq| ("3".into(), Seq(seq));
        let early = at - WALL_ERROR_MAX_MS - 1;
        assert_eq!(truth.at(b"e", Seq(2), early), super::Wanted::Exactly(Some(&three(2))));
        assert_eq!(truth.at(b"e", Seq(2), at - 1), super::Wanted::EntryOrNothing(&three(2)));
        assert_eq!(truth.at(b"e", Seq(2), at), super::Wanted::Exactly(None));
        assert_eq!(truth.at(b"e", Seq(3), at), super::Wanted::Exactly(Some(&three(3))));
    }
}
