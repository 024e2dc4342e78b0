//! Requests and answers of the fake S3: what is asked, done to the objects, and told.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use http_body_util::Full;
use hyper::Response;

use super::faults::{Mangle, Verb};
use super::objects::{Condition, Object, Objects, Refused};
use super::{BUCKET, xml};

/// Keys of one page of a listing, as S3's.
const PAGE_KEYS: usize = 1_000;

/// A request, understood.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    act: Act,
    key: String,
    body: Bytes,
    query: BTreeMap<String, String>,
    /// Conditions of reads.
    if_match: Option<String>,
    if_none_match: Option<String>,
    /// Condition of a write.
    condition: Condition,
    range: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Get,
    Head,
    Put,
    Delete,
    List,
    BulkDelete,
    BeginUpload,
    PutPart,
    CompleteUpload,
    AbortUpload,
    CreateBucket,
}

/// Whether a request changed the bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Made,
    None,
}

/// An answer that is not sent yet.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Bytes,
    change: Change,
}

impl Answer {
    pub(super) fn error(status: u16, code: &str) -> Self {
        let body = format!("<Error><Code>{code}</Code><Message>{code}</Message></Error>");
        Self { body: body.into(), ..Self::ok(status) }
    }

    fn ok(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Bytes::new(), change: Change::None }
    }

    fn changed(self) -> Self {
        Self { change: Change::Made, ..self }
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn xml(body: String) -> Self {
        Self { body: body.into(), ..Self::ok(200) }.with("content-type", "application/xml")
    }

    pub(super) fn change(&self) -> Change {
        self.change
    }

    /// A page for people, from somebody who is not the store.
    pub(super) fn page(status: u16) -> Self {
        let body = format!("<html><head><title>{status}</title></head><body>Sorry</body></html>");
        let page = Self::ok(status).with("content-type", "text/html; charset=utf-8");
        // An ETag of its own, as web servers give to their pages.
        Self { body: body.into(), ..page }.with("etag", "\"64f1c0de-99\"")
    }

    /// Changes the body on its way.
    pub(super) fn mangle(&mut self, mangle: Mangle, random: u64) {
        let length = self.body.len();
        match mangle {
            // The length is told in full, so the client sees the connection end within the body.
            Mangle::Cut => {
                self.headers.push(("content-length", length.to_string()));
                self.body.truncate(length / 2);
            }
            Mangle::Shortened => self.body.truncate(length / 2),
            Mangle::Garbled if length > 0 => {
                let mut bytes = self.body.to_vec();
                let place = usize::try_from(random >> 3).unwrap_or(usize::MAX) % length;
                bytes[place] ^= 1 << (random & 7);
                self.body = bytes.into();
            }
            Mangle::Garbled => {}
        }
    }

    pub(super) fn into_response(self) -> Response<Full<Bytes>> {
        let mut response = Response::builder().status(self.status);
        for (name, value) in self.headers {
            response = response.header(name, value);
        }
        response.body(Full::new(self.body)).unwrap_or_else(|_| {
            let mut broken = Response::new(Full::default());
            *broken.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            broken
        })
    }
}

impl From<Refused> for Answer {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Condition => Self::error(412, "PreconditionFailed"),
            Refused::Missing => Self::error(404, "NoSuchKey"),
            Refused::NoUpload => Self::error(404, "NoSuchUpload"),
            Refused::InvalidPart => Self::error(400, "InvalidPart"),
            Refused::TooSmall => Self::error(400, "EntityTooSmall"),
        }
    }
}

