//! `GET /v1/kv`: pages of JSON, and NDJSON streams.
//!
//! **Invariants**
//! - A page, and a stream, is answered from one view. Pages of one scan may be of several views;
//!   the cursor is the last key.
//! - A stream that is whole ends with `{"end":true,…}`. One that breaks off has no end line: the
//!   connection is cut, for the status has long been sent.
//! - A page ends at its limit or at [`SCAN_PAGE_BYTES_MAX`], with a cursor; a stream writes one
//!   piece of [`PIECE_BYTES`] at a time, or of one larger entry.
//! - Both are counted against the budget of replies. A page, or the first piece, that finds no room
//!   is refused. A later piece waits for it, holding nothing itself: what it waits for are replies
//!   that come to their end, or whose clients are cut off.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use futures::stream;
use http::Uri;
use http::header::{self, HeaderMap};
use tracing::{Instrument as _, Span};

use super::api::{EntryBody, JSON, NDJSON, reply, write_text};
use super::budget::Budget;
use super::cursor::Bounds;
use super::problem::{Answer, Problem};
use super::reads::{Answerable, Attempt, ReadRequest, Unanswered, Views};
use super::reply::Draft;
use super::request::{Arrival, Params};
use crate::error::Result;
use crate::limits::{KEY_BYTES_MAX, SCAN_LIMIT, SCAN_LIMIT_MAX, SCAN_PAGE_BYTES_MAX};
use crate::read::scan::{Row, Scan};
use crate::types::{Direction, KeyRange, Seq};

/// What a stream hands to the connection in one go: many entries, few system calls.
const PIECE_BYTES: usize = 64 * 1024;
/// Room for an end line: its cursor is the last key in base64.
const END_BYTES_MAX: usize = 2 * KEY_BYTES_MAX;
/// How long a piece waits for room: as long as a client that takes nothing of its reply is given
/// by default.
const ROOM_WAIT_MAX: Duration = Duration::from_secs(30);

