//! Every program as a real process with every documented combination of flags: it starts, answers
//! on both listeners, and stops with 0; what cannot be used is refused with 2 and one line.

use std::process::{Command, Output};

use harness::cluster::{Cluster, Pace};
use harness::process::{Kind, Process, executable};
use tempfile::TempDir;

const KINDS: [Kind; 3] = [Kind::Writer, Kind::Reader, Kind::Compactor];

/// Runs a program that ends by itself.
fn run(program: &str, args: &[&str]) -> Output {
    let mut command = Command::new(executable(program));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CAIRN_") {
            command.env_remove(name);
        }
    }
    command.args(args).output().unwrap()
}

fn stdout(output: &Output) -> String {
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{log}");
    assert!(!log.contains("panicked"), "{log}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Asks a route of the data listener; returns the status.
async fn status_of(process: &Process, path: &str) -> u16 {
    reqwest::get(format!("{}{path}", process.url())).await.unwrap().status().as_u16()
}

/// Waits until it is ready, looks at its common routes, and stops it.
async fn serves_and_stops(mut process: Process) {
    let announced = process.ready().await;
    assert!(announced.listen.port() > 0 && announced.ops.port() > 0, "port 0 is resolved");
    for path in ["/livez", "/readyz", "/v1/status"] {
        assert_eq!(status_of(&process, path).await, 200, "{path}: {process:?}");
        let ops = format!("http://{}{path}", announced.ops);
        assert_eq!(reqwest::get(ops).await.unwrap().status(), 200, "{path}: {process:?}");
    }
    let metrics = reqwest::get(format!("http://{}/metrics", announced.ops)).await.unwrap();
    assert!(metrics.text().await.unwrap().contains("cairn_"));
    assert_eq!(status_of(&process, "/nowhere").await, 404);
    let log = process.log();
    assert!(!log.contains("panicked"), "{log}");
    assert_eq!(process.stop().await, 0, "{log}");
}

#[test]
fn each_program_prints_help_version_and_config() {
    let folder = TempDir::new().unwrap();
    for kind in KINDS {
        let program = format!("cairn-{}", kind.name());
        assert!(stdout(&run(&program, &["--help"])).contains("--store"), "{program}");
        assert!(stdout(&run(&program, &["--version"])).starts_with(&program));
        let printed = stdout(&run(&program, &["--print-config"]));
        assert!(printed.contains("listen = "), "{program}: {printed}");
        // What is printed is a file with which the program runs.
        let printed = stdout(&run(&program, &["--store=memory://", "--print-config"]));
        let file = folder.path().join(&program);
        std::fs::write(&file, &printed).unwrap();
        let file = format!("--config={}", file.display());
        let again = stdout(&run(&program, &[&file, "--print-config"]));
        let values = |text: &str| -> Vec<String> {
            text.lines().map(|line| line.split('#').next().unwrap().trim().to_owned()).collect()
        };
        assert_eq!(values(&printed), values(&again), "{program}");
        let shown = stdout(&run(&program, &[&file, "--log=debug", "--print-config"]));
        assert!(shown.contains("# flag --log") && shown.contains("# file "), "{shown}");
    }
}

#[test]
fn each_command_of_cairn_prints_help() {
    let help = stdout(&run("cairn", &["--help"]));
    let (_, commands) = help.split_once("Commands:\n").unwrap();
    let (commands, _) = commands.split_once("\n\n").unwrap();
    let names = commands.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let names: Vec<_> = names.filter_map(|line| line.split_whitespace().next()).collect();
    assert!(names.len() > 10 && names.contains(&"up"), "{names:?}");
    for name in names.into_iter().filter(|name| *name != "help") {
        assert!(!stdout(&run("cairn", &[name, "--help"])).is_empty(), "{name}");
    }
}

#[test]
fn what_cannot_be_used_is_refused_with_2() {
    for (program, args) in [
        ("cairn-compactor", &["--only=both"][..]),
        ("cairn-compactor", &["--l0-count=0"]),
        ("cairn-compactor", &["--jobs-max=0"]),
        ("cairn-compactor", &["--retention=soon"]),
        ("cairn-reader", &["--cache-disk=1GiB"]),
        ("cairn-writer", &["--takeover=perhaps"]),
        ("cairn-writer", &["--l0-stop=0"]),
        ("cairn-writer", &["--listen=nowhere"]),
        ("cairn-writer", &["--no-such-flag"]),
    ] {
        let output = run(program, &[&["--store=memory://"], args].concat());
        let log = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{program} {args:?}: {log}");
        assert!(log.starts_with(program), "{program} {args:?}: {log}");
        assert!(!log.contains("panicked"), "{program} {args:?}: {log}");
    }
}

#[tokio::test]
async fn each_only_of_the_compactor_starts() {
    let cluster = Cluster::at(Pace::Usual);
    let mut writer = cluster.start(Kind::Writer, &[]);
    writer.ready().await;
    for only in [&["--only=compact"][..], &["--only=gc"], &[]] {
        serves_and_stops(cluster.start(Kind::Compactor, only)).await;
    }
    // Two processes, one for each half, and a second collector beside them.
    let halves = ["--only=compact", "--only=gc", "--only=gc"];
    let mut started: Vec<_> =
        halves.iter().map(|only| cluster.start(Kind::Compactor, &[only])).collect();
    for (process, only) in started.iter_mut().zip(halves) {
        let announced = process.ready().await;
        assert_eq!(announced.epoch.is_some(), only == "--only=compact", "{process:?}");
        let jobs = status_of(process, "/v1/compactions").await;
        assert_eq!(jobs, if only == "--only=compact" { 200 } else { 404 }, "{process:?}");
    }
    for process in started {
        serves_and_stops_again(process).await;
    }
    assert_eq!(writer.stop().await, 0);
}

async fn serves_and_stops_again(process: Process) {
    assert_eq!(status_of(&process, "/readyz").await, 200);
    assert_eq!(process.stop().await, 0);
}

#[tokio::test]
async fn second_compactor_stands_by_and_takes_over() {
    let cluster = Cluster::at(Pace::Usual);
    let mut writer = cluster.start(Kind::Writer, &[]);
    writer.ready().await;
    let mut first = cluster.start(Kind::Compactor, &[]);
    assert_eq!(first.ready().await.epoch, Some(1));
    let mut second = cluster.start(Kind::Compactor, &["--takeover-after=500ms"]);
    second.announced("standby").await.unwrap();
    assert_eq!(status_of(&second, "/readyz").await, 503);
    first.kill().await;
    assert_eq!(second.ready().await.epoch, Some(2), "{second:?}");
    serves_and_stops_again(second).await;
    assert_eq!(writer.stop().await, 0);
}

#[tokio::test]
async fn each_only_waits_for_a_database() {
    for only in ["--only=compact", "--only=gc"] {
        let cluster = Cluster::at(Pace::Usual);
        let mut waiting = cluster.start(Kind::Compactor, &[only, "--poll-interval=20ms"]);
        let mut writer = cluster.start(Kind::Writer, &[]);
        writer.ready().await;
        waiting.ready().await;
        assert_eq!(waiting.stop().await, 0);
        assert_eq!(writer.stop().await, 0);
    }
}

#[tokio::test]
async fn flags_variables_and_files_start_each_program() {
    let cluster = Cluster::at(Pace::Usual);
    let cache = format!("--cache-dir={}", cluster.folder().join("cache").display());
    let file = cluster.folder().join("settings.toml");
    std::fs::write(&file, "log = \"debug\"\npoll_interval = \"100ms\"\n").unwrap();
    let file = format!("--config={}", file.display());
    let writers: [&[&str]; 4] =
        [&[], &["--takeover=now"], &["--takeover=if-dead"], &["--advertise=http://127.0.0.1:1"]];
    for args in writers {
        serves_and_stops(cluster.start(Kind::Writer, args)).await;
    }
    let mut writer = cluster.start(Kind::Writer, &[]);
    writer.ready().await;
    let url = format!("--writer={}", writer.url());
    let readers: [&[&str]; 5] = [
        &[&url],
        &[&cache],
        &[&cache, "--cache-disk=64MiB", "--cache-memory=8MiB"],
        &["--cache-memory=8MiB", "--poll-interval=50ms"],
        &[&file, "--poll-interval=50ms"],
    ];
    for args in readers {
        serves_and_stops(cluster.start(Kind::Reader, args)).await;
    }
    let compactors: [&[&str]; 3] =
        [&[&file, "--only=gc"], &[&file, "--l0-count=1000"], &["--jobs-max=4", "--retention=0ms"]];
    for args in compactors {
        serves_and_stops(cluster.start(Kind::Compactor, args)).await;
    }
    let store = format!("file://{}", cluster.root().display());
    let only = [("CAIRN_ONLY".to_owned(), "gc".to_owned())];
    let from_environment = cluster.start_on(Kind::Compactor, &store, &["--only=gc"], &only);
    serves_and_stops(from_environment).await;
    assert_eq!(writer.stop().await, 0);
}
