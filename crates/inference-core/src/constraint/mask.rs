//! Sets of token ids.

use std::fmt;

/// The ids that may come next: one bit for each id of the vocabulary.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct TokenMask {
    len: usize,
    /// 32 ids each, the lowest bit first; bits from `len` on are 0.
    words: Vec<u32>,
}

impl TokenMask {
    /// A mask for so many ids, which allows none.
    #[must_use]
    pub fn new(len: usize) -> Self {
        Self { len, words: vec![0; len.div_ceil(32)] }
    }

    /// The ids that it is for, allowed or not.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it is for no ids at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Allows an id; one outside the vocabulary is ignored.
    pub fn allow(&mut self, id: u32) {
        let id = id as usize;
        if id < self.len {
            self.words[id / 32] |= 1 << (id % 32);
        }
    }

    /// Bans an id.
    pub fn ban(&mut self, id: u32) {
        let id = id as usize;
        if id < self.len {
            self.words[id / 32] &= !(1 << (id % 32));
        }
    }

    /// Allows every id.
    pub fn allow_all(&mut self) {
        self.words.fill(u32::MAX);
        self.clear_rest();
    }

    /// Bans every id.
    pub fn ban_all(&mut self) {
        self.words.fill(0);
    }

    /// Allows the ids whose bits are set, 32 a word, the lowest bit first. Words and bits beyond the vocabulary are ignored.
    pub fn allow_words(&mut self, words: &[u32]) {
        self.words.iter_mut().zip(words).for_each(|(own, other)| *own |= other);
        self.clear_rest();
    }

    /// Whether an id is allowed.
    #[must_use]
    pub fn allows(&self, id: u32) -> bool {
        let id = id as usize;
        id < self.len && self.words[id / 32] >> (id % 32) & 1 == 1
    }

    /// How many ids are allowed.
    #[must_use]
    pub fn count(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// The bits, 32 ids a word, the lowest bit first.
    #[must_use]
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// The allowed ids, in order.
    pub fn ids(&self) -> impl Iterator<Item = u32> {
        self.words.iter().enumerate().flat_map(|(place, word)| {
            let mut rest = *word;
            std::iter::from_fn(move || {
                let bit = (rest != 0).then(|| rest.trailing_zeros())?;
                rest &= rest - 1;
                Some(place as u32 * 32 + bit)
            })
        })
    }

    /// Sets the logits of ids that are not allowed to −∞, and those of ids beyond the mask.
    pub fn apply(&self, logits: &mut [f32]) {
        for (place, logits) in logits.chunks_mut(32).enumerate() {
            let word = self.words.get(place).copied().unwrap_or(0);
            if word == u32::MAX {
                continue;
            }
            for (bit, logit) in logits.iter_mut().enumerate() {
                if word >> bit & 1 == 0 {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
    }

    fn clear_rest(&mut self) {
        if let Some(last) = self.words.last_mut()
            && !self.len.is_multiple_of(32)
        {
            *last &= (1 << (self.len % 32)) - 1;
        }
    }
}

impl fmt::Debug for TokenMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenMask({} of {})", self.count(), self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_beyond_the_vocabulary_are_never_set() {
        let mut mask = TokenMask::new(35);
        mask.allow_all();
        assert_eq!((mask.count(), mask.words()), (35, &[u32::MAX, 0b111][..]));
        mask.ban_all();
        mask.allow_words(&[1 << 4, u32::MAX, u32::MAX]);
        assert_eq!(mask.ids().collect::<Vec<_>>(), [4, 32, 33, 34]);
        mask.allow(35);
        mask.ban(33);
        assert_eq!(mask.ids().collect::<Vec<_>>(), [4, 32, 34]);
        assert!(mask.allows(34) && !mask.allows(33) && !mask.allows(99));
    }

    #[test]
    fn what_is_not_allowed_has_no_probability() {
        let mut mask = TokenMask::new(33);
        mask.allow(1);
        mask.allow(32);
        let mut logits = vec![2.0; 40];
        mask.apply(&mut logits);
        let left: Vec<usize> = (0..40).filter(|id| logits[*id] == 2.0).collect();
        assert_eq!(left, [1, 32]);
    }
}
