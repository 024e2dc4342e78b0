//! Answers as the stores give them, which pass; and the same requests answered by somebody else.

use std::collections::VecDeque;
use std::sync::Mutex;

use futures::StreamExt;
use http::Response;
use object_store::path::Path;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::clock::SystemClock;
use crate::store::object::Variables;
use crate::store::url::open;

const S3: (Provider, &str) = (Provider::S3, "https://s3.eu-west-1.amazonaws.com/b");
const GCS: (Provider, &str) = (Provider::Gcs, "https://storage.googleapis.com/b");
const AZURE: (Provider, &str) = (Provider::Azure, "https://acc.blob.core.windows.net/b");
const PAGE: &str = "<html><body>Please log in</body></html>";
const NO_PART: &str = "--x\r\nContent-Type: application/http\r\nContent-ID: 0\r\n\r\n\
                       HTTP/1.1 202 Accepted\r\nx-ms-request-id: 7\r\n\r\n--x--\r\n";

const TAG: Headers = &[("etag", "\"1\"")];
const ASKED: Headers = &[("if-none-match", "\"1\"")];
const BATCH: Headers = &[("content-type", "multipart/mixed; boundary=x")];
const COPY: Headers = &[("x-amz-copy-source", "b/k")];
const GOOGLE_COPY: Headers = &[("x-goog-copy-source", "b/k")];
const AZURE_COPY: Headers = &[("x-ms-copy-source", "https://acc.blob.core.windows.net/b/k")];
const BYTES: Headers = &[("content-type", "application/octet-stream")];

/// A server of given answers.
#[derive(Debug)]
struct Canned(Mutex<VecDeque<HttpResponse>>);

#[async_trait]
impl HttpService for Canned {
    async fn call(&self, _: HttpRequest) -> Result<HttpResponse, HttpError> {
        Ok(self.0.lock().unwrap().pop_front().unwrap())
    }
}

type Headers = &'static [(&'static str, &'static str)];

fn clock() -> Arc<StoreClock> {
    Arc::new(StoreClock::new(Arc::new(SystemClock::default())))
}

fn answer(status: u16, headers: Headers, body: &str) -> HttpResponse {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response.body(Bytes::from(body.to_owned()).into()).unwrap()
}

/// What comes of a request of the store at `home`, and this answer to it.
async fn told(
    home: (Provider, &str),
    request: (&str, &str, Headers),
    response: HttpResponse,
) -> Result<HttpResponse, HttpError> {
    told_with(clock(), home, request, response).await
}

async fn told_with(
    clock: Arc<StoreClock>,
    (provider, home): (Provider, &str),
    (method, uri, headers): (&str, &str, Headers),
    response: HttpResponse,
) -> Result<HttpResponse, HttpError> {
    let beneath = HttpClient::new(Canned(Mutex::new([response].into())));
    let elsewhere = beneath.clone();
    let client = Client { beneath, elsewhere, home: Home::new(provider, home), clock };
    let uri = if uri.starts_with("http") { uri.to_owned() } else { format!("{home}{uri}") };
    let mut request = http::Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    client.call(request.body(Bytes::new().into()).unwrap()).await
}

