//! The rows of a scan as bytes of a reply, made slice by slice.
//!
//! **Invariants**
//! - A slice is synchronous and short. The first is done on the calling task, so that a short scan
//!   waits for nobody; all others wait for their turn among the bulk work of the process.
//! - Who waits for a turn, for input, or for room holds a row at most, beside what it has written.

use std::mem;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::api::EntryBody;
use super::budget::{Budget, Share};
use super::problem::Answer;
use super::reads::INLINE_BYTES_MAX;
use super::reply::Draft;
use crate::clock::Clock;
use crate::env::Cpu;
use crate::limits::{KEY_BYTES_MAX, SCAN_PAGE_BYTES_MAX};
use crate::read::scan::{Position, Progress, Row, Scan};

/// What a stream hands to the connection in one go: many entries, few system calls.
const PIECE_BYTES: usize = 64 * 1024;
/// Room for what ends a reply: its cursor is a key in base64.
pub(super) const END_BYTES_MAX: usize = 2 * KEY_BYTES_MAX;
/// Entries of the slice on the calling task: a fraction of a millisecond.
const INLINE_STEPS: u32 = 256;
/// Entries between two looks at the clock.
const CLOCK_STEPS: u32 = 64;
/// Entries of any slice at most, also where a clock stands still.
const SLICE_STEPS_MAX: u32 = 16 * 1024;
/// How long a slice lasts: many times what it costs to hand it over, and short beside the wait of
/// a client.
const SLICE_TIME: Duration = Duration::from_millis(1);

/// What is shown of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shows {
    /// All of it.
    KeysAndValues,
    /// No values.
    Keys,
}

impl Shows {
    fn of(self, row: &Row) -> EntryBody<'_> {
        let value = (self == Self::KeysAndValues).then_some(&*row.value);
        EntryBody { key: &row.key, value, seq: row.seq }
    }
}

/// How rows are put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// All into one document, up to [`SCAN_PAGE_BYTES_MAX`].
    Page,
    /// One a line, in pieces of [`PIECE_BYTES`] or of one larger row.
    Stream,
}

/// A scan, and what has been written of it.
#[derive(Debug)]
pub(super) struct Rows {
    scan: Scan,
    shows: Shows,
    form: Form,
    /// How many more rows may be shown.
    left: usize,
    /// Read, and not written yet.
    held_back: Option<Row>,
    draft: Option<Draft>,
    /// Of a stream: where the room for its next piece comes from, or the room itself.
    room: Budget,
    share: Option<Share>,
    /// Whether any row was written.
    begun: bool,
}

/// Where a slice has stopped.
#[derive(Debug)]
pub(super) enum Then {
    /// The scan lacks input.
    NeedInput,
    /// It has had its turn.
    Pause,
    /// A piece, or the page, is full.
    Full,
    /// A piece of this size finds no room.
    NoRoom(usize),
    /// There are no more rows, or no more may be shown.
    End,
}

/// What a slice may do.
struct Quantum {
    steps: u32,
    value_bytes_max: usize,
    until: Option<(Arc<dyn Clock>, Duration)>,
}

impl Quantum {
    fn inline() -> Self {
        Self { steps: INLINE_STEPS, value_bytes_max: INLINE_BYTES_MAX, until: None }
    }

    fn from_now_on(clock: Arc<dyn Clock>) -> Self {
        let until = clock.boot() + SLICE_TIME;
        Self { steps: SLICE_STEPS_MAX, value_bytes_max: usize::MAX, until: Some((clock, until)) }
    }

    fn is_over(&self) -> bool {
        self.steps == 0 || self.until.as_ref().is_some_and(|(clock, until)| clock.boot() >= *until)
    }
}

impl Rows {
    /// Shows this many rows of a scan at most.
    pub(super) fn new(scan: Scan, (shows, form): (Shows, Form), left: usize, room: Budget) -> Self {
        Self {
            scan,
            shows,
            form,
            left,
            held_back: None,
            draft: None,
            room,
            share: None,
            begun: false,
        }
    }

    /// Begins a page with this text.
    ///
    /// # Errors
    /// `overloaded` where there is no room for an empty page.
    pub(super) fn begin(&mut self, text: &str) -> Answer<()> {
        let mut draft = Draft::new(self.room.empty());
        draft.reserve(text.len() + END_BYTES_MAX)?;
        draft.frame(text)?;
        self.draft = Some(draft);
        Ok(())
    }

    /// What has been written since it was last taken.
    pub(super) fn take_draft(&mut self) -> Option<Draft> {
        self.draft.take()
    }

    /// Gives a stream the room for its next piece.
    pub(super) fn give(&mut self, share: Share) {
        self.share = Some(share);
    }

    /// The scan, to feed it.
    pub(super) fn scan_mut(&mut self) -> &mut Scan {
        &mut self.scan
    }

