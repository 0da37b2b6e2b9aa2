//! The weights' gradient of 3x3 and 1x1 convolutions in tiles: products over the positions of all images.

use super::blocks::{SUMS, TILE, WIDE, load_sums, step, store_sums};
use super::parts::{self, Half};
use super::tiles::{SIDE, Tiles};
use crate::buffer::{Shared, scratch_bytes, with_scratch};
use crate::conv::Geometry;
use crate::element::Element;
use crate::pair::pair_slices;
use crate::transpose::transpose;
use half::bf16;
use rayon::prelude::*;

/// Bytes of images that are packed before their products are added up.
const PACKED_BYTES: usize = 4 << 20;

/// Pixels that are an image to a 1x1 convolution, which does not look at their neighbours.
const ROW: usize = 1024;

/// Steps of 32 positions whose operands, of 32 inputs and 32 outputs, stay in a first-level cache for all nine taps.
const CHUNK: usize = 8;

/// How the operands of the weights' gradient are packed.
#[derive(Clone, Copy)]
pub(super) struct Packing {
    /// Steps of 32 output positions of an image.
    steps: usize,
    /// Values of an input channel of an image: its positions, and as many as the last tap sees beyond.
    row: usize,
    /// Blocks of 32 inputs, and of 32 outputs.
    blocks: [usize; 2],
    /// Taps of the kernel.
    taps: usize,
    /// Values of bf16 that make up one, and products of them.
    halves: usize,
    products: usize,
    /// Images that are packed at a time.
    pub(super) images: usize,
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
    pub(super) fn new<E: Element>(g: Geometry) -> Self {
        let g = Batch::new(g).g;
        let (halves, products) = (parts::halves::<E>(), parts::products::<E>());
        let steps = (g.out_h() * g.wide()).div_ceil(WIDE);
        let lines = (steps * WIDE + g.reach()).div_ceil(WIDE);
        // An odd number of cache lines, so that the rows of a tile do not all fall into the same few sets of a cache.
        let row = (lines | 1) * WIDE;
        let (blocks, taps) = ([g.steps(), g.o.div_ceil(WIDE)], g.kernel[0] * g.kernel[1]);
        let mut packing = Self { steps, row, blocks, taps, halves, products, images: 1 };
        let image = 2 * halves * (packing.inputs() + packing.grads());
        packing.images = (PACKED_BYTES / image).clamp(1, g.n.max(1));
        packing
    }

    /// Values of a half of an image's inputs: channel by channel, their positions.
    fn inputs(self) -> usize {
        self.blocks[0] * WIDE * self.row
    }

