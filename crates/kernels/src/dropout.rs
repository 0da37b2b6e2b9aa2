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
        // As many at once as hide a multiplication's latency in the registers that there are.
        let twice = if S::LANES == LANES { factors.len() / (2 * Mask::DRAW) * 2 * Mask::DRAW } else { 0 };
        let (wide, rest) = factors.split_at_mut(twice);
        let later = block.wrapping_add((twice / 4) as u32);
        draw_lanes::<{ 2 * LANES }>(wide, counter, key, block, threshold, keep);
        draw_lanes::<LANES>(rest, counter, key, later, threshold, keep);
    }
}

/// [`draw`], N draws side by side: the factors of whole ones.
#[expect(clippy::inline_always, reason = "compiled for the caller's instruction set")]
#[inline(always)]
fn draw_lanes<const N: usize>(
    factors: &mut [f32],
    counter: [u32; 4],
    key: [u32; 2],
    block: u32,
    threshold: u32,
    keep: f32,
) {
    for (i, factors) in factors.chunks_exact_mut(4 * N).enumerate() {
        let draws = philox4x32_10_lanes::<N>(block.wrapping_add((i * N) as u32), counter, key);
        let words: &[u32] = bytemuck::cast_slice(draws.as_flattened());
        for (factor, &word) in factors.iter_mut().zip(words) {
            *factor = if word < threshold { 0.0 } else { keep };
        }
    }
}
