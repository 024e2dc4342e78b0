//! The README is true: its tables of settings are the processes' own, and the files, tests and
//! metrics that it names are there. So is what clients are told: routes and error codes.
//! `REWRITE=1` writes the tables; the diff is the review.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use cairn_common::config::{Fallback, Kind, Program, SHARED, Setting};

use crate::source::{Source, Tree};

const TABLES_BEGIN: &str = "<!-- settings -->\n";
const TABLES_END: &str = "<!-- end of settings -->\n";
/// What the repository's paths begin with.
const FOLDERS: [&str; 7] =
    ["common/", "writer/", "reader/", "compactor/", "cli/", "tests/", "deploy/"];

fn programs() -> [Program; 3] {
    [cairn_writer::config::PROGRAM, cairn_reader::config::PROGRAM, cairn_compactor::config::PROGRAM]
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn document(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).expect("a document of the repository")
}

/// The tables as they should stand: what all have, then each process's own.
fn tables() -> String {
    let mut text = String::from("\n**All processes**\n\n");
    text += &table(SHARED.iter().filter(|setting| !setting.name.ends_with("listen")));
    for program in programs() {
        let (listen, ops_listen) = (program.listen, program.ops_listen);
        write!(
            text,
            "\n**`{}`** (`listen` is `{listen}`, `ops_listen` is `{ops_listen}`)\n\n",
            program.name
        )
        .expect("writing to a String");
        text += &table(program.settings.iter());
    }
    text + "\n"
}

fn table<'a>(settings: impl Iterator<Item = &'a Setting>) -> String {
    let mut text = "| setting | default | what, and why that default |\n|---|---|---|\n".to_owned();
    for setting in settings {
        let default = match setting.fallback {
            Fallback::Is(value) => format!("`{value}`"),
            Fallback::Required => "required".into(),
            Fallback::Unset => "none".into(),
        };
        let words = match setting.kind {
            Kind::Choice(words) => format!(" (`{}`)", words.join("`, `")),
            _ => String::new(),
        };
        let help = setting.help.replace('|', "\\|");
        writeln!(text, "| `{}`{words} | {default} | {help} |", setting.name)
            .expect("writing to a String");
    }
    text
}

/// What stands between backquotes, outside fenced blocks.
fn quoted(text: &str) -> Vec<&str> {
    let mut fenced = false;
    let mut found = Vec::new();
    for line in text.lines() {
        if line.starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            found.extend(line.split('`').skip(1).step_by(2));
        }
    }
    found
}

#[test]
fn the_tables_of_settings_are_those_of_the_processes() {
    let readme = document("README.md");
    let (before, rest) = readme.split_once(TABLES_BEGIN).expect("the mark before the tables");
    let (found, after) = rest.split_once(TABLES_END).expect("the mark after the tables");
    if std::env::var_os("REWRITE").is_some() {
        let text = [before, TABLES_BEGIN, &tables(), TABLES_END, after].concat();
        std::fs::write(root().join("README.md"), text).expect("the README can be written");
        return;
    }
    assert_eq!(found, tables(), "write them with REWRITE=1");
}

#[test]
fn the_files_that_are_named_are_there() {
    for name in ["README.md", "common/API.md", "common/PROTOCOL.md", "deploy/README.md"] {
        let text = document(name);
        let folder = Path::new(name).parent().expect("a file lies in a folder");
        let mut count = 0;
        for path in quoted(&text).into_iter().filter(|token| !token.contains(['{', ' ', '<'])) {
            if FOLDERS.iter().any(|folder| path.starts_with(folder)) {
                assert!(root().join(path).exists(), "{name} names {path}");
                count += 1;
            }
        }
        let links = text.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
        for (link, _) in links.filter(|(link, _)| !link.contains("://") && !link.starts_with('#')) {
            assert!(root().join(folder).join(link).exists(), "{name} links to {link}");
            count += 1;
        }
        assert!(count > 0, "{name} names no file: this test looks for them in the wrong way");
    }
}

