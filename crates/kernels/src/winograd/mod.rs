//! 3x3 convolutions by Winograd's algorithm (Lavin & Gray, arXiv 1509.09308): fewer products than a plain one.
//!
//! A tile is m x m output pixels and the (m + 2) x (m + 2) input pixels they see. With matrices of one dimension, for m = 2
//!
//! ```text
//!      ⎡1  0 −1  0⎤       ⎡1   0   0⎤
//! Bᵀ = ⎢0  1  1  0⎥   G = ⎢½   ½   ½⎥   Aᵀ = ⎡1 1  1  0⎤
//!      ⎢0 −1  1  0⎥       ⎢½  −½   ½⎥        ⎣0 1 −1 −1⎦
//!      ⎣0  1  0 −1⎦       ⎣0   0   1⎦
//! ```
//!
//! the outputs of a tile are Aᵀ[Σ_c (G g Gᵀ) ⊙ (Bᵀ d B)]A, (m + 2)² matrix products over the channels: 16 for four pixels
//! (2.25 times fewer than a plain convolution's 36), or with m = 4 36 for sixteen (4 times fewer). The gradient of the
//! input is a convolution with the kernel turned by half a turn; that of the weights is Gᵀ[Σ_tiles (Bᵀ d B) ⊙ (A y Aᵀ)]G.
//!
//! The matrices follow from polynomials through points (Toom and Cook): Aᵀ holds their powers, G powers over Lagrange's
//! denominators, Bᵀ the coefficients of the products of the other points' linear factors. Sums are f32 throughout. With bf16
//! the transformed inputs and weights are rounded once, which the larger tile would make worse: it is for f32.

#![allow(unsafe_code, reason = "vectors, and tiles that interleave in the output")]
#![expect(clippy::inline_always, reason = "compiled for the caller's instruction set")]
#![expect(clippy::needless_range_loop, reason = "small squares of vectors read best by their indices")]

mod form;
mod pack;
mod tiles;
mod transform;
mod weight_grad;

use crate::buffer::{Shared, scratch_bytes, with_scratch};
use crate::conv::{Epilogue, Geometry, padded_bias};
use crate::element::Element;
use crate::product::{Left, Panel, panel_columns, product};
use form::{F2, F4, Form};
use pack::point_plane;
use rayon::prelude::*;
use tiles::Tiles;
use transform::{plane, transform_inputs, transform_outputs};

pub(crate) use pack::Direction;

/// Bytes of transformed inputs and sums that a task works on: what leaves room in a second-level cache for weights.
const BLOCK_BYTES: usize = 768 * 1024;

/// Whether the larger tile does an image of this size in fewer steps, those of preparing the weights for a batch of a few
/// images included. It may not depend on the batch: neither do an image's values.
fn is_large<E: Element>(g: Geometry) -> bool {
    let steps = |points: usize, side: usize| points * (g.out_h().div_ceil(side) * g.out_w().div_ceil(side) + 1);
    E::STEP == 1 && steps(F4::POINTS, F4::OUT) < steps(F2::POINTS, F2::OUT)
}

/// Values of packed weights.
pub(crate) fn packed_len<E: Element>(g: Geometry) -> usize {
    if is_large::<E>(g) { pack::packed_len::<E, F4>(g) } else { pack::packed_len::<E, F2>(g) }
}

/// Transforms a weight into what [`convolve`] reads, for `g` as the geometry of the convolution to be done.
pub(crate) fn pack<E: Element>(g: Geometry, weight: &[f32], direction: Direction, packed: &mut [E]) {
    let pack = if is_large::<E>(g) { pack::pack::<E, F4> } else { pack::pack::<E, F2> };
    pack(g, weight, direction, packed);
}

/// The convolution of `x` `[N, H, W, C]` with packed weights, into `out` `[N, H', W', O]`.
pub(crate) fn convolve<E: Element>(g: Geometry, x: &[E], packed: &[E], epilogue: Epilogue<E>, out: &mut [E]) {
    let run = if is_large::<E>(g) { run::<E, F4> } else { run::<E, F2> };
    run(g, x, packed, epilogue, &Shared::new(out));
}

/// The most bytes of scratch that [`pack`] and then [`convolve`] take on `threads` threads, packed weights among them.
pub(crate) fn convolve_scratch<E: Element>(g: Geometry, threads: usize) -> usize {
    let bytes = if is_large::<E>(g) { run_scratch::<E, F4> } else { run_scratch::<E, F2> };
    bytes(g, threads)
}

