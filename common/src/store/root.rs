//! Which root a process works on, so that a copy of a database is not taken for the original.
//!
//! A claim of the writer's role names the root at which it was made. In a copy, made by a restore
//! or a sync tool, CURRENT still names the original's.
//!
//! A directory is the directory itself on the machine as it runs now: its inode, which a copy of
//! files does not share; its device, which another mount of a snapshot does not share; and the boot
//! of the machine, which a copy of the disk on another machine does not share. Processes that may
//! share a directory run on one machine, and so in one boot, in containers too: they see the same
//! three. After a reboot the root has another name, and no process of before is left to obey.
//!
//! **Limits**: none of them decides safety, which is CURRENT's. A virtual machine that is resumed
//! from a snapshot of its memory is taken for the original. Containers with kernels of their own
//! (Kata, gVisor) that share a directory take each other's for copies: none waits for the other,
//! and the one that claims last is the writer.

use std::os::unix::fs::MetadataExt as _;

use super::object::Bucket;
use super::url::directory_of;

/// Variables by which the clients of the clouds are sent to another server than the cloud's own.
const ENDPOINTS: [(&str, &[&str]); 3] = [
    ("s3://", &["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"]),
    ("gs://", &["GOOGLE_BASE_URL"]),
    ("az://", &["AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT", "AZURE_STORAGE_ACCOUNT_NAME"]),
];

impl Bucket {
    /// What tells this root from every other: the URL, with the server that it is on; for a
    /// directory its inode, its device and the boot of the machine. Every path to a directory gives
    /// the same.
    pub fn root_id(&self) -> String {
        let url = self.url().trim_end_matches('/');
        if let Some(path) = directory_of(url) {
            return match std::fs::metadata(&path) {
                Ok(directory) => {
                    format!("file://#{}@{}/{}", directory.ino(), directory.dev(), machine())
                }
                Err(_) => url.to_owned(),
            };
        }
        match endpoint(url) {
            Some(endpoint) => format!("{url} at {}", endpoint.trim_end_matches('/')),
            None => url.to_owned(),
        }
    }
}

/// This machine until it is booted again, whatever container asks; empty if the system names none.
fn machine() -> String {
    const NAMES: [&str; 2] = ["/proc/sys/kernel/random/boot_id", "/etc/machine-id"];
    let read = |path| std::fs::read_to_string(path).ok();
    NAMES.into_iter().find_map(read).unwrap_or_default().trim().to_owned()
}

/// The server, or the account, that the environment names for a store of this URL, if any.
pub fn endpoint(url: &str) -> Option<String> {
    let (_, variables) = ENDPOINTS.iter().find(|(scheme, _)| url.starts_with(scheme))?;
    let set = |name: &&str| std::env::var(name).ok().filter(|value| !value.is_empty());
    variables.iter().find_map(set)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::env::Env;
    use crate::store::object::StoreSettings;

    fn id(url: &str) -> String {
        Bucket::open(url, StoreSettings::default(), Env::system()).unwrap().root_id()
    }

    #[test]
    fn copied_directory_is_another_root() {
        let dir = tempfile::tempdir().unwrap();
        let (original, copy, link) =
            (dir.path().join("db"), dir.path().join("copy"), dir.path().join("link"));
        std::fs::create_dir(&original).unwrap();
        std::fs::create_dir(&copy).unwrap();
        std::os::unix::fs::symlink(&original, &link).unwrap();
        let url = |path: &PathBuf| format!("file://{}", path.display());
        assert_ne!(id(&url(&original)), id(&url(&copy)));
        assert_eq!(id(&url(&original)), id(&url(&link)));
        assert_eq!(id(&url(&original)), id(&format!("{}/", url(&original))));
    }
    #[test]
    fn a_directory_is_of_its_device_and_boot() {
        let dir = tempfile::tempdir().unwrap();
        let id = id(&format!("file://{}", dir.path().display()));
        let metadata = std::fs::metadata(dir.path()).unwrap();
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        assert_eq!(id, format!("file://#{}@{}/{}", metadata.ino(), metadata.dev(), boot.trim()));
    }

    #[test]
    fn an_escaped_url_names_its_directory() {
        let dir = tempfile::tempdir().unwrap();
        let spaced = dir.path().join("my data");
        std::fs::create_dir(&spaced).unwrap();
        let url = format!("file://{}", spaced.display());
        assert_eq!(id(&url.replace(' ', "%20")), id(&url));
    }
}
