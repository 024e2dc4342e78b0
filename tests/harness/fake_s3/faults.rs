//! What can go wrong between a client and the fake S3, and when it does.

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::protocol::Answer;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// A read, ranged or not, or a HEAD.
    Get,
    /// A write of a whole object.
    Put,
    /// A deletion.
    Delete,
    /// A listing.
    List,
    /// A request of a multipart upload.
    Multipart,
}

/// One thing that goes wrong with one request.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// It is done, and the connection dropped in place of the answer.
    LostResponse,
    /// It is done, and an error told, as 500.
    ErrorAfter(u16),
    /// Nothing is done, and an error told, as 500; of a 503 the code is `SlowDown`.
    ErrorBefore(u16),
    /// Nothing is done, and 409 `ConditionalRequestConflict` told.
    ConflictBefore,
    /// It is done, and 409 `ConditionalRequestConflict` told.
    ConflictAfter,
    /// Nothing is done, and the connection dropped.
    LostRequest,
    /// It is done after a while.
    Slow(Duration),
    /// The connection is dropped, and it is done after a while.
    Late(Duration),
    /// It is done and told, and done again after a while.
    Duplicate(Duration),
    /// The body of the answer ends in the middle.
    Cut,
    /// Nothing is done, and nothing is ever told.
    Silence,
    /// One bit of the body of the answer is another one, each time another.
    Garble,
    /// Half of the body, of which the answer says that it is all: `Content-Range` is not touched.
    Shorten,
    /// Somebody between client and store answers with this status and a page for people. Nothing is
    /// done.
    ForeignBefore(u16),
    /// The same, after it was done.
    ForeignAfter(u16),
}

/// Whether conditions on requests count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conditions {
    /// As S3 does.
    Honoured,
    /// As a store does that must be refused.
    Ignored,
    /// Judged, and the write done after a moment: right for requests one at a time only, so that
    /// the store must be refused too.
    JudgedEarly,
}

/// A fault for the requests that it fits.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Which requests.
    pub verb: Verb,
    /// Only of keys that contain this.
    pub key: String,
    /// What happens to them.
    pub fault: Fault,
    /// How many of them.
    pub times: usize,
}

/// How often each fault meets a request at random, as a share of all requests.
#[derive(Clone, Debug, Default)]
pub struct Rates {
    /// A fault and its share.
    pub shares: Vec<(Fault, f64)>,
}

/// What goes wrong, and what did.
#[derive(Debug)]
pub struct Faults {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    rng: StdRng,
    rules: Vec<Rule>,
    rates: Rates,
    conditions: Conditions,
    requests: usize,
    faults: usize,
    landed: usize,
    bytes_in: u64,
}

impl Faults {
    pub(super) fn new(seed: u64) -> Self {
        let state = State {
            rng: StdRng::seed_from_u64(seed),
            rules: Vec::new(),
            rates: Rates::default(),
            conditions: Conditions::Honoured,
            requests: 0,
            faults: 0,
            landed: 0,
            bytes_in: 0,
        };
        Self { state: Mutex::new(state) }
    }

    /// Adds a rule; the first that fits a request decides.
    pub fn add(&self, rule: Rule) {
        self.state().rules.push(rule);
    }

    /// The next PUT of a key that contains `key` meets this fault.
    pub fn next_put(&self, key: &str, fault: Fault) {
        self.add(Rule { verb: Verb::Put, key: key.to_owned(), fault, times: 1 });
    }

    /// The next GET of a key that contains `key` meets this fault.
    pub fn next_get(&self, key: &str, fault: Fault) {
        self.add(Rule { verb: Verb::Get, key: key.to_owned(), fault, times: 1 });
    }

    /// Sets the faults that come at random.
    pub fn set_rates(&self, rates: Rates) {
        self.state().rates = rates;
    }

    /// Sets whether conditions count.
    pub fn set_conditions(&self, conditions: Conditions) {
        self.state().conditions = conditions;
    }

    /// From now on nothing goes wrong.
    pub fn quiet(&self) {
        let mut state = self.state();
        state.rules.clear();
        state.rates = Rates::default();
    }

