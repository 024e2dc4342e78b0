//! What the HTTP surfaces of the three processes share.
//!
//! **Life of a request**
//!
//! ```text
//! shell (accept, limits of the connection) -> surface (limits, deadline, metrics)
//!     -> request (headers, query, body) -> a route -> api (replies) or problem (errors)
//! ```

pub mod api;
pub mod batch;
pub mod conditions;
mod cursor;
pub mod keys;
pub mod metrics;
pub mod problem;
pub mod reads;
pub mod request;
mod scans;
pub mod shell;
pub mod surface;
