//! `cairn manifest`, `run`, `sst`: the tree, from its root to single entries.

use std::io::{self, Write};

use bytes::Bytes;
use cairn_common::format::block::{Block, BlockCursor};
use cairn_common::format::manifest::{Digest, Manifest, RetiredObject, SstInfo};
use cairn_common::format::path::{Object, ObjectKind};
use cairn_common::types::{EntryRef, MergeOp, PayloadRef};
use clap::Args;

use super::{Database, pick};
use crate::args::Place;
use crate::failure::{Failure, Outcome};
use crate::output::{Table, human_bytes, readable, shortened, stdout};

#[derive(Debug, Args)]
pub(crate) struct ManifestArgs {
    /// Version; the current one unless given
    version: Option<u64>,
    /// The manifest as it is stored, as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Name of a run of the tree, or its beginning
    id: String,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, Args)]
pub(crate) struct SstArgs {
    /// Name of an SST of the tree, or its beginning
    id: String,
    /// Every entry too
    #[arg(long)]
    entries: bool,
    #[command(flatten)]
    place: Place,
}

pub(crate) async fn manifest(args: ManifestArgs) -> Outcome {
    let database = Database::open(&args.place).await?;
    let current = &database.snapshot.current;
    let manifest = match args.version {
        Some(version) if version != current.version => past(&database, version).await?,
        _ => (*database.snapshot.manifest).clone(),
    };
    let mut out = stdout();
    if args.json {
        let json = serde_json::to_string_pretty(&manifest).map_err(io::Error::from)?;
        writeln!(out, "{json}")?;
        return Ok(out.flush()?);
    }
    if manifest.id == current.manifest {
        let text = String::from_utf8_lossy(&current.encode()).into_owned();
        writeln!(out, "CURRENT\n{}\n", text.trim_end())?;
    }
    write_manifest(&mut out, &manifest)?;
    Ok(out.flush()?)
}

/// A manifest that CURRENT does not name, so that nobody has a digest to hold it to.
async fn past(database: &Database, version: u64) -> Outcome<Manifest> {
    let listed = database.bucket.list(ObjectKind::Manifest).await?;
    let mut found = listed.iter().filter_map(|listed| match listed.object {
        Object::Manifest(id) if id.version == version => Some(id),
        _ => None,
    });
    let id = match (found.next(), found.next()) {
        (Some(id), None) => id,
        (None, _) => return Err(Failure::new(format!("there is no manifest {version}"))),
        // Two raced for the version; the one that lost was never current.
        (Some(_), Some(_)) => {
            return Err(Failure::new(format!("several manifests claim version {version}")));
        }
    };
    let object = Object::Manifest(id);
    let parse = |bytes: Bytes| Manifest::parse(&bytes, &Digest::of(&bytes));
    Ok(database.bucket.read_parsed(&object, None, parse).await?)
}

fn write_manifest(out: &mut impl Write, manifest: &Manifest) -> io::Result<()> {
    writeln!(out, "manifest {}", manifest.id)?;
    writeln!(out, "  flushed seq {}", manifest.flushed_seq)?;
    writeln!(out, "  time        {} ms", manifest.time_ms)?;
    writeln!(out, "  log kept    from wal {}", manifest.wal_from)?;
    let copies = &manifest.copies;
    writeln!(
        out,
        "  as of       writer epoch {}, compactor epoch {}, replay from wal {}",
        copies.writer_epoch, copies.compactor_epoch, copies.replay_from
    )?;
    writeln!(out, "\nL0, newest first: {}", manifest.l0.len())?;
    write_ssts(out, &manifest.l0)?;
    writeln!(out, "\nruns, newest first: {}", manifest.runs.len())?;
    if !manifest.runs.is_empty() {
        let mut table =
            Table::new(&["id", "ssts", "bytes", "entries", "tombstones", "first key", "last key"]);
        for run in &manifest.runs {
            table.row(vec![
                run.id.to_string(),
                run.ssts.to_string(),
                human_bytes(run.bytes),
                run.entries.to_string(),
                run.tombstones.to_string(),
                shortened(&run.first_key),
                shortened(&run.last_key),
            ]);
        }
        table.write(out)?;
    }
    writeln!(out, "\nretired: {}", manifest.retired.len())?;
    for retired in &manifest.retired {
        let object = match retired.object {
            RetiredObject::Sst(id) => Object::Sst(id),
            RetiredObject::Run(id) => Object::Run(id),
        };
        writeln!(out, "  {} since version {}", object.path(), retired.version)?;
    }
    writeln!(out, "\ncheckpoints: {}", manifest.checkpoints.len())?;
    for checkpoint in &manifest.checkpoints {
        let name = readable(checkpoint.name.as_bytes());
        writeln!(out, "  {name} pins {}", checkpoint.manifest)?;
    }
    Ok(())
}

