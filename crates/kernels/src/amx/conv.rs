//! 3x3 convolutions with stride 1 in tiles, without patches and without transforms.
//!
//! An image's pixels, with the zeros before, above and below them, are one long row of positions: output pixel (y, x) is at y·w + x,
//! where w is the width with these zeros, and sees the inputs at y·w + x + ky·w + kx. The zeros after a row of pixels are those
//! before the next. So for each of the nine taps, the inputs of consecutive positions are consecutive, and are the rows of a tile as
//! they lie in memory. The last positions of each row of pixels are computed in vain. Zeros stand for channels beyond the last, to
//! a whole tile.

use super::blocks::{SUMS, TILE, WIDE, load_sums, step, store_sums, zero_sums};
use super::tiles::{SIDE, Tiles};
use crate::buffer::{Shared, scratch_bytes, with_scratch};
use crate::conv::{Epilogue, Geometry, finish, padded_bias};
use crate::element::Element;
use crate::simd::multiversion;
use crate::transpose::transpose;
use crate::winograd::Direction;
use rayon::prelude::*;
use std::ops::Range;

/// Steps of 32 input channels whose weights, for 32 outputs and a kernel row, stay in a first-level cache.
const GROUP: usize = 4;

/// Blocks of 32 positions that such weights serve in turn.
const RUNS: usize = 4;

/// Positions of a task: enough that the two rows of pixels that it shares with the next one do not matter, and a whole image of 32x32.
const STRIP: usize = 1056;

impl Geometry {
    /// Positions from a row of pixels to the next.
    pub(super) fn wide(&self) -> usize {
        (self.w + self.padding[0][0]).max(self.out_w())
    }

    /// Positions from an output to the last input that it sees.
    pub(super) fn reach(&self) -> usize {
        (self.kernel[0] - 1) * (self.wide() + 1)
    }

    /// Steps of 32 input channels.
    pub(super) fn steps(&self) -> usize {
        self.c.div_ceil(WIDE)
    }
}

/// Copies an image's positions to `to`, `channels` values each; `positions` count from the first zero above it. Those beyond the image
/// and its zeros are zeros as well.
fn copy<E: Element>(g: Geometry, image: &[E], positions: Range<usize>, channels: usize, to: &mut [E]) {
    let (wide, zeros, mut at) = (g.wide(), g.padding[0][0], positions.start);
    let inside = zeros..zeros + g.w;
    while at < positions.end {
        let (y, x) = (at / wide, at % wide);
        let is_pixel = inside.contains(&x) && (zeros..zeros + g.h).contains(&y);
        let ends = [zeros, inside.end, wide].into_iter().find(|end| x < *end);
        let count = (ends.expect("a place in a row") - x).min(positions.end - at);
        let to = &mut to[(at - positions.start) * channels..][..count * channels];
        if is_pixel {
            let from = &image[((y - zeros) * g.w + x - zeros) * g.c..][..count * g.c];
            if channels == g.c {
                to.copy_from_slice(from);
            } else {
                for (to, from) in to.chunks_exact_mut(channels).zip(from.chunks_exact(g.c)) {
                    let (own, beyond) = to.split_at_mut(g.c);
                    own.copy_from_slice(from);
                    beyond.fill(E::default());
                }
            }
        } else {
            to.fill(E::default());
        }
        at += count;
    }
}

/// Values of packed weights.
pub(crate) fn packed_len(g: Geometry) -> usize {
    g.o.div_ceil(WIDE) * 9 * g.steps() * 2 * TILE
}

/// Values that a thread takes to pack the weights of a tile's outputs.
fn pack_len(g: Geometry) -> usize {
    // As much again as a transpose may overwrite.
    (9 * g.steps() * WIDE + SIDE) * SIDE
}

