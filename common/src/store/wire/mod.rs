//! The HTTP client beneath the cloud stores: lets through what the store itself said, and keeps
//! the status and the code of everything else, which `object_store` would blur, see [`Refusal`].
//!
//! An ingress, a proxy or a captive portal between us and the store answers with statuses that have
//! a meaning to `object_store` (404 "absent", 412 "lost the race", 200 "done") and without the
//! store's code, or with a page for people. Such an answer becomes a [`Refusal`] without a code.
//!
//! The `Date` of each answer that is the store's own feeds its clock, see [`StoreClock`].
//!
//! **Invariants**
//! - Only answers to requests at or below the bucket's own address are judged, see [`Home`]: the
//!   client also fetches tokens, and the services that give them speak as they like.
//! - No redirect is followed: what another server says is not the store's answer, see [`client`].
//! - An answer is foreign only if it lacks what this store always sends for this request, or has
//!   what it never sends. A request that is not known here is convicted only by a page for people.
//!
//! What a success is, beside a status:
//!
//! | request | S3, GCS | Azure |
//! |---|---|---|
//! | GET, HEAD of an object | no `text/html` | no `text/html` |
//! | PUT, DELETE | no body | no body |
//! | PUT that copies | `CopyObjectResult`, `CopyPartResult`, `Error` | no body |
//! | listing | `ListBucketResult` | `EnumerationResults` |
//! | bulk deletion | `DeleteResult`, `Error` | `multipart/mixed` |
//! | POST of an upload | `InitiateMultipartUploadResult`, `CompleteMultipartUploadResult`, `Error` | never sent |
//! | 304 | the ETag that was asked about; without one, an id of the request | the same |
//!
//! **Source**: S3 API, "Response elements" of each action; GCS, "XML API"; Azure, "Blob service
//! REST API", of which "Conditional headers" promises no ETag with a 304.

use std::error::Error as _;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_TYPE, DATE, ETAG, IF_NONE_MATCH};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use http_body_util::BodyExt;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
    HttpResponseBody, HttpService, ReqwestConnector,
};

pub(super) use self::client::is_set;
pub(super) use self::home::{Home, Provider};
use super::answer::Refusal;
use super::date::StoreClock;

mod client;
mod home;
#[cfg(test)]
mod tests;

/// Error bodies are a few hundred bytes; more is not read for its code.
const CODE_SCAN_BYTES: usize = 4096;
/// Largest document that answers a listing or a bulk deletion: 1,000 names of 1,024 bytes, escaped.
const DOCUMENT_BYTES_MAX: usize = 16 << 20;
/// What a store names each request by in its answer, and nobody else does.
const REQUEST_IDS: [&str; 4] =
    ["x-amz-request-id", "x-amz-id-2", "x-guploader-uploadid", "x-ms-request-id"];
/// The headers of a PUT that copies, and is answered with a document.
const COPIES: [&str; 2] = ["x-amz-copy-source", "x-goog-copy-source"];

/// Makes clients that keep status and code.
#[derive(Debug)]
pub(super) struct Connector {
    home: Home,
    clock: Arc<StoreClock>,
}

#[derive(Debug)]
struct Client {
    /// For requests of the store.
    beneath: HttpClient,
    /// For those who hand out credentials.
    elsewhere: HttpClient,
    home: Home,
    clock: Arc<StoreClock>,
}

impl Connector {
    /// A connector to the store at `home`, that tells `clock` what time the store says it is.
    pub(super) fn new(home: Home, clock: Arc<StoreClock>) -> Self {
        Self { home, clock }
    }
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let beneath = HttpClient::new(client::client(options)?);
        let elsewhere = ReqwestConnector::default().connect(options)?;
        let (home, clock) = (self.home.clone(), Arc::clone(&self.clock));
        Ok(HttpClient::new(Client { beneath, elsewhere, home, clock }))
    }
}

