//! Store URLs: which store, which bucket, which root; and what is wrong with one that cannot be.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, S3ConditionalPut};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ClientConfigKey, ObjectStore, RetryConfig};

use super::date::StoreClock;
use super::local::LocalDirectory;
use super::metrics::Prices;
use super::wire::{Connector, Home, Provider, is_set};
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

/// Where credentials and endpoints come from.
#[derive(Clone, Debug)]
pub enum Variables {
    /// The environment of this process.
    OfProcess,
    /// These names and values: for tests, in which several stores are used by one process.
    Given(Vec<(String, String)>),
}

/// A builder of a client, set up from variables. It lacks the connector.
macro_rules! builder {
    ($builder:ident, $key:ident, $variables:expr) => {{
        let builder = match $variables {
            Variables::OfProcess => $builder::from_env(),
            Variables::Given(variables) => {
                let mut builder = $builder::new();
                for (name, value) in variables {
                    // As the crate does for those of the process: what it does not know is not its.
                    if let Ok(key) = name.to_ascii_lowercase().parse::<$key>() {
                        builder = builder.with_config(key, value);
                    }
                }
                builder
            }
        };
        builder
            .with_config($key::Client(ClientConfigKey::Timeout), CLIENT_TIMEOUT)
            .with_config($key::Client(ClientConfigKey::ConnectTimeout), CONNECT_TIMEOUT)
            .with_retry(no_retries())
    }};
}

/// Whether several hosts can have this store: false for a directory and for memory.
pub fn is_on_network(url: &str) -> bool {
    let scheme = parse(url).map(|parts| parts.scheme);
    matches!(scheme, Ok(Scheme::S3 | Scheme::Gcs | Scheme::Azure))
}

/// The store and the root that a URL names; the answers of one over HTTP set `clock`.
pub(super) fn open(url: &str, variables: &Variables, clock: &Arc<StoreClock>) -> Result<Opened> {
    let Parts { scheme, bucket, root } = parse(url)?;
    let unusable = |error: object_store::Error| {
        Error::Invalid(format!("the store {url} cannot be used: {error}"))
    };
    let (store, prices): (Arc<dyn ObjectStore>, _) = match scheme {
        Scheme::File => {
            let (store, root) = (Arc::new(LocalDirectory::new(root)), Path::default());
            return Ok(Opened { store, root, url: url.to_owned(), prices: Prices::FREE });
        }
        Scheme::Memory => (Arc::new(InMemory::new()), Prices::FREE),
        Scheme::S3 => {
            let builder = builder!(AmazonS3Builder, AmazonS3ConfigKey, variables);
            check_encryption(&builder)?;
            let connector = Connector::new(home_on_s3(&builder, &bucket), Arc::clone(clock));
            let builder = builder
                .with_bucket_name(bucket)
                .with_conditional_put(S3ConditionalPut::ETagMatch)
                .with_http_connector(connector);
            (Arc::new(builder.build().map_err(unusable)?), Prices::S3)
        }
        Scheme::Gcs => {
            let builder = builder!(GoogleCloudStorageBuilder, GoogleConfigKey, variables);
            let connector = Connector::new(home_on_gcs(&builder, &bucket), Arc::clone(clock));
            let builder = builder.with_bucket_name(bucket).with_http_connector(connector);
            (Arc::new(builder.build().map_err(unusable)?), Prices::GCS)
        }
        Scheme::Azure => {
            let builder = builder!(MicrosoftAzureBuilder, AzureConfigKey, variables);
            let connector = Connector::new(home_on_azure(&builder, &bucket), Arc::clone(clock));
            let builder = builder.with_container_name(bucket).with_http_connector(connector);
            (Arc::new(builder.build().map_err(unusable)?), Prices::AZURE)
        }
    };
    let root = Path::parse(&root)
        .map_err(|error| Error::Invalid(format!("the prefix in {url} cannot be used: {error}")))?;
    Ok(Opened { store, root, url: url.to_owned(), prices })
}

/// Where `object_store` sends the requests for a bucket, by the same rules.
fn home_on_s3(builder: &AmazonS3Builder, bucket: &str) -> Home {
    let setting = |key| builder.get_config_value(&key);
    let is_virtual = is_set(setting(AmazonS3ConfigKey::VirtualHostedStyleRequest));
    let endpoint =
        setting(AmazonS3ConfigKey::S3Endpoint).or_else(|| setting(AmazonS3ConfigKey::Endpoint));
    let region = setting(AmazonS3ConfigKey::Region).unwrap_or_else(|| "us-east-1".to_owned());
    let is_express = is_set(setting(AmazonS3ConfigKey::S3Express));
    let zone = is_express.then(|| zone_of(bucket)).flatten();
    let url = match (endpoint, zone, is_virtual) {
        (Some(endpoint), _, true) => endpoint,
        (Some(endpoint), _, false) => format!("{endpoint}/{bucket}"),
        (None, Some(zone), _) => {
            format!("https://{bucket}.s3express-{zone}.{region}.amazonaws.com")
        }
        (None, None, true) => format!("https://{bucket}.s3.{region}.amazonaws.com"),
        (None, None, false) => format!("https://s3.{region}.amazonaws.com/{bucket}"),
    };
    Home::new(Provider::S3, &url)
}

