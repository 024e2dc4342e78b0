//! The two clocks of a process: wall time for expiry and people, boot time for the read lease.
//!
//! **Invariants**
//! - Boot time never goes back and counts suspension; only its rate decides anything.
//! - Wall time decides expiry alone, and a process's wall clock never goes back.
//! - Sleeping and timers use tokio's clock, so a paused runtime steps both.

use std::fmt::Debug;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A process's clocks.
pub trait Clock: Debug + Send + Sync {
    /// Wall time in Unix milliseconds; never goes back within one process.
    fn wall_ms(&self) -> u64;
    /// Time since some fixed point, counting suspension.
    fn boot(&self) -> Duration;
}

/// The clocks of the operating system.
#[derive(Debug, Default)]
pub struct SystemClock {
    newest_wall_ms: AtomicU64,
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
    fn wall_ms(&self) -> u64 {
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
        self.newest_wall_ms.fetch_max(now, Ordering::Relaxed).max(now)
    }

    fn boot(&self) -> Duration {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Duration::new(
            u64::try_from(time.tv_sec).unwrap_or(0),
            u32::try_from(time.tv_nsec).unwrap_or(0),
        )
    }
}

/// A clock that follows tokio's, for tests on a paused runtime: wall time starts at a given
/// instant.
#[derive(Debug)]
pub struct TokioClock {
    origin: tokio::time::Instant,
    origin_wall_ms: u64,
}

impl TokioClock {
    /// A clock whose wall time is `origin_wall_ms` now. Must be called within a runtime.
    #[expect(clippy::disallowed_methods, reason = "the origin of a clock")]
    pub fn starting_at(origin_wall_ms: u64) -> Self {
        Self { origin: tokio::time::Instant::now(), origin_wall_ms }
    }
}

impl Clock for TokioClock {
    fn wall_ms(&self) -> u64 {
        self.origin_wall_ms + u64::try_from(self.boot().as_millis()).unwrap_or(u64::MAX)
    }

    fn boot(&self) -> Duration {
        self.origin.elapsed()
    }
}
