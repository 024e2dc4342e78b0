//! The simulation is itself held to what it promises: in the build with planted bugs each of them
//! must break a promise on one of the default seeds. `tests/run planted` makes that build and runs
//! this test.

use std::process::Command;

use cairn_common::faults::BUGS;

/// The test that catches a bug, unless said otherwise.
const STORY: &str = "every_promise_holds_on_every_seed";
/// Bugs that need a denser story than that of whole clusters, and the test that tells it.
const DENSER: &[(&str, &str)] = &[(
    // Between an operand and the expiry of its base, that base must reach the bottom without it.
    "compaction_forgets_operands_above",
    "compaction::compactors_and_collectors_lose_nothing_and_leave_nothing",
)];

#[test]
#[expect(clippy::print_stderr, reason = "shown with --no-capture, and when the test fails")]
fn every_planted_bug_is_caught() {
    let mut missed = Vec::new();
    for bug in BUGS {
        let test = DENSER.iter().find(|(other, _)| other == bug).map_or(STORY, |(_, test)| *test);
        let mut story = Command::new(std::env::current_exe().unwrap());
        story.args([test, "--exact", "--nocapture"]);
        story.env("CAIRN_PLANTED_BUG", bug).env("RUST_BACKTRACE", "0");
        let output = story.output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        let caught = told.lines().find(|line| line.contains("CAIRN_SIM_FROM"));
        match caught.filter(|_| !output.status.success()) {
            Some(seeds) => eprintln!("{bug}: {seeds}"),
            None => missed.push(*bug),
        }
    }
    assert!(missed.is_empty(), "not caught: {missed:?}");
}
