//! The link in time: what arrives over one that is slow.

use futures::future::join_all;

use super::*;
use crate::clock::TokioClock;

const MIB: usize = 1 << 20;

/// A network that carries so many bytes a second for all transfers together, fairly shared in
/// slices, and what was sent into it.
struct Network {
    clock: Arc<dyn Clock>,
    rate: u64,
    free_at: Mutex<Duration>,
    sent: Mutex<u64>,
}

impl Network {
    async fn carry(&self, bytes: usize) {
        let slice = 16 << 10;
        for _ in 0..bytes.div_ceil(slice) {
            let wait = {
                let now = self.clock.boot();
                let mut free_at = self.free_at.lock().unwrap();
                *free_at = (*free_at).max(now)
                    + Duration::from_micros(u64::try_from(slice).unwrap() * 1_000_000 / self.rate);
                free_at.saturating_sub(now)
            };
            *self.sent.lock().unwrap() += u64::try_from(slice).unwrap();
            tokio::time::sleep(wait).await;
        }
    }
}

/// Sends an object until it has arrived; returns how often.
async fn send(link: &Arc<Link>, network: &Network, (class, bytes): (Class, usize)) -> usize {
    for times in 1.. {
        let permit = link.enter(class, bytes).await;
        let patience = permit.patience(Duration::from_secs(5));
        match tokio::time::timeout(patience, network.carry(bytes)).await {
            Ok(()) => {
                permit.end(Transfer::Done);
                return times;
            }
            Err(_) => permit.end(Transfer::TimedOut),
        }
    }
    unreachable!()
}

fn kit(rate: usize) -> (Arc<Link>, Arc<Network>) {
    let clock: Arc<dyn Clock> = Arc::new(TokioClock::starting_at(0));
    let network = Network {
        clock: Arc::clone(&clock),
        rate: u64::try_from(rate).unwrap(),
        free_at: Mutex::default(),
        sent: Mutex::default(),
    };
    (Arc::new(Link::new(clock)), Arc::new(network))
}

#[tokio::test(start_paused = true)]
async fn a_slow_link_carries_each_byte_about_once() {
    for (rate, most_percent) in [(64 * MIB, 100), (4 * MIB, 100), (MIB, 120), (MIB / 4, 200)] {
        let (link, network) = kit(rate);
        let objects: Vec<_> =
            [1, 8, 8, 1, 8, 8, 8, 8, 8, 6].map(|mib| (Class::Urgent, mib * MIB)).into();
        let bytes: usize = objects.iter().map(|(_, bytes)| bytes).sum();
        let sendings = objects.into_iter().map(|object| send(&link, &network, object));
        join_all(sendings).await;
        let sent = *network.sent.lock().unwrap();
        let most = u64::try_from(bytes).unwrap() * most_percent / 100;
        assert!(sent <= most, "{sent} of {bytes} at {rate} B/s");
    }
}

