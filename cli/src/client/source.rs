//! What `cairn load` reads: operations as lines, tab-separated pairs, the files of a directory.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use cairn_common::limits::VALUE_BYTES_MAX;

use super::line::{self, LINE_BYTES_MAX};
use super::tree::{Found, Survey, too_large, walk};
use crate::failure::{Failure, Outcome};

/// Values above this go on their own, raw: in a batch they would be text or base64 within JSON.
const SMALL_VALUE_BYTES: usize = 256 * 1024;

/// Where entries come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// One operation a line, as in a batch; `-` is stdin.
    Lines(PathBuf),
    /// Key, tab, value.
    Pairs(PathBuf),
    /// Relative path to bytes.
    Tree(PathBuf),
}

/// One thing to write.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) key: Vec<u8>,
    pub(super) content: Content,
    /// Its line in the file, from 1; 0 for files.
    pub(super) line: u64,
    /// Bytes of the source that it took.
    pub(super) source_bytes: u64,
}

/// What is to be done to the key.
#[derive(Debug)]
pub(super) enum Content {
    /// An operation as a line of a batch, without its end.
    Operation(Vec<u8>),
    /// The key gets this value.
    Value(Bytes),
    /// The key's value is the content of this file.
    File(PathBuf),
}

impl Source {
    pub(super) fn of(path: PathBuf) -> Outcome<Self> {
        let extension = path.extension().and_then(|extension| extension.to_str());
        match extension {
            _ if path.as_os_str() == "-" => Ok(Self::Lines(path)),
            _ if path.is_dir() => Ok(Self::Tree(path)),
            Some("ndjson" | "jsonl") => Ok(Self::Lines(path)),
            Some("tsv") => Ok(Self::Pairs(path)),
            _ if !path.exists() => Err(Failure::usage(format!("{}: no such file", path.display()))),
            _ => {
                let text =
                    "expected FILE.ndjson, FILE.tsv, a directory, or - for NDJSON from stdin";
                Err(Failure::usage(format!("{}: {text}", path.display())))
            }
        }
    }

    /// What is known before anything is read: bytes, and what is left out.
    ///
    /// Fails where something in a directory cannot be loaded.
    pub(super) fn survey(&self) -> Outcome<(Option<u64>, usize)> {
        match self {
            Self::Lines(path) | Self::Pairs(path) => {
                Ok((path.metadata().ok().map(|meta| meta.len()), 0))
            }
            Self::Tree(path) => {
                let survey = Survey::of(path)?;
                Ok((Some(survey.bytes), survey.skipped))
            }
        }
    }

    /// Hands on everything, in the order of the source. Blocks.
    pub(super) fn read(&self, take: &mut dyn FnMut(Item) -> Outcome) -> Outcome {
        match self {
            Self::Lines(path) => each_line(path, &mut |line, text| match text.trim_ascii() {
                b"" => Ok(()),
                _ => take(operation(line, text)?),
            }),
            Self::Pairs(path) => {
                // SUBTLE: the first line decides, as for COPY of PostgreSQL: in a file of LF lines
                // a value may well end in CR.
                let mut ends = None;
                each_line(path, &mut |line, text| {
                    let end = *ends.get_or_insert_with(|| LineEnd::of(text));
                    take(pair(line, end.strip(text))?)
                })
            }
            Self::Tree(root) => walk(root, &mut |path, found| match found {
                Found::File(bytes) => take(file(root, path, bytes)?),
                Found::Skipped(_) => Ok(()),
                Found::Wrong(why) => Err(Failure::at(path, why)),
            }),
        }
    }
}

/// How the lines of a file of pairs end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LineEnd {
    Lf,
    CrLf,
}

impl LineEnd {
    fn of(first: &[u8]) -> Self {
        if first.ends_with(b"\r") { Self::CrLf } else { Self::Lf }
    }

    fn strip(self, text: &[u8]) -> &[u8] {
        match self {
            Self::Lf => text,
            Self::CrLf => text.strip_suffix(b"\r").unwrap_or(text),
        }
    }
}

