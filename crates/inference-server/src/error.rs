//! What a request is answered with when it fails, in the shape of the API that it came by.

use axum::{
    body::Body,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use inference_core::Error;
use serde_json::{Value, json};

/// A failed request. As a response it has no body yet: [`Dialect::body`] writes it in the shape that the client expects.
#[derive(Debug, Clone)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    /// A short stable name of the failure: `context_length_exceeded`, `model_not_found`.
    pub(crate) code: &'static str,
    pub(crate) message: String,
    /// The field at fault, as a path: `messages[0].content`.
    pub(crate) param: Option<String>,
    /// Seconds after which another try makes sense.
    pub(crate) retry_after: Option<u64>,
}

pub(crate) type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), param: None, retry_after: None }
    }

    /// A field has a value that cannot be right.
    pub(crate) fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_value", message).with_param(param)
    }

    /// A field asks for what this server does not do, and would have to ignore.
    pub(crate) fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "unsupported", message).with_param(param)
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    /// The request ran into its deadline.
    pub(crate) fn timed_out() -> Self {
        let message = "the request took longer than the server allows";
        Self::new(StatusCode::GATEWAY_TIMEOUT, "timeout", message)
    }

    pub(crate) fn shutting_down() -> Self {
        let message = "the server is shutting down";
        Self { retry_after: Some(5), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "shutting_down", message) }
    }

    #[must_use]
    pub(crate) fn with_param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    /// An error of the library, where the field at fault has the name that this API gives it.
    pub(crate) fn of_request(error: &Error, prompt: &str) -> Self {
        let api = Self::from(error);
        match error {
            Error::InvalidPrompt { .. } | Error::Template { .. } | Error::ContextExceeded { .. } => {
                api.with_param(prompt)
            }
            _ => api,
        }
    }
}

impl From<&Error> for ApiError {
    fn from(error: &Error) -> Self {
        let status = match error {
            Error::InvalidOption { .. }
            | Error::InvalidPrompt { .. }
            | Error::ContextExceeded { .. }
            | Error::Template { .. }
            | Error::Unsupported { .. } => StatusCode::BAD_REQUEST,
            Error::OutOfMemory { .. } | Error::Closed | Error::Cancelled => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let code = match error {
            Error::ContextExceeded { .. } => "context_length_exceeded",
            other => other.kind(),
        };
        let mut message = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            message.push_str(&format!(": {cause}"));
            source = cause.source();
        }
        let api = Self::new(status, code, message);
        match error {
            Error::InvalidOption { option, .. } => api.with_param(*option),
            Error::Unsupported { feature, .. } => api.with_param(feature.name().replace('-', "_")),
            _ => api,
        }
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        Self::from(&error)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = self.status;
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.extensions_mut().insert(self);
        response
    }
}

/// Whose shape errors have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    OpenAi,
    Anthropic,
}

impl Dialect {
    /// The dialect of the API at this path.
    pub(crate) fn of(path: &str) -> Self {
        if path.starts_with("/v1/messages") { Self::Anthropic } else { Self::OpenAi }
    }

    pub(crate) fn body(self, error: &ApiError) -> Value {
        let ApiError { status, code, message, param, .. } = error;
        match self {
            Self::OpenAi => {
                let kind = match status.as_u16() {
                    401 => "authentication_error",
                    403 => "permission_error",
                    429 => "rate_limit_error",
                    400..=499 => "invalid_request_error",
                    _ => "server_error",
                };
                json!({"error": {"message": message, "type": kind, "param": param, "code": code}})
            }
            Self::Anthropic => {
                let kind = match status.as_u16() {
                    401 => "authentication_error",
                    403 => "permission_error",
                    404 => "not_found_error",
                    413 => "request_too_large",
                    429 => "rate_limit_error",
                    400..=499 => "invalid_request_error",
                    503 => "overloaded_error",
                    504 => "timeout_error",
                    _ => "api_error",
                };
                // This shape has no place for the field but the message.
                let message = match param {
                    Some(param) => format!("{param}: {message}"),
                    None => message.clone(),
                };
                json!({"type": "error", "error": {"type": kind, "message": message}})
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_dialect_has_its_shape() {
        let error = ApiError::invalid("top_p", "2, expected up to 1");
        let expected = json!({"error": {
            "message": "2, expected up to 1", "type": "invalid_request_error", "param": "top_p", "code": "invalid_value",
        }});
        assert_eq!(Dialect::of("/v1/chat/completions").body(&error), expected);
        let expected = json!({"type": "error", "error": {
            "type": "invalid_request_error", "message": "top_p: 2, expected up to 1",
        }});
        assert_eq!(Dialect::of("/v1/messages/count_tokens").body(&error), expected);
    }

    #[test]
    fn errors_of_the_library_say_whose_fault_they_are() {
        let api = ApiError::of_request(&Error::context_exceeded(9, 3), "messages");
        assert_eq!((api.status.as_u16(), api.code), (400, "context_length_exceeded"));
        assert_eq!(api.param.as_deref(), Some("messages"));
        let api = ApiError::from(Error::io("read", "m", std::io::Error::other("disk on fire")));
        assert_eq!((api.status.as_u16(), api.message.as_str()), (500, "cannot read m: disk on fire"));
    }
}
