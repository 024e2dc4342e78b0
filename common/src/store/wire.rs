//! The HTTP client beneath the cloud stores: keeps the status and the code of answers that
//! `object_store` would blur, see [`Refusal`].

use async_trait::async_trait;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
    ReqwestConnector,
};

use super::answer::Refusal;

/// Error bodies are a few hundred bytes; more is not read for its code.
const CODE_SCAN_BYTES: usize = 4096;

/// Makes clients that keep status and code.
#[derive(Debug, Default)]
pub(super) struct Connector(ReqwestConnector);

#[derive(Debug)]
struct Client(HttpClient);

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Client(self.0.connect(options)?)))
    }
}

#[async_trait]
impl HttpService for Client {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let response = self.0.execute(request).await?;
        let status = response.status();
        // 304, 401, 403, 405 and 412 mean what object_store takes them for, to the stores and to
        // the services that hand out credentials, which come through here as well.
        let blurred = matches!(status.as_u16(), 400 | 404 | 408 | 409 | 411 | 413 | 416 | 429);
        if !blurred && !status.is_server_error() {
            return Ok(response);
        }
        let (parts, body) = response.into_parts();
        let named = parts.headers.get("x-ms-error-code").and_then(|code| code.to_str().ok());
        let named = named.map(str::to_owned);
        let body = body.bytes().await.unwrap_or_default();
        let refusal =
            Refusal { status: status.as_u16(), code: named.or_else(|| code_in_xml(&body)) };
        let understood = match refusal.status {
            404 => !refusal.is_missing_bucket(),
            // Azure's answer to a create of something that is there: as definite as a 412.
            409 => refusal.code.as_deref() == Some("BlobAlreadyExists"),
            _ => false,
        };
        if understood {
            return Ok(HttpResponse::from_parts(parts, body.into()));
        }
        Err(HttpError::new(HttpErrorKind::Unknown, refusal))
    }
}

/// The text of the first `<Code>` element.
fn code_in_xml(body: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(body.get(..CODE_SCAN_BYTES).unwrap_or(body)).into_owned();
    let (_, rest) = text.split_once("<Code>")?;
    let (code, _) = rest.split_once("</Code>")?;
    Some(code.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_is_found_in_an_error_body() {
        let body =
            b"<?xml version=\"1.0\"?><Error><Code>SlowDown</Code><Message>x</Message></Error>";
        assert_eq!(code_in_xml(body).as_deref(), Some("SlowDown"));
        assert_eq!(code_in_xml(b"upstream connect error"), None);
    }
}