/// The zone in the name of an S3 Express bucket, as `usw2-az1` in `name--usw2-az1--x-s3`.
fn zone_of(bucket: &str) -> Option<&str> {
    let name = bucket.strip_suffix("--x-s3").or_else(|| bucket.strip_suffix("--xa-s3"))?;
    Some(name.rsplit_once("--")?.1)
}

/// The same on Google's: an emulator's address may be in the key of a service account.
fn home_on_gcs(builder: &GoogleCloudStorageBuilder, bucket: &str) -> Home {
    let setting = |key| builder.get_config_value(&key);
    let of_key = || {
        let path = setting(GoogleConfigKey::ServiceAccount);
        let key = path.and_then(|path| std::fs::read_to_string(path).ok());
        let key = key.or_else(|| setting(GoogleConfigKey::ServiceAccountKey))?;
        let key: serde_json::Value = serde_json::from_str(&key).ok()?;
        Some(key.get("gcs_base_url")?.as_str()?.to_owned())
    };
    let url = setting(GoogleConfigKey::BaseUrl).or_else(of_key);
    let url = url.unwrap_or_else(|| "https://storage.googleapis.com".to_owned());
    Home::new(Provider::Gcs, &format!("{url}/{bucket}"))
}

/// The same on Azure's.
fn home_on_azure(builder: &MicrosoftAzureBuilder, bucket: &str) -> Home {
    let setting = |key| builder.get_config_value(&key);
    let account = setting(AzureConfigKey::AccountName);
    if is_set(setting(AzureConfigKey::UseEmulator)) {
        let url = std::env::var("AZURITE_BLOB_STORAGE_URL");
        let url = url.unwrap_or_else(|_| "http://127.0.0.1:10000".to_owned());
        let account = account.as_deref().unwrap_or("devstoreaccount1");
        return Home::new(Provider::Azure, &format!("{url}/{account}/{bucket}"));
    }
    let account = account.unwrap_or_default();
    let url = setting(AzureConfigKey::Endpoint).unwrap_or_else(|| {
        let domain = if is_set(setting(AzureConfigKey::UseFabricEndpoint)) {
            "fabric.microsoft.com"
        } else {
            "core.windows.net"
        };
        format!("https://{account}.blob.{domain}")
    });
    Home::new(Provider::Azure, &format!("{url}/{bucket}"))
}

/// Plain HTTP is refused by the client with a text that does not help.
fn check_encryption(builder: &AmazonS3Builder) -> Result<()> {
    let setting = |key| builder.get_config_value(&key).unwrap_or_default();
    let allow_http = setting(AmazonS3ConfigKey::Client(ClientConfigKey::AllowHttp));
    let endpoint = setting(AmazonS3ConfigKey::Endpoint);
    if endpoint.starts_with("http://") && allow_http != "true" {
        return Err(Error::Invalid(format!(
            "the endpoint {endpoint} is not encrypted: set AWS_ALLOW_HTTP=true if that is meant"
        )));
    }
    Ok(())
}

