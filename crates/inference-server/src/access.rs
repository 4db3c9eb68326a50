//! Who may ask.

use std::net::IpAddr;

use axum::{
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header, uri::Authority},
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

/// Lets requests through that were sent to a host name of this server, where the settings say which those are.
pub(crate) async fn require_host(State(server): State<Server>, request: Request, next: Next) -> Response {
    let Some(names) = &server.settings().allowed_hosts else { return next.run(request).await };
    // A browser always says which host it talks to; the target has it in HTTP/2.
    let header = request.headers().get(header::HOST).map(|host| host.to_str().unwrap_or_default());
    let target = request.uri().authority().map(Authority::as_str);
    let strange = [header, target].into_iter().flatten().find(|host| !is_own(host, names)).map(str::to_owned);
    match strange {
        None => next.run(request).await,
        Some(host) => {
            let message = format!(
                "this server is not called {host:?}; --allowed-host adds names to localhost and IP addresses"
            );
            ApiError::new(StatusCode::FORBIDDEN, "host_not_allowed", message).into_response()
        }
    }
}

/// Whether a host, perhaps with a port, is an address, `localhost`, below it, or one of these names. No name server can make an
/// address mean another machine.
fn is_own(host: &str, names: &[String]) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let name = authority.host().trim_end_matches('.').to_ascii_lowercase();
    let address = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(&name);
    address.parse::<IpAddr>().is_ok()
        || name == "localhost"
        || name.ends_with(".localhost")
        || names.iter().any(|own| own.eq_ignore_ascii_case(&name))
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
    fn a_host_is_an_address_or_a_name_of_the_servers_own() {
        let own = |host: &str| is_own(host, &["models.example".to_owned()]);
        for host in [
            "localhost",
            "LOCALHOST:80",
            "a.localhost",
            "127.0.0.1:8080",
            "[::1]:80",
            "10.0.0.7",
            "models.example:1",
        ] {
            assert!(own(host), "{host}");
        }
        for host in
            ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "evil-localhost", "", "a b"]
        {
            assert!(!own(host), "{host}");
        }
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
