//! From prompts to ids and back: what every backend does with the text files of a model's folder.

use std::{path::Path, sync::Arc, thread, time::Instant};

use futures::future::{Either, select};
use inference_core::{
    CancellationToken, ClassifyOptions, Error, GenerateOptions, Message, ModelInfo, Prompt, Result,
    TemplateOptions, TokenStream,
    backend::{ModelFiles, ResponseWriter, SharedStats, spawn_blocking},
};

use crate::{
    AnswerFormat, AnswerParser, ChatOutputParser, ChatTemplate, EncodeLimits, ThinkingBudget, Tokenizer,
    constraint::Compiler,
};

/// Tokens of a prompt's end that tell whether its answer begins within reasoning: a delimiter and white space.
const PROMPT_END: usize = 16;

/// Prompts that are worth a thread.
const PROMPTS_EACH: usize = 32;

/// A prompt that is this many times as long as the context is refused without counting all of its tokens.
const COUNTED_CONTEXTS: usize = 4;
/// Tokens that are counted in any case.
const COUNTED_TOKENS: usize = 64 << 10;

/// A model folder's text side: its tokenizer, its chat template where it has one, and how its answers are written. A clone
/// shares all of it.
#[derive(Debug, Clone)]
pub struct TextPipeline(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    supports_tools: bool,
    format: Arc<AnswerFormat>,
    /// The ids of the delimiter that ends reasoning, where the family has one.
    thinking_end: Option<Arc<[u32]>>,
    compiler: Compiler,
}

/// A prompt that is ready for an engine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Prepared {
    /// Its ids: at least one, all within the model's vocabulary.
    pub ids: Vec<u32>,
    /// Whether its answer begins within reasoning.
    pub starts_in_reasoning: bool,
}

/// What a prompt has to fit, and when its preparation stops.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PromptLimits {
    /// Ids that the model has.
    pub vocab_size: usize,
    /// Tokens of prompt and answer together.
    pub context_length: usize,
    /// Tokens that have to fit the context behind the prompt.
    pub reserved: usize,
    /// The caller's wish to stop.
    pub cancel: CancellationToken,
}

impl PromptLimits {
    /// The limits of a model, with room for `reserved` tokens behind the prompt.
    #[must_use]
    pub fn new(model: &ModelInfo, reserved: usize) -> Self {
        let (vocab_size, context_length) = (model.vocab_size, model.context_length);
        Self { vocab_size, context_length, reserved, cancel: CancellationToken::new() }
    }

    /// The limits of a model for prompts that need not fit its context.
    #[must_use]
    pub fn without_context(model: &ModelInfo) -> Self {
        Self { context_length: usize::MAX, ..Self::new(model, 0) }
    }

    /// The same limits, with this token of the caller's.
    #[must_use]
    pub fn with_cancel(self, cancel: CancellationToken) -> Self {
        Self { cancel, ..self }
    }

    /// The same limits, with room for so many tokens behind the prompt.
    #[must_use]
    pub fn with_reserved(self, reserved: usize) -> Self {
        Self { reserved, ..self }
    }

    fn encode_limits(&self) -> EncodeLimits {
        let counted = self.context_length.saturating_mul(COUNTED_CONTEXTS).saturating_add(COUNTED_TOKENS);
        EncodeLimits { max_tokens: counted, cancel: self.cancel.clone() }
    }
}

impl TextPipeline {
    /// Reads the tokenizer and chat template of a model's folder or GGUF file.
    ///
    /// # Errors
    /// As [`Tokenizer::load`] and [`ChatTemplate::load`].
    pub fn load(path: &Path) -> Result<Self> {
        let files = ModelFiles::open(path)?;
        let tokenizer = Tokenizer::from_files(&files)?;
        let template = ChatTemplate::from_files(&files, tokenizer.special_tokens())?;
        let sources: Vec<&str> = template.iter().flat_map(ChatTemplate::sources).collect();
        let sources = sources.concat();
        let format = AnswerFormat::from_template(&sources)?;
        let thinking_end = format.thinking_end().map(|text| tokenizer.encode(text, false)).transpose()?;
        Ok(Self(Arc::new(Inner {
            tokenizer,
            template,
            supports_tools: sources.contains("tools"),
            format: Arc::new(format),
            thinking_end: thinking_end.map(Into::into),
            compiler: Compiler::default(),
        })))
    }

