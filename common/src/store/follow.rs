//! The follower.
