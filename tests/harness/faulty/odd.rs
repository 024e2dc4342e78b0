//! Odd answers: what an ingress, a proxy or a bad disk on the way makes of a good one, and faults
//! that meet exactly one request.
//!
//! **Invariants**
//! - An odd answer changes nothing in the bucket.
//! - Of one object there is at most one in [`ODD_APART`]: whoever reads again finds the truth.

use std::time::Duration;

use bytes::Bytes;
use cairn_common::clock::Clock;
use cairn_common::format::path::ObjectKind;
use cairn_common::store::answer::Refusal;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::client::HttpErrorKind;
use object_store::path::Path;
use object_store::{Error, GetResult, GetResultPayload, PutMode, Result};

use super::{Act, Event, Fate, Shared, State, http, kind_of};

/// Time between two odd answers about one object: several times what an independent second and
/// third read of it take.
pub(super) const ODD_APART: Duration = Duration::from_secs(15);
/// What a proxy sends with status 200 in place of an object.
const ERROR_PAGE: &[u8] = b"<html><body>upstream connect error</body></html>";

/// An answer that is not the store's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Odd {
    /// A GET whose body has a flipped bit, or is an error page.
    Garbled,
    /// A GET whose body is cut short, with a length that fits.
    Shortened,
    /// A 404 without a code of the store's.
    NotFound,
    /// A 412 to a PUT that the store never saw.
    Precondition,
}

impl Odd {
    pub(super) const ALL: [Self; 4] =
        [Self::Garbled, Self::Shortened, Self::NotFound, Self::Precondition];

    /// Whether it needs a body that it can spoil.
    pub(super) fn is_of_body(self) -> bool {
        matches!(self, Self::Garbled | Self::Shortened)
    }

    /// Whether a request of this kind can be answered so.
    pub(super) fn meets(self, act: Act) -> bool {
        match self {
            Self::Garbled | Self::Shortened | Self::NotFound => act == Act::Get,
            Self::Precondition => act == Act::Put,
        }
    }
}

/// One fault that was asked for, for the next request that it can meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The answer is lost: the request is done.
    ResponseLost,
    /// The answer is an odd one.
    Odd(Odd),
}

/// A fault that waits for its request, or has met it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trap {
    pub(super) fault: Fault,
    pub(super) kind: ObjectKind,
    /// When it met a request.
    pub(super) sprung_at: Option<Duration>,
}

impl Trap {
    /// Whether a request of this kind to this path is the one. Bodies are judged when they are
    /// there: [`Trap::awaits_body`].
    pub(super) fn awaits(&self, act: Act, path: &str) -> bool {
        let fits = match self.fault {
            Fault::ResponseLost => true,
            Fault::Odd(odd) => odd.meets(act) && !self.awaits_body(path),
        };
        self.sprung_at.is_none() && fits && kind_of(&Path::from(path)) == self.kind
    }

    /// Whether the body of this object is the one.
    pub(super) fn awaits_body(&self, path: &str) -> bool {
        let of_body = matches!(self.fault, Fault::Odd(odd) if odd.is_of_body());
        self.sprung_at.is_none() && of_body && kind_of(&Path::from(path)) == self.kind
    }
}

impl Shared {
    /// How the body of an object is spoilt: as was asked for, or as was drawn.
    pub(super) fn odd_of_body(&self, path: &str, drawn: Option<Odd>) -> Option<Odd> {
        let now = self.clock.boot();
        let mut state = self.state();
        let asked = match state.spring(now, |trap| trap.awaits_body(path)) {
            Some(Fate::Odd(odd)) => Some(odd),
            _ => None,
        };
        let odd = asked.or(drawn)?;
        state.may_be_odd(odd, Act::Get, path, now).then_some(odd)
    }
}

impl State {
    /// The fate that was asked for, if this is the request for it.
    pub(super) fn spring(
        &mut self,
        now: Duration,
        is_it: impl FnOnce(&Trap) -> bool,
    ) -> Option<Fate> {
        let trap = self.trap.as_mut().filter(|trap| is_it(trap))?;
        trap.sprung_at = Some(now);
        Some(match trap.fault {
            Fault::ResponseLost => {
                self.count(Event::ResponseLost);
                Fate::ResponseLost
            }
            Fault::Odd(odd) => Fate::Odd(odd),
        })
    }

    /// Whether an odd answer may be given about an object: rarely enough, and to what can be
    /// answered so. Notes and counts it.
    pub(super) fn may_be_odd(&mut self, odd: Odd, act: Act, path: &str, now: Duration) -> bool {
        let is_apart = self.odd_at.get(path).is_none_or(|at| now >= *at + ODD_APART);
        if !odd.meets(act) || !is_apart {
            return false;
        }
        self.odd_at.insert(path.to_owned(), now);
        self.count(Event::Odd(odd));
        true
    }
}

/// A 404 that says nothing in the store's own words.
pub(super) fn foreign_not_found() -> Error {
    http(HttpErrorKind::Unknown, Refusal { status: 404, code: None })
}

/// A 412 in answer to a PUT, as the clients report it in each mode.
pub(super) fn foreign_precondition(path: &Path, mode: &PutMode) -> Error {
    let (path, source) = (path.to_string(), Box::new(Refusal { status: 412, code: None }));
    match mode {
        PutMode::Create => Error::AlreadyExists { path, source },
        _ => Error::Precondition { path, source },
    }
}

/// What arrives in place of an object. `point` says where and how.
pub(super) async fn spoilt(odd: Odd, mut found: GetResult, point: u64) -> Result<GetResult> {
    let empty = GetResultPayload::Stream(stream::empty().boxed());
    let payload = std::mem::replace(&mut found.payload, empty);
    let GetResultPayload::Stream(parts) = payload else {
        unreachable!("a store in memory has no files")
    };
    let mut body: Vec<u8> = parts.try_collect::<Vec<Bytes>>().await?.concat();
    let is_whole = u64::try_from(body.len()) == Ok(found.meta.size);
    let length = u64::try_from(body.len()).unwrap_or(u64::MAX);
    let at = usize::try_from(point % length.max(1)).unwrap_or(0);
    if odd == Odd::Garbled && is_whole && point % 10 < 3 {
        body = ERROR_PAGE.to_vec();
    } else if odd == Odd::Garbled && !body.is_empty() {
        body[at] ^= 1 << (at % 8);
    } else {
        body.truncate(at);
    }
    if is_whole {
        found.meta.size = u64::try_from(body.len()).unwrap_or(u64::MAX);
        found.range = 0..found.meta.size;
    }
    found.payload = GetResultPayload::Stream(stream::once(async { Ok(body.into()) }).boxed());
    Ok(found)
}
