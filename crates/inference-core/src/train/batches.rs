//! Which examples make up which batch.

/// The batches of a run: examples of similar length together, so that there is little padding. Each epoch has a new order.
///
/// Every example is in one batch of an epoch. The n-th batch of a run depends on the lengths, the limits and the seed
/// alone, so that a resumed run finds its place.
///
/// ```
/// use inference_core::backend::Batches;
///
/// let mut batches = Batches::new(&[5, 1, 4, 2], 2, None, 0);
/// assert_eq!(batches.per_epoch(), 2);
/// let mut of_an_epoch: Vec<_> = (0..2).map(|n| batches.get(n).to_vec()).collect();
/// of_an_epoch.iter_mut().for_each(|batch| batch.sort());
/// of_an_epoch.sort();
/// assert_eq!(of_an_epoch, [[0, 2], [1, 3]]);
/// ```
#[derive(Debug, Clone)]
pub struct Batches {
    lengths: Vec<usize>,
    /// Where the batches end in the examples sorted by length: the same in each epoch.
    ends: Vec<usize>,
    seed: u64,
    epoch: Option<Epoch>,
}

#[derive(Debug, Clone)]
struct Epoch {
    number: usize,
    batches: Vec<Vec<usize>>,
}

impl Batches {
    /// Batches of examples with these numbers of tokens: of at most `size` examples and, padded to the longest of them, at most
    /// `tokens` tokens. An example longer than that is a batch of its own.
    #[must_use]
    pub fn new(lengths: &[usize], size: usize, tokens: Option<usize>, seed: u64) -> Self {
        let mut sorted = lengths.to_vec();
        sorted.sort_unstable();
        let (mut ends, mut start) = (Vec::new(), 0);
        for (at, longest) in sorted.iter().enumerate() {
            let count = at + 1 - start;
            let full = count > size || tokens.is_some_and(|limit| count.saturating_mul(*longest) > limit);
            if full && count > 1 {
                ends.push(at);
                start = at;
            }
        }
        if start < sorted.len() {
            ends.push(sorted.len());
        }
        Self { lengths: lengths.to_vec(), ends, seed, epoch: None }
    }

    /// Batches in an epoch; 0 where there are no examples.
    #[must_use]
    pub fn per_epoch(&self) -> usize {
        self.ends.len()
    }

    /// The examples of the n-th batch, from 0, counted through all epochs, by their places in `lengths`.
    ///
    /// # Panics
    /// There are no examples.
    pub fn get(&mut self, n: usize) -> &[usize] {
        assert!(!self.ends.is_empty(), "batches of no examples");
        let (number, at) = (n / self.ends.len(), n % self.ends.len());
        if self.epoch.as_ref().is_none_or(|epoch| epoch.number != number) {
            self.epoch = None;
        }
        let (lengths, ends, seed) = (&self.lengths, &self.ends, self.seed);
        &self.epoch.get_or_insert_with(|| Epoch::draw(lengths, ends, seed, number)).batches[at]
    }

    /// The examples of the n-th batch, from 0, in order of length: for validation, which needs no chance.
    #[must_use]
    pub fn in_order(&self) -> Vec<Vec<usize>> {
        let mut order: Vec<usize> = (0..self.lengths.len()).collect();
        order.sort_by_key(|example| self.lengths[*example]);
        cut(&order, &self.ends)
    }
}

impl Epoch {
    fn draw(lengths: &[usize], ends: &[usize], seed: u64, number: usize) -> Self {
        let mut random = Random::new(seed, number as u64);
        let mut order: Vec<usize> = (0..lengths.len()).collect();
        random.shuffle(&mut order);
        // Stable: examples of one length stay shuffled, so that batches differ from epoch to epoch.
        order.sort_by_key(|example| lengths[*example]);
        let mut batches = cut(&order, ends);
        random.shuffle(&mut batches);
        Self { number, batches }
    }
}

fn cut(order: &[usize], ends: &[usize]) -> Vec<Vec<usize>> {
    let starts = std::iter::once(&0).chain(ends);
    starts.zip(ends).map(|(start, end)| order[*start..*end].to_vec()).collect()
}

/// SplitMix64 (Steele et al. 2014): the same numbers in every version of this crate, as a resumed run needs them.
#[derive(Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64, stream: u64) -> Self {
        let mut random = Self(seed);
        Self(random.next() ^ stream.wrapping_mul(0xd134_2543_de82_ef95))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            // The high half of the product is uniform up to one part in 2⁶⁴ / length.
            let other = (u128::from(self.next()) * (last as u128 + 1)) >> 64;
            items.swap(last, other as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_example_is_in_one_batch_of_an_epoch_and_no_batch_is_too_large(
            lengths in prop::collection::vec(1..300_usize, 1..80),
            size in 1..9_usize,
            tokens in prop::option::of(1..600_usize),
            seed: u64,
        ) {
            let mut batches = Batches::new(&lengths, size, tokens, seed);
            let per_epoch = batches.per_epoch();
            for epoch in 0..2 {
                let mut seen = Vec::new();
                for n in 0..per_epoch {
                    let batch = batches.get(epoch * per_epoch + n).to_vec();
                    let longest = batch.iter().map(|example| lengths[*example]).max().unwrap();
                    prop_assert!(batch.len() <= size);
                    prop_assert!(batch.len() == 1 || tokens.is_none_or(|limit| batch.len() * longest <= limit));
                    seen.extend(batch);
                }
                seen.sort_unstable();
                prop_assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
            }
            let mut ordered: Vec<_> = batches.in_order().concat();
            prop_assert!(ordered.is_sorted_by_key(|example| lengths[*example]));
            ordered.sort_unstable();
            prop_assert_eq!(ordered, (0..lengths.len()).collect::<Vec<_>>());
        }

        #[test]
        fn a_batch_depends_on_its_number_alone(seed: u64, from in 0..40_usize) {
            let lengths: Vec<usize> = (0..30).map(|n| 1 + n % 4).collect();
            let mut whole = Batches::new(&lengths, 4, None, seed);
            let whole: Vec<_> = (0..60).map(|n| whole.get(n).to_vec()).collect();
            let mut resumed = Batches::new(&lengths, 4, None, seed);
            for (n, batch) in whole.iter().enumerate().skip(from) {
                prop_assert_eq!(resumed.get(n), batch.as_slice());
            }
        }
    }

    #[test]
    fn epochs_and_seeds_differ() {
        let lengths = [7; 64];
        let mut one = Batches::new(&lengths, 4, None, 1);
        let first: Vec<_> = (0..16).map(|n| one.get(n).to_vec()).collect();
        let second: Vec<_> = (16..32).map(|n| one.get(n).to_vec()).collect();
        let mut two = Batches::new(&lengths, 4, None, 2);
        let other: Vec<_> = (0..16).map(|n| two.get(n).to_vec()).collect();
        assert!(first != second && first != other);
    }
}