/// Weights as the products read them: for each 32 outputs, kernel row, and group of steps, for each tap and step two tiles.
pub(crate) fn pack<E: Element>(g: Geometry, weight: &[f32], direction: Direction, packed: &mut [E]) {
    let steps = g.steps();
    assert!(E::STEP == 2 && packed.len() == packed_len(g), "weights of another shape, or tiles of another type");
    packed.par_chunks_mut(9 * steps * 2 * TILE).enumerate().for_each(|(p, panel)| {
        with_scratch(pack_len(g), |turned: &mut [f32]| {
            for half in 0..2 {
                let first = p * WIDE + half * SIDE;
                let outputs = g.o.saturating_sub(first).min(SIDE);
                // To [channel][tap][output], with anything for outputs beyond the last.
                match direction {
                    _ if outputs == 0 => {}
                    Direction::Forward => {
                        transpose(&weight[first * g.c * 9..], g.c * 9, [outputs, g.c * 9], turned, SIDE);
                    }
                    Direction::Backward => {
                        for c in 0..g.c {
                            let from = &weight[(c * g.o + first) * 9..];
                            transpose(from, 9, [outputs, 9], &mut turned[c * 9 * SIDE..], SIDE);
                        }
                    }
                }
                // Channels beyond the last, which a transpose may have overwritten.
                turned[g.c * 9 * SIDE..].fill(0.0);
                for tap in 0..9 {
                    let of = if direction == Direction::Backward { 8 - tap } else { tap };
                    for step in 0..steps {
                        let group = step / GROUP * GROUP;
                        let len = GROUP.min(steps - group);
                        let place = (tap / 3 * steps + group) * 3 + tap % 3 * len + step - group;
                        let from = &turned[(step * WIDE * 9 + of) * SIDE..];
                        cells(from, 9 * SIDE, &mut panel[place * 2 * TILE..][..2 * TILE], half);
                    }
                }
            }
        });
    });
}

multiversion! {
    /// One half of 16 cells of 32 columns from rows of 16 values of f32, `stride` apart: two rows to a cell.
    fn cells<S, E: Element>(from: &[f32], stride: usize, to: &mut [E], half: usize) {
        assert!(from.len() >= (WIDE - 1) * stride + SIDE && to.len() == 2 * TILE && E::STEP == 2, "rows of a tile");
        for (i, row) in to.chunks_exact_mut(WIDE).skip(half).step_by(2).enumerate() {
            for j in (0..SIDE).step_by(S::LANES) {
                // SAFETY: both rows have 16 values, the tile's as many cells, and vectors of up to 16 divide them.
                unsafe {
                    let from = from.as_ptr().add(2 * i * stride + j);
                    E::store_cells::<S>(row.as_mut_ptr().add(2 * j), S::load(from), S::load(from.add(stride)));
                }
            }
        }
    }
}

/// Rows of output pixels of a task.
fn strip_rows(g: Geometry, threads: usize) -> usize {
    // Where there are few images, each is cut for all threads: a position's sum depends on no other.
    let shared = g.out_h().div_ceil((2 * threads).div_ceil(g.n.max(1)));
    (STRIP / g.wide().max(1)).min(shared).clamp(1, g.out_h().max(1))
}

/// Values of a task's inputs.
fn strip_len(g: Geometry, rows: usize) -> usize {
    ((rows * g.wide()).next_multiple_of(WIDE) + g.reach()) * g.steps() * WIDE
}

/// The most bytes of scratch that [`pack`] and then [`convolve`] take on `threads` threads, packed weights among them.
pub(crate) fn convolve_scratch<E: Element>(g: Geometry, threads: usize) -> usize {
    let (strip, sums) = (strip_len(g, strip_rows(g, threads)), scratch_bytes::<f32>(RUNS * SUMS));
    // The inputs lie where the weights were turned.
    let turned = scratch_bytes::<f32>(pack_len(g));
    scratch_bytes::<E>(packed_len(g)) + threads * (scratch_bytes::<E>(strip).max(turned) + sums)
}

