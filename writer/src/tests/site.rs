//! A writer with its HTTP surface, asked without sockets.

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use cairn_common::http::reads;
use http::{HeaderMap, Request};
use serde_json::Value;
use tokio::sync::watch;
use tower::ServiceExt as _;

use super::Rig;
use crate::config::{Config, PROGRAM};
use crate::engine::Engine;
use crate::node::{Phase, WriterNode};
use crate::{routes, serve};

pub(super) struct Site {
    pub(super) rig: Rig,
    pub(super) engine: Engine,
    pub(super) phase: watch::Sender<Phase>,
    router: Router,
}

/// A reply as a client sees it.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: String,
}

impl Reply {
    /// The status, then the code and the outcome of a problem: `412 precondition not_applied`.
    pub(super) fn told(&self) -> String {
        let json: Value = serde_json::from_str(&self.body).unwrap_or_default();
        let field = |name: &str| json.get(name).and_then(Value::as_str).map(str::to_owned);
        let words = [Some(self.status.to_string()), field("code"), field("outcome")];
        words.into_iter().flatten().collect::<Vec<_>>().join(" ")
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

impl Site {
    /// A writer that serves, with these settings.
    pub(super) async fn new(overrides: &[(&str, &str)]) -> Self {
        let rig = Rig::new();
        let engine = rig.open(overrides).await;
        let (phase, phases) = watch::channel(Phase::Serving(Arc::clone(engine.writer())));
        let snapshot = rig.parts.manifests().load().await.unwrap();
        let (_, seen) = watch::channel(snapshot);
        let instance = rig.parts.env.random.uuid();
        let node = WriterNode::new(phases.clone(), seen, instance, rig.parts.clone());
        let node = Arc::new(node);
        let config: Config = PROGRAM.with(&[("store", "memory://")]).unwrap();
        let surface = serve::surface(&rig.parts, phases, config.shared.http);
        let all = routes::routes(Arc::clone(&node)).merge(reads::routes(Arc::clone(&node)));
        let ops = surface.ops(Arc::clone(&node), Router::new());
        let router = surface.data(node, all).nest("/ops", ops);
        Self { rig, engine, phase, router }
    }

    pub(super) async fn ask(
        &self,
        method: &str,
        uri: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> Reply {
        let request = Request::builder().method(method).uri(uri);
        let request =
            headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let request = request.body(body.into()).unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = to_bytes(body, usize::MAX).await.unwrap().to_vec();
        let body = String::from_utf8(body).unwrap();
        Reply { status: parts.status.as_u16(), headers: parts.headers, body }
    }

    pub(super) async fn get(&self, uri: &str, headers: &[(&str, &str)]) -> Reply {
        self.ask("GET", uri, headers, Body::empty()).await
    }

    pub(super) async fn put(&self, uri: &str, headers: &[(&str, &str)]) -> Reply {
        self.ask("PUT", uri, headers, "value").await
    }
}
