//! Writes that come to a reader: refused, with the way to the writer.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{post, put};
use cairn_common::http::keys;
use cairn_common::http::problem::{Code, Problem};
use http::{Uri, header};

use crate::node::ReaderNode;

/// The routes that only a writer serves.
pub(crate) fn writes(node: Arc<ReaderNode>) -> Router {
    let of_keys = || put(misdirected).delete(misdirected).post(misdirected);
    let routes =
        keys::ROUTES.into_iter().fold(Router::new(), |routes, path| routes.route(path, of_keys()));
    let posts = ["/v1/batch", "/v1/flush"];
    let routes =
        posts.into_iter().fold(routes, |routes, path| routes.route(path, post(misdirected)));
    routes.with_state(node)
}

async fn misdirected(State(node): State<Arc<ReaderNode>>, uri: Uri) -> Response {
    let Some(writer) = node.writer_url() else {
        let detail = "this is a reader, and it knows no writer";
        return Problem::new(Code::NotTheWriter, detail).into_response();
    };
    let writer = writer.trim_end_matches('/');
    let target = uri.path_and_query().map_or("", |target| target.as_str());
    Problem::new(Code::NotTheWriter, format!("this is a reader; the writer is at {writer}"))
        .header(header::LOCATION, format!("{writer}{target}"))
        .into_response()
}
