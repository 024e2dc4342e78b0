//! The pause between tries of what is never given up: an append, a claim, a commit.

use std::time::Duration;

use crate::env::Env;
use crate::error::Error;

/// The first pause: others' commits take a few requests.
const PAUSE_FIRST: Duration = Duration::from_millis(5);
/// The longest: a store that is away is asked twice a second.
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// A pause that doubles, with jitter, up to a bound.
pub(super) struct Pause {
    next: Duration,
}

impl Pause {
    pub(super) fn new() -> Self {
        Self { next: PAUSE_FIRST }
    }

    pub(super) async fn wait(&mut self, env: &Env, error: &Error) {
        tracing::warn!(%error, "the store did not take a write; trying again");
        tokio::time::sleep(self.next.mul_f64(0.5 + env.random.unit())).await;
        self.next = (self.next * 2).min(PAUSE_MAX);
    }
}
