//! The compactor's settings.

use std::time::Duration;

use cairn_common::address;
use cairn_common::config::{Kind, Program, Setting, Settings, Shared, Size, Span};
use cairn_common::error::{Error, Result};
use serde::Deserialize;

use crate::pick::PickConfig;

/// The process and its table of settings.
pub const PROGRAM: Program = Program {
    name: "cairn-compactor",
    about: "Keeps the tree in shape, and deletes what nobody needs any more",
    listen: "127.0.0.1:7003",
    ops_listen: "127.0.0.1:7103",
    settings: SETTINGS,
};

const SETTINGS: &[Setting] = &[
    Setting::optional(
        "only",
        Kind::Choice(&["compact", "gc"]),
        "Do only one of the two: compact needs no right to delete, gc claims no epoch and may run \
         any number of times. Both unless set",
    ),
    Setting::optional(
        "advertise",
        Kind::Text,
        "URL at which others reach this compactor, as http://10.0.0.1:7003; http:// and the listen \
         address unless set, or this machine's own where that is 0.0.0.0",
    ),
    Setting::new(
        "takeover_after",
        Kind::Span,
        "5s",
        "A compactor that starts while another is active waits, and takes over once that one has \
         not answered, and made nothing, for so long. Shorter risks that the jobs of a compactor \
         that is only slow are done again",
    ),
    Setting::new(
        "poll_interval",
        Kind::Span,
        "1s",
        "How often the manifest is looked at: one conditional GET each time. Longer lets L0 grow \
         for longer before it is noticed",
    ),
    Setting::new(
        "retention",
        Kind::Span,
        "10m",
        "How long what has left the tree is kept for readers that are slow to follow: a courtesy, \
         correctness does not rest on it. Storage grows with it",
    ),
    Setting::new(
        "gc_interval",
        Kind::Span,
        "1m",
        "How often the bucket is listed for what may be deleted: a LIST per thousand objects",
    ),
    Setting::new(
        "jobs_max",
        Kind::Count,
        "1",
        "Most jobs over runs at a time, beside the one that empties L0, and one over upper runs \
         while the bottom is rewritten. Each takes a thread, and memory for its inputs",
    ),
    Setting::new(
        "sst_bytes",
        Kind::Size,
        "64MiB",
        "Runs are cut into SSTs of about this size: larger means fewer objects, smaller means less \
         is rewritten where little has changed",
    ),
    Setting::new(
        "read_ahead",
        Kind::Size,
        "8MiB",
        "Bytes read ahead of the merge in each input; a job holds one and a half of it for each",
    ),
    Setting::new(
        "l0_count",
        Kind::Count,
        "4",
        "SSTs in L0 that are merged into a run: a third of what slows the writer down",
    ),
    Setting::new(
        "tier_count",
        Kind::Count,
        "4",
        "Neighbouring runs of similar size that are merged: more means fewer rewrites, and more \
         runs that a read looks at",
    ),
    Setting::new(
        "bottom_percent",
        Kind::Count,
        "50",
        "When the upper runs together reach this part of the bottom run, in percent, they are \
         merged into it: bounds the space that old versions take",
    ),
];

/// What a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Only {
    /// Jobs, and no deletion but of its own unfinished work.
    Compact,
    /// Collection, without an epoch.
    Gc,
}

/// The compactor's settings, typed.
#[derive(Clone, Debug, Deserialize)]
pub struct Config {
    /// What all processes have.
    #[serde(flatten)]
    pub shared: Shared,
    /// Both unless set.
    pub only: Option<Only>,
    /// Where others reach this process.
    pub advertise: Option<String>,
    /// Silence of the active compactor before another takes over.
    pub takeover_after: Span,
    /// Between two looks at CURRENT.
    pub poll_interval: Span,
    /// What the collector keeps, and how often it looks.
    #[serde(flatten)]
    pub gc: GcConfig,
    /// How jobs are chosen and run.
    #[serde(flatten)]
    pub jobs: JobConfig,
}

/// What the collector keeps, and how often it looks.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct GcConfig {
    /// For what has left the tree.
    pub retention: Span,
    /// Between two passes.
    pub gc_interval: Span,
}

/// How jobs are chosen and run.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct JobConfig {
    /// Over runs, at a time.
    pub jobs_max: usize,
    /// Of new SSTs.
    pub sst_bytes: Size,
    /// Of each input.
    pub read_ahead: Size,
    /// A job in L0.
    pub l0_count: usize,
    /// A tier.
    pub tier_count: usize,
    /// A job into the bottom.
    pub bottom_percent: u64,
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
        if self.jobs.jobs_max == 0 || self.jobs.l0_count == 0 {
            return invalid("jobs_max and l0_count must be at least 1");
        }
        if self.jobs.tier_count < 2 {
            return invalid("tier_count must be at least 2: one run is no tier");
        }
        if self.jobs.bottom_percent == 0 {
            return invalid("bottom_percent must be at least 1: at 0 the bottom never rests");
        }
        if self.jobs.sst_bytes < Size(4 * 1024) || self.jobs.read_ahead < Size(64 * 1024) {
            return invalid("sst_bytes must be at least 4KiB, and read_ahead 64KiB");
        }
        if self.poll_interval.0 < Duration::from_millis(1)
            || self.gc.gc_interval.0 < Duration::from_millis(1)
        {
            return invalid("poll_interval and gc_interval must be at least 1ms");
        }
        Ok(())
    }
}

impl JobConfig {
    /// The part that the picker goes by.
    pub fn pick(&self) -> PickConfig {
        PickConfig {
            l0_count: self.l0_count,
            tier_count: self.tier_count,
            bottom_percent: self.bottom_percent,
            ..PickConfig::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(name: &str, value: &str) -> String {
        let settings = [("store", "memory://"), (name, value)];
        let config: Config = PROGRAM.with(&settings).unwrap();
        config.check().unwrap_err().to_string()
    }

    #[test]
    fn settings_that_would_harm_are_refused() {
        let config: Config = PROGRAM.with(&[("store", "memory://")]).unwrap();
        config.check().unwrap();
        assert!(refused("advertise", "compactor:7003").contains("write it like http://"));
        for (name, value) in [("jobs_max", "0"), ("tier_count", "1"), ("sst_bytes", "1KiB")] {
            assert!(refused(name, value).contains(name), "{name}={value}");
        }
    }
}
