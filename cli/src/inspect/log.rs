//! `cairn wal`: the chain from where replay begins, or one object with its operations; and where
//! the log ends, for `cairn status`.
//!
//! **Invariant**: an absent object is called the end only if nothing behind it shows that it was
//! acknowledged, and missing only if CURRENT, read afterwards, still begins replay where the walk
//! began (PROTOCOL T2b, for a process without an epoch).

use std::collections::BTreeMap;
use std::io::{self, Write};

use bytes::Bytes;
use cairn_common::Error;
use cairn_common::format::path::Object;
use cairn_common::format::wal::{FENCE_BYTES, WalKind, WalObject};
use cairn_common::limits::WAL_JUMP;

use cairn_common::store::manifest::Manifests;
use cairn_common::store::object::Listed;
use cairn_common::store::wal::{Behind, Wal};
use cairn_common::types::{Seq, WalId};
use clap::Args;

use super::Database;
use super::tree::payload_text;
use crate::args::Place;
use crate::failure::{Failure, Outcome};
use crate::output::{Table, human_bytes, readable, stdout};

#[derive(Debug, Args)]
pub(crate) struct WalArgs {
    /// Number of an object, whose operations are shown; the chain from where replay begins unless
    /// given
    id: Option<u64>,
    /// Objects of the chain to show at most
    #[arg(long, default_value = "100", value_name = "N")]
    limit: usize,
    #[command(flatten)]
    place: Place,
}

pub(crate) async fn wal(args: WalArgs) -> Outcome {
    let database = Database::open(&args.place).await?;
    let mut out = stdout();
    match args.id {
        Some(id) => {
            let missing = || Failure::new(format!("there is no WAL object {id}"));
            let (object, bytes) = get(&database, WalId(id)).await?.ok_or_else(missing)?;
            write_object(&mut out, &object, bytes)?;
        }
        None => chain(&database, args.limit, &mut out).await?,
    }
    Ok(out.flush()?)
}

