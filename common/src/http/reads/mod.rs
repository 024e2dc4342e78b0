//! The read routes of writer and readers, over whatever views they have.
//!
//! **Life of a read**: headers and query are understood or refused; [`Views::view`] gives a view
//! that is new enough; the view answers. When an object of the view is missing (`NotFound`), the
//! newest manifest is loaded and the request restarted, since no byte of the answer has left yet.
//! If that does not explain it, the answer is 500 `corrupt`, the log has one ERROR, and the damage
//! registry names the object. A missing object is never "not found" to a client.

use std::sync::Arc;

use async_trait::async_trait;
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use bytes::Bytes;
use http::header::{self, HeaderMap};
use http::{StatusCode, Uri};

use super::api::{EntryBody, JSON, OCTETS, ReadHeaders, etag, reply};
use super::batch::read_keys;
use super::budget::Held;
use super::conditions::{Conditions, Failed};
use super::keys::{self, Key};
use super::places::Wait;
use super::problem::{Answer, Code, Problem};
use super::reply::Draft;
use super::request::{Arrival, Deadline, Params, Staleness, min_seq, staleness};
use super::scans::scan;
use crate::error::{Error, Result};
use crate::limits::GET_REPLY_BYTES_MAX;
use crate::lsm::visible::Found;
use crate::read::restart::Restart;
use crate::read::view::View;
use crate::types::Seq;

/// Keys of a multi-get that are looked up together at first: of the largest values, 128 MiB.
const GET_KEYS_AT_FIRST: usize = 8;
/// Keys that are looked up together at most.
const GET_KEYS_TOGETHER_MAX: usize = 64;
/// Bytes of values that are held beside the reply, as far as the values before foretell.
const GET_TOGETHER_BYTES: usize = 16 * 1024 * 1024;

/// Bytes of values that are written as JSON on the calling task: a fraction of a millisecond.
pub(super) const INLINE_BYTES_MAX: usize = 64 << 10;

/// What a read asks of the view that answers it.
#[derive(Clone, Copy, Debug)]
pub struct ReadRequest {
    /// The view includes at least this.
    pub min_seq: Option<Seq>,
    /// When the answer is due.
    pub deadline: Deadline,
    /// Whether the view may show what is not in the bucket yet.
    pub level: Level,
    /// Whether the view may be older than `max_staleness`.
    pub staleness: Staleness,
}

/// What a read may see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Level {
    /// What is in the bucket.
    #[default]
    Durable,
    /// Also what the writer has taken on and not yet proven.
    Memory,
}

/// A view that is new enough, and what the reply says of it.
#[derive(Clone, Debug)]
pub struct Answerable {
    /// The view.
    pub view: Arc<View>,
    /// At a reader: a true bound on its age.
    pub lag_ms: Option<u64>,
    /// By which clock entries expire.
    pub now_ms: u64,
}

/// Where views come from: a writer or a reader.
#[async_trait]
pub trait Views: Send + Sync + 'static {
    /// A view as the request asks for it, waited for until the deadline.
    ///
    /// # Errors
    /// `not_yet`, `too_stale`, `standby`, `fenced`, `timeout`.
    async fn view(&self, request: ReadRequest) -> Answer<Answerable>;

    /// Reads CURRENT: an object of a view was missing. Returns once views have the tree of the
    /// manifest that CURRENT named after the call began, or a newer one.
    ///
    /// # Errors
    /// Those of the store.
    async fn reload(&self) -> Result<()>;
}

/// `GET` of keys and ranges, `POST /v1/get`. Writers merge their `PUT` and `DELETE` into it.
pub fn routes<V: Views>(views: Arc<V>) -> Router {
    let routes =
        Router::new().route("/v1/kv", get(scan::<V>)).route("/v1/get", post(get_many::<V>));
    let routes =
        keys::ROUTES.into_iter().fold(routes, |routes, path| routes.route(path, get(get_one::<V>)));
    routes.with_state(views)
}

