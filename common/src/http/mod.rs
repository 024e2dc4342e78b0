//! What the HTTP surfaces of the three processes share.
//!
//! **Life of a request**
//!
//! ```text
//! shell (accept, limits of the connection) -> surface (limits, deadline, metrics)
//!     -> request, body (headers, query, body) -> a route -> api, reply or problem (errors)
//! ```

pub mod api;
pub mod batch;
pub mod body;
pub mod budget;
pub mod conditions;
mod cursor;
pub mod json;
pub mod keys;
pub mod metrics;
mod places;
pub mod problem;
pub mod reads;
mod reply;
pub mod request;
mod rows;
mod scans;
pub mod shell;
mod stream;
pub mod surface;
mod trace;
