//! Memory that the requests of a process share: what is held is counted, what does not fit is
//! refused.
//!
//! **Invariants**
//! - A share counts what is there, never what is merely announced.
//! - Whoever holds a share never waits for more of it: it grows at once or not at all. So two that
//!   hold cannot wait for each other.
//! - What a share has above [`SMALL_BYTES`] comes from three quarters of the budget: however many
//!   large bodies and replies there are, small ones find room.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::places::Places;
use super::problem::{Answer, Code, Problem};
use crate::config::HttpLimits;

/// Budgets are counted in units of this many bytes, since a semaphore counts in `u32`.
const UNIT_BYTES: usize = 1024;
/// A body or a reply up to this size is a small one: nearly all that are not of bulk.
const SMALL_BYTES: usize = 64 << 10;

/// Bytes that may be in memory at one time.
#[derive(Clone, Debug)]
pub struct Budget {
    free: Arc<Semaphore>,
    /// Of these, what shares may take above [`SMALL_BYTES`].
    free_for_large: Arc<Semaphore>,
    units: usize,
    what: &'static str,
}

/// What the requests of a process share.
#[derive(Clone, Debug)]
pub struct Budgets {
    /// How many are worked on, and how many wait.
    pub(super) places: Arc<Places>,
    /// Of request bodies, and of what was parsed from them.
    pub(super) requests: Budget,
    /// Of replies, until their clients have taken them.
    pub(super) replies: Budget,
}

impl Budgets {
    /// The budgets that these settings give.
    pub fn new(limits: &HttpLimits) -> Self {
        Self {
            places: Arc::new(Places::new(limits)),
            requests: Budget::new("requests", limits.request_memory.to_usize()),
            replies: Budget::new("replies", limits.reply_memory.to_usize()),
        }
    }
}

impl Budget {
    fn new(what: &'static str, bytes: usize) -> Self {
        let units = (bytes / UNIT_BYTES).min(Semaphore::MAX_PERMITS);
        let free_for_large = Arc::new(Semaphore::new(units - units / 4));
        Self { free: Arc::new(Semaphore::new(units)), free_for_large, units, what }
    }

    /// A share of nothing, to grow.
    pub fn empty(&self) -> Share {
        Share { budget: self.clone(), permit: None, large: None }
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
        let (units, large) = (units(bytes), large_units(bytes));
        let never = |wanted: u32, of: usize| usize::try_from(wanted).is_ok_and(|w| w > of);
        if never(units, self.units) || never(large, self.units - self.units / 4) {
            return Err(self.refusal());
        }
        // SUBTLE: in this order for all, so that two that hold one of the two cannot wait for
        // each other.
        let permits = async {
            let large = Arc::clone(&self.free_for_large).acquire_many_owned(large).await.ok()?;
            let permit = Arc::clone(&self.free).acquire_many_owned(units).await.ok()?;
            Some((Some(permit), Some(large)))
        };
        match timeout(wait_max, permits).await {
            Ok(Some((permit, large))) => Ok(Share { budget: self.clone(), permit, large }),
            Ok(None) | Err(_) => Err(self.refusal()),
        }
    }

    fn refusal(&self) -> Problem {
        Problem::new(Code::Overloaded, format!("too many bytes of {} in memory", self.what))
    }
}

fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX)
}

/// What of so many bytes is above [`SMALL_BYTES`].
fn large_units(bytes: usize) -> u32 {
    units(bytes.saturating_sub(SMALL_BYTES))
}

/// A part of a budget, given back when it is dropped.
#[derive(Debug)]
pub struct Share {
    budget: Budget,
    permit: Option<OwnedSemaphorePermit>,
    large: Option<OwnedSemaphorePermit>,
}

/// Makes a permit one of this many units; false, and as it was, where what is missing is not free.
fn adjust(permit: &mut Option<OwnedSemaphorePermit>, free: &Arc<Semaphore>, wanted: u32) -> bool {
    let held = permit.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
    let wanted_units = usize::try_from(wanted).unwrap_or(usize::MAX);
    if wanted_units < held {
        let surplus = permit.as_mut().and_then(|permit| permit.split(held - wanted_units));
        drop(surplus);
    } else if wanted_units > held {
        let missing = wanted - u32::try_from(held).unwrap_or(wanted);
        let Ok(more) = Arc::clone(free).try_acquire_many_owned(missing) else { return false };
        match permit {
            Some(permit) => permit.merge(more),
            None => *permit = Some(more),
        }
    }
    true
}

impl Share {
    /// Takes what is missing to this many bytes, or gives back what is too much.
    ///
    /// # Errors
    /// `overloaded` where what is missing is not free; the share stays as it is.
    pub fn resize(&mut self, bytes: usize) -> Answer<()> {
        let Self { budget, permit, large } = self;
        let before = large.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        if !adjust(large, &budget.free_for_large, large_units(bytes)) {
            return Err(budget.refusal());
        }
        if !adjust(permit, &budget.free, units(bytes)) {
            // It only shrinks here.
            let before = u32::try_from(before).unwrap_or(u32::MAX);
            adjust(large, &budget.free_for_large, before);
            return Err(budget.refusal());
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
    fn large_ones_leave_room_for_small_ones() {
        let budget = Budget::new("tests", 1 << 20);
        let large = budget.share(600 << 10).unwrap();
        assert!(budget.share(400 << 10).is_err(), "above three quarters");
        let small: Vec<_> = (0..6).map(|_| budget.share(SMALL_BYTES).unwrap()).collect();
        assert!(budget.share(SMALL_BYTES).is_err(), "and all of it is taken");
        drop((large, small));
        assert!(budget.share((768 << 10) + SMALL_BYTES).is_ok());
        assert_eq!(budget.free_for_large.available_permits(), 768);
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
