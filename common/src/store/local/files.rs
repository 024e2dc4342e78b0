//! The files of a directory store: blocking, and durable when a call returns.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path as FilePath, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use object_store::path::Path;
use object_store::{Error, GetOptions, ObjectMeta, PutPayload, Result};
use xxhash_rust::xxh3::Xxh3;

use crate::clock::{Clock as _, SystemClock};
use crate::store::answer::{NothingHappened, TooShort};

/// Stands in the names of files that are not objects.
pub(super) const MARK: char = '#';

/// The files under one root.
#[derive(Debug)]
pub(super) struct Files {
    root: PathBuf,
    /// Directories that this process knows to be durable.
    durable: Mutex<BTreeSet<PathBuf>>,
    /// In the names of staged files: no other process, of this or another pid namespace, before or
    /// after, has the same.
    tag: String,
    staged: AtomicU64,
}

/// A file that is written beside its place. Removed when dropped, unless it was put there.
#[derive(Debug)]
pub(super) struct Staged {
    pub(super) file: File,
    pub(super) path: PathBuf,
    place: PathBuf,
}

/// What a read found.
pub(super) struct Read {
    pub(super) bytes: Bytes,
    pub(super) range: Range<u64>,
    pub(super) meta: ObjectMeta,
}

impl Files {
    pub(super) fn new(root: PathBuf) -> Self {
        let since_boot = SystemClock::default().boot().as_nanos();
        let tag = format!("{}-{since_boot:x}", std::process::id());
        Self { root, durable: Mutex::default(), tag, staged: AtomicU64::new(0) }
    }

    pub(super) fn root(&self) -> &FilePath {
        &self.root
    }

    /// Writes an object where none is; returns its ETag.
    pub(super) fn create(&self, location: &Path, payload: &PutPayload) -> Result<String> {
        let place = self.place(location)?;
        if !place.exists() {
            let staged = self.stage_all(location, payload)?;
            match fs::hard_link(&staged.path, &place) {
                Ok(()) => {
                    sync_parent(&place).map_err(unsure)?;
                    return Ok(e_tag(payload.iter()));
                }
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(nothing_happened(error)),
            }
        }
        sync_parent(&place).map_err(unsure)?;
        let source = "the file exists".into();
        Err(Error::AlreadyExists { path: location.to_string(), source })
    }

    /// Writes an object whatever is there; returns its ETag.
    pub(super) fn overwrite(&self, location: &Path, payload: &PutPayload) -> Result<String> {
        self.stage_all(location, payload)?.put_in_place()?;
        Ok(e_tag(payload.iter()))
    }

    /// Begins an object.
    pub(super) fn stage(&self, location: &Path) -> Result<Staged> {
        self.stage_as(location, "")
    }

    /// Begins an object, in a file whose mark begins with `kind`.
    fn stage_as(&self, location: &Path, kind: &str) -> Result<Staged> {
        let place = self.place(location)?;
        self.make_parent_durable(&place).map_err(nothing_happened)?;
        let count = self.staged.fetch_add(1, Ordering::Relaxed);
        let path = marked(&place, &format!("{kind}{}-{count}", self.tag));
        let file = OpenOptions::new().write(true).create_new(true).open(&path);
        let file = file.map_err(nothing_happened)?;
        // Freed by the end of the process at the latest: what is locked is not swept.
        file.try_lock().unwrap_or_default();
        Ok(Staged { file, path, place })
    }

    fn stage_all(&self, location: &Path, payload: &PutPayload) -> Result<Staged> {
        self.stage_all_as(location, "", payload)
    }

    /// An object whose bytes are written and synced, and that is not yet in its place.
    pub(super) fn stage_all_as(
        &self,
        location: &Path,
        kind: &str,
        payload: &PutPayload,
    ) -> Result<Staged> {
        let mut staged = self.stage_as(location, kind)?;
        for piece in payload {
            staged.file.write_all(piece).map_err(nothing_happened)?;
        }
        staged.file.sync_all().map_err(nothing_happened)?;
        Ok(staged)
    }

