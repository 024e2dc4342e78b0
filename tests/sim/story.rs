//! The story of one seed: a phase in which everything goes wrong, a phase in which nothing does,
//! and the reckoning.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cairn_common::types::Seq;
use harness::faulty::Faults;
use rand::Rng;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::check::check;
use crate::clients::Client;
use crate::cluster::{Cluster, Slot};
use crate::ledger::Entry;
use crate::reading::Question;
use crate::world::{Tempo, World};

/// How long everything goes wrong.
const SAFETY_PHASE: Duration = Duration::from_secs(45);
/// How long it may take until everything works again.
const RECOVERY_MAX: Duration = Duration::from_mins(1);
/// How long the last compactor and collector have: several times every interval and retention.
const TIDYING: Duration = Duration::from_secs(30);
/// How long the tree must have stayed as it is in the end: what has left it is kept for the
/// retention, told by clocks that differ, and some passes of collection.
const TREE_AT_REST: Duration = Duration::from_secs(15);
/// How many write and read at a time.
const CLIENTS: usize = 6;
/// Writers that stand by for each other.
const WRITERS: usize = 2;
/// Readers.
const READERS: usize = 2;
/// A reader that begins when everything else is over.
const LATE_READER: usize = 9;

/// What happened in the world of one seed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) events: BTreeMap<String, u64>,
    pub(crate) fingerprint: u64,
}

/// Tells the story of one seed. Panics where a promise is broken.
pub(crate) async fn tell(seed: u64) -> Report {
    let world = World::new(seed, Tempo::Mixed);
    let mut cluster = Cluster::new(Arc::clone(&world));
    let stop = CancellationToken::new();
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        clients.spawn(client(&world, &stop).run());
    }
    (0..WRITERS).for_each(|number| cluster.start(Slot::Writer(number)));
    (0..READERS).for_each(|number| cluster.start(Slot::Reader(number)));
    for slot in [Slot::Compactor, Slot::Collector] {
        cluster.start(slot);
    }
    wreak_havoc(&world, &mut cluster).await;
    recover(&world, &mut cluster).await;
    stop.cancel();
    while let Some(ended) = clients.join_next().await {
        ended.expect("a client has failed");
    }
    for number in 0..READERS {
        read_everything(&world, &mut cluster, Slot::Reader(number)).await;
    }
    reckon(&world, &mut cluster).await;
    for (event, count) in world.store.counts() {
        world.events.add(format!("store: {event:?}"), count);
    }
    Report { events: world.events.counts(), fingerprint: world.store.fingerprint() }
}

fn client(world: &Arc<World>, stop: &CancellationToken) -> Client {
    Client { world: Arc::clone(world), stop: stop.clone() }
}

/// The safety phase: anything may happen, at any moment.
async fn wreak_havoc(world: &Arc<World>, cluster: &mut Cluster) {
    while world.now() < SAFETY_PHASE {
        cluster.tend().await;
        match world.draw(|rng| rng.random_range(0..100)) {
            0..5 => cluster.any().into_iter().for_each(|slot| cluster.crash(slot)),
            5..11 => {
                let length = world.span(300, 12_000);
                if let Some(slot) = cluster.any() {
                    cluster.stall(slot, length).await;
                }
            }
            11..13 => cluster.any().into_iter().for_each(|slot| cluster.stop(slot)),
            13..15 => cluster.start(Slot::Usurper),
            15..17 => cluster.start(Slot::Rival),
            17..23 => world.store.set_faults(Faults::rough()),
            23..28 => world.store.set_faults(Faults::quiet()),
            28..40 => drop(world.auditor.check_tree(&world.events).await),
            _ => {}
        }
        sleep(world.span(20, 300)).await;
    }
}

