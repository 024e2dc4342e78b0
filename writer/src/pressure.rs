//! Back-pressure: what a write waits for, or is refused for, when flushing or compacting lags.

use std::time::Duration;

use crate::config::FrontLimits;
use crate::front::Load;

/// The longest delay of one write: long enough to let a flush catch up, short against a deadline.
const DELAY_MAX: Duration = Duration::from_millis(200);

/// What a write does before it is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pressure {
    /// Goes on.
    None,
    /// Waits first: the debt grows faster than it is paid.
    Delay {
        /// How long.
        pause: Duration,
        /// Which debt is the greater.
        bound: Bound,
    },
    /// Is refused: unflushed memtables fill their budget.
    Unflushed,
    /// Is refused: L0 is full, so the compactor lags or does not run.
    L0Full,
}

/// What lags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// Flushing: bytes in memtables.
    Unflushed,
    /// Compacting: SSTs in L0.
    L0,
}

impl Bound {
    /// The word for it in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unflushed => "unflushed",
            Self::L0 => "l0",
        }
    }
}

impl Pressure {
    /// Whether a write is not taken at all.
    pub fn is_refusal(self) -> bool {
        matches!(self, Self::Unflushed | Self::L0Full)
    }

    /// What lags, if anything does.
    pub fn bound(self) -> Option<Bound> {
        match self {
            Self::None => None,
            Self::Delay { bound, .. } => Some(bound),
            Self::Unflushed => Some(Bound::Unflushed),
            Self::L0Full => Some(Bound::L0),
        }
    }
}

/// The pressure at this load: none up to the soft bound, then a delay that grows with the square
/// of the debt, then refusal.
pub fn pressure(load: &Load, limits: &FrontLimits) -> Pressure {
    if load.l0_count >= limits.l0_stop_count {
        return Pressure::L0Full;
    }
    if load.unflushed_bytes >= limits.unflushed_bytes_max {
        return Pressure::Unflushed;
    }
    let half = limits.unflushed_bytes_max / 2;
    let unflushed =
        share(load.unflushed_bytes, half.max(limits.memtable_bytes), limits.unflushed_bytes_max);
    let [count, slowdown, stop] =
        [load.l0_count, limits.l0_slowdown_count, limits.l0_stop_count].map(widen);
    let l0 = share(count, slowdown, stop);
    let debt = unflushed.max(l0);
    if debt == 0 {
        return Pressure::None;
    }
    let bound = if unflushed >= l0 { Bound::Unflushed } else { Bound::L0 };
    // Per mille, squared.
    Pressure::Delay { pause: DELAY_MAX * (debt * debt) / 1_000_000, bound }
}

fn widen(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

/// How far `value` is from `soft` to `hard`, per mille.
fn share(value: u64, soft: u64, hard: u64) -> u32 {
    let over = value.saturating_sub(soft);
    let span = hard.saturating_sub(soft).max(1);
    u32::try_from((over.saturating_mul(1_000) / span).min(1_000)).unwrap_or(1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(unflushed_bytes: u64, l0_count: usize) -> Pressure {
        let limits = FrontLimits {
            wal_bytes_max: 8,
            memtable_bytes: 64,
            memtable_wal_objects_max: 1_000,
            memtable_age_max: Duration::from_mins(10),
            unflushed_bytes_max: 256,
            l0_slowdown_count: 12,
            l0_stop_count: 24,
        };
        pressure(&Load { unflushed_bytes, frozen_count: 0, l0_count }, &limits)
    }

    #[test]
    fn pressure_grows_from_none_over_delay_to_refusal() {
        assert_eq!(at(128, 12), Pressure::None);
        let delay = |pressure| match pressure {
            Pressure::Delay { pause, bound } => (pause, bound),
            other => panic!("no delay: {other:?}"),
        };
        let ((early, bound), (late, _)) = (delay(at(160, 0)), delay(at(250, 0)));
        assert!(early < late && late <= DELAY_MAX && bound == Bound::Unflushed);
        assert_eq!(delay(at(0, 13)).1, Bound::L0);
        assert!(at(256, 0).is_refusal() && !at(250, 0).is_refusal());
        assert_eq!(at(256, 0), Pressure::Unflushed);
        assert_eq!(at(256, 24), Pressure::L0Full);
    }
}
