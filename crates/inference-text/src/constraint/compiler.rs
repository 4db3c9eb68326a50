//! Grammars, compiled once and kept: work and memory are bounded.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use inference_core::{ConstraintState, Result, TokenMask, backend::ConstraintRun};
use llguidance::{
    Matcher, ParserFactory, TokenParser,
    api::{GrammarWithLexer, TopLevelGrammar},
    earley::SlicedBiasComputer,
    toktrie::InferenceCapabilities,
};
use lru::LruCache;

use super::{
    gate::Family,
    grammar::{Grammar, Source},
    invalid::invalid,
    trie::{Tokens, environment},
};
use crate::{AnswerFormat, Tokenizer};

/// Bytes that compiled grammars take at most, the newest aside.
const MAX_CACHE_BYTES: usize = 64 << 20;

/// Compiled grammars that are kept at most.
const MAX_CACHED: usize = 256;

/// States of a grammar's lexer at most, of one or two KB each.
const MAX_LEXER_STATES: usize = 32_000;

/// Bytes of the stack that grammars are compiled on: their compiler is recursive.
const STACK: usize = 32 << 20;

/// Characters of a message of llguidance's that are passed on.
const MAX_MESSAGE: usize = 400;

/// A model's grammars. What it needs of the tokenizer is worked out at the first use.
#[derive(Default)]
pub(crate) struct Compiler(OnceLock<std::result::Result<Grammars, String>>);

/// What was worked out of a model's tokens, and the grammars that were compiled for them.
pub(super) struct Grammars {
    pub(super) tokens: Arc<Tokens>,
    /// Its family's reasoning, where that has some.
    pub(super) family: Option<Arc<Family>>,
    factory: ParserFactory,
    /// Held while a grammar is compiled: one at a time.
    cache: Mutex<LruCache<Grammar, Compiled>>,
}

#[derive(Clone)]
struct Compiled {
    parser: TokenParser,
    source_bytes: usize,
}

impl fmt::Debug for Compiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Compiler")
    }
}

impl Compiler {
    /// # Errors
    /// The vocabulary cannot be used.
    pub(super) fn grammars(&self, tokenizer: &Tokenizer, format: &AnswerFormat) -> Result<&Grammars> {
        let build = || {
            let built = catch_unwind(AssertUnwindSafe(|| Grammars::new(tokenizer, format)));
            built.unwrap_or_else(|_| Err("the vocabulary cannot be searched".to_owned()))
        };
        self.0.get_or_init(build).as_ref().map_err(|reason| invalid(reason.clone()))
    }
}

impl Grammars {
    fn new(tokenizer: &Tokenizer, format: &AnswerFormat) -> std::result::Result<Self, String> {
        let tokens = Tokens::new(tokenizer)?;
        let slices = SlicedBiasComputer::json_slices();
        let mut factory =
            ParserFactory::new(&environment(&tokens), InferenceCapabilities::default(), &slices)
                .map_err(|error| first_line(&error.to_string()))?;
        factory.quiet();
        let limits = factory.limits_mut();
        limits.max_lexer_states = MAX_LEXER_STATES;
        limits.verbose_errors = false;
        let family = Family::new(format, &tokens).map(Arc::new);
        Ok(Self { tokens, family, factory, cache: Mutex::new(LruCache::unbounded()) })
    }

    /// The state of a text of this grammar, before its first token.
    ///
    /// # Errors
    /// It cannot be compiled within the limits.
    pub(super) fn start(&self, grammar: Grammar, vocab_size: usize) -> Result<ConstraintRun> {
        let mut cache = lock(&self.cache);
        let parser = match cache.get(&grammar) {
            Some(compiled) => compiled.parser.clone(),
            None => {
                let parser = compile(&self.factory, &grammar)?;
                let compiled = Compiled { parser: parser.clone(), source_bytes: grammar.bytes() };
                cache.put(grammar, compiled);
                evict(&mut cache);
                parser
            }
        };
        let state = GrammarState { matcher: Matcher::new(Ok(parser)), behind: 0 };
        Ok(ConstraintRun::new(Box::new(state), vocab_size))
    }
}

/// Lets go of the grammars that were not used for longest, until the rest fits. The newest always stays.
fn evict(cache: &mut LruCache<Grammar, Compiled>) {
    let bytes = |compiled: &Compiled| {
        // The lexer of a grammar grows while it is used. Its lock is poisoned where a request's matcher has panicked.
        let lexer = catch_unwind(AssertUnwindSafe(|| compiled.parser.parser.lexer_stats().num_bytes));
        lexer.map_or(usize::MAX, |lexer| lexer.saturating_add(compiled.source_bytes.saturating_mul(8)))
    };
    let mut total = 0_usize;
    let mut kept = 0;
    for (_, compiled) in cache.iter() {
        total = total.saturating_add(bytes(compiled));
        if kept > 0 && (total > MAX_CACHE_BYTES || kept == MAX_CACHED) {
            break;
        }
        kept += 1;
    }
    while cache.len() > kept {
        cache.pop_lru();
    }
}

