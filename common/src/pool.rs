//! Threads for long synchronous work: the merges of scans, and the JSON of large replies.
//!
//! Work is done in slices of about a millisecond. Slices wait in one queue, first come, first
//! served, so every scan gets its turn; there are as many threads as cores, and they run at a low
//! priority, so that the threads of the runtime, which follow the log, answer point reads and
//! probes, are ahead of all scans together.
//!
//! **Invariants**
//! - A slice that nobody waits for any more is not run.
//! - A panic in a slice goes on in the caller.
//! - The queue is as long as there are callers, whose number the HTTP surface bounds.

use std::collections::VecDeque;
use std::fmt;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use tokio::sync::oneshot;

/// What is added to the priority number of a thread of the pool: it then gets about a tenth of
/// what a thread of the runtime gets, if both want the same core.
const NICENESS: i32 = 10;

type Slice = Box<dyn FnOnce() + Send>;

/// The threads; they start when they are needed, and end with the last handle.
#[derive(Clone)]
pub struct Pool {
    owner: Arc<Owner>,
}

struct Owner {
    shared: Arc<Shared>,
    threads_max: usize,
}

struct Shared {
    queue: Mutex<Queue>,
    more: Condvar,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Slice>,
    threads: usize,
    idle: usize,
    closed: bool,
}

impl Pool {
    /// A pool of at most this many threads; none is started yet.
    pub fn new(threads_max: NonZeroUsize) -> Self {
        let shared = Shared { queue: Mutex::default(), more: Condvar::new() };
        let owner = Owner { shared: Arc::new(shared), threads_max: threads_max.get() };
        Self { owner: Arc::new(owner) }
    }

    /// A pool with a thread for each core that this process may use.
    pub fn of_machine() -> Self {
        Self::new(thread::available_parallelism().unwrap_or(NonZeroUsize::MIN))
    }

    /// Runs `slice` when its turn has come, and returns what it returns.
    ///
    /// If the future is dropped before the turn has come, the slice is dropped and not run;
    /// after that it runs to its end.
    pub async fn run<T, F>(&self, slice: F) -> T
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let (done, result) = oneshot::channel();
        self.push(Box::new(move || {
            if !done.is_closed() {
                // Nobody waits any more if this fails.
                drop(done.send(catch_unwind(AssertUnwindSafe(slice))));
            }
        }));
        match result.await {
            Ok(Ok(value)) => value,
            Ok(Err(panic)) => resume_unwind(panic),
            Err(_) => unreachable!("a slice in the queue is run, for the caller has the pool"),
        }
    }

    fn push(&self, slice: Slice) {
        let Owner { shared, threads_max } = &*self.owner;
        let mut queue = shared.lock();
        queue.waiting.push_back(slice);
        if queue.idle >= queue.waiting.len() || queue.threads >= *threads_max {
            shared.more.notify_one();
            return;
        }
        queue.threads += 1;
        let worker = Arc::clone(shared);
        let started = thread::Builder::new().name("bulk".to_owned()).spawn(move || worker.work());
        if let Err(error) = started {
            queue.threads -= 1;
            if queue.threads == 0 {
                tracing::warn!(%error, "no thread for scans can be started: they run elsewhere");
                let waiting = std::mem::take(&mut queue.waiting);
                drop(queue);
                for slice in waiting {
                    slice();
                }
            }
        }
    }
}

impl Shared {
    /// The life of a thread.
    fn work(&self) {
        if let Err(error) = rustix::process::nice(NICENESS) {
            tracing::debug!(%error, "the priority of scans stays");
        }
        let mut queue = self.lock();
        loop {
            if let Some(slice) = queue.waiting.pop_front() {
                drop(queue);
                slice();
                queue = self.lock();
            } else if queue.closed {
                return;
            } else {
                queue.idle += 1;
                queue = self.more.wait(queue).unwrap_or_else(PoisonError::into_inner);
                queue.idle -= 1;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.more.notify_all();
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("threads_max", &self.owner.threads_max).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use futures::future::join_all;

    use super::*;

    const ONE: NonZeroUsize = NonZeroUsize::MIN;

    #[tokio::test]
    async fn slices_run_in_the_order_in_which_they_came() {
        let pool = Pool::new(ONE);
        let order = Arc::new(Mutex::new(Vec::new()));
        let slices = (0..50).map(|number| {
            let order = Arc::clone(&order);
            pool.run(move || order.lock().unwrap().push(number))
        });
        join_all(slices).await;
        assert_eq!(*order.lock().unwrap(), (0..50).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn no_more_slices_run_at_once_than_there_are_threads() {
        let pool = Pool::new(NonZeroUsize::new(3).unwrap());
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let slices = (0..40).map(|_| {
            let (now, most) = (Arc::clone(&now), Arc::clone(&most));
            pool.run(move || {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                thread::yield_now();
                now.fetch_sub(1, Ordering::SeqCst);
            })
        });
        join_all(slices).await;
        assert!((1..=3).contains(&most.load(Ordering::SeqCst)));
    }

    #[tokio::test]
    async fn a_slice_that_nobody_waits_for_is_not_run() {
        let pool = Pool::new(ONE);
        let (go, gate) = mpsc::channel::<()>();
        let mut first = Box::pin(pool.run(move || gate.recv().is_ok()));
        assert!(futures::poll!(&mut first).is_pending());
        let ran = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&ran);
        let mut given_up = Box::pin(pool.run(move || count.fetch_add(1, Ordering::SeqCst)));
        assert!(futures::poll!(&mut given_up).is_pending());
        drop(given_up);
        go.send(()).unwrap();
        assert!(first.await);
        pool.run(|| ()).await;
        assert_eq!(ran.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    #[should_panic(expected = "a defect")]
    async fn a_panic_goes_on_in_the_caller() {
        Pool::new(ONE).run(|| panic!("a defect")).await;
    }
}
