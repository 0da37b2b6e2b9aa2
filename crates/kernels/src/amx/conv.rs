//! 3x3 convolutions with stride 1 in tiles, without patches and without transforms; and the weights' gradient of 1x1 convolutions.
//!
//! An image's pixels, with the zeros before, above and below them, are one long row of positions: output pixel (y, x) is at y·w + x,
//! where w is the width with these zeros, and sees the inputs at y·w + x + ky·w + kx. The zeros after a row of pixels are those
//! before the next. So for each of the nine taps, the inputs of consecutive positions are consecutive, and are the rows of a tile as
//! they lie in memory. The last positions of each row of pixels are computed in vain. Zeros stand for channels beyond the last, to
//! a whole tile.

use super::tiles::{SIDE, Tiles};
use crate::buffer::{Shared, scratch_bytes, with_scratch};
use crate::conv::{Epilogue, Geometry, finish, padded_bias, pair_rows};
use crate::element::Element;
use crate::simd::multiversion;
use crate::transpose::transpose;
use crate::winograd::Direction;
use rayon::prelude::*;
use std::ops::Range;

/// Positions, or channels, of two tiles side by side; and values of a row of bf16.
const WIDE: usize = 2 * SIDE;

/// Values of a tile of bf16.
const TILE: usize = SIDE * WIDE;

/// Values of two by two tiles of sums.
const SUMS: usize = WIDE * WIDE;

/// Steps of 32 input channels whose weights, for 32 outputs and a kernel row, stay in a first-level cache.
const GROUP: usize = 4;

/// Blocks of 32 positions that such weights serve in turn.
const RUNS: usize = 4;

/// Positions of a task: enough that the two rows of pixels that it shares with the next one do not matter, and a whole image of 32x32.
const STRIP: usize = 1056;

impl Geometry {
    /// Positions from a row of pixels to the next.
    fn wide(&self) -> usize {
        (self.w + self.padding[0][0]).max(self.out_w())
    }

    /// Positions from an output to the last input that it sees.
    fn reach(&self) -> usize {
        (self.kernel[0] - 1) * (self.wide() + 1)
    }

    /// Steps of 32 input channels.
    fn steps(&self) -> usize {
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
fn packed_len(g: Geometry) -> usize {
    g.o.div_ceil(WIDE) * 9 * g.steps() * 2 * TILE
}

/// Values that a thread takes to pack the weights of a tile's outputs.
fn pack_len(g: Geometry) -> usize {
    // As much again as a transpose may overwrite.
    (9 * g.steps() * WIDE + SIDE) * SIDE
}

/// Weights as the products read them: for each 32 outputs, kernel row, and group of steps, for each tap and step two tiles.
fn pack<E: Element>(g: Geometry, weight: &[f32], direction: Direction, packed: &mut [E]) {
    let steps = g.steps();
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
                        cells(from, 9 * SIDE, &mut panel[(place * 2 + half) * TILE..][..TILE]);
                    }
                }
            }
        });
    });
}

