//! Visibility.