/// The gradient of the weights `[O, C, 3, 3]`, from the input and the output's gradient.
pub(crate) fn weight_grad<E: Element>(g: Geometry, x: &[E], grad: &[E], weight: &mut [f32]) {
    let run = if is_large::<E>(g) { weight_grad::run::<E, F4> } else { weight_grad::run::<E, F2> };
    run(g, x, grad, &Shared::new(weight));
}

/// The most bytes of scratch that [`weight_grad`] takes on `threads` threads.
pub(crate) fn weight_grad_scratch<E: Element>(g: Geometry, threads: usize) -> usize {
    let bytes = if is_large::<E>(g) { weight_grad::scratch::<E, F4> } else { weight_grad::scratch::<E, F2> };
    bytes(g, threads)
}

/// How the tiles of a convolution are cut into tasks.
struct Blocks {
    /// Tiles of a task.
    block: usize,
    /// Values of a point's transformed inputs and of its sums.
    input_plane: usize,
    sum_plane: usize,
}

impl Blocks {
    fn new<E: Element, F: Form>(tiles: &Tiles, threads: usize) -> Self {
        let (columns, width) = (panel_columns(), tiles.g.c.next_multiple_of(E::STEP));
        let fitting = BLOCK_BYTES / (F::POINTS * (width * size_of::<E>() + columns * size_of::<f32>()));
        // A row of a product does not depend on the others: the block may depend on the number of threads.
        let shared = tiles.count().div_ceil(2 * threads);
        let block = fitting.min(shared).clamp(12, 96).next_multiple_of(12);
        Self { block, input_plane: plane::<E>(block * width), sum_plane: plane::<f32>(block * columns) }
    }
}

/// The most bytes that [`run`] takes.
fn run_scratch<E: Element, F: Form>(g: Geometry, threads: usize) -> usize {
    let blocks = Blocks::new::<E, F>(&Tiles::new::<F>(g), threads);
    let inputs = scratch_bytes::<E>(F::POINTS * blocks.input_plane);
    let sums = scratch_bytes::<f32>(F::POINTS * blocks.sum_plane);
    // The inputs lie where the kernels lay.
    scratch_bytes::<E>(pack::packed_len::<E, F>(g)) + threads * (inputs.max(pack::scratch()) + sums)
}

fn run<E: Element, F: Form>(g: Geometry, x: &[E], packed: &[E], epilogue: Epilogue<E>, out: &Shared<E>) {
    let tiles = Tiles::new::<F>(g);
    let (columns, width) = (panel_columns(), g.c.next_multiple_of(E::STEP));
    let Blocks { block, input_plane, sum_plane } = Blocks::new::<E, F>(&tiles, rayon::current_num_threads());
    let packed_plane = point_plane::<E>(g);
    let zeros = vec![E::default(); width];
    let bias = padded_bias(epilogue.bias, g.o.next_multiple_of(columns));
    // The blocks cover all tiles, the panels all channels, and `transform_outputs` writes those of each.
    (0..tiles.count().div_ceil(block)).into_par_iter().for_each(|task| {
        let block = task * block..tiles.count().min((task + 1) * block);
        with_scratch(F::POINTS * input_plane, |inputs: &mut [E]| {
            transform_inputs::<E, F>(&tiles, x, &zeros, block.clone(), inputs, input_plane);
            with_scratch(F::POINTS * sum_plane, |sums: &mut [f32]| {
                for (p, packed) in packed.chunks_exact(F::POINTS * packed_plane).enumerate() {
                    for (point, packed) in packed.chunks_exact(packed_plane).enumerate() {
                        let lhs = Left {
                            data: &inputs[point * input_plane..],
                            rows: block.len(),
                            cells: width / E::STEP,
                            row_stride: width,
                            cell_stride: E::STEP,
                        };
                        product(&mut sums[point * sum_plane..], columns, lhs, Panel::packed(packed), false);
                    }
                    let channels = p * columns..g.o.min((p + 1) * columns);
                    let (block, bias) = (block.clone(), &bias[p * columns..]);
                    transform_outputs::<E, F>(&tiles, block, sums, sum_plane, channels, bias, epilogue, out);
                }
            });
        });
    });
}
