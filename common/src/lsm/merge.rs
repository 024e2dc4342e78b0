//! The k-way merge: a step machine over cursors that may have to wait for their input.
//!
//! A loser tree: each inner node keeps the loser of the match played there, so the next entry costs
//! one match per level. A cursor that keeps winning has to beat only the challenger: one comparison
//! whatever the number of cursors.
//!
//! **Invariants**
//! - `Forward` goes by key ascending, then seq descending; `Reverse` by key descending, then seq
//!   ascending. Where both are equal the lower index, which is the newer source, comes first.
//! - Each cursor yields its entries in that same order; the merge yields every entry of every
//!   cursor and decides nothing about visibility.
//! - Nothing here awaits: a cursor without input makes [`Merge::step`] return [`Step::NeedInput`],
//!   and stepping again after it was fed goes on where the merge stopped.
//!
//! **Source**: Knuth, The Art of Computer Programming, volume 3, section 5.4.1 (trees of losers).

use std::cmp::Ordering;

use crate::types::{Direction, EntryRef, Seq};

/// What a cursor stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head<'a> {
    /// An entry.
    Entry(EntryRef<'a>),
    /// A gap: the cursor's owner must feed it before anything can be said.
    NeedInput,
    /// The end, for good.
    End,
}

/// A source of entries in merge order.
pub trait Cursor {
    /// What the cursor stands on.
    fn head(&self) -> Head<'_>;

    /// Key and seq of the entry that the cursor stands on, if it stands on one. It is asked for at
    /// each match, so what can tell it quicker than [`Cursor::head`] should.
    fn place(&self) -> Option<(&[u8], Seq)> {
        match self.head() {
            Head::Entry(entry) => Some((entry.key, entry.seq)),
            Head::NeedInput | Head::End => None,
        }
    }

    /// Moves past the entry that the cursor stands on; called only where there is one.
    fn advance(&mut self);
}

/// What one step of a merge found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The next entry: [`Merge::entry`] has it until the next step.
    Entry,
    /// The cursor of this index has to be fed, then the step repeated.
    NeedInput(usize),
    /// Every cursor is at its end.
    End,
}

/// A merge of cursors.
#[derive(Debug)]
pub struct Merge<C> {
    cursors: Vec<C>,
    direction: Direction,
    /// `losers[1..n]`: the cursor that lost the match at that node; leaf `i` is node `n + i`.
    losers: Vec<usize>,
    winner: usize,
    challenger: Challenger,
    phase: Phase,
}

/// The best of all cursors but the winner. To find it costs about as much as to play the winner's
/// path again, so it is found only for a winner that stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Challenger {
    /// The winner is new.
    Unknown,
    /// The winner has won twice.
    Wanted,
    /// This one.
    Known(usize),
}

/// Where a merge stands between two steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// No match has been played.
    Fresh,
    /// The winner stands on the entry that the last step returned.
    Returned,
    /// The winner has moved on and has not been placed again.
    Moved,
    /// Everything has been returned.
    Done,
}

impl<C: Cursor> Merge<C> {
    /// A merge of `cursors`, newest source first.
    pub fn new(cursors: Vec<C>, direction: Direction) -> Self {
        let losers = vec![0; cursors.len()];
        Self {
            cursors,
            direction,
            losers,
            winner: 0,
            challenger: Challenger::Unknown,
            phase: Phase::Fresh,
        }
    }

    /// Goes on to the next entry. `End` is returned for ever once it has been returned.
    pub fn step(&mut self) -> Step {
        match self.phase {
            Phase::Fresh => {
                if let Some(index) = self.first_without_input() {
                    return Step::NeedInput(index);
                }
                self.play_all();
            }
            Phase::Returned => {
                self.cursors[self.winner].advance();
                self.phase = Phase::Moved;
                if let Err(step) = self.place_winner() {
                    return step;
                }
            }
            Phase::Moved => {
                if let Err(step) = self.place_winner() {
                    return step;
                }
            }
            Phase::Done => return Step::End,
        }
        if let Some(Head::Entry(_)) = self.cursors.get(self.winner).map(Cursor::head) {
            self.phase = Phase::Returned;
            Step::Entry
        } else {
            self.phase = Phase::Done;
            Step::End
        }
    }

