//! Tests of settings: precedence, texts of errors, what is printed.

use std::io::Write as _;

use serde::Deserialize;

use super::*;

const PROGRAM: Program = Program {
    name: "cairn-test",
    about: "A process for tests.",
    listen: "127.0.0.1:7001",
    ops_listen: "127.0.0.1:7101",
    settings: &[
        Setting::new("wal_interval", Kind::Span, "50ms", "Least time between two PUTs"),
        Setting::new("wal_bytes_max", Kind::Size, "8MiB", "Largest group"),
        Setting::new("window", Kind::Count, "8", "Groups in flight"),
        Setting::new("takeover", Kind::Choice(&["if-dead", "now"]), "if-dead", "When to take over"),
        Setting::optional("advertise", Kind::Text, "URL that readers use"),
    ],
};

#[derive(Debug, Deserialize)]
struct Config {
    #[serde(flatten)]
    shared: Shared,
    wal_interval: Span,
    wal_bytes_max: Size,
    window: usize,
    takeover: Takeover,
    advertise: Option<String>,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Takeover {
    IfDead,
    Now,
}

impl Settings for Config {
    fn check(&self) -> Result<()> {
        self.shared.check()?;
        if self.window == 0 {
            return Err(Error::Invalid("window must be at least 1".into()));
        }
        Ok(())
    }
}

fn load(args: &[&str], variables: &[(&str, &str)]) -> Result<Loaded<Config>> {
    let args = std::iter::once(&"cairn-test").chain(args).map(OsString::from);
    PROGRAM.load(args, variables.iter().map(|(name, value)| (name.into(), value.into())))
}

fn run(args: &[&str], variables: &[(&str, &str)]) -> Config {
    match load(args, variables) {
        Ok(Loaded::Run(config)) => config,
        other => panic!("{other:?}"),
    }
}

fn printed(args: &[&str], variables: &[(&str, &str)]) -> String {
    match load(args, variables) {
        Ok(Loaded::Print(text)) => text,
        other => panic!("{other:?}"),
    }
}

fn refused(args: &[&str], variables: &[(&str, &str)]) -> String {
    match load(args, variables) {
        Err(Error::Invalid(text)) => text,
        other => panic!("{other:?}"),
    }
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

#[test]
fn defaults_hold_where_nothing_is_set() {
    let config = run(&["--store", "memory://"], &[]);
    assert_eq!(config.shared.store, "memory://");
    assert_eq!(config.shared.listen, "127.0.0.1:7001");
    assert_eq!(config.shared.ops_listen, "127.0.0.1:7101");
    assert_eq!(config.shared.log_format, LogFormat::Auto);
    assert_eq!(config.shared.http.connections_max, 8192);
    assert_eq!(config.wal_interval.to_string(), "50ms");
    assert_eq!(config.wal_bytes_max, Size(8 << 20));
    assert_eq!(config.window, 8);
    assert_eq!(config.takeover, Takeover::IfDead);
    assert_eq!(config.advertise, None);
}

#[test]
fn flag_beats_environment_beats_file_beats_default() {
    let file = file("wal_interval = \"1ms\"\nwindow = 1\ntakeover = \"now\"\n");
    let path = file.path().to_str().unwrap();
    let environment =
        [("CAIRN_WAL_INTERVAL", "2ms"), ("CAIRN_WINDOW", "2"), ("CAIRN_CONFIG", path)];
    let config = run(&["--store=memory://", "--wal-interval", "3ms"], &environment);
    assert_eq!(config.wal_interval.to_string(), "3ms");
    assert_eq!(config.window, 2);
    assert_eq!(config.takeover, Takeover::Now);
    assert_eq!(config.wal_bytes_max, Size(8 << 20));
}

#[test]
fn an_empty_variable_counts_as_not_set() {
    let config = run(&["--store=memory://"], &[("CAIRN_WINDOW", "")]);
    assert_eq!(config.window, 8);
}

#[test]
fn unknown_settings_are_refused_and_name_the_nearest() {
    let flag = refused(&["--store=memory://", "--wal-intervall", "1s"], &[]);
    assert_eq!(flag, "unknown setting --wal-intervall; the nearest known one is --wal-interval");
    let variable = refused(&["--store=memory://"], &[("CAIRN_WAL_INTERVALL", "1s")]);
    assert!(variable.ends_with("the nearest known one is CAIRN_WAL_INTERVAL"), "{variable}");
    let short = refused(&["--store=memory://"], &[("CAIRN_WAL", "1s")]);
    assert!(short.ends_with("the nearest known one is CAIRN_WAL_INTERVAL"), "{short}");
    let file = file("wal-interval = \"1s\"\n");
    let path = file.path().to_str().unwrap();
    let key = refused(&["--store=memory://", "--config", path], &[]);
    assert!(key.contains("unknown setting wal-interval"), "{key}");
    assert!(key.ends_with("the nearest known one is wal_interval"), "{key}");
}

#[test]
fn variables_of_others_are_left_alone() {
    let others = [
        ("CAIRN_URL", "http://127.0.0.1:7001"),
        ("CAIRN_WRITER_SERVICE_HOST", "10.0.0.1"),
        ("CAIRN_WRITER_SERVICE_PORT_HTTP", "7001"),
        ("CAIRN_WRITER_PORT", "tcp://10.0.0.1:7001"),
        ("CAIRN_WRITER_PORT_7001_TCP_ADDR", "10.0.0.1"),
        ("PATH", "/bin"),
    ];
    assert_eq!(run(&["--store=memory://"], &others).window, 8);
    let port = refused(&["--store=memory://"], &[("CAIRN_PORT", "7001")]);
    assert!(port.starts_with("unknown setting CAIRN_PORT"), "{port}");
}

#[test]
fn wrong_values_name_the_setting_and_the_source() {
    let text = refused(&["--store=memory://"], &[("CAIRN_WAL_BYTES_MAX", "8 megs")]);
    assert!(text.starts_with("wal_bytes_max: \"8 megs\" is not a size"), "{text}");
    assert!(text.ends_with("from environment CAIRN_WAL_BYTES_MAX"), "{text}");
    let text = refused(&["--store=memory://", "--takeover=later"], &[]);
    assert!(text.contains("none of if-dead, now"), "{text}");
    let text = refused(&["--store=memory://", "--listen=7001"], &[]);
    assert!(text.contains("is not an address"), "{text}");
    let text = refused(&["--store=memory://", "--window=-1"], &[]);
    assert!(text.contains("is not a whole number"), "{text}");
}

#[test]
fn what_must_be_set_is_asked_for() {
    assert_eq!(refused(&[], &[]), "store is not set: give --store or CAIRN_STORE");
}

#[test]
fn printed_settings_name_their_sources_and_are_a_valid_file() {
    let args = ["--print-config", "--store", "memory://", "--window=4"];
    let text = printed(&args, &[("CAIRN_WAL_INTERVAL", "5ms")]);
    let line = |name: &str| {
        let found = text.lines().find(|line| line.starts_with(name)).unwrap();
        found.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(line("store "), "store = \"memory://\" # flag --store");
    assert_eq!(line("window "), "window = 4 # flag --window");
    let interval = "wal_interval = \"5ms\" # environment CAIRN_WAL_INTERVAL";
    assert_eq!(line("wal_interval "), interval);
    assert_eq!(line("takeover "), "takeover = \"if-dead\" # default");
    assert!(text.contains("# advertise is not set"), "{text}");
    let again = file(&text);
    let config = run(&["--config", again.path().to_str().unwrap()], &[]);
    assert_eq!((config.window, config.wal_interval.to_string()), (4, "5ms".into()));
}

#[test]
fn what_cannot_run_is_not_printed_either() {
    for args in [&["--window=0"][..], &["--window=0", "--store=memory://"]] {
        for print in [&[][..], &["--print-config"]] {
            let text = refused(&[args, print].concat(), &[]);
            let store = print.is_empty() && args.len() == 1;
            assert_eq!(text.contains("window must be at least 1"), !store, "{args:?}: {text}");
        }
    }
    assert!(printed(&["--print-config"], &[]).contains("# store is not set"));
}

#[test]
fn bounds_that_would_refuse_everything_are_refused() {
    for wrong in [
        "--request-memory=0",
        "--reply-memory=0",
        "--request-timeout=0ms",
        "--header-timeout=0ms",
        "--idle-timeout=0ms",
        "--stall-timeout=0ms",
        "--shutdown-grace=0ms",
    ] {
        let text = refused(&["--store=memory://", wrong], &[]);
        let name = wrong.trim_start_matches("--").split('=').next().unwrap().replace('-', "_");
        assert!(text.starts_with(&name), "{wrong}: {text}");
    }
}

#[test]
fn help_shows_defaults_and_variables() {
    let text = printed(&["--help"], &[]).split_whitespace().collect::<Vec<_>>().join(" ");
    for expected in ["--wal-interval <DUR>", "[default: 50ms]", "CAIRN_WAL_INTERVAL", "--config"] {
        assert!(text.contains(expected), "{expected} in {text}");
    }
}

#[test]
fn overrides_go_through_the_same_checks() {
    let config: Config = PROGRAM.with(&[("store", "memory://"), ("window", "2")]).unwrap();
    assert_eq!(config.window, 2);
    let error = PROGRAM.with::<Config>(&[("store", "memory://"), ("windw", "2")]).unwrap_err();
    assert_eq!(error.to_string(), "unknown setting windw; the nearest known one is window");
}

#[test]
fn at_least_one_is_served() {
    for flag in ["--connections-max", "--requests-max"] {
        let text = refused(&["--store", "memory://", flag, "0"], &[]);
        assert!(text.contains("must be at least 1") && text.contains(flag), "{text}");
        assert!(load(&["--store", "memory://", flag, "1"], &[]).is_ok());
    }
}
