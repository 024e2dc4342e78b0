//! Tests of the whole, one topic a file.

mod deploy;
mod instructions;
mod manifests;
mod read;
mod source;
mod tidy;