#[test]
fn the_tests_that_are_named_are_there() {
    let tree = Tree::read(&root());
    let settings: BTreeSet<&str> = programs()
        .iter()
        .flat_map(|program| program.settings.iter().chain(SHARED).map(|setting| setting.name))
        .collect();
    let is_test_name = |token: &&str| {
        let words = token.split('_').count();
        words > 2
            && !token.starts_with("cairn_")
            && token.chars().all(|c| c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit())
    };
    let text = document("README.md");
    let names = quoted(&text).into_iter().filter(is_test_name);
    let names: Vec<_> = names.filter(|name| !settings.contains(name)).collect();
    assert!(names.len() >= 8, "every promise names the test that holds it: {names:?}");
    for name in names {
        let functions = tree.sources.iter().flat_map(|source| attributes_of(source, name));
        let functions: Vec<_> = functions.collect();
        assert!(!functions.is_empty(), "the README names {name}, which is no function");
        for attributes in functions {
            let is_test = attributes.contains("#[test]") || attributes.contains("#[tokio::test");
            assert!(is_test, "the README names {name}, which is no test: {attributes}");
            let runs = !attributes.contains("ignore") && !attributes.contains("#[cfg(");
            assert!(runs, "the README names {name}, which does not always run: {attributes}");
        }
    }
}

/// What stands above each function of this name, up to an empty line.
fn attributes_of(source: &Source, name: &str) -> Vec<String> {
    let function = format!("fn {name}(");
    let lines: Vec<_> = source.code.lines().collect();
    let places = (0..lines.len()).filter(|place| lines[*place].contains(&function));
    let above = |place: usize| {
        let block = lines[..place].rsplit(|line| line.trim().is_empty()).next();
        block.unwrap_or_default().join("\n")
    };
    places.map(above).collect()
}

#[test]
fn attributes_are_those_of_the_function() {
    let text =
        "#[test]\nfn before() {}\n\n#[tokio::test]\n#[ignore]\nasync fn it() {}\n\nfn it() {}\n";
    let source = Source::new("tests/it/x.rs", text);
    assert_eq!(attributes_of(&source, "it"), ["#[tokio::test]\n#[ignore]", ""]);
    assert_eq!(attributes_of(&source, "before"), ["#[test]"]);
    assert_eq!(attributes_of(&source, "befor"), [""; 0]);
}

/// The metrics that the README names.
pub(crate) fn metrics() -> BTreeSet<String> {
    let text = document("README.md");
    let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let names = text.match_indices("cairn_").filter_map(|(start, _)| {
        let rest = text.get(start..)?;
        let end = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
        // `cairn_common::store` is a module.
        let (name, after) = rest.split_at(end);
        (!after.starts_with("::")).then(|| name.to_owned())
    });
    names.collect()
}

/// The codes of problems, each with the name of its status.
fn codes() -> BTreeSet<String> {
    let source = document("common/src/http/problem.rs");
    let rows = source.split("(S::").skip(1).chain(source.split("                S::").skip(1));
    rows.filter_map(|row| row.split('"').nth(1)).map(str::to_owned).collect()
}

#[test]
fn clients_are_told_every_code_and_every_route() {
    let text = document("common/API.md");
    let told: BTreeSet<&str> = quoted(&text).into_iter().collect();
    let codes = codes();
    assert!(codes.len() >= 20 && codes.contains("media_type"), "{codes:?}");
    for code in &codes {
        assert!(told.contains(code.as_str()), "common/API.md does not name the code {code}");
    }
    let errors = text.split_once("\n## Errors\n").expect("the errors").1;
    let errors = errors.split_once("\n## ").expect("a heading after the errors").0;
    let in_table = errors.lines().filter(|line| line.starts_with("| ")).flat_map(quoted);
    for code in in_table.filter(|word| !["etag", "unknown"].contains(word)) {
        assert!(codes.contains(code), "common/API.md names the code {code}");
    }
    let tree = Tree::read(&root());
    let routes: BTreeSet<&str> = told
        .iter()
        .filter_map(|word| word.split_once('/'))
        .filter(|(method, _)| method.trim_end().chars().all(|c| c.is_ascii_uppercase()))
        .filter(|(method, _)| !method.is_empty())
        .map(|(_, path)| path)
        .collect();
    assert!(routes.len() >= 9, "{routes:?}");
    for route in routes {
        let route = format!("\"/{}\"", route.replace("{key}", "{*key}"));
        let there =
            tree.sources.iter().any(|source| !source.is_test && source.text.contains(&route));
        assert!(there, "common/API.md names the route {route}");
    }
}