impl Asked {
    /// Understands a request, or answers it.
    pub(super) fn parse(head: &http::request::Parts, body: Bytes) -> Result<Self, Answer> {
        let path = head.uri.path().trim_start_matches('/');
        let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
        if bucket != BUCKET {
            return Err(Answer::error(404, "NoSuchBucket"));
        }
        let key = decode(key);
        let query = head.uri.query().unwrap_or_default();
        let query: BTreeMap<_, _> = query
            .split('&')
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .map(|(name, value)| (decode(name), decode(&value.replace('+', " "))))
            .collect();
        let has = |name: &str| query.contains_key(name);
        let act = match (&head.method, key.is_empty()) {
            (&Method::GET, true) => Act::List,
            (&Method::PUT, true) => Act::CreateBucket,
            (&Method::POST, true) if has("delete") => Act::BulkDelete,
            (&Method::GET, false) => Act::Get,
            (&Method::HEAD, _) => Act::Head,
            (&Method::PUT, false) if has("uploadId") => Act::PutPart,
            (&Method::PUT, false) => Act::Put,
            (&Method::POST, false) if has("uploads") => Act::BeginUpload,
            (&Method::POST, false) if has("uploadId") => Act::CompleteUpload,
            (&Method::DELETE, false) if has("uploadId") => Act::AbortUpload,
            (&Method::DELETE, false) => Act::Delete,
            _ => return Err(Answer::error(405, "MethodNotAllowed")),
        };
        let header = |name: &str| header(&head.headers, name);
        let condition = match (header("if-none-match"), header("if-match")) {
            (Some(_), _) => Condition::Absent,
            (None, Some(e_tag)) => Condition::Is(e_tag),
            (None, None) => Condition::None,
        };
        Ok(Self {
            act,
            key,
            body,
            query,
            if_match: header("if-match"),
            if_none_match: header("if-none-match"),
            condition,
            range: header("range"),
        })
    }

    pub(super) fn verb(&self) -> Verb {
        match self.act {
            Act::Get | Act::Head => Verb::Get,
            Act::Put | Act::CreateBucket => Verb::Put,
            Act::Delete | Act::BulkDelete => Verb::Delete,
            Act::List => Verb::List,
            Act::BeginUpload | Act::PutPart | Act::CompleteUpload | Act::AbortUpload => {
                Verb::Multipart
            }
        }
    }

    /// The key, or the prefix of a listing.
    pub(super) fn key(&self) -> &str {
        if self.act == Act::List { self.parameter("prefix") } else { &self.key }
    }

    pub(super) fn without_conditions(&self) -> Self {
        let condition = Condition::None;
        Self { if_match: None, if_none_match: None, condition, ..self.clone() }
    }

    pub(super) fn without_write_condition(&self) -> Self {
        Self { condition: Condition::None, ..self.clone() }
    }

    fn parameter(&self, name: &str) -> &str {
        self.query.get(name).map_or("", String::as_str)
    }
}

/// What refuses a conditional write, if anything does.
pub(super) fn refusal(objects: &Objects, asked: &Asked) -> Option<Answer> {
    let is_write = asked.act == Act::Put;
    let judged = is_write.then(|| objects.judge(&asked.key, &asked.condition));
    judged.and_then(Result::err).map(Answer::from)
}

/// Does what is asked.
pub(super) fn apply(objects: &Objects, asked: &Asked) -> Answer {
    match asked.act {
        Act::Get | Act::Head if asked.key.is_empty() => Answer::ok(200),
        Act::Get | Act::Head => match objects.get(&asked.key) {
            Some(object) => read(&object, asked),
            None => Answer::error(404, "NoSuchKey"),
        },
        Act::Put => match objects.put(&asked.key, asked.body.clone(), &asked.condition) {
            Ok(e_tag) => Answer::ok(200).with("etag", e_tag).changed(),
            Err(refused) => refused.into(),
        },
        Act::Delete if objects.delete(&asked.key) => Answer::ok(204).changed(),
        Act::Delete => Answer::ok(204),
        Act::CreateBucket => Answer::ok(200),
        Act::List => list(objects, asked),
        Act::BulkDelete => bulk_delete(objects, asked),
        Act::BeginUpload | Act::PutPart | Act::CompleteUpload | Act::AbortUpload => {
            multipart(objects, asked).unwrap_or_else(Answer::from)
        }
    }
}

