//! Counter-based randomness: every number is a pure function of (seed, domain, index, step, position).
//!
//! Philox4x32-10 of Salmon, Moraes, Dror and Shaw, *Parallel random numbers: as easy as 1, 2, 3* (SC 2011), encrypts a
//! 128-bit counter under a 64-bit key. A generator without state suits this project: an image drawn from
//! (seed, index) is the same whatever the batch size, the thread count, or the number of machines that share the work, and
//! a resumed run continues exactly where the interrupted one stopped, because there is nothing to save.
//!
//! The normals go through the `libm` crate rather than the platform's mathematics library, so they too are the same bit
//! for bit everywhere.

use std::f64::consts::TAU;

/// The two multipliers of a round.
const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
/// What each key word grows by between rounds: the golden ratio and √3 − 1.
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
/// Bits of a stream's index that the counter has room for.
const INDEX_BITS: u32 = 56;

/// Philox4x32 with 10 rounds: four random words from a counter and a key.
#[inline]
pub fn philox4x32_10(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let (mut c, mut k) = (counter, key);
    for _ in 0..10 {
        let product0 = u64::from(MULTIPLIERS[0]) * u64::from(c[0]);
        let product1 = u64::from(MULTIPLIERS[1]) * u64::from(c[2]);
        c = [
            (product1 >> 32) as u32 ^ c[1] ^ k[0],
            product1 as u32,
            (product0 >> 32) as u32 ^ c[3] ^ k[1],
            product0 as u32,
        ];
        k = [k[0].wrapping_add(WEYL[0]), k[1].wrapping_add(WEYL[1])];
    }
    c
}

/// N draws side by side, which the compiler can vectorise: of each its words, two in a `u64`, as they would follow each other in
/// memory. The first words of their counters are `block + lane`, the others are those of `counter`.
#[inline(always)]
pub fn philox4x32_10_lanes<const N: usize>(block: u32, counter: [u32; 4], key: [u32; 2]) -> [[u64; 2]; N] {
    // Words are low halves of lanes as wide as a product, so that none has to be narrowed. What the high halves hold is not used.
    const WORD: u64 = 0xFFFF_FFFF;
    let mut c = counter.map(|word| [u64::from(word); N]);
    (0..N).for_each(|i| c[0][i] = u64::from(block) + i as u64);
    let mut k = key;
    for _ in 0..10 {
        let mut next = [[0; N]; 4];
        for i in 0..N {
            let product0 = u64::from(MULTIPLIERS[0]) * (c[0][i] & WORD);
            let product1 = u64::from(MULTIPLIERS[1]) * (c[2][i] & WORD);
            next[0][i] = (product1 >> 32) ^ c[1][i] ^ u64::from(k[0]);
            next[1][i] = product1;
            next[2][i] = (product0 >> 32) ^ c[3][i] ^ u64::from(k[1]);
            next[3][i] = product0;
        }
        c = next;
        k = [k[0].wrapping_add(WEYL[0]), k[1].wrapping_add(WEYL[1])];
    }
    let pair = |first: u64, second: u64| {
        if cfg!(target_endian = "big") { first << 32 | (second & WORD) } else { first & WORD | second << 32 }
    };
    let mut draws = [[0; 2]; N];
    for i in 0..N {
        draws[i] = [pair(c[0][i], c[1][i]), pair(c[2][i], c[3][i])];
    }
    draws
}

/// What a random number is for. Streams of different domains never overlap.
///
/// The discriminants are part of what a seed means: never renumber, only append.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Domain {
    /// Initial network parameters (index: the parameter).
    Init = 0,
    /// The order in which an epoch visits the images (index: the epoch).
    Order = 1,
    /// Flips and crops (index: the image's position in the run).
    Augment = 2,
    /// The training timestep t.
    Time = 3,
    /// The perturbation strength γ, where it is drawn per image.
    Gamma = 4,
    /// The noise ε of a training image.
    Noise = 5,
    /// The perturbation ξ of a training image.
    Perturbation = 6,
    /// Dropout masks (index: the image's position in the run, step: the layer).
    Dropout = 7,
    /// The noise x_T a sample starts from (index: the sample).
    Sample = 8,
    /// The noise added by one reverse step (index: the sample, step: how many steps the chain has taken before).
    SampleStep = 9,
    /// Class labels of samples.
    Label = 10,
    /// Timestep (step 0) and noise (step 1) of an image on which a classifier is tried out.
    Validation = 11,
    /// The noise of an image whose likelihood is bounded (index: the image, step: the timestep).
    Likelihood = 12,
    /// The rows in a subset of features (index: the subset and the side).
    Subset = 13,
    /// The direction along which an image's gradient penalty is taken (index: the image's position in the run).
    Direction = 14,
    /// Noise, directions and orders of the exposure-bias instruments (index: the image, step: the level and its use).
    Bias = 15,
    /// Whether the network is told the class of a training image (index: the image's position in the run).
    LabelDropout = 16,
}