    /// Values of a half of an image's gradient: for each 32 outputs, and step, two tiles.
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

/// Values that a thread takes to pack the inputs of 32 positions.
fn packing_len(g: Geometry) -> usize {
    WIDE * g.steps() * WIDE
}

/// Values that a thread takes for a half of what 32 positions have, where that is no copy.
fn half_len<E: Element>(g: Geometry) -> usize {
    if parts::halves::<E>() == 1 { 0 } else { WIDE * g.c.max(g.o) }
}

/// The most bytes of scratch that [`weight_grad`] takes on `threads` threads.
pub(crate) fn weight_grad_scratch<E: Element>(g: Geometry, threads: usize) -> usize {
    let p = Packing::new::<E>(g);
    let packed = scratch_bytes::<bf16>(p.images * p.halves * (p.inputs() + p.grads()));
    let each = scratch_bytes::<bf16>(packing_len(g)) + scratch_bytes::<bf16>(half_len::<E>(g));
    scratch_bytes::<f32>(p.sums()) + packed + threads * each
}

/// As [`weight_grad`](super::weight_grad()).
///
/// # Safety
/// The process may use the tiles.
pub(super) unsafe fn weight_grad<T: Tiles, E: Element>(g: Geometry, x: &[E], grad: &[E], weight: &mut [f32]) {
    let (batch, p, zeros) = (Batch::new(g), Packing::new::<E>(g), vec![E::default(); g.c.max(g.o)]);
    with_scratch(p.sums(), |sums: &mut [f32]| {
        sums.fill(0.0);
        with_scratch(p.images * p.halves * (p.inputs() + p.grads()), |packed: &mut [bf16]| {
            let (inputs, grads) = packed.split_at_mut(p.images * p.halves * p.inputs());
            for first in (0..batch.g.n).step_by(p.images) {
                let count = p.images.min(batch.g.n - first) * p.halves;
                let inputs = &mut inputs[..count * p.inputs()];
                let grads = &mut grads[..count * p.grads()];
                let both = inputs.par_chunks_mut(p.inputs()).zip(grads.par_chunks_mut(p.grads()));
                both.enumerate().for_each(|(i, (inputs, grads))| {
                    let (g, x, grad) = batch.image(first + i / p.halves, x, grad);
                    let half = if i % p.halves == 0 { Half::High } else { Half::Low };
                    pack_image(g, x, half, &zeros, p, inputs);
                    pack_grad(g, grad, half, &zeros, p, grads);
                });
                let (inputs, grads) = (&*inputs, &*grads);
                sums.par_chunks_mut(p.block()).enumerate().for_each(|(block, sums)| {
                    // SAFETY: the caller's promise.
                    unsafe { add_products::<T>(batch.g, p, block, inputs, grads, sums) };
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

/// What consecutive positions have, one after the other: `channels` values of a pixel, or zeros before, above, and after.
fn positions<'a, E>(
    image: &'a [E],
    channels: usize,
    [h, w]: [usize; 2],
    before: usize,
    wide: usize,
    zeros: &'a [E],
) -> impl FnMut() -> &'a [E] {
    let (mut y, mut x) = (0usize, 0usize);
    move || {
        let (row, column) = (y.wrapping_sub(before), x.wrapping_sub(before));
        x += 1;
        if x == wide {
            (y, x) = (y + 1, 0);
        }
        if row >= h || column >= w {
            return &zeros[..channels];
        }
        let pixel = &image[(row * w + column) * channels..][..channels];
        prefetch(pixel, AHEAD * channels);
        pixel
    }
}

/// Pixels that are fetched ahead: those of the next positions.
const AHEAD: usize = WIDE;

/// Asks for the cache lines of what lies `ahead` values after some.
fn prefetch<E>(values: &[E], ahead: usize) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    for line in values.chunks(64 / size_of::<E>()) {
        // SAFETY: a hint, which no address makes fail.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().wrapping_add(ahead).cast()) };
    }
}

/// Pairs a half of what 32 positions have, panels of `columns` values `panel` apart.
fn pair<E: Element>(rows: &[&[E]; WIDE], half: Half, columns: usize, out: &mut [bf16], panel: usize) {
    if parts::halves::<E>() == 1 {
        return pair_slices(&rows.map(bytemuck::cast_slice::<E, bf16>), columns, out, panel);
    }
    let width = rows[0].len();
    with_scratch(WIDE * width, |taken: &mut [bf16]| {
        taken.chunks_exact_mut(width).zip(rows).for_each(|(to, row)| parts::take(row, half, to));
        let rows: [&[bf16]; WIDE] = std::array::from_fn(|i| &taken[i * width..][..width]);
        pair_slices(&rows, columns, out, panel);
    });
}

/// A half of an image's inputs, with the zeros around them, channel by channel.
fn pack_image<E: Element>(g: Geometry, image: &[E], half: Half, zeros: &[E], p: Packing, inputs: &mut [bf16]) {
    let channels = p.blocks[0] * WIDE;
    let inputs: &mut [f32] = bytemuck::cast_slice_mut(inputs);
    let mut next = positions(image, g.c, [g.h, g.w], g.padding[0][0], g.wide(), zeros);
    with_scratch(packing_len(g), |pairs: &mut [bf16]| {
        for at in (0..p.row).step_by(WIDE) {
            pair(&[(); WIDE].map(|()| next()), half, channels, pairs, 0);
            // A cell has the size of an f32, and moving one changes no bit of it.
            let pairs: &[f32] = bytemuck::cast_slice(pairs);
            transpose(pairs, channels, [SIDE, channels], &mut inputs[at / 2..], p.row / 2);
        }
    });
}

/// A half of the gradient of an image's outputs, at their positions; zeros between the rows of pixels and beyond the last output.
fn pack_grad<E: Element>(g: Geometry, grad: &[E], half: Half, zeros: &[E], p: Packing, grads: &mut [bf16]) {
    // Rows are as far apart as those of the inputs with zeros.
    let mut next = positions(grad, g.o, [g.out_h(), g.out_w()], 0, g.wide(), zeros);
    for step in 0..p.steps {
        pair(&[(); WIDE].map(|()| next()), half, WIDE, &mut grads[step * 2 * TILE..], p.steps * 2 * TILE);
    }
}

/// Adds the products of a block of 32 inputs and 32 outputs over some images, tap by tap.
///
/// # Safety
/// The process may use the tiles.
unsafe fn add_products<T: Tiles>(
    g: Geometry,
    p: Packing,
    block: usize,
    inputs: &[bf16],
    grads: &[bf16],
    sums: &mut [f32],
) {
    let (c, o) = (block / p.blocks[1], block % p.blocks[1]);
    assert!(sums.len() == p.block() && p.steps * WIDE + g.reach() <= p.row, "out of bounds");
    // One tap needs its operands once.
    let chunk = if p.taps == 1 { p.steps.max(1) } else { CHUNK };
    // SAFETY: inputs, gradients and sums have the lengths of the packing, inside of which the rows of tiles lie.
    unsafe {
        let mut tiles = T::take([SIDE; 2]);
        let images = inputs.len() / (p.halves * p.inputs());
        for (image, product) in (0..images).flat_map(|image| (0..p.products).map(move |product| (image, product))) {
            let [of_inputs, of_grads] = parts::of_product(product).map(|half| image * p.halves + half as usize);
            let inputs = inputs[of_inputs * p.inputs() + c * WIDE * p.row..][..WIDE * p.row].as_ptr();
            let grads = grads[of_grads * p.grads() + o * p.steps * 2 * TILE..][..p.steps * 2 * TILE].as_ptr();
            for first in (0..p.steps).step_by(chunk) {
                for tap in 0..p.taps {
                    let sums = sums.as_mut_ptr().add(tap * SUMS);
                    load_sums::<T, true>(&mut tiles, sums);
                    let mut a = inputs.add(first * WIDE + tap / 3 * g.wide() + tap % 3);
                    let mut b = grads.add(first * 2 * TILE);
                    for _ in first..p.steps.min(first + chunk) {
                        step::<T, true>(&mut tiles, a, p.row, b);
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
