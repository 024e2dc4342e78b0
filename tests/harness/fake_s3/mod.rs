//! A fast S3 of our own over HTTP, whose lies can be chosen.
//!
//! Path-style addresses; one bucket, any credentials. Answers as Amazon S3 does: conditional PUTs
//! and GETs, ranges, single and bulk deletes, paged listings, multipart uploads. On top of that,
//! [`Fault`]s: by rule, for a test that wants one thing to go wrong, or by seeded [`Rates`], for a
//! load.
//!
//! **Source**: the Amazon S3 API reference, "`PutObject`" to "`UploadPart`", and "Error responses".

use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use cairn_common::store::object::Variables;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use self::bandwidth::{Bandwidth, Body};
pub use self::faults::{Conditions, Fault, Faults, Rates, Rule, Verb};
use self::faults::{Fate, Told};
use self::objects::Objects;
use self::protocol::{Answer, Asked, Change};

mod bandwidth;
mod faults;
mod objects;
mod protocol;
mod xml;

/// The one bucket that exists.
pub const BUCKET: &str = "cairn";

/// Between the judgement and the write of a store that does both, but not at once.
const JUDGED_EARLY: Duration = Duration::from_millis(2);

/// A server; it stops when dropped.
pub struct FakeS3 {
    address: SocketAddr,
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

struct Shared {
    objects: Objects,
    faults: Faults,
    uplink: Bandwidth,
    downlink: Arc<Bandwidth>,
    /// Writes that land after their connection has gone.
    late: std::sync::Mutex<JoinSet<()>>,
}

/// The connection is closed without an answer.
#[derive(Debug)]
struct Dropped;

impl FakeS3 {
    /// Serves on an address of this machine; port 0 is any that is free. The seed decides which
    /// requests the rates of its faults meet.
    ///
    /// # Panics
    /// If the address cannot be had.
    pub async fn start(address: SocketAddr, seed: u64) -> Self {
        let listener = TcpListener::bind(address).await.expect("an address to listen on");
        let address = listener.local_addr().expect("the address of a listener");
        let shared = Arc::new(Shared {
            objects: Objects::default(),
            faults: Faults::new(seed),
            uplink: Bandwidth::default(),
            downlink: Arc::default(),
            late: std::sync::Mutex::default(),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, Arc::clone(&shared)));
        Self { address, shared, tasks }
    }

    /// Like [`FakeS3::start`], on any free port.
    pub async fn start_anywhere(seed: u64) -> Self {
        Self::start(SocketAddr::from(([127, 0, 0, 1], 0)), seed).await
    }

    /// What goes wrong from now on.
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// Bounds what all connections together carry, in bytes per second, each way.
    pub fn set_bandwidth(&self, bytes_per_second: u64) {
        self.shared.uplink.set(bytes_per_second);
        self.shared.downlink.set(bytes_per_second);
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The variables with which any S3 client finds it.
    pub fn environment(&self) -> Vec<(String, String)> {
        environment_of(self.address)
    }

    /// The same, for a bucket of this process.
    pub fn variables(&self) -> Variables {
        Variables::Given(self.environment())
    }

    /// The bytes of an object, looked up past all faults.
    pub fn object(&self, key: &str) -> Option<Bytes> {
        self.shared.objects.get(key).map(|object| object.bytes)
    }

    /// Removes an object, past all faults.
    pub fn remove(&self, key: &str) {
        self.shared.objects.delete(key);
    }

    /// Stops listening and closes every connection: the next request is refused.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}

impl fmt::Debug for FakeS3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeS3").field("address", &self.address).finish_non_exhaustive()
    }
}

/// The variables with which any S3 client finds a server on this machine. Credentials are given
/// too: clients would look for them at addresses of the cloud.
pub fn environment_of(address: SocketAddr) -> Vec<(String, String)> {
    [
        ("AWS_ENDPOINT_URL", format!("http://{address}")),
        ("AWS_ALLOW_HTTP", "true".to_owned()),
        ("AWS_REGION", "us-east-1".to_owned()),
        ("AWS_ACCESS_KEY_ID", "test".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "test".to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

#[expect(clippy::infinite_loop, reason = "ends when its task is dropped with the server")]
async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        while connections.try_join_next().is_some() {}
        connections.spawn(serve(stream, Arc::clone(&shared)));
    }
}

async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    // Without it, small answers wait for the client's delayed acknowledgement.
    drop(stream.set_nodelay(true));
    let answer = |request| answer(request, Arc::clone(&shared));
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service_fn(answer));
    // Clients that go away, and answers that are dropped on purpose, end here.
    drop(connection.await);
}