    /// How far the rows that were written have come; `None` at the end.
    pub(super) fn position(&self) -> Position<'_> {
        match &self.held_back {
            Some(row) => Position::At(&row.key),
            None => self.scan.position(),
        }
    }

    /// Whether rows are left that may not be shown any more.
    pub(super) fn is_cut_off(&self) -> bool {
        self.held_back.is_some()
    }

    fn slice(&mut self, mut quantum: Quantum) -> Answer<Then> {
        loop {
            let row = match self.held_back.take() {
                Some(row) => row,
                None => match self.next_row(&mut quantum) {
                    Ok(row) => row,
                    Err(then) => return Ok(then),
                },
            };
            if let Some(then) = self.write(row, &quantum)? {
                return Ok(then);
            }
        }
    }

    fn next_row(&mut self, quantum: &mut Quantum) -> Result<Row, Then> {
        loop {
            if quantum.is_over() {
                return Err(Then::Pause);
            }
            let granted = quantum.steps.min(CLOCK_STEPS);
            let mut steps = granted;
            let progress = self.scan.advance(&mut steps);
            quantum.steps -= granted - steps;
            match progress {
                Progress::Row(row) => return Ok(row),
                Progress::NeedInput => return Err(Then::NeedInput),
                Progress::End => return Err(Then::End),
                Progress::Pause => {}
            }
        }
    }

    /// Writes a row, or holds it back and says why.
    fn write(&mut self, row: Row, quantum: &Quantum) -> Answer<Option<Then>> {
        let bytes = self.shows.of(&row).written_bytes() + 1;
        let then = if self.left == 0 {
            Some(Then::End)
        } else if row.value.len() > quantum.value_bytes_max {
            Some(Then::Pause)
        } else {
            match self.form {
                Form::Page => self.room_on_page(bytes)?,
                Form::Stream => self.room_in_piece(bytes),
            }
        };
        let (Some(draft), None) = (&mut self.draft, &then) else {
            self.held_back = Some(row);
            return Ok(then);
        };
        if self.form == Form::Page && self.begun {
            draft.frame(",")?;
        }
        draft.entry(&self.shows.of(&row))?;
        if self.form == Form::Stream {
            draft.frame("\n")?;
        }
        self.begun = true;
        self.left -= 1;
        Ok(None)
    }

    fn room_on_page(&mut self, bytes: usize) -> Answer<Option<Then>> {
        let Some(draft) = &mut self.draft else { return Ok(Some(Then::End)) };
        if draft.bytes() >= SCAN_PAGE_BYTES_MAX {
            return Ok(Some(Then::Full));
        }
        match draft.reserve(bytes + END_BYTES_MAX) {
            Ok(()) => Ok(None),
            // A page that has rows may end early.
            Err(_) if self.begun => Ok(Some(Then::Full)),
            Err(problem) => Err(problem),
        }
    }

    fn room_in_piece(&mut self, bytes: usize) -> Option<Then> {
        if let Some(draft) = &self.draft {
            let is_full = draft.bytes() + bytes > PIECE_BYTES;
            return is_full.then_some(Then::Full);
        }
        let room = bytes.max(PIECE_BYTES) + END_BYTES_MAX;
        match self.share.take().map_or_else(|| self.room.share(room), Ok) {
            Ok(share) => {
                self.draft = Some(Draft::with_room(room, share));
                None
            }
            Err(_) => Some(Then::NoRoom(room)),
        }
    }
}

/// Who does the slices of some rows.
#[derive(Debug)]
pub(super) struct Slices {
    rows: Option<Box<Rows>>,
    cpu: Cpu,
    clock: Arc<dyn Clock>,
    is_fresh: bool,
}

impl Slices {
    pub(super) fn new(rows: Rows, cpu: Cpu, clock: Arc<dyn Clock>) -> Self {
        Self { rows: Some(Box::new(rows)), cpu, clock, is_fresh: true }
    }

    /// The rows, between two slices.
    pub(super) fn rows(&mut self) -> &mut Rows {
        self.rows.as_mut().expect("the rows are here between two slices")
    }

    /// The next slice; `None` where its turn has not come by `due`. Not cancel-safe: the rows are
    /// lost with the future.
    pub(super) async fn next(&mut self, due: Option<Instant>) -> Answer<Option<Then>> {
        if mem::take(&mut self.is_fresh) {
            return self.rows().slice(Quantum::inline()).map(Some);
        }
        let waiting = Arc::new(Mutex::new(self.rows.take()));
        let take = |waiting: &Mutex<Option<Box<Rows>>>| {
            waiting.lock().unwrap_or_else(PoisonError::into_inner).take()
        };
        let slice = {
            let (waiting, clock) = (Arc::clone(&waiting), Arc::clone(&self.clock));
            move || {
                let mut rows = take(&waiting)?;
                let then = rows.slice(Quantum::from_now_on(clock));
                Some((rows, then))
            }
        };
        let mut running = std::pin::pin!(self.cpu.run_bulk(slice));
        let late = async {
            match due {
                Some(due) => sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        let done = tokio::select! {
            biased;
            done = &mut running => done,
            () = late => {
                if let Some(rows) = take(&waiting) {
                    self.rows = Some(rows);
                    return Ok(None);
                }
                running.await
            }
        };
        let (rows, then) = done.expect("nobody else has taken the rows");
        self.rows = Some(rows);
        then.map(Some)
    }
}
