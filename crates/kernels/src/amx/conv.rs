//! 3x3 convolutions with stride 1 in tiles, without patches and without transforms; in f32 also 1x1 convolutions.
//!
//! An image's pixels, with the zeros before, above and below them, are one long row of positions: output pixel (y, x) is at y·w + x,
//! where w is the width with these zeros, and sees the inputs at y·w + x + ky·w + kx. The zeros after a row of pixels are those
//! before the next. So for each of the nine taps, the inputs of consecutive positions are consecutive, and are the rows of a tile as
//! they lie in memory. The last positions of each row of pixels are computed in vain. Zeros stand for channels beyond the last, to
//! a whole tile.
//!
//! Of f32 both halves of a pixel's channels lie one after the other, and what is summed are three [products](super::parts).

use super::blocks::{SUMS, TILE, WIDE, load_sums, step, store_sums, zero_sums};
use super::parts::{self, Half};
use super::tiles::{SIDE, Tiles};
use crate::buffer::{Shared, scratch_bytes, with_scratch};
use crate::conv::{Epilogue, Geometry, finish, padded_bias};
use crate::element::Element;
use crate::simd::multiversion;
use crate::transpose::transpose;
use crate::winograd::Direction;
use half::bf16;
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

/// How a convolution of values of a type is done.
#[derive(Clone, Copy)]
struct Sizes {
    /// Side of the kernel.
    k: usize,
    /// Steps of 32 input channels.
    steps: usize,
    /// Values of bf16 that make up one, and products of them.
    halves: usize,
    products: usize,
    /// Values of a position: both halves of all channels, with zeros to whole steps.
    channels: usize,
}

impl Sizes {
    fn new<E: Element>(g: Geometry) -> Self {
        let (steps, halves) = (g.steps(), parts::halves::<E>());
        Self { k: g.kernel[0], steps, halves, products: parts::products::<E>(), channels: halves * steps * WIDE }
    }

    fn taps(self) -> usize {
        self.k * self.k
    }

    /// Values of the packed weights of 32 outputs.
    fn panel(self) -> usize {
        self.taps() * self.halves * self.steps * 2 * TILE
    }
}

/// A 1x1 convolution does not look at an image's borders: all pixels are the rows of one.
fn without_borders(g: Geometry) -> Geometry {
    if g.kernel == [1, 1] { Geometry { n: 1, h: g.rows(), w: 1, ..g } } else { g }
}

/// Copies an image's positions to `to`; `positions` count from the first zero above it. Those beyond the image and its zeros are zeros as
/// well.
fn copy<E: Element>(g: Geometry, image: &[E], positions: Range<usize>, to: &mut [bf16]) {
    let (wide, zeros, mut at) = (g.wide(), g.padding[0][0], positions.start);
    let (inside, channels) = (zeros..zeros + g.w, Sizes::new::<E>(g).channels);
    while at < positions.end {
        let (y, x) = (at / wide, at % wide);
        let is_pixel = inside.contains(&x) && (zeros..zeros + g.h).contains(&y);
        let ends = [zeros, inside.end, wide].into_iter().find(|end| x < *end);
        let count = (ends.expect("a place in a row") - x).min(positions.end - at);
        let to = &mut to[(at - positions.start) * channels..][..count * channels];
        if is_pixel {
            let from = &image[((y - zeros) * g.w + x - zeros) * g.c..][..count * g.c];
            if channels == g.c {
                parts::take(from, Half::High, to);
            } else {
                let halves = channels / parts::halves::<E>();
                for (to, from) in to.chunks_exact_mut(channels).zip(from.chunks_exact(g.c)) {
                    for (to, half) in to.chunks_exact_mut(halves).zip([Half::High, Half::Low]) {
                        let (own, beyond) = to.split_at_mut(g.c);
                        parts::take(from, half, own);
                        beyond.fill(bf16::ZERO);
                    }
                }
            }
        } else {
            to.fill(bf16::ZERO);
        }
        at += count;
    }
}

/// Values of packed weights.
pub(crate) fn packed_len<E: Element>(g: Geometry) -> usize {
    // Cells have the size of f32.
    g.o.div_ceil(WIDE) * Sizes::new::<E>(g).panel() * 2 / size_of::<E>()
}

/// Values that a thread takes to pack the weights of a tile's outputs.
fn pack_len(g: Geometry) -> usize {
    // As much again as a transpose may overwrite.
    (g.kernel[0] * g.kernel[1] * g.steps() * WIDE + SIDE) * SIDE
}

