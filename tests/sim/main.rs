//! Simulations of whole systems on one paused runtime, each from one printed seed.
#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

mod compaction;
