//! What the tests share: model, cluster, faulty store, fake S3.

pub mod fake_s3;
pub mod faulty;
pub mod forest;
pub mod moto;
pub mod warm;