/// Weights as the products read them: for each 32 outputs, kernel row, half and group of steps, for each tap and step two tiles.
pub(crate) fn pack<E: Element>(g: Geometry, weight: &[f32], direction: Direction, packed: &mut [E]) {
    let sizes = Sizes::new::<E>(g);
    let Sizes { k, steps, halves, .. } = sizes;
    let taps = sizes.taps();
    assert_eq!(packed.len(), packed_len::<E>(g), "weights of another shape");
    bytemuck::cast_slice_mut(packed).par_chunks_mut(sizes.panel()).enumerate().for_each(|(p, panel)| {
        with_scratch(pack_len(g), |turned: &mut [f32]| {
            for half in 0..2 {
                let first = p * WIDE + half * SIDE;
                let outputs = g.o.saturating_sub(first).min(SIDE);
                // To [channel][tap][output], with anything for outputs beyond the last.
                match direction {
                    _ if outputs == 0 => {}
                    Direction::Forward => {
                        transpose(&weight[first * g.c * taps..], g.c * taps, [outputs, g.c * taps], turned, SIDE);
                    }
                    Direction::Backward => {
                        for c in 0..g.c {
                            let from = &weight[(c * g.o + first) * taps..];
                            transpose(from, taps, [outputs, taps], &mut turned[c * taps * SIDE..], SIDE);
                        }
                    }
                }
                // Channels beyond the last, which a transpose may have overwritten.
                turned[g.c * taps * SIDE..].fill(0.0);
                for (tap, part) in (0..taps).flat_map(|tap| (0..halves).map(move |part| (tap, part))) {
                    let of = if direction == Direction::Backward { taps - 1 - tap } else { tap };
                    for step in 0..steps {
                        let group = step / GROUP * GROUP;
                        let len = GROUP.min(steps - group);
                        let before = (tap / k * halves + part) * steps + group;
                        let place = before * k + tap % k * len + step - group;
                        let from = &turned[(step * WIDE * taps + of) * SIDE..];
                        cells(
                            from,
                            taps * SIDE,
                            &mut panel[place * 2 * TILE..][..2 * TILE],
                            half,
                            part == Half::Low as usize,
                        );
                    }
                }
            }
        });
    });
}