/// Every line that is not empty, with its number, without its LF.
fn each_line(path: &Path, take: &mut dyn FnMut(u64, &[u8]) -> Outcome) -> Outcome {
    let at = |line: u64, failure: Failure| {
        let text = format!("{}:{line}: {}", path.display(), failure.text);
        Failure { text, ..failure }
    };
    let mut reader: Box<dyn BufRead> = if path.as_os_str() == "-" {
        Box::new(BufReader::new(io::stdin()))
    } else {
        let file = File::open(path).map_err(|error| Failure::at(path, error))?;
        Box::new(BufReader::with_capacity(1 << 16, file))
    };
    let mut text = Vec::new();
    for line in 1.. {
        text.clear();
        let mut bounded = (&mut reader).take(LINE_BYTES_MAX as u64);
        let read = bounded.read_until(b'\n', &mut text);
        let read = read.map_err(|error| Failure::at(path, error))?;
        if read == 0 {
            break;
        }
        if text.last() == Some(&b'\n') {
            text.pop();
        } else if text.len() == LINE_BYTES_MAX {
            return Err(at(line, Failure::new("the line is too long")));
        }
        if !matches!(&*text, b"" | b"\r") {
            take(line, &text).map_err(|failure| at(line, failure))?;
        }
    }
    Ok(())
}

fn operation(line: u64, text: &[u8]) -> Outcome<Item> {
    let source_bytes = text.len() as u64 + 1;
    if text.len() > SMALL_VALUE_BYTES
        && let Some((key, value)) = line::put_of(text)?
    {
        let content = Content::Value(value.into());
        return Ok(Item { key, content, line, source_bytes });
    }
    let key = line::key_of(text)?;
    Ok(Item { key, content: Content::Operation(text.to_vec()), line, source_bytes })
}

fn pair(line: u64, text: &[u8]) -> Outcome<Item> {
    let tab = text.iter().position(|byte| *byte == b'\t');
    let tab = tab.ok_or_else(|| Failure::new("no tab between a key and its value"))?;
    let (key, value) =
        (text.get(..tab).unwrap_or_default(), text.get(tab + 1..).unwrap_or_default());
    let source_bytes = text.len() as u64 + 1;
    Ok(Item { key: key.to_vec(), content: put(key, value), line, source_bytes })
}

fn put(key: &[u8], value: &[u8]) -> Content {
    if value.len() > SMALL_VALUE_BYTES {
        return Content::Value(Bytes::copy_from_slice(value));
    }
    let mut line = Vec::new();
    line::write_put(&mut line, key, value);
    Content::Operation(line)
}

