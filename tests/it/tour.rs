//! The README's tour, line by line: every command is run against a real cluster, and what it prints
//! is compared with what the README says it prints.

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::deploy::program;
use crate::readme::metrics;

/// An address of its own, so that a cluster of a developer is not in the way.
const HOST: &str = "127.0.7.9";
/// Stands for the rest of a line, or, alone, for all further lines.
const ELLIPSIS: char = '…';
/// More lines than `cairn up` prints.
const LINES_MAX: usize = 20;
/// The last line that `cairn up` prints once all processes are ready.
const IS_UP: &str = "Ctrl-C stops it.";

/// A command of the tour and what the README says that it prints.
struct Step {
    command: String,
    expected: Vec<String>,
}

/// A cluster as `cairn up` runs it.
struct Cluster {
    up: Child,
}

impl Cluster {
    fn start(folder: &Path) -> Self {
        let mut up = Command::new(program("cairn"))
            .args(["up", "--host", HOST, "--dir", "cairn-data"])
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .expect("cairn starts");
        let stdout = up.stdout.take().expect("a pipe");
        let told = BufReader::new(stdout).lines().map(|line| line.expect("text"));
        let cluster = Self { up };
        assert!(told.take_while(|line| line != IS_UP).count() < LINES_MAX, "cairn up says more");
        cluster
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let pid = i32::try_from(self.up.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            // It fails only where the cluster has ended already.
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap_or_default();
        }
        drop(self.up.wait());
    }
}

/// The steps of the blocks between the heading "Five minutes" and the next, the first block (the
/// start of the cluster) left out.
fn steps() -> Vec<Step> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let readme = std::fs::read_to_string(path).expect("the README");
    let (_, tour) = readme.split_once("\n## Five minutes\n").expect("the tour");
    let (tour, _) = tour.split_once("\n## ").expect("a heading after the tour");
    let blocks = tour.split("```console\n").skip(2);
    let mut steps: Vec<Step> = Vec::new();
    for line in blocks.filter_map(|block| block.split("```").next()).flat_map(str::lines) {
        match (line.strip_prefix("$ "), steps.last_mut()) {
            (Some(command), _) => {
                steps.push(Step { command: command.to_owned(), expected: Vec::new() });
            }
            (None, Some(step)) => step.expected.push(line.to_owned()),
            (None, None) => panic!("{line:?} comes before any command"),
        }
    }
    steps
}

/// What the command prints here, with the README's names for what differs.
fn run(command: &str, folder: &Path) -> Vec<String> {
    let cairn = program("cairn").display().to_string();
    let here = command.replace("127.0.0.1", HOST).replace("target/release/cairn", &cairn);
    let output = Command::new("bash")
        .args(["-c", &here.replacen("curl ", "curl --silent --show-error --noproxy '*' ", 1)])
        .env("CAIRN_URL", format!("http://{HOST}:7001"))
        .env("CAIRN_COMPACTOR_URL", format!("http://{HOST}:7003"))
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .expect("bash starts");
    let both = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&both).replace(HOST, "127.0.0.1").replace('\r', "");
    let told = text.trim_end().lines().filter(|line| !line.starts_with("date: "));
    told.map(str::to_owned).collect()
}

fn agrees(printed: &[String], expected: &[String]) -> bool {
    let rest = ELLIPSIS.to_string();
    let told = expected.iter().take_while(|line| **line != rest).count();
    let alike = |(printed, expected): (&String, &String)| match expected.strip_suffix(ELLIPSIS) {
        Some(start) => printed.starts_with(start),
        None => printed == expected,
    };
    (printed.len() == told || (printed.len() > told && told < expected.len()))
        && printed.iter().zip(&expected[..told]).all(alike)
}

#[test]
fn the_tour_goes_as_the_readme_tells() {
    let folder = tempfile::tempdir().expect("a folder");
    let cluster = Cluster::start(folder.path());
    let steps = steps();
    assert!(steps.len() >= 8, "only {} steps were found", steps.len());
    for step in &steps {
        let printed = run(&step.command, folder.path());
        let (here, there) = (printed.join("\n"), step.expected.join("\n"));
        assert!(
            agrees(&printed, &step.expected),
            "$ {}\nprints\n{here}\nand the README says\n{there}",
            step.command
        );
    }
    the_metrics_that_the_readme_names_are_there(folder.path());
    drop(cluster);
}

/// After the tour each of the processes has done something of everything.
fn the_metrics_that_the_readme_names_are_there(folder: &Path) {
    let told: Vec<_> = [7101, 7102, 7103]
        .iter()
        .flat_map(|port| run(&format!("curl http://127.0.0.1:{port}/metrics"), folder))
        .collect();
    let names = metrics();
    assert!(names.len() > 15, "{names:?}");
    for name in names {
        // A histogram is told by what follows its name.
        let is_it = |line: &String| {
            let rest = line.strip_prefix(&name);
            rest.is_some_and(|rest| [" ", "{", "_count"].iter().any(|end| rest.starts_with(end)))
        };
        assert!(told.iter().any(is_it), "the README names the metric {name}: {told:#?}");
    }
}
