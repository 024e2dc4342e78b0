//! Settings: one table per process, from which come its flags, its `CAIRN_…` variables, the keys
//! of its TOML file, its help text and `--print-config`.
//!
//! **Precedence**: flag, environment, file, default. An empty variable counts as not set.
//!
//! **Invariants**
//! - A setting exists once, as a row of a table: `wal_interval` is `--wal-interval`,
//!   `CAIRN_WAL_INTERVAL` and `wal_interval = "50ms"`.
//! - An unknown flag, variable or key is an error that names the nearest known one.
//! - What `--print-config` prints is itself a valid file, with which the process would run.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, ArgMatches, Command};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::{Error, Result};

mod bounds;
mod shared;
#[cfg(test)]
mod tests;
mod units;

pub use shared::{HttpLimits, LogFormat, SHARED, Shared, WaitLimits};
pub use units::{Size, Span};

/// Every variable of ours begins with this.
const PREFIX: &str = "CAIRN_";
/// Variables that belong to the `cairn` command or to tests and may be set anywhere.
const VARIABLES_ELSEWHERE: [&str; 4] =
    ["CAIRN_URL", "CAIRN_TOKEN", "CAIRN_PLANTED_BUG", "CAIRN_COMPACTOR_URL"];
/// Names of the two arguments that are not settings.
const CONFIG: &str = "config";
const PRINT: &str = "print_config";

/// One row of a table of settings.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// `snake_case`, as it stands in the file.
    pub name: &'static str,
    /// What its values look like.
    pub kind: Kind,
    /// What holds where nobody sets it.
    pub fallback: Fallback,
    /// Meaning, unit, why that default, what grows if it grows. One paragraph.
    pub help: &'static str,
}

/// What the values of a setting look like, and what they become for serde.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Any text: `String`.
    Text,
    /// `host:port`: `String`.
    Address,
    /// Bytes: [`Size`].
    Size,
    /// Time: [`Span`].
    Span,
    /// A whole number: any unsigned integer.
    Count,
    /// A whole number of at least 1: any unsigned integer.
    Positive,
    /// A number: `f64`.
    Ratio,
    /// `true` or `false`: `bool`.
    Switch,
    /// One of these words: an enum with `rename_all = "kebab-case"`.
    Choice(&'static [&'static str]),
}

/// What holds where nobody sets a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallback {
    /// It must be set.
    Required,
    /// It may be left out: `Option`.
    Unset,
    /// This value, as it would be written.
    Is(&'static str),
}

/// A process and its settings.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// `cairn-writer`.
    pub name: &'static str,
    /// One sentence for `--help`.
    pub about: &'static str,
    /// Default of `listen`.
    pub listen: &'static str,
    /// Default of `ops_listen`.
    pub ops_listen: &'static str,
    /// Its own settings, in addition to [`SHARED`].
    pub settings: &'static [Setting],
}

/// The typed settings of a process.
pub trait Settings: DeserializeOwned {
    /// Checks what the table cannot say.
    ///
    /// # Errors
    /// `Invalid`, naming the setting.
    fn check(&self) -> Result<()>;
}

/// What a command line asks for.
#[derive(Debug)]
pub enum Loaded<T> {
    /// Run with these settings.
    Run(T),
    /// Print this to stdout and end: `--help`, `--version`, `--print-config`.
    Print(String),
}

/// Where a value comes from, the weakest first.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    Default,
    File(String),
    Environment(String),
    Flag(String),
}

/// The value in force and where it comes from.
type Values = BTreeMap<&'static str, (String, Source)>;

impl Setting {
    /// A setting with a default.
    pub const fn new(
        name: &'static str,
        kind: Kind,
        default: &'static str,
        help: &'static str,
    ) -> Self {
        Self { name, kind, fallback: Fallback::Is(default), help }
    }

    /// A setting that may be left out.
    pub const fn optional(name: &'static str, kind: Kind, help: &'static str) -> Self {
        Self { name, kind, fallback: Fallback::Unset, help }
    }

    /// A setting that must be set.
    pub const fn required(name: &'static str, kind: Kind, help: &'static str) -> Self {
        Self { name, kind, fallback: Fallback::Required, help }
    }

    /// `--wal-interval`
    pub fn flag(&self) -> String {
        format!("--{}", self.name.replace('_', "-"))
    }

