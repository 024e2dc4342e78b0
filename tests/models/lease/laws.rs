//! The correct protocol holds; each variant is refuted, in the smallest configuration that does.

use super::*;
use crate::check::{holds, refuted};

fn config(variant: Variant, leases: &[u8], writes: &[u8]) -> Config {
    Config { variant, leases: leases.to_vec(), writes: writes.to_vec() }
}

/// Every variant, and a configuration that is just large enough.
fn variants() -> Vec<Config> {
    let two = |variant| config(variant, &[2, 2], &[0, 1]);
    let three = |variant| config(variant, &[1, 1, 1], &[0, 0, 1]);
    vec![
        // Shows what its predecessor has not proven, which then answers without it.
        config(Variant::ReadsInHold, &[2, 2], &[1, 0]),
        two(Variant::AcksInHold),
        two(Variant::VerifiedAtEndOfRead),
        two(Variant::HoldFromSend),
        two(Variant::HoldFromStartOfGet),
        two(Variant::BothSidesInclusive),
        two(Variant::JudgedBeforeArrival),
        three(Variant::ClosedDuringHold),
        three(Variant::ClosedFromEarlierRead),
        three(Variant::ClaimKeepsClosed),
        two(Variant::ReadsAfterClosing),
        two(Variant::ReadsWhileCloseUnknown),
        config(Variant::TakersOwnLease, &[2, 1], &[0, 1]),
        config(Variant::PredecessorsLeaseAlone, &[2, 1, 1], &[0, 0, 1]),
        two(Variant::ClockStopsInSuspension),
    ]
}

#[test]
fn each_variant_is_refuted() {
    for config in variants() {
        refuted(&format!("{:?}", config.variant), config.clone(), NO_STALE);
    }
}

#[test]
fn answers_in_the_hold_meet_those_of_the_predecessor() {
    refuted("ReadsInHold", config(Variant::ReadsInHold, &[2, 2], &[1, 0]), ONE_ANSWERS);
    refuted("AcksInHold", config(Variant::AcksInHold, &[2, 2], &[0, 1]), ONE_ANSWERS);
}

#[test]
fn promises_without_a_lease_outlive_it() {
    let config = config(Variant::PromisesWithoutLease, &[2, 2], &[0, 1]);
    refuted("PromisesWithoutLease", config, NO_LATE_PROMISE);
}

#[test]
fn the_lease_holds_with_two_writers() {
    holds(config(Variant::Correct, &[2, 2], &[1, 1]), 100_000);
    holds(config(Variant::Correct, &[2, 1], &[1, 1]), 100_000);
    holds(config(Variant::Correct, &[1, 2], &[1, 1]), 100_000);
}

#[test]
fn the_lease_holds_with_three_writers() {
    holds(config(Variant::Correct, &[1, 1, 1], &[0, 0, 1]), 500_000);
}

#[test]
#[ignore = "evidence: several minutes and gigabytes"]
fn the_lease_holds_at_length() {
    holds(config(Variant::Correct, &[2, 1, 1], &[0, 1, 1]), 1_000);
}
