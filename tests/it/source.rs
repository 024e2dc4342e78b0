//! The source text as the rules see it: code apart from comments and literals, with line numbers.
#![expect(clippy::string_slice, reason = "every index comes from a search in the same text")]

use std::fmt;
use std::fs;
use std::path::Path;

/// Folders that hold no source of ours.
const SKIPPED: &[&str] =
    &[".git", ".cargo", ".venv", "target", "cairn-data", "node_modules", "out"];
/// Files that are text of ours, by the ends of their names.
const TEXT: &[&str] =
    &["rs", "toml", "md", "yaml", "yml", "sh", "txt", "json", "Dockerfile", "run", "validate"];

/// Every text file of the repository.
#[derive(Default)]
pub(super) struct Tree {
    pub(super) sources: Vec<Source>,
}

/// One file: its text, and the same with comments and literals blanked out.
pub(super) struct Source {
    /// Its path from the root, with slashes.
    pub(super) path: String,
    pub(super) text: String,
    /// As long as `text`, line by line; only code is left in it.
    pub(super) code: String,
    /// Whether the whole file is tests.
    pub(super) is_test: bool,
}

/// What a rule has found.
pub(super) struct Finding {
    pub(super) path: String,
    pub(super) line: usize,
    pub(super) what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.what)
    }
}

impl Tree {
    /// Reads every text file under `root`.
    pub(super) fn read(root: &Path) -> Self {
        let mut sources = Vec::new();
        let mut folders = vec![root.to_path_buf()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).expect("a folder of the repository") {
                let path = entry.expect("an entry of a folder").path();
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                if path.is_dir() && !SKIPPED.contains(&&*name) {
                    folders.push(path);
                } else if path.is_file() && TEXT.contains(&name.rsplit('.').next().unwrap_or("")) {
                    let inside = path.strip_prefix(root).expect("a path under the root");
                    let text = fs::read_to_string(&path).expect("a text file in UTF-8");
                    sources.push(Source::new(&inside.to_string_lossy(), &text));
                }
            }
        }
        sources.sort_by(|a, b| a.path.cmp(&b.path));
        let tests: Vec<_> = sources.iter().flat_map(Source::test_modules).collect();
        for source in &mut sources {
            source.is_test |= tests.contains(&source.path);
        }
        Self { sources }
    }

    /// Whether a file of the repository has this name, or this end of its path.
    pub(super) fn has_file(&self, name: &str) -> bool {
        let name = name.trim_start_matches("./").trim_start_matches("../");
        self.sources.iter().any(|source| {
            source
                .path
                .strip_suffix(name)
                .is_some_and(|rest| rest.is_empty() || rest.ends_with('/'))
        })
    }
}

impl Source {
    pub(super) fn new(path: &str, text: &str) -> Self {
        let code = if has_extension(path, "rs") { code_of(text) } else { String::new() };
        let is_test = path.starts_with("tests/") || path.contains("/tests/");
        Self { path: path.to_owned(), text: text.to_owned(), code, is_test }
    }

    pub(super) fn is_rust(&self) -> bool {
        has_extension(&self.path, "rs")
    }

    /// The lines before the module of unit tests.
    pub(super) fn production_lines(&self) -> usize {
        let lines: Vec<_> = self.text.lines().collect();
        let is_tests = |pair: &[&str]| pair[0] == "#[cfg(test)]" && pair[1].ends_with(" {");
        lines.windows(2).position(is_tests).unwrap_or(lines.len())
    }

    /// The paths of the files that are modules of this one in tests alone.
    fn test_modules(&self) -> Vec<String> {
        let folder = match self.path.rsplit_once('/') {
            Some((folder, "mod.rs" | "lib.rs" | "main.rs")) => folder,
            _ => self.path.trim_end_matches(".rs"),
        };
        let lines: Vec<_> = self.code.lines().collect();
        let named = lines
            .windows(2)
            .filter(|pair| pair[0] == "#[cfg(test)]")
            .filter_map(|pair| pair[1].strip_suffix(';')?.split_once("mod ").map(|(_, name)| name));
        named.map(|name| format!("{folder}/{name}.rs")).collect()
    }

    pub(super) fn finding(&self, line: usize, what: String) -> Finding {
        Finding { path: self.path.clone(), line, what }
    }

    /// The lines of `text` that `wrong` says so of.
    pub(super) fn findings_where(
        &self,
        text: &str,
        wrong: impl Fn(&str) -> bool,
        what: &str,
    ) -> Vec<Finding> {
        let lines = text.lines().enumerate().filter(|(_, line)| wrong(line));
        lines.map(|(index, _)| self.finding(index + 1, what.to_owned())).collect()
    }

    pub(super) fn findings_in_text(&self, word: &str, what: &str) -> Vec<Finding> {
        let what = format!("{what} {word}");
        self.findings_where(&self.text, |line| line.contains(word), &what)
    }

    pub(super) fn findings_in_code(&self, word: &str, what: &str) -> Vec<Finding> {
        let what = format!("{what} {word}");
        self.findings_where(&self.code, |line| line.contains(word), &what)
    }

    /// The findings in what is not tests.
    pub(super) fn in_production(&self, findings: Vec<Finding>) -> Vec<Finding> {
        let lines = if self.is_test { 0 } else { self.production_lines() };
        findings.into_iter().filter(|finding| finding.line <= lines).collect()
    }

