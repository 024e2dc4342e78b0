//! The protocol, model-checked: each model explores every interleaving of a small configuration,
//! and each broken variant of the protocol must be refuted by a trace.
//!
//! **Layout**: [`log`] who may write what on the chain, and what survives (takeover, serving,
//! following, collecting WAL objects); [`lease`] who may answer when (the read lease, the hold,
//! closing), with a discrete clock; [`commits`] the manifest and what may be deleted; [`check`] the
//! two questions that a test asks of a model.
//!
//! A model and the protocol change together: a step that looks redundant is there because a variant
//! without it loses a write, and the variant is in one of these files. The quick configurations run
//! with every test run; the larger ones are evidence, run by
//! `cargo nextest run -p cairn-tests --test models --run-ignored only` (add `--release`).

mod check;
mod commits;
mod lease;
mod log;
