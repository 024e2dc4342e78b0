//! Takes a directory into a cluster of real processes with their default settings, and back: loads
//! it, reads every digest, compacts, reads, kills everything in the middle of a second load,
//! restarts, reads. Prints what it measured; panics at the first difference.
//!
//! `cargo build --release && cargo run --release -p cairn-tests --bin round_trip -- DIR [FILES]
//! [moto]`
//!
//! FILES takes that many files of the directory, evenly spread. `moto` puts the database on an S3
//! server instead of a local directory.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command that prints its figures")]

use std::path::PathBuf;
use std::process::ExitCode;

use harness::archive::Archive;
use harness::cluster::{Cluster, Pace};
use harness::fake_s3::BUCKET;
use harness::moto::Moto;
use harness::round_trip::{Place, round_trip};

#[tokio::main]
async fn main() -> ExitCode {
    let mut args: Vec<_> = std::env::args().skip(1).collect();
    let on_moto = args.last().is_some_and(|last| last == "moto");
    args.truncate(args.len() - usize::from(on_moto));
    let files = args.get(1).map(|files| files.parse::<usize>());
    let (Some(root), true, Ok(files)) =
        (args.first().map(PathBuf::from), args.len() < 3, files.transpose())
    else {
        eprintln!("usage: round_trip DIR [FILES] [moto]");
        return ExitCode::from(2);
    };
    let cluster = Cluster::at(Pace::Usual);
    let archive = match files {
        None => Archive::of(&root),
        Some(files) => Archive::of(&root)
            .and_then(|whole| whole.sample(files, &cluster.folder().join("sample"))),
    };
    let archive = match archive {
        Ok(archive) => archive,
        Err(error) => {
            eprintln!("{}: {error}", root.display());
            return ExitCode::from(2);
        }
    };
    let moto = if on_moto { Some(Moto::start(BUCKET).await) } else { None };
    let place = match &moto {
        Some(moto) => Place { url: format!("s3://{BUCKET}/db"), environment: moto.environment() },
        None => {
            Place { url: format!("file://{}", cluster.root().display()), environment: Vec::new() }
        }
    };
    println!("on {}", place.url);
    println!("{}", round_trip(&cluster, &place, &archive).await);
    ExitCode::SUCCESS
}
