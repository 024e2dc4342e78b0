//! A directory with odd names and sizes, loaded and read back, before and after a compaction and a
//! kill; nothing but the URL of the store differs between the two.

use harness::archive::Archive;
use harness::cluster::{Cluster, Pace};
use harness::fake_s3::BUCKET;
use harness::moto::Moto;
use harness::round_trip::{Place, Report, round_trip};

async fn goes_there_and_back(pace: Pace, files: usize, place: impl Fn(&Cluster) -> Place) {
    let cluster = Cluster::at(pace);
    let archive = Archive::generate(files, 1, &cluster.folder().join("files"));
    // All that is promised is asserted there; the report is for a run by hand.
    say(&round_trip(&cluster, &place(&cluster), &archive.expect("a folder of files")).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_goes_there_and_back() {
    let place = |cluster: &Cluster| Place {
        url: format!("file://{}", cluster.root().display()),
        environment: Vec::new(),
    };
    goes_there_and_back(Pace::Busy, 2_000, place).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_goes_to_s3_and_back() {
    let moto = Moto::start(BUCKET).await;
    let place =
        |_: &Cluster| Place { url: format!("s3://{BUCKET}/db"), environment: moto.environment() };
    goes_there_and_back(Pace::Usual, 300, place).await;
}

#[expect(clippy::print_stdout, reason = "figures, for whoever asks for the output")]
fn say(report: &Report) {
    println!("{report}");
}
