//! The correct protocol holds; each variant is refuted, in the smallest configuration that does.

use super::*;
use crate::check::{holds, refuted};

/// One writer and one compactor that claim once, two flushes, one compaction at a time.
fn small(variant: Variant) -> Config {
    Config {
        variant,
        data: 2,
        claims: [vec![1], vec![1]],
        jobs: 1,
        compactions: 1,
        checkpoints: 0,
        retains: 0,
        attempts: 1,
    }
}

/// Every variant, a configuration that is just large enough, and what it breaks.
fn variants() -> Vec<(Config, &'static str)> {
    let flushing = |variant| Config { claims: [vec![1], vec![]], compactions: 0, ..small(variant) };
    let claims = |writers: &[u8], config: Config| Config {
        claims: [writers.to_vec(), config.claims[1].clone()],
        ..config
    };
    vec![
        (small(Variant::SettleByNonce), ONCE),
        (Config { retains: 1, ..small(Variant::SettleFlushById) }, ONCE),
        (flushing(Variant::DeleteBodiesAbove), REFERENCED),
        (flushing(Variant::DeleteBodiesByAge), REFERENCED),
        (flushing(Variant::DeleteOwnAfterReadBack), REFERENCED),
        (
            Config {
                jobs: 2,
                compactions: 2,
                checkpoints: 1,
                ..small(Variant::OutputGoneIsFailed)
            },
            REFERENCED,
        ),
        (Config { checkpoints: 1, retains: 1, ..flushing(Variant::CheckpointOlder) }, REFERENCED),
        (claims(&[2], flushing(Variant::TwoReads)), REFERENCED),
        (flushing(Variant::NoEpochRule), REFERENCED),
        (flushing(Variant::EpochNotAbove), REFERENCED),
        (claims(&[2, 1], flushing(Variant::CommitUnderOtherEpoch)), REFERENCED),
        (Config { retains: 1, ..flushing(Variant::HistoryTwoPast) }, REFERENCED),
        (Config { jobs: 2, compactions: 2, ..small(Variant::InputsNotChecked) }, ONCE),
        (flushing(Variant::UnreferencedByAge), REFERENCED),
        (Config { checkpoints: 1, ..small(Variant::CheckpointsNotRead) }, REFERENCED),
    ]
}

#[test]
fn each_variant_is_refuted() {
    for (config, property) in variants() {
        refuted(&format!("{:?}", config.variant), config, property);
    }
}

#[test]
fn the_protocol_holds_where_a_variant_is_refuted() {
    for (config, _) in variants() {
        holds(Config { variant: Variant::Correct, ..config }, 10);
    }
}

/// [`small`], with these claims of each writer and each compactor.
fn correct(writers: &[u8], compactors: &[u8]) -> Config {
    let claims = [writers.to_vec(), compactors.to_vec()];
    Config { claims, ..small(Variant::Correct) }
}

#[test]
fn commits_hold_with_retries_of_unknown_outcomes() {
    holds(Config { attempts: 2, retains: 1, ..correct(&[1], &[1]) }, 10_000);
    holds(Config { attempts: 2, retains: 1, compactions: 0, ..correct(&[1, 1], &[]) }, 10_000);
}

#[test]
fn commits_hold_with_two_writers() {
    holds(Config { retains: 1, ..correct(&[1, 1], &[1]) }, 200_000);
    holds(Config { checkpoints: 1, ..correct(&[1, 1], &[1]) }, 200_000);
}

#[test]
fn commits_hold_with_two_compactors() {
    holds(Config { compactions: 2, checkpoints: 1, ..correct(&[1], &[1, 1]) }, 200_000);
}

#[test]
fn commits_hold_with_two_jobs_at_a_time() {
    let two = Config { jobs: 2, compactions: 2, ..correct(&[1], &[1]) };
    holds(Config { checkpoints: 1, retains: 1, ..two }, 200_000);
}

#[test]
#[ignore = "evidence: several minutes and gigabytes"]
fn commits_hold_at_length() {
    let all = |config| Config { attempts: 2, checkpoints: 1, retains: 1, ..config };
    holds(all(Config { compactions: 0, ..correct(&[2, 1], &[]) }), 3_000_000);
    holds(all(Config { compactions: 2, jobs: 2, ..correct(&[1], &[1]) }), 1_000_000);
    holds(all(correct(&[1, 1], &[1])), 1_000_000);
}
