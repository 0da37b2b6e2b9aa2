//! The gradient of the weights.

use super::form::{Form, SIDE, Square};
use super::pack::PACKED;
use super::tiles::Tiles;
use super::transform::{grad_cells, input_cells, plane};
use crate::flex::buffer::{Shared, filled, with_scratch};
use crate::flex::conv::Geometry;
use crate::flex::element::Element;
use crate::flex::product::{Left, Panel, panel_columns, product};
use crate::flex::simd::multiversion;
use rayon::prelude::*;
use std::ops::Range;

/// Channels on either side whose products a task sums: the sums stay in a second-level cache.
const BLOCK_CHANNELS: usize = 64;

/// Bytes of transformed inputs and gradients that a task works on at a time.
const BLOCK_BYTES: usize = 640 * 1024;

/// Tasks that the work is cut into at least, where there are enough tiles.
const MIN_TASKS: usize = 16;

/// What one task sums.
#[derive(Clone)]
struct Part {
    inputs: Range<usize>,
    outputs: Range<usize>,
    tiles: Range<usize>,
}

impl Part {
    /// Output channels as whole panels.
    fn width(&self) -> usize {
        self.outputs.len().next_multiple_of(panel_columns())
    }

    /// Tiles whose products are summed in registers before they are added to memory. An even number.
    fn step<E: Element, F: Form>(&self) -> usize {
        let tile = F::POINTS * (self.inputs.len() + self.width()) * size_of::<E>();
        (BLOCK_BYTES / tile).clamp(32, 128) & !1
    }
}

/// The gradient of the weights `[O, C, 3, 3]`, from the input and the output's gradient. What is summed in which order
/// depends on the layer and the batch alone.
pub(super) fn run<E: Element, F: Form>(g: Geometry, x: &[E], grad: &[E]) -> Vec<f32> {
    let tiles = Tiles::new::<F>(g);
    let (rows, columns) = (g.c.div_ceil(BLOCK_CHANNELS), g.o.div_ceil(BLOCK_CHANNELS));
    let block = |i: usize, of: usize| i * BLOCK_CHANNELS..of.min((i + 1) * BLOCK_CHANNELS);
    let write = |weight: Shared<f32>| {
        (0..rows * columns).into_par_iter().for_each(|task| {
            let (inputs, outputs) = (block(task / columns, g.c), block(task % columns, g.o));
            let whole = Part { inputs, outputs, tiles: 0..tiles.count() };
            let steps = tiles.count().div_ceil(whole.step::<E, F>());
            let shares = MIN_TASKS.div_ceil(rows * columns).min(steps.div_ceil(4)).max(1);
            let share = steps.div_ceil(shares) * whole.step::<E, F>();
            let len = F::POINTS * whole.inputs.len() * whole.width();
            with_scratch(shares * len, |sums: &mut [f32]| {
                sums.par_chunks_mut(len).enumerate().for_each(|(i, sums)| {
                    let end = tiles.count().min((i + 1) * share);
                    sum_part::<E, F>(
                        &tiles,
                        x,
                        grad,
                        &Part { tiles: (i * share).min(end)..end, ..whole.clone() },
                        sums,
                    );
                });
                let (first, others) = sums.split_at_mut(len);
                for other in others.chunks_exact(len) {
                    first.iter_mut().zip(other).for_each(|(a, b)| *a += b);
                }
                unpack::<F>(g, &whole, first, &weight);
            });
        });
    };
    // SAFETY: the blocks cover all inputs and outputs, and `unpack` writes the kernels of each.
    unsafe { filled(g.o * g.c * 9, write) }
}

