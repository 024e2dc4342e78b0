//! Run objects.
