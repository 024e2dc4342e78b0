//! The files of a directory, as `cairn load` takes them.
//!
//! **Invariants**
//! - Files come in the order of their names, folder by folder.
//! - Links are followed to files and not to directories: those may form circles.
//! - What is neither a file nor a directory is left out, and said to be.

use std::fs::FileType;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use cairn_common::limits::VALUE_BYTES_MAX;
use rustix::fs::{Access, access};

use crate::failure::{Failure, Outcome};
use crate::output::note;

/// So many are named; the others are counted.
const NAMED_MAX: usize = 5;

/// What a path under the directory is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// A file of so many bytes.
    File(u64),
    /// Left out, being this.
    Skipped(&'static str),
    /// It should be loaded and cannot be, for this reason.
    Wrong(String),
}

/// What a directory holds, before any of it is sent.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// Of all files.
    pub(super) bytes: u64,
    /// What is left out: how many.
    pub(super) skipped: usize,
    wrong: Vec<String>,
}

impl Survey {
    /// Looks at every file, and names the first of those that are left out.
    pub(super) fn of(root: &Path) -> Outcome<Self> {
        let mut survey = Self::default();
        walk(root, &mut |path, found| {
            survey.count(path, found);
            Ok(())
        })?;
        survey.refuse_wrong()?;
        Ok(survey)
    }

    fn count(&mut self, path: &Path, found: Found) {
        let name = path.display();
        match found {
            Found::Wrong(why) => self.wrong.push(format!("{name} ({why})")),
            Found::Skipped(what) => {
                self.skipped += 1;
                if self.skipped <= NAMED_MAX {
                    note(&format!("skipping {name}: it is {what}"));
                }
            }
            Found::File(bytes) if bytes > VALUE_BYTES_MAX as u64 => {
                self.wrong.push(format!("{name} ({})", too_large(bytes)));
            }
            Found::File(bytes) => match access(path, Access::READ_OK) {
                Ok(()) => self.bytes += bytes,
                Err(error) => self.wrong.push(format!("{name} ({error})")),
            },
        }
    }

    fn refuse_wrong(&self) -> Outcome {
        if self.wrong.is_empty() {
            return Ok(());
        }
        let named: Vec<&str> = self.wrong.iter().take(NAMED_MAX).map(String::as_str).collect();
        let more = match self.wrong.len() - named.len() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let named = named.join(", ");
        Err(Failure::usage(format!("nothing was loaded, for this cannot be: {named}{more}")))
    }
}

/// Why a file of so many bytes is refused.
pub(super) fn too_large(bytes: u64) -> String {
    format!("{bytes} bytes are above the largest value, {VALUE_BYTES_MAX} bytes")
}

/// Everything under a directory but directories, in the order of names.
pub(super) fn walk(directory: &Path, take: &mut dyn FnMut(&Path, Found) -> Outcome) -> Outcome {
    let entries = std::fs::read_dir(directory).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let mut paths = match entries {
        Ok(entries) => entries.into_iter().map(|entry| entry.path()).collect::<Vec<_>>(),
        Err(error) => return take(directory, Found::Wrong(error.to_string())),
    };
    paths.sort();
    for path in paths {
        let is_link = path.is_symlink();
        match path.metadata() {
            Ok(meta) if meta.is_dir() && !is_link => walk(&path, take)?,
            Ok(meta) if meta.is_file() => take(&path, Found::File(meta.len()))?,
            Ok(meta) => take(&path, Found::Skipped(name_of(meta.file_type())))?,
            Err(error) if is_link => {
                take(&path, Found::Wrong(format!("a link that leads nowhere: {error}")))?;
            }
            Err(error) => take(&path, Found::Wrong(error.to_string()))?,
        }
    }
    Ok(())
}

fn name_of(kind: FileType) -> &'static str {
    match kind {
        kind if kind.is_dir() => "a link to a directory",
        kind if kind.is_fifo() => "a FIFO",
        kind if kind.is_socket() => "a socket",
        _ => "a device",
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn files_are_counted_and_the_rest_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        std::fs::create_dir(root.join("sub")).unwrap();
        std::fs::write(root.join("sub/file"), "four").unwrap();
        symlink(root.join("sub/file"), root.join("link")).unwrap();
        symlink(root, root.join("sub/circle")).unwrap();
        let _socket = UnixListener::bind(root.join("socket")).unwrap();
        let mut found = Vec::new();
        walk(root, &mut |path, what| {
            found.push((path.strip_prefix(root).unwrap().display().to_string(), what));
            Ok(())
        })
        .unwrap();
        let expected = [
            ("link".to_owned(), Found::File(4)),
            ("socket".into(), Found::Skipped("a socket")),
            ("sub/circle".into(), Found::Skipped("a link to a directory")),
            ("sub/file".into(), Found::File(4)),
        ];
        assert_eq!(found, expected);
        let survey = Survey::of(root).unwrap();
        assert_eq!((survey.bytes, survey.skipped), (8, 2));
    }

    #[test]
    fn what_cannot_be_loaded_is_named_before_anything_is_sent() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("fine"), "x").unwrap();
        let largest = std::fs::File::create(dir.path().join("large")).unwrap();
        largest.set_len(VALUE_BYTES_MAX as u64).unwrap();
        assert!(Survey::of(dir.path()).is_ok());
        largest.set_len(VALUE_BYTES_MAX as u64 + 1).unwrap();
        symlink("nowhere", dir.path().join("dangling")).unwrap();
        symlink("loop", dir.path().join("loop")).unwrap();
        let failure = Survey::of(dir.path()).unwrap_err();
        assert_eq!(failure.code, 2);
        for part in ["dangling (a link that leads nowhere", "large (16777217 bytes", "loop ("] {
            assert!(failure.text.contains(part), "{failure}");
        }
        for index in 0..NAMED_MAX {
            symlink("nowhere", dir.path().join(format!("d{index}"))).unwrap();
        }
        let failure = Survey::of(dir.path()).unwrap_err();
        assert!(failure.text.ends_with(" and 3 more"), "{failure}");
    }
}
