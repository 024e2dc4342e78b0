//! `GET /v1/kv`: pages of JSON, and NDJSON streams.
//!
//! **Invariants**
//! - A page, and a stream, is answered from one view. Pages of one scan may be of several views;
//!   the cursor is how far the scan has come.
//! - A page ends at its limit, at [`SCAN_PAGE_BYTES_MAX`](crate::limits::SCAN_PAGE_BYTES_MAX), if
//!   there is no room for more, or just before its deadline, with a cursor: one that went through
//!   many keys that are not live may have no entry at all.
//! - Both are counted against the budget of replies. A page, or the first piece, that finds no room
//!   is refused. A later piece waits for it, holding nothing itself: what it waits for are replies
//!   that come to their end, or whose clients are cut off.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use http::Uri;
use http::header::{self, HeaderMap};
use tokio::time::{Instant, timeout_at};

use super::api::{JSON, NDJSON, reply, write_text};
use super::budget::Budget;
use super::cursor::Bounds;
use super::places::ScanSeat;
use super::problem::{Answer, Code, Problem};
use super::reads::{Answerable, Attempt, ReadRequest, Unanswered, Views, view_for};
use super::request::{Arrival, Params};
use super::rows::{Form, Rows, Shows, Slices, Then};
use super::stream::{Lines, Phase, body};
use crate::error::Result;
use crate::limits::{SCAN_LIMIT, SCAN_LIMIT_MAX};
use crate::read::scan::Position;
use crate::types::{Direction, KeyRange};

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
pub(super) struct Asked {
    bounds: Bounds,
    /// The bounds without what earlier pages gave.
    rest: KeyRange,
    limit: Option<usize>,
    shows: Shows,
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
        let answerable = view_for(&*views, request, &arrival).await?;
        let seat = arrival.scan_seat(form)?;
        let due = request.deadline.early();
        let room = arrival.budgets().replies.clone();
        match asked.answer(form, &answerable, room, (due, seat)).await {
            Ok(mut response) => {
                answerable.headers().put(response.headers_mut());
                return Ok(response);
            }
            Err(why) => attempt.restart(&*views, (&answerable.view, &arrival), why).await?,
        }
    }
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
        room: Budget,
        (due, seat): (Instant, ScanSeat),
    ) -> Result<Response, Unanswered> {
        let view = &answerable.view;
        let scan = view.scan(&self.rest, self.bounds.direction, answerable.now_ms);
        let left = match form {
            Form::Page => self.limit.unwrap_or(SCAN_LIMIT).min(SCAN_LIMIT_MAX),
            Form::Stream => self.limit.unwrap_or(usize::MAX),
        };
        let rows = Rows::new(scan, (self.shows, form), left, room.clone());
        let env = view.tree.ssts.env();
        let slices = Slices::new(rows, env.cpu.clone(), Arc::clone(&env.clock));
        let (asked, seq) = (self.clone(), view.seq);
        match form {
            Form::Page => {
                let head = format!("{{\"seq\":{seq},\"entries\":[");
                asked.page(slices, &head, due).await
            }
            Form::Stream => {
                let lines = Lines { asked, slices, seq, room, state: Phase::Fresh };
                Ok(reply(NDJSON, body(lines, due, seat).await?))
            }
        }
    }

    async fn page(
        self,
        mut slices: Slices,
        head: &str,
        due: Instant,
    ) -> Result<Response, Unanswered> {
        slices.rows().begin(head)?;
        let is_whole = loop {
            match slices.next(Some(due)).await? {
                Some(Then::NeedInput) => {
                    match timeout_at(due, slices.rows().scan_mut().feed()).await {
                        Ok(fed) => fed?,
                        Err(_) => break false,
                    }
                }
                Some(Then::End) => break !slices.rows().is_cut_off(),
                Some(Then::Pause) if !has_passed(due) => {}
                Some(Then::Pause | Then::Full | Then::NoRoom(_)) | None => break false,
            }
        };
        let rows = slices.rows();
        let cursor = (!is_whole).then(|| self.cursor(rows.position()));
        let Some(mut draft) = rows.take_draft() else {
            return Err(Problem::new(Code::Internal, "a page without a draft").into());
        };
        draft.frame("],")?;
        draft.frame(cursor_field(cursor.as_deref()))?;
        draft.frame("}")?;
        Ok(draft.finish(JSON))
    }

    /// The cursor of a page or a stream that came this far.
    pub(super) fn cursor(&self, position: Position<'_>) -> String {
        self.bounds.cursor(&self.rest, position)
    }
}

#[expect(clippy::disallowed_methods, reason = "deadlines follow the clock of timers")]
fn has_passed(due: Instant) -> bool {
    Instant::now() >= due
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
pub(super) fn cursor_field(cursor: Option<&str>) -> Vec<u8> {
    let mut out = b"\"cursor\":".to_vec();
    match cursor {
        Some(cursor) => write_text(&mut out, cursor),
        None => out.extend_from_slice(b"null"),
    }
    out
}
