//! Tests of the whole, one topic a file.

mod deploy;
mod manifests;
mod read;
mod source;
mod tidy;
