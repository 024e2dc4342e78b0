//! Places: how many requests a process works on at one time, and how many wait for what.
//!
//! A request has a place for as long as it is worked on. While it waits (for the next bytes of its
//! body, for a seq, for the store, for its write to be durable) it gives the place back, and sits
//! in a line of its own kind: those who wait take nothing from those who can be served.
//!
//! **Invariants**
//! - Every line has a bound of its own. Where it is full, the one who is least likely to be served
//!   soon leaves: the body whose next bytes have been awaited for the longest time, the read whose
//!   seq is the highest. So slow clients, and seqs far away, do not keep the others out.
//! - A scan has a seat among the scans and no place: its work is done in slices, one at a time. A
//!   quarter of these seats is for pages, which end at their deadlines; a stream lasts while its
//!   client takes something.
//! - Who comes back from a line goes before those who have just arrived.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout_at;

use super::problem::{Answer, Code, Outcome, Problem};
use super::request::Arrival;
use super::rows::Form;
use crate::config::HttpLimits;

/// Requests of one kind: how many there are, and how many there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Usage {
    /// What they do, as the label of a metric.
    pub(super) what: &'static str,
    pub(super) count: usize,
    pub(super) count_max: usize,
}

/// The places of a process, and its lines.
#[derive(Debug)]
pub(super) struct Places {
    serving: Seats,
    bodies: Arc<Line>,
    reads: Arc<Line>,
    writes: Seats,
    scans: Seats,
    /// Of the seats of scans, those that streams may take.
    streams: Seats,
}

/// Seats of which none is given away while somebody sits in it.
#[derive(Debug)]
struct Seats {
    free: Arc<Semaphore>,
    count_max: usize,
}

impl Seats {
    fn new(count: usize) -> Self {
        let count_max = count.min(Semaphore::MAX_PERMITS);
        Self { free: Arc::new(Semaphore::new(count_max)), count_max }
    }

    fn sit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.free).try_acquire_owned().ok()
    }

    fn usage(&self, what: &'static str) -> Usage {
        let count = self.count_max.saturating_sub(self.free.available_permits());
        Usage { what, count, count_max: self.count_max }
    }
}

/// What a request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// The next bytes of its body.
    Body,
    /// A view, or what a view lacks; the seq that it wants, 0 if any will do.
    Read(u64),
}

impl Places {
    /// As many as these settings say.
    pub(super) fn new(limits: &HttpLimits) -> Self {
        Self {
            serving: Seats::new(limits.requests_max),
            bodies: Arc::new(Line::new(limits.waits.waiting_bodies_max)),
            reads: Arc::new(Line::new(limits.waits.waiting_reads_max)),
            writes: Seats::new(limits.waits.waiting_writes_max),
            scans: Seats::new(limits.waits.scans_max),
            streams: Seats::new(limits.waits.scans_max - limits.waits.scans_max / 4),
        }
    }

    /// How full the places and each line are.
    pub(super) fn usage(&self) -> [Usage; 5] {
        [
            self.serving.usage("serving"),
            self.bodies.usage("body"),
            self.reads.usage("read"),
            self.writes.usage("write"),
            self.scans.usage("scan"),
        ]
    }

    fn sit(&self, wait: Wait) -> Answer<Seat> {
        let seat = match wait {
            Wait::Body => self.bodies.sit(None),
            Wait::Read(seq) => self.reads.sit(Some(seq)),
        };
        seat.ok_or_else(|| wait.refusal())
    }
}

/// Refuses what finds no seat of its kind, and names the setting that bounds them.
fn overloaded(what: &str, setting: &str) -> Problem {
    Problem::new(Code::Overloaded, format!("too many {what}: there are {setting} of them already"))
}

impl Wait {
    /// What the client of a request that leaves a full line is told.
    fn refusal(self) -> Problem {
        match self {
            Self::Body => {
                let detail = "the next bytes of the body did not come, and waiting_bodies_max \
                              requests began to wait for theirs later";
                Problem::new(Code::SlowClient, detail).outcome(Outcome::NotApplied)
            }
            Self::Read(0) => overloaded("reads that wait for the store", "waiting_reads_max"),
            Self::Read(seq) => {
                let detail = format!(
                    "seq {seq} is not there yet, and waiting_reads_max reads wait for the store or \
                     for lower seqs"
                );
                Problem::new(Code::NotYet, detail)
            }
        }
    }
}

/// The place of one request, if it has one.
#[derive(Clone, Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    held: Arc<Mutex<Option<OwnedSemaphorePermit>>>,
}

impl Place {
    /// Of a request that has not entered.
    pub(super) fn new(places: &Arc<Places>) -> Self {
        Self { places: Arc::clone(places), held: Arc::default() }
    }

    /// Takes a place; false if all are taken.
    fn enter(&self) -> bool {
        let permit = self.places.serving.sit();
        let entered = permit.is_some();
        *lock(&self.held) = permit;
        entered
    }