impl ReadRequest {
    pub(super) fn parse(headers: &HeaderMap, params: &Params, arrival: &Arrival) -> Answer<Self> {
        let level = match params.text("level")? {
            None | Some("durable") => Level::Durable,
            Some("memory") => Level::Memory,
            Some(other) => {
                let what = format!("{other:?} is neither durable nor memory");
                return Err(Problem::argument("level", what));
            }
        };
        Ok(Self {
            min_seq: min_seq(headers)?,
            deadline: arrival.deadline(),
            level,
            staleness: staleness(headers)?,
        })
    }
}

impl Answerable {
    pub(super) fn headers(&self) -> ReadHeaders {
        ReadHeaders { seq: self.view.seq, lag_ms: self.lag_ms }
    }
}

/// The reloads and restarts of one request.
#[derive(Debug, Default)]
pub(super) struct Attempt(Restart);

/// Why a view gave no answer.
#[derive(Debug)]
pub(super) enum Unanswered {
    /// It could not be read.
    Failed(Error),
    /// The client is told this.
    Refused(Problem),
}

impl From<Error> for Unanswered {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl From<Problem> for Unanswered {
    fn from(problem: Problem) -> Self {
        Self::Refused(problem)
    }
}

impl Attempt {
    /// Reloads and returns, so that the caller tries again; or says what the client is told. `why`
    /// is why `view` gave no answer.
    pub(super) async fn restart<V: Views>(
        &mut self,
        views: &V,
        (view, arrival): (&View, &Arrival),
        why: impl Into<Unanswered>,
    ) -> Answer<()> {
        match why.into() {
            Unanswered::Failed(error) => {
                self.0.judge(view, error)?;
                let reload = arrival.deadline().limit("loading the manifest", views.reload());
                Ok(arrival.aside(Wait::Read(0), reload).await???)
            }
            Unanswered::Refused(problem) => Err(problem),
        }
    }
}

async fn get_one<V: Views>(
    State(views): State<Arc<V>>,
    key: Key,
    arrival: Arrival,
    uri: Uri,
    headers: HeaderMap,
) -> Answer {
    let params = Params::parse(uri.query(), &["level"])?;
    let request = ReadRequest::parse(&headers, &params, &arrival)?;
    let conditions = Conditions::parse(&headers)?;
    let (found, about) = find(&*views, &key.0, (request, &arrival)).await?;
    let Some(found) = found else {
        return Err(about.on(Problem::new(Code::NotFound, "there is no such key")));
    };
    let mut response = match conditions.failed(Some(found.seq)) {
        None => {
            let share = arrival.budgets().replies.share(found.value.len())?;
            reply(OCTETS, Held::new(found.value, share).into_bytes())
        }
        Some(Failed::NoneMatch) => StatusCode::NOT_MODIFIED.into_response(),
        Some(Failed::Match) => {
            let detail = format!("the etag is \"{}\"", found.seq);
            Problem::new(Code::Precondition, detail).into_response()
        }
    };
    about.put(response.headers_mut());
    response.headers_mut().insert(header::ETAG, etag(found.seq));
    Ok(response)
}

/// A view for this request, which has no place while it waits for it.
pub(super) async fn view_for<V: Views>(
    views: &V,
    request: ReadRequest,
    arrival: &Arrival,
) -> Answer<Answerable> {
    let wait = Wait::Read(request.min_seq.map_or(0, |seq| seq.0));
    arrival.aside(wait, views.view(request)).await?
}

async fn find<V: Views>(
    views: &V,
    key: &[u8],
    (request, arrival): (ReadRequest, &Arrival),
) -> Answer<(Option<Found>, ReadHeaders)> {
    let mut attempt = Attempt::default();
    loop {
        let answerable = view_for(views, request, arrival).await?;
        let read = request.deadline.limit("reading", answerable.view.get(key, answerable.now_ms));
        match arrival.aside(Wait::Read(0), read).await?? {
            Ok(found) => return Ok((found, answerable.headers())),
            Err(error) => attempt.restart(views, (&answerable.view, arrival), error).await?,
        }
    }
}

async fn get_many<V: Views>(
    State(views): State<Arc<V>>,
    arrival: Arrival,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let params = Params::parse(uri.query(), &["level"])?;
    let request = ReadRequest::parse(&headers, &params, &arrival)?;
    let (keys, _share) = read_keys(&arrival, &headers, body).await?.into_parts();
    let mut attempt = Attempt::default();
    loop {
        let answerable = view_for(&*views, request, &arrival).await?;
        let draft = Draft::new(arrival.budgets().replies.empty());
        let read = write_found(draft, &answerable, &keys);
        let read = request.deadline.limit("reading", read);
        match arrival.aside(Wait::Read(0), read).await?? {
            Ok(draft) => {
                let mut response = draft.finish(JSON);
                answerable.headers().put(response.headers_mut());
                return Ok(response);
            }
            Err(why) => attempt.restart(&*views, (&answerable.view, &arrival), why).await?,
        }
    }
}

/// The reply to a multi-get, or that it would be too large.
async fn write_found(
    mut draft: Draft,
    answerable: &Answerable,
    keys: &[Bytes],
) -> Result<Draft, Unanswered> {
    draft.frame(format!("{{\"seq\":{},\"entries\":[", answerable.view.seq))?;
    let all_keys = keys.len();
    let mut together = Together::default();
    let mut rest = keys;
    while let Some((keys, behind)) = rest.split_at_checked(together.keys.min(rest.len())) {
        if keys.is_empty() {
            break;
        }
        let is_first = rest.len() == all_keys;
        rest = behind;
        let found = answerable.view.get_many(keys, answerable.now_ms).await?;
        together.learn(&found);
        let bytes: usize = found.iter().flatten().map(|found| found.value.len()).sum();
        let found: Vec<_> = keys.iter().cloned().zip(found).collect();
        let write = move || write_together(draft, if is_first { "" } else { "," }, &found);
        let written = if is_first && bytes <= INLINE_BYTES_MAX {
            write()
        } else {
            answerable.view.tree.ssts.env().cpu.run_bulk(write).await
        };
        draft = written?;
    }
    draft.frame("]}")?;
    Ok(draft)
}

/// Puts the entries of some keys behind what is there.
fn write_together(
    mut draft: Draft,
    mut separator: &'static str,
    found: &[(Bytes, Option<Found>)],
) -> Answer<Draft> {
    for (key, found) in found {
        draft.frame(separator)?;
        separator = ",";
        let Some(found) = found else {
            draft.frame("null")?;
            continue;
        };
        if draft.bytes() >= GET_REPLY_BYTES_MAX {
            let detail =
                format!("the reply is larger than {GET_REPLY_BYTES_MAX} bytes; ask for fewer");
            return Err(Problem::new(Code::TooLarge, detail));
        }
        draft.entry(&EntryBody { key, value: Some(&found.value), seq: found.seq })?;
    }
    Ok(draft)
}

/// How many keys are looked up together: as many as fill [`GET_TOGETHER_BYTES`] with values of the
/// largest size so far, and at most twice as many as the last time.
#[derive(Debug)]
struct Together {
    keys: usize,
    value_bytes_max: usize,
}

impl Default for Together {
    fn default() -> Self {
        Self { keys: GET_KEYS_AT_FIRST, value_bytes_max: 1 }
    }
}

impl Together {
    fn learn(&mut self, found: &[Option<Found>]) {
        let largest = found.iter().flatten().map(|found| found.value.len()).max();
        self.value_bytes_max = self.value_bytes_max.max(largest.unwrap_or(0));
        let fitting = (GET_TOGETHER_BYTES / self.value_bytes_max).max(1);
        self.keys = fitting.min(2 * self.keys).min(GET_KEYS_TOGETHER_MAX);
    }
}

#[cfg(test)]
mod tests;
