//! Memory that the requests of a process share: what is held is counted, what does not fit is
//! refused.
//!
//! **Invariants**
//! - A share counts what is there, never what is merely announced.
//! - Whoever holds a share never waits for more of it: it grows at once or not at all. So two that
//!   hold cannot wait for each other.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::problem::{Answer, Code, Problem};
use crate::config::HttpLimits;

/// Budgets are counted in units of this many bytes, since a semaphore counts in `u32`.
const UNIT_BYTES: usize = 1024;

/// Bytes that may be in memory at one time.
#[derive(Clone, Debug)]
pub struct Budget {
    free: Arc<Semaphore>,
    units: usize,
    what: &'static str,
}

/// The two budgets of a process.
#[derive(Clone, Debug)]
pub struct Budgets {
    /// Of request bodies, and of what was parsed from them.
    pub requests: Budget,
    /// Of replies, until their clients have taken them.
    pub replies: Budget,
}

impl Budgets {
    /// The budgets that these settings give.
    pub fn new(limits: &HttpLimits) -> Self {
        Self {
            requests: Budget::new("requests", limits.request_memory.to_usize()),
            replies: Budget::new("replies", limits.reply_memory.to_usize()),
        }
    }
}

impl Budget {
    fn new(what: &'static str, bytes: usize) -> Self {
        let units = (bytes / UNIT_BYTES).min(Semaphore::MAX_PERMITS);
        Self { free: Arc::new(Semaphore::new(units)), units, what }
    }

    /// A share of nothing, to grow.
    pub fn empty(&self) -> Share {
        Share { budget: self.clone(), permit: None }
    }

    /// A share of this many bytes.
    ///
    /// # Errors
    /// `overloaded` where they are not free.
    pub fn share(&self, bytes: usize) -> Answer<Share> {
        let mut share = self.empty();
        share.resize(bytes)?;
        Ok(share)
    }

    /// A share of this many bytes, waited for: by those alone who hold none.
    ///
    /// # Errors
    /// `overloaded` where they do not become free in time, or never can.
    pub async fn share_within(&self, bytes: usize, wait_max: Duration) -> Answer<Share> {
        let units = units(bytes);
        if usize::try_from(units).is_ok_and(|units| units > self.units) {
            return Err(self.refusal());
        }
        let permit = Arc::clone(&self.free).acquire_many_owned(units);
        match timeout(wait_max, permit).await {
            Ok(Ok(permit)) => Ok(Share { budget: self.clone(), permit: Some(permit) }),
            Ok(Err(_)) | Err(_) => Err(self.refusal()),
        }
    }

    fn refusal(&self) -> Problem {
        Problem::new(Code::Overloaded, format!("too many bytes of {} in memory", self.what))
    }
}

fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX)
}

/// A part of a budget, given back when it is dropped.
#[derive(Debug)]
pub struct Share {
    budget: Budget,
    permit: Option<OwnedSemaphorePermit>,
}

impl Share {
    /// Takes what is missing to this many bytes, or gives back what is too much.
    ///
    /// # Errors
    /// `overloaded` where what is missing is not free; the share stays as it is.
    pub fn resize(&mut self, bytes: usize) -> Answer<()> {
        let held = self.permit.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let wanted = units(bytes);
        let wanted_units = usize::try_from(wanted).unwrap_or(usize::MAX);
        if wanted_units < held {
            let surplus = self.permit.as_mut().and_then(|permit| permit.split(held - wanted_units));
            drop(surplus);
        } else if wanted_units > held {
            let missing = wanted - u32::try_from(held).unwrap_or(wanted);
            let free = Arc::clone(&self.budget.free);
            let more = free.try_acquire_many_owned(missing).map_err(|_| self.budget.refusal())?;
            match &mut self.permit {
                Some(permit) => permit.merge(more),
                None => self.permit = Some(more),
            }
        }
        Ok(())
    }
}

/// Something, and its share of a budget until it is dropped.
#[derive(Debug)]
pub struct Held<T> {
    value: T,
    share: Share,
}

impl<T> Held<T> {
    /// Ties the two together.
    pub fn new(value: T, share: Share) -> Self {
        Self { value, share }
    }

    /// The two, to be kept and dropped apart.
    pub fn into_parts(self) -> (T, Share) {
        (self.value, self.share)
    }
}

impl Held<Bytes> {
    /// All of it.
    pub fn bytes(&self) -> &Bytes {
        &self.value
    }
}

impl<T: AsRef<[u8]> + Send + 'static> Held<T> {
    /// The same bytes; the share is given back with the last handle to them, wherever that is: a
    /// connection holds what its client has not taken yet.
    pub fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl<T: AsRef<[u8]>> AsRef<[u8]> for Held<T> {
    fn as_ref(&self) -> &[u8] {
        self.value.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_what_it_was_last_made() {
        let budget = Budget::new("tests", 10 * UNIT_BYTES);
        let mut share = budget.share(4 * UNIT_BYTES).unwrap();
        share.resize(9 * UNIT_BYTES + 1).unwrap();
        assert_eq!(budget.free.available_permits(), 0);
        assert_eq!(share.resize(11 * UNIT_BYTES).unwrap_err().code, Code::Overloaded);
        share.resize(1).unwrap();
        assert_eq!(budget.free.available_permits(), 9);
        assert!(budget.share(10 * UNIT_BYTES).is_err());
        drop(share);
        assert!(budget.share(10 * UNIT_BYTES).is_ok());
    }

    #[test]
    fn bytes_keep_their_share_with_their_last_handle() {
        let budget = Budget::new("tests", UNIT_BYTES);
        let bytes = Held::new(vec![1, 2, 3], budget.share(3).unwrap()).into_bytes();
        let slice = bytes.slice(1..);
        drop(bytes);
        assert!(budget.share(1).is_err());
        assert_eq!(slice, [2, 3][..]);
        drop(slice);
        assert!(budget.share(1).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_ends_when_there_is_room_and_at_its_bound() {
        let budget = Budget::new("tests", 2 * UNIT_BYTES);
        let wait_max = Duration::from_secs(1);
        assert!(budget.share_within(3 * UNIT_BYTES, Duration::MAX).await.is_err(), "never");
        let share = budget.share(UNIT_BYTES).unwrap();
        assert!(budget.share_within(2 * UNIT_BYTES, wait_max).await.is_err());
        let waiting = budget.share_within(2 * UNIT_BYTES, wait_max);
        let (waited, ()) = futures::join!(waiting, async { drop(share) });
        assert!(waited.is_ok());
    }
}
