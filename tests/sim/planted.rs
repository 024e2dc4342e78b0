//! The simulation is itself held to what it promises: in the build with planted bugs each of them
//! must break a promise on one of the default seeds. `tests/run planted` makes that build and runs
//! this test.

use std::process::Command;

use cairn_common::faults::BUGS;

/// What a failure says that names its seed.
const SEED: &str = "CAIRN_SIM_FROM";
/// The test that catches a bug, and what its failure says, unless said otherwise.
const STORY: (&str, &str) = ("every_promise_holds_on_every_seed", SEED);
/// Bugs that need another story than that of whole clusters, the test that tells it, and what its
/// failure says.
const OTHER: &[(&str, (&str, &str))] = &[
    // Between an operand and the expiry of its base, that base must reach the bottom without it.
    (
        "compaction_forgets_operands_above",
        ("compaction::compactors_and_collectors_lose_nothing_and_leave_nothing", SEED),
    ),
    // They break no promise but that of being fresh, on a store that is slow.
    (
        "follower_forgets_what_it_fetched",
        ("freshness::a_reader_is_fresh_under_flushes", "a reader is not fresh"),
    ),
    (
        "follower_shows_only_whole_stretches",
        ("freshness::a_reader_is_fresh_while_the_log_grows", "a reader is not fresh"),
    ),
];

#[test]
#[expect(clippy::print_stderr, reason = "shown with --no-capture, and when the test fails")]
fn every_planted_bug_is_caught() {
    let mut missed = Vec::new();
    for bug in BUGS {
        let other = OTHER.iter().find(|(other, _)| other == bug);
        let (test, failure) = other.map_or(STORY, |(_, story)| *story);
        let mut story = Command::new(std::env::current_exe().unwrap());
        story.args([test, "--exact", "--nocapture"]);
        story.env("CAIRN_PLANTED_BUG", bug).env("RUST_BACKTRACE", "0");
        let output = story.output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        let caught = told.lines().find(|line| line.contains(failure));
        match caught.filter(|_| !output.status.success()) {
            Some(seeds) => eprintln!("{bug}: {seeds}"),
            None => missed.push(*bug),
        }
    }
    assert!(missed.is_empty(), "not caught: {missed:?}");
}