fn read(object: &Object, asked: &Asked) -> Answer {
    let is = |wanted: &Option<String>| {
        wanted.as_ref().map(|wanted| wanted == "*" || *wanted == object.e_tag)
    };
    if is(&asked.if_match) == Some(false) {
        return Answer::error(412, "PreconditionFailed");
    }
    let answer = Answer::ok(200)
        .with("etag", object.e_tag.clone())
        .with("last-modified", xml::rfc2822(object.modified_ms))
        .with("accept-ranges", "bytes");
    if is(&asked.if_none_match) == Some(true) {
        return Answer { status: 304, ..answer };
    }
    let length = object.bytes.len();
    if asked.act == Act::Head {
        return answer.with("content-length", length.to_string());
    }
    match asked.range.as_deref().map(|range| parse_range(range, length)) {
        None => Answer { body: object.bytes.clone(), ..answer },
        Some(Some(range)) => {
            let told = format!("bytes {}-{}/{length}", range.start, range.end - 1);
            let body = object.bytes.slice(range);
            Answer { status: 206, body, ..answer }.with("content-range", told)
        }
        Some(None) => Answer::error(416, "InvalidRange"),
    }
}

/// `bytes=1-2`, `bytes=1-` and `bytes=-2`, cut to the length; `None` where nothing is left.
fn parse_range(text: &str, length: usize) -> Option<Range<usize>> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let range = if first.is_empty() {
        length.saturating_sub(last.parse().ok()?)..length
    } else if last.is_empty() {
        first.parse().ok()?..length
    } else {
        first.parse().ok()?..length.min(last.parse::<usize>().ok()?.checked_add(1)?)
    };
    (!range.is_empty()).then_some(range)
}

fn list(objects: &Objects, asked: &Asked) -> Answer {
    let delimiter = Some(asked.parameter("delimiter")).filter(|delimiter| !delimiter.is_empty());
    let after = asked.parameter("start-after").max(asked.parameter("continuation-token"));
    let limit = asked.parameter("max-keys").parse().unwrap_or(PAGE_KEYS).min(PAGE_KEYS);
    let page = objects.list(asked.parameter("prefix"), delimiter, after, limit);
    Answer::xml(xml::listing(&page))
}

fn bulk_delete(objects: &Objects, asked: &Asked) -> Answer {
    let keys = xml::texts(&String::from_utf8_lossy(&asked.body), "Key");
    let changed = keys.iter().filter(|key| objects.delete(key)).count() > 0;
    let answer = Answer::xml(xml::deleted(&keys));
    if changed { answer.changed() } else { answer }
}

fn multipart(objects: &Objects, asked: &Asked) -> Result<Answer, Refused> {
    let id = asked.parameter("uploadId");
    let answer = match asked.act {
        Act::BeginUpload => {
            let id = objects.begin_upload(&asked.key);
            Answer::xml(format!(
                "<InitiateMultipartUploadResult><UploadId>{id}</UploadId>\
                 </InitiateMultipartUploadResult>"
            ))
        }
        Act::PutPart => {
            let number = asked.parameter("partNumber").parse().map_err(|_| Refused::InvalidPart)?;
            let e_tag = objects.put_part(id, number, asked.body.clone())?;
            Answer::ok(200).with("etag", e_tag)
        }
        Act::CompleteUpload => {
            let body = String::from_utf8_lossy(&asked.body);
            let numbers = xml::texts(&body, "PartNumber").into_iter().map(|text| text.parse());
            let numbers: Vec<_> =
                numbers.collect::<Result<_, _>>().map_err(|_| Refused::InvalidPart)?;
            let named: Vec<_> = numbers.into_iter().zip(xml::texts(&body, "ETag")).collect();
            let e_tag = xml::escape(&objects.complete_upload(id, &named)?);
            Answer::xml(format!(
                "<CompleteMultipartUploadResult><ETag>{e_tag}</ETag>\
                 </CompleteMultipartUploadResult>"
            ))
            .changed()
        }
        _ => {
            objects.abort_upload(id)?;
            Answer::ok(204)
        }
    };
    Ok(answer)
}

fn decode(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
}

fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_cut_to_the_object() {
        let rows = [
            ("bytes=0-3", Some(0..4)),
            ("bytes=8-20", Some(8..10)),
            ("bytes=5-", Some(5..10)),
            ("bytes=-3", Some(7..10)),
            ("bytes=10-12", None),
            ("bytes=a-b", None),
        ];
        for (text, want) in rows {
            assert_eq!(parse_range(text, 10), want, "{text}");
        }
    }
}
