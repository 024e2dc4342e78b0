//! Every bound that users can meet, with its reason. Bounds of one module live in that module.

use std::time::Duration;

/// Longest key: fits an index entry many times over, and a URL path with every byte escaped.
pub const KEY_BYTES_MAX: usize = 16 * 1024;
/// Longest value: one WAL object holds several, and one block may hold one.
pub const VALUE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Largest batch in bytes of keys and values: what one request may pin in memory.
pub const BATCH_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Largest body of a batch: JSON and base64 around the largest batch.
pub const BATCH_BODY_BYTES_MAX: usize = 2 * BATCH_BYTES_MAX;
/// Most operations in a batch: bounds the short critical section of a write.
pub const BATCH_OPS_MAX: usize = 10_000;
/// Most keys in a multi-get.
pub const GET_KEYS_MAX: usize = 1_000;
/// Largest body of a multi-get: base64 and JSON around the most keys of the greatest length.
pub const GET_BODY_BYTES_MAX: usize = 2 * GET_KEYS_MAX * KEY_BYTES_MAX;
/// Bytes after which the reply to a multi-get takes no further entry: with the largest one, all
/// NULs, behind it, some 128 MiB.
pub const GET_REPLY_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Key bounds of SSTs are cut to this many bytes: manifests stay small whatever the keys.
pub const BOUND_BYTES_MAX: usize = 256;

/// WAL ids that a fence jumps: no window is larger, so nothing that a zombie has in flight is on
/// the chain.
pub const WAL_JUMP: u64 = 1024;
/// Seqs that a takeover jumps: the etag of a lost write is never given again.
pub const SEQ_JUMP: u64 = 1 << 24;

/// A request's deadline unless it asks for another.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest deadline that a request may ask for.
pub const REQUEST_TIMEOUT_MAX: Duration = Duration::from_mins(1);
/// Entries of a page unless the request asks for another number.
pub const SCAN_LIMIT: usize = 1_000;
/// The most entries that a page may be asked for.
pub const SCAN_LIMIT_MAX: usize = 10_000;
/// Bytes after which a page ends early, with a cursor: 10,000 large values would not fit memory.
pub const SCAN_PAGE_BYTES_MAX: usize = 32 * 1024 * 1024;
