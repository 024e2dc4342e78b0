//! A directory as a data set: relative path to bytes.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use futures::stream::{self, StreamExt};
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};
use reqwest::Client;
use sha2::{Digest, Sha256};

/// Requests in progress: enough to keep two cores busy.
const CONCURRENCY: usize = 32;
/// Odd names: what paths may hold and URLs, JSON and terminals stumble over.
const ODD_NAMES: [&[u8]; 8] = [
    b"with space",
    b"100%",
    b"a+b",
    b"q?x=1#y",
    "Stra\u{df}e/\u{1f980}".as_bytes(),
    b"not\xffutf8",
    b"back\\slash\"quote",
    b"line\nbreak",
];

/// The files of a directory.
#[derive(Clone, Debug)]
pub struct Archive {
    root: PathBuf,
    /// Relative paths.
    files: Vec<PathBuf>,
    bytes: u64,
}

/// What the bytes of a key should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// The bytes of the file.
    First,
    /// As [`second_version`] makes them.
    Second,
    /// One of these two.
    Either,
}

/// What a comparison came to.
#[derive(Clone, Debug)]
pub struct Compared {
    /// Bytes of values read.
    pub bytes: u64,
    /// A line for each key whose value is not the expected one.
    pub differences: Vec<String>,
}

impl Archive {
    /// All files under `root`.
    ///
    /// # Errors
    /// What the file system says.
    pub fn of(root: &Path) -> io::Result<Self> {
        let mut archive = Self { root: root.to_owned(), files: Vec::new(), bytes: 0 };
        archive.walk(root)?;
        archive.files.sort_unstable();
        Ok(archive)
    }

