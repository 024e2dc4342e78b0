//! Laws of merging, on a quiet store: L0 is merged before it stops the writer; what deletes is
//! merged with what it deletes, however few SSTs it is in; what has expired is dropped, but not
//! from below operands that were added to it.

use std::time::Duration;

use bytes::Bytes;
use cairn_common::types::Payload;
use tokio::time::sleep;

use crate::compaction::{Process, World, Writer};

/// Above the number of tombstones from which they are a reason to merge.
const DELETED: usize = 1_200;
/// Several polls of a compactor and a job.
const MERGED_WITHIN: Duration = Duration::from_secs(5);

fn on_paused_time(story: impl Future<Output = ()>) {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().start_paused(true).build().unwrap().block_on(story);
}

async fn world(l0_count: &str) -> (Writer, Process) {
    let mut world = World::new(1);
    let writer = Writer::new(&mut world).await;
    let compactor = world.compactor_with(&[("l0_count", l0_count), ("tier_count", "8")]);
    (writer, compactor)
}

#[test]
fn l0_is_merged_before_it_stops_the_writer() {
    on_paused_time(async {
        let (stop, l0_count) = (4, "8");
        let (mut writer, compactor) = world(l0_count).await;
        writer.publish_l0_stop(stop).await;
        for flush in 0..20 {
            writer.flush_many(10, &Payload::Value(Bytes::from(flush.to_string())), None).await;
            sleep(MERGED_WITHIN).await;
            let (l0, _) = writer.shape().await;
            let stops = u64::try_from(l0).unwrap() >= stop;
            assert!(!stops, "{l0} SSTs in L0 stop the writer, and nothing merges them");
        }
        compactor.stop().await;
    });
}

#[test]
fn tombstones_in_few_ssts_are_merged() {
    on_paused_time(async {
        let (mut writer, compactor) = world("4").await;
        writer.flush_many(DELETED, &Payload::Value(Bytes::from_static(b"value")), None).await;
        writer.flush_many(DELETED, &Payload::Tombstone, None).await;
        sleep(MERGED_WITHIN).await;
        let left = writer.shape().await;
        assert_eq!(left, (0, 0), "SSTs in L0, and runs: {DELETED} deleted entries are not merged");
        compactor.stop().await;
    });
}

#[test]
fn expired_base_waits_for_operands_above_it() {
    on_paused_time(async {
        let mut world = World::new(1);
        let mut writer = Writer::new(&mut world).await;
        let (number, life) = (Payload::Value(Bytes::from_static(b"1")), 4 * MERGED_WITHIN);
        // The bottom, and a run that is not yet merged with it.
        let compactor = world.compactor_with(&[("l0_count", "2"), ("bottom_percent", "1000000")]);
        for _ in 0..2 {
            writer.flush_many(20, &number, Some(life)).await;
        }
        sleep(MERGED_WITHIN).await;
        for _ in 0..2 {
            writer.flush_many(1, &Payload::Tombstone, None).await;
        }
        sleep(MERGED_WITHIN).await;
        compactor.stop().await;
        let operand = writer.operand("1");
        writer.flush_many(10, &operand, None).await;
        sleep(life).await;
        // The tree's time is that of its last flush: now the bottom has expired. It is merged
        // while the operands are in L0.
        writer.flush_many(1, &Payload::Tombstone, None).await;
        assert_eq!(writer.shape().await, (2, 2));
        let compactor = world.compactor_with(&[("l0_count", "8"), ("bottom_percent", "1")]);
        sleep(MERGED_WITHIN).await;
        writer.check().await;
        assert_eq!(writer.shape().await, (2, 1));
        compactor.stop().await;
    });
}