type Row =
    ((Provider, &'static str), (&'static str, &'static str, Headers), (u16, Headers, String));

fn xml(root: &str) -> String {
    format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<{root} xmlns=\"x\"><A>1</A></{root}>")
}

/// Requests of `object_store` and the answers that each store gives.
fn good() -> Vec<Row> {
    let none = String::new;
    vec![
        (S3, ("PUT", "/k", &[]), (200, TAG, none())),
        (S3, ("PUT", "/k?partNumber=1&uploadId=u", &[]), (200, TAG, none())),
        (S3, ("PUT", "/k", COPY), (200, &[], xml("CopyObjectResult"))),
        (S3, ("GET", "/k", &[]), (206, BYTES, "<html>".into())),
        (S3, ("HEAD", "/k", &[]), (200, BYTES, none())),
        (S3, ("GET", "/k", ASKED), (304, TAG, none())),
        (S3, ("GET", "/k", ASKED), (304, &[("x-amz-request-id", "7")], none())),
        (S3, ("GET", "/k", ASKED), (304, &[("etag", "W/\"1\"")], none())),
        (S3, ("DELETE", "/k", &[]), (204, &[], none())),
        (S3, ("GET", "?list-type=2&prefix=wal", &[]), (200, &[], xml("ListBucketResult"))),
        (S3, ("POST", "?delete", &[]), (200, &[], xml("DeleteResult"))),
        (S3, ("POST", "/k?uploads=", &[]), (200, &[], xml("InitiateMultipartUploadResult"))),
        (S3, ("POST", "/k?uploads", &[]), (200, &[], xml("InitiateMultipartUploadResult"))),
        (S3, ("POST", "/k?uploadId=u", &[]), (200, &[], xml("CompleteMultipartUploadResult"))),
        (S3, ("POST", "/k?uploadId=u", &[]), (200, &[], busy("CompleteMultipartUploadResult"))),
        (S3, ("POST", "/k?uploadId=u", &[]), (200, &[], xml("Error"))),
        (
            S3,
            ("POST", "https://sts.eu-west-1.amazonaws.com/?Action=AssumeRoleWithWebIdentity", &[]),
            (200, &[("content-type", "text/xml")], xml("AssumeRoleWithWebIdentityResponse")),
        ),
        (S3, ("PUT", "http://169.254.169.254/latest/api/token", &[]), (200, &[], "token".into())),
        (S3, ("GET", "http://169.254.170.2/v2/credentials", &[]), (200, &[], "{}".into())),
        (S3, ("GET", "http://169.254.169.254/latest/meta-data", &[]), (404, &[], PAGE.into())),
        (GCS, ("PUT", "/k", &[]), (200, TAG, none())),
        (GCS, ("PUT", "/k", GOOGLE_COPY), (200, &[], xml("CopyObjectResult"))),
        (GCS, ("GET", "/k", &[]), (200, BYTES, "bytes".into())),
        (GCS, ("GET", "/k", ASKED), (304, &[("x-guploader-uploadid", "7")], none())),
        (GCS, ("DELETE", "/k", &[]), (204, &[], none())),
        (GCS, ("GET", "?list-type=2", &[]), (200, &[], xml("ListBucketResult"))),
        (GCS, ("POST", "/k?uploads=", &[]), (200, &[], xml("InitiateMultipartUploadResult"))),
        (GCS, ("POST", "/k?uploadId=u", &[]), (200, &[], xml("CompleteMultipartUploadResult"))),
        (GCS, ("POST", "https://oauth2.googleapis.com/token", &[]), (200, &[], "{}".into())),
        (
            GCS,
            ("GET", "http://metadata.google.internal/computeMetadata/v1/x", &[]),
            (200, &[], "{}".into()),
        ),
        (AZURE, ("PUT", "/k", &[]), (201, TAG, none())),
        (AZURE, ("PUT", "/k?comp=block&blockid=1", &[]), (201, &[], none())),
        (AZURE, ("PUT", "/k?comp=blocklist", &[]), (201, TAG, none())),
        (AZURE, ("PUT", "/k", AZURE_COPY), (202, TAG, none())),
        (AZURE, ("GET", "/k", &[]), (206, BYTES, "bytes".into())),
        (AZURE, ("GET", "/k", ASKED), (304, TAG, none())),
        (AZURE, ("GET", "/k", ASKED), (304, &[("x-ms-request-id", "7")], none())),
        (AZURE, ("DELETE", "/k", &[]), (202, &[], none())),
        (
            AZURE,
            ("GET", "?restype=container&comp=list", &[]),
            (200, &[], format!("\u{feff}{}", xml("EnumerationResults"))),
        ),
        (AZURE, ("POST", "?restype=container&comp=batch", &[]), (202, BATCH, NO_PART.into())),
        (
            AZURE,
            ("POST", "https://login.microsoftonline.com/t/oauth2/v2.0/token", &[]),
            (200, &[("content-type", "application/json")], "{\"access_token\":\"a\"}".into()),
        ),
        (
            AZURE,
            ("GET", "http://169.254.169.254/metadata/identity/oauth2/token", &[]),
            (200, &[], "{}".into()),
        ),
    ]
}

/// A document after so many spaces as S3 sends while it is busy.
fn busy(root: &str) -> String {
    let text = xml(root);
    let (declaration, rest) = text.split_once('\n').unwrap();
    format!("{declaration}\n{}{rest}", " ".repeat(2 * CODE_SCAN_BYTES))
}

#[tokio::test]
async fn good_answers_of_every_store_pass() {
    for (home, request, (status, headers, body)) in good() {
        let told = told(home, request, answer(status, headers, &body)).await;
        let passed = told.unwrap_or_else(|error| panic!("{home:?} {request:?} {status}: {error}"));
        assert_eq!(passed.status().as_u16(), status);
        let bytes = passed.into_body().bytes().await.unwrap();
        assert_eq!(bytes, body, "{home:?} {request:?}");
    }
}

#[tokio::test]
async fn foreign_answers_are_convicted() {
    const HTML: Headers = &[("content-type", "Text/HTML; charset=utf-8"), ("etag", "\"2\"")];
    let is_to_store =
        |home: (Provider, &str), uri: &str| !uri.starts_with("http") || uri.starts_with(home.1);
    let mut rows = 0;
    for (home, request, _) in good() {
        if !is_to_store(home, request.1) {
            continue;
        }
        rows += 1;
        for status in [200, 302, 304, 400, 403, 404, 409, 412, 416] {
            let told = told(home, request, answer(status, HTML, PAGE)).await;
            let error = told.err().unwrap_or_else(|| panic!("{home:?} {request:?} {status}"));
            let refusal = error.source().unwrap().downcast_ref::<Refusal>();
            assert_eq!(refusal, Some(&Refusal { status, code: None }), "{home:?} {request:?}");
        }
        let nothing_known = told(home, request, answer(304, &[], "")).await;
        assert!(nothing_known.is_err(), "{home:?} {request:?}");
    }
    assert!(rows > 30, "{rows}");
}

#[tokio::test]
async fn only_the_stores_own_answers_tell_its_time() {
    const DATE: &str = "Mon, 01 Jan 2024 00:00:00 GMT";
    const OWN: Headers = &[("date", DATE), ("etag", "\"1\"")];
    const HTML: Headers = &[("date", DATE), ("etag", "\"1\""), ("content-type", "text/html")];
    let (get, put) = (("GET", "/k", ASKED), ("PUT", "/k", &[] as Headers));
    let rows = [
        (get, 200, OWN, "bytes".to_owned(), true),
        (get, 200, HTML, PAGE.to_owned(), false),
        (get, 304, OWN, String::new(), true),
        (get, 304, &[("date", DATE), ("etag", "\"2\"")], String::new(), false),
        (get, 404, OWN, "<Error><Code>NoSuchKey</Code></Error>".to_owned(), true),
        (get, 404, HTML, PAGE.to_owned(), false),
        (get, 503, OWN, "<Error><Code>SlowDown</Code></Error>".to_owned(), true),
        (get, 503, OWN, "no healthy upstream".to_owned(), false),
        (get, 302, OWN, String::new(), false),
        (put, 200, OWN, String::new(), true),
        (put, 200, OWN, "ok".to_owned(), false),
        (put, 412, OWN, "<Error><Code>PreconditionFailed</Code></Error>".to_owned(), true),
        (put, 412, OWN, String::new(), false),
    ];
    for (request, status, headers, body, want) in rows {
        let clock = clock();
        for _ in 0..3 {
            let response = answer(status, headers, &body);
            drop(told_with(Arc::clone(&clock), S3, request, response).await);
        }
        assert_eq!(clock.wall_ms().is_some(), want, "{request:?} {status} {body}");
    }
}

/// Serves one connection with one answer; returns what was asked.
async fn serve(listener: TcpListener, head: &str, body: &str) -> String {
    let (mut stream, _) = listener.accept().await.unwrap();
    let (mut asked, mut buffer) = (String::new(), vec![0; 64 << 10]);
    while !asked.contains("\r\n\r\n") {
        let count = stream.read(&mut buffer).await.unwrap();
        assert_ne!(count, 0);
        asked.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    let length = body.len();
    let text = format!("{head}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
    stream.write_all(text.as_bytes()).await.unwrap();
    asked
}

#[tokio::test]
async fn web_identity_is_had_through_the_client() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let home = Home::new(Provider::S3, &format!("http://{address}/b"));
    let options = ClientOptions::new().with_allow_http(true);
    let client = Connector::new(home, clock()).connect(&options).unwrap();
    let body = xml("AssumeRoleWithWebIdentityResponse");
    let uri = format!("http://{address}/?Action=AssumeRoleWithWebIdentity&Version=2011-06-15");
    let request = http::Request::post(uri).body(Bytes::new().into()).unwrap();
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/xml";
    let (asked, told) = tokio::join!(serve(listener, head, &body), client.execute(request));
    assert!(asked.starts_with("POST /?Action=AssumeRoleWithWebIdentity"), "{asked}");
    assert_eq!(told.unwrap().into_body().bytes().await.unwrap(), body);
}

#[tokio::test]
async fn no_redirect_is_followed() {
    for (status, method) in [(303, "PUT"), (302, "GET"), (307, "GET"), (308, "PUT"), (301, "HEAD")]
    {
        let store = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/b", store.local_addr().unwrap());
        let location = format!("http://{}/empty", other.local_addr().unwrap());
        let home = Home::new(Provider::S3, &url);
        let options = ClientOptions::new().with_allow_http(true);
        let client = Connector::new(home, clock()).connect(&options).unwrap();
        let request = http::Request::builder().method(method).uri(format!("{url}/k"));
        let request = request.body(Bytes::new().into()).unwrap();
        let head = format!("HTTP/1.1 {status} Elsewhere\r\nlocation: {location}");
        let elsewhere = serve(other, "HTTP/1.1 200 OK\r\netag: \"1\"", "");
        let told = async { tokio::join!(serve(store, &head, ""), client.execute(request)).1 };
        let error = tokio::select! {
            told = told => told.unwrap_err(),
            asked = elsewhere => panic!("{status} {method}: another server was asked: {asked}"),
        };
        let refusal = error.source().unwrap().downcast_ref::<Refusal>();
        assert_eq!(refusal, Some(&Refusal { status, code: None }), "{method}");
    }
}

#[tokio::test]
async fn azure_deletes_a_batch() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let variables = [
        ("AZURE_ENDPOINT", endpoint.as_str()),
        ("AZURE_STORAGE_ACCOUNT_NAME", "acc"),
        ("AZURE_SKIP_SIGNATURE", "true"),
        ("AZURE_ALLOW_HTTP", "true"),
    ];
    let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let store = open("az://b/db", &Variables::Given(variables.into()), &clock()).unwrap().store;
    let paths = futures::stream::iter([Ok(Path::from("db/wal/1"))]).boxed();
    let head = "HTTP/1.1 202 Accepted\r\ncontent-type: multipart/mixed; boundary=x";
    let deleted = store.delete_stream(paths).collect::<Vec<_>>();
    let (asked, deleted) = tokio::join!(serve(listener, head, NO_PART), deleted);
    assert!(asked.starts_with("POST /b?restype=container&comp=batch"), "{asked}");
    assert_eq!(
        deleted.into_iter().map(Result::unwrap).collect::<Vec<_>>(),
        [Path::from("db/wal/1")]
    );
}

#[test]
fn the_code_is_found_in_an_error_body() {
    let body = b"<?xml version=\"1.0\"?><Error><Code>SlowDown</Code><Message>x</Message></Error>";
    assert_eq!(code_in_body(body).as_deref(), Some("SlowDown"));
    assert_eq!(code_in_body(b"upstream connect error"), None);
    assert_eq!(code_in_body(b"<html><h1>404 Not Found</h1></html>"), None);
    let json = br#"{"error":{"code":404,"errors":[{"reason":"notFound"}]}}"#;
    assert_eq!(code_in_body(json).as_deref(), Some("NoSuchKey"));
    assert_eq!(code_in_body(br#"{"error":"no such route"}"#), None);
}
