//! What the tests share: model, cluster, faulty store, fake S3.

pub mod forest;
pub mod warm;
