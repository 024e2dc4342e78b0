//! The fake S3 as a process, for a load: `fake-s3 [ADDRESS [SEED [FAULTS_PER_MILLE]]]`. Prints the
//! variables with which clients find it, and serves until it is stopped.

#![expect(clippy::print_stdout, reason = "a program that tells its address")]

use std::net::SocketAddr;
use std::time::Duration;

use harness::fake_s3::{BUCKET, FakeS3, Fault, Rates};

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().map_or(SocketAddr::from(([127, 0, 0, 1], 0)), |text| {
        text.parse().expect("the first argument is an address, as 127.0.0.1:9000")
    });
    let seed = arguments.next().map_or(0, |text| text.parse().expect("the second is a seed"));
    let per_mille: u32 = arguments
        .next()
        .map_or(0, |text| text.parse().expect("the third is a number of faults per mille"));
    let server = FakeS3::start(address, seed).await;
    server.faults().set_rates(evenly(per_mille));
    println!("# store: s3://{BUCKET}/any-prefix");
    for (name, value) in server.environment() {
        println!("export {name}={value}");
    }
    std::future::pending::<()>().await;
}

/// Every kind of fault, in equal shares.
fn evenly(per_mille: u32) -> Rates {
    let wait = Duration::from_millis(500);
    let faults = [
        Fault::LostResponse,
        Fault::ErrorAfter(500),
        Fault::ErrorBefore(500),
        Fault::ErrorBefore(503),
        Fault::ConflictBefore,
        Fault::LostRequest,
        Fault::Slow(wait),
        Fault::Late(wait),
        Fault::Duplicate(wait),
        Fault::Cut,
    ];
    let share = f64::from(per_mille) / 1_000.0 / 10.0;
    Rates { shares: faults.into_iter().map(|fault| (fault, share)).collect() }
}
