//! WAL objects in the bucket.
