//! Warm reads to be counted instruction by instruction: `instructions <workload>` sets up a warm
//! tree and then does nothing but one workload, in the function [`measured`], so that
//! `valgrind --tool=callgrind --toggle-collect='*measured*'` counts that alone.
//! `tests/it/instructions.rs` runs it.

use std::hint::black_box;
use std::process::ExitCode;

use cairn_common::types::{Direction, KeyRange};
use futures::FutureExt;
use harness::warm::Warm;

/// Keys of the tree: few, because setting up runs under valgrind too.
const KEYS: u64 = 2_000;
/// Gets of one workload.
const GETS: usize = 1_000;
/// Rows of the scan.
const ROWS: usize = 1_000;

/// What is counted.
#[derive(Clone, Copy)]
enum Workload {
    Hits,
    Misses,
    Scan(Direction),
}

fn main() -> ExitCode {
    let workload = match std::env::args().nth(1).as_deref() {
        Some("hits") => Workload::Hits,
        Some("misses") => Workload::Misses,
        Some("scan") => Workload::Scan(Direction::Forward),
        Some("scan-reverse") => Workload::Scan(Direction::Reverse),
        _ => return ExitCode::from(2),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let runtime = runtime.expect("a runtime without IO");
    let warm = runtime.block_on(Warm::plant(KEYS));
    if measured(&warm, workload) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs the workload; whether every answer was what it has to be.
#[inline(never)]
fn measured(warm: &Warm, workload: Workload) -> bool {
    let Warm { view, hits, misses } = warm;
    let get = |key| black_box(view.get(key, 0).now_or_never());
    match workload {
        Workload::Hits => hits.iter().take(GETS).all(|key| matches!(get(key), Some(Ok(Some(_))))),
        Workload::Misses => misses.iter().take(GETS).all(|key| matches!(get(key), Some(Ok(None)))),
        Workload::Scan(direction) => {
            let mut scan = view.scan(&KeyRange::all(), direction, 0);
            (0..ROWS).all(|_| matches!(black_box(scan.next().now_or_never()), Some(Ok(Some(_)))))
        }
    }
}
