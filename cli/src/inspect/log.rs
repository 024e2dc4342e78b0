//! `cairn wal`: the chain from where replay begins, or one object with its operations.

use std::io::{self, Write};

use cairn_common::Error;
use cairn_common::format::path::Object;
use cairn_common::format::wal::{WalKind, WalObject};
use cairn_common::types::WalId;
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
    let bytes = match database.bucket.get(&name).await {
        Ok(bytes) => bytes,
        Err(Error::NotFound(_)) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let size = bytes.len() as u64;
    let parsed = WalObject::parse(bytes, database.snapshot.current.database, id);
    let object = parsed.map_err(|cause| Error::corrupt(name.path(), cause))?;
    Ok(Some((object, size)))
}

async fn chain(database: &Database, limit: usize, out: &mut impl Write) -> Outcome {
    let mut position = database.snapshot.current.replay_from;
    writeln!(out, "the chain from wal {position}")?;
    let mut table = Table::new(&["wal", "bytes", "epoch", "kind", "batches", "seqs"]);
    let mut shown = 0;
    let end = loop {
        let Some((object, bytes)) = get(database, position).await? else {
            break format!("the chain ends before wal {position}");
        };
        if shown == limit {
            break format!("the chain goes on at wal {position}");
        }
        shown += 1;
        let header = &object.header;
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