    /// Reads an object, or a range of it, as the options say.
    pub(super) fn read(&self, location: &Path, options: &GetOptions) -> Result<Read> {
        let place = self.place(location)?;
        let missing = |error: io::Error| match error.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => {
                Error::NotFound { path: location.to_string(), source: error.into() }
            }
            _ => unsure(error),
        };
        let file = File::open(&place).map_err(missing)?;
        let metadata = file.metadata().map_err(unsure)?;
        if metadata.is_dir() {
            return Err(missing(ErrorKind::NotFound.into()));
        }
        let mut meta = meta_of(location.clone(), &metadata);
        let range = match &options.range {
            Some(range) => range.as_range(meta.size).map_err(|error| Error::Generic {
                store: "LocalDirectory",
                source: TooShort(error.to_string()).into(),
            })?,
            None => 0..meta.size,
        };
        let whole = range == (0..meta.size) && !options.head;
        let conditional = options.if_match.is_some() || options.if_none_match.is_some();
        let everything = if whole || conditional {
            let bytes = read_range(&file, 0..meta.size).map_err(unsure)?;
            meta.e_tag = Some(e_tag([&bytes]));
            Some(bytes)
        } else {
            None
        };
        options.check_preconditions(&meta)?;
        let bytes = match everything {
            _ if options.head => Bytes::new(),
            Some(bytes) if whole => bytes,
            _ => read_range(&file, range.clone()).map_err(unsure)?,
        };
        Ok(Read { bytes, range, meta })
    }

    /// Deletes an object; one that is not there is an error, as with other stores.
    pub(super) fn delete(&self, location: Path) -> Result<Path> {
        match fs::remove_file(self.place(&location)?) {
            Ok(()) => Ok(location),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                Err(Error::NotFound { path: location.to_string(), source: error.into() })
            }
            Err(error) => Err(nothing_happened(error)),
        }
    }

    /// Makes the entries of the root durable.
    pub(super) fn sync_root(&self) -> Result<()> {
        match sync(&self.root) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(nothing_happened(error)),
            _ => Ok(()),
        }
    }

    /// Every object below a prefix.
    pub(super) fn list(&self, prefix: &Path) -> Result<Vec<ObjectMeta>> {
        let mut found = Vec::new();
        let mut directories = vec![prefix.clone()];
        while let Some(directory) = directories.pop() {
            let (objects, below) = self.list_one_level(&directory)?;
            found.extend(objects);
            directories.extend(below);
        }
        Ok(found)
    }

    /// The objects and directories directly below a prefix.
    pub(super) fn list_one_level(&self, prefix: &Path) -> Result<(Vec<ObjectMeta>, Vec<Path>)> {
        let (mut objects, mut directories) = (Vec::new(), Vec::new());
        let entries = match fs::read_dir(self.root.join(prefix.as_ref())) {
            Ok(entries) => entries,
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
            {
                return Ok((objects, directories));
            }
            Err(error) => return Err(unsure(error)),
        };
        for entry in entries {
            let entry = entry.map_err(unsure)?;
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
            let metadata = match entry.metadata() {
                Ok(metadata) => metadata,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(unsure(error)),
            };
            let path = prefix.clone().join(name.as_str());
            if metadata.is_dir() {
                directories.push(path);
            } else if metadata.is_file() && !name.contains(MARK) {
                objects.push(meta_of(path, &metadata));
            }
        }
        Ok((objects, directories))
    }

    /// Where an object's file is.
    pub(super) fn place(&self, location: &Path) -> Result<PathBuf> {
        let name = location.as_ref();
        if name.is_empty() || name.contains(MARK) {
            let source = format!("{name:?} cannot be the name of an object").into();
            return Err(Error::NotSupported { source });
        }
        Ok(self.root.join(name))
    }

    /// Whether this process has written below the root.
    fn was_there(&self) -> bool {
        !self.durable.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Creates the directory of a file, and makes it durable up to the root's own entry.
    ///
    /// SUBTLE: a directory that exists may have been made a moment ago by a process that has not
    /// synced it yet; so each process syncs each directory once, whoever made it.
    ///
    /// INVARIANT: a root that was there is not made again: what is written to a new one, after the
    /// old one was moved away, is lost when that one is moved back.
    fn make_parent_durable(&self, place: &FilePath) -> io::Result<()> {
        let Some(parent) = place.parent() else { return Ok(()) };
        let known = |durable: &Mutex<BTreeSet<PathBuf>>| {
            durable.lock().unwrap_or_else(PoisonError::into_inner).contains(parent)
        };
        if known(&self.durable) && parent.exists() {
            return Ok(());
        }
        if self.was_there() {
            fs::metadata(&self.root)?;
            let below: Vec<_> = parent.ancestors().take_while(|at| *at != self.root).collect();
            for directory in below.into_iter().rev() {
                fs::create_dir(directory).or_else(fine_if_exists)?;
            }
        } else {
            fs::create_dir_all(parent)?;
        }
        for directory in parent.ancestors() {
            sync(directory)?;
            if self.root.parent() == Some(directory) {
                break;
            }
        }
        let mut durable = self.durable.lock().unwrap_or_else(PoisonError::into_inner);
        durable.insert(parent.to_owned());
        Ok(())
    }
}

