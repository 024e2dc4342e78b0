//! What the bytes of every object mean. Pure: no IO, no clock, no randomness; the only failure is
//! [`Corrupt`], to which `store` adds the object's name.
#![deny(clippy::indexing_slicing)]

use std::fmt;

pub mod block;
pub mod codec;
pub mod collect;
pub mod current;
pub mod edit;
pub mod filter;
mod frame;
pub mod manifest;
pub mod path;
pub mod run;
#[cfg(test)]
pub(crate) mod samples;
pub mod sst;
mod text;
pub mod unknown;
pub mod wal;

/// The version of every format here; a change that old processes cannot read makes the next.
pub const FORMAT: u32 = 1;

/// Bytes that no writer of this format produces, with what was found wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Corrupt(pub String);

impl Corrupt {
    /// What is wrong, for a person.
    pub fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

impl fmt::Display for Corrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Corrupt {}
