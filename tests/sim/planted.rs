//! The simulation is itself held to what it promises: in the build with planted bugs each of them
//! must break a promise or a law on one of the default seeds. `tests/run planted` makes that build
//! and runs this test. With `CAIRN_SIM_SEEDS` every bug meets so many seeds, and it is shown how
//! many of them catch it.

use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use cairn_common::faults::BUGS;

/// A test that catches a bug.
#[derive(Clone, Copy, Debug)]
struct Catcher {
    test: &'static str,
    /// What its failure says, and no other does.
    says: &'static str,
}

/// Clusters in which everything goes wrong.
const HAVOC: Catcher =
    Catcher { test: "every_promise_holds_on_every_seed", says: "CAIRN_SIM_FROM" };
/// Clusters in which one thing goes wrong.
const SINGLE_FAULTS: Catcher =
    Catcher { test: "every_law_holds_after_any_single_fault", says: "CAIRN_SIM_FROM" };

/// What catches the bugs that [`HAVOC`] does not.
const OTHER: &[(&str, Catcher)] = &[
    // A writer must be stalled until the log behind it has been flushed and collected.
    ("collector_deletes_fences", SINGLE_FAULTS),
    // A base must expire and be merged at the bottom while an operand is above it: in one of a
    // hundred seeds.
    (
        "compaction_forgets_operands_above",
        Catcher {
            test: "merging::expired_base_waits_for_operands_above_it",
            says: "keys do not read as their histories do",
        },
    ),
    // They break no promise but that of being fresh, on a store that is slow.
    (
        "follower_forgets_what_it_fetched",
        Catcher { test: "freshness::a_reader_is_fresh_under_flushes", says: "is not fresh" },
    ),
    (
        "follower_shows_only_whole_stretches",
        Catcher { test: "freshness::a_reader_is_fresh_while_the_log_grows", says: "is not fresh" },
    ),
    // Answers are odd, and objects lost, in the story of single faults.
    ("one_odd_answer_is_believed", SINGLE_FAULTS),
    ("takeover_trusts_the_first_gap", SINGLE_FAULTS),
    ("writer_ignores_missing_current", SINGLE_FAULTS),
    // Clusters of the stories merge whatever they have.
    (
        "picker_ignores_l0_stop",
        Catcher { test: "merging::l0_is_merged_before_it_stops_the_writer", says: "SSTs in L0" },
    ),
    (
        "picker_ignores_tombstones",
        Catcher { test: "merging::tombstones_in_few_ssts_are_merged", says: "are not merged" },
    ),
];

fn catcher(bug: &str) -> Catcher {
    OTHER.iter().find(|(other, _)| *other == bug).map_or(HAVOC, |(_, catcher)| *catcher)
}

/// Runs the test that must catch this bug; returns what its failure says.
fn caught(bug: &str) -> Option<String> {
    let Catcher { test, says } = catcher(bug);
    let mut story = Command::new(std::env::current_exe().unwrap());
    story.args([test, "--exact", "--nocapture"]);
    story.env("CAIRN_PLANTED_BUG", bug).env("RUST_BACKTRACE", "0");
    let output = story.output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    let is_said = !output.status.success() && told.lines().any(|line| line.contains(says));
    let line = told.lines().find(|line| line.contains("seeds failed") || line.contains(says));
    line.filter(|_| is_said).map(|line| format!("{test}: {line}"))
}

#[test]
#[expect(clippy::print_stderr, reason = "shown with --no-capture, and when the test fails")]
fn every_planted_bug_is_caught() {
    let (next, missed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some(bug) = BUGS.get(next.fetch_add(1, Ordering::Relaxed)) {
            match caught(bug) {
                Some(failure) => eprintln!("{bug}: {failure}"),
                None => missed.lock().unwrap().push(*bug),
            }
        }
    };
    let workers = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    thread::scope(|scope| (0..workers).for_each(|_| drop(scope.spawn(work))));
    let missed = missed.into_inner().unwrap();
    assert!(missed.is_empty(), "not caught: {missed:?}");
}