/// Base64url; padding may be left out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

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
        let answer = asked.answer(form, &answerable, &arrival.budgets().replies);
        match request.deadline.limit("scanning", answer).await? {
            Ok(mut response) => {
                answerable.headers().put(response.headers_mut());
                return Ok(response);
            }
            Err(why) => attempt.restart(&*views, &answerable.view, why).await?,
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

    async fn answer(
        &self,
        form: Form,
        answerable: &Answerable,
        room: &Budget,
    ) -> Result<Response, Unanswered> {
        let view = &answerable.view;
        let scan = view.scan(&self.rest, self.bounds.direction, answerable.now_ms);
        let (seq, asked) = (view.seq, self.clone());
        match form {
            Form::Page => asked.page(scan, seq, Draft::new(room.empty())).await,
            Form::Stream => asked.stream(scan, seq, room.clone()).await,
        }
    }

    async fn page(
        self,
        mut scan: Scan,
        seq: Seq,
        mut draft: Draft,
    ) -> Result<Response, Unanswered> {
        let mut left = self.limit.unwrap_or(SCAN_LIMIT).min(SCAN_LIMIT_MAX);
        draft.frame(format!("{{\"seq\":{seq},\"entries\":["))?;
        let mut last: Option<Bytes> = None;
        let cursor = loop {
            let Some(row) = scan.next().await? else { break None };
            if left == 0 || draft.bytes() >= SCAN_PAGE_BYTES_MAX {
                break last.map(|key| self.bounds.cursor(&key));
            }
            left -= 1;
            if last.is_some() {
                draft.frame(",")?;
            }
            draft.entry(&self.shows.of(&row))?;
            last = Some(row.key);
        };
        draft.frame("],")?;
        draft.frame(cursor_field(cursor.as_deref()))?;
        draft.frame("}")?;
        Ok(draft.finish(JSON))
    }

    /// Reads the first piece before the reply's head leaves, so that most failures are honest
    /// statuses.
    async fn stream(self, scan: Scan, seq: Seq, room: Budget) -> Result<Response, Unanswered> {
        let left = self.limit.unwrap_or(usize::MAX);
        let state = Phase::Fresh;
        let mut lines =
            Lines { asked: self, scan, seq, room, left, held_back: None, last: None, state };
        let first = lines.next_piece().await?;
        // The rest is read by the connection, after the request's own future has ended.
        let span = Span::current();
        let rest = stream::try_unfold(lines, move |mut lines| {
            let span = span.clone();
            let piece = async move {
                match lines.next_piece().await {
                    Ok(piece) => Ok(piece.map(|piece| (piece, lines))),
                    Err(why) => {
                        tracing::warn!(?why, "a stream of a scan broke off");
                        Err(io::Error::other("the scan broke off"))
                    }
                }
            };
            piece.instrument(span)
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
        (None, Some(text)) => match BASE64.decode(text) {
            Ok(bytes) => Ok(Some(bytes.into())),
            Err(_) => Err(Problem::argument(name_b64, "is not base64url")),
        },
        (Some(_), Some(_)) => {
            Err(Problem::argument(name_b64, format!("cannot stand beside {name}")))
        }
    }
}

/// `"cursor":"…"`, or null.
fn cursor_field(cursor: Option<&str>) -> Vec<u8> {
    let mut out = b"\"cursor\":".to_vec();
    match cursor {
        Some(cursor) => write_text(&mut out, cursor),
        None => out.extend_from_slice(b"null"),
    }
    out
}

impl Shows {
    fn of(self, row: &Row) -> EntryBody<'_> {
        let value = (self == Self::KeysAndValues).then_some(&*row.value);
        EntryBody { key: &row.key, value, seq: row.seq }
    }
}

/// A stream under way.
struct Lines {
    asked: Asked,
    scan: Scan,
    seq: Seq,
    room: Budget,
    left: usize,
    /// Read, and too large for the piece before.
    held_back: Option<Row>,
    last: Option<Bytes>,
    state: Phase,
}

enum Phase {
    /// Nothing was sent.
    Fresh,
    Open,
    Ended,
}

impl Lines {
    /// The next piece of whole lines; `None` after the end line.
    async fn next_piece(&mut self) -> Result<Option<Bytes>, Unanswered> {
        if matches!(self.state, Phase::Ended) {
            return Ok(None);
        }
        let mut next = self.next_row().await?;
        let shows = self.asked.shows;
        let line_bytes = |row: &Row| shows.of(row).written_bytes() + 1;
        let room = next.as_ref().map_or(0, line_bytes).max(PIECE_BYTES);
        let share = match self.state {
            Phase::Fresh => self.room.share(room + END_BYTES_MAX)?,
            Phase::Open | Phase::Ended => {
                self.room.share_within(room + END_BYTES_MAX, ROOM_WAIT_MAX).await?
            }
        };
        let mut draft = Draft::with_room(room + END_BYTES_MAX, share);
        self.state = Phase::Open;
        while let Some(row) = next {
            if draft.bytes() + line_bytes(&row) > room {
                self.held_back = Some(row);
                return Ok(Some(draft.into_bytes()));
            }
            self.left -= 1;
            draft.entry(&shows.of(&row))?;
            draft.frame("\n")?;
            self.last = Some(row.key);
            next = self.next_row().await?;
        }
        draft.frame(self.end_line().await?)?;
        self.state = Phase::Ended;
        Ok(Some(draft.into_bytes()))
    }

    /// The next row within the limit.
    async fn next_row(&mut self) -> Result<Option<Row>> {
        match self.held_back.take() {
            None if self.left == 0 => Ok(None),
            None => self.scan.next().await,
            row => Ok(row),
        }
    }

    /// What follows the last row: with a cursor where only the limit ended the scan.
    async fn end_line(&mut self) -> Result<Vec<u8>> {
        let more = self.left == 0 && self.scan.next().await?.is_some();
        let last = self.last.as_ref().filter(|_| more);
        let cursor = last.map(|key| self.asked.bounds.cursor(key));
        let head = format!("{{\"end\":true,\"seq\":{},", self.seq);
        Ok([head.as_bytes(), &cursor_field(cursor.as_deref()), b"}\n"].concat())
    }
}
