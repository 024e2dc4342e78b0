//! Instructions for each warm read, counted by valgrind and compared with figures in the
//! repository, so that a read path that grows slower is seen though the machine is busy.
//!
//! `REWRITE=1` writes the figures anew; the diff is the review.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::process::Command;

/// Workloads of `tests/instructions/main.rs`, each of 1,000 reads.
const WORKLOADS: [&str; 4] = ["hits", "misses", "scan", "scan-reverse"];
const READS: u64 = 1_000;
/// How far a count may be from its figure: compilers and C libraries differ by a few per cent.
const MARGIN_PERCENT: u64 = 10;

#[test]
fn warm_reads_cost_what_the_figures_say() {
    let valgrind = Command::new("valgrind").arg("--version").output();
    assert!(
        valgrind.is_ok_and(|output| output.status.success()),
        "valgrind counts the instructions and is not here: `apt-get install valgrind`, or \
         `tests/run tools`, which installs all that tests need"
    );
    let figures = Path::new(env!("CARGO_MANIFEST_DIR")).join("instructions/figures.txt");
    let counted: BTreeMap<&str, u64> = std::thread::scope(|scope| {
        let runs = WORKLOADS.map(|workload| (workload, scope.spawn(|| count(workload))));
        runs.into_iter().map(|(workload, run)| (workload, run.join().unwrap())).collect()
    });
    if std::env::var_os("REWRITE").is_some() {
        let mut text = String::from("# Instructions for one warm read, in the tests' profile.\n");
        for (workload, count) in &counted {
            writeln!(text, "{workload} {count}").unwrap();
        }
        std::fs::write(&figures, text).unwrap();
    }
    let text = std::fs::read_to_string(&figures).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let known: BTreeMap<&str, u64> = lines
        .map(|line| line.split_once(' ').unwrap())
        .map(|(workload, count)| (workload, count.parse().unwrap()))
        .collect();
    assert!(known.keys().eq(counted.keys()), "figures for {:?}", known.keys());
    let off: Vec<String> = known
        .iter()
        .filter(|(workload, known)| {
            known.abs_diff(counted[*workload]) * 100 > **known * MARGIN_PERCENT
        })
        .map(|(workload, known)| format!("{workload}: {} instead of {known}", counted[workload]))
        .collect();
    assert!(off.is_empty(), "more than {MARGIN_PERCENT} % off (REWRITE=1 if meant): {off:?}");
}

/// Instructions for one read of a workload.
fn count(workload: &str) -> u64 {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .args(["--toggle-collect=*instructions*measured*", env!("CARGO_BIN_EXE_instructions")])
        .arg(workload)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{workload}: {told}");
    let collected = told.lines().find_map(|line| line.split_once("Collected : "));
    let collected: u64 = collected.and_then(|(_, count)| count.trim().parse().ok()).unwrap();
    assert!(collected > READS, "{workload}: nothing was counted: {told}");
    collected / READS
}
