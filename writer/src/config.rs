//! The writer's settings.

use std::time::Duration;

use cairn_common::address;
use cairn_common::config::{Kind, Program, Setting, Settings, Shared, Size, Span};
use cairn_common::error::{Error, Result};
use cairn_common::format::wal::FENCE_BYTES;
use cairn_common::limits::WAL_JUMP;
use serde::Deserialize;

use crate::commit::Pacing;
use crate::standby::TakeoverWhen;

/// The process and its table of settings.
pub const PROGRAM: Program = Program {
    name: "cairn-writer",
    about: "The one process that writes a database: owns its log, flushes to L0, serves writes",
    listen: "127.0.0.1:7001",
    ops_listen: "127.0.0.1:7101",
    settings: SETTINGS,
};

const SETTINGS: &[Setting] = &[
    Setting::optional(
        "advertise",
        Kind::Text,
        "URL at which others reach this writer, as http://10.0.0.1:7001; http:// and the listen \
         address unless set, or this machine's own where that is 0.0.0.0. A standby asks there \
         whether this writer is alive",
    ),
    Setting::new(
        "takeover",
        Kind::Choice(&["if-dead", "now", "assume-dead"]),
        "if-dead",
        "if-dead waits as a standby while another writer is alive; now takes its place at once; \
         assume-dead also skips the hold: only if you know that the old writer is dead, since its \
         reads may be stale otherwise",
    ),
    Setting::new(
        "takeover_after",
        Kind::Span,
        "1s",
        "Silence after which a standby takes the active writer for dead; a wrong guess costs a \
         takeover and loses nothing",
    ),
    Setting::new(
        "lease",
        Kind::Span,
        "2s",
        "How long this writer may answer reads without asking the store; the next writer waits \
         1.1 of it unless this one closed cleanly. CURRENT is read twice in it",
    ),
    Setting::new(
        "wal_interval",
        Kind::Span,
        "50ms",
        "At least this long between two PUTs of the log, unless a group is full: bounds what the \
         PUTs cost. The first write after an idle spell goes at once; 0ms is no pacing",
    ),
    Setting::new(
        "wal_window",
        Kind::Count,
        "8",
        "Most WAL objects that are sent and not proven, 1 to 1024: hides the latency of a PUT",
    ),
    Setting::new(
        "wal_bytes_max",
        Kind::Size,
        "8MiB",
        "A group of this size is sent without waiting for the interval; a batch may exceed it",
    ),
    Setting::new(
        "memtable_bytes",
        Kind::Size,
        "64MiB",
        "A memtable of this size is flushed to L0: larger means fewer L0 SSTs and more memory",
    ),
    Setting::new(
        "memtable_wal_objects",
        Kind::Count,
        "1000",
        "A memtable with the data of so many WAL objects is flushed: bounds what a restart replays",
    ),
    Setting::new(
        "memtable_age",
        Kind::Span,
        "10m",
        "A memtable of this age is flushed, so that readers that start late replay little",
    ),
    Setting::new(
        "unflushed_bytes_max",
        Kind::Size,
        "256MiB",
        "Most bytes in memtables; writes are delayed from half of it and refused beyond it",
    ),
    Setting::new(
        "l0_slowdown",
        Kind::Count,
        "12",
        "SSTs in L0 from which writes are delayed: every read looks at each of them",
    ),
    Setting::new(
        "l0_stop",
        Kind::Count,
        "24",
        "SSTs in L0 at which writes are refused with 503: no compactor runs, or it lags",
    ),
    Setting::new(
        "cache_memory",
        Kind::Size,
        "64MiB",
        "Memory for data blocks that reads at the writer need",
    ),
    Setting::new("meta_memory", Kind::Size, "128MiB", "Memory for filters and indexes of SSTs"),
];

/// An empty group has the size of a fence; below it every group would be full from the start.
const GROUP_BYTES_LEAST: Size = Size(1024);
const _: () = assert!(FENCE_BYTES < 1024, "an empty group fits the least one");
/// A group, and the batch that goes beyond its bound, must fit the format.
const GROUP_BYTES_MOST: Size = Size(256 * 1024 * 1024);
/// Less would make an SST of every write.
const MEMTABLE_BYTES_LEAST: Size = Size(4 * 1024);

/// The writer's settings, typed.
#[derive(Clone, Debug, Deserialize)]
pub struct Config {
    /// What all processes have.
    #[serde(flatten)]
    pub shared: Shared,
    /// Where others reach this writer.
    pub advertise: Option<String>,
    /// When to take over.
    pub takeover: TakeoverWhen,
    /// Silence that counts as death.
    pub takeover_after: Span,
    /// The read lease.
    pub lease: Span,
    /// How groups become WAL objects, and when memtables are flushed.
    #[serde(flatten)]
    pub log: LogConfig,
    /// Memory for blocks.
    pub cache_memory: Size,
    /// Memory for filters and indexes.
    pub meta_memory: Size,
}