/// The liveness phase: the network works, nothing is crashed, and so everything must work again.
pub(crate) async fn recover(world: &Arc<World>, cluster: &mut Cluster) {
    world.store.set_faults(Faults::quiet());
    cluster.heal();
    let client = client(world, &CancellationToken::new());
    let recovered = async {
        loop {
            cluster.tend().await;
            cluster.heal();
            let serving = world.roster.serving();
            for listed in &serving {
                if client.write(listed, None).await.is_some() {
                    return;
                }
            }
            sleep(Duration::from_millis(100)).await;
        }
    };
    let recovered = timeout(RECOVERY_MAX, recovered).await;
    assert!(recovered.is_ok(), "no write was durable within {RECOVERY_MAX:?} of calm");
    // Everything that is still on its way may do its worst now.
    while world.store.is_anything_under_way() {
        cluster.tend().await;
        sleep(Duration::from_millis(250)).await;
    }
}

/// A reader tells everything, with all that was ever acknowledged; the check comes with that of all
/// other reads.
pub(crate) async fn read_everything(world: &Arc<World>, cluster: &mut Cluster, slot: Slot) {
    let client = client(world, &CancellationToken::new());
    let newest = world.ledger.newest_durable();
    let read = async {
        loop {
            cluster.tend().await;
            cluster.heal();
            if let Some(shown) = world.readers.look_up(&slot.name()) {
                let everything = Question::Prefix(b"");
                if client.question_reader(&shown, everything, newest).await.is_some() {
                    return;
                }
            }
            sleep(Duration::from_millis(100)).await;
        }
    };
    let read = timeout(RECOVERY_MAX, read).await;
    assert!(read.is_ok(), "{} has not caught up within {RECOVERY_MAX:?} of calm", slot.name());
}

/// The same at whoever writes.
async fn last_state(world: &Arc<World>, cluster: &mut Cluster) -> (u64, Vec<(Bytes, Entry)>) {
    let client = client(world, &CancellationToken::new());
    let read = async {
        loop {
            cluster.tend().await;
            for listed in &world.roster.serving() {
                if let Some(found) = client.scan(listed, b"").await {
                    return found;
                }
            }
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(RECOVERY_MAX, read).await.expect("the bucket can be opened again")
}

/// Reads the last state from a writer that has nothing but the bucket, checks every answer that
/// was ever given against it, and what is left once the last compactor and collector are done.
pub(crate) async fn reckon(world: &Arc<World>, cluster: &mut Cluster) {
    cluster.shut_down().await;
    cluster.start(Slot::Usurper);
    last_state(world, cluster).await;
    for slot in [Slot::Compactor, Slot::Collector] {
        cluster.start(slot);
    }
    let tidy_at = world.now() + TIDYING;
    let (mut runs, mut at_rest_from) = (Vec::new(), world.now());
    while world.now() < tidy_at.max(at_rest_from + TREE_AT_REST) {
        cluster.tend().await;
        let tree = world.auditor.look(&world.events).await.expect("a database").manifest;
        if tree.runs != runs {
            (runs, at_rest_from) = (tree.runs.clone(), world.now());
            let merges_on = at_rest_from > tidy_at + RECOVERY_MAX;
            assert!(!merges_on, "nobody writes, and the tree is still merged");
        }
        sleep(Duration::from_millis(250)).await;
    }
    cluster.start(Slot::Reader(LATE_READER));
    read_everything(world, cluster, Slot::Reader(LATE_READER)).await;
    let (now_ms, last) = last_state(world, cluster).await;
    cluster.shut_down().await;
    world.auditor.check_collected(&world.events).await;
    let history = world.ledger.snapshot();
    let wrong = check(&history, &last, now_ms);
    let shown: Vec<_> = wrong.iter().take(20).cloned().collect();
    assert!(wrong.is_empty(), "{} promises are broken:\n{}", wrong.len(), shown.join("\n"));
    let highest = last.iter().map(|(_, (_, seq))| *seq).max().unwrap_or(Seq::ZERO);
    world.events.add("batches", u64::try_from(history.batches.len()).unwrap());
    world.events.add("reads", u64::try_from(history.reads.len()).unwrap());
    assert!(highest > Seq::ZERO, "nothing was ever written");
}
