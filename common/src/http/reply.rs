//! Replies of entries, counted as they grow and until the client has taken them.
//!
//! **Invariants**
//! - An entry is measured before it is written: JSON makes up to six bytes of one.
//! - Room is taken before memory is: a reply that does not fit is refused, not begun.

use axum::response::Response;
use bytes::Bytes;

use super::api::{EntryBody, reply};
use super::budget::{Held, Share};
use super::problem::Answer;

/// A reply doubles until it is this large, and then grows by as much: what is taken and not yet
/// used stays small beside what is.
const STEP_BYTES_MAX: usize = 8 << 20;
/// The least room for entries.
const STEP_BYTES_MIN: usize = 1 << 10;

/// A reply that is being written.
#[derive(Debug)]
pub(super) struct Draft {
    out: Vec<u8>,
    share: Share,
}

impl Draft {
    /// An empty one; `share` grows with it.
    pub(super) fn new(share: Share) -> Self {
        Self { out: Vec::new(), share }
    }

    /// An empty one with room for this many bytes, which `share` covers.
    pub(super) fn with_room(bytes: usize, share: Share) -> Self {
        Self { out: Vec::with_capacity(bytes), share }
    }

    /// What was written so far.
    pub(super) fn bytes(&self) -> usize {
        self.out.len()
    }

    /// Puts what stands around entries behind it.
    ///
    /// # Errors
    /// `overloaded` where there is no room for it in memory; nothing of it is written.
    pub(super) fn frame(&mut self, text: impl AsRef<[u8]>) -> Answer<()> {
        let text = text.as_ref();
        self.reserve(text.len())?;
        self.out.extend_from_slice(text);
        Ok(())
    }

    /// Puts an entry behind it.
    ///
    /// # Errors
    /// As [`Draft::frame`].
    pub(super) fn entry(&mut self, entry: &EntryBody<'_>) -> Answer<()> {
        let bytes = entry.written_bytes();
        let whole = self.out.len() + bytes;
        self.reserve(bytes)?;
        entry.write(&mut self.out);
        debug_assert_eq!(self.out.len(), whole, "an entry is as long as it was measured");
        Ok(())
    }

    /// Makes room for this many bytes behind it.
    ///
    /// # Errors
    /// As [`Draft::frame`].
    pub(super) fn reserve(&mut self, bytes: usize) -> Answer<()> {
        let needed = self.out.len() + bytes;
        if needed > self.out.capacity() {
            let step = self.out.capacity().clamp(STEP_BYTES_MIN, STEP_BYTES_MAX);
            let mut room = needed.max(self.out.capacity() + step);
            if self.share.resize(room).is_err() {
                room = needed;
                self.share.resize(room)?;
            }
            self.out.reserve_exact(room - self.out.len());
        }
        Ok(())
    }

    /// The bytes, which keep their share of the budget.
    pub(super) fn into_bytes(self) -> Bytes {
        Held::new(self.out, self.share).into_bytes()
    }

    /// All of a reply of this media type.
    pub(super) fn finish(self, media_type: &'static str) -> Response {
        reply(media_type, self.into_bytes())
    }
}