    /// `CAIRN_WAL_INTERVAL`
    pub fn variable(&self) -> String {
        format!("{PREFIX}{}", self.name.to_uppercase())
    }

    fn arg(&self) -> Arg {
        let fallback = match self.fallback {
            Fallback::Is(value) => format!(" [default: {value}]"),
            Fallback::Required => " [required]".to_owned(),
            Fallback::Unset => String::new(),
        };
        let help = format!("{} [env: {}]{fallback}", self.help, self.variable());
        let arg = Arg::new(self.name).long(self.name.replace('_', "-")).help(help);
        arg.value_name(self.kind.value_name()).action(ArgAction::Set)
    }
}

impl Kind {
    fn value_name(self) -> String {
        match self {
            Self::Text => "TEXT".into(),
            Self::Address => "ADDR".into(),
            Self::Size => "SIZE".into(),
            Self::Span => "DUR".into(),
            Self::Count | Self::Positive => "N".into(),
            Self::Ratio => "NUMBER".into(),
            Self::Switch => "true|false".into(),
            Self::Choice(words) => words.join("|"),
        }
    }

    /// The value in the form that serde meets; sizes and durations in their shortest form.
    fn parse(self, text: &str) -> Result<Value, String> {
        match self {
            Self::Text => Ok(text.into()),
            Self::Address => match text.rsplit_once(':') {
                Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => {
                    Ok(text.into())
                }
                _ => Err(format!("{text:?} is not an address (write it like 127.0.0.1:7001)")),
            },
            Self::Size => text.parse::<Size>().map(|size| size.to_string().into()),
            Self::Span => text.parse::<Span>().map(|span| span.to_string().into()),
            Self::Count => match text.replace('_', "").parse::<u64>() {
                Ok(count) => Ok(count.into()),
                Err(_) => Err(format!("{text:?} is not a whole number")),
            },
            Self::Positive => match Self::Count.parse(text)? {
                count if count == 0 => Err("it must be at least 1".into()),
                count => Ok(count),
            },
            Self::Ratio => match text.parse::<f64>() {
                Ok(ratio) if ratio.is_finite() => Ok(ratio.into()),
                _ => Err(format!("{text:?} is not a number")),
            },
            Self::Switch => match text {
                "true" => Ok(true.into()),
                "false" => Ok(false.into()),
                _ => Err(format!("{text:?} is neither true nor false")),
            },
            Self::Choice(words) if words.contains(&text) => Ok(text.into()),
            Self::Choice(words) => Err(format!("{text:?} is none of {}", words.join(", "))),
        }
    }
}

impl Program {
    /// `writer` for `cairn-writer`.
    pub fn role(&self) -> &'static str {
        self.name.strip_prefix("cairn-").unwrap_or(self.name)
    }

    /// Every setting of the process: the shared ones, then its own.
    pub fn all_settings(&self) -> Vec<Setting> {
        let with_ports = |setting: &Setting| match setting.name {
            "listen" => Setting { fallback: Fallback::Is(self.listen), ..*setting },
            "ops_listen" => Setting { fallback: Fallback::Is(self.ops_listen), ..*setting },
            _ => *setting,
        };
        SHARED.iter().map(with_ports).chain(self.settings.iter().copied()).collect()
    }

    /// Reads the command line (`args` begins with the program's name), the environment and the
    /// file that `--config` or `CAIRN_CONFIG` names, and checks what they say together.
    ///
    /// # Errors
    /// `Invalid`, in words that name the setting and where its value came from.
    pub fn load<T: Settings>(
        &self,
        args: impl IntoIterator<Item = OsString>,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Loaded<T>> {
        let settings = self.all_settings();
        let matches = match self.command(&settings).try_get_matches_from(args) {
            Ok(matches) => matches,
            Err(error) => return explain(&error, &settings).map(Loaded::Print),
        };
        let mut environment = environment(&settings, variables)?;
        let config = environment.remove(CONFIG);
        let file = matches.get_one::<String>(CONFIG).cloned().or(config.map(|(path, _)| path));
        let mut values = defaults(&settings);
        if let Some(path) = file {
            values.extend(read_file(&settings, &path)?);
        }
        values.extend(environment);
        values.extend(flags(&settings, &matches));
        if matches.get_flag(PRINT) {
            checked::<T>(typed(&settings, &with_stand_ins(&settings, &values))?)?;
            bounds::check(&settings, &values)?;
            return Ok(Loaded::Print(print(&settings, &values)));
        }
        let missing = settings
            .iter()
            .find(|s| s.fallback == Fallback::Required && !values.contains_key(s.name));
        if let Some(setting) = missing {
            return Err(Error::Invalid(format!(
                "{} is not set: give {} or {}",
                setting.name,
                setting.flag(),
                setting.variable()
            )));
        }
        let checked = checked(typed(&settings, &values)?)?;
        bounds::check(&settings, &values)?;
        Ok(Loaded::Run(checked))
    }

    /// The typed settings with every default but for `overrides`, not checked: for tests and
    /// embedding.
    ///
    /// # Errors
    /// `Invalid`, as with [`Program::load`].
    pub fn with<T: DeserializeOwned>(&self, overrides: &[(&str, &str)]) -> Result<T> {
        let settings = self.all_settings();
        let mut values = defaults(&settings);
        for (name, value) in overrides {
            let setting = known(&settings, name).ok_or_else(|| unknown(&settings, name))?;
            values.insert(setting.name, ((*value).into(), Source::Flag(setting.flag())));
        }
        finish(typed(&settings, &values)?)
    }

    fn command(&self, settings: &[Setting]) -> Command {
        let config = Arg::new(CONFIG)
            .long("config")
            .value_name("FILE")
            .help("A TOML file of settings [env: CAIRN_CONFIG]");
        let print = Arg::new(PRINT)
            .long("print-config")
            .action(ArgAction::SetTrue)
            .help("Print the effective settings with the source of each, and end");
        Command::new(self.name)
            .about(self.about)
            .version(crate::build::VERSION)
            .args(settings.iter().map(Setting::arg))
            .arg(config)
            .arg(print)
    }
}

