//! `GET /v1/kv`: pages of JSON, and NDJSON streams.
//!
//! **Invariants**
//! - A page, and a stream, is answered from one view. Pages of one scan may be of several views;
//!   the cursor is the last key.
//! - A stream that is whole ends with `{"end":true,…}`. One that breaks off has no end line: the
//!   connection is cut, for the status has long been sent.
//! - A page ends at its limit or at [`SCAN_PAGE_BYTES_MAX`], with a cursor; a stream holds one
//!   piece of [`PIECE_BYTES`] at a time.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use futures::stream;
use http::Uri;
use http::header::{self, HeaderMap};

use super::api::{EntryBody, JSON, NDJSON, reply, write_text};
use super::cursor::Bounds;
use super::problem::{Answer, Problem};
use super::reads::{Answerable, Attempt, ReadRequest, Views};
use super::request::{Arrival, Params};
use crate::error::Result;
use crate::limits::{SCAN_LIMIT, SCAN_LIMIT_MAX, SCAN_PAGE_BYTES_MAX};
use crate::read::scan::{Row, Scan};
use crate::types::{Direction, KeyRange, Seq};

/// What a stream hands to the connection in one go: many entries, few system calls.
const PIECE_BYTES: usize = 64 * 1024;

const PARAMS: [&str; 11] = [
    "prefix",
    "prefix_b64",
    "start",
    "start_b64",
    "end",
    "end_b64",
    "limit",
    "reverse",
    "keys_only",
    "cursor",
    "level",
];

/// A scan as it was asked for.
#[derive(Clone, Debug)]
struct Asked {
    bounds: Bounds,
    /// The bounds without what earlier pages gave.
    rest: KeyRange,
    limit: Option<usize>,
    shows: Shows,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shows {
    KeysAndValues,
    Keys,
}

pub(super) async fn scan<V: Views>(
    State(views): State<Arc<V>>,
    arrival: Arrival,
    uri: Uri,
    headers: HeaderMap,
) -> Answer {
    let params = Params::parse(uri.query(), &PARAMS)?;
    let request = ReadRequest::parse(&headers, &params, &arrival)?;
    let asked = Asked::parse(&params)?;
    let form = Form::of(&headers);
    let mut attempt = Attempt::default();
    loop {
        let answerable = views.view(request).await?;
        let answer = asked.answer(form, &answerable);
        match request.deadline.limit("scanning", answer).await? {
            Ok(mut response) => {
                answerable.headers().put(response.headers_mut());
                return Ok(response);
            }
            Err(error) => attempt.restart(&*views, error).await?,
        }
    }
}

/// How the reply looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Page,
    Stream,
}

impl Form {
    fn of(headers: &HeaderMap) -> Self {
        let accepted = headers.get_all(header::ACCEPT).iter();
        let mut types =
            accepted.filter_map(|value| value.to_str().ok()).flat_map(|text| text.split(','));
        let is_ndjson = |text: &str| {
            text.split(';')
                .next()
                .is_some_and(|essence| essence.trim().eq_ignore_ascii_case(NDJSON))
        };
        if types.any(is_ndjson) { Self::Stream } else { Self::Page }
    }
}

impl Asked {
    fn parse(params: &Params) -> Answer<Self> {
        let prefix = bound(params, "prefix", "prefix_b64")?;
        let start = bound(params, "start", "start_b64")?;
        let end = bound(params, "end", "end_b64")?;
        let range = match (prefix, start, end) {
            (Some(prefix), None, None) => KeyRange::prefix(&prefix),
            (Some(_), _, _) => {
                return Err(Problem::argument("prefix", "cannot stand beside start or end"));
            }
            (None, start, end) => KeyRange { start: start.unwrap_or_default(), end },
        };
        let direction = match params.switch("reverse")? {
            Some(true) => Direction::Reverse,
            Some(false) | None => Direction::Forward,
        };
        let bounds = Bounds { range, direction };
        let rest = match params.text("cursor")? {
            Some(cursor) => bounds.resume(cursor)?,
            None => bounds.range.clone(),
        };
        let shows = match params.switch("keys_only")? {
            Some(true) => Shows::Keys,
            Some(false) | None => Shows::KeysAndValues,
        };
        Ok(Self { bounds, rest, limit: params.count("limit")?, shows })
    }