/// The bounds of groups and memtables.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct LogConfig {
    /// Between two PUTs.
    pub wal_interval: Span,
    /// Sent and not proven.
    pub wal_window: u64,
    /// Of a group.
    pub wal_bytes_max: Size,
    /// Of a memtable.
    pub memtable_bytes: Size,
    /// Of a memtable.
    pub memtable_wal_objects: u64,
    /// Of a memtable.
    pub memtable_age: Span,
    /// Of all memtables.
    pub unflushed_bytes_max: Size,
    /// Delay from here.
    pub l0_slowdown: usize,
    /// Refuse from here.
    pub l0_stop: usize,
}

/// The bounds that the front keeps.
#[derive(Clone, Copy, Debug)]
pub struct FrontLimits {
    /// A group of this many bytes takes no more batches.
    pub wal_bytes_max: usize,
    /// A memtable of this many bytes is frozen.
    pub memtable_bytes: u64,
    /// A memtable with data of this many WAL objects is frozen.
    pub memtable_wal_objects_max: u64,
    /// A memtable of this age is frozen.
    pub memtable_age_max: Duration,
    /// Writes are refused at this many bytes in memtables.
    pub unflushed_bytes_max: u64,
    /// Writes are delayed from this many SSTs in L0.
    pub l0_slowdown_count: usize,
    /// Writes are refused at this many SSTs in L0.
    pub l0_stop_count: usize,
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
        if let Some(url) = &self.advertise {
            address::check_url("advertise", url)?;
        }
        if !(1..=WAL_JUMP).contains(&self.log.wal_window) {
            return invalid("wal_window must be from 1 to 1024: what a fence jumps");
        }
        if self.lease.0 < Duration::from_millis(50) {
            return invalid("lease must be at least 50ms: the store is asked twice in it");
        }
        if !(GROUP_BYTES_LEAST..=GROUP_BYTES_MOST).contains(&self.log.wal_bytes_max) {
            return invalid("wal_bytes_max must be from 1KiB to 256MiB: a group takes a header");
        }
        if self.log.memtable_bytes < MEMTABLE_BYTES_LEAST || self.log.memtable_wal_objects == 0 {
            return invalid(
                "memtable_bytes must be at least 4KiB, and memtable_wal_objects at least 1: each \
                 memtable becomes an SST",
            );
        }
        if self.log.unflushed_bytes_max.0 / 2 < self.log.memtable_bytes.0 {
            return invalid("unflushed_bytes_max must hold two memtables: one fills, one flushes");
        }
        if self.log.l0_slowdown == 0 || self.log.l0_stop <= self.log.l0_slowdown {
            return invalid("l0_stop must be above l0_slowdown, and both above 0");
        }
        Ok(())
    }
}

impl LogConfig {
    /// The part that the front keeps.
    pub fn front(&self) -> FrontLimits {
        FrontLimits {
            wal_bytes_max: self.wal_bytes_max.to_usize(),
            memtable_bytes: self.memtable_bytes.0,
            memtable_wal_objects_max: self.memtable_wal_objects,
            memtable_age_max: self.memtable_age.0,
            unflushed_bytes_max: self.unflushed_bytes_max.0,
            l0_slowdown_count: self.l0_slowdown,
            l0_stop_count: self.l0_stop,
        }
    }

    /// The part that the commit task keeps.
    pub fn pacing(&self) -> Pacing {
        Pacing {
            interval: self.wal_interval.0,
            window: self.wal_window,
            wal_bytes_max: self.wal_bytes_max.to_usize(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(overrides: &[(&str, &str)]) -> String {
        let mut all = vec![("store", "memory://")];
        all.extend_from_slice(overrides);
        let config: Config = PROGRAM.with(&all).unwrap();
        config.check().map_or_else(|error| error.to_string(), |()| "taken".to_owned())
    }

    #[test]
    fn settings_that_would_refuse_every_write_are_refused() {
        assert_eq!(refused(&[]), "taken");
        for (wrong, said) in [
            (&[("wal_bytes_max", "96")][..], "wal_bytes_max"),
            (&[("wal_bytes_max", "2GiB")], "wal_bytes_max"),
            (&[("memtable_bytes", "9223372036854775808")], "unflushed_bytes_max"),
            (&[("memtable_bytes", "0"), ("unflushed_bytes_max", "0")], "memtable_bytes"),
            (&[("memtable_wal_objects", "0")], "memtable_wal_objects"),
            (&[("memtable_bytes", "200MiB")], "unflushed_bytes_max"),
            (&[("wal_window", "0")], "wal_window"),
            (&[("l0_stop", "12")], "l0_stop"),
        ] {
            assert!(refused(wrong).contains(said), "{wrong:?}: {}", refused(wrong));
        }
    }

    #[test]
    fn an_address_that_a_standby_cannot_ask_is_refused() {
        let text = refused(&[("advertise", "10.0.0.1:7001")]);
        assert!(text.contains("advertise") && text.contains("http://10.0.0.1:7001"), "{text}");
        assert_eq!(refused(&[("advertise", "http://10.0.0.1:7001")]), "taken");
    }
}
