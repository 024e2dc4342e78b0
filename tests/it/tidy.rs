//! Properties of the source text: layering, sizes, and words that do not belong here.
//!
//! Each rule is a function from a source to its findings and carries a planted text that it must
//! find fault with, so that a rule that has gone blind fails too.

use std::fs;
use std::path::{Path, PathBuf};

use crate::source::{Finding, Source, Tree, has_extension};

/// Lines of a file before its tests.
const PRODUCTION_LINES_MAX: usize = 500;
/// Lines of a file that is all tests: longer, since a table of cases reads well in one piece.
const TEST_LINES_MAX: usize = 1_000;
/// Columns of a line of Rust.
const COLUMNS_MAX: usize = 100;

/// One property of the source text.
struct Rule {
    law: &'static str,
    check: fn(&Source, &Tree) -> Vec<Finding>,
    /// A path and a text that break the law, and the one line where.
    planted: (&'static str, &'static str, usize),
}

const RULES: &[Rule] = &[
    Rule {
        law: "every Rust file opens with what it is for",
        check: opens_with_its_purpose,
        planted: ("common/src/new.rs", "use std::fmt;\n//! late\n", 1),
    },
    Rule {
        law: "a layer imports only leftwards",
        check: layers_import_leftwards,
        planted: ("common/src/format/x.rs", "//! x\nuse crate::{types::Seq, store::x::Y};\n", 2),
    },
    Rule {
        law: "types, lsm and format are pure",
        check: pure_layers_are_pure,
        planted: ("common/src/lsm/x.rs", "//! async is fine here\nasync fn x() {}\n", 2),
    },
    Rule {
        law: "only the store imports object_store and foyer",
        check: only_the_store_does_io,
        planted: ("reader/src/x.rs", "//! x\n\nuse object_store::path::Path;\n", 3),
    },
    Rule {
        law: "processes meet in the bucket, not in the source",
        check: processes_do_not_import_each_other,
        planted: ("reader/src/x.rs", "//! x\nuse cairn_writer::run;\n", 2),
    },
    Rule {
        law: "processes meet in the bucket, not in the manifests of packages",
        check: processes_do_not_depend_on_each_other,
        planted: ("writer/Cargo.toml", "[dependencies]\ncairn-reader.workspace = true\n", 2),
    },
    Rule {
        law: "a file is small enough to be read in one sitting",
        check: files_are_small,
        planted: ("common/src/x.rs", "//! x\n", 501),
    },
    Rule {
        law: "a line fits 100 columns",
        check: lines_are_short,
        planted: (
            "tests/sim/x.rs",
            concat!(
                "//! x\n//",
                "3456789 123456789 123456789 123456789 123456789 12",
                "3456789 123456789 123456789 123456789 123456789 1\n"
            ),
            2,
        ),
    },
    Rule {
        law: "no unfinished code",
        check: nothing_is_unfinished,
        planted: ("cli/src/x.rs", "//! x\nfn x() { todo!() }\n", 2),
    },
    Rule {
        law: "only the command line prints",
        check: only_the_command_line_prints,
        planted: ("writer/src/x.rs", "//! x\nfn x() { println!(\"x\") }\n", 2),
    },
    Rule {
        law: "an exception to a lint is expected, with its reason",
        check: lints_are_not_silenced,
        planted: ("tests/it/x.rs", "//! x\n#[allow(dead_code)]\nfn x() {}\n", 2),
    },
    Rule {
        law: "every task is owned by a handle",
        check: no_detached_tasks,
        planted: ("reader/src/x.rs", "//! x\nfn x() { tokio::spawn(y()); }\n", 2),
    },
    Rule {
        law: "no notes to self",
        check: no_notes_to_self,
        planted: ("deploy/x.yaml", concat!("a: 1\n# TO", "DO: b\n"), 2),
    },
    Rule {
        law: "the repository speaks of the product alone",
        check: speaks_of_the_product_alone,
        planted: ("README.md", concat!("# x\nsee /wo", "rk/x\n"), 2),
    },
    Rule {
        law: "a document that is named is in the repository",
        check: named_documents_exist,
        planted: ("common/src/x.rs", concat!("//! See NOWHERE", ".md, section 3.\n"), 1),
    },
];

