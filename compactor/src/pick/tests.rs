//! The picker's decisions as stories in `testdata/pick.txt`.
//!
//! A case is a block of lines up to `----`, then what is picked; blocks are parted by empty lines.
//! `REWRITE=1` writes what is picked now into the file, and the diff is the review.
//!
//! ```text
//! l0 NAME [SIZE] [KEYS] [entries=N] [tombstones=N] [operands=N] [expired=SIZE] [age=MIN] [busy]
//!    [damaged]
//! run NAME …                            newest first, as in the tree
//! set l0_count=2                        config for this case
//! full                                  what a full compaction would take
//! full_runs                             the same, once L0 has been merged
//! play                                  run the jobs until none is picked; sizes add up
//! ```

use std::fmt::Write as _;
use std::path::Path;

use bytes::Bytes;

use super::*;

const MIB: u64 = 1024 * 1024;
/// Jobs of one `play`: a picker that goes on for ever is found.
const PLAY_MAX: usize = 50;

struct Case {
    tree: Tree,
    names: Vec<String>,
    busy: BTreeSet<Uuid>,
    config: PickConfig,
    ask: Ask,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Ask {
    One,
    Full,
    FullRuns,
    Play,
}

fn size(text: &str) -> u64 {
    let units = [("GiB", 1024 * MIB), ("MiB", MIB), ("KiB", 1024)];
    let (number, unit) =
        units.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, *unit))).unwrap();
    number.parse::<u64>().unwrap() * unit
}

