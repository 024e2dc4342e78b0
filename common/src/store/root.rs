//! Which root a process works on, so that a copy of a database is not taken for the original.
//!
//! A claim of the writer's role names the root at which it was made. In a copy, made by a restore
//! or a sync tool, CURRENT still names the original's.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use percent_encoding::percent_decode_str;

use super::object::Bucket;

/// Variables by which the clients of the clouds are sent to another server than the cloud's own.
const ENDPOINTS: [(&str, &[&str]); 3] = [
    ("s3://", &["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"]),
    ("gs://", &["GOOGLE_BASE_URL"]),
    ("az://", &["AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT", "AZURE_STORAGE_ACCOUNT_NAME"]),
];

impl Bucket {
    /// What tells this root from every other: the URL, with the server that it is on; for a
    /// directory its inode, which no copy shares and every path to it does.
    pub fn root_id(&self) -> String {
        let url = self.url().trim_end_matches('/');
        if let Some(path) = url.strip_prefix("file://") {
            let path = PathBuf::from(percent_decode_str(path).decode_utf8_lossy().as_ref());
            return match std::fs::metadata(&path) {
                Ok(directory) => format!("file://#{}", directory.ino()),
                Err(_) => url.to_owned(),
            };
        }
        match endpoint(url) {
            Some(endpoint) => format!("{url} at {}", endpoint.trim_end_matches('/')),
            None => url.to_owned(),
        }
    }
}

/// The server, or the account, that the environment names for a store of this URL, if any.
pub fn endpoint(url: &str) -> Option<String> {
    let (_, variables) = ENDPOINTS.iter().find(|(scheme, _)| url.starts_with(scheme))?;
    let set = |name: &&str| std::env::var(name).ok().filter(|value| !value.is_empty());
    variables.iter().find_map(set)
}

#[cfg(test)]
mod tests {
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
}
