//! The gradient of the weights.

use super::form::{Form, SIDE, Square};
use super::pack::PACKED;
use super::tiles::Tiles;
use super::transform::{grad_cells, input_cells, plane};
use crate::buffer::{Shared, scratch_bytes, with_scratch};
use crate::conv::Geometry;
use crate::element::Element;
use crate::product::{Left, Panel, panel_columns, product};
use crate::simd::multiversion;
use rayon::prelude::*;
use std::ops::Range;

/// Channels on either side whose products a task sums: the sums stay in a second-level cache.
const BLOCK_CHANNELS: usize = 64;

/// Bytes of transformed inputs and gradients that a task works on at a time.
const BLOCK_BYTES: usize = 640 * 1024;

/// The most tiles whose products are summed in registers before they are added to memory.
const MAX_STEP: usize = 128;

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

    /// Values of its sums.
    fn sums<F: Form>(&self) -> usize {
        F::POINTS * self.inputs.len() * self.width()
    }

    /// Values from one point's transformed inputs, and gradients, to the next one's.
    fn planes<E: Element, F: Form>(&self) -> [usize; 2] {
        let step = self.step::<E, F>();
        [plane::<E>(step * self.inputs.len()), plane::<E>(step * self.width())]
    }

    /// How many tasks share its tiles, and how many tiles are one's, where there are as many `parts`.
    fn shares<E: Element, F: Form>(&self, parts: usize) -> [usize; 2] {
        let steps = self.tiles.len().div_ceil(self.step::<E, F>());
        let shares = MIN_TASKS.div_ceil(parts).min(steps.div_ceil(4)).max(1);
        [shares, steps.div_ceil(shares) * self.step::<E, F>()]
    }

    /// Tiles whose products are summed in registers before they are added to memory. An even number.
    fn step<E: Element, F: Form>(&self) -> usize {
        let tile = F::POINTS * (self.inputs.len() + self.width()) * size_of::<E>();
        (BLOCK_BYTES / tile).clamp(32, MAX_STEP) & !1
    }
}

/// The blocks of channels whose products are summed together, each over all tiles.
fn parts(g: Geometry, tiles: &Tiles) -> Vec<Part> {
    let blocks = |of: usize| (0..of).step_by(BLOCK_CHANNELS).map(move |at| at..of.min(at + BLOCK_CHANNELS));
    let all = blocks(g.c).flat_map(|inputs| blocks(g.o).map(move |outputs| (inputs.clone(), outputs)));
    all.map(|(inputs, outputs)| Part { inputs, outputs, tiles: 0..tiles.count() }).collect()
}

/// The most bytes that [`run`] takes.
pub(super) fn scratch<E: Element, F: Form>(g: Geometry, threads: usize) -> usize {
    let parts = parts(g, &Tiles::new::<F>(g));
    let shares = |part: &Part| part.shares::<E, F>(parts.len())[0];
    let mut sums: Vec<usize> = parts.iter().map(|part| scratch_bytes::<f32>(shares(part) * part.sums::<F>())).collect();
    sums.sort_unstable_by(|a, b| b.cmp(a));
    // A thread that waits for others' shares of its part may begin another part.
    let waits = threads > 1 && parts.iter().any(|part| shares(part) > 1);
    let kept: usize = sums.iter().take(if waits { parts.len() } else { threads }).sum();
    let planes = |part: &Part| scratch_bytes::<E>(F::POINTS * part.planes::<E, F>().iter().sum::<usize>());
    // A product in tiles of AMX turns its left-hand side.
    let turned = scratch_bytes::<f32>(BLOCK_CHANNELS * MAX_STEP);
    kept + threads * (parts.iter().map(planes).max().unwrap_or_default() + turned)
}

/// The gradient of the weights `[O, C, 3, 3]`, from the input and the output's gradient. What is summed in which order
/// depends on the layer and the batch alone.
pub(super) fn run<E: Element, F: Form>(g: Geometry, x: &[E], grad: &[E], weight: &Shared<f32>) {
    let tiles = Tiles::new::<F>(g);
    let parts = parts(g, &tiles);
    // The parts cover all inputs and outputs, and `unpack` writes the kernels of each.
    parts.par_iter().for_each(|whole| {
        let [shares, share] = whole.shares::<E, F>(parts.len());
        let len = whole.sums::<F>();
        with_scratch(shares * len, |sums: &mut [f32]| {
            sums.par_chunks_mut(len).enumerate().for_each(|(i, sums)| {
                let end = tiles.count().min((i + 1) * share);
                let part = Part { tiles: (i * share).min(end)..end, ..whole.clone() };
                sum_part::<E, F>(&tiles, x, grad, &part, sums);
            });
            let (first, others) = sums.split_at_mut(len);
            for other in others.chunks_exact(len) {
                first.iter_mut().zip(other).for_each(|(a, b)| *a += b);
            }
            unpack::<F>(g, whole, first, weight);
        });
    });
}

/// Σ over a part's tiles of (Bᵀ d B) ⊙ (A y Aᵀ): `[point][input][output]`, of which the outputs beyond the last mean
/// nothing.
fn sum_part<E: Element, F: Form>(tiles: &Tiles, x: &[E], grad: &[E], part: &Part, sums: &mut [f32]) {
    let columns = panel_columns();
    let (count, width, step) = (part.inputs.len(), part.width(), part.step::<E, F>());
    let [input_plane, grad_plane] = part.planes::<E, F>();
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
