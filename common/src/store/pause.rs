//! The pause between tries of what goes on until the store takes it: claims, commits, the log.
//!
//! **Invariants**
//! - Pauses double, with jitter, up to a bound, so a refusal that stays costs few requests.
//! - The log tells of the first failure, and then of one each [`TELL_INTERVAL`].

use std::time::Duration;

use crate::env::Env;
use crate::error::Error;

/// The first pause of a commit: others' commits take a few requests.
const PAUSE_FIRST: Duration = Duration::from_millis(5);
/// The longest of a commit: a store that is away is asked twice a second.
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// Between two lines about one thing that fails.
const TELL_INTERVAL: Duration = Duration::from_secs(10);

/// A pause that doubles, with jitter, up to a bound.
#[derive(Debug)]
pub struct Pause {
    what: &'static str,
    next: Duration,
    max: Duration,
    told_at: Option<Duration>,
}

impl Pause {
    /// Pauses from `first` to `max`; `what` tells the log what failed.
    pub fn new(what: &'static str, first: Duration, max: Duration) -> Self {
        Self { what, next: first, max, told_at: None }
    }

    /// Those between tries of a claim or a commit.
    pub(super) fn of_commits() -> Self {
        Self::new("the store did not take a commit", PAUSE_FIRST, PAUSE_MAX)
    }

    /// Waits before the next try, after this failure.
    pub async fn wait(&mut self, env: &Env, error: &Error) {
        let now = env.clock.boot();
        if self.told_at.is_none_or(|told_at| now.saturating_sub(told_at) >= TELL_INTERVAL) {
            self.told_at = Some(now);
            tracing::warn!(%error, "{}; trying again", self.what);
        } else {
            tracing::debug!(%error, "{}; trying again", self.what);
        }
        tokio::time::sleep(self.next.mul_f64(0.5 + env.random.unit())).await;
        self.next = (self.next * 2).min(self.max);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::clock::TokioClock;
    use crate::env::{Cpu, SeededRandom};

    #[tokio::test(start_paused = true)]
    async fn a_refusal_that_stays_is_tried_less_and_less_often() {
        let env = Env {
            clock: Arc::new(TokioClock::starting_at(0)),
            random: Arc::new(SeededRandom::new(1)),
            cpu: Cpu::Inline,
        };
        let (first, max) = (Duration::from_millis(100), Duration::from_secs(2));
        let mut pause = Pause::new("it fails", first, max);
        let refused = Error::unavailable("PUT wal/1", "no");
        let (mut tries, mut told) = (0, 0);
        while env.clock.boot() < Duration::from_mins(1) {
            let before = pause.told_at;
            pause.wait(&env, &refused).await;
            tries += 1;
            told += u32::from(pause.told_at != before);
        }
        assert!((20..60).contains(&tries), "{tries} tries in a minute");
        assert!((4..=7).contains(&told), "{told} lines in a minute");
    }
}
