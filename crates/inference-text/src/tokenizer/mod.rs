//! A model folder's tokenizer and its special tokens.
//!
//! tokenizer.json is read against an allow-list (`file`), and the pipeline is built from what was checked: normalizer,
//! added tokens, pre-tokenizer, model. The models are those of the `tokenizers` crate; the steps around them are here, so
//! that their work is bounded and can be cancelled. Ids are exactly those of the crate.

mod added;
mod byte_level;
mod charsmap;
mod config;
mod file;
mod limits;
mod model;
mod normalizer;
mod pattern;
pub(crate) mod pieces;
mod pre_tokenizer;
mod small_json;
mod special;
mod template;
mod vocab;

use std::{
    borrow::Cow,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
};

pub(crate) use self::config::read_config;
use self::{
    added::{AddedToken, AddedTokens, Part},
    file::TokenizerFile,
    limits::{MAX_TOKENIZER_JSON, Work},
    model::{Model, Spelling, WordCache},
    normalizer::Normalizer,
    pattern::PatternCompiler,
    pieces::{Piece, Pieces},
    pre_tokenizer::PreTokenizer,
    special::ends,
    template::TextTemplate,
};
pub use self::{limits::EncodeLimits, special::SpecialTokens, template::EncodedPair};
use crate::{Detokenizer, MAX_TEXT_BYTES};
use inference_core::{Error, Result, backend::ModelFiles};

/// A model's tokenizer: text to ids and back, and which ids are special.
#[derive(Clone)]
pub struct Tokenizer {
    pipeline: Arc<Pipeline>,
    pieces: Arc<Pieces>,
    special: SpecialTokens,
    bos: Option<u32>,
    eos: Vec<u32>,
    path: PathBuf,
}

/// The way from text to ids.
struct Pipeline {
    normalizer: Normalizer,
    added: AddedTokens,
    pre_tokenizer: PreTokenizer,
    model: Model,
    template: TextTemplate,
    /// Bytes of text that one token stands for at most; `None` where there is no bound.
    max_bytes_per_token: Option<usize>,
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer").field("path", &self.path).field("eos", &self.eos).finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Reads the tokenizer of a model folder: tokenizer.json; tokenizer_config.json and special_tokens_map.json for special
    /// tokens; generation_config.json and config.json for the ids that begin and end a text. Or that of a GGUF file.
    ///
    /// # Errors
    /// [`Error::InvalidModel`] names the file that is missing, too large, or not what a tokenizer needs.
    pub fn load(path: &Path) -> Result<Self> {
        Self::from_files(&ModelFiles::open(path)?)
    }

    /// [`load`](Self::load) of these files.
    pub(crate) fn from_files(files: &ModelFiles) -> Result<Self> {
        let path = files.path("tokenizer.json");
        if !files.has("tokenizer.json") {
            let hint = if files.has("tokenizer.model") {
                "is missing; tokenizer.model alone is not read: save the tokenizer with transformers, which writes tokenizer.json"
            } else {
                "is missing; a model needs its tokenizer beside the weights"
            };
            return Err(Error::invalid_file(path, hint));
        }
        let config = read_config(files, "tokenizer_config.json")?;
        let mut special = SpecialTokens::default();
        special.merge(&config);
        special.merge(&read_config(files, "special_tokens_map.json")?);

        let bytes = files.read("tokenizer.json", MAX_TOKENIZER_JSON)?;
        let mut file = TokenizerFile::parse(&path, &bytes)?;
        drop(bytes);
        let decoder = file.decoder.take();
        let configured = special::configured_tokens(&config, &special, &files.path("tokenizer_config.json"))?;
        let pipeline = Pipeline::build(&path, file, &configured)?;
        special::check_ids(
            &configured,
            |token| pipeline.token_to_id(token),
            &files.path("tokenizer_config.json"),
        )?;
        let tokens = pipeline.tokens();
        let pieces = Pieces::new(&tokens, |text| pipeline.added.is_special(text), decoder);
        let pieces = pieces.map_err(|reason| Error::invalid_key(&path, "decoder", reason))?;
        let (bos, eos) = ends(files, &special, |token| pipeline.token_to_id(token))?;
        Ok(Self { pipeline: Arc::new(pipeline), pieces: Arc::new(pieces), special, bos, eos, path })
    }