/// A sequence of random numbers with an address: seed, domain, index and step.
///
/// The key is the seed (low word, high word); the counter is
/// `[block number, step, index bits 0..32, domain << 24 | index bits 32..56]`. A stream holds 2³² blocks of four words
/// and starts over after them.
#[derive(Debug, Clone, PartialEq)]
pub struct Stream {
    key: [u32; 2],
    /// The counter of the block to be generated next.
    counter: [u32; 4],
    words: [u32; 4],
    /// How many of `words` are used up.
    used: usize,
    /// The second value of the last Box-Muller pair, until it is asked for.
    spare: Option<f32>,
}

impl Stream {
    /// The stream at an address. `index` must be below 2⁵⁶; debug builds check it, release builds drop the higher bits.
    pub fn new(seed: u64, domain: Domain, index: u64, step: u32) -> Self {
        debug_assert!(index >> INDEX_BITS == 0, "a stream's index must be below 2^56, got {index}");
        let index_high = (index >> 32) as u32 & 0x00FF_FFFF;
        Self {
            key: [seed as u32, (seed >> 32) as u32],
            counter: [0, step, index as u32, u32::from(domain as u8) << 24 | index_high],
            words: [0; 4],
            used: 4,
            spare: None,
        }
    }

    /// The counter of the next draw and the key, for [`philox4x32_10_lanes`].
    pub fn address(&self) -> ([u32; 4], [u32; 2]) {
        (self.counter, self.key)
    }

    /// 32 uniform bits.
    #[inline]
    pub fn next_u32(&mut self) -> u32 {
        if self.used == self.words.len() {
            self.words = philox4x32_10(self.counter, self.key);
            self.counter[0] = self.counter[0].wrapping_add(1);
            self.used = 0;
        }
        let word = self.words[self.used];
        self.used += 1;
        word
    }

    /// 64 uniform bits: two words, the high one first.
    #[inline]
    fn next_u64(&mut self) -> u64 {
        let high = self.next_u32();
        u64::from(high) << 32 | u64::from(self.next_u32())
    }

    /// A uniform number in [0, 1) with 53 bits.
    #[inline]
    pub fn uniform(&mut self) -> f64 {
        const SCALE: f64 = 1.0 / (1_u64 << 53) as f64;
        (self.next_u64() >> 11) as f64 * SCALE
    }

    /// A standard normal number.
    ///
    /// Box-Muller turns two uniforms into two normals; the second is kept and returned by the next call. Both are
    /// computed in f64 and rounded once.
    #[inline]
    pub fn normal(&mut self) -> f32 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        let (first, second) = self.normal_pair();
        self.spare = Some(second);
        first
    }

    /// Fills the slice with what repeated calls of [`normal`](Self::normal) would return.
    pub fn fill_normal(&mut self, values: &mut [f32]) {
        // A number left over from an earlier pair comes first, and the rest is whole pairs.
        let (head, rest) = values.split_at_mut(values.len().min(usize::from(self.spare.is_some())));
        for value in head {
            *value = self.normal();
        }
        let mut pairs = rest.chunks_exact_mut(2);
        for pair in &mut pairs {
            (pair[0], pair[1]) = self.normal_pair();
        }
        if let [last] = pairs.into_remainder() {
            *last = self.normal();
        }
    }

    /// Two independent standard normals from four words.
    #[inline]
    fn normal_pair(&mut self) -> (f32, f32) {
        // 1 − u lies in (0, 1], so the logarithm is finite.
        let radius = (-2.0 * libm::log(1.0 - self.uniform())).sqrt();
        let (sin, cos) = libm::sincos(TAU * self.uniform());
        ((radius * cos) as f32, (radius * sin) as f32)
    }

    /// A uniform integer in 0..n, without bias; 0 when `n` is 0.
    ///
    /// Multiply and reject, after Lemire, *Fast random integer generation in an interval* (2019).
    pub fn below(&mut self, n: u64) -> u64 {
        if n == 0 {
            return 0;
        }
        // Low halves under 2⁶⁴ mod n belong to results that would come up once too often.
        let surplus = n.wrapping_neg() % n;
        loop {
            let product = u128::from(self.next_u64()) * u128::from(n);
            if product as u64 >= surplus {
                return (product >> 64) as u64;
            }
        }
    }
}

