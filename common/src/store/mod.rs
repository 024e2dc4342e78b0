//! Where bytes are: the only importer of `object_store` and `foyer`.

pub mod answer;
mod attempt;
mod backoff;
pub mod cache;
pub mod claim;
pub mod commit;
mod create;
pub mod damage;
pub mod date;
pub mod doubt;
mod flights;
pub mod follow;
mod get;
mod link;
mod listing;
pub mod local;
pub mod manifest;
pub mod metrics;
pub mod object;
pub mod pause;
pub mod probe;
pub mod root;
pub mod sst;
pub mod upload;
mod url;
pub mod wal;
mod wire;
