//! Tests of the whole, one topic a file.

mod source;
mod tidy;
