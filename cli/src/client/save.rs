//! A file that appears whole or not at all: written under a name of its own beside its place, then
//! renamed.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// What will stand at a path once it is finished. Dropped before, it leaves nothing behind.
#[derive(Debug)]
pub(super) struct Replacement {
    file: File,
    /// Where it is written, and where it goes; none where it is written in place.
    places: Option<(PathBuf, PathBuf)>,
}

impl Replacement {
    /// Begins what shall stand at `path`. A device or a pipe is written as it is.
    pub(super) fn begin(path: &Path) -> io::Result<Self> {
        let old = match fs::metadata(path) {
            Ok(meta) if !meta.is_file() => {
                let file = OpenOptions::new().write(true).open(path)?;
                return Ok(Self { file, places: None });
            }
            Ok(meta) => Some(meta),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        // Through a link its file is replaced, not the link.
        let place = if old.is_some() { path.canonicalize()? } else { path.to_owned() };
        let mut name = OsString::from(".");
        name.push(place.file_name().ok_or(io::ErrorKind::InvalidInput)?);
        name.push(format!(".{}", std::process::id()));
        let temporary = place.with_file_name(name);
        let file = OpenOptions::new().write(true).create_new(true).open(&temporary)?;
        let this = Self { file, places: Some((temporary, place)) };
        if let Some(old) = old {
            this.file.set_permissions(old.permissions())?;
        }
        Ok(this)
    }

    /// Puts it in its place.
    pub(super) fn finish(mut self) -> io::Result<()> {
        if let Some((temporary, place)) = &self.places {
            self.file.sync_all()?;
            fs::rename(temporary, place)?;
            self.places = None;
        }
        Ok(())
    }
}

impl Write for Replacement {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        if let Some((temporary, _)) = &self.places {
            // Whoever ends here has a failure to tell already.
            drop(fs::remove_file(temporary));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_appears_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("value");
        let mut broken = Replacement::begin(&path).unwrap();
        broken.write_all(b"half").unwrap();
        assert!(!path.exists());
        drop(broken);
        assert_eq!(names(dir.path()), [""; 0]);
        let mut whole = Replacement::begin(&path).unwrap();
        whole.write_all(b"whole").unwrap();
        whole.finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole");

        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let link = dir.path().join("link");
        symlink("value", &link).unwrap();
        let mut broken = Replacement::begin(&link).unwrap();
        broken.write_all(b"half").unwrap();
        drop(broken);
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        let mut other = Replacement::begin(&link).unwrap();
        other.write_all(b"other").unwrap();
        other.finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"other");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(names(dir.path()), ["link", "value"]);
    }

    #[test]
    fn a_device_is_written_and_not_replaced() {
        let mut null = Replacement::begin(Path::new("/dev/null")).unwrap();
        null.write_all(b"x").unwrap();
        null.finish().unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
        assert!(Replacement::begin(Path::new("/")).is_err());
        assert!(Replacement::begin(Path::new("/none/at/all")).is_err());
    }
}
