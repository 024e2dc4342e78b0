//! What a read does when an object of its view is missing: load the newest manifest and start
//! again, once for each object; an object that is missing though the newest manifest names it is
//! damage.
//!
//! Two worlds: a compaction replaced the object, retention passed and the collector deleted it, so
//! a newer tree answers; or somebody else deleted it. One reload tells them apart.

use super::view::View;
use crate::error::{Error, Result};

/// Objects that may turn out to be replaced during one request. Each took a compaction and a whole
/// `retention` between two of its reads.
const RELOADS_MAX: u32 = 4;

/// The reloads of one request.
#[derive(Debug, Default)]
pub struct Restart {
    /// The object that the last reload was for.
    missing: Option<String>,
    reloads: u32,
}

impl Restart {
    /// Judges the error of a read from `view`. `Ok`: reload, so that the next view has the tree of
    /// the newest manifest, and read again from that.
    ///
    /// # Errors
    /// What the request fails with: `Corrupt` for an object that the reload did not explain, which
    /// is in the damage registry from then on; every error but `NotFound` as it is.
    pub fn judge(&mut self, view: &View, error: Error) -> Result<()> {
        let Error::NotFound(object) = error else { return Err(error) };
        if self.missing.as_ref() == Some(&object) {
            return Err(view.tree.ssts.believe_missing(&object));
        }
        if self.reloads == RELOADS_MAX {
            return Err(Error::NotFound(object));
        }
        tracing::info!(%object, "an object of the view is missing; loading the newest manifest");
        self.reloads += 1;
        self.missing = Some(object);
        Ok(())
    }
}
