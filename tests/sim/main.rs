//! The simulation: whole clusters on one paused current-thread runtime, over a network that lies,
//! from one seed each. A failure names its seed; `CAIRN_SIM_FROM=seed CAIRN_SIM_SEEDS=1` tells that
//! story again.
#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

mod check;
mod clients;
mod cluster;
mod compaction;
mod ledger;
mod story;
mod world;
mod writer;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use crate::story::Report;

/// Seeds of one run, unless `CAIRN_SIM_SEEDS` says otherwise.
const SEEDS: u64 = 64;

/// What must have been seen in a run of at least [`SEEDS`] seeds: else it has not tried enough.
const EXPECTED: &[&str] = &[
    "crash",
    "fenced",
    "flush asked for",
    "read at the writer",
    "stall",
    "standby waits",
    "takeover",
    "takeover of a closed writer",
    "write durable",
    "write in memory",
    "write not applied",
    "write refused by its condition",
    "write unknown",
    "writer closed",
];

#[test]
fn every_promise_holds_on_every_seed() {
    let (from, seeds) = (variable("CAIRN_SIM_FROM", 0), variable("CAIRN_SIM_SEEDS", SEEDS));
    let next = AtomicU64::new(from);
    let events: Mutex<BTreeMap<String, u64>> = Mutex::default();
    let failed: Mutex<Vec<u64>> = Mutex::default();
    let work = || loop {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= from + seeds {
            return;
        }
        // A thread of its own, so that its panic ends one story alone.
        match thread::spawn(move || simulate(seed)).join() {
            Ok(report) => {
                let mut events = events.lock().unwrap();
                for (event, count) in report.events {
                    *events.entry(event).or_default() += count;
                }
            }
            Err(_) => failed.lock().unwrap().push(seed),
        }
    };
    let workers = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    thread::scope(|scope| (0..workers).for_each(|_| drop(scope.spawn(work))));
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "failed seeds: {failed:?}; see CAIRN_SIM_FROM and CAIRN_SIM_SEEDS");
    let events = events.into_inner().unwrap();
    eprintln_events(&events);
    let unseen: Vec<_> = EXPECTED.iter().filter(|event| !events.contains_key(**event)).collect();
    assert!(seeds < SEEDS || unseen.is_empty(), "never seen: {unseen:?}");
}

#[test]
fn a_seed_tells_the_same_story_twice() {
    for seed in [1, 2, 3] {
        assert_eq!(simulate(seed).fingerprint, simulate(seed).fingerprint, "seed {seed}");
    }
}

fn simulate(seed: u64) -> Report {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(story::tell(seed))
}

#[expect(clippy::print_stderr, reason = "shown with --no-capture, and when the test fails")]
fn eprintln_events(events: &BTreeMap<String, u64>) {
    for (event, count) in events {
        eprintln!("{count:>10}  {event}");
    }
}

fn variable(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")),
        Err(_) => default,
    }
}
