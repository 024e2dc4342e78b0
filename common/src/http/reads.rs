//! The read routes.
