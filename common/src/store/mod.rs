//! Where bytes are: the only importer of `object_store` and `foyer`.

pub mod cache;
pub mod follow;
pub mod local;
pub mod manifest;
pub mod object;
pub mod probe;
pub mod sst;
pub mod wal;
