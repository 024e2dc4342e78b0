//! The HTTP client beneath the cloud stores: lets through what the store itself said, and keeps
//! the status and the code of everything else, which `object_store` would blur, see [`Refusal`].
//!
//! An ingress, a proxy or a captive portal between us and the store answers with statuses that have
//! a meaning to `object_store` (404 "absent", 412 "lost the race", 200 "done") and without the
//! store's code, or with a page for people. Such an answer becomes a [`Refusal`] without a code.
//!
//! The `Date` of each answer feeds the store's clock, see [`StoreClock`].

use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_TYPE, DATE, ETAG, IF_NONE_MATCH};
use http::{HeaderMap, Method, StatusCode, Uri};
use http_body_util::BodyExt;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
    HttpResponseBody, HttpService, ReqwestConnector,
};

use super::answer::Refusal;
use super::date::StoreClock;

/// Error bodies are a few hundred bytes; more is not read for its code.
const CODE_SCAN_BYTES: usize = 4096;
/// Largest document that answers a listing or a bulk deletion: 1,000 names of 1,024 bytes, escaped.
const DOCUMENT_BYTES_MAX: usize = 16 << 20;

/// Makes clients that keep status and code.
#[derive(Debug)]
pub(super) struct Connector {
    beneath: ReqwestConnector,
    clock: Arc<StoreClock>,
}

#[derive(Debug)]
struct Client {
    beneath: HttpClient,
    clock: Arc<StoreClock>,
}

impl Connector {
    /// A connector that tells `clock` what time the store says it is.
    pub(super) fn new(clock: Arc<StoreClock>) -> Self {
        Self { beneath: ReqwestConnector::default(), clock }
    }
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let (beneath, clock) = (self.beneath.connect(options)?, Arc::clone(&self.clock));
        Ok(HttpClient::new(Client { beneath, clock }))
    }
}

/// What an answer has to be like to be the store's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    /// Bytes of an object, which no store labels as a page for people.
    NoPage,
    /// Nothing: the answer to a PUT or a DELETE.
    Nothing,
    /// An XML document with one of these roots.
    Document(&'static [&'static str]),
}

#[async_trait]
impl HttpService for Client {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        if is_of_credentials(request.uri()) {
            return self.beneath.execute(request).await;
        }
        let expected = Expected::of(request.method(), request.uri());
        let known = request.headers().get(IF_NONE_MATCH).cloned();
        let is_read = request.method() == Method::GET || request.method() == Method::HEAD;
        let response = self.beneath.execute(request).await?;
        if let Some(date) = response.headers().get(DATE).and_then(|date| date.to_str().ok()) {
            self.clock.told(date);
        }
        match response.status() {
            StatusCode::NOT_MODIFIED => {
                let e_tag = response.headers().get(ETAG);
                let is_own = is_read && e_tag.is_some() && e_tag == known.as_ref();
                if is_own { Ok(response) } else { Err(foreign(StatusCode::NOT_MODIFIED)) }
            }
            status if status.is_success() => verified(response, expected).await,
            _ => refused(response).await,
        }
    }
}

/// Services on the machine that hand out credentials: their statuses mean what `object_store`
/// takes them for, and their bodies are theirs.
fn is_of_credentials(uri: &Uri) -> bool {
    const HOSTS: [&str; 2] = ["metadata.google.internal", "[fd00:ec2::254]"];
    uri.host().is_some_and(|host| host.starts_with("169.254.") || HOSTS.contains(&host))
}

impl Expected {
    fn of(method: &Method, uri: &Uri) -> Self {
        let query = uri.query().unwrap_or_default();
        let asks = |what: &str| query.split('&').any(|pair| pair.trim_end_matches('=') == what);
        if method == Method::PUT || method == Method::DELETE {
            Self::Nothing
        } else if method == Method::GET && (asks("list-type=2") || asks("comp=list")) {
            Self::Document(&["ListBucketResult", "EnumerationResults"])
        } else if method == Method::POST && asks("delete") {
            Self::Document(&["DeleteResult", "Error"])
        } else if method == Method::POST {
            Self::Document(&[
                "InitiateMultipartUploadResult",
                "CompleteMultipartUploadResult",
                "Error",
            ])
        } else {
            Self::NoPage
        }
    }
}

/// A success, if it is the store's.
async fn verified(response: HttpResponse, expected: Expected) -> Result<HttpResponse, HttpError> {
    let status = response.status();
    if expected == Expected::NoPage {
        let is_page = response.headers().get(CONTENT_TYPE).is_some_and(|kind| {
            kind.to_str().is_ok_and(|kind| kind.trim_start().starts_with("text/html"))
        });
        return if is_page { Err(foreign(status)) } else { Ok(response) };
    }
    let (parts, body) = response.into_parts();
    let body = beginning(body, DOCUMENT_BYTES_MAX).await?;
    let is_own = match expected {
        Expected::NoPage => true,
        Expected::Nothing => body.is_empty(),
        Expected::Document(roots) => {
            let text = String::from_utf8_lossy(body.get(..CODE_SCAN_BYTES).unwrap_or(&body));
            roots.iter().any(|root| text.contains(&format!("<{root}")))
        }
    };
    if is_own { Ok(HttpResponse::from_parts(parts, body.into())) } else { Err(foreign(status)) }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_is_found_in_an_error_body() {
        let body =
            b"<?xml version=\"1.0\"?><Error><Code>SlowDown</Code><Message>x</Message></Error>";
        assert_eq!(code_in_body(body).as_deref(), Some("SlowDown"));
        assert_eq!(code_in_body(b"upstream connect error"), None);
        assert_eq!(code_in_body(b"<html><h1>404 Not Found</h1></html>"), None);
        let json = br#"{"error":{"code":404,"errors":[{"reason":"notFound"}]}}"#;
        assert_eq!(code_in_body(json).as_deref(), Some("NoSuchKey"));
        assert_eq!(code_in_body(br#"{"error":"no such route"}"#), None);
    }

    #[test]
    fn the_request_says_what_answer_is_the_stores() {
        let of = |method: Method, uri: &str| Expected::of(&method, &uri.parse().unwrap());
        assert_eq!(of(Method::PUT, "http://s/b/wal/1"), Expected::Nothing);
        assert_eq!(of(Method::DELETE, "http://s/b/wal/1"), Expected::Nothing);
        assert_eq!(of(Method::GET, "http://s/b/wal/1"), Expected::NoPage);
        let list = of(Method::GET, "http://s/b?list-type=2&prefix=wal");
        assert!(matches!(list, Expected::Document(["ListBucketResult", ..])), "{list:?}");
        let delete = of(Method::POST, "http://s/b?delete");
        assert!(matches!(delete, Expected::Document(["DeleteResult", ..])), "{delete:?}");
        for query in ["uploads", "uploadId=1"] {
            let upload = of(Method::POST, &format!("http://s/b/sst?{query}"));
            assert!(matches!(upload, Expected::Document([_, _, "Error"])), "{upload:?}");
        }
    }

    #[test]
    fn services_of_credentials_are_no_store() {
        let is = |uri: &str| is_of_credentials(&uri.parse().unwrap());
        assert!(is("http://169.254.169.254/latest/api/token"));
        assert!(is("http://metadata.google.internal/computeMetadata/v1/x"));
        assert!(!is("https://s3.eu-west-1.amazonaws.com/b/k"));
    }
}
