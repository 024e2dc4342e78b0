//! Tests of the directory store that need its files; the rest is the conformance suite's.

use std::sync::Arc;

use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, UpdateVersion};

use super::LocalDirectory;
use super::files::{Files, Staged};
use super::swap::SWAP;

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

/// A swap of CURRENT up to its rename, by a process of its own that is stopped there.
fn stopped_before_rename(directory: &std::path::Path, content: &'static str) -> Staged {
    let files = Files::new(directory.to_owned());
    files.stage_all_as(&Path::from("CURRENT"), SWAP, &content.into()).unwrap()
}

#[tokio::test]
async fn stopped_swap_neither_blocks_nor_lands_late() {
    let directory = tempfile::tempdir().unwrap();
    let (store, path) = (LocalDirectory::new(directory.path()), Path::from("CURRENT"));
    let known = store.put(&path, "0".into()).await.unwrap().e_tag;
    let stopped = stopped_before_rename(directory.path(), "stopped");
    let turn = std::fs::File::create(directory.path().join("CURRENT#lock")).unwrap();
    turn.lock().unwrap();
    let first = store.put_opts(&path, "1".into(), update(known).into()).await.unwrap();
    // Only the first that meets it waits: this one has its turn at once.
    let second = store.put_opts(&path, "2".into(), update(first.e_tag).into()).await.unwrap();
    assert!(directory.path().join("CURRENT#lock").exists(), "a lock of its own");
    assert!(!stopped.put_in_place_unless_revoked().unwrap(), "it wakes, and has no effect");
    let found = store.get(&path).await.unwrap();
    assert_eq!(found.meta.e_tag, second.e_tag);
    assert_eq!(found.bytes().await.unwrap(), "2");
    drop(turn);
}

#[tokio::test]
async fn no_swap_is_lost_without_turns() {
    const EACH: u64 = 25;
    let directory = tempfile::tempdir().unwrap();
    let path = Path::from("CURRENT");
    LocalDirectory::new(directory.path()).put(&path, "0".into()).await.unwrap();
    let remove_locks = std::sync::atomic::AtomicBool::new(true);
    let lock = directory.path().join("CURRENT#lock");
    std::thread::scope(|scope| {
        let counters: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let files = Files::new(directory.path().to_owned());
                    let mut done = 0;
                    while done < EACH {
                        let read = files.read(&path, &object_store::GetOptions::default()).unwrap();
                        let count: u64 = std::str::from_utf8(&read.bytes).unwrap().parse().unwrap();
                        let next = (count + 1).to_string().into();
                        let known = read.meta.e_tag.unwrap();
                        done += u64::from(files.swap(&path, &next, &known).is_ok());
                    }
                })
            })
            .collect();
        // Whoever has a turn loses it: swaps run into each other.
        scope.spawn(|| {
            while remove_locks.load(std::sync::atomic::Ordering::Relaxed) {
                drop(std::fs::remove_file(&lock));
                std::thread::yield_now();
            }
        });
        for counter in counters {
            counter.join().unwrap();
        }
        remove_locks.store(false, std::sync::atomic::Ordering::Relaxed);
    });
    let found = std::fs::read_to_string(directory.path().join("CURRENT")).unwrap();
    assert_eq!(found, (4 * EACH).to_string());
}

#[tokio::test]
async fn leftovers_of_the_dead_go_and_of_the_living_stay() {
    let directory = tempfile::tempdir().unwrap();
    let store = LocalDirectory::new(directory.path());
    let path = Path::from("sst/aa/1");
    store.put(&path, "object".into()).await.unwrap();
    let mut living = store.put_multipart(&Path::from("sst/aa/2")).await.unwrap();
    living.put_part("half".into()).await.unwrap();
    let old = std::time::SystemTime::UNIX_EPOCH;
    let make = |name: &str, modified: Option<std::time::SystemTime>| {
        let file = std::fs::File::create(directory.path().join(name)).unwrap();
        file.set_len(1_000).unwrap();
        file.set_modified(modified.unwrap_or_else(|| file.metadata().unwrap().modified().unwrap()))
            .unwrap();
    };
    make("sst/aa/3#77-1f-0", Some(old));
    make("CURRENT#swap-77-1f-1", Some(old));
    make("probe#lock", Some(old));
    make("sst/aa/1#lock", Some(old));
    make("sst/aa/4#77-1f-2", None);
    make("notes#todo", Some(old));
    let files: Vec<_> = std::fs::read_dir(directory.path().join("sst/aa")).unwrap().collect();
    for file in files.iter().map(|file| file.as_ref().unwrap().path()) {
        if file.to_string_lossy().contains("/2#") {
            std::fs::File::open(file).unwrap().set_modified(old).unwrap();
        }
    }
    assert_eq!(store.sweep().await.unwrap(), (3, 3_000));
    assert_eq!(store.sweep().await.unwrap(), (0, 0));
    living.complete().await.unwrap();
    let left = ["sst/aa/1", "sst/aa/2", "sst/aa/1#lock", "sst/aa/4#77-1f-2", "notes#todo"];
    for name in left {
        assert!(directory.path().join(name).exists(), "{name}");
    }
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

#[tokio::test]
async fn a_url_with_a_space_is_swept_too() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("my data");
    std::fs::create_dir(&root).unwrap();
    let leftover = root.join("wal#77-1f-2");
    std::fs::write(&leftover, "half").unwrap();
    let old = std::time::UNIX_EPOCH;
    std::fs::File::options().write(true).open(&leftover).unwrap().set_modified(old).unwrap();
    let url = format!("file://{}/my%20data", directory.path().display());
    let store = LocalDirectory::of_url(&url).unwrap();
    assert_eq!(store.sweep().await.unwrap(), (1, 4));
    assert!(!leftover.exists());
}

#[tokio::test]
async fn a_root_that_was_moved_away_is_not_made_again() {
    let directory = tempfile::tempdir().unwrap();
    let (root, away) = (directory.path().join("db"), directory.path().join("away"));
    let store = LocalDirectory::new(&root);
    store.put(&Path::from("CURRENT"), "0".into()).await.unwrap();
    store.put(&Path::from("wal/1"), "a".into()).await.unwrap();
    std::fs::rename(&root, &away).unwrap();
    for name in ["CURRENT", "wal/2", "sst/1"] {
        let put = store.put(&Path::from(name), "b".into()).await;
        assert!(put.is_err(), "{name}");
        assert!(!root.exists(), "{name}");
    }
    std::fs::rename(&away, &root).unwrap();
    for name in ["wal/2", "sst/68/1"] {
        store.put(&Path::from(name), "c".into()).await.unwrap();
    }
    assert_eq!(store.get(&Path::from("wal/1")).await.unwrap().bytes().await.unwrap(), "a");
}
