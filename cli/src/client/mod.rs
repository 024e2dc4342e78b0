//! A client of writers and readers: requests, problems, another try.

use std::time::Duration;

use cairn_common::clock::{Clock as _, SystemClock};
use reqwest::{Method, RequestBuilder, Response, StatusCode, header};
use serde::Deserialize;

use crate::args::Target;
use crate::failure::{Failure, Outcome, Reaction};

pub(crate) mod jobs;
mod line;
pub(crate) mod load;
pub(crate) mod point;
mod save;
pub(crate) mod scan;
mod source;
mod tree;

/// Between two tries where the server names no time.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// Longest pause that a server may ask for.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(10);
/// A server that does not take a connection by then is down.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Without a byte for so long, a reply is broken.
const READ_TIMEOUT: Duration = Duration::from_secs(90);

/// What becomes of a request that was never answered, or whose answer leaves open what it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unanswered {
    /// Is told at once.
    Fails,
    /// Is tried again: the request may be sent twice without harm.
    Retries,
}

/// A process at a URL.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: String,
    token: Option<String>,
    retry_for: Duration,
    unanswered: Unanswered,
}

/// A problem as servers tell it.
#[derive(Debug, Deserialize)]
struct ProblemBody {
    code: String,
    #[serde(default)]
    detail: String,
    outcome: Option<String>,
}

impl Client {
    pub(crate) fn new(target: &Target, unanswered: Unanswered) -> Outcome<Self> {
        let wrong = |error| Failure::usage(format!("{:?} is not a URL: {error}", target.url));
        let url = reqwest::Url::parse(&target.url).map_err(wrong)?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(Failure::usage(format!("{:?} is not an http URL", target.url)));
        }
        let builder = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .user_agent(concat!("cairn/", env!("CARGO_PKG_VERSION")));
        let is_loopback = url
            .host_str()
            .is_some_and(|host| host == "localhost" || host.starts_with("127.") || host == "[::1]");
        let builder = if is_loopback { builder.no_proxy() } else { builder };
        Ok(Self {
            http: builder.build()?,
            base: target.url.trim_end_matches('/').to_owned(),
            token: target.token.clone(),
            retry_for: target.retry_for.0,
            unanswered,
        })
    }

    /// The same, which tries unanswered requests again too.
    pub(crate) fn patient(&self) -> Self {
        Self { unanswered: Unanswered::Retries, ..self.clone() }
    }

    /// A request of this path, which begins with a slash.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.base));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// The successful response to a request, which `make` makes anew for every try.
    ///
    /// A 429 or 503 is tried again after as long as it says, for `--retry-for` in all; where
    /// requests may be sent twice, so is what ran out of time here, there or in between.
    pub(crate) async fn send(&self, make: impl Fn() -> RequestBuilder) -> Outcome<Response> {
        let clock = SystemClock::default();
        let give_up = clock.boot() + self.retry_for;
        loop {
            let (failure, pause) = match make().send().await {
                Ok(response) if response.status().is_success() => return Ok(response),
                Ok(response) => {
                    let pause = retry_after(&response);
                    (self.problem(response).await, pause)
                }
                Err(error) => {
                    let mut failure = Failure::from(error.without_url());
                    failure.text = format!("{}: {}", self.base, failure.text);
                    if self.unanswered == Unanswered::Fails {
                        return Err(failure);
                    }
                    (failure, RETRY_PAUSE)
                }
            };
            if failure.reaction != Reaction::TryAgain || clock.boot() + pause > give_up {
                return Err(failure);
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// What a response that is no success says.
    async fn problem(&self, response: Response) -> Failure {
        let status = response.status();
        let body = response.bytes().await.unwrap_or_default();
        let text = match serde_json::from_slice::<ProblemBody>(&body) {
            Ok(problem) => {
                let outcome = problem.outcome.map(|outcome| format!(" ({outcome})"));
                format!("{}: {}{}", problem.code, problem.detail, outcome.unwrap_or_default())
            }
            Err(_) => format!("the server answered {status}"),
        };
        match status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                Failure::passing(text)
            }
            // The first is a proxy's whose server went away.
            StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT | StatusCode::REQUEST_TIMEOUT
                if self.unanswered == Unanswered::Retries =>
            {
                Failure::passing(text)
            }
            StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE => Failure::usage(text),
            _ => Failure::new(text),
        }
    }
}

fn retry_after(response: &Response) -> Duration {
    let text = response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
    let seconds = text.and_then(|text| text.parse().ok());
    seconds.map_or(RETRY_PAUSE, Duration::from_secs).clamp(RETRY_PAUSE, RETRY_PAUSE_MAX)
}

#[cfg(test)]
mod tests;