    /// The tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.0.tokenizer
    }

    pub(crate) fn compiler(&self) -> &Compiler {
        &self.0.compiler
    }

    pub(crate) fn format(&self) -> &AnswerFormat {
        &self.0.format
    }

    /// Whether the chat template writes the definitions of tools.
    #[must_use]
    pub fn supports_tools(&self) -> bool {
        self.0.supports_tools
    }

    /// Whether the model's family has delimiters for reasoning.
    #[must_use]
    pub fn has_reasoning(&self) -> bool {
        self.0.format.has_reasoning()
    }

    /// Refuses options that would have no effect on this model.
    ///
    /// # Errors
    /// [`Error::InvalidOption`]: tools for a chat template that writes none; a limit on reasoning for a family without.
    pub fn check_options(&self, prompt: &Prompt, options: &GenerateOptions) -> Result<()> {
        if let Prompt::Chat(_) = prompt {
            self.check_template_options(&options.template)?;
        }
        if options.thinking_budget.is_some() && !self.has_reasoning() {
            let reason = "the model's chat template marks no reasoning, so there is none to limit".to_owned();
            return Err(Error::invalid_option("thinking_budget", reason));
        }
        Ok(())
    }

    fn check_template_options(&self, template: &TemplateOptions) -> Result<()> {
        let tools = template.tools.as_deref().is_some_and(|tools| !tools.is_empty());
        if tools && self.0.template.is_some() && !self.supports_tools() {
            let reason = "the model's chat template does not write the definitions of tools".to_owned();
            return Err(Error::invalid_option("tools", reason));
        }
        Ok(())
    }

    /// Prepares a prompt on a thread of its own: templates and tokenizers compute for as long as a second, and no executor
    /// waits for them. The caller's cancellation ends it, and so does dropping the future.
    ///
    /// # Errors
    /// As [`prepare_blocking`](Self::prepare_blocking); [`Error::Cancelled`].
    pub async fn prepare(
        &self,
        prompt: Prompt,
        template: &TemplateOptions,
        limits: PromptLimits,
    ) -> Result<Prepared> {
        if let Prompt::Tokens(_) = prompt {
            return self.prepare_blocking(prompt, template, &limits);
        }
        let template = template.clone();
        self.run(limits, move |text, limits| text.prepare_blocking(prompt, &template, &limits)).await
    }

    /// [`prepare`](Self::prepare) for each of the prompts, on as many threads as the machine has where there are enough of
    /// them.
    ///
    /// # Errors
    /// Those of the first prompt that has any.
    pub async fn prepare_all(
        &self,
        prompts: Vec<Prompt>,
        template: &TemplateOptions,
        limits: PromptLimits,
    ) -> Result<Vec<Prepared>> {
        let template = template.clone();
        self.run(limits, move |text, limits| text.prepare_each(prompts, &template, &limits)).await
    }

    /// Runs work that computes for long off the caller's executor, until it is done or cancelled.
    ///
    /// # Errors
    /// The work's; [`Error::Cancelled`].
    pub async fn run<T: Send + 'static>(
        &self,
        limits: PromptLimits,
        work: impl FnOnce(&Self, PromptLimits) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let cancel = limits.cancel.child_token();
        // Whoever stops waiting stops the work, too.
        let _guard = cancel.clone().drop_guard();
        let limits = limits.with_cancel(cancel.clone());
        let text = self.clone();
        let work = std::pin::pin!(spawn_blocking(move || work(&text, limits)));
        match select(work, std::pin::pin!(cancel.cancelled())).await {
            Either::Left((result, _)) => result,
            Either::Right(_) => Err(Error::Cancelled),
        }
    }

    /// Prepares a prompt on this thread.
    ///
    /// # Errors
    /// [`Error::InvalidPrompt`], [`Error::ContextExceeded`], and [`Error::Template`] for a conversation that the template
    /// refuses or that there is no template for; [`Error::InvalidOption`] for tools that the template does not write.
    pub fn prepare_blocking(
        &self,
        prompt: Prompt,
        template: &TemplateOptions,
        limits: &PromptLimits,
    ) -> Result<Prepared> {
        let (ids, starts_in_reasoning) = match prompt {
            Prompt::Tokens(ids) => {
                let end = self.tokenizer().decode(&ids[ids.len().saturating_sub(PROMPT_END)..], false);
                (ids, self.0.format.opens_reasoning(&end))
            }
            Prompt::Text(text) => {
                let ids = self.encode(&text, true, limits)?;
                (ids, self.0.format.opens_reasoning(&text))
            }
            Prompt::Chat(messages) => {
                self.check_template_options(template)?;
                let text = self.render(&messages, template, true, &limits.cancel)?;
                let ids = self.encode(&text, false, limits)?;
                (ids, self.0.format.opens_reasoning(&text))
            }
            other => {
                let reason = format!("{other:?} is of a kind that this backend does not know");
                return Err(Error::invalid_prompt(reason));
            }
        };
        check_ids(&ids, limits)?;
        Ok(Prepared { ids, starts_in_reasoning })
    }

    fn prepare_each(
        &self,
        prompts: Vec<Prompt>,
        template: &TemplateOptions,
        limits: &PromptLimits,
    ) -> Result<Vec<Prepared>> {
        on_threads(prompts, |prompt| self.prepare_blocking(prompt, template, limits))
    }

    /// The text of a conversation, up to where the assistant begins to speak if `add_generation_prompt`.
    fn render(
        &self,
        messages: &[Message],
        template: &TemplateOptions,
        add_generation_prompt: bool,
        cancel: &CancellationToken,
    ) -> Result<String> {
        let Some(chat) = &self.0.template else {
            let reason = "the model's folder has no chat template; use a text prompt".to_owned();
            return Err(Error::template(reason));
        };
        chat.with_cancel(cancel.clone()).render(messages, template, add_generation_prompt)
    }

    /// The ids of a conversation, of any length.
    pub(crate) fn encode_chat(
        &self,
        messages: &[Message],
        template: &TemplateOptions,
        add_generation_prompt: bool,
        limits: &EncodeLimits,
    ) -> Result<Vec<u32>> {
        let text = self.render(messages, template, add_generation_prompt, &limits.cancel)?;
        self.tokenizer().encode_within(&text, false, limits)
    }

    /// The ids of a text that another goes on with: without the special tokens that begin one.
    ///
    /// # Errors
    /// As [`prepare`](Self::prepare).
    pub async fn encode_more(&self, text: String, limits: PromptLimits) -> Result<Vec<u32>> {
        self.run(limits, move |pipeline, limits| pipeline.encode(&text, false, &limits)).await
    }

    /// The labels' ids, none of them empty.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] names a label without tokens; else as [`prepare`](Self::prepare).
    pub async fn encode_labels(
        &self,
        options: &ClassifyOptions,
        limits: PromptLimits,
    ) -> Result<Vec<Vec<u32>>> {
        let Some(labels) = options.labels.clone() else { return Ok(Vec::new()) };
        let encode = |text: &Self, label: &String, limits: &PromptLimits| {
            let tokens = text.encode(label, false, limits)?;
            if tokens.is_empty() {
                let reason = format!("{label:?} has no tokens");
                return Err(Error::invalid_option("labels", reason));
            }
            Ok(tokens)
        };
        let each = move |text: &Self, limits: PromptLimits| {
            labels.iter().map(|label| encode(text, label, &limits)).collect()
        };
        self.run(limits, each).await
    }

    /// The ids of a text; an error names the model's context, not the count at which we gave up.
    pub(crate) fn encode(&self, text: &str, add_special: bool, limits: &PromptLimits) -> Result<Vec<u32>> {
        self.tokenizer().encode_within(text, add_special, &limits.encode_limits()).map_err(
            |error| match error {
                Error::ContextExceeded { tokens, .. } => {
                    Error::context_exceeded(tokens, limits.context_length)
                }
                other => other,
            },
        )
    }

    /// The writer of the answer to this prompt, and the caller's stream, which tells reasoning and tool calls apart.
    ///
    /// # Errors
    /// As [`ResponseWriter::channel`].
    pub fn response(
        &self,
        model: &ModelInfo,
        stats: &SharedStats,
        prompt: &Prepared,
        options: &GenerateOptions,
        called: Instant,
    ) -> Result<(ResponseWriter, TokenStream)> {
        let detokenizer = self.tokenizer().detokenizer(true);
        let (writer, stream) =
            ResponseWriter::channel(model, stats, detokenizer, options, prompt.ids.len(), called)?;
        Ok((writer, stream.with_parser(self.output_parser(prompt, options))))
    }

    /// The parser that separates reasoning and tool calls from the text of the answer to this prompt.
    #[must_use]
    pub fn output_parser(&self, prompt: &Prepared, options: &GenerateOptions) -> ChatOutputParser {
        ChatOutputParser::new(self.parser(prompt, options), self.tokenizer().clone())
    }

    /// What holds the answer to this prompt to the caller's limit on reasoning; `None` where there is none.
    #[must_use]
    pub fn thinking_budget(&self, prompt: &Prepared, options: &GenerateOptions) -> Option<ThinkingBudget> {
        let (tokens, closing) = options.thinking_budget.zip(self.0.thinking_end.clone())?;
        let detokenizer = self.tokenizer().detokenizer(false);
        Some(ThinkingBudget::new(self.parser(prompt, options), detokenizer, tokens, closing))
    }

    fn parser(&self, prompt: &Prepared, options: &GenerateOptions) -> AnswerParser {
        // FNV-1a: what differs from prompt to prompt.
        let seed = prompt.ids.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, id| {
            (hash ^ u64::from(*id)).wrapping_mul(0x0100_0000_01b3)
        });
        let tools = options.template.tools.as_deref().unwrap_or_default();
        AnswerParser::new(self.0.format.clone(), prompt.starts_in_reasoning)
            .with_tools(tools)
            .with_id_seed(seed)
    }
}

