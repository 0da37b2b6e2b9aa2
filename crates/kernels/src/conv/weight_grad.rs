//! Gradients of weights and bias.

use super::{BLOCK_ROWS, Geometry};
#[cfg(target_arch = "x86_64")]
use crate::amx;
use crate::buffer::with_scratch;
use crate::element::Element;
use crate::pair::pair_rows;
use crate::product::{Left, Panel, panel_columns, product};
use crate::simd::{Simd, each_vector, multiversion};
use crate::winograd;
use rayon::prelude::*;

/// Output channels of one task of the weight gradient.
pub(super) const SUMMED_OUTPUTS: usize = 64;

/// Gradients of the weights `[O, C, k, l]` and the bias `[O]`, from the input and the output's gradient.
pub fn weight_grad<E: Element>(g: Geometry, x: &[E], grad: &[E], weight: &mut [f32], bias: &mut [f32]) {
    g.check(x.len(), weight.len(), grad.len());
    assert_eq!(bias.len(), g.o, "gradient of a bias for {} channels", g.o);
    column_sums(grad, bias);
    #[cfg(target_arch = "x86_64")]
    if g.is_in_tiles::<E>(super::Pass::WeightGrad) {
        return amx::weight_grad(g, x, grad, weight);
    }
    if g.is_winograd() {
        return winograd::weight_grad(g, x, grad, weight);
    }
    let depth = g.columns();
    weight.par_chunks_mut(SUMMED_OUTPUTS * depth).enumerate().for_each(|(task, weight)| {
        sum_products(g, x, grad, task * SUMMED_OUTPUTS, weight);
    });
}

/// The weights' gradient for the output channels from `from` on.
fn sum_products<E: Element>(g: Geometry, x: &[E], grad: &[E], from: usize, weight: &mut [f32]) {
    let (depth, rows, columns) = (g.columns(), g.rows(), panel_columns());
    let (width, outputs) = (depth.next_multiple_of(columns), weight.len() / depth);
    let (sums_len, [gathered_len, panels_len, grads_len]) = g.summed::<E>(outputs);
    with_scratch(sums_len, |sums: &mut [f32]| {
        sums.fill(0.0);
        with_scratch(gathered_len + panels_len + grads_len, |blocks: &mut [E]| {
            let (gathered, blocks) = blocks.split_at_mut(gathered_len);
            let (panels, grads) = blocks.split_at_mut(panels_len);
            for first in (0..rows).step_by(BLOCK_ROWS) {
                let count = BLOCK_ROWS.min(rows - first);
                let col = if g.is_pointwise() {
                    &x[first * depth..(first + count) * depth]
                } else {
                    g.gather(x, first, count, gathered, depth);
                    &gathered[..count * depth]
                };
                let cells = count.div_ceil(E::STEP);
                let grad = &grad[first * g.o..(first + count) * g.o];
                let lhs = if grads_len == 0 {
                    // A cell is a value: the matrix is there.
                    Left { data: &grad[from..], rows: outputs, cells, row_stride: 1, cell_stride: g.o }
                } else {
                    pair_rows(grad, g.o, from, outputs, outputs, grads);
                    Left { data: grads, rows: outputs, cells, row_stride: E::STEP, cell_stride: outputs * E::STEP }
                };
                if panels_len > 0 {
                    pair_rows(col, depth, 0, depth, columns, panels);
                }
                for p in 0..width / columns {
                    let panel = if panels_len == 0 {
                        Panel { data: &col[p * columns..], stride: depth }
                    } else {
                        Panel::packed(&panels[p * cells * E::STEP * columns..])
                    };
                    product(&mut sums[p * columns..], width, lhs, panel, true);
                }
            }
        });
        // From (ky, kx, c) to PyTorch's order.
        for (weight, sums) in weight.chunks_exact_mut(depth).zip(sums.chunks_exact(width)) {
            for (tap, sums) in sums[..depth].chunks_exact(g.c).enumerate() {
                sums.iter().enumerate().for_each(|(i, &v)| weight[i * g.taps() + tap] = v);
            }
        }
    });
}

/// Rows whose sum is one task's.
const SUMMED_ROWS: usize = 1024;

/// Σ over rows of `[rows, width]`.
fn column_sums<E: Element>(values: &[E], sums: &mut [f32]) {
    let width = sums.len();
    let parts: Vec<Vec<f32>> = values
        .par_chunks(SUMMED_ROWS * width)
        .map(|rows| {
            let mut sums = vec![0.0; width];
            add_rows(rows, &mut sums);
            sums
        })
        .collect();
    sums.fill(0.0);
    for part in &parts {
        sums.iter_mut().zip(part).for_each(|(a, b)| *a += b);
    }
}

multiversion! {
    /// Adds every row to `sums`.
    fn add_rows<S, E: Element>(rows: &[E], sums: &mut [f32]) {
        let width = sums.len();
        let count = rows.len() / width;
        // SAFETY: the vectors of all rows lie in `rows`, those of their sums in `sums`.
        unsafe {
            let (rows, sums) = (rows.as_ptr(), sums.as_mut_ptr());
            each_vector!(S, width, j => add_column::<E>(rows.add(j), count, width, sums.add(j)));
        }
    }
}

/// # Safety
/// `rows` is valid for a vector of every row, `sum` for one; the machine has the instruction set.
#[expect(clippy::inline_always, reason = "compiled for the caller's instruction set")]
#[inline(always)]
unsafe fn add_column<S: Simd, E: Element>(rows: *const E, count: usize, width: usize, sum: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut all = S::load(sum);
        for row in 0..count {
            all = S::add(all, E::load::<S>(rows.add(row * width)));
        }
        S::store(sum, all);
    }
}
