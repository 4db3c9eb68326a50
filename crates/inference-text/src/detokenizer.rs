//! From token ids to text, one id at a time.

use std::sync::Arc;

use inference_core::{Token, backend::Detokenize};

use crate::tokenizer::pieces::{Join, Piece, Pieces};

const REPLACEMENT: &str = "\u{fffd}";

/// Turns ids into text as they come, never half a character. All texts in one, with [`finish`](Self::finish)'s, are what
/// the tokenizer decodes from all ids at once, whatever the ids. A push costs amortised constant time.
///
/// Where a vocabulary spells rare characters as single bytes (`<0xE4>`), a run of such tokens is held back until another
/// token ends it: only then is it certain that no broken byte follows, which would make all of the run U+FFFD.
#[derive(Debug, Clone)]
pub struct Detokenizer {
    pieces: Arc<Pieces>,
    skip_special: bool,
    /// Whether no token has been taken yet that is part of the text.
    first: bool,
    /// How often the decoder's strip character may still be cut from the text's beginning.
    strip: usize,
    /// The whole characters of the current run of byte tokens.
    run: String,
    /// The bytes after them, or in a text of bytes after all text: the beginning of a character.
    pending: Vec<u8>,
    /// Whether the run of byte tokens has a broken byte.
    broken: bool,
    /// For each token that is held back, where its bytes end in `run` and `pending`.
    open: Vec<usize>,
    text: String,
    ends: Vec<usize>,
}

impl Detokenizer {
    pub(crate) fn new(pieces: Arc<Pieces>, skip_special: bool) -> Self {
        Self {
            strip: pieces.strip.1,
            pieces,
            skip_special,
            first: true,
            run: String::new(),
            pending: Vec::new(),
            broken: false,
            open: Vec::new(),
            text: String::new(),
            ends: Vec::new(),
        }
    }

    /// Takes an id; the text that became certain by it. An id outside the vocabulary has none.
    pub fn push(&mut self, id: u32) -> &str {
        self.text.clear();
        self.ends.clear();
        let pieces = Arc::clone(&self.pieces);
        let piece = pieces.get(id, self.skip_special);
        let first = self.first;
        self.first &= piece == Piece::Nothing;
        match (pieces.join, piece) {
            (_, Piece::Nothing) => self.open.push(self.run.len() + self.pending.len()),
            (Join::Bytes, Piece::Byte(_)) | (Join::Text, Piece::Byte(_)) => {}
            (Join::ByteFallback, Piece::Byte(byte)) => self.extend_run(byte),
            (_, Piece::Text(bytes)) => {
                let special = if first { pieces.first(id) } else { None };
                let bytes = special.as_ref().map_or(bytes, |text| text.as_bytes());
                match pieces.join {
                    Join::Bytes => self.extend_bytes(bytes),
                    Join::Text | Join::ByteFallback => {
                        self.end_run();
                        // The table holds whole strings under these joins.
                        self.append(&String::from_utf8_lossy(bytes));
                    }
                }
                self.open.push(self.pending.len());
            }
        }
        if self.run.is_empty() && self.pending.is_empty() {
            self.close_all();
        }
        &self.text
    }

    /// The text that was held back; an unfinished character is U+FFFD.
    pub fn finish(&mut self) -> &str {
        self.flush();
        &self.text
    }

    /// Bytes of one UTF-8 text.
    fn extend_bytes(&mut self, bytes: &[u8]) {
        // The tokens that brought the bytes so far have had their text: what comes of the bytes belongs to this one.
        self.close_all();
        let joined;
        let mut rest = if self.pending.is_empty() {
            bytes
        } else {
            self.pending.extend_from_slice(bytes);
            joined = std::mem::take(&mut self.pending);
            &joined[..]
        };
        while !rest.is_empty() {
            match str::from_utf8(rest) {
                Ok(text) => {
                    self.append(text);
                    break;
                }
                Err(error) => {
                    let (text, tail) = rest.split_at(error.valid_up_to());
                    self.append(str::from_utf8(text).unwrap_or_default());
                    let Some(length) = error.error_len() else {
                        self.pending = tail.to_vec();
                        break;
                    };
                    self.append(REPLACEMENT);
                    rest = &tail[length..];
                }
            }
        }
    }

    /// One more byte token.
    fn extend_run(&mut self, byte: u8) {
        if self.broken {
            self.append(REPLACEMENT);
            self.ends.push(self.text.len());
            return;
        }
        self.pending.push(byte);
        self.open.push(self.run.len() + self.pending.len());
        match str::from_utf8(&self.pending) {
            Ok(character) => {
                self.run.push_str(character);
                self.pending.clear();
            }
            Err(error) if error.error_len().is_some() => {
                self.end_run();
                self.broken = true;
            }
            Err(_) => {}
        }
    }

    /// The run of byte tokens is complete: its text is certain.
    fn end_run(&mut self) {
        self.broken = false;
        let run = std::mem::take(&mut self.run);
        let is_whole = std::mem::take(&mut self.pending).is_empty();
        if run.is_empty() && is_whole {
            return;
        }
        let open = std::mem::take(&mut self.open);
        let mut taken = 0;
        for end in open {
            // A character belongs to the token of its last byte; each byte of a broken run is a character of its own.
            if is_whole {
                let end = (taken..=end).rev().find(|at| run.is_char_boundary(*at)).unwrap_or(taken);
                self.append(&run[taken..end]);
                taken = end;
            } else {
                self.append(&REPLACEMENT.repeat(end - taken));
                taken = end;
            }
            self.ends.push(self.text.len());
        }
    }

    /// No token is held back any more.
    fn close_all(&mut self) {
        let end = self.text.len();
        self.ends.extend(self.open.drain(..).map(|_| end));
    }

    fn append(&mut self, mut text: &str) {
        while self.strip > 0 && !text.is_empty() {
            let Some(rest) = text.strip_prefix(self.pieces.strip.0) else {
                self.strip = 0;
                break;
            };
            text = rest;
            self.strip -= 1;
        }
        self.text.push_str(text);
    }
}

impl Detokenize for Detokenizer {
    fn advance(&mut self, token: &mut Token) {
        self.push(token.id);
    }

    fn flush(&mut self) {
        self.text.clear();
        self.ends.clear();
        match self.pieces.join {
            Join::Bytes if !self.pending.is_empty() => {
                self.pending.clear();
                self.append(REPLACEMENT);
            }
            Join::Bytes | Join::Text => {}
            Join::ByteFallback => self.end_run(),
        }
        self.close_all();
    }

    fn text(&self) -> &str {
        &self.text
    }

    fn ends(&self) -> &[usize] {
        &self.ends
    }

    fn tentative(&self) -> &str {
        let mut text = self.run.as_str();
        for _ in 0..self.strip {
            let Some(rest) = text.strip_prefix(self.pieces.strip.0) else { break };
            text = rest;
        }
        text
    }

    fn holds_half_a_character(&self) -> bool {
        self.broken || !self.pending.is_empty()
    }

    fn special(&self, id: u32) -> Option<&str> {
        if self.skip_special { self.pieces.special(id) } else { None }
    }
}