    /// Gives the place back, if it has one.
    fn leave(&self) -> Option<OwnedSemaphorePermit> {
        lock(&self.held).take()
    }

    async fn enter_again(&self) {
        // Closed never.
        if let Ok(permit) = Arc::clone(&self.places.serving.free).acquire_owned().await {
            *lock(&self.held) = Some(permit);
        }
    }
}

impl Arrival {
    /// Takes a place among the requests that are worked on.
    ///
    /// # Errors
    /// `overloaded` where all are taken: a queue would only make every request late.
    pub(super) fn enter(&self) -> Answer<()> {
        if self.place().enter() {
            return Ok(());
        }
        Err(overloaded("requests in progress", "requests_max"))
    }

    /// Gives its place back.
    pub(super) fn leave(&self) {
        drop(self.place().leave());
    }

    /// The result of `work`. If it has to be waited for, the request has no place meanwhile.
    ///
    /// # Errors
    /// Where the line of those who wait for the same is full, and this one is the last to be
    /// served; `work` is then dropped.
    pub(super) async fn aside<T>(&self, wait: Wait, work: impl Future<Output = T>) -> Answer<T> {
        let mut work = pin!(work);
        if let std::task::Poll::Ready(done) = futures::poll!(&mut work) {
            return Ok(done);
        }
        let place = self.place();
        let seat = place.places.sit(wait)?;
        let had_place = place.leave().is_some();
        let done = tokio::select! {
            biased;
            done = &mut work => done,
            () = seat.displaced.notified() => return Err(wait.refusal()),
        };
        if had_place {
            let again = timeout_at(self.deadline().instant(), place.enter_again()).await;
            let late = |_| overloaded("requests in progress", "requests_max");
            again.map_err(late)?;
        }
        Ok(done)
    }

    /// A seat for a write, in exchange for its place: it may wait until it is durable.
    ///
    /// # Errors
    /// `overloaded`, with `not_applied`, where all are taken.
    pub fn write_seat(&self) -> Answer<OwnedSemaphorePermit> {
        let refused = || {
            let problem = overloaded("writes that wait to be durable", "waiting_writes_max");
            problem.outcome(Outcome::NotApplied)
        };
        let seat = self.place().places.writes.sit().ok_or_else(refused)?;
        self.leave();
        Ok(seat)
    }

    /// A seat for a scan, in exchange for its place.
    ///
    /// # Errors
    /// `overloaded` where all are taken.
    pub(super) fn scan_seat(&self, form: Form) -> Answer<ScanSeat> {
        let places = &self.place().places;
        let seat = || {
            let stream = match form {
                Form::Page => None,
                Form::Stream => Some(places.streams.sit()?),
            };
            Some(ScanSeat { _scan: places.scans.sit()?, _stream: stream })
        };
        let seat = seat().ok_or_else(|| overloaded("scans under way", "scans_max"))?;
        self.leave();
        Ok(seat)
    }
}

/// A seat among the scans, until it is dropped.
#[derive(Debug)]
pub(super) struct ScanSeat {
    _scan: OwnedSemaphorePermit,
    _stream: Option<OwnedSemaphorePermit>,
}

/// Those who wait for the same kind of thing.
#[derive(Debug)]
struct Line {
    seats: usize,
    sitting: Mutex<Sitting>,
}

/// By how far each is from being served, and by number.
#[derive(Debug, Default)]
struct Sitting {
    waiting: BTreeMap<(u64, u64), Arc<Notify>>,
    number: u64,
}

/// A seat in a line, until it is dropped.
#[derive(Debug)]
struct Seat {
    line: Arc<Line>,
    key: (u64, u64),
    displaced: Arc<Notify>,
}

impl Line {
    fn new(seats: usize) -> Self {
        Self { seats, sitting: Mutex::default() }
    }

    fn usage(&self, what: &'static str) -> Usage {
        Usage { what, count: lock(&self.sitting).waiting.len(), count_max: self.seats }
    }

