//! The one place that spells object names.
//!
//! **Layout** (under the database's root)
//!
//! ```text
//! CURRENT
//! manifest/00000000000000000007-0198f2c4-....      version (20 digits), uuid
//! run/c00000003-0198f2c4-....                      role letter, epoch (8 hex digits), uuid
//! wal/00000000000000001042                         20 digits: names sort as ids do
//! sst/a7/w00000002-0198f2c4-....                   2 hex digits of a hash spread S3's partitions
//! probe/0198f2c4-....
//! ```
//!
//! **Invariants**
//! - No name is ever used twice, but for CURRENT, which is only ever swapped.
//! - `Object::parse(object.path()) == Some(object)`; any other string under the root is not ours.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

use super::Corrupt;
use crate::types::{Epoch, Role, WalId};

/// Any object of a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Object {
    /// The only object ever overwritten: names the manifest, the epochs and the log's start.
    Current,
    /// The tree at one version.
    Manifest(ManifestId),
    /// The SST list of one sorted run.
    Run(OutputId),
    /// One group commit, or a fence.
    Wal(WalId),
    /// One sorted string table.
    Sst(OutputId),
    /// Written once per database to see whether the store honours conditions.
    Probe(Uuid),
}

/// The kinds of objects: for metrics and for listings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKind {
    /// `CURRENT`
    Current,
    /// `manifest/`
    Manifest,
    /// `run/`
    Run,
    /// `wal/`
    Wal,
    /// `sst/`
    Sst,
    /// `probe/`
    Probe,
}

/// What a manifest is called: its version, and a uuid since two commits may race for a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ManifestId {
    /// Counts commits; 1 is the first.
    pub version: u64,
    /// Makes the name unique.
    pub uuid: Uuid,
}

/// What an SST or a run is called: who made it, under which epoch, and a uuid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OutputId {
    /// The role that made it.
    pub role: Role,
    /// The epoch under which it was made, the only one under which it may be committed.
    pub epoch: Epoch,
    /// Makes the name unique.
    pub uuid: Uuid,
}

impl ObjectKind {
    /// Every kind, in the order of names.
    pub const ALL: [Self; 6] =
        [Self::Current, Self::Manifest, Self::Run, Self::Wal, Self::Sst, Self::Probe];

    /// The first part of the names of this kind, without a slash.
    pub fn name(self) -> &'static str {
        match self {
            Self::Current => "CURRENT",
            Self::Manifest => "manifest",
            Self::Run => "run",
            Self::Wal => "wal",
            Self::Sst => "sst",
            Self::Probe => "probe",
        }
    }
}

impl Object {
    /// The kind of this object.
    pub fn kind(&self) -> ObjectKind {
        match self {
            Self::Current => ObjectKind::Current,
            Self::Manifest(_) => ObjectKind::Manifest,
            Self::Run(_) => ObjectKind::Run,
            Self::Wal(_) => ObjectKind::Wal,
            Self::Sst(_) => ObjectKind::Sst,
            Self::Probe(_) => ObjectKind::Probe,
        }
    }

    /// The name under the database's root.
    pub fn path(&self) -> String {
        self.to_string()
    }

    /// The object of this name under the root; `None` where the name is not one of ours.
    pub fn parse(path: &str) -> Option<Self> {
        if path == ObjectKind::Current.name() {
            return Some(Self::Current);
        }
        let (kind, name) = path.split_once('/')?;
        let object = match kind {
            "manifest" => Self::Manifest(name.parse().ok()?),
            "run" => Self::Run(name.parse().ok()?),
            "wal" => Self::Wal(WalId(name.parse().ok()?)),
            "sst" => Self::Sst(name.split_once('/')?.1.parse().ok()?),
            "probe" => Self::Probe(name.parse().ok()?),
            _ => return None,
        };
        (object.path() == path).then_some(object)
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind().name();
        match self {
            Self::Current => f.write_str(kind),
            Self::Manifest(id) => write!(f, "{kind}/{id}"),
            Self::Run(id) => write!(f, "{kind}/{id}"),
            Self::Wal(id) => write!(f, "{kind}/{:020}", id.0),
            Self::Sst(id) => {
                let spread = xxh3_64(id.uuid.as_bytes()) & 0xff;
                write!(f, "{kind}/{spread:02x}/{id}")
            }
            Self::Probe(id) => write!(f, "{kind}/{id}"),
        }
    }
}

