//! Point reads.
