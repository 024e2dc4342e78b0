//! How long a call goes on trying, and how long it waits between attempts.

use std::time::Duration;

use super::object::StoreSettings;
use crate::env::Env;

/// More attempts than any deadline allows with the pauses between them.
const ATTEMPTS_MAX: u32 = 100;

/// The patience of one call.
#[derive(Debug)]
pub(super) struct Backoff<'a> {
    env: &'a Env,
    settings: &'a StoreSettings,
    started: Duration,
    attempts: u32,
}

impl<'a> Backoff<'a> {
    /// Starts the call's deadline now.
    pub(super) fn new(env: &'a Env, settings: &'a StoreSettings) -> Self {
        Self { env, settings, started: env.clock.boot(), attempts: 0 }
    }

    /// Waits before the next attempt; `false` at once where the deadline leaves no room for one.
    pub(super) async fn pause(&mut self) -> bool {
        self.attempts += 1;
        let pause = self.next_pause();
        let spent = self.env.clock.boot().saturating_sub(self.started);
        if self.attempts >= ATTEMPTS_MAX || spent + pause >= self.settings.deadline {
            return false;
        }
        tokio::time::sleep(pause).await;
        true
    }

    /// Between half and all of a span that doubles with every attempt.
    fn next_pause(&self) -> Duration {
        let doubled = self.settings.backoff_min.saturating_mul(1 << (self.attempts - 1).min(16));
        let span = doubled.min(self.settings.backoff_max);
        span.mul_f64(f64::midpoint(1.0, self.env.random.unit()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::clock::TokioClock;
    use crate::env::{Cpu, SeededRandom};

    #[tokio::test(start_paused = true)]
    async fn pauses_double_up_to_the_bound_and_end_with_the_deadline() {
        let env = Env {
            clock: Arc::new(TokioClock::starting_at(0)),
            random: Arc::new(SeededRandom::new(1)),
            cpu: Cpu::Inline,
        };
        let settings = StoreSettings::default();
        let mut backoff = Backoff::new(&env, &settings);
        let mut before = env.clock.boot();
        let mut span = settings.backoff_min;
        while backoff.pause().await {
            let now = env.clock.boot();
            let waited = now.saturating_sub(before);
            let slack = Duration::from_millis(2);
            assert!(waited + slack >= span / 2 && waited <= span + slack, "{waited:?} of {span:?}");
            span = (span * 2).min(settings.backoff_max);
            before = now;
        }
        assert!(before < settings.deadline && before + span >= settings.deadline / 2);
    }
}
