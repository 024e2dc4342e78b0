//! Removing what killed processes have left: staged files, and locks of objects that are gone.
//!
//! **Invariant**: what a living process is writing stays. It holds an flock on each staged file,
//! which the kernel frees when it ends, however it ends. (If one were removed all the same, its
//! rename or link would fail, and be tried again: nothing is lost.)

use std::fs::{self, DirEntry, File};
use std::io::{self, ErrorKind};
use std::time::{Duration, UNIX_EPOCH};

use object_store::Result;

use super::files::{Files, MARK, nothing_happened};
use super::swap::SWAP;
use crate::clock::{Clock as _, SystemClock};

/// Files younger than this stay: a process locks a file just after it made it.
const LEFTOVER_AGE_MIN: Duration = Duration::from_secs(10);

impl Files {
    /// Removes what killed processes have left; returns how many files and bytes.
    pub(super) fn sweep(&self) -> Result<(u64, u64)> {
        let now = Duration::from_millis(SystemClock::default().wall_ms());
        let (mut count, mut bytes) = (0, 0);
        let mut folders = vec![self.root().to_owned()];
        while let Some(folder) = folders.pop() {
            let entries = match fs::read_dir(&folder) {
                Ok(entries) => entries,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(nothing_happened(error)),
            };
            for entry in entries {
                let entry = entry.map_err(nothing_happened)?;
                match entry.file_type() {
                    Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                    Ok(kind) if kind.is_file() => {
                        // One that is gone meanwhile was no leftover.
                        if let Ok(Some(size)) = remove_leftover(&entry, now) {
                            (count, bytes) = (count + 1, bytes + size);
                        }
                    }
                    _ => {}
                }
            }
        }
        Ok((count, bytes))
    }
}

/// Removes a file if it is a leftover; returns its size.
fn remove_leftover(entry: &DirEntry, now: Duration) -> io::Result<Option<u64>> {
    let name = entry.file_name();
    let name = name.to_string_lossy();
    let Some((object, mark)) = name.split_once(MARK) else { return Ok(None) };
    let is_lock = mark == "lock";
    let is_staged =
        mark.starts_with(SWAP) || mark.starts_with(|first: char| first.is_ascii_digit());
    if !(is_staged || (is_lock && !entry.path().with_file_name(object).exists())) {
        return Ok(None);
    }
    let metadata = entry.metadata()?;
    let modified = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    if now.saturating_sub(modified) < LEFTOVER_AGE_MIN {
        return Ok(None);
    }
    let file = File::open(entry.path())?;
    if file.try_lock().is_err() {
        return Ok(None);
    }
    fs::remove_file(entry.path())?;
    Ok(Some(metadata.len()))
}
