//! The settings that all three processes have.

use serde::Deserialize;

use super::{Kind, Setting, Size, Span, table_defaults};
use crate::error::{Error, Result};

/// The shared rows; `listen` and `ops_listen` get each process's own defaults.
pub const SHARED: &[Setting] = &[
    Setting::required(
        "store",
        Kind::Text,
        "Where the database is: file:///path, s3://bucket/prefix, gs://bucket/prefix, \
         az://container/prefix or memory://. Credentials and endpoints come from the standard \
         variables of each cloud",
    ),
    Setting::new("listen", Kind::Address, "127.0.0.1:0", "Address of the data routes"),
    Setting::new(
        "ops_listen",
        Kind::Address,
        "127.0.0.1:0",
        "Address of /metrics, /livez, /readyz and the admin routes",
    ),
    Setting::new(
        "log",
        Kind::Text,
        "info",
        "What is logged: error, warn, info, debug or trace, or a filter such as \
         info,cairn_common::store=debug",
    ),
    Setting::new(
        "log_format",
        Kind::Choice(&["auto", "text", "json"]),
        "auto",
        "How logs on stderr look; auto is text on a terminal and JSON otherwise",
    ),
    Setting::new(
        "connections_max",
        Kind::Positive,
        "8192",
        "Most connections of one listener; more wait in the listen queue. One costs a file \
         descriptor and about 20 KiB",
    ),
    Setting::new(
        "requests_max",
        Kind::Positive,
        "4096",
        "Most requests that are worked on at one time; more are refused at once with 503 \
         overloaded. Those that wait are not among them, nor are scans",
    ),
    Setting::new(
        "waiting_bodies_max",
        Kind::Positive,
        "8192",
        "Most requests whose next bytes are awaited; beyond it the one that has been silent for \
         the longest time is refused with 408. One for each connection; their bytes are counted \
         in request_memory",
    ),
    Setting::new(
        "waiting_reads_max",
        Kind::Positive,
        "4096",
        "Most reads that wait for the store, or for the seq of cairn-min-seq; beyond it those \
         that want the highest seq are refused with 503 not_yet, then others with overloaded. At \
         30 ms for a GET, 100,000 cold reads a second need 3,000",
    ),
    Setting::new(
        "waiting_writes_max",
        Kind::Positive,
        "8192",
        "Most writes that wait to be durable; more are refused at once with 503 overloaded. Each \
         waits one store PUT, so throughput needs many",
    ),
    Setting::new(
        "scans_max",
        Kind::Positive,
        "1024",
        "Most scans under way, pages and streams, also those whose clients take nothing; a \
         quarter is for pages alone. More are refused at once with 503 overloaded. Each holds a \
         view, and up to 100 KiB of reply",
    ),
    Setting::new(
        "request_memory",
        Kind::Size,
        "256MiB",
        "Most bytes of request bodies, and of what was parsed from them, held at one time; more \
         are refused with 503 overloaded. Three of the largest bodies of batches; what small \
         bodies need is kept free of them",
    ),
    Setting::new(
        "reply_memory",
        Kind::Size,
        "256MiB",
        "Most bytes of replies held at one time, until their clients have taken them; more are \
         refused with 503 overloaded, streams wait, and pages end early. Six full pages; what \
         small replies need is kept free of them; the largest entry can take 96 MiB as JSON",
    ),
    Setting::new(
        "header_timeout",
        Kind::Span,
        "10s",
        "A connection is closed when the head of a request is not complete so long after its \
         first byte",
    ),
    Setting::new(
        "idle_timeout",
        Kind::Span,
        "2min",
        "A connection without a request is closed after so long; above the 60 s to 90 s of usual \
         load balancers and client pools, so that they close first",
    ),
    Setting::new(
        "stall_timeout",
        Kind::Span,
        "30s",
        "A connection is closed when its client has taken no byte of a reply for so long: a \
         stalled scan pins its view in memory",
    ),
    Setting::new(
        "request_timeout",
        Kind::Span,
        "10s",
        "Deadline of a request that sends no cairn-timeout",
    ),
    Setting::new(
        "request_timeout_max",
        Kind::Span,
        "60s",
        "The longest deadline that cairn-timeout may ask for",
    ),
    Setting::new(
        "shutdown_grace",
        Kind::Span,
        "20s",
        "After SIGTERM, requests in progress, jobs and the last writes have so long to end, all \
         together; below the 30 s that Kubernetes gives a pod",
    ),
];

/// The shared settings, typed; a process's own struct flattens them in.
#[derive(Clone, Debug, Deserialize)]
pub struct Shared {
    /// URL of the bucket and the root in it.
    pub store: String,
    /// `host:port` of the data routes.
    pub listen: String,
    /// `host:port` of the operator's routes.
    pub ops_listen: String,
    /// Filter of the log.
    pub log: String,
    /// Look of the log.
    pub log_format: LogFormat,
    /// Bounds of the HTTP servers.
    #[serde(flatten)]
    pub http: HttpLimits,
}

/// How logs look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// For people.
    Text,
    /// For collectors: one object a line.
    Json,
}

/// The bounds of an HTTP server; each is explained in [`SHARED`].
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct HttpLimits {
    /// Connections of one listener.
    pub connections_max: usize,
    /// Requests that are worked on.
    pub requests_max: usize,
    /// Requests that wait, and scans.
    #[serde(flatten)]
    pub waits: WaitLimits,
    /// Bytes of request bodies in memory.
    pub request_memory: Size,
    /// Bytes of replies in memory.
    pub reply_memory: Size,
    /// From the first byte of a request to the end of its head.
    pub header_timeout: Span,
    /// From the end of one request to the end of the next one's head.
    pub idle_timeout: Span,
    /// Without a byte taken by the client.
    pub stall_timeout: Span,
    /// Deadline where none is asked for.
    pub request_timeout: Span,
    /// Longest deadline.
    pub request_timeout_max: Span,
    /// From the signal to the end of the last request.
    pub shutdown_grace: Span,
}

/// The bounds of what is not worked on all the time; each is explained in [`SHARED`].
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct WaitLimits {
    /// For bytes of their bodies.
    pub waiting_bodies_max: usize,
    /// For the store, or a seq.
    pub waiting_reads_max: usize,
    /// For durability.
    pub waiting_writes_max: usize,
    /// Pages and streams under way.
    pub scans_max: usize,
}

impl Default for WaitLimits {
    fn default() -> Self {
        HttpLimits::default().waits
    }
}

impl Shared {
    /// Checks what the table cannot say.
    ///
    /// # Errors
    /// `Invalid`, naming the setting.
    pub fn check(&self) -> Result<()> {
        self.http.check()
    }
}

impl HttpLimits {
    fn check(&self) -> Result<()> {
        let invalid = |text: String| Err(Error::Invalid(text));
        for (name, size) in
            [("request_memory", self.request_memory), ("reply_memory", self.reply_memory)]
        {
            if size.0 == 0 {
                return invalid(format!("{name} must be above 0: at 0 nothing is served"));
            }
        }
        for (name, span) in [
            ("header_timeout", self.header_timeout),
            ("idle_timeout", self.idle_timeout),
            ("stall_timeout", self.stall_timeout),
            ("request_timeout", self.request_timeout),
            ("request_timeout_max", self.request_timeout_max),
            ("shutdown_grace", self.shutdown_grace),
        ] {
            if span.0.is_zero() {
                return invalid(format!("{name} must be above 0: nothing ends in no time"));
            }
        }
        Ok(())
    }
}

impl Default for HttpLimits {
    fn default() -> Self {
        table_defaults(SHARED)
    }
}