#[test]
fn the_source_is_tidy() {
    let tree = Tree::read(&root());
    assert!(tree.sources.len() > 50, "only {} files were found", tree.sources.len());
    let findings: Vec<_> = RULES
        .iter()
        .flat_map(|rule| {
            let check = |source| (rule.check)(source, &tree);
            let found = tree.sources.iter().flat_map(check);
            found.map(|finding| format!("{finding} ({})", rule.law)).collect::<Vec<_>>()
        })
        .collect();
    assert!(findings.is_empty(), "{} findings:\n{}", findings.len(), findings.join("\n"));
}

#[test]
fn every_rule_finds_what_was_planted() {
    let tree = Tree::default();
    for rule in RULES {
        let (path, text, line) = rule.planted;
        let text = text.to_owned() + &"\n".repeat(line.saturating_sub(text.lines().count()));
        let found = (rule.check)(&Source::new(path, &text), &tree);
        let lines: Vec<_> = found.iter().map(|finding| finding.line).collect();
        assert_eq!(lines, [line], "the rule {:?} is blind", rule.law);
    }
}

#[test]
fn no_rule_finds_fault_with_a_tidy_file() {
    let tree = Tree::default();
    let text = "//! A tidy file: `async`, tokio and println!() may be spoken of.\n\n\
                use crate::types::Seq;\n\n/// A quote.\npub const X: &str = \"dbg!(async)\";\n";
    for rule in RULES {
        let found = (rule.check)(&Source::new("common/src/format/x.rs", text), &tree);
        assert!(found.is_empty(), "the rule {:?} found {}", rule.law, found[0]);
    }
}

fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    fs::canonicalize(tests.join("..")).expect("the tests lie within the repository")
}

/// The layers of `cairn-common` and what each may name with `crate::`.
fn allowed_modules(path: &str) -> Option<&'static [&'static str]> {
    const TYPES: &[&str] = &["types", "error", "limits"];
    const LSM: &[&str] = &["types", "error", "limits", "faults", "lsm", "Error", "Result"];
    const FORMAT: &[&str] = &["types", "limits", "faults", "lsm", "format"];
    const STORE: &[&str] = &[
        "types", "error", "limits", "faults", "lsm", "format", "clock", "env", "config", "store",
        "Error", "Result",
    ];
    const READ: &[&str] = &[
        "types", "error", "limits", "faults", "lsm", "format", "clock", "env", "config", "store",
        "read", "Error", "Result",
    ];
    let rest = path.strip_prefix("common/src/")?;
    match rest.split(['/', '.']).next()? {
        "types" => Some(TYPES),
        "lsm" => Some(LSM),
        "format" => Some(FORMAT),
        "store" => Some(STORE),
        "read" => Some(READ),
        _ => None,
    }
}

fn layers_import_leftwards(source: &Source, _: &Tree) -> Vec<Finding> {
    let Some(allowed) = allowed_modules(&source.path) else { return Vec::new() };
    let wrong = |module: &String| !allowed.contains(&module.as_str());
    source
        .modules_named()
        .into_iter()
        .filter(|(_, module)| wrong(module))
        .map(|(line, module)| source.finding(line, format!("imports rightwards: {module}")))
        .collect()
}

fn pure_layers_are_pure(source: &Source, _: &Tree) -> Vec<Finding> {
    const IMPURE: &[&str] = &[
        "tokio",
        "object_store",
        "async",
        "std::fs",
        "std::net",
        "std::env",
        "std::process",
        "SystemTime",
        "Instant",
        "rand",
        "tracing",
    ];
    let pure = ["common/src/types", "common/src/lsm/", "common/src/format/"];
    if !source.is_rust() || !pure.iter().any(|layer| source.path.starts_with(layer)) {
        return Vec::new();
    }
    let found = IMPURE.iter().flat_map(|word| source.words_in_code(word, "a pure layer names"));
    source.in_production(found.collect())
}

fn only_the_store_does_io(source: &Source, _: &Tree) -> Vec<Finding> {
    let free = ["common/src/store/", "tests/"];
    if !source.is_rust() || free.iter().any(|part| source.path.starts_with(part)) {
        return Vec::new();
    }
    let found = ["object_store", "foyer"]
        .iter()
        .flat_map(|name| source.words_in_code(name, "outside the store, names"));
    source.in_production(found.collect())
}

/// The package of a process that this path belongs to, and the names of the others.
fn other_processes(path: &str) -> Vec<&'static str> {
    let processes = ["writer", "reader", "compactor"];
    let Some(own) = path.split('/').next().filter(|own| processes.contains(own)) else {
        return Vec::new();
    };
    processes.into_iter().filter(|process| *process != own).collect()
}