/// The settings of these tables as a struct: the defaults of `T` are written once, in the table.
pub(crate) fn table_defaults<T: DeserializeOwned>(settings: &[Setting]) -> T {
    let typed = typed(settings, &defaults(settings)).and_then(finish);
    typed.unwrap_or_else(|error| panic!("a table of settings and its struct disagree: {error}"))
}

fn known<'a>(settings: &'a [Setting], name: &str) -> Option<&'a Setting> {
    settings.iter().find(|setting| setting.name == name)
}

fn unknown(settings: &[Setting], name: &str) -> Error {
    let names = settings.iter().map(|setting| setting.name.to_owned());
    Error::Invalid(unknown_text(name, names))
}

fn unknown_text(name: &str, known: impl IntoIterator<Item = String>) -> String {
    // What was merely cut short is nearer than a shorter name that happens to share letters.
    let near =
        |known: &String| (!known.starts_with(name), strsim::damerau_levenshtein(known, name));
    match known.into_iter().min_by_key(near) {
        Some(nearest) => format!("unknown setting {name}; the nearest known one is {nearest}"),
        None => format!("unknown setting {name}"),
    }
}

fn defaults(settings: &[Setting]) -> Values {
    let value = |setting: &Setting| match setting.fallback {
        Fallback::Is(value) => Some((setting.name, (value.to_owned(), Source::Default))),
        Fallback::Required | Fallback::Unset => None,
    };
    settings.iter().filter_map(value).collect()
}

fn flags(settings: &[Setting], matches: &ArgMatches) -> Values {
    let value = |setting: &Setting| {
        let value = matches.get_one::<String>(setting.name)?;
        Some((setting.name, (value.clone(), Source::Flag(setting.flag()))))
    };
    settings.iter().filter_map(value).collect()
}

fn environment(
    settings: &[Setting],
    variables: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Values> {
    let mut values = Values::new();
    let names = || settings.iter().map(Setting::variable).chain(["CAIRN_CONFIG".to_owned()]);
    for (name, value) in variables {
        let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX)) else { continue };
        let text = value.to_str().ok_or_else(|| Error::Invalid(format!("{name} is not UTF-8")))?;
        if text.is_empty() || VARIABLES_ELSEWHERE.contains(&name) || is_service_link(name, text) {
            continue;
        }
        let setting = settings.iter().find(|setting| setting.variable() == name);
        let key = match setting {
            Some(setting) => setting.name,
            None if name == "CAIRN_CONFIG" => CONFIG,
            None => return Err(Error::Invalid(unknown_text(name, names()))),
        };
        values.insert(key, (text.to_owned(), Source::Environment(name.to_owned())));
    }
    Ok(values)
}