impl Case {
    fn parse(text: &str) -> Self {
        let mut case = Self {
            tree: Tree::default(),
            names: Vec::new(),
            busy: BTreeSet::new(),
            config: PickConfig::default(),
            ask: Ask::One,
        };
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let mut words = line.split_whitespace();
            match words.next().unwrap() {
                "l0" => case.source(words).map_or((), |stat| case.tree.l0.push(stat)),
                "run" => case.source(words).map_or((), |stat| case.tree.runs.push(stat)),
                "set" => words.for_each(|word| case.set(word)),
                "full" => case.ask = Ask::Full,
                "full_runs" => case.ask = Ask::FullRuns,
                "play" => case.ask = Ask::Play,
                other => panic!("what is {other}?"),
            }
        }
        case
    }

    fn source<'a>(&mut self, mut words: impl Iterator<Item = &'a str>) -> Option<Stat> {
        self.names.push(words.next()?.to_owned());
        let id = Uuid::from_u128(u128::try_from(self.names.len()).unwrap());
        let mut stat = Stat {
            id,
            bytes: 64 * MIB,
            ssts: 1,
            entries: 1_000,
            tombstones: 0,
            operands: 0,
            first_key: Bytes::from_static(b"a"),
            last_key: Bytes::from_static(b"z"),
            expired_bytes: 0,
            age_ms: 0,
            damaged: false,
        };
        for word in words {
            match word.split_once('=') {
                Some(("entries", count)) => stat.entries = count.parse().unwrap(),
                Some(("tombstones", count)) => stat.tombstones = count.parse().unwrap(),
                Some(("operands", count)) => stat.operands = count.parse().unwrap(),
                Some(("expired", bytes)) => stat.expired_bytes = size(bytes),
                Some(("age", minutes)) => stat.age_ms = minutes.parse::<u64>().unwrap() * 60_000,
                _ if word == "busy" => drop(self.busy.insert(id)),
                _ if word == "damaged" => stat.damaged = true,
                _ => match word.split_once('-') {
                    Some((first, last)) => {
                        stat.first_key = Bytes::copy_from_slice(first.as_bytes());
                        stat.last_key = Bytes::copy_from_slice(last.as_bytes());
                    }
                    None => stat.bytes = size(word),
                },
            }
        }
        Some(stat)
    }

    fn set(&mut self, word: &str) {
        let (name, value) = word.split_once('=').unwrap();
        let value: u64 = value.parse().unwrap();
        let count = usize::try_from(value).unwrap();
        match name {
            "l0_count" => self.config.l0_count = count,
            "tier_count" => self.config.tier_count = count,
            "runs_max" => self.config.runs_max = count,
            "inputs_max" => self.config.inputs_max = count,
            "bottom_percent" => self.config.bottom_percent = value,
            other => panic!("what is {other}?"),
        }
    }

    fn name(&self, id: Uuid) -> &str {
        &self.names[usize::try_from(id.as_u128()).unwrap() - 1]
    }

    fn answer(mut self) -> String {
        match self.ask {
            Ask::One => self.describe(pick(&self.tree, &self.busy, &self.config).as_ref()),
            Ask::Full => self.describe(pick_full(&self.tree).as_ref()),
            Ask::FullRuns => self.describe(pick_full_runs(&self.tree).as_ref()),
            Ask::Play => self.play(),
        }
    }

    fn describe(&self, job: Option<&Job>) -> String {
        let Some(job) = job else { return "nothing\n".to_owned() };
        self.check(job);
        let names: Vec<_> = job.inputs().map(|id| self.name(id)).collect();
        format!("{}: {}\n", job.reason.name(), names.join(" "))
    }

    /// What holds for every job, whatever the story.
    fn check(&self, job: &Job) {
        let ids: Vec<_> = self.tree.sources().map(|source| source.id).collect();
        let inputs: Vec<_> = job.inputs().collect();
        assert!(ids.windows(inputs.len()).any(|stretch| stretch == inputs), "neighbours");
        assert!(inputs.iter().all(|id| !self.busy.contains(id)), "busy");
        let damaged = self.tree.sources().filter(|source| source.damaged).map(|source| source.id);
        let damaged = damaged.filter(|id| inputs.contains(id)).count();
        assert_eq!(damaged, usize::from(job.reason == Reason::Quarantine), "damaged");
        if job.reason == Reason::L0 {
            assert_eq!(self.tree.l0.last().map(|sst| sst.id), job.l0.last().copied());
        }
    }

    /// Runs jobs, each making one run as large as its inputs together.
    fn play(&mut self) -> String {
        let mut story = String::new();
        for _ in 0..PLAY_MAX {
            let Some(job) = pick(&self.tree, &self.busy, &self.config) else {
                let runs = self.tree.runs.iter().map(|run| format!("{}MiB", run.bytes / MIB));
                let left: Vec<_> = runs.collect();
                writeln!(story, "left: {} l0, {}", self.tree.l0.len(), left.join(" ")).unwrap();
                return story;
            };
            story += &self.describe(Some(&job));
            self.apply(&job);
        }
        panic!("the picker does not come to rest:\n{story}");
    }

    fn apply(&mut self, job: &Job) {
        let is_input = |source: &Stat| job.inputs().any(|id| id == source.id);
        let inputs: Vec<_> = self.tree.sources().filter(|source| is_input(source)).collect();
        let newest_run = self.tree.runs.iter().position(is_input).unwrap_or(0);
        let mut output = inputs[0].clone();
        output.bytes = inputs.iter().map(|input| input.bytes).sum();
        output.entries = inputs.iter().map(|input| input.entries).sum();
        let is_bottom = self.tree.sources().next_back().is_some_and(is_input);
        let tombstones = inputs.iter().map(|input| input.tombstones).sum();
        output.tombstones =
            if is_bottom && job.reason != Reason::Quarantine { 0 } else { tombstones };
        output.expired_bytes = 0;
        output.age_ms = 0;
        self.names.push(format!("({})", job.reason.name()));
        output.id = Uuid::from_u128(u128::try_from(self.names.len()).unwrap());
        self.tree.l0.retain(|sst| !job.l0.contains(&sst.id));
        self.tree.runs.retain(|run| !job.runs.contains(&run.id));
        self.tree.runs.insert(newest_run, output);
    }
}

#[test]
fn picks_are_as_told() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/pick.txt");
    let told = std::fs::read_to_string(&path).unwrap();
    let mut now = Vec::new();
    for block in told.trim_end().split("\n\n") {
        let story = block.split("----").next().unwrap().trim_end();
        let is_case = story.lines().any(|line| !line.starts_with('#'));
        let answer = || format!("{story}\n----\n{}", Case::parse(story).answer());
        now.push(if is_case { answer() } else { format!("{story}\n") });
    }
    let now = now.join("\n");
    if std::env::var_os("REWRITE").is_some() {
        std::fs::write(&path, &now).unwrap();
        return;
    }
    for (told, now) in told.split("\n\n").zip(now.split("\n\n")) {
        assert_eq!(told.trim_end(), now.trim_end(), "REWRITE=1 accepts what is picked now");
    }
    assert_eq!(told, now, "REWRITE=1 accepts what is picked now");
}
