//! What the tests share: model, cluster, faulty store, fake S3, data sets.

pub mod archive;
pub mod cluster;
pub mod compaction;
pub mod fake_s3;
pub mod faulty;
pub mod forest;
pub mod lag;
pub mod ledger;
pub mod model;
pub mod moto;
pub mod process;
pub mod round_trip;
pub mod warm;