/// Σ over a part's tiles of (Bᵀ d B) ⊙ (A y Aᵀ): `[point][input][output]`, of which the outputs beyond the last mean
/// nothing.
fn sum_part<E: Element, F: Form>(tiles: &Tiles, x: &[E], grad: &[E], part: &Part, sums: &mut [f32]) {
    let columns = panel_columns();
    let (count, width, step) = (part.inputs.len(), part.width(), part.step::<E, F>());
    let (input_plane, grad_plane) = (plane::<E>(step * count), plane::<E>(step * width));
    if part.tiles.is_empty() {
        sums.fill(0.0);
    }
    let zeros = vec![E::default(); tiles.g.c.max(tiles.g.o)];
    with_scratch(F::POINTS * (input_plane + grad_plane), |scratch| {
        let (inputs, grads) = scratch.split_at_mut(F::POINTS * input_plane);
        for first in part.tiles.clone().step_by(step) {
            let block = first..part.tiles.end.min(first + step);
            let cells = block.len().div_ceil(E::STEP);
            input_cells::<E, F>(tiles, x, &zeros, block.clone(), part.inputs.clone(), count, inputs, input_plane);
            grad_cells::<E, F>(tiles, grad, &zeros, block, part.outputs.clone(), columns, grads, grad_plane);
            for j in 0..F::POINTS {
                let lhs = Left {
                    data: &inputs[j * input_plane..],
                    rows: count,
                    cells,
                    row_stride: E::STEP,
                    cell_stride: count * E::STEP,
                };
                for p in 0..width / columns {
                    let panel = &grads[j * grad_plane + p * columns * cells * E::STEP..];
                    let sums = &mut sums[j * count * width + p * columns..];
                    product(sums, width, lhs, Panel::packed(panel), first != part.tiles.start);
                }
            }
        }
    });
}

/// Gᵀ u G of a part's sums, into its kernels.
fn unpack<F: Form>(g: Geometry, part: &Part, sums: &[f32], weight: &Shared<f32>) {
    let (columns, width) = (panel_columns(), part.width());
    weight.assert_inside(g.o * g.c * 9);
    assert!(part.outputs.end <= g.o && part.inputs.end <= g.c, "kernels that are not there");
    let mut taps = vec![0.0; 9 * PACKED * columns];
    for outputs in part.outputs.clone().step_by(columns) {
        for inputs in part.inputs.clone().step_by(PACKED) {
            let count = PACKED.min(part.inputs.end - inputs);
            let from = (inputs - part.inputs.start) * width + outputs - part.outputs.start;
            unpack_points::<F>(&sums[from..], width, part.inputs.len() * width, count, &mut taps);
            for o in 0..columns.min(part.outputs.end - outputs) {
                for i in 0..count {
                    let at = ((outputs + o) * g.c + inputs + i) * 9;
                    for tap in 0..9 {
                        // SAFETY: the kernel lies inside the weight (checked above), and in this part alone.
                        unsafe { weight.pointer().add(at + tap).write(taps[(tap * PACKED + i) * columns + o]) };
                    }
                }
            }
        }
    }
}

multiversion! {
    /// From sums whose rows are `width` and points `plane` values apart to `[tap][channel][column]` for `count` channels.
    fn unpack_points<S, F: Form>(sums: &[f32], width: usize, plane: usize, count: usize, taps: &mut [f32]) {
        let columns = 2 * S::LANES;
        assert!(taps.len() == 9 * PACKED * columns && count <= PACKED && columns <= width);
        assert!((F::POINTS - 1) * plane + (count - 1) * width + columns <= sums.len());
        for i in 0..count {
            for j in [0, S::LANES] {
                // SAFETY: the buffers have places for these channels and columns, checked above.
                unsafe {
                    let from = sums.as_ptr().add(i * width + j);
                    let mut rows: Square<S::V> = [[S::splat(0.0); SIDE]; SIDE];
                    for l in 0..F::IN {
                        let mut column = [S::splat(0.0); SIDE];
                        for k in 0..F::IN {
                            column[k] = S::load(from.add((F::IN * k + l) * plane));
                        }
                        let column = F::g_transposed::<S>(column);
                        for k in 0..3 {
                            rows[k][l] = column[k];
                        }
                    }
                    for k in 0..3 {
                        let kernel = F::g_transposed::<S>(rows[k]);
                        for l in 0..3 {
                            let to = ((3 * k + l) * PACKED + i) * columns + j;
                            S::store(taps.as_mut_ptr().add(to), kernel[l]);
                        }
                    }
                }
            }
        }
    }
}