    fn walk(&mut self, directory: &Path) -> io::Result<()> {
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            let meta = fs::metadata(&path)?;
            if meta.is_dir() {
                self.walk(&path)?;
            } else {
                self.bytes += meta.len();
                let name = path.strip_prefix(&self.root).map_err(io::Error::other)?;
                self.files.push(name.to_owned());
            }
        }
        Ok(())
    }

    /// Copies `count` files, evenly spread over all, to another directory.
    ///
    /// # Errors
    /// What the file system says.
    pub fn sample(&self, count: usize, into: &Path) -> io::Result<Self> {
        for at in 0..count.min(self.files.len()) {
            let name = &self.files[at * self.files.len() / count.min(self.files.len())];
            let path = into.join(name);
            fs::create_dir_all(path.parent().unwrap_or(into))?;
            fs::copy(self.root.join(name), path)?;
        }
        Self::of(into)
    }

    /// Makes a directory of `count` files from a seed: text that compresses, noise that does not,
    /// empty files, a few that are too large for a batch, odd names.
    ///
    /// # Errors
    /// What the file system says.
    pub fn generate(count: usize, seed: u64, into: &Path) -> io::Result<Self> {
        let mut rng = SmallRng::seed_from_u64(seed);
        for at in 0..count {
            let odd = Path::new(OsStr::from_bytes(ODD_NAMES[at % ODD_NAMES.len()]));
            let name = odd.join(format!("{at:05}"));
            let bytes = match at % 100 {
                0 => 0,
                1 => rng.random_range(300 << 10..600 << 10),
                _ => rng.random_range(1..24 << 10),
            };
            let mut content = vec![0; bytes];
            rng.fill_bytes(&mut content);
            if at % 3 > 0 {
                for byte in &mut content {
                    *byte = b'a' + *byte % 8;
                }
            }
            let path = into.join(name);
            fs::create_dir_all(path.parent().unwrap_or(into))?;
            fs::write(path, content)?;
        }
        Self::of(into)
    }

    /// Its directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// How many files there are.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of all files and of their names: what a user stores.
    pub fn user_bytes(&self) -> u64 {
        self.bytes + self.files.iter().map(|name| name.as_os_str().len() as u64).sum::<u64>()
    }

    /// The path of the file's key in URLs.
    pub fn path_of(&self, at: usize) -> String {
        format!("/v1/kv64/{}", URL_SAFE_NO_PAD.encode(self.files[at].as_os_str().as_bytes()))
    }

    /// The bytes of a file.
    ///
    /// # Errors
    /// What the file system says.
    pub async fn read(&self, at: usize) -> io::Result<Bytes> {
        tokio::fs::read(self.root.join(&self.files[at])).await.map(Bytes::from)
    }

    /// Reads every key at a process, in a view at or above `min_seq`, and compares the digest of
    /// its value with the one that is expected.
    pub async fn compare(
        &self,
        client: &Client,
        url: &str,
        min_seq: u64,
        expected: impl Fn(usize) -> Version,
    ) -> Compared {
        let (bytes, expected) = (&AtomicU64::new(0), &expected);
        let compare = |at: usize| async move {
            let found = self.fetch(client, url, min_seq, at).await;
            let version = expected(at);
            let outcome = match found {
                Ok(found) => {
                    bytes.fetch_add(found.len() as u64, Ordering::Relaxed);
                    self.judge(at, &found, version).await
                }
                Err(text) => Err(text),
            };
            outcome.map_err(|text| format!("{}: {text}", self.files[at].display()))
        };
        let differences = stream::iter(0..self.files.len())
            .map(compare)
            .buffer_unordered(CONCURRENCY)
            .filter_map(|outcome| async { outcome.err() })
            .collect()
            .await;
        Compared { bytes: bytes.load(Ordering::Relaxed), differences }
    }

    async fn fetch(
        &self,
        client: &Client,
        url: &str,
        min_seq: u64,
        at: usize,
    ) -> Result<Bytes, String> {
        let request = client.get(format!("{url}{}", self.path_of(at)));
        let request = request.header("cairn-min-seq", min_seq);
        let reply = request.send().await.map_err(|error| error.to_string())?;
        let status = reply.status();
        let found = reply.bytes().await.map_err(|error| error.to_string())?;
        if status.is_success() { Ok(found) } else { Err(format!("status {status}")) }
    }

    async fn judge(&self, at: usize, found: &[u8], version: Version) -> Result<(), String> {
        let first = self.read(at).await.map_err(|error| error.to_string())?;
        let found = Sha256::digest(found);
        let is_first = || found == Sha256::digest(&first);
        let is_second = || found == Sha256::digest(second_version(&first));
        let as_expected = match version {
            Version::First => is_first(),
            Version::Second => is_second(),
            Version::Either => is_first() || is_second(),
        };
        if as_expected { Ok(()) } else { Err(format!("not the {version:?} version")) }
    }
}

/// Other bytes of the same size, and one more.
pub fn second_version(first: &[u8]) -> Bytes {
    first.iter().rev().copied().chain([b'2']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_made_listed_and_sampled() {
        let folder = tempfile::tempdir().unwrap();
        let (whole, part) = (folder.path().join("whole"), folder.path().join("part"));
        let archive = Archive::generate(200, 7, &whole).unwrap();
        assert_eq!(archive.len(), 200);
        assert!(archive.user_bytes() > archive.bytes() && archive.bytes() > 600 << 10);
        let sample = archive.sample(10, &part).unwrap();
        assert_eq!(sample.len(), 10);
        assert!(sample.files.iter().all(|name| archive.files.contains(name)));
    }

    #[tokio::test]
    async fn versions_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let archive = Archive::generate(1, 7, folder.path()).unwrap();
        let first = archive.read(0).await.unwrap();
        let second = second_version(&first);
        for (version, of_first, of_second) in [
            (Version::First, true, false),
            (Version::Second, false, true),
            (Version::Either, true, true),
        ] {
            assert_eq!(archive.judge(0, &first, version).await.is_ok(), of_first);
            assert_eq!(archive.judge(0, &second, version).await.is_ok(), of_second);
            assert!(archive.judge(0, b"else", version).await.is_err());
        }
    }
}
