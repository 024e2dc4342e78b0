//! Conditions of writes: what `if-match` and `if-none-match` say of one key.

use bytes::Bytes;
use cairn_common::http::conditions::Conditions;
use cairn_common::types::Seq;

/// A condition on the state of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// The key.
    pub key: Bytes,
    /// What must hold of its etag.
    pub tests: Conditions,
}

impl Condition {
    /// Whether the condition holds of a key with this etag; `None` is an absent key.
    pub fn holds(&self, etag: Option<Seq>) -> bool {
        self.tests.failed(etag).is_none()
    }
}
