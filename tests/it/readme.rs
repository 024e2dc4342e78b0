//! The README is true: its tables of settings are the processes' own, and the files and tests that
//! it names are there. `REWRITE=1` writes the tables; the diff is the review.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use cairn_common::config::{Fallback, Kind, Program, SHARED, Setting};

use crate::source::Tree;

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
    for name in ["README.md", "common/PROTOCOL.md", "deploy/README.md"] {
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
        words > 2 && token.chars().all(|c| c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit())
    };
    let text = document("README.md");
    let names = quoted(&text).into_iter().filter(is_test_name);
    let names: Vec<_> = names.filter(|name| !settings.contains(name)).collect();
    assert!(names.len() >= 8, "every promise names the test that holds it: {names:?}");
    for name in names {
        let function = format!("fn {name}(");
        let there = tree.sources.iter().any(|source| source.code.contains(&function));
        assert!(there, "the README names the test {name}");
    }
}
