//! Compare-and-swap of one file, which a process that is stopped halfway does not hold up.
//!
//! **Life of a swap**
//! ```text
//! wait for a turn (bounded)          an flock on NAME#lock: courtesy only
//! 1 stage    write and sync the new content as NAME#swap-TAG
//! 2 revoke   remove every other NAME#swap-*
//! 3 compare  read NAME; another ETag than the known one: refused
//! 4 rename   NAME#swap-TAG to NAME; it is gone: revoked, begin again
//! ```
//!
//! **Why no swap is lost.** Of two swaps, the one that staged later finds the other's file when it
//! revokes: files that exist all the while are in a listing. Either it removes that file, and the
//! other's rename fails; or the other has renamed it already, and it compares with what the other
//! wrote. So nobody renames between another's comparison and that one's rename. No step holds
//! anything that others wait for: a process that is stopped anywhere, for however long, finds its
//! file gone when it wakes. (`tests/models/swap` checks every interleaving.)
//!
//! **Invariants**
//! - The name of a staged file is never used twice, so a late rename moves nobody else's bytes.
//! - Two swaps can revoke each other for ever; the turn makes that rare, and the number of tries
//!   bounds it.
//!
//! **Source**: rename(2) and unlink(2) are atomic; POSIX readdir returns every entry that is
//! neither added nor removed meanwhile.

use std::fs::{self, File, OpenOptions};
use std::io::{Error as IoError, ErrorKind};
use std::path::Path as FilePath;
use std::time::Duration;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{Error, PutPayload, Result};

use super::files::{Files, MARK, e_tag, marked, nothing_happened, sync_parent};

/// The mark of files that are about to be swapped in.
pub(super) const SWAP: &str = "swap-";
/// The longest wait for a turn is this many pauses of [`TURN_PAUSE`]: a swap is two syncs, some
/// 10 ms on a slow disk, and whoever has the turn for longer is stopped or the disk is.
const TURN_PAUSES: u32 = 200;
const TURN_PAUSE: Duration = Duration::from_millis(5);
/// Times that a swap begins again after it was revoked. Only swaps without a turn revoke each
/// other.
const TRIES: u32 = 16;

impl Files {
    /// Replaces an object if its ETag still is `known`; returns the new one.
    pub(super) fn swap(
        &self,
        location: &Path,
        payload: &PutPayload,
        known: &str,
    ) -> Result<String> {
        let place = self.place(location)?;
        if !place.exists() {
            return Err(refused(location, "the file does not exist".to_owned()));
        }
        // Freed when the file is closed, at the latest by the end of the process.
        let _turn = turn(&place).map_err(nothing_happened)?;
        compare(location, &place, known)?;
        for _ in 0..TRIES {
            let staged = self.stage_all_as(location, SWAP, payload)?;
            revoke_others(&place, &staged.path).map_err(nothing_happened)?;
            compare(location, &place, known)?;
            if staged.put_in_place_unless_revoked()? {
                return Ok(e_tag(payload.iter()));
            }
        }
        let late = IoError::new(ErrorKind::TimedOut, "other swaps came between each time");
        Err(nothing_happened(late))
    }
}

/// Waits until no other swap of this place is under way, or has been for too long: `None`. Safety
/// does not depend on it.
#[expect(clippy::disallowed_methods, reason = "a blocking thread, and flock has no timeout")]
fn turn(place: &FilePath) -> std::io::Result<Option<File>> {
    let path = marked(place, "lock");
    let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&path)?;
    for _ in 0..TURN_PAUSES {
        match lock.try_lock() {
            Ok(()) => return Ok(Some(lock)),
            Err(fs::TryLockError::WouldBlock) => std::thread::sleep(TURN_PAUSE),
            Err(fs::TryLockError::Error(error)) => return Err(error),
        }
    }
    tracing::warn!(
        file = %path.display(),
        "another process has been in the middle of a swap for a second, stopped perhaps; going on \
         without it"
    );
    // The next ones need not wait as long: they make a new file, with a lock of its own.
    fs::remove_file(&path).unwrap_or_default();
    Ok(None)
}

/// Removes what other swaps of this place have staged, so that their renames fail.
fn revoke_others(place: &FilePath, own: &FilePath) -> std::io::Result<()> {
    let Some(folder) = place.parent() else { return Ok(()) };
    let name = place.file_name().unwrap_or_default().to_string_lossy();
    let prefix = format!("{name}{MARK}{SWAP}");
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let is_staged = entry.file_name().to_string_lossy().starts_with(&prefix);
        if is_staged && entry.path() != own {
            match fs::remove_file(entry.path()) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
}

/// Refuses if the content is not the one that the caller knows.
fn compare(location: &Path, place: &FilePath, known: &str) -> Result<()> {
    let found = match fs::read(place) {
        Ok(bytes) => e_tag([&Bytes::from(bytes)]),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(refused(location, "the file does not exist".to_owned()));
        }
        Err(error) => return Err(nothing_happened(error)),
    };
    if found == known {
        return Ok(());
    }
    // As with "exists": those who read the winner next may rely on it.
    sync_parent(place).map_err(nothing_happened)?;
    Err(refused(location, format!("the ETag is {found}, not {known}")))
}

fn refused(location: &Path, why: String) -> Error {
    Error::Precondition { path: location.to_string(), source: why.into() }
}
