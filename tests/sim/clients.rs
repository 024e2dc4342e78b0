//! Clients: they write and read wherever somebody says that it serves, and record what they hear.

use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use cairn_common::Error;
use cairn_common::http::conditions::Conditions;
use cairn_common::http::request::Deadline;
use cairn_common::lsm::visible::write_time_ms;
use cairn_common::read::restart::Restart;
use cairn_common::read::view::View;
use cairn_common::types::{Direction, KeyRange, MergeOp, Op, Payload, Seq};
use cairn_writer::condition::Condition;
use cairn_writer::service::{Durability, Unwritten, Write, Writer};
use futures::future::join_all;
use harness::faulty::Link;
use rand::Rng;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::ledger::{Change, Entry, Found, Place, Read, Told, Wanted, marker, value};
use crate::world::{Listed, World};

/// Keys that everybody writes.
const HOT_KEYS: u64 = 24;
/// Counters, which are only added to and deleted.
const COUNTERS: u64 = 4;
/// Writers of one key that nobody has written yet.
const RACERS: usize = 6;
/// Keys whose values expire, and are added to.
const LEASES: u64 = 3;
/// What a client waits for an answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(4);
/// What it waits for a write that adds to what expires: within this it is taken, or never.
const HASTE: Duration = Duration::from_millis(500);
/// What it waits for a write. Some wait for longer than any stall: what a writer wakes up with can
/// only be told to them.
const PATIENCES: [Duration; 4] = [HASTE, PATIENCE, PATIENCE, Duration::from_secs(20)];

/// One client.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) world: Arc<World>,
    pub(crate) stop: CancellationToken,
}

impl Client {
    /// Works until it is stopped.
    pub(crate) async fn run(self) {
        while !self.stop.is_cancelled() {
            sleep(self.world.span(1, 60)).await;
            if self.world.is_lulled() {
                continue;
            }
            let readers = self.world.readers.all();
            if !readers.is_empty() && self.world.draw(|rng| rng.random_bool(0.35)) {
                let chosen = self.world.draw(|rng| rng.random_range(0..readers.len()));
                self.read_at_reader(&readers[chosen]).await;
                continue;
            }
            let serving = self.world.roster.serving();
            if serving.is_empty() {
                continue;
            }
            let chosen = self.world.draw(|rng| rng.random_range(0..serving.len()));
            let listed = &serving[chosen];
            match self.world.draw(|rng| rng.random_range(0..100)) {
                0..55 => drop(self.write(listed, None).await),
                55..65 => self.write_conditionally(listed).await,
                65..70 => self.race(listed).await,
                70..71 => self.flush(listed).await,
                _ => drop(self.read(listed).await),
            }
        }
    }

    /// Writes a batch; returns its seq where it is durable.
    pub(crate) async fn write(&self, listed: &Listed, wanted: Option<Wanted>) -> Option<Seq> {
        let (loose, patience) = self.world.draw(|rng| {
            (wanted.is_none() && rng.random_bool(0.15), PATIENCES[rng.random_range(0..4)])
        });
        let durability = if loose { Durability::Memory } else { Durability::Durable };
        self.write_as(listed, wanted, (durability, patience)).await
    }

    /// Writes a batch as durably as is said, and waits for so long.
    pub(crate) async fn write_as(
        &self,
        listed: &Listed,
        wanted: Option<Wanted>,
        (durability, patience): (Durability, Duration),
    ) -> Option<Seq> {
        let loose = durability == Durability::Memory;
        let condition = wanted.as_ref().map(condition);
        let begun = OnceLock::new();
        let write = async {
            let writer = &listed.writer;
            // SUBTLE: what is added must not be of an earlier time than what is flushed before it:
            // by this clock, by one before it, or while this batch waits to be taken.
            let flushed_ms = writer.front.tree().manifest.time_ms;
            let latest_ms = flushed_ms.max(writer.env.clock.wall_ms());
            let latest_ms = latest_ms + u64::try_from(HASTE.as_millis()).unwrap();
            let changes = self.world.draw(|rng| {
                let mut changes = changes(rng, wanted.as_ref(), latest_ms);
                changes.extend((patience == HASTE).then(|| change_of_lease(rng, latest_ms)));
                changes
            });
            let id = *begun.get_or_init(|| self.world.ledger.begin(listed.epoch, changes, wanted));
            let changes = self.world.ledger.changes(id);
            let ops = changes.into_iter().map(|(key, change)| op(id, key, change)).collect();
            let deadline = Deadline::after(patience).instant();
            Ok(writer.write(Write { ops, condition, durability, deadline }).await)
        };
        let answer = self.ask(&listed.link, &listed.gone, write).await;
        let id = *begun.get()?;
        let told = match answer {
            None | Some(Err(Unwritten::Unknown)) => Told::Unknown,
            Some(Ok(seq)) if loose => Told::Memory(seq),
            Some(Ok(seq)) => Told::Durable(seq),
            Some(Err(Unwritten::Precondition(etag))) => Told::Precondition(etag),
            Some(Err(Unwritten::Failed(Error::Corrupt(failure)))) => {
                panic!("a healthy bucket was called corrupt: {failure}")
            }
            Some(Err(_)) => Told::NotApplied,
        };
        self.world.events.count(match told {
            Told::Durable(_) => "write durable",
            Told::Memory(_) => "write in memory",
            Told::NotApplied => "write not applied",
            Told::Precondition(_) => "write refused by its condition",
            Told::Unknown => "write unknown",
        });
        self.world.ledger.end(id, told, self.world.now());
        match told {
            Told::Durable(seq) => Some(seq),
            _ => None,
        }
    }