fn write_ssts(out: &mut impl Write, ssts: &[SstInfo]) -> io::Result<()> {
    if ssts.is_empty() {
        return Ok(());
    }
    let head = ["id", "bytes", "entries", "tombstones", "seqs", "first key", "last key"];
    let mut table = Table::new(&head);
    for sst in ssts {
        table.row(vec![
            sst.id.to_string(),
            human_bytes(sst.bytes),
            sst.entries.to_string(),
            sst.tombstones.to_string(),
            format!("{}-{}", sst.first_seq, sst.last_seq),
            shortened(&sst.first_key),
            shortened(&sst.last_key),
        ]);
    }
    table.write(out)
}

pub(crate) async fn run(args: RunArgs) -> Outcome {
    let database = Database::open(&args.place).await?;
    let manifest = &database.snapshot.manifest;
    let info = pick(&args.id, &manifest.runs, |run| run.id.to_string(), "run")?;
    let run = database.run(info).await?;
    let mut out = stdout();
    writeln!(out, "run {}", run.id)?;
    writeln!(out, "  {} SSTs, {}", run.ssts.len(), human_bytes(info.bytes))?;
    writeln!(out, "  {} entries, {} tombstones", info.entries, info.tombstones)?;
    write_ssts(&mut out, &run.ssts)?;
    Ok(out.flush()?)
}

pub(crate) async fn sst(args: SstArgs) -> Outcome {
    let database = Database::open(&args.place).await?;
    let infos = database.sst_infos().await?;
    let info = pick(&args.id, &infos, |sst| sst.id.to_string(), "SST")?;
    let handle = database.ssts.handle(info);
    let meta = database.ssts.meta(&handle).await?;
    let mut out = stdout();
    writeln!(out, "SST {}", info.id)?;
    let meta_bytes = info.bytes - info.meta_offset;
    writeln!(out, "  {}, {} of it metadata", human_bytes(info.bytes), human_bytes(meta_bytes))?;
    writeln!(
        out,
        "  {} entries: {} tombstones, {} operands",
        info.entries, info.tombstones, info.operands
    )?;
    writeln!(out, "  seqs {} to {}", info.first_seq, info.last_seq)?;
    if let Some(wal) = info.wal {
        writeln!(out, "  from the log: wal {} up to, not including, {}", wal.from, wal.to)?;
    }
    if let Some(expires) = info.expires {
        writeln!(out, "  expires from {} to {} ms", expires.earliest_ms, expires.latest_ms)?;
    }
    writeln!(out, "  keys {} to {}", shortened(meta.first_key()), shortened(meta.last_key()))?;
    writeln!(out, "  {} in memory for filter and index", human_bytes(meta.bytes() as u64))?;
    writeln!(
        out,
        "  {} blocks, {} decoded",
        meta.block_count(),
        human_bytes(meta.decoded_bytes())
    )?;
    let mut table = Table::new(&["block", "offset", "stored", "decoded", "entries", "first key"]);
    for index in 0..meta.block_count() {
        let block = database.ssts.block(&handle, &meta, index).await?;
        let range = meta.block_range(index);
        let (count, first) = outline(&block);
        table.row(vec![
            index.to_string(),
            range.start.to_string(),
            (range.end - range.start).to_string(),
            block.decoded().len().to_string(),
            count.to_string(),
            shortened(&first),
        ]);
        if args.entries {
            each_entry(block, |entry| write_entry(&mut out, entry))?;
        }
    }
    if !args.entries {
        table.write(&mut out)?;
    }
    Ok(out.flush()?)
}

/// How many entries a block has, and its first key.
fn outline(block: &Block) -> (u64, Vec<u8>) {
    let mut cursor = BlockCursor::new(block.clone());
    cursor.first();
    let first = cursor.entry().map(|entry| entry.key.to_vec()).unwrap_or_default();
    let mut count = 0;
    while cursor.entry().is_some() {
        count += 1;
        cursor.next();
    }
    (count, first)
}

fn each_entry(
    block: Block,
    mut show: impl FnMut(EntryRef<'_>) -> io::Result<()>,
) -> io::Result<()> {
    let mut cursor = BlockCursor::new(block);
    cursor.first();
    while let Some(entry) = cursor.entry() {
        show(entry)?;
        cursor.next();
    }
    Ok(())
}

fn write_entry(out: &mut impl Write, entry: EntryRef<'_>) -> io::Result<()> {
    let expires = entry.expires_ms.map(|at| format!(" expires {at} ms")).unwrap_or_default();
    let (key, seq, does) = (readable(entry.key), entry.seq, payload_text(entry.payload));
    writeln!(out, "  {key} @{seq} {does}{expires}")
}

/// What an entry does, on one line.
pub(super) fn payload_text(payload: PayloadRef<'_>) -> String {
    match payload {
        PayloadRef::Value(value) => format!("= {}", shortened(value)),
        PayloadRef::Tombstone => "deleted".into(),
        PayloadRef::Operand { op, operand, .. } => {
            let op = match op {
                MergeOp::Add => "add",
                MergeOp::Max => "max",
                MergeOp::Min => "min",
                MergeOp::Append => "append",
            };
            format!("{op} {}", shortened(operand))
        }
    }
}
