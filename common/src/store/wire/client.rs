//! The HTTP client for requests of the store itself: `object_store`'s, but that it goes nowhere
//! else.
//!
//! `object_store` follows redirects, and with a 303 turns a PUT into a GET: an empty page of
//! another server would count as written. A store's requests are signed for its host, so no
//! redirect of its own can be followed. Only a client of our own can be told so; it obeys the
//! settings that `object_store` takes from the environment.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use object_store::{ClientConfigKey as Key, ClientOptions};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect::Policy;
use reqwest::tls::Certificate;
use reqwest::{Client, ClientBuilder, NoProxy, Proxy};

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// A client of these options that follows no redirect.
///
/// # Errors
/// `Generic`: an option cannot be understood.
pub(super) fn client(options: &ClientOptions) -> object_store::Result<Client> {
    build(options).map_err(|source| object_store::Error::Generic { store: "HTTP client", source })
}

fn build(options: &ClientOptions) -> Result<Client, Cause> {
    let text = |key| options.get_config_value(&key);
    let is_on = |key| is_set(text(key));
    let duration = |key| -> Result<Option<Duration>, Cause> {
        Ok(text(key).map(|text| humantime::parse_duration(&text)).transpose()?)
    };
    let mut builder = ClientBuilder::new()
        .redirect(Policy::none())
        .https_only(!is_on(Key::AllowHttp))
        // They would change the length of a body, by which a short one is known.
        .no_gzip()
        .no_brotli()
        .no_zstd()
        .no_deflate();
    builder = builder.user_agent(text(Key::UserAgent).unwrap_or_else(|| "cairn".to_owned()));
    if let Some(proxy) = proxy(options)? {
        builder = builder.proxy(proxy);
        if let Some(certificate) = text(Key::ProxyCaCertificate) {
            builder = builder.tls_certs_merge([Certificate::from_pem(certificate.as_bytes())?]);
        }
    }
    if is_on(Key::NoSystemCertificates) {
        builder = builder.tls_certs_only([]);
    }
    if is_on(Key::AllowInvalidCertificates) {
        builder = builder.danger_accept_invalid_certs(true);
    }
    if let Some(timeout) = duration(Key::Timeout)? {
        builder = builder.timeout(timeout);
    }
    if let Some(timeout) = duration(Key::ConnectTimeout)? {
        builder = builder.connect_timeout(timeout);
    }
    if let Some(timeout) = duration(Key::ReadTimeout)? {
        builder = builder.read_timeout(timeout);
    }
    if let Some(timeout) = duration(Key::PoolIdleTimeout)? {
        builder = builder.pool_idle_timeout(timeout);
    }
    if let Some(count) = text(Key::PoolMaxIdlePerHost) {
        builder = builder.pool_max_idle_per_host(count.parse()?);
    }
    builder = http_version(builder, options)?;
    if is_on(Key::RandomizeAddresses) {
        builder = builder.dns_resolver(Arc::new(InTurn::default()));
    }
    Ok(builder.build()?)
}

fn proxy(options: &ClientOptions) -> Result<Option<Proxy>, Cause> {
    let Some(url) = options.get_config_value(&Key::ProxyUrl) else { return Ok(None) };
    let mut proxy = Proxy::all(url)?;
    if let Some(excluded) = options.get_config_value(&Key::ProxyExcludes) {
        proxy = proxy.no_proxy(NoProxy::from_string(&excluded));
    }
    Ok(Some(proxy))
}

fn http_version(
    mut builder: ClientBuilder,
    options: &ClientOptions,
) -> Result<ClientBuilder, Cause> {
    let text = |key| options.get_config_value(&key);
    if is_set(text(Key::Http1Only)) {
        builder = builder.http1_only();
    }
    if is_set(text(Key::Http2Only)) {
        builder = builder.http2_prior_knowledge();
    }
    if let Some(interval) = text(Key::Http2KeepAliveInterval) {
        builder = builder.http2_keep_alive_interval(humantime::parse_duration(&interval)?);
    }
    if let Some(timeout) = text(Key::Http2KeepAliveTimeout) {
        builder = builder.http2_keep_alive_timeout(humantime::parse_duration(&timeout)?);
    }
    if is_set(text(Key::Http2KeepAliveWhileIdle)) {
        builder = builder.http2_keep_alive_while_idle(true);
    }
    if let Some(bytes) = text(Key::Http2MaxFrameSize) {
        builder = builder.http2_max_frame_size(Some(bytes.parse()?));
    }
    Ok(builder)
}

/// Whether a switch is on, in any of the words that `object_store` knows for it.
pub(in crate::store) fn is_set(value: Option<String>) -> bool {
    let value = value.unwrap_or_default().to_ascii_lowercase();
    ["1", "true", "on", "yes", "y"].contains(&value.as_str())
}

/// The addresses of a host, each connection beginning with another one, so that a store of many
/// servers is not asked at one.
#[derive(Debug, Default)]
struct InTurn {
    turn: Arc<AtomicUsize>,
}

impl Resolve for InTurn {
    fn resolve(&self, name: Name) -> Resolving {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let mut addresses: Vec<SocketAddr> = found.collect();
            if !addresses.is_empty() {
                let first = turn % addresses.len();
                addresses.rotate_left(first);
            }
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}
