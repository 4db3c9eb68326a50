//! Requests as JSON: read with the path of what is wrong, and nothing ignored.

use axum::{
    body::Bytes,
    extract::{FromRequest, Request, rejection::BytesRejection},
    http::{StatusCode, header},
};
use serde::de::DeserializeOwned;
use tower_http::timeout::TimeoutError;

use crate::error::{ApiError, ApiResult};

/// A request's body. Unlike axum's own it answers in the API's shape and names the field.
#[derive(Debug)]
pub(crate) struct Json<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> ApiResult<Self> {
        let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        let kind = kind.and_then(|kind| kind.split(';').next()).unwrap_or_default().trim();
        // A page of another site can send plain text to a local server, but no JSON unless CORS allows it.
        if !kind.eq_ignore_ascii_case("application/json") {
            let message = format!("the content type is {kind:?}, expected \"application/json\"");
            return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message));
        }
        let body = Bytes::from_request(request, state).await.map_err(|rejection| unread(&rejection))?;
        parse(&body).map(Self)
    }
}

/// Why a body did not arrive.
fn unread(rejection: &BytesRejection) -> ApiError {
    let mut cause: Option<&dyn std::error::Error> = Some(rejection);
    while let Some(error) = cause {
        if error.is::<TimeoutError>() {
            let message = "the client sent nothing for too long before the body was complete";
            return ApiError::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", message);
        }
        cause = error.source();
    }
    let code = if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE { "too_large" } else { "unreadable" };
    ApiError::new(rejection.status(), code, rejection.body_text())
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> ApiResult<T> {
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let parsed = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let message = error.into_inner().to_string();
        // The position in a body that a program wrote helps nobody.
        let message = message.split(" at line ").next().unwrap_or_default().to_owned();
        let unknown = message.strip_prefix("unknown field `").and_then(|rest| rest.split('`').next());
        let prefix = if path == "." { String::new() } else { path.clone() };
        match unknown {
            Some(field) if prefix.ends_with(field) || prefix.is_empty() => {
                let param = if prefix.is_empty() { field.to_owned() } else { prefix };
                ApiError::unsupported(param, format!("`{field}` is no field that this server knows"))
            }
            Some(field) => {
                let message = format!("`{field}` is no field that this server knows");
                ApiError::unsupported(format!("{prefix}.{field}"), message)
            }
            None if prefix.is_empty() => ApiError::new(StatusCode::BAD_REQUEST, "invalid_json", message),
            None => ApiError::invalid(prefix, message),
        }
    })?;
    deserializer.end().map_err(|error| {
        ApiError::new(StatusCode::BAD_REQUEST, "invalid_json", format!("behind the object: {error}"))
    })?;
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Outer {
        #[serde(rename = "inner")]
        _inner: Inner,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        #[serde(rename = "number")]
        _number: u8,
    }

    #[test]
    fn what_is_wrong_has_a_path() {
        let wrong = |text: &str| {
            let error = parse::<Outer>(text.as_bytes()).unwrap_err();
            (error.param.unwrap_or_default(), error.message)
        };
        assert_eq!(wrong(r#"{"inner":{"numbr":1}}"#).0, "inner.numbr");
        assert_eq!(wrong(r#"{"temprature":1}"#).0, "temprature");
        assert_eq!(wrong(r#"{"inner":{"number":"x"}}"#).0, "inner.number");
        assert!(wrong(r#"{"inner":{"number":300}}"#).1.contains("expected u8"));
        assert!(wrong("{").1.contains("EOF"));
        assert!(wrong(r#"{"inner":{"number":1}} {}"#).1.contains("behind"));
    }
}
