//! Planted bugs: one build (`--cfg cairn_faults`) in which a bug can be chosen at run time, so that
//! the tests are seen to catch it. In every other build [`planted`] is `false` at compile time.

/// Whether the named bug is switched on (`CAIRN_PLANTED_BUG=name`).
#[cfg(not(cairn_faults))]
#[inline]
pub const fn planted(_bug: &str) -> bool {
    false
}

/// Whether the named bug is switched on (`CAIRN_PLANTED_BUG=name`).
#[cfg(cairn_faults)]
pub fn planted(bug: &str) -> bool {
    static CHOSEN: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    CHOSEN.get_or_init(|| std::env::var("CAIRN_PLANTED_BUG").ok()).as_deref() == Some(bug)
}
