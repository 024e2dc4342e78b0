//! What this build is called.

/// The version of every Cairn binary of this build.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