    /// Like `findings_in_code`, but `word` must stand alone: `rand` is not found in `operand`.
    pub(super) fn words_in_code(&self, word: &str, what: &str) -> Vec<Finding> {
        let what = format!("{what} {word}");
        let in_name = |c: char| c.is_alphanumeric() || c == '_';
        let alone = |line: &str| {
            line.match_indices(word).any(|(start, _)| {
                let (before, after) = (&line[..start], &line[start + word.len()..]);
                !before.ends_with(in_name) && !after.starts_with(in_name)
            })
        };
        self.findings_where(&self.code, alone, &what)
    }

    /// The top modules of the crate that the production code names, each with its line: by
    /// `crate::`, or by as many `super::` as lead there.
    pub(super) fn modules_named(&self) -> Vec<(usize, String)> {
        let to_top = "super::".repeat(self.module_depth());
        let from_top = ["crate::", to_top.as_str()];
        let mut modules = Vec::new();
        for (index, line) in self.code.lines().take(self.production_lines()).enumerate() {
            let offset = line.as_ptr().addr() - self.code.as_ptr().addr();
            for (start, path) in from_top.iter().flat_map(|path| line.match_indices(path)) {
                let longer = line[..start].ends_with("super::");
                let rest = &self.code[offset + start + path.len()..];
                match rest.strip_prefix('{') {
                    _ if longer || rest.starts_with("super::") => {}
                    Some(group) => modules.extend(first_names(group).map(|name| (index + 1, name))),
                    None => modules.push((index + 1, first_name(rest))),
                }
            }
        }
        modules
    }

    /// How many modules lie between the crate and this file's own code, itself included:
    /// 2 for `common/src/format/sst.rs` and for `common/src/format/block/mod.rs`.
    fn module_depth(&self) -> usize {
        let inside = self.path.split_once("src/").map_or(self.path.as_str(), |(_, rest)| rest);
        inside.trim_end_matches("/mod.rs").split('/').count()
    }
}

/// Whether the file at `path` is of the kind that `extension` says.
pub(super) fn has_extension(path: &str, extension: &str) -> bool {
    Path::new(path).extension().is_some_and(|found| found == extension)
}

/// The identifier that a path begins with.
fn first_name(path: &str) -> String {
    path.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// The first names of a braced group of imports, whose opening brace has been taken.
fn first_names(group: &str) -> impl Iterator<Item = String> {
    let mut depth = 1_usize;
    let mut starts = vec![0];
    for (index, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => starts.push(index + 1),
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    starts.into_iter().map(|start| first_name(&group[start..])).filter(|name| !name.is_empty())
}

/// What of a Rust text is code: comments and the insides of literals become spaces.
fn code_of(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let blank = match first {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => rest.find("*/").map_or(rest.len(), |end| end + 2),
            '"' => quoted_len(rest),
            'r' => raw_len(rest),
            '\'' => char_len(rest),
            _ => 0,
        };
        let (blanked, taken) = if blank == 0 { (false, first.len_utf8()) } else { (true, blank) };
        for c in rest[..taken].chars() {
            code.push(if blanked && c != '\n' { ' ' } else { c });
        }
        rest = &rest[taken..];
    }
    code
}

/// The length of the string literal at the start of `rest`.
fn quoted_len(rest: &str) -> usize {
    let mut escaped = false;
    for (index, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return index + 1,
            _ => {}
        }
    }
    rest.len()
}

/// The length of the raw string literal at the start of `rest`; 0 where there is none. (No name
/// that ends in `r` can stand before a quote.)
fn raw_len(rest: &str) -> usize {
    let hashes = rest[1..].chars().take_while(|c| *c == '#').count();
    if !rest[1 + hashes..].starts_with('"') {
        return 0;
    }
    let end = "\"".to_owned() + &"#".repeat(hashes);
    let inside = 1 + hashes + 1;
    rest[inside..].find(&end).map_or(rest.len(), |found| inside + found + end.len())
}

/// The length of the character literal at the start of `rest`; 0 where it is a lifetime.
fn char_len(rest: &str) -> usize {
    if rest.starts_with("'\\") {
        let mut after_escape = rest.char_indices().skip(3);
        return after_escape.find(|(_, c)| *c == '\'').map_or(0, |(at, _)| at + 1);
    }
    let mut chars = rest.char_indices().skip(2);
    chars.next().filter(|(_, c)| *c == '\'').map_or(0, |(at, _)| at + 1)
}

#[test]
fn comments_and_literals_are_not_code() {
    let text = "a // b\n'c' \"d\\\"e\" r#\"f\"g\"# h<'i> '\\'' j /* k\n */ l br#\"m\"\"# n";
    let words: Vec<_> = code_of(text).split_whitespace().map(str::to_owned).collect();
    assert_eq!(words, ["a", "h<'i>", "j", "l", "b", "n"]);
    assert_eq!(code_of(text).lines().count(), text.lines().count());
}

#[test]
fn groups_of_imports_are_seen_through() {
    let text = "use crate::types::A;\nuse crate::{\n    b::{c, d},\n    e,\n};\n\
                super::super::f();\n\
                super::x();\n#[cfg(test)]\nmod tests {\n    use crate::y;\n}\n";
    for path in ["common/src/format/sst.rs", "common/src/format/block/mod.rs"] {
        let modules = Source::new(path, text).modules_named();
        let names: Vec<_> = modules.iter().map(|(line, name)| (*line, name.as_str())).collect();
        assert_eq!(names, [(1, "types"), (2, "b"), (2, "e"), (6, "f")]);
    }
}
