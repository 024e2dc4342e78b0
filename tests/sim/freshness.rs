//! The law of liveness of readers: while the store answers, however slowly, a reader is at most so
//! far behind, whatever is written and flushed. On paused time, over a store without faults.

use std::sync::Arc;
use std::time::Duration;

use cairn_common::clock::TokioClock;
use cairn_common::env::{Cpu, Env, SeededRandom};
use harness::faulty::WALL_ORIGIN_MS;
use harness::lag::{Latency, Seen, Stage, measure};

const HALF_A_SECOND: Option<Duration> = Some(Duration::from_millis(500));

/// Idle, then busy, at each rate; with or without flushes.
fn stages(flush_every: Option<Duration>) -> Vec<Stage> {
    let idle = Stage { rate: 0, flush_every: None, span: Duration::from_secs(6) };
    let busy = |rate| Stage { rate, flush_every, span: Duration::from_secs(20) };
    [19, 200, 2_000].into_iter().flat_map(|rate| [idle, busy(rate)]).collect()
}

fn tell(get: Duration, flush_every: Option<Duration>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let latency = Latency { get, put: Duration::from_millis(30) };
    let stages = stages(flush_every);
    let seen = runtime.block_on(async {
        let env = Env {
            clock: Arc::new(TokioClock::starting_at(WALL_ORIGIN_MS)),
            random: Arc::new(SeededRandom::new(7)),
            cpu: Cpu::Inline,
        };
        measure(&env, latency, &stages).await.unwrap()
    });
    let lag_max_ms = latency.lag_max().as_millis();
    for (stage, seen) in stages.iter().zip(&seen) {
        let is_fresh = u128::from(seen.percentile(99)) <= lag_max_ms && seen.refused.is_empty();
        let Seen { refused, puts, .. } = seen;
        let (p50, p99, max) = (seen.percentile(50), seen.percentile(99), seen.percentile(100));
        assert!(
            is_fresh,
            "a reader is not fresh: lag {p50} ms, p99 {p99} ms, at most {max} ms, allowed \
             {lag_max_ms} ms; refused {refused:?}; {puts} puts; GETs of {get:?}, {stage:?}"
        );
        assert!(puts * 10 >= usize::try_from(stage.rate).unwrap() * 190, "{puts} in {stage:?}");
    }
}

#[test]
fn a_reader_is_fresh_while_the_log_grows() {
    tell(Duration::from_millis(60), None);
    tell(Duration::from_millis(150), None);
}

#[test]
fn a_reader_is_fresh_under_flushes() {
    tell(Duration::from_millis(150), HALF_A_SECOND);
    tell(Duration::from_millis(60), HALF_A_SECOND);
}
