//! What the tests share: model, cluster, faulty store, fake S3.
