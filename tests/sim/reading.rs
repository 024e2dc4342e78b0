//! Reads at readers, as the read routes do them: a view that is new enough, an answer from it, and
//! once an object of it has vanished, a newer view.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cairn_common::Error;
use cairn_common::http::problem::Problem;
use cairn_common::http::reads::{Level, ReadRequest, Views};
use cairn_common::http::request::{Deadline, Staleness};
use cairn_common::read::view::View;
use cairn_common::types::Seq;
use rand::Rng;
use tokio::time::sleep;

use crate::clients::{Client, PATIENCE, get, hot_key, scan};
use crate::ledger::{Entry, Found, Place, Read, marker};
use crate::world::{RATE_ERROR_MAX, Shown};

/// Times that a read begins anew; each time its view was collected under it.
const RESTARTS_MAX: u32 = 8;

/// What is asked of a reader.
#[derive(Clone, Debug)]
pub(crate) enum Question {
    Keys(Vec<Bytes>),
    Prefix(&'static [u8]),
}

/// Why a reader gave no answer.
enum Unanswered {
    Refused(Problem),
    Failed(Error),
}

impl Client {
    /// Reads something at a reader, sometimes for what was acknowledged last.
    pub(crate) async fn read_at_reader(&self, shown: &Shown) {
        let newest = self.world.ledger.newest_durable();
        let written = u64::try_from(self.world.ledger.durable_count()).unwrap() + 1;
        let (question, min_seq) = self.world.draw(|rng| {
            let question = match rng.random_range(0..20) {
                0..12 => Question::Keys(vec![hot_key(rng), marker(rng.random_range(1..=written))]),
                12..15 => Question::Prefix(b"k/"),
                15..17 => Question::Prefix(b"c/"),
                17..19 => Question::Prefix(b"e/"),
                _ => Question::Prefix(b""),
            };
            (question, newest.filter(|_| rng.random_bool(0.4)))
        });
        self.question_reader(shown, question, min_seq).await;
    }

    /// Asks a reader; returns the seq of the view that answered.
    pub(crate) async fn question_reader(
        &self,
        shown: &Shown,
        question: Question,
        min_seq: Option<Seq>,
    ) -> Option<Seq> {
        let answer = self.ask(&shown.link, &shown.gone, async {
            Ok(self.answer(shown, question, min_seq).await)
        });
        let told = match answer.await? {
            Ok(seq) => return Some(seq),
            Err(Unanswered::Refused(problem)) => format!("reader answers {}", problem.code.name()),
            Err(Unanswered::Failed(Error::Corrupt(failure))) => {
                panic!("{} calls a healthy bucket corrupt: {failure}", shown.life)
            }
            Err(Unanswered::Failed(_)) => "reader cannot reach the store".to_owned(),
        };
        self.world.events.count(told);
        None
    }

    async fn answer(
        &self,
        shown: &Shown,
        question: Question,
        min_seq: Option<Seq>,
    ) -> Result<Seq, Unanswered> {
        let began = self.world.ledger.tick();
        let deadline = Deadline::after(PATIENCE);
        let stale_too = self.world.draw(|rng| rng.random_bool(0.3));
        let staleness = if stale_too { Staleness::Any } else { Staleness::Bounded };
        let request = ReadRequest { min_seq, deadline, level: Level::Durable, staleness };
        for restarts in 0.. {
            let turn = shown.turn.lock().await;
            let view = shown.node.view(request).await.map_err(Unanswered::Refused)?;
            drop(turn);
            let lag_ms = view.lag_ms.expect("a reader says how far it is behind");
            // The reader's clock may run slow.
            let lag_ms = f64::from(u32::try_from(lag_ms).unwrap()) * (1.0 + 2.0 * RATE_ERROR_MAX);
            let lag = Duration::from_secs_f64(lag_ms / 1_000.0);
            let fresh_as_of = self.world.now().checked_sub(lag);
            let fresh_as_of = fresh_as_of.map(|moment| self.world.ledger.tick_at(moment));
            if self.world.draw(|rng| rng.random_bool(0.1)) {
                // A slow reading: the view grows old meanwhile.
                sleep(self.world.span(100, 3_000)).await;
            }
            match look(&view.view, &question, view.now_ms).await {
                Ok(found) => {
                    let (place, seq) = (Place::Reader(shown.life.clone()), view.view.seq);
                    assert!(Some(seq) >= min_seq, "{place:?} is at {seq}, not {min_seq:?}");
                    self.world.events.count("read at a reader");
                    let now_ms = view.now_ms;
                    let read = Read { place, began, ended: 0, seq, now_ms, found, fresh_as_of };
                    self.world.ledger.read(read);
                    return Ok(seq);
                }
                Err(Error::NotFound(_)) if restarts < RESTARTS_MAX => {
                    let version = view.view.tree.manifest.id.version;
                    let (auditor, events) = (&self.world.auditor, &self.world.events);
                    auditor.check_missing(version, &shown.life, events).await;
                    events.count("reader refreshes after a vanished object");
                    let _turn = shown.turn.lock().await;
                    shown.node.reload().await.map_err(Unanswered::Failed)?;
                }
                Err(Error::NotFound(object)) => {
                    panic!("{} found {object} missing {restarts} times on end", shown.life)
                }
                Err(error) => return Err(Unanswered::Failed(error)),
            }
        }
        unreachable!("restarts are bounded")
    }
}

async fn look(view: &Arc<View>, question: &Question, now_ms: u64) -> Result<Found, Error> {
    match question {
        Question::Keys(keys) => Ok(Found::Keys(get(view, keys, now_ms).await?)),
        Question::Prefix(prefix) => {
            let found: Vec<(Bytes, Entry)> = scan(view, prefix, now_ms).await?;
            Ok(Found::Prefix(Bytes::from_static(prefix), found))
        }
    }
}