/// What an answer has to be like to be the store's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    /// Bytes of an object, or anything else that no store labels as a page for people.
    NoPage,
    /// Nothing: the answer to a PUT or a DELETE.
    Nothing,
    /// An XML document with one of these roots.
    Document(&'static [&'static str]),
    /// Answers to the parts of a batch.
    Multipart,
}

#[async_trait]
impl HttpService for Client {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        if !self.home.is_of(request.uri()) {
            return self.elsewhere.execute(request).await;
        }
        let expected = Expected::of(self.home.provider, &request);
        let known = request.headers().get(IF_NONE_MATCH).cloned();
        let is_read = request.method() == Method::GET || request.method() == Method::HEAD;
        let response = self.beneath.execute(request).await?;
        let date = response.headers().get(DATE).and_then(|date| date.to_str().ok());
        let told = date.and_then(|date| self.clock.told(date));
        let answer = match response.status() {
            StatusCode::NOT_MODIFIED => {
                let is_own = is_read && is_unchanged(response.headers(), known.as_ref());
                if is_own { Ok(response) } else { Err(foreign(StatusCode::NOT_MODIFIED)) }
            }
            status if status.is_success() => verified(response, expected).await,
            _ => refused(response).await,
        };
        if let Some(told) = told
            && is_own(&answer)
        {
            self.clock.believe(told);
        }
        answer
    }
}

/// Whether a 304 is about the ETag that was asked about. One without an ETag is, if it is the
/// store's.
fn is_unchanged(headers: &HeaderMap, known: Option<&HeaderValue>) -> bool {
    let opaque = |e_tag: &HeaderValue| {
        let e_tag = e_tag.as_bytes();
        e_tag.strip_prefix(b"W/").unwrap_or(e_tag).to_owned()
    };
    match (headers.get(ETAG), known) {
        (_, None) => false,
        (Some(e_tag), Some(known)) => opaque(e_tag) == opaque(known),
        (None, Some(_)) => REQUEST_IDS.iter().any(|id| headers.contains_key(*id)),
    }
}

impl Expected {
    fn of(provider: Provider, request: &HttpRequest) -> Self {
        let method = request.method();
        let query = request.uri().query().unwrap_or_default();
        let name = |pair: &str| pair.split('=').next().unwrap_or_default().to_owned();
        let asks = |what: &str| query.split('&').any(|pair| pair == what || name(pair) == what);
        let copies = COPIES.iter().any(|header| request.headers().contains_key(*header));
        match (provider, method.as_str()) {
            (Provider::S3 | Provider::Gcs, "PUT") if copies => {
                Self::Document(&["CopyObjectResult", "CopyPartResult", "Error"])
            }
            (_, "PUT" | "DELETE") => Self::Nothing,
            (Provider::Azure, "GET") if asks("comp=list") => {
                Self::Document(&["EnumerationResults"])
            }
            (Provider::Azure, "POST") if asks("comp=batch") => Self::Multipart,
            (Provider::S3 | Provider::Gcs, "GET") if asks("list-type") => {
                Self::Document(&["ListBucketResult"])
            }
            (Provider::S3 | Provider::Gcs, "POST") if asks("delete") => {
                Self::Document(&["DeleteResult", "Error"])
            }
            (Provider::S3 | Provider::Gcs, "POST") if asks("uploads") || asks("uploadId") => {
                Self::Document(&[
                    "InitiateMultipartUploadResult",
                    "CompleteMultipartUploadResult",
                    "Error",
                ])
            }
            _ => Self::NoPage,
        }
    }
}

