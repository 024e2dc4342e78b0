//! WAL objects.
