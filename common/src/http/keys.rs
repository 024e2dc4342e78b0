//! Keys in paths: `/v1/kv/{key}` and `/v1/kv64/{base64url of the key}`.
//!
//! **Invariants**
//! - The key is the *raw* path after the prefix, percent-decoded once: slashes included, `+` is
//!   `+`, nothing is normalised. (axum's `Path` would decode to UTF-8 text and lose keys.)
//! - A key with a `.` or `..` segment is refused in the first form, escaped dots included:
//!   clients and proxies rewrite such paths, so it would reach us as another key.
//! - The second form takes every key.

use axum::extract::FromRequestParts;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::request::Parts;

use super::problem::{Code, Problem};
use crate::limits::KEY_BYTES_MAX;

/// Every route of a single key; the two without a key answer `invalid_key`.
pub const ROUTES: [&str; 4] = ["/v1/kv/", "/v1/kv/{*key}", "/v1/kv64/", "/v1/kv64/{*key}"];

const PLAIN: &str = "/v1/kv/";
const BASE64: &str = "/v1/kv64/";

/// The key that a request's path names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key(pub Bytes);

impl Key {
    /// The key that this raw path names.
    ///
    /// # Errors
    /// `invalid_key`; `no_route` for a path of neither form.
    pub fn of_path(path: &str) -> Result<Self, Problem> {
        let key = if let Some(raw) = path.strip_prefix(PLAIN) {
            let key = percent_decode(raw.as_bytes())
                .map_err(|what| invalid(format!("{what} (in the path of a key)")))?;
            refuse_dot_segments(&key)?;
            key
        } else if let Some(raw) = path.strip_prefix(BASE64) {
            let wrong = |_| invalid("the path is not base64url without padding".into());
            URL_SAFE_NO_PAD.decode(raw).map_err(wrong)?
        } else {
            return Err(Problem::new(Code::NoRoute, format!("{path} names no key")));
        };
        check(&key)?;
        Ok(Self(key.into()))
    }

    /// A path that names this key in the form that survives every client and proxy.
    pub fn to_path(key: &[u8]) -> String {
        format!("{BASE64}{}", URL_SAFE_NO_PAD.encode(key))
    }
}

impl<S: Sync> FromRequestParts<S> for Key {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Problem> {
        Self::of_path(parts.uri.path())
    }
}

/// Whether the bytes can be a key.
///
/// # Errors
/// `invalid_key` where they are empty or too many.
pub fn check(key: &[u8]) -> Result<(), Problem> {
    match key.len() {
        0 => Err(invalid("a key has at least one byte".into())),
        1..=KEY_BYTES_MAX => Ok(()),
        bytes => Err(invalid(format!("a key of {bytes} bytes is above {KEY_BYTES_MAX}"))),
    }
}

/// Every `%xx` as its byte, everything else as it stands.
pub(super) fn percent_decode(raw: &[u8]) -> Result<Vec<u8>, String> {
    let digit = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let mut bytes = Vec::with_capacity(raw.len());
    let mut rest = raw.iter();
    while let Some(byte) = rest.next() {
        if *byte != b'%' {
            bytes.push(*byte);
            continue;
        }
        match (digit(rest.next()), digit(rest.next())) {
            (Some(high), Some(low)) => bytes.extend(u8::try_from(high * 16 + low)),
            _ => return Err("a % is not followed by two hex digits".into()),
        }
    }
    Ok(bytes)
}

fn refuse_dot_segments(key: &[u8]) -> Result<(), Problem> {
    let is_dots = |segment: &[u8]| segment == b"." || segment == b"..";
    if key.split(|byte| *byte == b'/').any(is_dots) {
        let detail = "clients and proxies rewrite the segments . and ..";
        return Err(invalid(format!("{detail}; use {} instead", Key::to_path(key))));
    }
    Ok(())
}

fn invalid(detail: String) -> Problem {
    Problem::new(Code::InvalidKey, detail)
}

#[cfg(test)]
mod tests {
    use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
    use proptest::prelude::*;

    use super::*;

    /// What a careful client leaves as it is.
    const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'_');

    fn key(path: &str) -> Vec<u8> {
        Key::of_path(path).unwrap().0.to_vec()
    }

    #[test]
    fn the_raw_path_is_decoded_once_and_nothing_is_normalised() {
        assert_eq!(key("/v1/kv/users/42"), b"users/42");
        assert_eq!(key("/v1/kv//a//b/"), b"/a//b/");
        assert_eq!(key("/v1/kv/a+b%20c"), b"a+b c");
        assert_eq!(key("/v1/kv/%2541"), b"%41");
        assert_eq!(key("/v1/kv/a%2Fb"), b"a/b");
        assert_eq!(key("/v1/kv/%ff%00"), [0xff, 0]);
        assert_eq!(key("/v1/kv/..."), b"...");
        assert_eq!(key("/v1/kv/.a/b."), b".a/b.");
    }

    #[test]
    fn dot_segments_are_refused_with_the_form_that_works() {
        for path in ["/v1/kv/.", "/v1/kv/a/../b", "/v1/kv/%2e%2E", "/v1/kv/a%2f.%2fb", "/v1/kv/a/."]
        {
            let problem = Key::of_path(path).unwrap_err();
            assert_eq!(problem.code, Code::InvalidKey, "{path}");
            let (_, other) = problem.detail.split_once("use ").unwrap();
            let other = other.split(' ').next().unwrap();
            let decoded = percent_decode(path.strip_prefix(PLAIN).unwrap().as_bytes()).unwrap();
            assert_eq!(key(other), decoded);
        }
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let long = format!("/v1/kv/{}", "x".repeat(KEY_BYTES_MAX + 1));
        let paths =
            ["/v1/kv/", "/v1/kv64/", "/v1/kv/%", "/v1/kv/%4", "/v1/kv/%zz", "/v1/kv64/a", &long];
        for path in paths.into_iter().chain(["/v1/kv64/YQ==", "/v1/kv64/+/8", "/v1/kv64/%59Q"]) {
            assert_eq!(Key::of_path(path).unwrap_err().code, Code::InvalidKey, "{path:.20}");
        }
        assert_eq!(key(long.strip_suffix('x').unwrap()).len(), KEY_BYTES_MAX);
    }

    proptest! {
        #[test]
        fn an_escaped_path_gives_the_key_back(bytes in prop::collection::vec(any::<u8>(), 1..64)) {
            let path = format!("/v1/kv/{}", percent_encode(&bytes, ESCAPED));
            match Key::of_path(&path) {
                Ok(found) => prop_assert_eq!(&found.0[..], &bytes[..]),
                Err(problem) => prop_assert!(problem.detail.contains("segments . and ..")),
            }
            prop_assert_eq!(key(&Key::to_path(&bytes)), bytes);
        }

        #[test]
        fn any_path_is_answered(path in "/v1/kv(64)?/[ -~]{0,40}") {
            if let Ok(found) = Key::of_path(&path) {
                prop_assert!(check(&found.0).is_ok());
            }
        }
    }
}