/// As [`convolve`](super::convolve).
///
/// # Safety
/// The process may use the tiles.
pub(super) unsafe fn convolve<T: Tiles, E: Element>(
    g: Geometry,
    x: &[E],
    packed: &[E],
    epilogue: Epilogue<E>,
    out: &mut [E],
) {
    assert!(E::STEP == 2 && packed.len() == packed_len(g), "weights of another shape, or tiles of another type");
    let rows = strip_rows(g, rayon::current_num_threads());
    let (wide, channels, strips) = (g.wide(), g.steps() * WIDE, g.out_h().div_ceil(rows));
    let bias = padded_bias(epilogue.bias, g.o.next_multiple_of(WIDE));
    let out = Shared::new(out);
    (0..g.n * strips).into_par_iter().for_each(|task| {
        let (image, top) = (task / strips, task % strips * rows);
        let pixels = &x[image * g.h * g.w * g.c..][..g.h * g.w * g.c];
        let positions = rows.min(g.out_h() - top) * wide;
        with_scratch(strip_len(g, rows), |strip: &mut [E]| {
            let from = top * wide;
            copy(g, pixels, from..from + positions.next_multiple_of(WIDE) + g.reach(), channels, strip);
            with_scratch(RUNS * SUMS, |sums: &mut [f32]| {
                for first in (0..positions).step_by(RUNS * WIDE) {
                    let end = positions.min(first + RUNS * WIDE);
                    for (p, panel) in packed.chunks_exact(9 * g.steps() * 2 * TILE).enumerate() {
                        // SAFETY: the caller's promise.
                        unsafe { products::<T, E>(g, &strip[first * channels..], panel, sums, end - first) };
                        let outputs = p * WIDE..g.o.min((p + 1) * WIDE);
                        let bias = &bias[outputs.clone()];
                        let mut at = first;
                        while at < end {
                            let (y, x) = (top + at / wide, at % wide);
                            let count = g.out_w().saturating_sub(x).min(end - at);
                            let row = (image * g.out_h() + y) * g.out_w() + x;
                            let sums = &sums[(at - first) * WIDE..];
                            if count > 0 {
                                let rows = row..row + count;
                                finish(sums, WIDE, rows, g.o, outputs.clone(), bias, epilogue, &out);
                            }
                            at += wide - x;
                        }
                    }
                }
            });
        });
    });
}

/// The sums of up to [`RUNS`] blocks of 32 positions for 32 outputs, position by position.
///
/// # Safety
/// The process may use the tiles.
unsafe fn products<T: Tiles, E: Element>(g: Geometry, strip: &[E], panel: &[E], sums: &mut [f32], positions: usize) {
    let (wide, steps) = (g.wide(), g.steps());
    let channels = steps * WIDE;
    let runs = positions.div_ceil(WIDE);
    let last = (runs * WIDE + g.reach()) * channels;
    assert!(last <= strip.len() && panel.len() == 9 * steps * 2 * TILE && runs * SUMS <= sums.len(), "out of bounds");
    // SAFETY: the rows of tiles lie inside the strip, the panel and the sums, as was just checked.
    unsafe {
        let mut tiles = T::take([SIDE; 2]);
        let mut weights = panel.as_ptr();
        for row in 0..3 {
            for group in (0..steps).step_by(GROUP) {
                let len = GROUP.min(steps - group);
                for run in 0..runs {
                    let sums = sums.as_mut_ptr().add(run * SUMS);
                    let inputs = strip.as_ptr().add((run * WIDE + row * wide) * channels + group * WIDE);
                    let begins = row == 0 && group == 0;
                    if positions - run * WIDE > SIDE {
                        add_taps::<T, E, true>(&mut tiles, begins, sums, inputs, channels, weights, len);
                    } else {
                        add_taps::<T, E, false>(&mut tiles, begins, sums, inputs, channels, weights, len);
                    }
                }
                weights = weights.add(3 * len * 2 * TILE);
            }
        }
    }
}

/// Adds the products of a kernel row's three taps to the sums of 32 positions, or of the first 16; `len` steps of 32 inputs each.
///
/// # Safety
/// The process may use the tiles, and all lie in memory.
#[expect(clippy::inline_always, reason = "an inner loop")]
#[inline(always)]
unsafe fn add_taps<T: Tiles, E: Element, const BOTH: bool>(
    tiles: &mut T,
    begins: bool,
    sums: *mut f32,
    inputs: *const E,
    channels: usize,
    mut weights: *const E,
    len: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        if begins {
            zero_sums::<T, BOTH>(tiles);
        } else {
            load_sums::<T, BOTH>(tiles, sums);
        }
        for column in 0..3 {
            let mut a = inputs.add(column * channels);
            for _ in 0..len {
                step::<T, E, BOTH>(tiles, a, channels, weights);
                a = a.add(WIDE);
                weights = weights.add(2 * TILE);
            }
        }
        store_sums::<T, BOTH>(tiles, sums);
    }
}