#[tokio::test(start_paused = true)]
async fn the_log_goes_before_what_is_bulk() {
    let (link, network) = kit(4 * MIB);
    let mut uploads = tokio::task::JoinSet::new();
    for _ in 0..12 {
        let (link, network) = (Arc::clone(&link), Arc::clone(&network));
        uploads.spawn(async move { send(&link, &network, (Class::Bulk, 8 * MIB)).await });
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    let before = network.clock.boot();
    send(&link, &network, (Class::Urgent, MIB)).await;
    let took = network.clock.boot().saturating_sub(before);
    assert!(took < Duration::from_secs(5), "{took:?}");
    let mut ended = 0;
    while uploads.try_join_next().is_some() {
        ended += 1;
    }
    assert!(ended < 6, "before most of what is bulk, not after {ended}");
    assert_eq!(uploads.join_all().await.len() + ended, 12);
}

#[tokio::test(start_paused = true)]
async fn small_transfers_and_the_first_never_wait() {
    let (link, _) = kit(MIB);
    let large = link.enter(Class::Bulk, 300 * MIB).await;
    let small = link.enter(Class::Bulk, 1_000).await;
    assert!(!link.is_calm());
    let waits = link.enter(Class::Urgent, MIB);
    assert!(tokio::time::timeout(Duration::from_secs(9), waits).await.is_err());
    drop((large, small));
    let after = link.enter(Class::Urgent, MIB).await;
    assert_eq!(after.in_flight, 1 << 20, "whoever went away left nothing behind");
}

#[tokio::test(start_paused = true)]
async fn a_fast_link_gets_more_in_flight() {
    let (link, network) = kit(512 * MIB);
    let sendings = (0..200).map(|_| send(&link, &network, (Class::Bulk, 8 * MIB)));
    join_all(sendings).await;
    let bound = link.lock().bound;
    assert!(bound > 2 * IN_FLIGHT_START, "{bound}");
}

#[tokio::test(start_paused = true)]
async fn steady_small_ones_keep_no_large_one_out() {
    for class in [Class::Urgent, Class::Bulk] {
        let (link, _) = kit(MIB);
        link.lock().bound = IN_FLIGHT_MIN;
        let mut small = Vec::new();
        for _ in 0..200 {
            small.push(link.enter(Class::Urgent, 16 << 10).await);
        }
        let enters = link.enter(class, 8 * MIB);
        let large = tokio::time::timeout(Duration::from_millis(1), enters).await;
        let large = large.unwrap_or_else(|_| panic!("{class:?} waits for small ones"));
        let second = link.enter(class, MIB);
        assert!(tokio::time::timeout(Duration::from_secs(9), second).await.is_err());
        // The next goes when the large one ends, though the small ones are as many as before.
        drop(large);
        let third = link.enter(class, 8 * MIB);
        drop(tokio::time::timeout(Duration::from_millis(1), third).await.unwrap());
        drop(small);
        assert_eq!(link.lock().load.bytes, 0);
    }
}

/// Every transfer times out for 30 s.
async fn black_hole(link: &Arc<Link>, bytes: usize) {
    let end = link.clock.boot() + Duration::from_secs(30);
    while link.clock.boot() < end {
        let permit = link.enter(Class::Urgent, bytes).await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        permit.end(Transfer::TimedOut);
    }
}

/// Bound and rate.
fn trust(link: &Link) -> (u64, u64) {
    let state = link.lock();
    (state.bound, state.rate)
}

#[tokio::test(start_paused = true)]
async fn small_timeouts_do_not_slow_the_link() {
    let (link, _) = kit(64 * MIB);
    black_hole(&link, 1_000).await;
    assert_eq!(trust(&link), (IN_FLIGHT_START, RATE_START));
    assert!(link.is_calm());
    black_hole(&link, 100 << 10).await;
    assert_eq!(trust(&link), (IN_FLIGHT_MIN, RATE_MIN));
}

#[tokio::test(start_paused = true)]
async fn timeouts_at_once_say_the_same_once() {
    let (link, _) = kit(64 * MIB);
    let mut permits = Vec::new();
    for _ in 0..8 {
        permits.push(link.enter(Class::Urgent, MIB).await);
    }
    tokio::time::sleep(Duration::from_secs(30)).await;
    for permit in permits {
        permit.end(Transfer::TimedOut);
    }
    assert_eq!(trust(&link), (IN_FLIGHT_START / 2, RATE_START / 2));
}

#[tokio::test(start_paused = true)]
async fn a_hung_transfer_keeps_no_other_out() {
    let (link, network) = kit(64 * MIB);
    black_hole(&link, MIB).await;
    let hung = link.enter(Class::Bulk, 8 * MIB).await;
    assert!(hung.patience(Duration::from_secs(5)) > Duration::from_mins(5));
    for _ in 0..60 {
        send(&link, &network, (Class::Urgent, 1_000)).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(trust(&link), (IN_FLIGHT_START, RATE_START));
    let others = link.enter(Class::Urgent, 8 * MIB);
    drop(tokio::time::timeout(Duration::from_millis(1), others).await.unwrap());
    // It ends when another has shown what the link carries.
    send(&link, &network, (Class::Urgent, MIB)).await;
    let (bound, rate) = trust(&link);
    hung.end(Transfer::TimedOut);
    assert_eq!(trust(&link), (bound.min(IN_FLIGHT_MIN), rate));
}

#[tokio::test(start_paused = true)]
async fn what_recovers_meanwhile_is_not_what_was_too_much() {
    let (link, network) = kit(MIB / 16);
    let large = async { send(&link, &network, (Class::Bulk, 8 * MIB)).await };
    let small = async {
        loop {
            send(&link, &network, (Class::Urgent, 1_000)).await;
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    let times = tokio::select! {
        times = large => times,
        () = small => unreachable!(),
    };
    assert!(times <= 7, "{times} times over a link that also carries small ones");
}

#[tokio::test(start_paused = true)]
async fn requests_without_a_body_hang_shortly() {
    let (link, _) = kit(64 * MIB);
    let _large = link.enter(Class::Bulk, 300 * MIB).await;
    let at_least = Duration::from_secs(5);
    assert_eq!(link.patience(at_least), at_least * 2);
}

#[tokio::test(start_paused = true)]
async fn small_successes_end_the_memory_of_an_outage() {
    const WITHIN: Duration = Duration::from_mins(1);
    let at_least = Duration::from_secs(5);
    for bytes in [1_000, 100 << 10] {
        let (link, network) = kit(64 * MIB);
        send(&link, &network, (Class::Bulk, 8 * MIB)).await;
        black_hole(&link, MIB).await;
        assert_eq!(trust(&link), (IN_FLIGHT_MIN, RATE_MIN));
        let mut blocks = Vec::new();
        for _ in 0..20 {
            blocks.push(link.enter(Class::Urgent, 16 << 10).await);
        }
        let hung = link.enter(Class::Urgent, 1_000).await;
        assert!(hung.patience(at_least) <= at_least * 2, "{:?}", hung.patience(at_least));
        drop((blocks, hung));
        let end = link.clock.boot() + WITHIN;
        while link.clock.boot() < end {
            send(&link, &network, (Class::Urgent, bytes)).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(trust(&link), (IN_FLIGHT_START, RATE_START), "{bytes}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_measured_outlives_small_successes() {
    let (link, network) = kit(MIB / 16);
    send(&link, &network, (Class::Urgent, MIB)).await;
    let measured = link.lock().rate;
    assert!(measured < RATE_START / 8, "{measured}");
    let small = async || {
        for _ in 0..200 {
            send(&link, &network, (Class::Urgent, 1_000)).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    small().await;
    assert_eq!(link.lock().rate, measured, "a slow link carries small ones too");
    small().await;
    assert_eq!(link.lock().rate, RATE_START, "but not for ever");
}