impl fmt::Display for ManifestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:020}-{}", self.version, self.uuid)
    }
}

impl fmt::Display for OutputId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:08x}-{}", self.role.letter(), self.epoch.0, self.uuid)
    }
}

impl FromStr for ManifestId {
    type Err = Corrupt;

    fn from_str(text: &str) -> Result<Self, Corrupt> {
        let wrong = || Corrupt::new(format!("{text:?} is not the name of a manifest"));
        let (version, uuid) = text.split_once('-').ok_or_else(wrong)?;
        let id = Self {
            version: version.parse().map_err(|_| wrong())?,
            uuid: uuid.parse().map_err(|_| wrong())?,
        };
        if id.to_string() == text { Ok(id) } else { Err(wrong()) }
    }
}

impl FromStr for OutputId {
    type Err = Corrupt;

    fn from_str(text: &str) -> Result<Self, Corrupt> {
        let wrong = || Corrupt::new(format!("{text:?} is not the name of an SST or a run"));
        let (maker, uuid) = text.split_once('-').ok_or_else(wrong)?;
        let (role, epoch) = match maker.split_at_checked(1) {
            Some(("w", epoch)) => (Role::Writer, epoch),
            Some(("c", epoch)) => (Role::Compactor, epoch),
            _ => return Err(wrong()),
        };
        let id = Self {
            role,
            epoch: Epoch(u32::from_str_radix(epoch, 16).map_err(|_| wrong())?),
            uuid: uuid.parse().map_err(|_| wrong())?,
        };
        if id.to_string() == text { Ok(id) } else { Err(wrong()) }
    }
}

macro_rules! serde_as_text {
    ($($name:ty),*) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

serde_as_text!(ManifestId, OutputId);

#[cfg(test)]
mod tests {
    use super::*;

    fn objects() -> Vec<Object> {
        let uuid = Uuid::from_u128(0x0198_f2c4_0000_7000_8000_0000_0000_0001);
        let output = OutputId { role: Role::Writer, epoch: Epoch(2), uuid };
        vec![
            Object::Current,
            Object::Manifest(ManifestId { version: 7, uuid }),
            Object::Run(OutputId { role: Role::Compactor, ..output }),
            Object::Wal(WalId(1042)),
            Object::Sst(output),
            Object::Probe(uuid),
        ]
    }

    #[test]
    fn names_are_golden() {
        let names: Vec<_> = objects().iter().map(Object::path).collect();
        assert_eq!(
            names,
            [
                "CURRENT",
                "manifest/00000000000000000007-0198f2c4-0000-7000-8000-000000000001",
                "run/c00000002-0198f2c4-0000-7000-8000-000000000001",
                "wal/00000000000000001042",
                "sst/45/w00000002-0198f2c4-0000-7000-8000-000000000001",
                "probe/0198f2c4-0000-7000-8000-000000000001",
            ]
        );
    }

    #[test]
    fn parse_inverts_path_and_refuses_everything_else() {
        for object in objects() {
            assert_eq!(Object::parse(&object.path()), Some(object));
            let mut path = object.path();
            path.push('x');
            assert_eq!(Object::parse(&path), None, "{path}");
        }
        for alien in ["", "wal/1", "wal/+0000000000000000001", "sst/00/x", "current", "manifest/"] {
            assert_eq!(Object::parse(alien), None, "{alien}");
        }
    }
}