fn file(root: &Path, path: &Path, bytes: u64) -> Outcome<Item> {
    let key = path.strip_prefix(root).unwrap_or(path).as_os_str().as_bytes().to_vec();
    // It may have grown since it was looked at.
    if bytes > VALUE_BYTES_MAX as u64 {
        return Err(Failure::at(path, too_large(bytes)));
    }
    let content = if bytes <= SMALL_VALUE_BYTES as u64 {
        put(&key, &std::fs::read(path).map_err(|error| Failure::at(path, error))?)
    } else {
        Content::File(path.to_owned())
    };
    Ok(Item { key, content, line: 0, source_bytes: bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(source: &Source) -> Outcome<Vec<(String, String)>> {
        let mut items = Vec::new();
        source.read(&mut |item| {
            let content = match item.content {
                Content::Operation(line) => String::from_utf8(line).unwrap(),
                Content::Value(value) => format!("{} bytes", value.len()),
                Content::File(path) => path.display().to_string(),
            };
            items.push((String::from_utf8_lossy(&item.key).into_owned(), content));
            Ok(())
        })?;
        Ok(items)
    }

    fn in_file(name: &str, bytes: &[u8]) -> (tempfile::TempDir, Outcome<Source>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        (dir, Source::of(path))
    }

    #[test]
    fn lines_are_handed_on_as_they_stand() {
        let text = b"{\"op\":\"put\",\"key\":\"a\",\"value\":\"1\"}\n\n\
            {\"op\":\"delete\",\"key_b64\":\"Yg==\"}";
        let (_dir, source) = in_file("x.ndjson", text);
        let items = read(&source.unwrap()).unwrap();
        assert_eq!(items.iter().map(|(key, _)| &**key).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(items[1].1, "{\"op\":\"delete\",\"key_b64\":\"Yg==\"}");
        let (_dir, source) = in_file("x.ndjson", b"{\"op\":\"delete\",\"key\":\"a\"}\nnonsense\n");
        let failure = read(&source.unwrap()).unwrap_err();
        assert!(failure.text.contains("x.ndjson:2: no operation"), "{failure}");
    }

    #[test]
    fn pairs_become_puts() {
        let (_dir, source) = in_file("x.tsv", b"a\tone\ttwo\n\xff\t\n");
        let items = read(&source.unwrap()).unwrap();
        assert_eq!(items[0].1, r#"{"op":"put","key":"a","value":"one\ttwo"}"#);
        assert_eq!(items[1].1, r#"{"op":"put","key_b64":"/w==","value":""}"#);
        let (_dir, source) = in_file("x.tsv", b"a\n");
        assert!(
            read(&source.unwrap())
                .unwrap_err()
                .text
                .ends_with(":1: no tab between a key and its value")
        );
    }

    #[test]
    fn the_first_line_says_how_lines_end() {
        let (_dir, source) = in_file("x.tsv", b"a\tone\r\n\r\nb\ttwo\r\r\nc\tthree\n");
        let values = |source: Outcome<Source>| {
            let items = read(&source.unwrap()).unwrap();
            items.into_iter().map(|(_, put)| put).collect::<Vec<_>>()
        };
        let put = |key: &str, value: &str| {
            format!("{{\"op\":\"put\",\"key\":\"{key}\",\"value\":\"{value}\"}}")
        };
        let expected = [put("a", "one"), put("b", "two\\r"), put("c", "three")];
        assert_eq!(values(source), expected);
        let (_dir, source) = in_file("x.tsv", b"a\tone\nb\ttwo\r\n \t \n");
        assert_eq!(values(source), [put("a", "one"), put("b", "two\\r"), put(" ", " ")]);
    }

    #[test]
    fn large_values_go_on_their_own() {
        let large = "\\u0001".repeat(SMALL_VALUE_BYTES / 6 + 1);
        let text = format!("{{\"op\":\"put\",\"key\":\"a\",\"value\":\"{large}\"}}\n");
        let (_dir, source) = in_file("x.ndjson", text.as_bytes());
        let count = SMALL_VALUE_BYTES / 6 + 1;
        assert_eq!(read(&source.unwrap()).unwrap(), [("a".into(), format!("{count} bytes"))]);
        let value = vec![b'x'; SMALL_VALUE_BYTES + 1];
        let (_dir, source) = in_file("x.tsv", &[b"a\t", &value[..], b"\n"].concat());
        let count = value.len();
        assert_eq!(read(&source.unwrap()).unwrap(), [("a".into(), format!("{count} bytes"))]);
    }

    #[test]
    fn a_file_that_vanishes_is_named() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a", "b"] {
            std::fs::write(dir.path().join(name), "x").unwrap();
        }
        let source = Source::of(dir.path().to_owned()).unwrap();
        let read = source.read(&mut |_| Ok(std::fs::remove_file(dir.path().join("b"))?));
        let failure = read.unwrap_err();
        assert!(failure.text.starts_with(&format!("{}/b: ", dir.path().display())), "{failure}");
    }

    #[test]
    fn files_of_a_directory_are_named_by_their_paths() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        std::fs::write(dir.path().join("sub/small"), "x").unwrap();
        let large = dir.path().join("large");
        std::fs::write(&large, vec![0; 300 * 1024]).unwrap();
        let source = Source::of(dir.path().to_owned()).unwrap();
        assert_eq!(source.survey().unwrap(), (Some(300 * 1024 + 1), 0));
        let small = r#"{"op":"put","key":"sub/small","value":"x"}"#;
        let expected =
            [("large".to_owned(), large.display().to_string()), ("sub/small".into(), small.into())];
        assert_eq!(read(&source).unwrap(), expected);
    }

    #[test]
    fn other_files_are_refused() {
        let (_dir, source) = in_file("x.csv", b"");
        assert_eq!(source.unwrap_err().code, 2);
        assert_eq!(Source::of("/none/at/all.ndjson".into()).unwrap().survey().unwrap(), (None, 0));
        assert_eq!(Source::of("/none/at/all".into()).unwrap_err().code, 2);
    }
}
