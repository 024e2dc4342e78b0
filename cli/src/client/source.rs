//! What `cairn load` reads: operations as lines, tab-separated pairs, the files of a directory.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cairn_common::http::api::write_bytes;
use cairn_common::limits::VALUE_BYTES_MAX;
use serde::{Deserialize, Deserializer};

use crate::failure::{Failure, Outcome};

/// Files above this go on their own, raw: in a batch they would be base64 within JSON.
const SMALL_FILE_BYTES: u64 = 256 * 1024;
/// The longest line: the largest value in base64, its key, and some JSON.
const LINE_BYTES_MAX: u64 = 32 << 20;

/// Bytes that stand as base64 in JSON.
#[derive(Debug)]
pub(super) struct Bytes64(pub(super) Vec<u8>);

impl<'de> Deserialize<'de> for Bytes64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        STANDARD.decode(&*text).map(Self).map_err(serde::de::Error::custom)
    }
}

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
    /// The key's value is the content of this file.
    File(PathBuf),
}

/// The key of an operation; the rest is the server's to judge.
#[derive(Deserialize)]
struct KeyOf<'a> {
    #[serde(borrow)]
    key: Option<Cow<'a, str>>,
    key_b64: Option<Bytes64>,
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

    /// All bytes that will be read, where that is known.
    pub(super) fn bytes(&self) -> Option<u64> {
        match self {
            Self::Lines(path) | Self::Pairs(path) => path.metadata().ok().map(|meta| meta.len()),
            Self::Tree(path) => {
                let mut bytes = 0;
                let counted = walk(path, &mut |_, size| {
                    bytes += size;
                    Ok(())
                });
                counted.is_ok().then_some(bytes)
            }
        }
    }

    /// Hands on everything, in the order of the source. Blocks.
    pub(super) fn read(&self, take: &mut dyn FnMut(Item) -> Outcome) -> Outcome {
        match self {
            Self::Lines(path) => each_line(path, &mut |line, text| take(operation(line, text)?)),
            Self::Pairs(path) => each_line(path, &mut |line, text| take(pair(line, text)?)),
            Self::Tree(root) => walk(root, &mut |path, bytes| take(file(root, path, bytes)?)),
        }
    }
}

/// Every line that is not blank, with its number, without its end.
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
        let mut bounded = (&mut reader).take(LINE_BYTES_MAX);
        let read = bounded.read_until(b'\n', &mut text);
        let read = read.map_err(|error| Failure::at(path, error))?;
        if read == 0 {
            break;
        }
        if text.last() == Some(&b'\n') {
            text.pop();
        } else if text.len() as u64 == LINE_BYTES_MAX {
            return Err(at(line, Failure::new("the line is too long")));
        }
        if !text.trim_ascii().is_empty() {
            take(line, &text).map_err(|failure| at(line, failure))?;
        }
    }
    Ok(())
}

fn operation(line: u64, text: &[u8]) -> Outcome<Item> {
    let named: KeyOf<'_> = serde_json::from_slice(text)
        .map_err(|error| Failure::new(format!("no operation: {error}")))?;
    let key = match (named.key, named.key_b64) {
        (Some(text), None) => text.into_owned().into_bytes(),
        (None, Some(bytes)) => bytes.0,
        _ => return Err(Failure::new("the operation has not one of key and key_b64")),
    };
    let source_bytes = text.len() as u64 + 1;
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
    let mut line = b"{\"op\":\"put\",".to_vec();
    write_bytes(&mut line, "key", key);
    line.push(b',');
    write_bytes(&mut line, "value", value);
    line.push(b'}');
    Content::Operation(line)
}

fn file(root: &Path, path: &Path, bytes: u64) -> Outcome<Item> {
    let key = path.strip_prefix(root).unwrap_or(path).as_os_str().as_bytes().to_vec();
    if bytes > VALUE_BYTES_MAX as u64 {
        let text = format!("{bytes} bytes are above the largest value, {VALUE_BYTES_MAX} bytes");
        return Err(Failure::at(path, text));
    }
    let content = if bytes <= SMALL_FILE_BYTES {
        put(&key, &std::fs::read(path).map_err(|error| Failure::at(path, error))?)
    } else {
        Content::File(path.to_owned())
    };
    Ok(Item { key, content, line: 0, source_bytes: bytes })
}

/// Every file under a directory with its size, in the order of names.
fn walk(directory: &Path, take: &mut dyn FnMut(&Path, u64) -> Outcome) -> Outcome {
    let wrong = |error| Failure::at(directory, error);
    let entries = std::fs::read_dir(directory).map_err(wrong)?;
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry.map_err(wrong)?.path());
    }
    paths.sort();
    for path in paths {
        // Links are followed to files and not to directories: those may form circles.
        let is_link = path.is_symlink();
        let meta = path.metadata().map_err(|error| Failure::at(&path, error))?;
        if meta.is_dir() && !is_link {
            walk(&path, take)?;
        } else if meta.is_file() {
            take(&path, meta.len())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(source: &Source) -> Outcome<Vec<(String, String)>> {
        let mut items = Vec::new();
        source.read(&mut |item| {
            let content = match item.content {
                Content::Operation(line) => String::from_utf8(line).unwrap(),
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
    fn files_of_a_directory_are_named_by_their_paths() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        std::fs::write(dir.path().join("sub/small"), "x").unwrap();
        let large = dir.path().join("large");
        std::fs::write(&large, vec![0; 300 * 1024]).unwrap();
        let source = Source::of(dir.path().to_owned()).unwrap();
        assert_eq!(source.bytes(), Some(300 * 1024 + 1));
        let small = r#"{"op":"put","key":"sub/small","value":"x"}"#;
        let expected =
            [("large".to_owned(), large.display().to_string()), ("sub/small".into(), small.into())];
        assert_eq!(read(&source).unwrap(), expected);
    }

    #[test]
    fn other_files_are_refused() {
        let (_dir, source) = in_file("x.csv", b"");
        assert_eq!(source.unwrap_err().code, 2);
        assert_eq!(Source::of("/none/at/all.ndjson".into()).unwrap().bytes(), None);
        assert_eq!(Source::of("/none/at/all".into()).unwrap_err().code, 2);
    }
}
