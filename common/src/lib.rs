//! What the writer, the readers, the compactor and the `cairn` command share.
//!
//! **Layers**, each importing only leftwards:
//!
//! ```text
//! types  <-  lsm             <-  format         <-  store            <-  read, http
//!            (what entries       (what bytes        (where bytes         (what requests
//!             mean)               mean)              are)                 ask)
//! pure       pure                pure               async IO
//! ```

pub mod address;
pub mod build;
pub mod clock;
pub mod config;
pub mod env;
pub mod error;
pub mod faults;
pub mod format;
pub mod http;
pub mod limits;
pub mod lsm;
pub mod pool;
pub mod process;
pub mod read;
pub mod store;
pub mod types;

pub use error::{Error, Result};
