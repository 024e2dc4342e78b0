//! SSTs.