    /// Reads a key and writes it if it is unchanged; sometimes with what it was before.
    async fn write_conditionally(&self, listed: &Listed) {
        let key = self.world.draw(hot_key);
        let Some(found) = self.get(listed, vec![key.clone()]).await else { return };
        let mut etag = found.into_iter().next().and_then(|(_, entry)| Some(entry?.1));
        if self.world.draw(|rng| rng.random_bool(0.1)) {
            etag = None;
        }
        sleep(self.world.span(0, 20)).await;
        self.write(listed, Some(Wanted { key, etag })).await;
    }

    /// Races itself for a key that nobody has written yet, or for one that is flushed, so that its
    /// etag is read from the store; the winner has it flushed at once.
    async fn race(&self, listed: &Listed) {
        let (is_new, known) = self.world.draw(|rng| (rng.random_bool(0.3), hot_key(rng)));
        let wanted = if is_new {
            let heat = self.world.now().as_millis();
            Wanted { key: format!("d/{:03}/{heat}", heat % 1_000).into(), etag: None }
        } else {
            let Some(found) = self.get(listed, vec![known.clone()]).await else { return };
            self.flush(listed).await;
            Wanted { key: known, etag: found.into_iter().find_map(|(_, entry)| Some(entry?.1)) }
        };
        let run = async |delay| {
            sleep(delay).await;
            if self.write(listed, Some(wanted.clone())).await.is_some() {
                self.flush(listed).await;
            }
        };
        let delays = (0..RACERS).map(|_| self.world.span(0, 25)).collect::<Vec<_>>();
        join_all(delays.into_iter().map(run)).await;
    }

    pub(crate) async fn flush(&self, listed: &Listed) {
        let flush = async {
            let _turn = listed.turn.lock().await;
            Ok(timeout(PATIENCE, listed.writer.flush()).await)
        };
        if let Some(Ok(Ok(_))) = self.ask(&listed.link, &listed.gone, flush).await {
            self.world.events.count("flush asked for");
        }
    }

    /// Reads something at the writer; returns the seq of the view.
    pub(crate) async fn read(&self, listed: &Listed) -> Option<()> {
        match self.world.draw(|rng| rng.random_range(0..10)) {
            0..6 => {
                let written = u64::try_from(self.world.ledger.durable_count()).unwrap() + 1;
                let keys = self.world.draw(|rng| {
                    let one = hot_key(rng);
                    let two = marker(rng.random_range(1..=written));
                    vec![one, two]
                });
                self.get(listed, keys).await.map(drop)
            }
            choice => {
                let prefix = [&b"k/"[..], b"k/", b"c/", b"e/"][choice - 6];
                self.scan(listed, prefix).await.map(drop)
            }
        }
    }

    async fn get(&self, listed: &Listed, keys: Vec<Bytes>) -> Option<Vec<(Bytes, Option<Entry>)>> {
        let began = self.world.ledger.tick();
        let look = self.ask(&listed.link, &listed.gone, async {
            self.view_of(&listed.writer, |view, now_ms| {
                let keys = keys.clone();
                async move { get(&view, &keys, now_ms).await }
            })
            .await
        });
        let (moment, found) = look.await?;
        self.record(began, moment, Found::Keys(found.clone()));
        Some(found)
    }

    /// Reads everything under a prefix at the writer; with the wall time that it went by.
    pub(crate) async fn scan(
        &self,
        listed: &Listed,
        prefix: &'static [u8],
    ) -> Option<(u64, Vec<(Bytes, Entry)>)> {
        let began = self.world.ledger.tick();
        let look = self.ask(&listed.link, &listed.gone, async {
            let look = |view: Arc<View>, now_ms| async move { scan(&view, prefix, now_ms).await };
            self.view_of(&listed.writer, look).await
        });
        let (moment, found) = look.await?;
        self.record(began, moment, Found::Prefix(prefix.into(), found.clone()));
        Some((moment.1, found))
    }

    fn record(&self, began: u64, (seq, now_ms): (Seq, u64), found: Found) {
        self.world.events.count("read at the writer");
        let (place, fresh_as_of) = (Place::Writer, None);
        self.world.ledger.read(Read { place, began, ended: 0, seq, now_ms, found, fresh_as_of });
    }