async fn answer(
    request: Request<Incoming>,
    shared: Arc<Shared>,
) -> Result<Response<Body>, Dropped> {
    let (head, mut body) = request.into_parts();
    let mut came = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return Err(Dropped) };
        let Ok(data) = frame.into_data() else { continue };
        shared.faults.came(data.len());
        shared.uplink.carry(data.len()).await;
        came.extend_from_slice(&data);
    }
    let answer = match Asked::parse(&head, came.freeze()) {
        Ok(asked) => {
            let fault = shared.faults.decide(asked.verb(), asked.key());
            shared.act(asked, fault).await?
        }
        Err(answer) => answer,
    };
    Ok(shared.downlink.slow_down(answer.into_response()))
}

impl Shared {
    /// Does what is asked, as the fault would have it.
    async fn act(self: &Arc<Self>, asked: Asked, fault: Option<Fault>) -> Result<Answer, Dropped> {
        let Some(fault) = fault else { return Ok(self.apply_in_time(&asked).await) };
        match fault.fate() {
            Fate::Applied { first_wait, told } => {
                tokio::time::sleep(first_wait).await;
                let answer = self.apply(&asked);
                match told {
                    Told::Truth => Ok(answer),
                    Told::Nothing => Err(Dropped),
                    Told::Instead(answer) => Ok(answer),
                }
            }
            Fate::Untouched { told } => told.ok_or(Dropped),
            Fate::Later { wait } => {
                self.apply_later(asked, wait);
                Err(Dropped)
            }
            Fate::Twice { wait } => {
                let answer = self.apply(&asked);
                self.apply_later(asked, wait);
                Ok(answer)
            }
            Fate::Mangled(mangle) => {
                let mut answer = self.apply(&asked);
                answer.mangle(mangle, self.faults.draw());
                Ok(answer)
            }
            Fate::Never => {
                std::future::pending::<Infallible>().await;
                Err(Dropped)
            }
        }
    }

    async fn apply_in_time(&self, asked: &Asked) -> Answer {
        if self.faults.conditions() != Conditions::JudgedEarly {
            return self.apply(asked);
        }
        if let Some(refused) = protocol::refusal(&self.objects, asked) {
            return refused;
        }
        tokio::time::sleep(JUDGED_EARLY).await;
        protocol::apply(&self.objects, &asked.without_write_condition())
    }

    fn apply(&self, asked: &Asked) -> Answer {
        match self.faults.conditions() {
            Conditions::Honoured | Conditions::JudgedEarly => protocol::apply(&self.objects, asked),
            Conditions::Ignored => protocol::apply(&self.objects, &asked.without_conditions()),
        }
    }

    fn apply_later(self: &Arc<Self>, asked: Asked, wait: Duration) {
        let shared = Arc::clone(self);
        let mut late = self.late.lock().expect("no panic holds this lock");
        while late.try_join_next().is_some() {}
        late.spawn(async move {
            tokio::time::sleep(wait).await;
            if shared.apply(&asked).change() == Change::Made {
                shared.faults.landed();
            }
        });
    }
}

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the connection is dropped")
    }
}

impl std::error::Error for Dropped {}