    /// Requests so far.
    pub fn requests(&self) -> usize {
        self.state().requests
    }

    /// Requests so far that met a fault.
    pub fn met(&self) -> usize {
        self.state().faults
    }

    /// Bytes of request bodies so far, whether they came whole or not.
    pub fn bytes_in(&self) -> u64 {
        self.state().bytes_in
    }

    pub(super) fn came(&self, bytes: usize) {
        self.state().bytes_in += u64::try_from(bytes).unwrap_or(u64::MAX);
    }

    /// A number at random.
    pub(super) fn draw(&self) -> u64 {
        self.state().rng.random()
    }

    /// Late writes and duplicates that were done after all, and changed something.
    pub fn landed_late(&self) -> usize {
        self.state().landed
    }

    pub(super) fn conditions(&self) -> Conditions {
        self.state().conditions
    }

    pub(super) fn landed(&self) {
        self.state().landed += 1;
    }

    /// What happens to this request.
    pub(super) fn decide(&self, verb: Verb, key: &str) -> Option<Fault> {
        let mut state = self.state();
        state.requests += 1;
        let fault = state.by_rule(verb, key).or_else(|| state.by_chance());
        state.faults += usize::from(fault.is_some());
        fault
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic holds this lock")
    }
}

impl State {
    fn by_rule(&mut self, verb: Verb, key: &str) -> Option<Fault> {
        let fits =
            |rule: &&mut Rule| rule.verb == verb && key.contains(&rule.key) && rule.times > 0;
        let rule = self.rules.iter_mut().find(fits)?;
        rule.times -= 1;
        Some(rule.fault.clone())
    }

    fn by_chance(&mut self) -> Option<Fault> {
        let mut point: f64 = self.rng.random();
        let hit = |(_, share): &&(Fault, f64)| {
            point -= share;
            point < 0.0
        };
        self.rates.shares.iter().find(hit).map(|(fault, _)| fault.clone())
    }
}

/// A fault, as what happens in the bucket and what the client hears.
pub(super) enum Fate {
    /// Done after a wait.
    Applied { first_wait: Duration, told: Told },
    /// Not done; told an error, or nothing.
    Untouched { told: Option<Answer> },
    /// Nothing told, done after a wait.
    Later { wait: Duration },
    /// Done and told, and done again after a wait.
    Twice { wait: Duration },
    /// The answer, changed on its way.
    Mangled(Mangle),
    /// Nothing, ever.
    Never,
}

/// What becomes of an answer on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mangle {
    Cut,
    Garbled,
    Shortened,
}

/// What the client hears of something that was done.
pub(super) enum Told {
    Truth,
    Nothing,
    Instead(Answer),
}

impl Fault {
    pub(super) fn fate(&self) -> Fate {
        let conflict = || Answer::error(409, "ConditionalRequestConflict");
        let error = |status: u16| {
            let code = if status == 503 { "SlowDown" } else { "InternalError" };
            Answer::error(status, code)
        };
        let applied = |told| Fate::Applied { first_wait: Duration::ZERO, told };
        match *self {
            Self::LostResponse => applied(Told::Nothing),
            Self::ErrorAfter(status) => applied(Told::Instead(error(status))),
            Self::ConflictAfter => applied(Told::Instead(conflict())),
            Self::ErrorBefore(status) => Fate::Untouched { told: Some(error(status)) },
            Self::ConflictBefore => Fate::Untouched { told: Some(conflict()) },
            Self::LostRequest => Fate::Untouched { told: None },
            Self::Slow(wait) => Fate::Applied { first_wait: wait, told: Told::Truth },
            Self::Late(wait) => Fate::Later { wait },
            Self::Duplicate(wait) => Fate::Twice { wait },
            Self::Cut => Fate::Mangled(Mangle::Cut),
            Self::Garble => Fate::Mangled(Mangle::Garbled),
            Self::Shorten => Fate::Mangled(Mangle::Shortened),
            Self::ForeignBefore(status) => Fate::Untouched { told: Some(Answer::page(status)) },
            Self::ForeignAfter(status) => applied(Told::Instead(Answer::page(status))),
            Self::Silence => Fate::Never,
        }
    }
}
