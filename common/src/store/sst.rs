//! SSTs in the bucket.