    async fn answer(&self, form: Form, answerable: &Answerable) -> Result<Response> {
        let view = &answerable.view;
        let scan = view.scan(&self.rest, self.bounds.direction, answerable.now_ms);
        let (seq, asked) = (view.seq, self.clone());
        match form {
            Form::Page => asked.page(scan, seq).await,
            Form::Stream => asked.stream(scan, seq).await,
        }
    }

    async fn page(self, mut scan: Scan, seq: Seq) -> Result<Response> {
        let mut left = self.limit.unwrap_or(SCAN_LIMIT).min(SCAN_LIMIT_MAX);
        let mut out = format!("{{\"seq\":{seq},\"entries\":[").into_bytes();
        let mut last: Option<Bytes> = None;
        let cursor = loop {
            let Some(row) = scan.next().await? else { break None };
            if left == 0 || out.len() >= SCAN_PAGE_BYTES_MAX {
                break last.map(|key| self.bounds.cursor(&key));
            }
            left -= 1;
            if last.is_some() {
                out.push(b',');
            }
            self.shows.write(&row, &mut out);
            last = Some(row.key);
        };
        out.extend_from_slice(b"],");
        write_cursor(&mut out, cursor.as_deref());
        out.push(b'}');
        Ok(reply(JSON, out))
    }

    /// Reads the first piece before the reply's head leaves, so that most failures are honest
    /// statuses.
    async fn stream(self, scan: Scan, seq: Seq) -> Result<Response> {
        let left = self.limit.unwrap_or(usize::MAX);
        let mut lines = Lines { asked: self, scan, seq, left, last: None, state: Phase::Open };
        let first = lines.next_piece().await?;
        let rest = stream::try_unfold(lines, async |mut lines| match lines.next_piece().await {
            Ok(Some(piece)) => Ok(Some((piece, lines))),
            Ok(None) => Ok(None),
            Err(error) => {
                tracing::warn!(%error, "a stream of a scan broke off");
                Err(error)
            }
        });
        let first = stream::iter(first.map(Ok));
        Ok(reply(NDJSON, Body::from_stream(stream::StreamExt::chain(first, rest))))
    }
}

/// A bound in one of its two forms.
fn bound(params: &Params, name: &str, name_b64: &str) -> Answer<Option<Bytes>> {
    match (params.bytes(name), params.text(name_b64)?) {
        (None, None) => Ok(None),
        (Some(bytes), None) => Ok(Some(Bytes::copy_from_slice(bytes))),
        (None, Some(text)) => match URL_SAFE_NO_PAD.decode(text) {
            Ok(bytes) => Ok(Some(bytes.into())),
            Err(_) => Err(Problem::argument(name_b64, "is not base64url without padding")),
        },
        (Some(_), Some(_)) => {
            Err(Problem::argument(name_b64, format!("cannot stand beside {name}")))
        }
    }
}

fn write_cursor(out: &mut Vec<u8>, cursor: Option<&str>) {
    out.extend_from_slice(b"\"cursor\":");
    match cursor {
        Some(cursor) => write_text(out, cursor),
        None => out.extend_from_slice(b"null"),
    }
}

impl Shows {
    fn write(self, row: &Row, out: &mut Vec<u8>) {
        let value = (self == Self::KeysAndValues).then_some(&*row.value);
        EntryBody { key: &row.key, value, seq: row.seq }.write(out);
    }
}

/// A stream under way.
struct Lines {
    asked: Asked,
    scan: Scan,
    seq: Seq,
    left: usize,
    last: Option<Bytes>,
    state: Phase,
}

enum Phase {
    Open,
    Ended,
}

impl Lines {
    /// The next piece of whole lines; `None` after the end line.
    async fn next_piece(&mut self) -> Result<Option<Bytes>> {
        if matches!(self.state, Phase::Ended) {
            return Ok(None);
        }
        let mut out = Vec::with_capacity(PIECE_BYTES);
        while out.len() < PIECE_BYTES {
            let row = self.scan.next().await?;
            let cursor = match (row, self.left) {
                (Some(row), 1..) => {
                    self.left -= 1;
                    self.asked.shows.write(&row, &mut out);
                    out.push(b'\n');
                    self.last = Some(row.key);
                    continue;
                }
                (Some(_), 0) => self.last.as_ref().map(|key| self.asked.bounds.cursor(key)),
                (None, _) => None,
            };
            out.extend_from_slice(format!("{{\"end\":true,\"seq\":{},", self.seq).as_bytes());
            write_cursor(&mut out, cursor.as_deref());
            out.extend_from_slice(b"}\n");
            self.state = Phase::Ended;
            break;
        }
        Ok(Some(out.into()))
    }
}