multiversion! {
    /// A tile from rows of 16 values of f32, `stride` apart: two rows to a row of cells.
    fn cells<S, E: Element>(from: &[f32], stride: usize, tile: &mut [E]) {
        assert!(from.len() >= (WIDE - 1) * stride + SIDE && tile.len() == TILE && E::STEP == 2, "rows of a tile");
        for (i, row) in tile.chunks_exact_mut(WIDE).enumerate() {
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

/// The most bytes of scratch that [`convolve`] takes on `threads` threads.
pub(crate) fn convolve_scratch<E: Element>(g: Geometry, threads: usize) -> usize {
    let (strip, sums) = (strip_len(g, strip_rows(g, threads)), scratch_bytes::<f32>(RUNS * SUMS));
    // The inputs lie where the weights were turned.
    let turned = scratch_bytes::<f32>(pack_len(g));
    scratch_bytes::<E>(packed_len(g)) + threads * (scratch_bytes::<E>(strip).max(turned) + sums)
}

/// The convolution of `x` `[N, H, W, C]` with a weight, into `out` `[N, H', W', O]`.
///
/// # Safety
/// The process may use the tiles.
pub(crate) unsafe fn convolve<T: Tiles, E: Element>(
    g: Geometry,
    x: &[E],
    weight: &[f32],
    direction: Direction,
    epilogue: Epilogue<E>,
    out: &mut [E],
) {
    assert_eq!(E::STEP, 2, "tiles of another type");
    let rows = strip_rows(g, rayon::current_num_threads());
    let (wide, channels) = (g.wide(), g.steps() * WIDE);
    let bias = padded_bias(epilogue.bias, g.o.next_multiple_of(WIDE));
    let out = Shared::new(out);
    with_scratch(packed_len(g), |packed: &mut [E]| {
        pack(g, weight, direction, packed);
        let packed = &*packed;
        let strips = g.out_h().div_ceil(rows);
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

/// Where two by two tiles of sums begin that are [`SUMS`] values, row by row.
fn quarters(sums: *mut f32) -> [*mut u8; 4] {
    [0, SIDE, SIDE * WIDE, SIDE * WIDE + SIDE].map(|at| sums.wrapping_add(at).cast())
}

/// # Safety
/// The process may use the tiles.
unsafe fn zero_sums<T: Tiles, const BOTH: bool>(tiles: &mut T) {
    // SAFETY: the caller's promise.
    unsafe {
        tiles.zero::<0>();
        tiles.zero::<1>();
        if BOTH {
            tiles.zero::<2>();
            tiles.zero::<3>();
        }
    }
}

/// # Safety
/// The process may use the tiles, and `sums` is valid for [`SUMS`] values.
unsafe fn load_sums<T: Tiles, const BOTH: bool>(tiles: &mut T, sums: *mut f32) {
    let [a, b, c, d] = quarters(sums);
    // SAFETY: the caller's promise.
    unsafe {
        tiles.load::<0>(a, 4 * WIDE);
        tiles.load::<1>(b, 4 * WIDE);
        if BOTH {
            tiles.load::<2>(c, 4 * WIDE);
            tiles.load::<3>(d, 4 * WIDE);
        }
    }
}

/// # Safety
/// As [`load_sums`].
unsafe fn store_sums<T: Tiles, const BOTH: bool>(tiles: &T, sums: *mut f32) {
    let [a, b, c, d] = quarters(sums);
    // SAFETY: the caller's promise.
    unsafe {
        tiles.store::<0>(a, 4 * WIDE);
        tiles.store::<1>(b, 4 * WIDE);
        if BOTH {
            tiles.store::<2>(c, 4 * WIDE);
            tiles.store::<3>(d, 4 * WIDE);
        }
    }
}

/// Adds two by two products: of two tiles of rows, `stride` values apart, with two tiles of columns that follow each other. Without
/// `BOTH` only those of the first tile of rows.
///
/// # Safety
/// The process may use the tiles, and all lie in memory.
#[expect(clippy::inline_always, reason = "the innermost loop")]
#[inline(always)]
unsafe fn step<T: Tiles, E: Element, const BOTH: bool>(
    tiles: &mut T,
    rows: *const E,
    stride: usize,
    columns: *const E,
) {
    // SAFETY: the caller's promise.
    unsafe {
        tiles.load::<4>(rows.cast(), 2 * stride);
        tiles.load::<6>(columns.cast(), 2 * WIDE);
        tiles.load::<7>(columns.add(TILE).cast(), 2 * WIDE);
        tiles.dot::<0, 4, 6>();
        tiles.dot::<1, 4, 7>();
        if BOTH {
            tiles.load::<5>(rows.add(SIDE * stride).cast(), 2 * stride);
            tiles.dot::<2, 5, 6>();
            tiles.dot::<3, 5, 7>();
        }
    }
}

/// Bytes of images that are packed before their products are added up.
const PACKED_BYTES: usize = 4 << 20;

/// Pixels that are an image to a 1x1 convolution, which does not look at their neighbours.
const ROW: usize = 1024;

/// Steps of 32 positions whose operands, of 32 inputs and 32 outputs, stay in a first-level cache for all nine taps.
const CHUNK: usize = 8;

/// How the operands of the weights' gradient are packed.
#[derive(Clone, Copy)]
struct Packing {
    /// Steps of 32 output positions of an image.
    steps: usize,
    /// Values of an input channel of an image: its positions, and as many as the last tap sees beyond.
    row: usize,
    /// Blocks of 32 inputs, and of 32 outputs.
    blocks: [usize; 2],
    /// Taps of the kernel.
    taps: usize,
    /// Images that are packed at a time.
    images: usize,
}

/// The batch as the weights' gradient sees it: images, the last of which may be smaller where there is one tap.
#[derive(Clone, Copy)]
struct Batch {
    g: Geometry,
    /// Pixels of all.
    pixels: usize,
}

impl Batch {
    fn new(g: Geometry) -> Self {
        let pixels = g.n * g.h * g.w;
        let in_rows = || Geometry { n: pixels.div_ceil(ROW), h: 1, w: ROW.min(pixels), ..g };
        Self { g: if g.kernel == [1, 1] { in_rows() } else { g }, pixels }
    }

    /// An image with its inputs and the gradient of its outputs.
    fn image<'a, E>(self, i: usize, x: &'a [E], grad: &'a [E]) -> (Geometry, &'a [E], &'a [E]) {
        let (pixels, outputs) = (self.g.h * self.g.w, self.g.out_h() * self.g.out_w());
        let mut g = self.g;
        if g.kernel == [1, 1] {
            g.w = g.w.min(self.pixels - i * g.w);
        }
        let x = &x[i * pixels * g.c..][..g.h * g.w * g.c];
        (g, x, &grad[i * outputs * g.o..][..g.out_h() * g.out_w() * g.o])
    }
}

impl Packing {
    fn new(g: Geometry) -> Self {
        let g = Batch::new(g).g;
        let steps = (g.out_h() * g.wide()).div_ceil(WIDE);
        let lines = (steps * WIDE + g.reach()).div_ceil(WIDE);
        // An odd number of cache lines, so that the rows of a tile do not all fall into the same few sets of a cache.
        let row = (lines | 1) * WIDE;
        let (blocks, taps) = ([g.steps(), g.o.div_ceil(WIDE)], g.kernel[0] * g.kernel[1]);
        let mut packing = Self { steps, row, blocks, taps, images: 1 };
        packing.images = (PACKED_BYTES / (2 * (packing.inputs() + packing.grads()))).clamp(1, g.n.max(1));
        packing
    }

    /// Values of an image's inputs: channel by channel, their positions.
    fn inputs(self) -> usize {
        self.blocks[0] * WIDE * self.row
    }

    /// Values of an image's gradient: for each 32 outputs, and step, two tiles.
    fn grads(self) -> usize {
        self.blocks[1] * self.steps * 2 * TILE
    }

    /// Values of the sums of 32 inputs and 32 outputs.
    fn block(self) -> usize {
        self.taps * SUMS
    }

    /// Values of the sums: for each 32 inputs and 32 outputs, and tap, two by two tiles.
    fn sums(self) -> usize {
        self.blocks[0] * self.blocks[1] * self.block()
    }
}

/// Values that a thread takes to pack 32 positions: inputs as they are and in pairs, or outputs.
fn packing_len(g: Geometry) -> usize {
    WIDE * (2 * g.steps() * WIDE).max(g.o)
}

/// The most bytes of scratch that [`weight_grad`] takes on `threads` threads.
pub(crate) fn weight_grad_scratch<E: Element>(g: Geometry, threads: usize) -> usize {
    let p = Packing::new(g);
    let packed = scratch_bytes::<E>(p.images * (p.inputs() + p.grads()));
    scratch_bytes::<f32>(p.sums()) + packed + threads * scratch_bytes::<E>(packing_len(g))
}

/// The gradient of the weights `[O, C, k, k]` of a 3x3 or 1x1 convolution, from the input and the output's gradient. What is summed in
/// which order depends on the layer and the batch alone.
///
/// # Safety
/// The process may use the tiles.
pub(crate) unsafe fn weight_grad<T: Tiles, E: Element>(g: Geometry, x: &[E], grad: &[E], weight: &mut [f32]) {
    assert_eq!(E::STEP, 2, "tiles of another type");
    let (batch, p) = (Batch::new(g), Packing::new(g));
    with_scratch(p.sums(), |sums: &mut [f32]| {
        sums.fill(0.0);
        with_scratch(p.images * (p.inputs() + p.grads()), |packed: &mut [E]| {
            let (inputs, grads) = packed.split_at_mut(p.images * p.inputs());
            for first in (0..batch.g.n).step_by(p.images) {
                let images = p.images.min(batch.g.n - first);
                let inputs = &mut inputs[..images * p.inputs()];
                let grads = &mut grads[..images * p.grads()];
                let both = inputs.par_chunks_mut(p.inputs()).zip(grads.par_chunks_mut(p.grads()));
                both.enumerate().for_each(|(i, (inputs, grads))| {
                    let (g, x, grad) = batch.image(first + i, x, grad);
                    pack_image(g, x, p, inputs);
                    pack_grad(g, grad, p, grads);
                });
                let (inputs, grads) = (&*inputs, &*grads);
                sums.par_chunks_mut(p.block()).enumerate().for_each(|(block, sums)| {
                    // SAFETY: the caller's promise.
                    unsafe { add_products::<T, E>(batch.g, p, block, inputs, grads, sums) };
                });
            }
        });
        let weight = Shared::new(weight);
        let sums = &*sums;
        (0..p.blocks[0] * p.blocks[1]).into_par_iter().for_each(|block| {
            unpack(g, p, block, &sums[block * p.block()..][..p.block()], &weight);
        });
    });
}

/// An image's inputs, with the zeros around them, channel by channel.
fn pack_image<E: Element>(g: Geometry, image: &[E], p: Packing, inputs: &mut [E]) {
    let channels = p.blocks[0] * WIDE;
    let inputs: &mut [f32] = bytemuck::cast_slice_mut(inputs);
    with_scratch(2 * WIDE * channels, |scratch: &mut [E]| {
        let (strip, pairs) = scratch.split_at_mut(WIDE * channels);
        for at in (0..p.row).step_by(WIDE) {
            copy(g, image, at..at + WIDE, channels, strip);
            pair_rows(strip, channels, 0, channels, channels, pairs);
            // A cell has the size of an f32, and moving one changes no bit of it.
            let pairs: &[f32] = bytemuck::cast_slice(pairs);
            transpose(pairs, channels, [SIDE, channels], &mut inputs[at / 2..], p.row / 2);
        }
    });
}

/// The gradient of an image's outputs, at their positions; zeros between the rows of pixels, anything beyond the last output.
fn pack_grad<E: Element>(g: Geometry, grad: &[E], p: Packing, grads: &mut [E]) {
    // Rows are as far apart as those of the inputs with zeros.
    let (wide, w) = (g.wide(), g.out_w());
    with_scratch(WIDE * g.o, |strip: &mut [E]| {
        for step in 0..p.steps {
            strip.fill(E::default());
            let (mut at, end) = (step * WIDE, ((step + 1) * WIDE).min(g.out_h() * wide));
            while at < end {
                let (y, x) = (at / wide, at % wide);
                let count = w.saturating_sub(x).min(end - at);
                if count > 0 {
                    let to = &mut strip[(at - step * WIDE) * g.o..][..count * g.o];
                    to.copy_from_slice(&grad[(y * w + x) * g.o..][..count * g.o]);
                }
                at += wide - x;
            }
            for block in 0..p.blocks[1] {
                let width = WIDE.min(g.o - block * WIDE);
                let tiles = &mut grads[(block * p.steps + step) * 2 * TILE..][..2 * TILE];
                pair_rows(strip, g.o, block * WIDE, width, SIDE, tiles);
            }
        }
    });
}

/// Adds the products of a block of 32 inputs and 32 outputs over some images, tap by tap.
///
/// # Safety
/// The process may use the tiles.
unsafe fn add_products<T: Tiles, E: Element>(
    g: Geometry,
    p: Packing,
    block: usize,
    inputs: &[E],
    grads: &[E],
    sums: &mut [f32],
) {
    let (c, o) = (block / p.blocks[1], block % p.blocks[1]);
    assert!(sums.len() == p.block() && p.steps * WIDE + g.reach() <= p.row, "out of bounds");
    // One tap needs its operands once.
    let chunk = if p.taps == 1 { p.steps.max(1) } else { CHUNK };
    // SAFETY: inputs, gradients and sums have the lengths of the packing, inside of which the rows of tiles lie.
    unsafe {
        let mut tiles = T::take([SIDE; 2]);
        for (inputs, grads) in inputs.chunks_exact(p.inputs()).zip(grads.chunks_exact(p.grads())) {
            let inputs = inputs[c * WIDE * p.row..][..WIDE * p.row].as_ptr();
            let grads = grads[o * p.steps * 2 * TILE..][..p.steps * 2 * TILE].as_ptr();
            for first in (0..p.steps).step_by(chunk) {
                for tap in 0..p.taps {
                    let sums = sums.as_mut_ptr().add(tap * SUMS);
                    load_sums::<T, true>(&mut tiles, sums);
                    let mut a = inputs.add(first * WIDE + tap / 3 * g.wide() + tap % 3);
                    let mut b = grads.add(first * 2 * TILE);
                    for _ in first..p.steps.min(first + chunk) {
                        step::<T, E, true>(&mut tiles, a, p.row, b);
                        a = a.add(WIDE);
                        b = b.add(2 * TILE);
                    }
                    store_sums::<T, true>(&tiles, sums);
                }
            }
        }
    }
}

/// Writes the sums of a block into PyTorch's order.
fn unpack(g: Geometry, p: Packing, block: usize, sums: &[f32], weight: &Shared<f32>) {
    let (first_c, first_o) = (block / p.blocks[1] * WIDE, block % p.blocks[1] * WIDE);
    weight.assert_inside(g.weight_len());
    for o in 0..WIDE.min(g.o - first_o) {
        for c in 0..WIDE.min(g.c - first_c) {
            let at = ((first_o + o) * g.c + first_c + c) * p.taps;
            for tap in 0..p.taps {
                // SAFETY: inside the weight, as was checked, and of this block alone.
                unsafe { weight.pointer().add(at + tap).write(sums[tap * SUMS + c * WIDE + o]) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amx::tiles::Emulated;
    use crate::buffer::kept_bytes;
    use crate::{Conv2d, Padding};
    use half::bf16;
    use proptest::prelude::*;

    fn values(n: usize, seed: &mut u64) -> Vec<bf16> {
        let mut next = || {
            *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            bf16::from_f32((*seed >> 40) as f32 / (1 << 23) as f32 - 1.0)
        };
        (0..n).map(|_| next()).collect()
    }

    fn floats(values: &[bf16]) -> Vec<f32> {
        values.iter().map(|v| v.to_f32()).collect()
    }

    fn geometry([n, h, w, c, o]: [usize; 5], kernel: usize, zeros: usize) -> Geometry {
        let conv = Conv2d { padding: Padding::Same, ..Conv2d::same([kernel; 2], 1) };
        Geometry { padding: [[zeros; 2]; 2], ..Geometry::new(conv, [n, h, w, c], o) }
    }

    /// Calls `visit` with the places of input, weight and output of every product.
    fn every_product(g: Geometry, mut visit: impl FnMut(usize, usize, usize)) {
        let (zeros, k) = (g.padding[0][0], g.kernel[0]);
        for n in 0..g.n {
            for y in 0..g.out_h() {
                for x in 0..g.out_w() {
                    for tap in 0..k * k {
                        let (iy, ix) = ((y + tap / k).wrapping_sub(zeros), (x + tap % k).wrapping_sub(zeros));
                        if iy >= g.h || ix >= g.w {
                            continue;
                        }
                        for o in 0..g.o {
                            for c in 0..g.c {
                                let input = ((n * g.h + iy) * g.w + ix) * g.c + c;
                                visit(
                                    input,
                                    (o * g.c + c) * k * k + tap,
                                    ((n * g.out_h() + y) * g.out_w() + x) * g.o + o,
                                );
                            }
                        }
                    }
                }
            }
        }
    }

    fn assert_near(found: &[f32], expected: &[f64], tolerance: f64) {
        assert_eq!(found.len(), expected.len());
        for (i, (&found, &expected)) in found.iter().zip(expected).enumerate() {
            let off = (f64::from(found) - expected).abs();
            assert!(off <= tolerance * (1.0 + expected.abs()), "{found}, not {expected}, at {i}");
        }
    }

    fn check(shape: [usize; 5], zeros: usize, mut seed: u64) {
        let g = geometry(shape, 3, zeros);
        let x = values(g.input_len(), &mut seed);
        let grad = values(g.output_len(), &mut seed);
        let weight = floats(&values(g.weight_len(), &mut seed));
        let bias = floats(&values(g.o, &mut seed));
        let (mut y, mut dx, mut dw) = (vec![0.0; g.output_len()], vec![0.0; g.input_len()], vec![0.0; g.weight_len()]);
        for (y, v) in y.iter_mut().zip(&grad) {
            // As the residual.
            *y = f64::from(v.to_f32());
        }
        y.iter_mut().enumerate().for_each(|(i, y)| *y += f64::from(bias[i % g.o]));
        for (dx, v) in dx.iter_mut().zip(&x) {
            *dx = f64::from(v.to_f32());
        }
        let wide = |v: bf16| f64::from(v.to_f32());
        every_product(g, |i, w, o| {
            y[o] += wide(x[i]) * f64::from(weight[w]);
            dx[i] += wide(grad[o]) * f64::from(weight[w]);
            dw[w] += wide(x[i]) * wide(grad[o]);
        });
        let forward = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a thread pool");
            let epilogue = Epilogue { bias: Some(&bias[..]), residual: Some(&grad[..]), relu: false };
            let mut out = vec![bf16::NAN; g.output_len()];
            // SAFETY: emulated tiles are there.
            let convolve =
                || unsafe { convolve::<Emulated, bf16>(g, &x, &weight, Direction::Forward, epilogue, &mut out) };
            pool.install(convolve);
            out
        };
        let out = forward(1);
        // An output is rounded to eight bits, a sum to 24.
        assert_near(&floats(&out), &y, 1.0 / 250.0);
        assert!(forward(3) == out, "strips of another height");
        let mut out = vec![bf16::NAN; g.input_len()];
        let epilogue = Epilogue { bias: None, residual: Some(&x[..]), relu: false };
        // SAFETY: as above.
        unsafe { convolve::<Emulated, bf16>(g.turned(), &grad, &weight, Direction::Backward, epilogue, &mut out) };
        assert_near(&floats(&out), &dx, 1.0 / 250.0);
        check_weight_grad(g, &x, &grad, &dw);
    }

    fn check_weight_grad(g: Geometry, x: &[bf16], grad: &[bf16], expected: &[f64]) {
        let mut out = vec![f32::NAN; g.weight_len()];
        // SAFETY: emulated tiles are there.
        unsafe { weight_grad::<Emulated, bf16>(g, x, grad, &mut out) };
        assert_near(&out, expected, 1e-4);
    }

    #[test]
    fn weight_gradients_of_more_images_than_are_packed_at_a_time_are_plain_loops() {
        let g = geometry([70, 16, 16, 33, 33], 3, 1);
        assert!(Packing::new(g).images < g.n, "one group of images");
        // What a few pixels of each image add, elsewhere zeros.
        let (mut seed, mut dw) = (3, vec![0.0; g.weight_len()]);
        let (x, mut grad) = (values(g.input_len(), &mut seed), vec![bf16::ZERO; g.output_len()]);
        for n in 0..g.n {
            let pixel = n * 256 + n * 37 % 256;
            let (y, column) = (n * 37 % 256 / 16, n * 37 % 16);
            grad[pixel * 33..][..33].copy_from_slice(&values(33, &mut seed));
            for tap in 0..9 {
                let (iy, ix) = ((y + tap / 3).wrapping_sub(1), (column + tap % 3).wrapping_sub(1));
                if iy >= 16 || ix >= 16 {
                    continue;
                }
                for (o, c) in (0..33).flat_map(|o| (0..33).map(move |c| (o, c))) {
                    let input = x[((n * 16 + iy) * 16 + ix) * 33 + c];
                    dw[(o * 33 + c) * 9 + tap] += f64::from(input.to_f32()) * f64::from(grad[pixel * 33 + o].to_f32());
                }
            }
        }
        check_weight_grad(g, &x, &grad, &dw);
    }

    #[test]
    fn weight_gradients_of_single_pixels_are_plain_loops() {
        // Less than a tile of pixels, several rows of them with a rest, and none.
        for shape in [[5, 1, 1, 40, 33], [3, 20, 37, 17, 16], [2, 32, 32, 32, 64], [0, 4, 4, 16, 16]] {
            let (g, mut seed) = (geometry(shape, 1, 0), 11);
            let (x, grad) = (values(g.input_len(), &mut seed), values(g.output_len(), &mut seed));
            let mut dw = vec![0.0; g.weight_len()];
            every_product(g, |i, w, o| dw[w] += f64::from(x[i].to_f32()) * f64::from(grad[o].to_f32()));
            check_weight_grad(g, &x, &grad, &dw);
        }
    }

    #[test]
    fn large_layers_are_plain_loops() {
        // More steps than a group, more positions than blocks of a run and steps of a chunk, tiles that are not full.
        for shape in [[1, 4, 5, 160, 33], [2, 18, 17, 33, 16], [1, 3, 70, 16, 40], [3, 8, 8, 64, 64]] {
            check(shape, 1, 7);
        }
        // The last block of 32 positions has 17, all of which are outputs; and 16.
        check([2, 1, 25, 16, 16], 2, 7);
        check([2, 2, 10, 16, 16], 2, 7);
    }

    #[test]
    fn scratch_is_bounded() {
        let taken = |threads: usize, work: &(dyn Fn() + Sync)| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a thread pool");
            pool.install(work);
            pool.broadcast(|_| kept_bytes()).into_iter().sum::<usize>()
        };
        for (shape, kernel) in [([4, 16, 16, 40, 70], 3), ([1, 5, 7, 160, 33], 3), ([3, 33, 32, 33, 130], 1)] {
            let (g, mut seed) = (geometry(shape, kernel, kernel / 2), 5);
            let (x, grad) = (values(g.input_len(), &mut seed), values(g.output_len(), &mut seed));
            let weight = vec![1.0; g.weight_len()];
            let epilogue = Epilogue { bias: None, residual: None, relu: false };
            let convolved = || {
                let mut out = vec![bf16::NAN; g.output_len()];
                // SAFETY: emulated tiles are there (here and below).
                unsafe { convolve::<Emulated, bf16>(g, &x, &weight, Direction::Forward, epilogue, &mut out) };
            };
            // SAFETY: as above.
            let summed = || unsafe { weight_grad::<Emulated, bf16>(g, &x, &grad, &mut vec![0.0; g.weight_len()]) };
            for threads in [1, 3] {
                let mut all: Vec<(usize, usize)> =
                    vec![(taken(threads, &summed), weight_grad_scratch::<bf16>(g, threads))];
                if kernel == 3 {
                    all.push((taken(threads, &convolved), convolve_scratch::<bf16>(g, threads)));
                }
                for (taken, bound) in all {
                    assert!(taken <= bound, "{taken} bytes, beyond {bound}: {g:?}");
                    // One thread does all of the work: the bound is not idle.
                    assert!(threads > 1 || 2 * taken >= bound, "{taken} bytes, far from {bound}: {g:?}");
                }
            }
        }
    }

    #[test]
    fn an_output_that_is_infinite_touches_no_other() {
        let g = geometry([1, 3, 3, 17, 17], 3, 1);
        let mut weight = vec![1.0; g.weight_len()];
        weight[16 * 17 * 9..].fill(f32::INFINITY);
        let (x, mut out) = (vec![bf16::ONE; g.input_len()], vec![bf16::NAN; g.output_len()]);
        let epilogue = Epilogue { bias: None, residual: None, relu: false };
        // SAFETY: emulated tiles are there.
        unsafe { convolve::<Emulated, bf16>(g, &x, &weight, Direction::Forward, epilogue, &mut out) };
        assert_eq!(out[4 * 17..][..17].iter().filter(|v| v.to_f32() == 9.0 * 17.0).count(), 16);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_shape_is_a_plain_loop(
            n in 0usize..4, h in 1usize..9, w in 1usize..12, c in 1usize..40, o in 1usize..40, zeros in 0usize..3, seed: u64,
        ) {
            let smallest = 3usize.saturating_sub(2 * zeros).max(1);
            check([n, h.max(smallest), w.max(smallest), c, o], zeros, seed);
        }
    }
}