fn compile(factory: &ParserFactory, grammar: &Grammar) -> Result<TokenParser> {
    let grammars = grammar.parts().map(|(name, source)| {
        let mut part = match source {
            Source::Lark(text) => GrammarWithLexer::from_lark(text.clone()),
            Source::Regex(text) => GrammarWithLexer::from_regex(text),
            Source::JsonSchema(text) => {
                let schema = serde_json::from_str(text).map_err(|error| invalid(error.to_string()))?;
                GrammarWithLexer::from_json_schema(schema)
            }
        };
        part.name = Some(name.to_owned());
        Ok(part)
    });
    let grammars: Vec<GrammarWithLexer> = grammars.collect::<Result<_>>()?;
    let top = TopLevelGrammar { grammars, max_tokens: None };
    let compiled = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("inference-grammar".to_owned()).stack_size(STACK);
        let thread =
            thread.spawn_scoped(scope, || factory.create_parser(top).map_err(|error| error.to_string()));
        thread
            .map_err(|error| error.to_string())
            .and_then(|thread| thread.join().unwrap_or_else(|_| Err("its compiler panicked".to_owned())))
    });
    compiled.map_err(|message| invalid(format!("{}: {}", grammar.kind(), explain(&message))))
}

/// What llguidance says, in the words of this crate where it speaks of its own options.
fn explain(message: &str) -> String {
    if message.contains("oneOf constraints are not supported") {
        return "`oneOf` cannot be held to where two of its schemas may have a value in common; use `anyOf`"
            .to_owned();
    }
    if let Some(keys) = message.split("Unimplemented keys: ").nth(1) {
        let keys = keys.split(']').next().unwrap_or(keys).trim_start_matches('[').replace('"', "`");
        return format!("{keys} cannot be held to");
    }
    first_line(message)
}

fn first_line(message: &str) -> String {
    let message = message.strip_prefix("panic: ").unwrap_or(message);
    let lines: Vec<&str> = message.lines().map(str::trim).take_while(|line| !line.starts_with('<')).collect();
    lines.join(" ").chars().take(MAX_MESSAGE).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A text of a grammar.
struct GrammarState {
    matcher: Matcher,
    /// Tokens behind the end, of an engine that had begun them before it saw the end.
    behind: usize,
}

impl ConstraintState for GrammarState {
    fn mask(&mut self, mask: &mut TokenMask) -> std::result::Result<(), String> {
        let allowed = self.matcher.compute_mask_or_eos().map_err(|error| too_complex(&error.to_string()))?;
        mask.allow_words(allowed.as_slice());
        Ok(())
    }

    fn accept(&mut self, id: u32) -> std::result::Result<(), String> {
        if self.matcher.is_stopped() && !self.matcher.is_error() {
            self.behind += 1;
            return Ok(());
        }
        self.matcher.consume_token(id).map_err(|error| too_complex(&error.to_string()))
    }

    fn rollback(&mut self, tokens: usize) -> std::result::Result<(), String> {
        let behind = tokens.min(self.behind);
        self.behind -= behind;
        self.matcher.rollback(tokens - behind).map_err(|error| first_line(&error.to_string()))
    }
}

fn too_complex(message: &str) -> String {
    format!("the grammar is too complex, or left: {}", first_line(message))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use inference_core::{Constraint, Error};

    use super::*;
    use crate::TextPipeline;

    #[test]
    fn a_grammar_is_compiled_once_and_a_wrong_one_is_refused_again() {
        let demo = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/demo"));
        let text = TextPipeline::load(demo).unwrap();
        let grammars = Grammars::new(text.tokenizer(), text.format()).unwrap();
        let regex = |text: &str| Grammar::of(&Constraint::regex(text)).unwrap();
        let kept = || lock(&grammars.cache).iter().map(|(grammar, _)| grammar.clone()).collect::<Vec<_>>();
        let vocab_size = text.tokenizer().vocab_size();
        for _ in 0..2 {
            grammars.start(regex("a+"), vocab_size).unwrap();
            assert!(kept() == [regex("a+")]);
            let error = grammars.start(regex("("), vocab_size).unwrap_err();
            assert!(matches!(error, Error::InvalidOption { option: "constraint", .. }), "{error}");
            assert!(kept() == [regex("a+")]);
        }
        for n in 0..MAX_CACHED {
            grammars.start(regex(&format!("b{n}")), vocab_size).unwrap();
        }
        assert_eq!(kept().len(), MAX_CACHED);
        assert!(!kept().contains(&regex("a+")), "that was used least recently");
    }
}
