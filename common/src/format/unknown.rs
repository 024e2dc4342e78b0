//! Fields of a JSON record that this version does not know: kept as they are, so that a process of
//! an older version that rewrites a record loses nothing that a newer one has put there.
//!
//! A newer version may add a field without another format number if a process that does not know
//! the field may ignore it, and may copy it into the next body unchanged.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Fields by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Unknown(BTreeMap<String, Value>);

impl Unknown {
    /// Removes a field that turned out to be known.
    pub(super) fn remove(&mut self, name: &str) {
        self.0.remove(name);
    }

    /// The fields and their values, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }
}
