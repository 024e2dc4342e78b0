//! Asking the active writer over HTTP whether it is alive.

use std::time::Duration;

use async_trait::async_trait;
use cairn_common::error::{Error, Result};
use cairn_common::format::current::Current;
use cairn_common::store::object::Version;
use cairn_common::types::DatabaseId;
use serde::Deserialize;
use uuid::Uuid;

use crate::standby::{Answer, Asked, Peers};

/// A writer that serves answers its status within microseconds; a stopped process, never.
const ASK_TIMEOUT: Duration = Duration::from_millis(300);

/// Asks `GET {url}/v1/status`.
#[derive(Debug)]
pub struct HttpPeers {
    client: reqwest::Client,
}

/// What `/v1/status` says of who answers: a standby names the epoch that it knows, so only the
/// instance tells whether it is the one that holds it; and only the root, whether it holds it here
/// or in the original of what is a copy here.
#[derive(Debug, Deserialize)]
struct Status {
    role: String,
    instance: Option<Uuid>,
    database: Option<DatabaseId>,
    root: Option<String>,
    phase: Option<String>,
    closed: Option<Closed>,
}

/// CURRENT since the writer has closed.
#[derive(Debug, Deserialize)]
struct Closed {
    current: String,
    version: Version,
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

impl Status {
    /// Whether who answers is the process that made the claim, on this database, at this root.
    fn is_of(&self, asked: &Asked<'_>) -> bool {
        self.role == "writer"
            && self.instance == Some(asked.claim.uuid)
            && self.database.is_none_or(|database| database == asked.database)
            && self.root.as_deref().is_none_or(|root| root == asked.root)
    }
}

impl Closed {
    /// The body, if it says that the claim is closed.
    fn parse(self, asked: &Asked<'_>) -> Option<(Current, Version)> {
        let current = Current::parse(self.current.as_bytes()).ok()?;
        let is_closed = current.writer.closed && current.writer.uuid == asked.claim.uuid;
        (is_closed && current.database == asked.database).then_some((current, self.version))
    }
}

#[async_trait]
impl Peers for HttpPeers {
    async fn ask(&self, url: &str, asked: Asked<'_>) -> Answer {
        let url = format!("{}/v1/status", url.trim_end_matches('/'));
        let status: Status = match self.client.get(url).send().await {
            Ok(reply) => match reply.json().await {
                Ok(status) => status,
                Err(_) => return Answer::Silent,
            },
            Err(_) => return Answer::Silent,
        };
        if !status.is_of(&asked) {
            return Answer::Silent;
        }
        match status.phase.as_deref() {
            Some("leaving") => match status.closed.and_then(|closed| closed.parse(&asked)) {
                Some(told) => Answer::Closed(Box::new(told)),
                None => Answer::Leaving,
            },
            Some("ended") => Answer::Silent,
            _ => Answer::Active,
        }
    }
}
