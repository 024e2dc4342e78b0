//! Tests of the whole, one topic a file.
#![expect(clippy::unwrap_used, reason = "a test fails by a panic")]

mod conformance;
mod damage;
mod deploy;
mod instructions;
mod manifests;
mod model;
mod odd;
mod read;
mod read_ahead;
mod readme;
mod s3;
mod slow;
mod source;
mod starts;
mod tidy;
mod tour;
