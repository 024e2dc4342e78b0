//! The read routes of writer and readers, over whatever views they have.
//!
//! **Life of a read**: headers and query are understood or refused; [`Views::view`] gives a view
//! that is new enough; the view answers. When an object of the view was collected meanwhile
//! (`NotFound`), the view is reloaded and the request restarted, once, since no byte of the answer
//! has left yet. A missing object is never "not found" to a client.

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
use super::conditions::{Conditions, Failed};
use super::keys::{self, Key};
use super::problem::{Answer, Code, Problem};
use super::request::{Arrival, Deadline, Params, Staleness, min_seq, staleness};
use super::scans::scan;
use crate::error::{Error, Result};
use crate::limits::GET_VALUES_BYTES_MAX;
use crate::lsm::visible::Found;
use crate::read::view::View;
use crate::types::Seq;

/// Keys of a multi-get that are looked up together: bounds the values in memory beyond the limit
/// of the reply.
const GET_KEYS_TOGETHER: usize = 64;

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

    /// Learns of the newest manifest: an object of the last view was gone.
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

/// Whether a request may still be restarted.
#[derive(Debug, Default)]
pub(super) enum Attempt {
    #[default]
    First,
    Second,
}

impl Attempt {
    /// Reloads and returns, so that the caller tries again; or says what the client is told.
    pub(super) async fn restart<V: Views>(&mut self, views: &V, error: Error) -> Answer<()> {
        match (&self, &error) {
            (Self::First, Error::NotFound(object)) => {
                tracing::info!(%object, "an object of the view is gone; restarting the request");
                *self = Self::Second;
                Ok(views.reload().await?)
            }
            _ => Err(error.into()),
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
    let (found, about) = find(&*views, &key.0, request).await?;
    let Some(found) = found else {
        return Err(about.on(Problem::new(Code::NotFound, "there is no such key")));
    };
    let mut response = match conditions.failed(Some(found.seq)) {
        None => reply(OCTETS, found.value),
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

async fn find<V: Views>(
    views: &V,
    key: &[u8],
    request: ReadRequest,
) -> Answer<(Option<Found>, ReadHeaders)> {
    let mut attempt = Attempt::default();
    loop {
        let answerable = views.view(request).await?;
        let read = answerable.view.get(key, answerable.now_ms);
        match request.deadline.limit("reading", read).await? {
            Ok(found) => return Ok((found, answerable.headers())),
            Err(error) => attempt.restart(views, error).await?,
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
    let keys = read_keys(&arrival, &headers, body).await?;
    let mut attempt = Attempt::default();
    loop {
        let answerable = views.view(request).await?;
        let read = request.deadline.limit("reading", write_found(&answerable, &keys)).await?;
        match read {
            Ok(body) => {
                let mut response = reply(JSON, body?);
                answerable.headers().put(response.headers_mut());
                return Ok(response);
            }
            Err(error) => attempt.restart(&*views, error).await?,
        }
    }
}

/// The reply to a multi-get, or that it would be too large.
async fn write_found(answerable: &Answerable, keys: &[Bytes]) -> Result<Answer<Vec<u8>>> {
    let mut out = format!("{{\"seq\":{},\"entries\":[", answerable.view.seq).into_bytes();
    let mut value_bytes = 0;
    let mut separator: &[u8] = b"";
    for keys in keys.chunks(GET_KEYS_TOGETHER) {
        let found = answerable.view.get_many(keys, answerable.now_ms).await?;
        for (key, found) in keys.iter().zip(found) {
            out.extend_from_slice(separator);
            separator = b",";
            let Some(found) = found else {
                out.extend_from_slice(b"null");
                continue;
            };
            value_bytes += found.value.len();
            EntryBody { key, value: Some(&found.value), seq: found.seq }.write(&mut out);
        }
        if value_bytes > GET_VALUES_BYTES_MAX {
            let detail =
                format!("the values are larger than {GET_VALUES_BYTES_MAX} bytes; ask for fewer");
            return Ok(Err(Problem::new(Code::TooLarge, detail)));
        }
    }
    out.extend_from_slice(b"]}");
    Ok(Ok(out))
}

#[cfg(test)]
mod tests;