    /// Sits down at this distance; without one, whoever sits down later is nearer. Where the line
    /// is full, whoever is farther leaves; `None` where nobody is.
    fn sit(self: &Arc<Self>, distance: Option<u64>) -> Option<Seat> {
        let mut sitting = lock(&self.sitting);
        sitting.number += 1;
        let number = sitting.number;
        let distance = distance.unwrap_or(u64::MAX - number);
        if sitting.waiting.len() >= self.seats {
            let farthest = sitting.waiting.last_entry().filter(|last| last.key().0 > distance)?;
            farthest.remove().notify_one();
        }
        let displaced = Arc::new(Notify::new());
        let key = (distance, number);
        sitting.waiting.insert(key, Arc::clone(&displaced));
        Some(Seat { line: Arc::clone(self), key, displaced })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        lock(&self.line.sitting).waiting.remove(&self.key);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use futures::future::join_all;
    use http::HeaderMap;

    use super::*;
    use crate::config::WaitLimits;
    use crate::http::budget::Budgets;

    fn arrivals(limits: &HttpLimits, count: usize) -> Vec<Arrival> {
        let budgets = Budgets::new(limits);
        let arrival = || Arrival::new(&HeaderMap::new(), limits, &budgets).unwrap();
        (0..count).map(|_| arrival()).collect()
    }

    fn limits(requests_max: usize, waits: WaitLimits) -> HttpLimits {
        HttpLimits { requests_max, waits, ..HttpLimits::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiting_request_has_no_place() {
        let limits = limits(1, WaitLimits::default());
        let [one, two] = &arrivals(&limits, 2)[..] else { panic!("two arrivals") };
        one.enter().unwrap();
        assert_eq!(two.enter().unwrap_err().code, Code::Overloaded);
        assert_eq!(one.aside(Wait::Read(0), async { 7 }).await.unwrap(), 7);
        assert!(two.enter().is_err(), "what is at hand is not waited for");
        let (go, gate) = tokio::sync::oneshot::channel::<()>();
        let mut waiting = Box::pin(one.aside(Wait::Read(0), gate));
        assert!(futures::poll!(&mut waiting).is_pending());
        two.enter().unwrap();
        let usage = two.budgets().places.usage();
        let counts = usage.map(|usage| (usage.what, usage.count));
        let expected = [("serving", 1), ("body", 0), ("read", 1), ("write", 0), ("scan", 0)];
        assert_eq!(counts, expected);
        go.send(()).unwrap();
        assert!(futures::poll!(&mut waiting).is_pending(), "it waits for its place again");
        two.leave();
        assert!(two.enter().is_err(), "and goes before who has just arrived");
        waiting.await.unwrap().unwrap();
        assert!(two.enter().is_err());
        one.leave();
        two.enter().unwrap();
    }

    /// Which of those who wait, each from a moment after the one before, leave within a second.
    async fn leave(arrivals: &[Arrival], waits: &[Wait]) -> Vec<Option<Code>> {
        let second = std::time::Duration::from_secs(1);
        let waits = arrivals.iter().zip(waits).map(|(arrival, wait)| async {
            let wait = tokio::time::timeout(second, arrival.aside(*wait, pending::<()>())).await;
            wait.ok().map(|left| left.unwrap_err().code)
        });
        join_all(waits).await
    }

    #[tokio::test(start_paused = true)]
    async fn the_farthest_read_leaves_a_full_line() {
        let waits = WaitLimits { waiting_reads_max: 2, ..WaitLimits::default() };
        let arrivals = arrivals(&limits(9, waits), 5);
        let left = leave(&arrivals, &[90, 50, 80, 99, 10].map(Wait::Read)).await;
        let far = Some(Code::NotYet);
        assert_eq!(left, [far, None, far, far, None]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_body_leaves_a_full_line() {
        let waits = WaitLimits { waiting_bodies_max: 2, ..WaitLimits::default() };
        let arrivals = arrivals(&limits(9, waits), 3);
        let left = leave(&arrivals, &[Wait::Body; 3]).await;
        assert_eq!(left, [Some(Code::SlowClient), None, None]);
    }

    #[tokio::test]
    async fn writes_and_scans_have_seats_of_their_own() {
        let waits = WaitLimits { waiting_writes_max: 1, scans_max: 1, ..WaitLimits::default() };
        let arrivals = arrivals(&limits(1, waits), 2);
        for arrival in &arrivals {
            arrival.enter().unwrap();
            let write = arrival.write_seat().unwrap();
            let refused = arrivals[1].write_seat().unwrap_err();
            let expected = (Code::Overloaded, Some(Outcome::NotApplied));
            assert_eq!((refused.code, refused.outcome), expected);
            let scan = arrival.scan_seat(Form::Page).unwrap();
            assert_eq!(arrivals[1].scan_seat(Form::Page).unwrap_err().code, Code::Overloaded);
            drop((write, scan));
        }
    }

    #[tokio::test]
    async fn streams_leave_seats_to_pages() {
        let limits = limits(100, WaitLimits { scans_max: 8, ..WaitLimits::default() });
        let arrivals = arrivals(&limits, 9);
        let seat = |at: usize, form| arrivals[at].scan_seat(form);
        let streams: Vec<_> = (0..6).map(|at| seat(at, Form::Stream).unwrap()).collect();
        assert_eq!(seat(6, Form::Stream).unwrap_err().code, Code::Overloaded);
        let pages = [seat(7, Form::Page).unwrap(), seat(8, Form::Page).unwrap()];
        assert_eq!(seat(6, Form::Page).unwrap_err().code, Code::Overloaded);
        drop(streams);
        drop(seat(6, Form::Stream).unwrap());
        drop(pages);
    }
}
