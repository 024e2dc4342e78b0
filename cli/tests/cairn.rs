//! The `cairn` command as people use it: the real binary, a real cluster on a directory.
#![expect(clippy::unwrap_used, reason = "a test ends at its first surprise")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use cairn_common::clock::{Clock as _, SystemClock};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tempfile::TempDir;

/// No step of these takes longer on any machine that builds the tests.
const PATIENCE: Duration = Duration::from_mins(1);

fn cairn() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cairn"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("CAIRN_")) {
        command.env_remove(name);
    }
    command.env("CAIRN_LEASE", "200ms").env("CAIRN_WAL_INTERVAL", "5ms");
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap()
}

#[expect(clippy::disallowed_methods, reason = "real processes are waited for in real time")]
fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let clock = SystemClock::default();
    let began = clock.boot();
    while !done() {
        assert!(clock.boot().saturating_sub(began) < PATIENCE, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A cluster of `cairn up`.
struct Cluster {
    dir: TempDir,
    up: Child,
    /// URL of each process by its name.
    places: Vec<(String, String)>,
}

impl Cluster {
    fn start() -> Self {
        Self::start_at("127.0.0.1")
    }

    fn start_at(host: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut up = cairn()
            .args(["up", "--host", host, "--port", "0", "--dir"])
            .arg(dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(up.stdout.take().unwrap()).lines();
        let mut places = Vec::new();
        loop {
            let line = lines.next().expect("`cairn up` says where it is").unwrap();
            if line.starts_with("Ctrl-C") {
                break;
            }
            if let [name, url, ..] = line.split_whitespace().collect::<Vec<_>>()[..]
                && url.starts_with("http://")
            {
                places.push((name.to_owned(), url.to_owned()));
            }
        }
        assert_eq!(places.len(), 3, "{places:?}");
        // Nobody reads the log, and a full pipe would stop the cluster.
        let mut log = up.stderr.take().unwrap();
        std::thread::spawn(move || {
            let mut text = String::new();
            drop(log.read_to_string(&mut text));
        });
        Self { dir, up, places }
    }

    fn url(&self, name: &str) -> &str {
        &self.places.iter().find(|(other, _)| other == name).unwrap().1
    }

    fn store(&self) -> String {
        format!("file://{}", self.dir.path().canonicalize().unwrap().display())
    }

    /// The output of a client command at the writer.
    fn client(&self, args: &[&str]) -> Output {
        cairn().args(args).env("CAIRN_URL", self.url("writer")).output().unwrap()
    }

    fn ok(&self, args: &[&str]) -> String {
        let output = self.client(args);
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    fn inspect(&self, args: &[&str]) -> String {
        let output = cairn().args(args).args(["--store", &self.store()]).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    fn stop(mut self) {
        kill_process(pid(&self.up), Signal::TERM).unwrap();
        assert_eq!(self.up.wait().unwrap().code(), Some(0));
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Ok(None) = self.up.try_wait() {
            drop(self.up.kill());
            drop(self.up.wait());
        }
    }
}

fn write(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_cluster_serves_a_client() {
    let cluster = Cluster::start();
    values_come_back(&cluster);
    what_was_loaded_is_dumped(&cluster);
    a_directory_becomes_keys(&cluster);
    the_largest_value_goes_round(&cluster);
    the_bucket_can_be_looked_into(&cluster);
    a_second_up_is_refused(&cluster);
    cluster.stop();
}

fn values_come_back(cluster: &Cluster) {
    cluster.ok(&["put", "a/../b", "one"]);
    assert_eq!(cluster.ok(&["get", "a/../b"]), "one");
    let missing = cluster.client(&["get", "none"]);
    assert_eq!(missing.status.code(), Some(1));
    assert_eq!(text(&missing.stderr), "cairn: no such key: none\n");
    assert!(missing.stdout.is_empty());
    let mut put = cairn()
        .args(["put", "piped", "-", "--url", cluster.url("writer")])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    put.stdin.take().unwrap().write_all(b"\xff\x00\n").unwrap();
    assert!(put.wait().unwrap().success());
    let out = cluster.dir.path().join("value");
    cluster.ok(&["get", "piped", "--out", out.to_str().unwrap()]);
    assert_eq!(std::fs::read(&out).unwrap(), b"\xff\x00\n");
    cluster.ok(&["put", "copied", "--file", out.to_str().unwrap()]);
    assert_eq!(cluster.client(&["get", "copied"]).stdout, b"\xff\x00\n");
    cluster.ok(&["del", "copied"]);
    assert_eq!(cluster.client(&["get", "copied"]).status.code(), Some(1));
    let refused = cluster.client(&["put", "", "x"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).starts_with("cairn: invalid_key: "));
    for value in ["-1", "-----BEGIN CERTIFICATE-----"] {
        cluster.ok(&["put", "hyphen", value]);
        assert_eq!(cluster.ok(&["get", "hyphen"]), value);
    }
    let mistyped = cluster.client(&["put", "hyphen", "--fiel=x"]);
    assert_eq!(mistyped.status.code(), Some(2));
    assert!(text(&mistyped.stderr).starts_with("cairn: unknown flag --fiel=x; "));
    cluster.ok(&["put", "hyphen", "--", "--fiel=x"]);
    assert_eq!(cluster.ok(&["get", "hyphen"]), "--fiel=x");
    let status: serde_json::Value = serde_json::from_str(&cluster.ok(&["status"])).unwrap();
    assert_eq!(status["role"], "writer");
    let nobody = cairn().args(["get", "a", "--url", "http://127.0.0.1:1"]).output().unwrap();
    assert_eq!(nobody.status.code(), Some(1));
    assert!(text(&nobody.stderr).starts_with("cairn: http://127.0.0.1:1: "));
}

fn what_was_loaded_is_dumped(cluster: &Cluster) {
    let source = cluster.dir.path().join("source.ndjson");
    let put = |index: u32, value: &str| {
        format!("{{\"op\":\"put\",\"key\":\"load/{index:05}\",\"value\":\"{value}\"}}\n")
    };
    // What comes later in the source wins, whatever is on its way at one time.
    let old = (0..3_000).map(|index| put(index, "old"));
    let new = (0..3_000).map(|index| match index % 2 {
        0 => format!("{{\"op\":\"delete\",\"key\":\"load/{index:05}\"}}\n"),
        _ => put(index, &index.to_string()),
    });
    let lines: Vec<String> = old.chain(new).collect();
    write(&source, lines.concat().as_bytes());
    let loaded = cluster.client(&["load", source.to_str().unwrap()]);
    assert!(loaded.status.success(), "{}", text(&loaded.stderr));
    assert!(text(&loaded.stderr).contains("loaded 6000 operations"), "{}", text(&loaded.stderr));
    let dumped = cluster.ok(&["dump", "--prefix", "load/"]);
    let live = (1..3_000).step_by(2).map(|index| put(index, &index.to_string()));
    let expected = live.collect::<Vec<_>>().concat();
    assert_eq!(dumped, expected);
    let again = cluster.dir.path().join("again.ndjson");
    write(&again, dumped.replace("load/", "again/").as_bytes());
    cluster.ok(&["load", again.to_str().unwrap()]);
    assert_eq!(cluster.ok(&["dump", "--prefix", "again/"]), expected.replace("load/", "again/"));
    let scanned = cluster.ok(&["scan", "--prefix", "load/", "--limit", "2", "--reverse"]);
    assert_eq!(scanned, "load/02999\t2999\nload/02997\t2997\n");
    let line: serde_json::Value =
        serde_json::from_str(&cluster.ok(&["scan", "--json", "--limit", "1", "--keys-only"]))
            .unwrap();
    assert!(line["etag"].is_string() && line.get("value").is_none());
    write(
        &source,
        b"{\"op\":\"put\",\"key\":\"a\",\"value\":\"b\"}\n\n{\"op\":\"pot\",\"key\":\"a\"}\n",
    );
    let refused = cluster.client(&["load", source.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).contains("line 3: unknown op"), "{}", text(&refused.stderr));
}

fn a_directory_becomes_keys(cluster: &Cluster) {
    let tree = cluster.dir.path().join("tree");
    std::fs::create_dir_all(tree.join("sub")).unwrap();
    write(&tree.join("sub/small"), b"\xfe small");
    write(&tree.join("large"), &vec![7; 1 << 20]);
    std::os::unix::fs::symlink("nowhere", tree.join("sub/zombie")).unwrap();
    let refused = cluster.client(&["load", tree.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(2));
    let said = text(&refused.stderr);
    assert!(said.contains("sub/zombie (a link that leads nowhere"), "{said}");
    assert_eq!(cluster.client(&["get", "large"]).status.code(), Some(1), "nothing was sent");
    std::fs::remove_file(tree.join("sub/zombie")).unwrap();
    std::os::unix::fs::symlink(&tree, tree.join("circle")).unwrap();
    let loaded = cluster.client(&["load", tree.to_str().unwrap()]);
    let said = text(&loaded.stderr);
    assert!(loaded.status.success(), "{said}");
    assert!(said.contains("circle: it is a link to a directory\n"), "{said}");
    assert!(said.ends_with("skipped 1 that are neither files nor directories\n"), "{said}");
    assert_eq!(cluster.client(&["get", "sub/small"]).stdout, b"\xfe small");
    assert_eq!(cluster.client(&["get", "large"]).stdout, vec![7; 1 << 20]);
}

/// Every byte of it is six in JSON.
fn the_largest_value_goes_round(cluster: &Cluster) {
    let value = vec![1; 16 << 20];
    let file = cluster.dir.path().join("largest");
    write(&file, &value);
    cluster.ok(&["put", "largest", "--file", file.to_str().unwrap()]);
    let scanned = cluster.client(&["scan", "--prefix", "largest"]);
    assert!(scanned.status.success(), "{}", text(&scanned.stderr));
    assert_eq!(scanned.stdout.len(), "largest\t\n".len() + value.len());
    let dumped = cluster.ok(&["dump", "--prefix", "largest"]);
    assert!(dumped.len() < 24 << 20, "{} bytes", dumped.len());
    let escaped = "\\u0001".repeat(value.len());
    let escaped = format!("{{\"op\":\"put\",\"key\":\"largest/b\",\"value\":\"{escaped}\"}}\n");
    let lines = dumped.replace("largest", "largest/a") + &escaped;
    let source = cluster.dir.path().join("largest.ndjson");
    write(&source, lines.as_bytes());
    cluster.ok(&["load", source.to_str().unwrap()]);
    for key in ["largest/a", "largest/b"] {
        assert!(cluster.client(&["get", key]).stdout == value, "{key} is another value");
    }
}

#[test]
fn a_value_that_breaks_off_leaves_no_file() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        while !lines.next().unwrap().unwrap().is_empty() {}
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").unwrap();
    });
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("value");
    write(&out, b"before");
    let output = cairn().args(["get", "a", "--url", &url, "--out"]).arg(&out).output().unwrap();
    server.join().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    assert_eq!(std::fs::read(&out).unwrap(), b"before");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

fn the_bucket_can_be_looked_into(cluster: &Cluster) {
    let wal = cluster.inspect(&["wal"]);
    assert!(wal.contains("the chain from wal ") && wal.contains("data"), "{wal}");
    let compacted = cairn().args(["compact", "--url", cluster.url("compactor")]).output().unwrap();
    assert!(compacted.status.success(), "{}", text(&compacted.stderr));
    let status = cluster.inspect(&["status"]);
    assert!(status.contains("writer      epoch 1 at http://127.0.0.1:"), "{status}");
    let manifest = cluster.inspect(&["manifest"]);
    assert!(manifest.contains("L0, newest first: ") && manifest.contains("\"replay_from\""));
    let json: serde_json::Value =
        serde_json::from_str(&cluster.inspect(&["manifest", "--json"])).unwrap();
    let name = |list: &str| json[list][0]["id"].as_str().map(str::to_owned);
    if let Some(run) = name("runs") {
        let run = cluster.inspect(&["run", &run]);
        assert!(run.contains("SSTs, "), "{run}");
    }
    if let Some(sst) = name("l0") {
        let entries = cluster.inspect(&["sst", &sst, "--entries"]);
        assert!(entries.contains("a/../b @"), "{entries}");
    }
    assert!(cluster.inspect(&["gc"]).contains("objects may be deleted"));
    let nothing = cairn().args(["manifest", "--store", "memory://"]).output().unwrap();
    assert_eq!(nothing.status.code(), Some(1));
}

fn a_second_up_is_refused(cluster: &Cluster) {
    let second = cairn().args(["up", "--port", "0", "--dir"]).arg(cluster.dir.path()).output();
    let second = second.unwrap();
    assert_eq!(second.status.code(), Some(1));
    let said = text(&second.stderr);
    assert!(said.ends_with("another `cairn up` runs on this directory\n"), "{said}");
    assert_eq!(said.lines().count(), 1);
}

/// Process ids of the children of a process.
fn children(parent: u32) -> Vec<Pid> {
    let list = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"));
    let list = list.unwrap_or_default();
    let ids = list.split_whitespace().filter_map(|id| Pid::from_raw(id.parse().ok()?));
    ids.collect()
}

#[test]
fn what_dies_is_started_again_and_nothing_outlives_up() {
    let cluster = Cluster::start();
    cluster.ok(&["put", "kept", "value"]);
    let before = children(cluster.up.id());
    assert_eq!(before.len(), 3);
    for child in &before {
        kill_process(*child, Signal::KILL).unwrap();
    }
    wait_until("three other children", || {
        let now = children(cluster.up.id());
        now.len() == 3 && now.iter().all(|child| !before.contains(child))
    });
    // Without a chance to say goodbye: the kernel tells the children.
    let orphans = children(cluster.up.id());
    kill_process(pid(&cluster.up), Signal::KILL).unwrap();
    wait_until("the end of the children", || {
        orphans.iter().all(|child| test_kill_process(*child).is_err())
    });
}

#[test]
fn a_second_interrupt_kills_what_does_not_stop() {
    let mut cluster = Cluster::start_at("localhost");
    let all = children(cluster.up.id());
    // It can take no signal but the one that kills.
    kill_process(all[0], Signal::STOP).unwrap();
    kill_process(pid(&cluster.up), Signal::INT).unwrap();
    wait_until("the others to stop", || children(cluster.up.id()) == all[..1]);
    kill_process(pid(&cluster.up), Signal::INT).unwrap();
    let clock = SystemClock::default();
    let began = clock.boot();
    assert_eq!(cluster.up.wait().unwrap().code(), Some(1));
    assert!(clock.boot().saturating_sub(began) < Duration::from_secs(20), "it waited all the same");
    wait_until("the end of the last one", || test_kill_process(all[0]).is_err());
}

#[test]
fn up_takes_no_file_of_settings() {
    let dir = tempfile::tempdir().unwrap();
    let output =
        cairn().args(["up", "--dir"]).arg(dir.path()).env("CAIRN_CONFIG", "writer.toml").output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).starts_with("cairn: CAIRN_CONFIG names writer.toml"));
}

#[test]
fn usage_errors_are_told_apart() {
    for args in [&["nonsense"][..], &["get"], &["scan", "--limit", "x"], &["wal"]] {
        assert_eq!(cairn().args(args).output().unwrap().status.code(), Some(2), "{args:?}");
    }
    let help = cairn().arg("--help").output().unwrap();
    assert_eq!(help.status.code(), Some(0));
    for command in ["up", "get", "put", "del", "scan", "load", "dump", "status", "manifest", "run"]
    {
        assert!(text(&help.stdout).contains(&format!("\n  {command} ")), "{command}");
    }
    assert!(!text(&help.stdout).contains("\n  role "));
}