    /// The ids of a text. `add_special` adds what the tokenizer puts around a text of its own (a BOS, say): right for plain
    /// prompts, wrong for rendered chat templates, which hold it already.
    ///
    /// # Errors
    /// [`Error::InvalidPrompt`]: the text is longer than [`MAX_TEXT_BYTES`], or the tokenizer cannot cut it.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        self.encode_within(text, add_special, &EncodeLimits::default())
    }

    /// [`encode`](Self::encode) within limits: a text that has too many tokens is refused before it is tokenized where its
    /// length alone tells, and as soon as that is certain elsewhere.
    ///
    /// # Errors
    /// As [`encode`](Self::encode); [`Error::ContextExceeded`], [`Error::Cancelled`].
    pub fn encode_within(&self, text: &str, add_special: bool, limits: &EncodeLimits) -> Result<Vec<u32>> {
        if let Some(most) = self.pipeline.max_bytes_per_token {
            let (tokens, limit) = (text.len() / most, limits.max_tokens);
            if tokens > limit {
                return Err(Error::context_exceeded(tokens, limit));
            }
        }
        if text.len() > MAX_TEXT_BYTES {
            let reason = format!("has {} bytes, expected at most {MAX_TEXT_BYTES}", text.len());
            return Err(Error::invalid_prompt(reason));
        }
        let mut work = Work::new(limits);
        // The crate below indexes and unwraps by what the file says. The file is checked; this is the second line.
        let encoded = catch_unwind(AssertUnwindSafe(|| self.pipeline.encode(text, add_special, &mut work)));
        encoded.unwrap_or_else(|_| {
            let reason =
                format!("{} cannot tokenize it: its parts contradict each other", self.path.display());
            Err(Error::invalid_prompt(reason))
        })
    }

    /// The ids of a text with the special tokens around it, cut at its end to at most `most` in all.
    ///
    /// # Errors
    /// As [`encode`](Self::encode); [`Error::Cancelled`].
    pub fn encode_cut(&self, text: &str, most: usize, limits: &EncodeLimits) -> Result<Vec<u32>> {
        let TextTemplate { before, behind, .. } = &self.pipeline.template;
        let mut ids = self.encode_within(text, false, limits)?;
        ids.truncate(most.saturating_sub(before.len() + behind.len()));
        Ok([before.as_slice(), &ids, behind].concat())
    }

    /// Two texts, whose ids these are without special tokens, as one. With `most`, the longer one is cut at its end until both are
    /// equally long, and then both, to at most so many ids in all.
    ///
    /// # Errors
    /// [`Error::InvalidModel`]: the tokenizer does not join two texts.
    pub fn join_pair(&self, first: &[u32], second: &[u32], most: Option<usize>) -> Result<EncodedPair> {
        let Some(template) = &self.pipeline.template.pair else {
            let reason = "joins no two texts, which a model that reads them together needs";
            return Err(Error::invalid_key(&self.path, "post_processor", reason));
        };
        let room = most.map_or(usize::MAX, |most| most.saturating_sub(template.added()));
        let [kept, others] = cut_longest([first.len(), second.len()], room);
        Ok(template.join(&first[..kept], &second[..others]))
    }

    /// The text of ids. Ids outside the vocabulary have none; bytes that make no character become U+FFFD.
    /// `skip_special` leaves special tokens out.
    #[must_use]
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let mut detokenizer = self.detokenizer(skip_special);
        let mut text = String::new();
        for id in ids {
            text.push_str(detokenizer.push(*id));
        }
        text.push_str(detokenizer.finish());
        text
    }

    /// A [`Detokenizer`] for one text.
    #[must_use]
    pub fn detokenizer(&self, skip_special: bool) -> Detokenizer {
        Detokenizer::new(Arc::clone(&self.pieces), skip_special)
    }

    /// Ids that end a text: those of generation_config.json, or else config.json, and the tokenizer's own. Sorted.
    #[must_use]
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos
    }

    /// The id that begins a text, where the model has one.
    #[must_use]
    pub fn bos_id(&self) -> Option<u32> {
        self.bos
    }

    /// One more than the largest id. A model's embedding may have more rows.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.pieces.len()
    }

    /// The id of a token, spelt as the vocabulary spells it.
    #[must_use]
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.pipeline.token_to_id(token)
    }

    /// A token as the vocabulary spells it.
    #[must_use]
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.pipeline.id_to_token(id)
    }

    /// The bytes that a token adds to a text that it does not begin: a part of a character, perhaps. `None` for an id outside the
    /// vocabulary.
    #[must_use]
    pub fn token_bytes(&self, id: u32) -> Option<Cow<'_, [u8]>> {
        match self.pieces.get(id, false) {
            Piece::Nothing => None,
            Piece::Text(bytes) => Some(Cow::Borrowed(bytes)),
            Piece::Byte(byte) => Some(Cow::Owned(vec![byte])),
        }
    }

    /// The text of a special token, which texts for readers leave out; `None` for any other.
    #[must_use]
    pub fn special(&self, id: u32) -> Option<&str> {
        self.pieces.special(id)
    }

    /// The tokens that have a name.
    #[must_use]
    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.special
    }
}