fn processes_do_not_import_each_other(source: &Source, _: &Tree) -> Vec<Finding> {
    other_processes(&source.path)
        .iter()
        .flat_map(|other| source.words_in_code(&format!("cairn_{other}"), "a process imports"))
        .collect()
}

fn processes_do_not_depend_on_each_other(source: &Source, _: &Tree) -> Vec<Finding> {
    if !source.path.ends_with("Cargo.toml") {
        return Vec::new();
    }
    other_processes(&source.path)
        .iter()
        .flat_map(|other| source.findings_in_text(&format!("cairn-{other}"), "a process needs"))
        .collect()
}

fn opens_with_its_purpose(source: &Source, _: &Tree) -> Vec<Finding> {
    if !source.is_rust() || source.text.starts_with("//! ") {
        return Vec::new();
    }
    vec![source.finding(1, "does not open with //!".into())]
}

fn files_are_small(source: &Source, _: &Tree) -> Vec<Finding> {
    if !source.is_rust() {
        return Vec::new();
    }
    let max = if source.is_test { TEST_LINES_MAX } else { PRODUCTION_LINES_MAX };
    let lines = source.production_lines();
    if lines <= max {
        return Vec::new();
    }
    vec![source.finding(max + 1, format!("{lines} lines are more than {max}"))]
}

fn lines_are_short(source: &Source, _: &Tree) -> Vec<Finding> {
    if !source.is_rust() {
        return Vec::new();
    }
    // A row of a table in a comment cannot be broken.
    let is_row = |line: &str| line.trim_start().starts_with("//! |");
    let long = |line: &str| line.chars().count() > COLUMNS_MAX && !is_row(line);
    source.findings_where(&source.text, long, "is longer than 100 columns")
}

fn nothing_is_unfinished(source: &Source, _: &Tree) -> Vec<Finding> {
    ["todo!", "unimplemented!", "dbg!"]
        .iter()
        .flat_map(|word| source.findings_in_code(word, "unfinished:"))
        .collect()
}

fn only_the_command_line_prints(source: &Source, _: &Tree) -> Vec<Finding> {
    if ["cli/", "tests/"].iter().any(|part| source.path.starts_with(part)) {
        return Vec::new();
    }
    ["print!", "println!", "eprint!", "eprintln!"]
        .iter()
        .flat_map(|word| source.words_in_code(word, "prints with"))
        .collect()
}

fn lints_are_not_silenced(source: &Source, _: &Tree) -> Vec<Finding> {
    ["#[allow(", "#![allow("]
        .iter()
        .flat_map(|word| source.findings_in_code(word, "use #[expect] with a reason, not"))
        .collect()
}

fn no_detached_tasks(source: &Source, _: &Tree) -> Vec<Finding> {
    ["tokio::spawn", "tokio::task::spawn("]
        .iter()
        .flat_map(|word| source.findings_in_code(word, "detaches a task with"))
        .collect()
}

fn no_notes_to_self(source: &Source, _: &Tree) -> Vec<Finding> {
    [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:")]
        .iter()
        .flat_map(|word| source.findings_in_text(word, "a note to self:"))
        .collect()
}

fn speaks_of_the_product_alone(source: &Source, _: &Tree) -> Vec<Finding> {
    const ALIEN: &[&str] = &[
        concat!("/wo", "rk/"),
        concat!("/bui", "ld/"),
        concat!("/ho", "me/"),
        concat!("/ro", "ot/"),
        concat!("issue", " #"),
    ];
    ALIEN.iter().flat_map(|word| source.findings_in_text(word, "speaks of")).collect()
}

/// Documents of a repository have names in capitals; others' documents are cited by their paths.
fn named_documents_exist(source: &Source, tree: &Tree) -> Vec<Finding> {
    let in_capitals = |name: &str| {
        let stem = name.trim_end_matches("md").trim_end_matches('.');
        has_extension(name, "md") && stem.chars().all(|c| c.is_ascii_uppercase() || c == '_')
    };
    let unknown = |line: &str| {
        let parts = line.split(|c: char| !(c.is_alphanumeric() || "._-/".contains(c)));
        let mut names = parts.map(|part| part.trim_end_matches('.'));
        names.any(|name| in_capitals(name) && !tree.has_file(name))
    };
    if source.is_rust() || has_extension(&source.path, "md") {
        source.findings_where(&source.text, unknown, "names a document that is not here")
    } else {
        Vec::new()
    }
}
