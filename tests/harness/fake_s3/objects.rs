//! The objects of the fake S3, in memory.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard};

use bytes::{Bytes, BytesMut};
use cairn_common::clock::{Clock, SystemClock};
use sha2::{Digest, Sha256};

/// The smallest part but the last of an upload.
const PART_BYTES_MIN: usize = 5 * 1024 * 1024;

/// One object.
#[derive(Clone, Debug)]
pub(super) struct Object {
    pub(super) bytes: Bytes,
    /// A digest of the content, as S3's is: the same content has the same ETag.
    pub(super) e_tag: String,
    pub(super) modified_ms: u64,
}

/// What a write asks for first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    None,
    /// Nothing is there.
    Absent,
    /// This ETag is there.
    Is(String),
}

/// Why a write was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// The condition does not hold.
    Condition,
    /// There is nothing to which the condition could apply.
    Missing,
    /// There is no such upload.
    NoUpload,
    /// A part is missing, or is another one.
    InvalidPart,
    /// A part that is not the last is too small.
    TooSmall,
}

/// One page of a listing.
pub(super) struct Page {
    pub(super) objects: Vec<(String, Object)>,
    pub(super) prefixes: Vec<String>,
    pub(super) next: Option<String>,
}

#[derive(Debug, Default)]
pub(super) struct Objects {
    state: Mutex<State>,
    clock: SystemClock,
}

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<String, Object>,
    uploads: BTreeMap<String, Upload>,
    uploads_begun: u64,
}

#[derive(Debug)]
struct Upload {
    key: String,
    parts: BTreeMap<u32, (String, Bytes)>,
}

impl Objects {
    pub(super) fn get(&self, key: &str) -> Option<Object> {
        self.state().objects.get(key).cloned()
    }

    pub(super) fn put(
        &self,
        key: &str,
        bytes: Bytes,
        condition: &Condition,
    ) -> Result<String, Refused> {
        // Digests are made outside the lock.
        let e_tag = e_tag(&bytes);
        let mut state = self.state();
        state.judge(key, condition)?;
        let object = Object { bytes, e_tag: e_tag.clone(), modified_ms: self.clock.wall_ms() };
        state.objects.insert(key.to_owned(), object);
        Ok(e_tag)
    }

    /// Whether a write on this condition would be done now.
    pub(super) fn judge(&self, key: &str, condition: &Condition) -> Result<(), Refused> {
        self.state().judge(key, condition)
    }

    /// Whether there was anything to delete.
    pub(super) fn delete(&self, key: &str) -> bool {
        self.state().objects.remove(key).is_some()
    }

    /// Up to `limit` keys and common prefixes above `after`.
    pub(super) fn list(
        &self,
        prefix: &str,
        delimiter: Option<&str>,
        after: &str,
        limit: usize,
    ) -> Page {
        let mut page = Page { objects: Vec::new(), prefixes: Vec::new(), next: None };
        let mut last = String::new();
        for (key, object) in self.state().objects.range(prefix.to_owned()..) {
            let Some(rest) = key.strip_prefix(prefix) else { break };
            let cut = delimiter.and_then(|delimiter| rest.split_once(delimiter));
            let name = cut.map(|(first, _)| format!("{prefix}{first}{}", delimiter.unwrap_or("")));
            let name = name.as_deref().unwrap_or(key);
            if name <= after || name == last {
                continue;
            }
            if page.objects.len() + page.prefixes.len() == limit {
                page.next = Some(last);
                break;
            }
            name.clone_into(&mut last);
            if cut.is_some() {
                page.prefixes.push(last.clone());
            } else {
                page.objects.push((key.clone(), object.clone()));
            }
        }
        page
    }

    pub(super) fn begin_upload(&self, key: &str) -> String {
        let mut state = self.state();
        state.uploads_begun += 1;
        let id = format!("upload-{}", state.uploads_begun);
        state.uploads.insert(id.clone(), Upload { key: key.to_owned(), parts: BTreeMap::new() });
        id
    }

    pub(super) fn put_part(&self, id: &str, number: u32, bytes: Bytes) -> Result<String, Refused> {
        let e_tag = e_tag(&bytes);
        let mut state = self.state();
        let upload = state.uploads.get_mut(id).ok_or(Refused::NoUpload)?;
        upload.parts.insert(number, (e_tag.clone(), bytes));
        Ok(e_tag)
    }

    pub(super) fn complete_upload(
        &self,
        id: &str,
        named: &[(u32, String)],
    ) -> Result<String, Refused> {
        let (key, bytes) = {
            let mut state = self.state();
            let upload = state.uploads.get(id).ok_or(Refused::NoUpload)?;
            let bytes = upload.join(named)?;
            let key = upload.key.clone();
            state.uploads.remove(id);
            (key, bytes)
        };
        self.put(&key, bytes, &Condition::None)
    }

    pub(super) fn abort_upload(&self, id: &str) -> Result<(), Refused> {
        self.state().uploads.remove(id).map(drop).ok_or(Refused::NoUpload)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic holds this lock")
    }
}

impl State {
    fn judge(&self, key: &str, condition: &Condition) -> Result<(), Refused> {
        match (condition, self.objects.get(key)) {
            (Condition::Absent, Some(_)) => Err(Refused::Condition),
            (Condition::Is(_), None) => Err(Refused::Missing),
            (Condition::Is(e_tag), Some(found)) if found.e_tag != *e_tag => Err(Refused::Condition),
            _ => Ok(()),
        }
    }
}

impl Upload {
    /// The content that the parts named make up.
    fn join(&self, named: &[(u32, String)]) -> Result<Bytes, Refused> {
        let mut joined = BytesMut::new();
        for (index, (number, e_tag)) in named.iter().enumerate() {
            let (found, bytes) = self.parts.get(number).ok_or(Refused::InvalidPart)?;
            if found != e_tag {
                return Err(Refused::InvalidPart);
            }
            if index + 1 < named.len() && bytes.len() < PART_BYTES_MIN {
                return Err(Refused::TooSmall);
            }
            joined.extend_from_slice(bytes);
        }
        Ok(joined.freeze())
    }
}

fn e_tag(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    let mut e_tag = String::from("\"");
    for byte in digest.iter().take(16) {
        write!(e_tag, "{byte:02x}").expect("a string takes everything");
    }
    e_tag + "\""
}
