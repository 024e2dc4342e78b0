//! SIGKILL at seeded times over writer, reader and compactor, some of them in the middle of a
//! flush, a takeover or a compaction, while clients write; then everything is read back.

use std::collections::BTreeMap;
use std::time::Duration;

use cairn_common::types::Role;
use harness::cluster::Cluster;
use harness::ledger::History;
use harness::process::{Kind, Process};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rustix::process::Signal;

use crate::load::Load;
use crate::view;

/// Kills in a run of the test suite: of each moment, a sixth.
const KILLS: u64 = 24;
/// Each moment must be met this often.
const MOMENTS_MIN: usize = 3;
/// Looks for the wanted moment, one a millisecond or so, before any other will do.
const LOOKS: usize = 5_000;
const CLIENTS: u32 = 6;
const KINDS: [Kind; 3] = [Kind::Writer, Kind::Reader, Kind::Compactor];

/// When a process is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Moment {
    /// At any time.
    Any(Kind),
    /// The writer, while an L0 is uploaded and not committed.
    Flush,
    /// The next writer, after its claim and before it serves.
    Takeover,
    /// The compactor, while its output is uploaded and not committed.
    Compaction,
}

const MOMENTS: [Moment; 6] = [
    Moment::Any(Kind::Writer),
    Moment::Any(Kind::Reader),
    Moment::Any(Kind::Compactor),
    Moment::Flush,
    Moment::Takeover,
    Moment::Compaction,
];

/// The three processes under load, and how often each moment was met.
struct Run {
    cluster: Cluster,
    /// `None` once it has ended.
    load: Option<Load>,
    processes: BTreeMap<Kind, Process>,
    met: BTreeMap<Moment, usize>,
}

impl Run {
    async fn start(seed: u64) -> Self {
        let cluster = Cluster::new();
        let load = Some(Load::start(&cluster, CLIENTS, seed));
        let mut run = Self { cluster, load, processes: BTreeMap::new(), met: BTreeMap::new() };
        for kind in KINDS {
            run.restart(kind).await;
        }
        run
    }

    /// Starts a process, and tells the load where it is once it is ready.
    async fn restart(&mut self, kind: Kind) {
        let mut process = self.cluster.start(kind, &[]);
        let announced = process.ready().await;
        match (kind, &self.load) {
            (Kind::Writer, Some(load)) => load.writer_at(Some(announced.listen)),
            (Kind::Reader, Some(load)) => load.reader_at(Some(announced.listen)),
            _ => {}
        }
        self.processes.insert(kind, process);
    }

    async fn kill(&mut self, kind: Kind) {
        let process = self.processes.remove(&kind).expect("it runs");
        process.kill().await;
    }

    fn count(&mut self, moment: Moment) {
        *self.met.entry(moment).or_default() += 1;
    }

    async fn meet(&mut self, moment: Moment) {
        let kind = match moment {
            Moment::Any(kind) => kind,
            Moment::Flush => {
                self.freeze_in_progress(Kind::Writer, Role::Writer, moment).await;
                Kind::Writer
            }
            Moment::Compaction => {
                self.freeze_in_progress(Kind::Compactor, Role::Compactor, moment).await;
                Kind::Compactor
            }
            Moment::Takeover => {
                self.kill(Kind::Writer).await;
                self.kill_in_takeover().await;
                return self.restart(Kind::Writer).await;
            }
        };
        if moment == Moment::Any(kind) {
            self.count(moment);
        }
        self.kill(kind).await;
        self.restart(kind).await;
    }

    /// Stops the process while something of its making is on its way into the tree.
    async fn freeze_in_progress(&mut self, kind: Kind, role: Role, moment: Moment) {
        let some =
            |cluster: &Cluster| cluster.in_progress(role).is_some_and(|making| !making.is_empty());
        for _ in 0..LOOKS {
            if some(&self.cluster) {
                self.processes[&kind].signal(Signal::STOP);
                // What it has asked the kernel for is still done.
                tokio::time::sleep(Duration::from_millis(5)).await;
                if some(&self.cluster) {
                    return self.count(moment);
                }
                self.processes[&kind].signal(Signal::CONT);
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Starts a writer and kills it between its claim and its readiness.
    async fn kill_in_takeover(&mut self) {
        let epoch = |cluster: &Cluster| cluster.current().map(|current| current.writer.epoch);
        let before = epoch(&self.cluster);
        let next = self.cluster.start(Kind::Writer, &[]);
        for _ in 0..LOOKS {
            if epoch(&self.cluster) > before {
                self.count(Moment::Takeover);
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let log = next.log();
        next.kill().await;
        assert!(!log.contains("ready role="), "it served before it was killed: {log}");
    }

    /// Reads everything back at the writer and at the reader, and compares it with the ledger.
    async fn read_back(&self, history: &History) {
        let http = view::client();
        let (seq, at_writer) =
            view::everything(&http, &self.processes[&Kind::Writer].url(), history.seq()).await;
        let none = Vec::<String>::new();
        assert_eq!(history.judge(&at_writer), none, "at the writer, seq {seq}");
        let (_, at_reader) =
            view::everything(&http, &self.processes[&Kind::Reader].url(), seq).await;
        assert_eq!(history.judge(&at_reader), none, "at the reader");
        assert!(at_writer == at_reader, "the reader shows something else than the writer");
    }
}

fn setting(name: &str, default: u64) -> u64 {
    let value = std::env::var(name).ok();
    value.map_or(default, |value| value.parse().expect("a number"))
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost() {
    let seed = setting("CAIRN_CHAOS_SEED", rand::random());
    let kills = setting("CAIRN_CHAOS_KILLS", KILLS);
    say(&format!("CAIRN_CHAOS_SEED={seed} CAIRN_CHAOS_KILLS={kills}"));
    let mut rng = StdRng::seed_from_u64(seed);
    let mut run = Run::start(seed).await;
    let mut moments: Vec<_> =
        MOMENTS.into_iter().cycle().zip(0..kills).map(|(moment, _)| moment).collect();
    moments.shuffle(&mut rng);
    for moment in moments {
        tokio::time::sleep(Duration::from_millis(rng.random_range(50..400))).await;
        run.meet(moment).await;
    }
    let load = run.load.take().expect("it runs");
    let observed = load.observed();
    let history = load.stop().await;
    let (acked, refused, undecided) = history.counts();
    say(&format!("{acked} acknowledged, {refused} refused, {undecided} undecided"));
    say(&format!("{:?}, {observed} sets observed", run.met));
    run.read_back(&history).await;
    // Once more from what is in the bucket alone.
    for kind in KINDS {
        run.kill(kind).await;
    }
    for kind in KINDS {
        run.restart(kind).await;
    }
    run.read_back(&history).await;
    for kind in KINDS {
        let process = run.processes.remove(&kind).expect("it runs");
        assert_eq!(process.stop().await, 0, "{kind:?} at SIGTERM");
    }
    assert!(acked > 100 && observed > 100, "too little was done to prove anything");
    for moment in MOMENTS {
        let met = run.met.get(&moment).copied().unwrap_or(0);
        assert!(met >= MOMENTS_MIN, "{moment:?} was met only {met} times");
    }
}

#[expect(clippy::print_stdout, reason = "a failed run is repeated from its seed")]
fn say(line: &str) {
    println!("{line}");
}