/// A success, if it is the store's.
async fn verified(response: HttpResponse, expected: Expected) -> Result<HttpResponse, HttpError> {
    let status = response.status();
    let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let is_kind = |prefix| {
        let kind = kind.unwrap_or_default().trim_start().to_ascii_lowercase();
        kind.starts_with(prefix)
    };
    let by_kind = match expected {
        Expected::NoPage => Some(!is_kind("text/html")),
        Expected::Multipart => Some(is_kind("multipart/mixed")),
        Expected::Nothing | Expected::Document(_) => None,
    };
    if let Some(is_own) = by_kind {
        return if is_own { Ok(response) } else { Err(foreign(status)) };
    }
    let (parts, body) = response.into_parts();
    let body = beginning(body, DOCUMENT_BYTES_MAX).await?;
    let is_own = match expected {
        Expected::Document(roots) => has_root(&body, roots),
        _ => body.trim_ascii().is_empty(),
    };
    if is_own { Ok(HttpResponse::from_parts(parts, body.into())) } else { Err(foreign(status)) }
}

/// Whether a document begins with one of these elements. S3 sends spaces before it, after the
/// declaration too, for as long as it is busy.
fn has_root(body: &[u8], roots: &[&str]) -> bool {
    let declared = body.trim_ascii_start();
    let after = declared.starts_with(b"<?xml").then(|| declared.iter().position(|b| *b == b'>'));
    let start = after.flatten().map_or(0, |end| end + 1);
    let rest = declared.get(start..).unwrap_or_default().trim_ascii_start();
    let text = String::from_utf8_lossy(rest.get(..CODE_SCAN_BYTES).unwrap_or(rest));
    roots.iter().any(|root| text.contains(&format!("<{root}")))
}

/// A refusal: let through if `object_store` takes it for what the store means, else kept whole.
async fn refused(response: HttpResponse) -> Result<HttpResponse, HttpError> {
    let (parts, body) = response.into_parts();
    // An answer to HEAD has no body; a body that breaks off has no code either.
    let body = beginning(body, CODE_SCAN_BYTES).await.unwrap_or_default();
    let code = code_in_headers(&parts.headers).or_else(|| code_in_body(&body));
    let refusal = Refusal { status: parts.status.as_u16(), code };
    let is_of_credentials = matches!(refusal.status, 401 | 403) && refusal.code.is_some();
    if refusal.is_absence() || refusal.is_conflict() || is_of_credentials {
        return Ok(HttpResponse::from_parts(parts, body.into()));
    }
    Err(HttpError::new(HttpErrorKind::Unknown, refusal))
}

/// Whether an answer, once judged, is in the words of the store.
fn is_own(answer: &Result<HttpResponse, HttpError>) -> bool {
    let refusal = |error: &HttpError| Some(error.source()?.downcast_ref::<Refusal>()?.clone());
    match answer {
        Ok(_) => true,
        Err(error) => refusal(error).is_some_and(|refusal| refusal.code.is_some()),
    }
}

fn foreign(status: StatusCode) -> HttpError {
    let refusal = Refusal { status: status.as_u16(), code: None };
    HttpError::new(HttpErrorKind::Unknown, refusal)
}

/// The first bytes of a body, up to a bound and the rest of the frame that reaches it.
async fn beginning(mut body: HttpResponseBody, bytes_max: usize) -> Result<Bytes, HttpError> {
    let mut bytes = BytesMut::new();
    while bytes.len() < bytes_max
        && let Some(frame) = body.frame().await
    {
        if let Ok(data) = frame?.into_data() {
            bytes.extend_from_slice(&data);
        }
    }
    Ok(bytes.freeze())
}

fn code_in_headers(headers: &HeaderMap) -> Option<String> {
    headers.get("x-ms-error-code")?.to_str().ok().map(str::to_owned)
}

/// The text of the first `<Code>` element, or Google's reason in JSON.
fn code_in_body(body: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(body.get(..CODE_SCAN_BYTES).unwrap_or(body)).into_owned();
    if let Some((_, rest)) = text.split_once("<Code>") {
        let (code, _) = rest.split_once("</Code>")?;
        return Some(code.to_owned());
    }
    let json: serde_json::Value = serde_json::from_str(&text).ok()?;
    let reason = json.pointer("/error/errors/0/reason")?.as_str()?;
    // Google's JSON interface calls the absence of an object by another name than its XML.
    Some(if reason == "notFound" { "NoSuchKey".to_owned() } else { reason.to_owned() })
}
