//! The reader's settings.

use std::path::PathBuf;

use cairn_common::address;
use cairn_common::config::{Kind, Program, Setting, Settings, Shared, Size, Span};
use cairn_common::error::{Error, Result};
use cairn_common::store::cache::{CacheSettings, DiskSettings};
use serde::Deserialize;

/// The program and its table of settings.
pub const PROGRAM: Program = Program {
    name: "cairn-reader",
    about: "Serves reads of a Cairn database from its bucket; any number may run.",
    listen: "127.0.0.1:7002",
    ops_listen: "127.0.0.1:7102",
    settings: SETTINGS,
};

const SETTINGS: &[Setting] = &[
    Setting::optional(
        "writer",
        Kind::Text,
        "URL of the writer, as http://10.0.0.1:7001, to which writes that come here are directed; \
         the one that the writer has put into the bucket unless set",
    ),
    Setting::new(
        "poll_interval",
        Kind::Span,
        "1s",
        "How often the bucket is asked for news: bounds how far views are behind; each time costs \
         one GET of CURRENT and one of the next WAL object, and up to a handful beyond the last \
         while the log grows. A directory also tells by itself, and requests that wait for a seq \
         make it four times as often",
    ),
    Setting::new(
        "max_staleness",
        Kind::Span,
        "10s",
        "Reads of a view that may be older are refused with 503 too_stale, unless they send \
         cairn-allow-stale: how long an outage of the store may go unnoticed",
    ),
    Setting::new(
        "warm_timeout",
        Kind::Span,
        "1s",
        "A new tree is shown once the filters and indexes of its new SSTs are loaded, or after so \
         long; the old tree is shown until then, with all that is new in the log, or the new one \
         at once if a flush has passed the reader. 0ms loads nothing ahead",
    ),
    Setting::optional(
        "cache_dir",
        Kind::Text,
        "Directory for blocks on disk, of this process alone; none unless set. It outlives a \
         restart, and damage to it costs time alone",
    ),
    Setting::optional(
        "cache_disk",
        Kind::Size,
        "What the directory of blocks may hold: 10GiB unless set. Without cache_dir it is refused",
    ),
    Setting::new(
        "cache_memory",
        Kind::Size,
        "256MiB",
        "Memory for data blocks: what is read often should fit",
    ),
    Setting::new(
        "meta_memory",
        Kind::Size,
        "256MiB",
        "Memory for filters and indexes of SSTs: about 5 bytes a key make every read of an absent \
         key free, and every other cost one block",
    ),
];

/// What a directory of blocks may hold unless it is said.
const CACHE_DISK: Size = Size(10 * 1024 * 1024 * 1024);

/// The reader's settings, typed.
#[derive(Clone, Debug, Deserialize)]
pub struct Config {
    /// What all processes have.
    #[serde(flatten)]
    pub shared: Shared,
    /// Where writes go.
    pub writer: Option<String>,
    /// How the bucket is followed.
    #[serde(flatten)]
    pub follow: FollowConfig,
    /// Where blocks are kept on disk.
    pub cache_dir: Option<PathBuf>,
    /// How many bytes of them, if not [`CACHE_DISK`].
    pub cache_disk: Option<Size>,
    /// Memory for blocks.
    pub cache_memory: Size,
    /// Memory for filters and indexes.
    pub meta_memory: Size,
}

/// How the bucket is followed.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct FollowConfig {
    /// Between two looks at the bucket.
    pub poll_interval: Span,
    /// The oldest view that is shown unasked.
    pub max_staleness: Span,
    /// What is loaded before a new tree is shown may take so long.
    pub warm_timeout: Span,
}

impl AsRef<Shared> for Config {
    fn as_ref(&self) -> &Shared {
        &self.shared
    }
}

impl Settings for Config {
    fn check(&self) -> Result<()> {
        let invalid = |what: &str| Err(Error::Invalid(what.to_owned()));
        self.shared.check()?;
        if let Some(url) = &self.writer {
            address::check_url("writer", url)?;
        }
        if self.cache_disk.is_some() && self.cache_dir.is_none() {
            return invalid("cache_disk is set, and cache_dir is not: say where the blocks go");
        }
        let FollowConfig { poll_interval, max_staleness, .. } = self.follow;
        if poll_interval.0.is_zero() {
            return invalid("poll_interval must be above 0: each look costs two requests");
        }
        if max_staleness.0 <= poll_interval.0 {
            return invalid("max_staleness must be above poll_interval: views are older than that");
        }
        Ok(())
    }
}

impl Config {
    /// The part that the block cache keeps.
    pub fn cache(&self) -> CacheSettings {
        let bytes = self.cache_disk.unwrap_or(CACHE_DISK).0;
        CacheSettings {
            memory_bytes: self.cache_memory.to_usize(),
            disk: self.cache_dir.clone().map(|dir| DiskSettings { dir, bytes }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(overrides: &[(&str, &str)]) -> Config {
        let mut all = vec![("store", "memory://")];
        all.extend_from_slice(overrides);
        PROGRAM.with(&all).unwrap()
    }

    #[test]
    fn the_table_and_the_struct_agree() {
        let config = with(&[("cache_dir", "/tmp/x"), ("cache_disk", "1GiB")]);
        assert!(config.check().is_ok());
        let disk = config.cache().disk.unwrap();
        assert_eq!((disk.dir, disk.bytes), (PathBuf::from("/tmp/x"), 1 << 30));
        assert_eq!(with(&[]).cache().disk, None);
        let usual = with(&[("cache_dir", "/tmp/x")]).cache().disk.unwrap();
        assert_eq!(usual.bytes, 10 << 30);
    }

    #[test]
    fn settings_that_would_do_nothing_are_refused() {
        let refused = |name, value| with(&[(name, value)]).check().unwrap_err().to_string();
        assert!(refused("cache_disk", "1GiB").contains("cache_dir"));
        assert!(refused("writer", "10.0.0.1:7001").contains("write it like http://10.0.0.1:7001"));
        assert!(with(&[("writer", "http://10.0.0.1:7001")]).check().is_ok());
    }

    #[test]
    fn settings_that_would_refuse_every_read_are_refused() {
        let error = with(&[("max_staleness", "500ms")]).check().unwrap_err();
        assert!(error.to_string().contains("max_staleness"), "{error}");
        assert!(with(&[("poll_interval", "0ms")]).check().is_err());
    }
}