/// Whether Kubernetes made this variable for a Service of ours (`cairn-writer` gives every pod
/// `CAIRN_WRITER_SERVICE_HOST`, `CAIRN_WRITER_PORT=tcp://…` and more).
fn is_service_link(name: &str, value: &str) -> bool {
    let port_of = name.split_once("_PORT_").map(|(_, rest)| rest);
    name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
        || port_of.is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
        || (name.ends_with("_PORT") && value.contains("://"))
}

fn read_file(settings: &[Setting], path: &str) -> Result<Values> {
    let wrong = |what: String| Error::Invalid(format!("{path}: {what}"));
    let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    let table: toml::Table =
        text.parse().map_err(|error: toml::de::Error| wrong(error.to_string()))?;
    let mut values = Values::new();
    for (name, value) in table {
        let setting =
            known(settings, &name).ok_or_else(|| wrong(unknown(settings, &name).to_string()))?;
        let text = match value {
            toml::Value::String(text) => text,
            toml::Value::Integer(number) => number.to_string(),
            toml::Value::Float(number) => number.to_string(),
            toml::Value::Boolean(value) => value.to_string(),
            _ => return Err(wrong(format!("{name} is not a single value"))),
        };
        values.insert(setting.name, (text, Source::File(path.to_owned())));
    }
    Ok(values)
}

/// The values as serde meets them, each checked on its own so that the text can name it.
fn typed(settings: &[Setting], values: &Values) -> Result<Map<String, Value>> {
    let mut map = Map::new();
    for setting in settings {
        let Some((text, source)) = values.get(setting.name) else { continue };
        let value = setting.kind.parse(text).map_err(|what| {
            Error::Invalid(format!("{}: {what}, from {}", setting.name, source.describe()))
        })?;
        map.insert(setting.name.to_owned(), value);
    }
    Ok(map)
}

fn finish<T: DeserializeOwned>(map: Map<String, Value>) -> Result<T> {
    T::deserialize(Value::Object(map)).map_err(|error| Error::Invalid(error.to_string()))
}

fn checked<T: Settings>(map: Map<String, Value>) -> Result<T> {
    let settings: T = finish(map)?;
    settings.check()?;
    Ok(settings)
}

/// The values, with one for each required setting that has none: what is printed is checked as far
/// as it goes.
fn with_stand_ins(settings: &[Setting], values: &Values) -> Values {
    let mut all = values.clone();
    for setting in settings.iter().filter(|setting| setting.fallback == Fallback::Required) {
        all.entry(setting.name).or_insert(("memory://".into(), Source::Default));
    }
    all
}

fn print(settings: &[Setting], values: &Values) -> String {
    let mut text = String::new();
    for setting in settings {
        // Writing to a String cannot fail.
        let written = match values.get(setting.name) {
            Some((value, source)) => {
                let value = match setting.kind {
                    Kind::Count | Kind::Positive | Kind::Ratio | Kind::Switch => value.clone(),
                    _ => toml::Value::String(value.clone()).to_string(),
                };
                let line = format!("{} = {value}", setting.name);
                writeln!(text, "{line:<40} # {}", source.describe())
            }
            None => writeln!(text, "# {} is not set", setting.name),
        };
        debug_assert!(written.is_ok());
    }
    text
}

impl Source {
    fn describe(&self) -> String {
        match self {
            Self::Default => "default".into(),
            Self::File(path) => format!("file {path}"),
            Self::Environment(name) => format!("environment {name}"),
            Self::Flag(flag) => format!("flag {flag}"),
        }
    }
}

/// Help and version are to be printed; everything else is an error, an unknown flag in our words.
fn explain(error: &clap::Error, settings: &[Setting]) -> Result<String> {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            return Ok(error.render().to_string());
        }
        ErrorKind::UnknownArgument => {
            if let Some(ContextValue::String(flag)) = error.get(ContextKind::InvalidArg) {
                let others = ["--config", "--print-config", "--help", "--version"];
                let flags = settings.iter().map(Setting::flag);
                let all = flags.chain(others.map(str::to_owned));
                return Err(Error::Invalid(unknown_text(flag, all)));
            }
        }
        _ => {}
    }
    let text = error.render().to_string();
    Err(Error::Invalid(text.trim_start_matches("error: ").trim_end().to_owned()))
}
