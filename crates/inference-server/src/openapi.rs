//! `/openapi.json`: the API, for programs.

use axum::Json as Body;
use utoipa::OpenApi;

#[derive(Debug, OpenApi)]
#[openapi(
    info(title = "inference", description = "Language models over OpenAI's and Anthropic's APIs"),
    paths(
        crate::openai::chat::chat,
        crate::openai::completions::complete,
        crate::embeddings::embeddings,
        crate::embeddings::rerank,
        crate::embeddings::tei_embed,
        crate::embeddings::tei_rerank,
        crate::openai::models::list,
        crate::openai::models::get,
        crate::responses::create,
        crate::responses::get,
        crate::responses::delete,
        crate::anthropic::create,
        crate::anthropic::count_tokens,
        crate::tokens::tokenize,
        crate::tokens::detokenize,
        crate::tokens::apply_template,
        crate::operations::health,
        crate::operations::metrics,
    )
)]
struct Api;

/// The description of the API.
pub(crate) async fn openapi() -> Body<utoipa::openapi::OpenApi> {
    Body(Api::openapi())
}