fn fine_if_exists(error: io::Error) -> io::Result<()> {
    if error.kind() == ErrorKind::AlreadyExists { Ok(()) } else { Err(error) }
}

impl Staged {
    /// Writes a piece at an offset.
    pub(super) fn write_at(&self, piece: &[u8], offset: u64) -> Result<()> {
        self.file.write_all_at(piece, offset).map_err(nothing_happened)
    }

    /// Makes what was written durable.
    pub(super) fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(nothing_happened)
    }

    /// Moves the synced file to its place, durably.
    pub(super) fn put_in_place(self) -> Result<()> {
        fs::rename(&self.path, &self.place).map_err(nothing_happened)?;
        sync_parent(&self.place).map_err(unsure)
    }

    /// Moves the synced file to its place, durably; false, and nothing has changed, if another swap
    /// has removed it meanwhile.
    pub(super) fn put_in_place_unless_revoked(self) -> Result<bool> {
        match fs::rename(&self.path, &self.place) {
            Ok(()) => sync_parent(&self.place).map(|()| true).map_err(unsure),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(nothing_happened(error)),
        }
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // Gone already where it was put in place.
        drop(fs::remove_file(&self.path));
    }
}

/// The ETag of a content.
pub(super) fn e_tag<'a>(pieces: impl IntoIterator<Item = &'a Bytes>) -> String {
    let mut digest = Xxh3::new();
    for piece in pieces {
        digest.update(piece);
    }
    format!("\"{:032x}\"", digest.digest128())
}

pub(super) fn marked(place: &FilePath, what: &str) -> PathBuf {
    let mut name = OsString::from(place);
    name.push(format!("{MARK}{what}"));
    name.into()
}

fn meta_of(location: Path, metadata: &Metadata) -> ObjectMeta {
    let modified = metadata.modified().unwrap_or(std::time::SystemTime::UNIX_EPOCH);
    ObjectMeta {
        location,
        last_modified: modified.into(),
        size: metadata.len(),
        e_tag: None,
        version: None,
    }
}

fn read_range(file: &File, range: Range<u64>) -> io::Result<Bytes> {
    let length = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, range.start)?;
    Ok(bytes.into())
}

fn sync(directory: &FilePath) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

pub(super) fn sync_parent(place: &FilePath) -> io::Result<()> {
    place.parent().map_or(Ok(()), sync)
}

/// Nothing has changed where this error is told.
pub(super) fn nothing_happened(error: io::Error) -> Error {
    Error::Generic { store: "LocalDirectory", source: Box::new(NothingHappened(error)) }
}

/// Of a read, or of a write after it took effect.
fn unsure(error: io::Error) -> Error {
    Error::Generic { store: "LocalDirectory", source: Box::new(error) }
}
