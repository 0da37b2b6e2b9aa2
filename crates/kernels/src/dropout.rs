//! Dropout whose masks are drawn again in the backward pass instead of kept.

use crate::Dropout;
use crate::simd::multiversion;
use ddpm_math::{Domain, Stream, philox4x32_10_lanes};

/// The factors of one image, from its first value on.
pub(crate) struct Mask<'a> {
    dropout: Option<&'a Dropout>,
    stream: Stream,
    /// Draws done.
    block: u32,
    factors: Vec<f32>,
}

/// Draws computed side by side.
const LANES: usize = 16;

impl<'a> Mask<'a> {
    /// Values that one call of the generator gives, times those done side by side.
    pub(crate) const DRAW: usize = 4 * LANES;

    /// The mask of the batch's image `i`.
    pub(crate) fn new(dropout: Option<&'a Dropout>, i: usize) -> Self {
        let (seed, position, layer) = dropout.map_or((0, 0, 0), |d| (d.seed, d.position, d.layer));
        let stream = Stream::new(seed, Domain::Dropout, position + i as u64, layer);
        Self { dropout, stream, block: 0, factors: Vec::new() }
    }

    /// The factors of the next `count` values, or nothing without dropout. All calls but the last ask for multiples of
    /// [`DRAW`](Self::DRAW).
    pub(crate) fn next(&mut self, count: usize) -> Option<&[f32]> {
        let dropout = self.dropout?;
        let keep = (1.0 / (1.0 - dropout.probability)) as f32;
        let threshold = (dropout.probability * f64::from(u32::MAX)) as u32;
        self.factors.resize(count.next_multiple_of(Self::DRAW), 0.0);
        let (counter, key) = self.stream.address();
        draw(&mut self.factors, counter, key, self.block, threshold, keep);
        self.block = self.block.wrapping_add((count / 4) as u32);
        Some(&self.factors[..count])
    }
}

multiversion! {
    /// 0 where a draw falls below the threshold, else `keep`.
    fn draw<S>(factors: &mut [f32], counter: [u32; 4], key: [u32; 2], block: u32, threshold: u32, keep: f32) {
        for (i, factors) in factors.chunks_exact_mut(4 * LANES).enumerate() {
            let words = philox4x32_10_lanes::<LANES>(block.wrapping_add((i * LANES) as u32), counter, key);
            for (word, words) in words.iter().enumerate() {
                for (lane, &w) in words.iter().enumerate() {
                    factors[4 * lane + word] = if w < threshold { 0.0 } else { keep };
                }
            }
        }
    }
}
