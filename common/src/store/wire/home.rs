//! Which requests go to the store itself: one client also serves those who hand out credentials,
//! whose answers mean what they say and are not for us to judge.
//!
//! **Layout**: a store is at `scheme://host[:port]/path`, and all its requests are at or below that
//! path: the bucket in the path, or in the name of the host.

use http::Uri;
use percent_encoding::percent_decode_str;

/// Whose words a store speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum Provider {
    /// Amazon S3, and what is compatible with it.
    S3,
    /// Google Cloud Storage, by its XML interface.
    Gcs,
    /// Azure Blob Storage.
    Azure,
}

/// Where a bucket is.
#[derive(Clone, Debug)]
pub(in crate::store) struct Home {
    pub(super) provider: Provider,
    /// `None` if the address cannot be understood: nothing is judged then.
    place: Option<Place>,
}

/// An address, in the one form in which two can be compared.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    host: String,
    port: u16,
    /// The segments of the path, decoded; empty ones say nothing.
    path: Vec<String>,
}

impl Home {
    /// The home of a bucket whose requests are at or below this URL.
    pub(in crate::store) fn new(provider: Provider, url: &str) -> Self {
        Self { provider, place: url.parse().ok().and_then(|uri| Place::of(&uri)) }
    }

    /// Whether a request goes to the store.
    pub(in crate::store) fn is_of(&self, uri: &Uri) -> bool {
        let (Some(home), Some(place)) = (&self.place, Place::of(uri)) else { return false };
        home.host == place.host && home.port == place.port && place.path.starts_with(&home.path)
    }
}

impl Place {
    fn of(uri: &Uri) -> Option<Self> {
        let port = match (uri.port_u16(), uri.scheme_str()) {
            (Some(port), _) => port,
            (None, Some("http")) => 80,
            (None, _) => 443,
        };
        let decoded = |segment: &str| percent_decode_str(segment).decode_utf8_lossy().into_owned();
        let segments = uri.path().split('/').filter(|segment| !segment.is_empty());
        let path = segments.map(decoded).collect();
        Some(Self { host: uri.host()?.to_ascii_lowercase(), port, path })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_requests_below_the_bucket_are_the_stores() {
        let rows = [
            (
                "https://s3.eu-west-1.amazonaws.com/b",
                "https://S3.eu-west-1.amazonaws.com:443/b/k",
                true,
            ),
            (
                "https://s3.eu-west-1.amazonaws.com/b",
                "https://s3.eu-west-1.amazonaws.com/b?delete",
                true,
            ),
            (
                "https://s3.eu-west-1.amazonaws.com/b",
                "https://s3.eu-west-1.amazonaws.com/bb/k",
                false,
            ),
            (
                "https://s3.eu-west-1.amazonaws.com/b",
                "https://sts.eu-west-1.amazonaws.com/b",
                false,
            ),
            ("https://b.s3.eu-west-1.amazonaws.com", "https://b.s3.eu-west-1.amazonaws.com/", true),
            ("http://minio:9000/b", "http://minio:9000/?Action=AssumeRoleWithWebIdentity", false),
            ("http://minio:9000/b", "http://minio:9001/b/k", false),
            ("http://minio/store//b", "http://minio:80/store/b/k", true),
            (
                "https://storage.googleapis.com/my-b",
                "https://storage.googleapis.com/my%2Db/k",
                true,
            ),
            ("https://storage.googleapis.com/my-b", "https://oauth2.googleapis.com/token", false),
            ("http://[::1]:10000/account/c", "http://[::1]:10000/account/c?comp=batch", true),
            ("not an address", "http://minio:9000/b", false),
        ];
        for (home, uri, want) in rows {
            let home = Home::new(Provider::S3, home);
            assert_eq!(home.is_of(&uri.parse().unwrap()), want, "{home:?} {uri}");
        }
    }
}