/// A uniformly random order of 0..n (Fisher-Yates), a pure function of its arguments. `n` must fit into u32.
pub fn permutation(seed: u64, domain: Domain, epoch: u64, n: usize) -> Vec<u32> {
    debug_assert!(u32::try_from(n).is_ok(), "a permutation is of at most 2^32 - 1 items, got {n}");
    let mut stream = Stream::new(seed, domain, epoch, 0);
    let mut order: Vec<u32> = (0..n as u32).collect();
    for last in (1..order.len()).rev() {
        order.swap(last, stream.below(last as u64 + 1) as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_the_published_known_answers() {
        // `kat_vectors` of the Random123 distribution.
        let cases = [
            ([0; 4], [0; 2], [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]),
            (
                [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
                [0xa4093822, 0x299f31d0],
                [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
            ),
        ];
        for (counter, key, expected) in cases {
            assert_eq!(philox4x32_10(counter, key), expected);
        }
    }

    #[test]
    fn lanes_are_the_draws_of_a_stream() {
        let mut stream = Stream::new(9, Domain::Dropout, 1 << 40 | 3, 5);
        let (counter, key) = stream.address();
        for block in [0, 8] {
            for pairs in philox4x32_10_lanes::<8>(block, counter, key) {
                let words = pairs.map(u64::to_ne_bytes).concat();
                let expected = [(); 4].map(|()| stream.next_u32().to_ne_bytes()).concat();
                assert_eq!(words, expected);
            }
        }
    }

    #[test]
    fn a_stream_is_the_documented_counter_and_key() {
        let seed = 0x0123_4567_89AB_CDEF;
        let mut stream = Stream::new(seed, Domain::Perturbation, 0x00AB_CDEF_1234_5678, 42);
        for block in 0..3 {
            let expected = philox4x32_10([block, 42, 0x1234_5678, 6 << 24 | 0x00AB_CDEF], [0x89AB_CDEF, 0x0123_4567]);
            assert_eq!([(); 4].map(|()| stream.next_u32()), expected);
        }
    }

    #[test]
    fn values_do_not_depend_on_what_is_drawn_elsewhere_or_in_which_order() {
        let draw = |index, step| Stream::new(7, Domain::SampleStep, index, step).normal();
        let forward: Vec<f32> = (0..20).map(|i| draw(i, 3)).collect();
        let mut backward: Vec<f32> = (0..20).rev().map(|i| draw(i, 3)).collect();
        backward.reverse();
        assert_eq!(forward, backward);
    }

    #[test]
    fn every_part_of_the_address_matters() {
        let first = |seed, domain, index, step| Stream::new(seed, domain, index, step).next_u64();
        let values = [
            first(1, Domain::Noise, 2, 3),
            first(1 | 1 << 32, Domain::Noise, 2, 3),
            first(2, Domain::Noise, 2, 3),
            first(1, Domain::Perturbation, 2, 3),
            first(1, Domain::Noise, 3, 3),
            first(1, Domain::Noise, 2 | 1 << 33, 3),
            first(1, Domain::Noise, 2, 4),
        ];
        for (i, a) in values.iter().enumerate() {
            assert!(!values[i + 1..].contains(a));
        }
    }

    #[test]
    fn normals_have_the_moments_of_the_standard_normal() {
        const N: usize = 200_000;
        let mut values = vec![0.0; N];
        Stream::new(3, Domain::Noise, 0, 0).fill_normal(&mut values);
        let moment = |power| values.iter().map(|&x| f64::from(x).powi(power)).sum::<f64>() / N as f64;
        // Within five standard errors: Var(x^k) = E x^2k − (E x^k)² is 1, 2, 15 and 96.
        for (power, expected, variance) in [(1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0_f64)] {
            let error = (moment(power) - expected).abs();
            assert!(error < 5.0 * (variance / N as f64).sqrt(), "moment {power} is off by {error}");
        }
        let lag = values.windows(2).map(|w| f64::from(w[0] * w[1])).sum::<f64>() / N as f64;
        assert!(lag.abs() < 5.0 / (N as f64).sqrt(), "neighbours correlate by {lag}");
    }

    #[test]
    fn normals_are_the_same_on_every_platform() {
        let mut stream = Stream::new(0, Domain::Init, 0, 0);
        let bits = [(); 4].map(|()| stream.normal().to_bits());
        // −0.0904730585, −1.0051318151, −0.9238335511, −2.5129537249: computed apart from this code.
        assert_eq!(bits, [0xbdb949f0, 0xbf80a829, 0xbf6c805b, 0xc020d43c]);
    }

    #[test]
    fn filling_equals_drawing_one_by_one_across_odd_lengths() {
        let mut filled = Stream::new(5, Domain::Noise, 1, 0);
        let mut drawn = filled.clone();
        for length in [0, 1, 2, 3, 0, 5, 8, 1, 1, 7] {
            let mut values = vec![0.0; length];
            filled.fill_normal(&mut values);
            let expected: Vec<f32> = (0..length).map(|_| drawn.normal()).collect();
            assert_eq!(values, expected);
            assert_eq!(filled, drawn);
        }
    }

    #[test]
    fn uniforms_fill_the_unit_interval_and_nothing_more() {
        let mut stream = Stream::new(11, Domain::Time, 0, 0);
        let values: Vec<f64> = (0..100_000).map(|_| stream.uniform()).collect();
        assert!(values.iter().all(|u| (0.0..1.0).contains(u)));
        let mean = values.iter().sum::<f64>() / 1e5;
        assert!((mean - 0.5).abs() < 5.0 * (1.0 / 12.0 / 1e5_f64).sqrt());
    }

    #[test]
    fn below_is_uniform_and_safe_at_the_ends() {
        let mut stream = Stream::new(13, Domain::Label, 0, 0);
        assert_eq!((stream.below(0), stream.below(1)), (0, 0));
        let mut counts = [0_u32; 7];
        for _ in 0..70_000 {
            counts[stream.below(7) as usize] += 1;
        }
        // The standard deviation of a count is √(70000 · 1/7 · 6/7) ≈ 93.
        assert!(counts.iter().all(|&count| count.abs_diff(10_000) < 465), "{counts:?}");
        // Of 2⁶⁴ draws 4 share 3 results here; without rejection every third result would get two of them.
        let favoured = (0..9000).filter(|_| stream.below(3 << 62).is_multiple_of(3)).count();
        assert!((2780..3220).contains(&favoured), "{favoured}");
    }

    #[test]
    fn a_permutation_holds_every_item_once_and_changes_with_the_epoch() {
        let order = permutation(1, Domain::Order, 0, 1000);
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert!(sorted.iter().copied().eq(0..1000));
        assert_eq!(order, permutation(1, Domain::Order, 0, 1000));
        assert_ne!(order, permutation(1, Domain::Order, 1, 1000));
        assert!(permutation(1, Domain::Order, 0, 0).is_empty());
        assert_eq!(permutation(1, Domain::Order, 0, 1), [0]);
    }

    #[test]
    fn all_orders_of_three_come_up_equally_often() {
        let mut counts = std::collections::HashMap::<Vec<u32>, u32>::new();
        for epoch in 0..6000 {
            *counts.entry(permutation(2, Domain::Order, epoch, 3)).or_default() += 1;
        }
        assert_eq!(counts.len(), 6);
        assert!(counts.values().all(|count| count.abs_diff(1000) < 150), "{counts:?}");
    }
}
