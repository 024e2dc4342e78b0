//! Planted bugs: one build (`--cfg cairn_faults`) in which a bug can be chosen at run time, so that
//! the tests are seen to catch it. In every other build [`planted`] is `false` at compile time.

/// Every bug that can be planted: what goes wrong.
pub const BUGS: &[&str] = &[
    "acknowledged_out_of_order",
    "close_waits_for_slow_clients",
    "collector_deletes_bodies_that_are_not_named",
    "collector_deletes_fences",
    "collector_ignores_epochs",
    "compaction_forgets_operands_above",
    "compaction_is_always_bottom",
    "condition_answered_before_durable",
    "condition_misses_dropped_memtable",
    "exists_is_taken_as_success",
    "flush_replays_from_one_too_far",
    "follower_forgets_what_it_fetched",
    "follower_shows_only_whole_stretches",
    "follower_trusts_its_first_read",
    "hold_is_skipped",
    "lease_never_runs_out",
    "memory_ack_without_lease",
    "one_odd_answer_is_believed",
    "picker_ignores_l0_stop",
    "picker_ignores_tombstones",
    "reader_dates_a_look_by_its_end",
    "reader_keeps_the_tree_of_an_older_log",
    "takeover_skips_what_it_met",
    "takeover_trusts_the_first_gap",
    "view_shows_flushed_entries_twice",
    "visible_before_durable",
    "writer_ignores_missing_current",
];

/// Whether the named bug is switched on (`CAIRN_PLANTED_BUG=name`).
#[cfg(not(cairn_faults))]
#[inline]
pub const fn planted(_bug: &str) -> bool {
    false
}

/// Whether the named bug is switched on (`CAIRN_PLANTED_BUG=name`).
#[cfg(cairn_faults)]
pub fn planted(bug: &str) -> bool {
    static CHOSEN: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    let read = || {
        let chosen = std::env::var("CAIRN_PLANTED_BUG").ok();
        assert!(chosen.iter().all(|bug| BUGS.contains(&&**bug)), "{chosen:?} is not in the list");
        chosen
    };
    assert!(BUGS.contains(&bug), "{bug:?} is not in the list");
    CHOSEN.get_or_init(read).as_deref() == Some(bug)
}
