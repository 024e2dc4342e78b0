//! Store URLs: which store, which bucket, which root; and what is wrong with one that cannot be.

use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, S3ConditionalPut};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ClientConfigKey, ObjectStore, RetryConfig};

use super::local::LocalDirectory;
use super::metrics::Prices;
use super::wire::Connector;
use crate::{Error, Result};

/// Longer than any attempt: attempts have deadlines of their own.
const CLIENT_TIMEOUT: &str = "1 hour";
/// A store that takes longer to accept a connection is down or far overloaded.
const CONNECT_TIMEOUT: &str = "3 seconds";

/// A store and the root of a database in it.
pub(super) struct Opened {
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) root: Path,
    pub(super) url: String,
    pub(super) prices: Prices,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    File,
    Memory,
    S3,
    Gcs,
    Azure,
}

impl Scheme {
    const ALL: [(&'static str, Self); 5] = [
        ("file", Self::File),
        ("memory", Self::Memory),
        ("s3", Self::S3),
        ("gs", Self::Gcs),
        ("az", Self::Azure),
    ];
}

/// A URL, taken apart.
#[derive(Debug, PartialEq, Eq)]
struct Parts {
    scheme: Scheme,
    /// The bucket or container; empty for a directory and for memory.
    bucket: String,
    /// The root under it, or the path of the directory.
    root: String,
}

pub(super) fn open(url: &str) -> Result<Opened> {
    let parts = parse(url)?;
    let unusable = |error: object_store::Error| {
        Error::Invalid(format!("the store {url} cannot be used: {error}"))
    };
    let url = url.to_owned();
    if parts.scheme == Scheme::File {
        let store = Arc::new(LocalDirectory::new(parts.root));
        return Ok(Opened { store, root: Path::default(), url, prices: Prices::FREE });
    }
    let root = Path::parse(&parts.root)
        .map_err(|error| Error::Invalid(format!("the prefix in {url} cannot be used: {error}")))?;
    let (store, prices): (Arc<dyn ObjectStore>, _) = match parts.scheme {
        Scheme::File | Scheme::Memory => (Arc::new(InMemory::new()), Prices::FREE),
        Scheme::S3 => {
            let builder = s3(AmazonS3Builder::from_env(), &parts.bucket)?;
            (Arc::new(builder.build().map_err(unusable)?), Prices::S3)
        }
        Scheme::Gcs => {
            let builder = GoogleCloudStorageBuilder::from_env()
                .with_bucket_name(&parts.bucket)
                .with_retry(no_retries())
                .with_http_connector(Connector::default());
            let builder = client_timeouts().into_iter().fold(builder, |b, (key, value)| {
                b.with_config(GoogleConfigKey::Client(key), value)
            });
            (Arc::new(builder.build().map_err(unusable)?), Prices::GCS)
        }
        Scheme::Azure => {
            let builder = MicrosoftAzureBuilder::from_env()
                .with_container_name(&parts.bucket)
                .with_retry(no_retries())
                .with_http_connector(Connector::default());
            let builder = client_timeouts()
                .into_iter()
                .fold(builder, |b, (key, value)| b.with_config(AzureConfigKey::Client(key), value));
            (Arc::new(builder.build().map_err(unusable)?), Prices::AZURE)
        }
    };
    Ok(Opened { store, root, url, prices })
}

fn s3(builder: AmazonS3Builder, bucket: &str) -> Result<AmazonS3Builder> {
    let setting = |key| builder.get_config_value(&key).unwrap_or_default();
    let allow_http = setting(AmazonS3ConfigKey::Client(ClientConfigKey::AllowHttp));
    let endpoint = setting(AmazonS3ConfigKey::Endpoint);
    if endpoint.starts_with("http://") && allow_http != "true" {
        return Err(Error::Invalid(format!(
            "the endpoint {endpoint} is not encrypted: set AWS_ALLOW_HTTP=true if that is meant"
        )));
    }
    let builder = builder
        .with_bucket_name(bucket)
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        .with_retry(no_retries())
        .with_http_connector(Connector::default());
    Ok(client_timeouts()
        .into_iter()
        .fold(builder, |b, (key, value)| b.with_config(AmazonS3ConfigKey::Client(key), value)))
}

/// The client's own retries meet their own object, and do not know which outcomes are certain.
fn no_retries() -> RetryConfig {
    RetryConfig { max_retries: 0, retry_timeout: Duration::ZERO, ..RetryConfig::default() }
}

fn client_timeouts() -> [(ClientConfigKey, &'static str); 2] {
    [(ClientConfigKey::Timeout, CLIENT_TIMEOUT), (ClientConfigKey::ConnectTimeout, CONNECT_TIMEOUT)]
}

fn parse(url: &str) -> Result<Parts> {
    let Some((scheme, rest)) = url.split_once("://") else {
        return Err(Error::Invalid(not_a_url(url)));
    };
    let Some((_, scheme)) = Scheme::ALL.into_iter().find(|(name, _)| *name == scheme) else {
        return Err(Error::Invalid(unknown_scheme(scheme, rest)));
    };
    let (bucket, root) = match scheme {
        Scheme::File => ("", directory(url, rest)?),
        Scheme::Memory => ("", rest.trim_matches('/').to_owned()),
        Scheme::S3 | Scheme::Gcs | Scheme::Azure => {
            let (bucket, root) = rest.split_once('/').unwrap_or((rest, ""));
            if bucket.is_empty() {
                return Err(Error::Invalid(format!(
                    "{url} names no bucket: write s3://bucket/prefix, gs://… or az://…"
                )));
            }
            (bucket, root.trim_matches('/').to_owned())
        }
    };
    Ok(Parts { scheme, bucket: bucket.to_owned(), root })
}

fn directory(url: &str, rest: &str) -> Result<String> {
    if !rest.starts_with('/') {
        return Err(Error::Invalid(format!(
            "{url} is not an absolute path: write file:///absolute/path, with three slashes"
        )));
    }
    let decoded = percent_encoding::percent_decode_str(rest).decode_utf8();
    let path = decoded.map_err(|_| Error::Invalid(format!("{url} is not UTF-8")))?;
    Ok(path.into_owned())
}

fn not_a_url(text: &str) -> String {
    let hint = if text.starts_with('/') {
        format!("for that directory write file://{text}")
    } else {
        "write file:///absolute/path, s3://bucket/prefix, gs://… or az://…".to_owned()
    };
    format!("{text:?} is not a store URL: {hint}")
}

fn unknown_scheme(scheme: &str, rest: &str) -> String {
    let hint = match scheme {
        "http" | "https" => "for an S3-compatible store write s3://bucket/prefix, and set \
                             AWS_ENDPOINT_URL to its address"
            .to_owned(),
        "gcs" => format!("write gs://{rest}"),
        "azure" | "abfs" | "abfss" | "wasb" | "wasbs" => format!("write az://{rest}"),
        _ => {
            let nearest = Scheme::ALL
                .into_iter()
                .map(|(name, _)| name)
                .min_by_key(|name| strsim::damerau_levenshtein(name, &scheme.to_lowercase()));
            format!("did you mean {}://{rest}?", nearest.unwrap_or("file"))
        }
    };
    format!("unknown store scheme {scheme:?}: {hint}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        let rows = [
            ("file:///a/b%20c", Scheme::File, "", "/a/b c"),
            ("memory://", Scheme::Memory, "", ""),
            ("memory:///x", Scheme::Memory, "", "x"),
            ("s3://bucket", Scheme::S3, "bucket", ""),
            ("s3://bucket/a/b/", Scheme::S3, "bucket", "a/b"),
            ("gs://bucket/a", Scheme::Gcs, "bucket", "a"),
            ("az://container/a", Scheme::Azure, "container", "a"),
        ];
        for (url, scheme, bucket, root) in rows {
            let want = Parts { scheme, bucket: bucket.into(), root: root.into() };
            assert_eq!(parse(url).unwrap(), want, "{url}");
        }
    }

    #[test]
    fn refusals_say_what_to_do() {
        let rows = [
            ("/data", "write file:///data"),
            ("./data", "write file:///absolute/path"),
            ("file://data", "three slashes"),
            ("s3:///prefix", "names no bucket"),
            ("S4://b/p", "did you mean s3://b/p?"),
            ("fil:///x", "did you mean file:///x?"),
            ("gcs://b/p", "write gs://b/p"),
            ("https://minio:9000/b", "AWS_ENDPOINT_URL"),
        ];
        for (url, want) in rows {
            let Err(Error::Invalid(text)) = parse(url) else { panic!("{url} was taken") };
            assert!(text.contains(want), "{url}: {text}");
        }
    }

    #[test]
    fn an_unencrypted_endpoint_must_be_allowed() {
        let builder = AmazonS3Builder::new().with_endpoint("http://127.0.0.1:9000");
        let Err(Error::Invalid(text)) = s3(builder.clone(), "b") else { panic!("taken") };
        assert!(text.contains("AWS_ALLOW_HTTP=true"), "{text}");
        assert!(s3(builder.with_allow_http(true), "b").is_ok());
    }
}
