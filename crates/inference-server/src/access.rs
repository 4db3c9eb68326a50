//! Who may ask.

use axum::{
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use subtle::ConstantTimeEq as _;

use crate::{error::ApiError, server::Server};

/// Lets requests through that give one of the keys, if there are any.
pub(crate) async fn require_key(State(server): State<Server>, request: Request, next: Next) -> Response {
    let keys = &server.settings().api_keys;
    if keys.is_empty() || given(request.headers()).is_some_and(|key| is_known(key, keys)) {
        return next.run(request).await;
    }
    let message = "expected one of the server's keys, as `Authorization: Bearer KEY` or `x-api-key: KEY`";
    ApiError::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message).into_response()
}

fn given(headers: &HeaderMap) -> Option<&[u8]> {
    if let Some(key) = headers.get("x-api-key") {
        return Some(key.as_bytes());
    }
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, key) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then_some(key.trim_ascii())
}

/// Compares with every key, in time that does not depend on what they have in common.
fn is_known(given: &[u8], keys: &[String]) -> bool {
    let found = keys.iter().fold(0, |found, key| found | given.ct_eq(key.as_bytes()).unwrap_u8());
    found == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_known_by_all_of_its_letters() {
        let keys = ["secret".to_owned(), "other".to_owned()];
        assert!(is_known(b"secret", &keys) && is_known(b"other", &keys));
        assert!(!is_known(b"secre", &keys) && !is_known(b"secrets", &keys) && !is_known(b"", &keys));
    }

    #[test]
    fn keys_come_in_either_header() {
        let headers = |name: &'static str, value: &'static str| {
            HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())])
        };
        let map: HeaderMap = headers("authorization", "bearer k");
        assert_eq!(given(&map), Some(&b"k"[..]));
        let map: HeaderMap = headers("x-api-key", "k");
        assert_eq!(given(&map), Some(&b"k"[..]));
        let map: HeaderMap = headers("authorization", "Basic k");
        assert_eq!(given(&map), None);
    }
}