/// An object of the log with its size; `None` where there is none.
async fn get(database: &Database, id: WalId) -> Outcome<Option<(WalObject, u64)>> {
    let name = Object::Wal(id);
    let parse = |bytes: Bytes| {
        let size = bytes.len() as u64;
        WalObject::parse(bytes, database.snapshot.current.database, id).map(|object| (object, size))
    };
    match database.bucket.read_parsed(&name, None, parse).await {
        Ok(found) => Ok(Some(found)),
        Err(Error::NotFound(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

async fn chain(database: &Database, limit: usize, out: &mut impl Write) -> Outcome {
    let mut position = database.snapshot.current.replay_from;
    let mut last_seq = database.snapshot.manifest.flushed_seq;
    writeln!(out, "the chain from wal {position}")?;
    let mut table = Table::new(&["wal", "bytes", "epoch", "kind", "batches", "seqs"]);
    let mut shown = 0;
    let end = loop {
        let Some((object, bytes)) = get(database, position).await? else {
            match end_at(database, position).await? {
                End::Here => break format!("the chain ends before wal {position}"),
                End::Landed => continue,
                End::Overtaken => break format!("wal {position} was flushed meanwhile"),
            }
        };
        if shown == limit {
            break format!("the chain goes on at wal {position}");
        }
        shown += 1;
        let header = &object.header;
        check_seq(database, header.prev_seq, (position, last_seq)).await?;
        last_seq = object.last_seq();
        let (kind, seqs) = match header.kind {
            WalKind::Data => {
                ("data".to_owned(), format!("{}-{}", header.first_seq, object.last_seq()))
            }
            WalKind::Fence { next } => {
                (format!("fence, next {next}"), format!("up to {}", header.prev_seq))
            }
        };
        table.row(vec![
            position.to_string(),
            bytes.to_string(),
            header.epoch.to_string(),
            kind,
            header.batches.to_string(),
            seqs,
        ]);
        position = header.next();
    };
    table.write(out)?;
    Ok(writeln!(out, "{end}")?)
}

/// What an absent object is.
enum End {
    /// The end of the log.
    Here,
    /// It has landed meanwhile.
    Landed,
    /// Replay begins elsewhere by now, and what was walked may have been collected.
    Overtaken,
}

/// Whether the log ends before `position`.
///
/// # Errors
/// Exit code 5 if an acknowledged object is missing there.
async fn end_at(database: &Database, position: WalId) -> Outcome<End> {
    let wal = Wal::new(database.bucket.clone(), database.snapshot.current.database);
    match wal.look_behind(position).await? {
        Behind::Nothing => Ok(End::Here),
        Behind::Landed(_) => Ok(End::Landed),
        Behind::Proof(_) if is_overtaken(database).await? => Ok(End::Overtaken),
        Behind::Proof(proof) => Err(wal.missing(position, proof).into()),
    }
}

/// Whether replay begins behind the place where it began when the database was opened.
async fn is_overtaken(database: &Database) -> Outcome<bool> {
    let manifests = Manifests::new(database.bucket.clone(), database.env.clone());
    let changed = manifests.refresh(&database.snapshot).await?;
    let from = database.snapshot.current.replay_from;
    Ok(changed.is_some_and(|changed| changed.current.replay_from > from))
}

/// Whether an object continues the chain before it, unless that may have been collected meanwhile.
async fn check_seq(database: &Database, found: Seq, (at, chain): (WalId, Seq)) -> Outcome {
    if found == chain || is_overtaken(database).await? {
        return Ok(());
    }
    let cause = format!("it continues seq {found}, but the chain before it ends at {chain}");
    Err(Error::corrupt(Object::Wal(at).path(), cause).into())
}

/// The log in one line, judged from a listing of it.
///
/// # Errors
/// Exit code 5 if an acknowledged object is missing.
pub(super) async fn summary(database: &Database, listed: &[Listed]) -> Outcome<String> {
    let sizes = listed.iter().filter_map(|listed| match listed.object {
        Object::Wal(id) => Some((id, listed.bytes)),
        _ => None,
    });
    let sizes: BTreeMap<_, _> = sizes.collect();
    let from = database.snapshot.current.replay_from;
    let (mut position, mut data, mut fences) = (from, 0, 0);
    loop {
        match sizes.get(&position) {
            Some(bytes) if *bytes <= FENCE_BYTES as u64 => {
                fences += 1;
                position = position.plus(WAL_JUMP);
            }
            Some(_) => {
                data += 1;
                position = position.next();
            }
            None => {
                // One that has landed since is newer than the listing.
                let _end = end_at(database, position).await?;
                break;
            }
        }
    }
    Ok(format!("{data} objects and {fences} fences, wal {from} to before {position}"))
}

fn write_object(out: &mut impl Write, object: &WalObject, bytes: u64) -> io::Result<()> {
    let header = &object.header;
    writeln!(out, "wal {}", header.id)?;
    writeln!(out, "  {}", human_bytes(bytes))?;
    writeln!(out, "  epoch {}, writer {}", header.epoch, header.writer)?;
    writeln!(out, "  previous seq {}", header.prev_seq)?;
    if let WalKind::Fence { next } = header.kind {
        return writeln!(out, "  a fence: the chain goes on at wal {next}");
    }
    writeln!(
        out,
        "  {} batches, seqs {} to {}",
        header.batches,
        header.first_seq,
        object.last_seq()
    )?;
    for batch in &object.batches {
        for op in &batch.ops {
            let expires = op.expires_ms.map(|at| format!(" expires {at} ms")).unwrap_or_default();
            let (key, does) = (readable(&op.key), payload_text(op.payload.as_ref()));
            writeln!(out, "  {key} @{} {does}{expires}", batch.seq)?;
        }
    }
    Ok(())
}
