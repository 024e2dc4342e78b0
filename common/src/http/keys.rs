//! Keys in paths.