    /// The entry that the last step returned; must follow a [`Step::Entry`].
    pub fn entry(&self) -> EntryRef<'_> {
        match self.cursors[self.winner].head() {
            Head::Entry(entry) if self.phase == Phase::Returned => entry,
            _ => panic!("a merge has an entry only after a step that returned one"),
        }
    }

    /// The index of the cursor that [`Merge::entry`] is from.
    pub fn winner(&self) -> usize {
        self.winner
    }

    /// The cursor of this index.
    pub fn cursor(&self, index: usize) -> &C {
        &self.cursors[index]
    }

    /// The cursor of this index, to feed it.
    pub fn cursor_mut(&mut self, index: usize) -> &mut C {
        &mut self.cursors[index]
    }

    /// Every cursor, to feed several at once; an entry that was returned must stay where it is.
    pub fn cursors_mut(&mut self) -> &mut [C] {
        &mut self.cursors
    }

    fn first_without_input(&self) -> Option<usize> {
        self.cursors.iter().position(|cursor| cursor.head() == Head::NeedInput)
    }

    /// Plays every match from the leaves up.
    fn play_all(&mut self) {
        let count = self.cursors.len();
        let mut winners: Vec<usize> = (0..2 * count).map(|node| node.wrapping_sub(count)).collect();
        for node in (1..count).rev() {
            let (left, right) = (winners[2 * node], winners[2 * node + 1]);
            let left_wins = self.precedes(left, right);
            winners[node] = if left_wins { left } else { right };
            self.losers[node] = if left_wins { right } else { left };
        }
        self.winner = if count > 1 { winners[1] } else { 0 };
        self.challenger = Challenger::Unknown;
    }

    /// Puts the winner, which has moved, where it belongs now.
    fn place_winner(&mut self) -> Result<(), Step> {
        if self.cursors[self.winner].head() == Head::NeedInput {
            return Err(Step::NeedInput(self.winner));
        }
        if self.cursors.len() == 1 {
            return Ok(());
        }
        let winner = self.winner;
        let challenger = match self.challenger {
            Challenger::Known(challenger) => challenger,
            Challenger::Wanted => self.best_of_losers(),
            Challenger::Unknown => {
                self.replay();
                if self.winner == winner {
                    self.challenger = Challenger::Wanted;
                }
                return Ok(());
            }
        };
        self.challenger = Challenger::Known(challenger);
        if self.precedes(challenger, winner) {
            self.replay();
            self.challenger = Challenger::Unknown;
        }
        Ok(())
    }

    fn parent_of_leaf(&self, index: usize) -> usize {
        usize::midpoint(self.cursors.len(), index)
    }

    /// The best of all but the winner: it lost against the winner, so it stands on its path.
    fn best_of_losers(&self) -> usize {
        let mut node = self.parent_of_leaf(self.winner);
        let mut best = self.losers[node];
        while node > 1 {
            node /= 2;
            if self.precedes(self.losers[node], best) {
                best = self.losers[node];
            }
        }
        best
    }

    /// Plays the matches on the path of the winner again.
    fn replay(&mut self) {
        let mut rising = self.winner;
        let mut node = self.parent_of_leaf(rising);
        while node > 0 {
            let loser = self.losers[node];
            if self.precedes(loser, rising) {
                self.losers[node] = rising;
                rising = loser;
            }
            node /= 2;
        }
        self.winner = rising;
    }

    /// Whether the head of cursor `a` comes before that of cursor `b`.
    fn precedes(&self, a: usize, b: usize) -> bool {
        let (left, right) = (self.cursors[a].place(), self.cursors[b].place());
        let (Some((left_key, left_seq)), Some((right_key, right_seq))) = (left, right) else {
            // An end comes after everything; no cursor is without input while a match is played.
            return right.is_none() && (a < b || left.is_some());
        };
        let order = left_key.cmp(right_key).then_with(|| right_seq.cmp(&left_seq));
        match self.direction {
            Direction::Forward => order,
            Direction::Reverse => order.reverse(),
        }
        .then_with(|| a.cmp(&b))
            == Ordering::Less
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::types::{Entry, Payload, Seq};

    /// A cursor over entries that asks for input before those whose index is in `gaps`.
    #[derive(Debug)]
    struct Gappy {
        entries: Vec<Entry>,
        gaps: Vec<bool>,
        position: usize,
    }

    impl Cursor for Gappy {
        fn head(&self) -> Head<'_> {
            match self.entries.get(self.position) {
                _ if self.gaps.get(self.position) == Some(&true) => Head::NeedInput,
                Some(entry) => Head::Entry(entry.as_ref()),
                None => Head::End,
            }
        }

        fn advance(&mut self) {
            self.position += 1;
        }
    }

    fn order(direction: Direction) -> impl Fn(&Entry, &Entry) -> Ordering {
        move |a, b| {
            let order = a.key.cmp(&b.key).then(b.seq.cmp(&a.seq));
            if direction == Direction::Forward { order } else { order.reverse() }
        }
    }

    fn drain(merge: &mut Merge<Gappy>) -> Vec<Entry> {
        let mut merged = Vec::new();
        loop {
            match merge.step() {
                Step::Entry => merged.push(merge.entry().to_entry()),
                Step::NeedInput(index) => {
                    let cursor = merge.cursor_mut(index);
                    let position = cursor.position;
                    assert!(cursor.gaps[position], "only a cursor in need is named");
                    cursor.gaps[position] = false;
                }
                Step::End => {
                    assert_eq!(merge.step(), Step::End);
                    return merged;
                }
            }
        }
    }

    fn sources() -> impl Strategy<Value = Vec<(Vec<Entry>, Vec<bool>)>> {
        // Seqs are drawn per entry from a counter, so (key, seq) pairs are unique.
        let keys = prop::collection::vec((prop::collection::vec(0..3_u8, 0..4), 0..6_usize), 0..60);
        (keys, 0..7_usize, any::<u64>()).prop_map(|(keys, count, bits)| {
            let mut sources = vec![(Vec::new(), Vec::new()); count];
            for (seq, (key, source)) in keys.into_iter().enumerate() {
                let seq = Seq(u64::try_from(seq).unwrap() + 1);
                let (key, payload) = (Bytes::from(key), Payload::Tombstone);
                if let Some((entries, gaps)) = sources.get_mut(source) {
                    entries.push(Entry { key, seq, payload, expires_ms: None });
                    gaps.push(bits.rotate_left(u32::try_from(seq.0).unwrap()) & 1 == 1);
                }
            }
            sources
        })
    }

    proptest! {
        #[test]
        fn merge_is_the_sort_of_the_concatenation(sources in sources(), reverse: bool) {
            let direction = if reverse { Direction::Reverse } else { Direction::Forward };
            let mut expected: Vec<_> = sources.iter().flat_map(|source| source.0.clone()).collect();
            expected.sort_by(order(direction));
            let cursors = sources.into_iter().map(|(mut entries, mut gaps)| {
                entries.sort_by(order(direction));
                gaps.push(true);
                Gappy { entries, gaps, position: 0 }
            });
            let mut merge = Merge::new(cursors.collect(), direction);
            prop_assert_eq!(drain(&mut merge), expected);
        }
    }

    #[test]
    fn equal_entries_come_newest_source_first() {
        let entry = |value: &'static str| Entry {
            key: "k".into(),
            seq: Seq(1),
            payload: Payload::Value(value.into()),
            expires_ms: None,
        };
        for direction in [Direction::Forward, Direction::Reverse] {
            let cursors = ["a", "b", "c"].map(|value| Gappy {
                entries: vec![entry(value)],
                gaps: Vec::new(),
                position: 0,
            });
            let merged = drain(&mut Merge::new(cursors.into(), direction));
            assert_eq!(merged, ["a", "b", "c"].map(entry));
        }
    }
}