multiversion! {
    /// One half of 16 cells of 32 columns, from a part of rows of 16 values of f32, `stride` apart: two rows to a cell.
    fn cells<S>(from: &[f32], stride: usize, to: &mut [bf16], half: usize, low: bool) {
        assert!(from.len() >= (WIDE - 1) * stride + SIDE && to.len() == 2 * TILE, "rows of a tile");
        for (i, row) in to.chunks_exact_mut(WIDE).skip(half).step_by(2).enumerate() {
            for j in (0..SIDE).step_by(S::LANES) {
                // SAFETY: both rows have 16 values, the tile's as many cells, and vectors of up to 16 divide them.
                unsafe {
                    let from = from.as_ptr().add(2 * i * stride + j);
                    let mut pair = [S::load(from), S::load(from.add(stride))];
                    if low {
                        pair = [parts::rest::<S>(pair[0]), parts::rest::<S>(pair[1])];
                    }
                    S::store_pairs(row.as_mut_ptr().add(2 * j).cast(), pair[0], pair[1]);
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
fn strip_len<E: Element>(g: Geometry, rows: usize) -> usize {
    ((rows * g.wide()).next_multiple_of(WIDE) + g.reach()) * Sizes::new::<E>(g).channels
}

/// The most bytes of scratch that [`pack`] and then [`convolve`] take on `threads` threads, packed weights among them.
pub(crate) fn convolve_scratch<E: Element>(g: Geometry, threads: usize) -> usize {
    let g = without_borders(g);
    let strip = scratch_bytes::<bf16>(strip_len::<E>(g, strip_rows(g, threads)));
    // The inputs lie where the weights were turned.
    let turned = scratch_bytes::<f32>(pack_len(g));
    scratch_bytes::<E>(packed_len::<E>(g)) + threads * (strip.max(turned) + scratch_bytes::<f32>(RUNS * SUMS))
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
    assert_eq!(packed.len(), packed_len::<E>(g), "weights of another shape");
    let g = without_borders(g);
    let rows = strip_rows(g, rayon::current_num_threads());
    let (wide, sizes, strips) = (g.wide(), Sizes::new::<E>(g), g.out_h().div_ceil(rows));
    let bias = padded_bias(epilogue.bias, g.o.next_multiple_of(WIDE));
    let (packed, out): (&[bf16], _) = (bytemuck::cast_slice(packed), Shared::new(out));
    (0..g.n * strips).into_par_iter().for_each(|task| {
        let (image, top) = (task / strips, task % strips * rows);
        let pixels = &x[image * g.h * g.w * g.c..][..g.h * g.w * g.c];
        let positions = rows.min(g.out_h() - top) * wide;
        with_scratch(strip_len::<E>(g, rows), |strip: &mut [bf16]| {
            let from = top * wide;
            copy(g, pixels, from..from + positions.next_multiple_of(WIDE) + g.reach(), strip);
            with_scratch(RUNS * SUMS, |sums: &mut [f32]| {
                for first in (0..positions).step_by(RUNS * WIDE) {
                    let end = positions.min(first + RUNS * WIDE);
                    for (p, panel) in packed.chunks_exact(sizes.panel()).enumerate() {
                        // SAFETY: the caller's promise.
                        unsafe { products::<T>(g, sizes, &strip[first * sizes.channels..], panel, sums, end - first) };
                        let outputs = p * WIDE..g.o.min((p + 1) * WIDE);
                        let bias = &bias[outputs.clone()];
                        let mut at = first;
                        while at < end {
                            let (y, x) = (top + at / wide, at % wide);
                            let row = (image * g.out_h() + y) * g.out_w() + x;
                            // To the end of a row of pixels, or of all where nothing lies between rows.
                            let (count, next) = if g.out_w() == wide {
                                (end - at, end)
                            } else {
                                (g.out_w().saturating_sub(x).min(end - at), at + wide - x)
                            };
                            let sums = &sums[(at - first) * WIDE..];
                            if count > 0 {
                                let rows = row..row + count;
                                finish(sums, WIDE, rows, g.o, outputs.clone(), bias, epilogue, &out);
                            }
                            at = next;
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
unsafe fn products<T: Tiles>(
    g: Geometry,
    sizes: Sizes,
    strip: &[bf16],
    panel: &[bf16],
    sums: &mut [f32],
    positions: usize,
) {
    let Sizes { k, steps, halves, products, channels } = sizes;
    let (wide, runs) = (g.wide(), positions.div_ceil(WIDE));
    let last = (runs * WIDE + g.reach()) * channels;
    assert!(last <= strip.len() && panel.len() == sizes.panel() && runs * SUMS <= sums.len(), "out of bounds");
    // SAFETY: the rows of tiles lie inside the strip, the panel and the sums, as was just checked.
    unsafe {
        let mut tiles = T::take([SIDE; 2]);
        for (row, product) in (0..k).flat_map(|row| (0..products).map(move |product| (row, product))) {
            let [of_inputs, of_weights] = parts::of_product(product).map(|half| half as usize);
            let begin = of_inputs * steps * WIDE;
            let mut weights = panel.as_ptr().add((row * halves + of_weights) * k * steps * 2 * TILE);
            for group in (0..steps).step_by(GROUP) {
                let len = GROUP.min(steps - group);
                for run in 0..runs {
                    let sums = sums.as_mut_ptr().add(run * SUMS);
                    let inputs = strip.as_ptr().add((run * WIDE + row * wide) * channels + begin + group * WIDE);
                    let begins = row == 0 && product == 0 && group == 0;
                    if positions - run * WIDE > SIDE {
                        add_taps::<T, true>(&mut tiles, begins, sums, inputs, channels, weights, [k, len]);
                    } else {
                        add_taps::<T, false>(&mut tiles, begins, sums, inputs, channels, weights, [k, len]);
                    }
                }
                weights = weights.add(k * len * 2 * TILE);
            }
        }
    }
}

/// Adds the products of a kernel row's `k` taps to the sums of 32 positions, or of the first 16; `len` steps of 32 inputs each.
///
/// # Safety
/// The process may use the tiles, and all lie in memory.
#[expect(clippy::inline_always, reason = "an inner loop")]
#[inline(always)]
unsafe fn add_taps<T: Tiles, const BOTH: bool>(
    tiles: &mut T,
    begins: bool,
    sums: *mut f32,
    inputs: *const bf16,
    channels: usize,
    mut weights: *const bf16,
    [k, len]: [usize; 2],
) {
    // SAFETY: the caller's promise.
    unsafe {
        if begins {
            zero_sums::<T, BOTH>(tiles);
        } else {
            load_sums::<T, BOTH>(tiles, sums);
        }
        for column in 0..k {
            let mut a = inputs.add(column * channels);
            for _ in 0..len {
                step::<T, BOTH>(tiles, a, channels, weights);
                a = a.add(WIDE);
                weights = weights.add(2 * TILE);
            }
        }
        store_sums::<T, BOTH>(tiles, sums);
    }
}
