//! Varints and checksums.