/// Does this work for each of the prompts, on as many threads as the machine has where there are enough of them.
pub(crate) fn on_threads<T: Send, U: Send>(
    prompts: Vec<T>,
    work: impl Fn(T) -> Result<U> + Sync,
) -> Result<Vec<U>> {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let each = prompts.len().div_ceil(threads).max(PROMPTS_EACH);
    if prompts.len() <= each {
        return prompts.into_iter().map(work).collect();
    }
    let mut prompts = prompts.into_iter();
    let parts: Vec<Vec<T>> = std::iter::from_fn(|| Some(prompts.by_ref().take(each).collect::<Vec<_>>()))
        .take_while(|part| !part.is_empty())
        .collect();
    let work = &work;
    thread::scope(|scope| {
        let run = |part: Vec<T>| scope.spawn(move || part.into_iter().map(work).collect::<Result<Vec<U>>>());
        let parts: Vec<_> = parts.into_iter().map(run).collect();
        let stopped = |_| {
            let reason = "a thread that prepares prompts panicked".to_owned();
            Err(Error::stopped("inference", reason))
        };
        let parts = parts.into_iter().map(|part| part.join().unwrap_or_else(stopped));
        Ok(parts.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    })
}

/// Engines look ids up unchecked.
pub(crate) fn check_ids(ids: &[u32], limits: &PromptLimits) -> Result<()> {
    if ids.is_empty() {
        return Err(Error::invalid_prompt("it is empty"));
    }
    if let Some(id) = ids.iter().find(|id| **id as usize >= limits.vocab_size) {
        let reason = format!("token {id} is outside the vocabulary of {}", limits.vocab_size);
        return Err(Error::invalid_prompt(reason));
    }
    if ids.len().saturating_add(limits.reserved) > limits.context_length {
        return Err(Error::context_exceeded(ids.len(), limits.context_length));
    }
    Ok(())
}
