//! Asking the active writer over HTTP whether it is alive.

use std::time::Duration;

use async_trait::async_trait;
use cairn_common::error::{Error, Result};
use cairn_common::format::current::WriterClaim;
use serde::Deserialize;
use uuid::Uuid;

use crate::standby::{Answer, Peers};

/// A writer that serves answers its status within microseconds; a stopped process, never.
const ASK_TIMEOUT: Duration = Duration::from_millis(300);

/// Asks `GET {url}/v1/status`.
#[derive(Debug)]
pub struct HttpPeers {
    client: reqwest::Client,
}

/// What `/v1/status` says of who answers: a standby names the epoch that it knows, so only the
/// instance tells whether it is the one that holds it.
#[derive(Deserialize)]
struct Status {
    role: String,
    instance: Option<Uuid>,
    phase: Option<String>,
}

impl HttpPeers {
    /// A client with one short timeout.
    ///
    /// # Errors
    /// `Invalid` where the TLS settings of the machine cannot be loaded.
    pub fn new() -> Result<Self> {
        let client = reqwest::Client::builder().timeout(ASK_TIMEOUT).no_proxy().build();
        let client = client.map_err(|error| Error::Invalid(format!("no HTTP client: {error}")))?;
        Ok(Self { client })
    }
}

#[async_trait]
impl Peers for HttpPeers {
    async fn ask(&self, url: &str, claim: &WriterClaim) -> Answer {
        let url = format!("{}/v1/status", url.trim_end_matches('/'));
        let status: Status = match self.client.get(url).send().await {
            Ok(reply) => match reply.json().await {
                Ok(status) => status,
                Err(_) => return Answer::Silent,
            },
            Err(_) => return Answer::Silent,
        };
        if status.role != "writer" || status.instance != Some(claim.uuid) {
            return Answer::Silent;
        }
        match status.phase.as_deref() {
            Some("leaving") => Answer::Leaving,
            Some("ended") => Answer::Silent,
            _ => Answer::Active,
        }
    }
}
