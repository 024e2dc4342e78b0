//! A moto server: S3 as somebody else understands it, for the conformance suite.
//!
//! Correct but slow (some hundred small requests a second). `tests/run` installs it.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use cairn_common::store::object::Variables;

use crate::fake_s3::environment_of;

/// How long a server may take to come up: seconds on an idle machine.
const START_TIMEOUT: Duration = Duration::from_mins(1);

/// A running server; it is killed when dropped.
#[derive(Debug)]
pub struct Moto {
    process: Child,
    address: SocketAddr,
}

impl Moto {
    /// Starts a server, with one empty bucket of this name.
    ///
    /// # Panics
    /// Where moto is not installed, with what to do; never skips.
    pub async fn start(bucket: &str) -> Self {
        let program = program();
        assert!(
            program.is_file(),
            "{} is missing: run tests/run tools, or name a moto_server in CAIRN_TEST_MOTO",
            program.display()
        );
        // Another process may take the port in between; the test then fails and says so.
        let address = free_address();
        let process = Command::new(&program)
            .args(["-H", "127.0.0.1", "-p", &address.port().to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("moto_server can be started");
        let mut moto = Self { process, address };
        moto.wait_until_up().await;
        let created = reqwest::Client::new()
            .put(format!("http://{address}/{bucket}"))
            .send()
            .await
            .expect("moto answers");
        assert!(created.status().is_success(), "moto made no bucket: {}", created.status());
        moto
    }

    /// The variables with which a bucket of this process finds it.
    pub fn variables(&self) -> Variables {
        Variables::Given(self.environment())
    }

    /// The variables with which another process finds it.
    pub fn environment(&self) -> Vec<(String, String)> {
        environment_of(self.address)
    }

    async fn wait_until_up(&mut self) {
        let pause = Duration::from_millis(50);
        let mut waited = Duration::ZERO;
        while TcpStream::connect(self.address).is_err() {
            if let Ok(Some(status)) = self.process.try_wait() {
                panic!("moto_server ended at once, {status}");
            }
            assert!(waited < START_TIMEOUT, "moto_server did not listen within {START_TIMEOUT:?}");
            tokio::time::sleep(pause).await;
            waited += pause;
        }
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        // Ended already is as good.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

fn program() -> PathBuf {
    std::env::var_os("CAIRN_TEST_MOTO").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../.venv/bin/moto_server"),
        PathBuf::from,
    )
}

fn free_address() -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    listener.local_addr().expect("the address of a listener")
}
