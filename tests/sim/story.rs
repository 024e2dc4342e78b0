//! The story of one seed: a phase in which everything goes wrong, a phase in which nothing does,
//! and the reckoning.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cairn_common::types::Seq;
use harness::faulty::Faults;
use rand::Rng;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::check::check;
use crate::clients::Client;
use crate::cluster::{Cluster, Slot};
use crate::world::World;

/// How long everything goes wrong.
const SAFETY_PHASE: Duration = Duration::from_secs(45);
/// How long it may take until everything works again.
const RECOVERY_MAX: Duration = Duration::from_mins(1);
/// How many write and read at a time.
const CLIENTS: usize = 5;
/// Writers that stand by for each other.
const WRITERS: usize = 2;

/// What happened in the world of one seed.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) events: BTreeMap<String, u64>,
    pub(crate) fingerprint: u64,
}

/// Tells the story of one seed. Panics where a promise is broken.
pub(crate) async fn tell(seed: u64) -> Report {
    let world = World::new(seed);
    let mut cluster = Cluster::new(Arc::clone(&world));
    let stop = CancellationToken::new();
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        clients.spawn(client(&world, &stop).run());
    }
    (0..WRITERS).for_each(|number| cluster.start(Slot::Writer(number)));
    wreak_havoc(&world, &mut cluster).await;
    recover(&world, &mut cluster).await;
    stop.cancel();
    while let Some(ended) = clients.join_next().await {
        ended.expect("a client has failed");
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
            0..4 => cluster.any().into_iter().for_each(|slot| cluster.crash(slot)),
            4..8 => {
                let length = world.span(300, 7_000);
                cluster.any().into_iter().for_each(|slot| cluster.stall(slot, length));
            }
            8..10 => cluster.any().into_iter().for_each(|slot| cluster.stop(slot)),
            10..13 => cluster.start(Slot::Usurper),
            13..20 => world.store.set_faults(Faults::rough()),
            20..24 => world.store.set_faults(Faults::quiet()),
            _ => {}
        }
        sleep(world.span(20, 300)).await;
    }
}

/// The liveness phase: the network works, nothing is crashed, and so everything must work again.
async fn recover(world: &Arc<World>, cluster: &mut Cluster) {
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

/// Reads the last state from a writer that has nothing but the bucket, and checks every answer
/// that was ever given against it.
async fn reckon(world: &Arc<World>, cluster: &mut Cluster) {
    cluster.shut_down().await;
    cluster.start(Slot::Usurper);
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
    let last = timeout(RECOVERY_MAX, read).await;
    let last = last.expect("the bucket can be opened again");
    let history = world.ledger.snapshot();
    let wrong = check(&history, &last);
    let shown: Vec<_> = wrong.iter().take(20).cloned().collect();
    assert!(wrong.is_empty(), "{} promises are broken:\n{}", wrong.len(), shown.join("\n"));
    let highest = last.iter().map(|(_, (_, seq))| *seq).max().unwrap_or(Seq::ZERO);
    world.events.add("batches", u64::try_from(history.batches.len()).unwrap());
    world.events.add("reads", u64::try_from(history.reads.len()).unwrap());
    assert!(highest > Seq::ZERO, "nothing was ever written");
}
