//! Conditions of writes: what `if-match` and `if-none-match` say of one key.

use bytes::Bytes;
use cairn_common::types::Seq;

/// A condition on the state of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// The key.
    pub key: Bytes,
    /// What must hold of its etag; all of them.
    pub tests: Vec<EtagTest>,
}

/// A test of an etag; `None` stands for a key that is absent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EtagTest {
    /// `if-match: *`: there is an entry.
    Exists,
    /// `if-match: "1", "2"`: the entry's etag is one of these.
    OneOf(Vec<Seq>),
    /// `if-none-match: *`: there is no entry.
    Absent,
    /// `if-none-match: "1", "2"`: there is no entry with one of these etags.
    NoneOf(Vec<Seq>),
}

impl Condition {
    /// Whether the condition holds of a key with this etag.
    pub fn holds(&self, etag: Option<Seq>) -> bool {
        self.tests.iter().all(|test| match (test, etag) {
            (EtagTest::Exists, etag) => etag.is_some(),
            (EtagTest::Absent, etag) => etag.is_none(),
            (EtagTest::OneOf(etags), Some(etag)) => etags.contains(&etag),
            (EtagTest::OneOf(_), None) => false,
            (EtagTest::NoneOf(etags), Some(etag)) => !etags.contains(&etag),
            (EtagTest::NoneOf(_), None) => true,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(test: EtagTest, etag: Option<u64>) -> bool {
        Condition { key: "k".into(), tests: vec![test] }.holds(etag.map(Seq))
    }

    #[test]
    fn etag_tests_follow_http() {
        assert!(holds(EtagTest::Exists, Some(1)) && !holds(EtagTest::Exists, None));
        assert!(holds(EtagTest::Absent, None) && !holds(EtagTest::Absent, Some(1)));
        assert!(holds(EtagTest::OneOf(vec![Seq(1), Seq(2)]), Some(2)));
        assert!(!holds(EtagTest::OneOf(vec![Seq(1)]), Some(2)));
        assert!(!holds(EtagTest::OneOf(vec![Seq(1)]), None));
        assert!(holds(EtagTest::NoneOf(vec![Seq(1)]), None));
        assert!(holds(EtagTest::NoneOf(vec![Seq(1)]), Some(2)));
        assert!(!holds(EtagTest::NoneOf(vec![Seq(1)]), Some(1)));
    }
}