/// The client's own retries meet their own object, and do not know which outcomes are certain.
fn no_retries() -> RetryConfig {
    RetryConfig { max_retries: 0, retry_timeout: Duration::ZERO, ..RetryConfig::default() }
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

/// The directory that a `file://` URL names; `None` for every other URL, and for one that no store
/// can be opened with.
pub fn directory_of(url: &str) -> Option<PathBuf> {
    match parse(url) {
        Ok(Parts { scheme: Scheme::File, root, .. }) => Some(PathBuf::from(root)),
        _ => None,
    }
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
    use std::sync::Mutex;

    use async_trait::async_trait;
    use http::Uri;
    use object_store::client::{
        HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpService,
    };
    use object_store::{ClientOptions, ObjectStoreExt};

    use super::*;
    use crate::clock::SystemClock;

    /// Notes where requests go, and answers none.
    #[derive(Clone, Debug, Default)]
    struct Recorder(Arc<Mutex<Vec<Uri>>>);

    impl HttpConnector for Recorder {
        fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
            Ok(HttpClient::new(self.clone()))
        }
    }

    #[async_trait]
    impl HttpService for Recorder {
        async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
            self.0.lock().unwrap().push(request.uri().clone());
            Ok(HttpResponse::new(bytes::Bytes::new().into()))
        }
    }

    /// The home of a bucket under these variables, and where `object_store` sends a request for it.
    async fn home_and_requests(url: &str, variables: &[(&str, &str)]) -> (Home, Vec<Uri>) {
        let Parts { scheme, bucket, .. } = parse(url).unwrap();
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let variables = &Variables::Given(variables.iter().map(owned).collect());
        let requests = Recorder::default();
        let connector = requests.clone();
        let (home, store): (_, Box<dyn ObjectStore>) = match scheme {
            Scheme::S3 => {
                let builder = builder!(AmazonS3Builder, AmazonS3ConfigKey, variables);
                let home = home_on_s3(&builder, &bucket);
                let builder = builder.with_bucket_name(bucket).with_http_connector(connector);
                (home, Box::new(builder.build().unwrap()))
            }
            Scheme::Gcs => {
                let builder = builder!(GoogleCloudStorageBuilder, GoogleConfigKey, variables);
                let home = home_on_gcs(&builder, &bucket);
                let builder = builder.with_bucket_name(bucket).with_http_connector(connector);
                (home, Box::new(builder.build().unwrap()))
            }
            Scheme::Azure => {
                let builder = builder!(MicrosoftAzureBuilder, AzureConfigKey, variables);
                let home = home_on_azure(&builder, &bucket);
                let builder = builder.with_container_name(bucket).with_http_connector(connector);
                (home, Box::new(builder.build().unwrap()))
            }
            Scheme::File | Scheme::Memory => panic!("{url} is not asked by HTTP"),
        };
        drop(store.get(&Path::from("db/CURRENT")).await);
        let requests = requests.0.lock().unwrap().clone();
        (home, requests)
    }

    #[tokio::test]
    async fn every_store_is_asked_at_home() {
        const KEY: &str = r#"{"private_key": "a", "private_key_id": "b", "client_email": "c",
            "disable_oauth": true, "gcs_base_url": "http://127.0.0.1:4443"}"#;
        let key_file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&key_file, KEY).unwrap();
        let key_path = key_file.path().to_str().unwrap();
        let id = [("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "b")];
        let aws = |more: &[(&'static str, &'static str)]| [&id[..], more].concat();
        let account = ("AZURE_STORAGE_ACCOUNT_NAME", "acc");
        let unsigned = ("AZURE_SKIP_SIGNATURE", "true");
        let minio = ("AWS_ENDPOINT_URL", "http://minio:9000/");
        let of_bucket = ("AWS_ENDPOINT_URL", "https://b.example.com");
        let in_name = ("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "true");
        let (west, express) = (("AWS_REGION", "us-west-2"), ("AWS_S3_EXPRESS", "on"));
        let rows = [
            ("s3://b/db", aws(&[])),
            ("s3://b/db", aws(&[west, in_name])),
            ("s3://b/db", aws(&[minio])),
            ("s3://b/db", aws(&[of_bucket, in_name])),
            ("s3://b--usw2-az1--x-s3/db", aws(&[west, express])),
            ("s3://b--usw2-az1--xa-s3/db", aws(&[west, express, in_name])),
            ("gs://b/db", vec![("GOOGLE_SKIP_SIGNATURE", "true")]),
            ("gs://b/db", vec![("GOOGLE_SERVICE_ACCOUNT_KEY", KEY)]),
            ("gs://b/db", vec![("GOOGLE_SERVICE_ACCOUNT", key_path)]),
            (
                "gs://b/db",
                vec![
                    ("GOOGLE_SERVICE_ACCOUNT", key_path),
                    ("GOOGLE_BASE_URL", "http://localhost:1"),
                ],
            ),
            ("az://c/db", vec![account, unsigned]),
            ("az://c/db", vec![account, unsigned, ("AZURE_USE_FABRIC_ENDPOINT", "true")]),
            ("az://c/db", vec![unsigned, ("AZURE_STORAGE_USE_EMULATOR", "true")]),
            (
                "az://c/db",
                vec![account, unsigned, ("AZURE_ENDPOINT", "http://127.0.0.1:10000/acc")],
            ),
        ];
        for (url, variables) in rows {
            let (home, requests) = home_and_requests(url, &variables).await;
            assert!(!requests.is_empty(), "{url} {variables:?}");
            for request in requests {
                assert!(home.is_of(&request), "{request} is not at {home:?}: {variables:?}");
            }
        }
    }

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
            let local = matches!(scheme, Scheme::File | Scheme::Memory);
            assert_eq!(is_on_network(url), !local, "{url}");
        }
    }

    #[test]
    fn only_a_file_url_names_a_directory() {
        assert_eq!(directory_of("file:///a%20b/c"), Some(PathBuf::from("/a b/c")));
        for other in ["s3://bucket/prefix", "memory:///x", "file://a", "/a"] {
            assert_eq!(directory_of(other), None, "{other}");
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
        let mut variables = vec![("AWS_ENDPOINT_URL".into(), "http://127.0.0.1:9000".into())];
        let clock = Arc::new(StoreClock::new(Arc::new(SystemClock::default())));
        let refused = open("s3://b", &Variables::Given(variables.clone()), &clock).map(drop);
        let Err(Error::Invalid(text)) = refused else { panic!("taken") };
        assert!(text.contains("AWS_ALLOW_HTTP=true"), "{text}");
        variables.push(("AWS_ALLOW_HTTP".into(), "true".into()));
        open("s3://b", &Variables::Given(variables), &clock).map(drop).unwrap();
    }
}
