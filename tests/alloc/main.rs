//! What a warm read may allocate. A test binary of its own, as it counts through the allocator.

use allocation_counter::measure;
use cairn_common::types::{Direction, KeyRange};
use futures::FutureExt;
use harness::warm::Warm;

#[tokio::test(start_paused = true)]
async fn a_warm_hit_allocates_at_most_once_and_a_warm_miss_never() {
    let Warm { view, hits, misses } = Warm::plant(5_000).await;
    for key in &hits {
        let mut found = None;
        let spent = measure(|| found = view.get(key, 0).now_or_never());
        assert!(found.expect("everything is at hand").unwrap().is_some());
        assert!(spent.count_total <= 1, "{} allocations for {key:?}", spent.count_total);
    }
    for key in &misses {
        let mut found = None;
        let spent = measure(|| found = view.get(key, 0).now_or_never());
        assert!(found.expect("everything is at hand").unwrap().is_none());
        assert_eq!(spent.count_total, 0, "{key:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_warm_scan_allocates_once_a_row_and_a_little_for_its_sources() {
    const ROWS: u64 = 1_000;
    let Warm { view, hits, .. } = Warm::plant(5_000).await;
    let start = hits.iter().min().expect("a first key").clone();
    for direction in [Direction::Forward, Direction::Reverse] {
        let range = KeyRange { start: start.clone(), end: None };
        let mut opened = None;
        let opening = measure(|| opened = Some(view.scan(&range, direction, 0)));
        let mut scan = opened.expect("it was opened");
        let sources = 1 + 8 + 4;
        assert!(opening.count_total <= 8 * sources, "{} to open", opening.count_total);
        let mut read = 0;
        let spent = measure(|| {
            while read < ROWS && matches!(scan.next().now_or_never(), Some(Ok(Some(_)))) {
                read += 1;
            }
        });
        assert_eq!(read, ROWS);
        // A key for each row; buffers that grow, and entries fetched from the memtable.
        assert!(spent.count_total <= ROWS + 100, "{} for {ROWS} rows", spent.count_total);
    }
}
