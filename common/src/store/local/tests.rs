//! Tests of the directory store that need its files; the rest is the conformance suite's.

use std::sync::Arc;

use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, UpdateVersion};

use super::LocalDirectory;

fn update(e_tag: Option<String>) -> PutMode {
    PutMode::Update(UpdateVersion { e_tag, version: None })
}

#[tokio::test]
async fn one_of_many_swaps_wins_whatever_store_it_comes_through() {
    let directory = tempfile::tempdir().unwrap();
    let path = Path::from("CURRENT");
    let first = LocalDirectory::new(directory.path());
    let mut known = first.put_opts(&path, "0".into(), PutMode::Create.into()).await.unwrap().e_tag;
    for round in 0..8 {
        let swaps = (0..16).map(|contender| {
            // A store of its own stands for a process of its own: flock is per open file.
            let store = LocalDirectory::new(directory.path());
            let (path, mode) = (path.clone(), update(known.clone()));
            async move {
                store.put_opts(&path, format!("{round}-{contender}").into(), mode.into()).await
            }
        });
        let answers = futures::future::join_all(swaps).await;
        let (won, lost): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
        assert_eq!(won.len(), 1, "round {round}");
        assert!(lost.iter().all(|lost| matches!(lost, Err(Error::Precondition { .. }))));
        known = won.into_iter().next().unwrap().unwrap().e_tag;
        assert_eq!(first.get(&path).await.unwrap().meta.e_tag, known);
    }
}

#[tokio::test]
async fn only_objects_are_listed_and_nothing_is_left_behind() {
    let directory = tempfile::tempdir().unwrap();
    let store = LocalDirectory::new(directory.path().join("made/by/the/first/write"));
    let path = Path::from("wal/1");
    store.put_opts(&path, "a".into(), PutMode::Create.into()).await.unwrap();
    let again = store.put_opts(&path, "b".into(), PutMode::Create.into()).await;
    assert!(matches!(again, Err(Error::AlreadyExists { .. })));
    let mut dropped = store.put_multipart(&Path::from("sst/1")).await.unwrap();
    dropped.put_part("half".into()).await.unwrap();
    let known = store.get(&path).await.unwrap().meta.e_tag;
    store.put_opts(&path, "c".into(), update(known).into()).await.unwrap();
    let listed: Vec<_> = futures::TryStreamExt::try_collect(store.list(None)).await.unwrap();
    assert_eq!(listed.iter().map(|meta| meta.location.as_ref()).collect::<Vec<_>>(), ["wal/1"]);
    drop(dropped);
    let mut left = Vec::new();
    for folder in ["wal", "sst"] {
        for file in std::fs::read_dir(store.files.root().join(folder)).unwrap() {
            left.push(file.unwrap().file_name());
        }
    }
    left.sort();
    assert_eq!(left, ["1", "1#lock"]);
}

#[tokio::test]
async fn a_swap_goes_on_when_its_caller_goes_away() {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(LocalDirectory::new(directory.path()));
    let path = Path::from("CURRENT");
    let known = store.put(&path, "0".into()).await.unwrap().e_tag;
    let swap = store.put_opts(&path, "1".into(), update(known.clone()).into());
    let mut swap = Box::pin(swap);
    assert!(futures::poll!(&mut swap).is_pending());
    drop(swap);
    // The abandoned swap either comes before this one, which then fails, or after, and fails.
    let second = store.put_opts(&path, "2".into(), update(known).into()).await;
    let found = loop {
        let found = store.get(&path).await.unwrap().bytes().await.unwrap();
        if found != "0" {
            break found;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(found == "2", second.is_ok(), "{second:?}");
}