    /// Reads from a view of the writer, from a newer one where an object of it is gone.
    async fn view_of<T, F, R>(&self, writer: &Writer, look: F) -> Result<((Seq, u64), T), Error>
    where
        F: Fn(Arc<View>, u64) -> R,
        R: Future<Output = Result<T, Error>>,
    {
        let mut restart = Restart::default();
        loop {
            let view = writer.durable_view().await?;
            if self.world.draw(|rng| rng.random_bool(0.05)) {
                // A slow reading: the view grows old meanwhile.
                sleep(self.world.span(100, 3_000)).await;
            }
            let now_ms = writer.env.clock.wall_ms();
            match look(Arc::clone(&view), now_ms).await {
                Ok(found) => return Ok(((view.seq, now_ms), found)),
                Err(error @ Error::NotFound(_)) => {
                    restart.judge(&view, error)?;
                    let version = view.tree.manifest.id.version;
                    let (auditor, events) = (&self.world.auditor, &self.world.events);
                    auditor.check_missing(version, "the writer", events).await;
                    events.count("writer refreshes after a vanished object");
                    writer.reload().await?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// A request to a process: hangs while that is stopped, breaks when it is gone.
    pub(crate) async fn ask<T>(
        &self,
        link: &Link,
        gone: &CancellationToken,
        request: impl Future<Output = Result<T, Error>>,
    ) -> Option<T> {
        let asked = async {
            link.let_on().await;
            let answer = request.await;
            link.let_on().await;
            answer
        };
        tokio::select! {
            biased;
            () = gone.cancelled() => None,
            answer = timeout(PATIENCE * 6, asked) => match answer {
                Ok(Ok(answer)) => Some(answer),
                Ok(Err(Error::Corrupt(failure))) => {
                    panic!("a healthy bucket was called corrupt: {failure}")
                }
                Ok(Err(_)) | Err(_) => None,
            },
        }
    }
}

/// Single keys from a view.
pub(crate) async fn get(
    view: &View,
    keys: &[Bytes],
    now_ms: u64,
) -> Result<Vec<(Bytes, Option<Entry>)>, Error> {
    let found = view.get_many(keys, now_ms).await?;
    let entries = found.into_iter().map(|found| found.map(|found| (found.value, found.seq)));
    Ok(keys.iter().cloned().zip(entries).collect())
}

/// Everything under a prefix from a view.
pub(crate) async fn scan(
    view: &View,
    prefix: &[u8],
    now_ms: u64,
) -> Result<Vec<(Bytes, Entry)>, Error> {
    let mut scan = view.scan(&KeyRange::prefix(prefix), Direction::Forward, now_ms);
    let mut rows = Vec::new();
    while let Some(row) = scan.next().await? {
        rows.push((row.key, (row.value, row.seq)));
    }
    Ok(rows)
}

pub(crate) fn hot_key(rng: &mut impl Rng) -> Bytes {
    format!("k/{:02}", rng.random_range(0..HOT_KEYS)).into()
}

fn changes(rng: &mut impl Rng, wanted: Option<&Wanted>, latest_ms: u64) -> Vec<(Bytes, Change)> {
    let mut changes: Vec<(Bytes, Change)> = Vec::new();
    if let Some(wanted) = wanted {
        changes.push((wanted.key.clone(), Change::Put));
    }
    for _ in 0..rng.random_range(1..=3) {
        let key = hot_key(rng);
        let change = if rng.random_bool(0.2) { Change::Delete } else { Change::Put };
        if changes.iter().all(|(other, _)| *other != key) {
            changes.push((key, change));
        }
    }
    if rng.random_bool(0.3) {
        let key = format!("c/{}", rng.random_range(0..COUNTERS));
        let reset = rng.random_bool(0.05);
        let change = if reset { Change::Delete } else { add(rng, latest_ms) };
        changes.push((key.into(), change));
    }
    changes
}

/// A change of a key whose values expire.
fn change_of_lease(rng: &mut impl Rng, latest_ms: u64) -> (Bytes, Change) {
    let change = match rng.random_range(0..10) {
        0..5 => Change::PutUntil(latest_ms + rng.random_range(0..5_000)),
        5 => Change::Delete,
        _ => add(rng, latest_ms),
    };
    (format!("e/{}", rng.random_range(0..LEASES)).into(), change)
}

fn add(rng: &mut impl Rng, latest_ms: u64) -> Change {
    let amount = rng.random_range(-9..=9);
    Change::Add { amount, written_ms: write_time_ms(latest_ms) }
}

fn op(id: u64, key: Bytes, change: Change) -> Op {
    let mut expires_ms = None;
    let payload = match change {
        Change::Put => Payload::Value(value(id)),
        Change::PutUntil(at) => {
            expires_ms = Some(at);
            Payload::Value(value(id))
        }
        Change::Delete => Payload::Tombstone,
        Change::Add { amount, written_ms } => {
            let operand = amount.to_string().into();
            Payload::Operand { op: MergeOp::Add, written_ms, operand }
        }
    };
    Op { key, payload, expires_ms }
}

fn condition(wanted: &Wanted) -> Condition {
    let mut headers = http::HeaderMap::new();
    let (name, text) = match wanted.etag {
        Some(etag) => ("if-match", format!("\"{etag}\"")),
        None => ("if-none-match", "*".to_owned()),
    };
    headers.insert(name, text.parse().unwrap());
    Condition { key: wanted.key.clone(), tests: Conditions::parse(&headers).unwrap() }
}