/// The lengths of two texts that have room for so many tokens together, as the `tokenizers` crate cuts the longest first.
fn cut_longest(lengths: [usize; 2], room: usize) -> [usize; 2] {
    let [first, second] = lengths;
    if first.saturating_add(second) <= room {
        return lengths;
    }
    let (mut short, long) = (first.min(second), first.max(second));
    let mut kept = if short > room { short } else { short.max(room - short) }.min(long);
    if short + kept > room {
        (short, kept) = (room / 2, room / 2 + room % 2);
    }
    if first > second { [kept, short] } else { [short, kept] }
}

impl Pipeline {
    fn build(path: &Path, file: TokenizerFile, configured: &[special::ConfiguredToken]) -> Result<Self> {
        let mut patterns = PatternCompiler::new(path);
        let normalizer = Normalizer::new(path, file.normalizer, &mut patterns)?;
        let pre_tokenizer =
            PreTokenizer::new(path, file.pre_tokenizer, normalizer.keeps_start(), &mut patterns)?;
        let template = TextTemplate::new(path, file.post_processor)?;
        let model =
            catch_unwind(AssertUnwindSafe(|| Model::new(path, file.model, pre_tokenizer.has_no_pattern())));
        let contradicts = |_| Err(Error::invalid_key(path, "model", "its parts contradict each other"));
        let model = model.unwrap_or_else(contradicts)?;
        let mut added = AddedTokens::default();
        let listed = file.added_tokens.into_iter().map(AddedToken::from);
        let configured = configured.iter().map(|token| token.token.clone());
        for tokens in [
            &mut listed.collect::<Vec<_>>().into_iter() as &mut dyn Iterator<Item = _>,
            &mut configured.into_iter(),
        ] {
            let invalid = |reason| Error::invalid_key(path, "added_tokens", reason);
            added.add(tokens, &model).map_err(invalid)?;
        }
        added.build(path, &normalizer)?;
        // What lies behind a token that is part of the first character's normalized form is the text's beginning again.
        if pre_tokenizer.knows_first() && normalizer.lengthens_start() && added.has_normalized() {
            let reason = "is \"first\", while the normalizer may make several characters of a text's first one and added \
                          tokens are searched in what it makes: expected \"always\" or \"never\"";
            return Err(Error::invalid_key(path, "pre_tokenizer.prepend_scheme", reason));
        }
        let mut pipeline =
            Self { normalizer, added, pre_tokenizer, model, template, max_bytes_per_token: None };
        pipeline.max_bytes_per_token = pipeline.bytes_per_token();
        Ok(pipeline)
    }

    fn encode(&self, text: &str, add_special: bool, work: &mut Work<'_>) -> Result<Vec<u32>> {
        let mut ids = if add_special { self.template.before.clone() } else { Vec::new() };
        let mut cache = WordCache::default();
        self.added.split_raw(text, work, &mut |work, part| match part {
            Part::Token(id) => {
                ids.push(id);
                work.check_tokens(ids.len())
            }
            Part::Text(text, start) => {
                let normalized = self.normalizer.apply(text, work)?;
                let first = start == 0 && normalized.keeps_first;
                self.added.split_normalized(&normalized.text, work, &mut |work, part| match part {
                    Part::Token(id) => {
                        ids.push(id);
                        work.check_tokens(ids.len())
                    }
                    Part::Text(text, start) => {
                        let mut word = |work: &mut Work<'_>, word: &str| {
                            self.model.encode_word(word, &mut cache, work, &mut ids)
                        };
                        self.pre_tokenizer.split(text, first && start == 0, work, &mut word)
                    }
                })
            }
        })?;
        if add_special {
            ids.extend(&self.template.behind);
        }
        Ok(ids)
    }

    /// Bytes of text that one token stands for at most, where nothing of a text is ever left out.
    fn bytes_per_token(&self) -> Option<usize> {
        let spells_all = match self.model.spelling() {
            Spelling::ByteLevel => self.pre_tokenizer.is_byte_level(),
            Spelling::ByteFallback => true,
            Spelling::Lossy => false,
        };
        let swallows = self.added.iter().any(|(_, token)| token.lstrip || token.rstrip);
        let shrink = self.normalizer.shrink()?;
        let longest = self.added.iter().map(|(_, token)| token.content.len()).max().unwrap_or(0);
        let longest = longest.max(self.model.max_token_bytes());
        (spells_all && !swallows && self.pre_tokenizer.is_lossless()).then(|| longest.saturating_mul(shrink))
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        self.added.id(token).or_else(|| self.model.token_to_id(token))
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        self.added.text(id).map(str::to_owned).or_else(|| self.model.id_to_token(id))
    }

    /// All tokens with their ids; an added token stands in front of the model's.
    fn tokens(&self) -> Vec<(String, u32)> {
        let model = self.model.vocab().filter(|(_, id)| self.added.get(*id).is_none());
        let added = self.added.iter().map(|(id, _)| (self.added.text(id).unwrap_or_default().to_owned(), id));
        model.chain(added).collect()
    }
}
