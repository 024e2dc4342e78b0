//! How far behind a reader is on a store whose GETs take 60 ms, or 150 ms, and whose PUTs take
//! 30 ms: idle, then 19, 200 and 2,000 puts a second, without flushes and with one every half
//! second. In process, over an in-memory store, in real time: about five minutes.
//!
//! `cargo run --release -p cairn-tests --bin reader_lag`
#![expect(clippy::print_stdout, reason = "a command that prints its figures")]

use std::time::Duration;

use cairn_common::Error;
use cairn_common::env::Env;
use harness::lag::{Latency, Stage, measure};

/// Puts a second: idle before each.
const RATES: [u32; 6] = [0, 19, 0, 200, 0, 2_000];

#[tokio::main]
async fn main() -> Result<(), Error> {
    for get in [60, 150].map(Duration::from_millis) {
        for flush_every in [None, Some(Duration::from_millis(500))] {
            let latency = Latency { get, put: Duration::from_millis(30) };
            let allowed = latency.lag_max();
            println!("GET {get:?}, PUT {:?}, flush every {flush_every:?}", latency.put);
            println!("  allowed: p99 {allowed:?}, nothing refused");
            let stages = RATES.map(|rate| Stage {
                rate,
                flush_every: flush_every.filter(|_| rate > 0),
                span: Duration::from_secs(if rate == 0 { 5 } else { 20 }),
            });
            for (stage, seen) in stages.iter().zip(measure(&Env::system(), latency, &stages).await?)
            {
                let at = |percent| seen.percentile(percent);
                println!(
                    "  {:>5} puts/s ({} acknowledged): lag p50 {} ms, p99 {} ms, max {} ms, {} \
                     reads, refused {:?}",
                    stage.rate,
                    seen.puts,
                    at(50),
                    at(99),
                    at(100),
                    seen.lags_ms.len(),
                    seen.refused
                );
            }
        }
    }
    Ok(())
}
