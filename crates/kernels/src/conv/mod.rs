//! Channels-last convolution: 3x3 with stride 1 by Winograd's algorithm, all others as products of gathered patches.
//!
//! Columns are ordered (ky, kx, c): the taps of one kernel row are neighbours in memory, so building a column is a few
//! long copies. Weights are kept in PyTorch's `[O, C, k, l]` and repacked per call, or [once](pack) for many.

#![allow(unsafe_code, reason = "vectors, and tasks that share an output")]

mod geometry;
mod weight_grad;

#[cfg(target_arch = "x86_64")]
use crate::amx;
use crate::buffer::{Shared, with_scratch};
use crate::element::Element;
use crate::product::{Left, Panel, panel_columns, product};
use crate::simd::{Lanes, Simd, multiversion};
use crate::transpose::transpose;
use crate::winograd::{self, Direction};
use rayon::prelude::*;
use std::ops::Range;

pub use geometry::{Geometry, Pass};
pub use weight_grad::weight_grad;

/// Output pixels of a block: enough to use a panel of weights well, few enough for a second-level cache.
const BLOCK_ROWS: usize = 96;

/// What happens to the sums of a convolution before they are written.
#[derive(Clone, Copy, Debug)]
pub struct Epilogue<'a, E> {
    /// Added to every pixel `[O]`.
    pub bias: Option<&'a [f32]>,
    /// Added to the output, shaped as it.
    pub residual: Option<&'a [E]>,
    /// Whether ReLU follows.
    pub relu: bool,
}

/// The bias with zeros to a whole number of panels.
pub(crate) fn padded_bias(bias: Option<&[f32]>, len: usize) -> Vec<f32> {
    let mut padded = bias.unwrap_or_default().to_vec();
    padded.resize(len, 0.0);
    padded
}

/// `[O, C, k, l]` to `[O, (ky, kx, C)]`.
fn reorder(weight: &[f32], c: usize, taps: usize, reordered: &mut [f32]) {
    reordered.par_chunks_mut(taps * c).zip(weight.par_chunks(taps * c)).for_each(|(dst, src)| {
        for (i, src) in src.chunks_exact(taps).enumerate() {
            src.iter().enumerate().for_each(|(tap, &v)| dst[tap * c + i] = v);
        }
    });
}

/// Runs `work` with a weight as `[O, (ky, kx, C)]`.
fn with_reordered<R>(g: Geometry, weight: &[f32], work: impl FnOnce(&[f32]) -> R) -> R {
    if g.taps() == 1 {
        return work(weight);
    }
    with_scratch(weight.len(), |reordered: &mut [f32]| {
        reorder(weight, g.c, g.taps(), reordered);
        work(reordered)
    })
}

/// Values of a packed matrix `[depth, columns]`.
fn packed_matrix_len<E: Element>([depth, columns]: [usize; 2]) -> usize {
    columns.next_multiple_of(panel_columns()) * depth.next_multiple_of(E::STEP)
}

/// A matrix `[depth, columns]` with strides, one of which is 1, as panels `[panel][depth / STEP][column][STEP]` with zeros
/// beyond the depth and anything beyond the last column.
fn pack_matrix<E: Element>(
    values: &[f32],
    [depth, columns]: [usize; 2],
    [depth_stride, column_stride]: [usize; 2],
    packed: &mut [E],
) {
    let (wide, deep) = (panel_columns(), depth.next_multiple_of(E::STEP));
    packed.par_chunks_mut(wide * deep).enumerate().for_each(|(p, panel)| {
        let from = &values[p * wide * column_stride..];
        let columns = columns.min((p + 1) * wide) - p * wide;
        if depth_stride == 1 && E::STEP == 1 {
            transpose(from, column_stride, [columns, depth], bytemuck::cast_slice_mut(panel), wide);
        } else {
            if depth < deep {
                panel[(deep - E::STEP) * wide..].fill(E::default());
            }
            pack_panel(from, [depth, columns], [depth_stride, column_stride], panel);
        }
    });
}

multiversion! {
    /// One panel.
    fn pack_panel<S, E: Element>(from: &[f32], size: [usize; 2], strides: [usize; 2], panel: &mut [E]) {
        let ([depth, columns], [depth_stride, column_stride]) = (size, strides);
        for (cell, panel) in panel.chunks_exact_mut(2 * S::LANES * E::STEP).enumerate() {
            for k in cell * E::STEP..depth.min((cell + 1) * E::STEP) {
                let from = from[k * depth_stride..].iter().step_by(column_stride).take(columns);
                let to = panel[k % E::STEP..].iter_mut().step_by(E::STEP);
                to.zip(from).for_each(|(to, &v)| *to = E::from_f32(v));
            }
        }
    }
}

/// Rows of a task of [`multiply`].
fn block(rows: usize, threads: usize) -> usize {
    rows.div_ceil(2 * threads).clamp(12, BLOCK_ROWS).next_multiple_of(12)
}

/// Products of rows with packed weights and their epilogue: `gather(first, count, buffer)` writes the rows, `width` apart,
/// or nothing, if they are `direct`ly there.
#[expect(clippy::too_many_arguments, reason = "the operands of one product")]
fn multiply<E: Element>(
    rows: usize,
    outputs: usize,
    width: usize,
    direct: Option<&[E]>,
    packed: &[E],
    epilogue: Epilogue<E>,
    out: &mut [E],
    gather: impl Fn(usize, usize, &mut [E]) + Sync,
) {
    let columns = panel_columns();
    let bias = padded_bias(epilogue.bias, outputs.next_multiple_of(columns));
    let block = block(rows, rayon::current_num_threads());
    let gathered = if direct.is_some() { 0 } else { block * width };
    let out = Shared::new(out);
    // The blocks cover all rows, the panels all outputs, and `finish` writes those of each.
    (0..rows.div_ceil(block)).into_par_iter().for_each(|task| {
        let (first, count) = (task * block, block.min(rows - task * block));
        with_scratch(gathered, |scratch: &mut [E]| {
            let data = if let Some(rows) = direct {
                &rows[first * width..]
            } else {
                gather(first, count, scratch);
                scratch
            };
            let lhs = Left { data, rows: count, cells: width / E::STEP, row_stride: width, cell_stride: E::STEP };
            with_scratch(count * columns, |sums: &mut [f32]| {
                for (p, packed) in packed.chunks_exact(width * columns).enumerate() {
                    product(sums, columns, lhs, Panel::packed(packed), false);
                    let channels = p * columns..outputs.min((p + 1) * columns);
                    let bias = &bias[channels.clone()];
                    finish(sums, columns, first..first + count, outputs, channels, bias, epilogue, &out);
                }
            });
        });
    });
}

multiversion! {
    /// Adds bias and residual to sums and writes them as `channels` of the given rows.
    pub(crate) fn finish<S, E: Element>(
        sums: &[f32],
        stride: usize,
        rows: Range<usize>,
        outputs: usize,
        channels: Range<usize>,
        bias: &[f32],
        epilogue: Epilogue<E>,
        out: &Shared<E>,
    ) {
        let Epilogue { residual, relu, .. } = epilogue;
        out.assert_inside(rows.end * outputs);
        let count = channels.len();
        assert!(channels.end <= outputs && count <= bias.len() && count <= stride && rows.len() * stride <= sums.len());
        assert!(residual.is_none_or(|r| rows.end * outputs <= r.len()), "a residual of another shape");
        for (sums, row) in sums.chunks_exact(stride).zip(rows) {
            let at = row * outputs + channels.start;
            let mut j = 0;
            // SAFETY: the channels lie inside sums, bias, residual and buffer (checked above), and belong to one task.
            unsafe {
                let residual = residual.map(|r| r.as_ptr().add(at));
                let to = out.pointer().add(at);
                while j + S::LANES <= count {
                    finish_vector::<S, E>(to, sums, bias, residual, relu, j);
                    j += S::LANES;
                }
                while j < count {
                    finish_vector::<Lanes<1>, E>(to, sums, bias, residual, relu, j);
                    j += 1;
                }
            }
        }
    }
}

/// # Safety
/// All are valid for a vector at `j`, and the machine has the instruction set.
#[expect(clippy::inline_always, reason = "compiled for the caller's instruction set")]
#[inline(always)]
unsafe fn finish_vector<S: Simd, E: Element>(
    to: *mut E,
    sums: &[f32],
    bias: &[f32],
    residual: Option<*const E>,
    relu: bool,
    j: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut v = S::add(S::load(sums.as_ptr().add(j)), S::load(bias.as_ptr().add(j)));
        if let Some(residual) = residual {
            v = S::add(v, E::load::<S>(residual.add(j)));
        }
        E::store::<S>(to.add(j), if relu { S::max(S::splat(0.0), v) } else { v });
    }
}

/// Lays out a convolution's `weight` `[O, C, k, l]` as the products of [`forward_packed`] read it: [`Geometry::packed_len`] values.
pub fn pack<E: Element>(g: Geometry, weight: &[f32], packed: &mut [E]) {
    assert_eq!((weight.len(), packed.len()), (g.weight_len(), g.packed_len::<E>()), "weights of another shape: {g:?}");
    #[cfg(target_arch = "x86_64")]
    if g.is_in_tiles::<E>(Pass::Forward) {
        return amx::pack(g, weight, Direction::Forward, packed);
    }
    if g.is_winograd() {
        return winograd::pack(g, weight, Direction::Forward, packed);
    }
    let depth = g.columns();
    with_reordered(g, weight, |weight| pack_matrix(weight, [depth, g.o], [1, depth], packed));
}

/// Convolution: `x` `[N, H, W, C]` with `weight` `[O, C, k, l]` into `out` `[N, H', W', O]`, after what the epilogue says.
pub fn forward<E: Element>(g: Geometry, x: &[E], weight: &[f32], epilogue: Epilogue<E>, out: &mut [E]) {
    g.check(x.len(), weight.len(), out.len());
    with_scratch(g.packed_len::<E>(), |packed: &mut [E]| {
        pack(g, weight, packed);
        forward_packed(g, x, packed, epilogue, out);
    });
}

/// As [`forward`], with weights that were [packed](pack) before, for as many images of this size as there are: the same values.
pub fn forward_packed<E: Element>(g: Geometry, x: &[E], packed: &[E], epilogue: Epilogue<E>, out: &mut [E]) {
    g.check(x.len(), g.weight_len(), out.len());
    assert_eq!(packed.len(), g.packed_len::<E>(), "weights that were packed for another convolution than {g:?}");
    assert!(epilogue.bias.is_none_or(|bias| bias.len() == g.o), "a bias for another number of channels than {}", g.o);
    assert!(epilogue.residual.is_none_or(|r| r.len() == out.len()), "shape of the residual");
    #[cfg(target_arch = "x86_64")]
    if g.is_in_tiles::<E>(Pass::Forward) {
        return amx::convolve(g, x, packed, epilogue, out);
    }
    if g.is_winograd() {
        return winograd::convolve(g, x, packed, epilogue, out);
    }
    let (depth, width) = (g.columns(), g.columns().next_multiple_of(E::STEP));
    let direct = (g.is_pointwise() && depth == width).then_some(x);
    multiply(g.rows(), g.o, width, direct, packed, epilogue, out, |first, count, rows| {
        g.gather(x, first, count, rows, width);
    });
}

/// Gradient of the convolution's input: `grad` `[N, H', W', O]` to `out` `[N, H, W, C]`. What `add` has, shaped as the input, is
/// added to it before that is rounded.
pub fn input_grad<E: Element>(g: Geometry, grad: &[E], weight: &[f32], add: Option<&[E]>, out: &mut [E]) {
    g.check(out.len(), weight.len(), grad.len());
    assert!(add.is_none_or(|add| add.len() == out.len()), "shape of what is added to the input's gradient");
    let (turned, epilogue) = (g.turned(), Epilogue { bias: None, residual: add, relu: false });
    #[cfg(target_arch = "x86_64")]
    if g.is_in_tiles::<E>(Pass::InputGrad) {
        return with_scratch(amx::packed_len::<E>(turned), |packed: &mut [E]| {
            amx::pack(turned, weight, Direction::Backward, packed);
            amx::convolve(turned, grad, packed, epilogue, out);
        });
    }
    if g.is_winograd() {
        return with_scratch(winograd::packed_len::<E>(turned), |packed: &mut [E]| {
            winograd::pack(turned, weight, Direction::Backward, packed);
            winograd::convolve(turned, grad, packed, epilogue, out);
        });
    }
    if g.is_pointwise() {
        let width = g.o.next_multiple_of(E::STEP);
        return with_scratch(packed_matrix_len::<E>([g.o, g.c]), |packed: &mut [E]| {
            pack_matrix(weight, [g.o, g.c], [g.c, 1], packed);
            let direct = (g.o == width).then_some(grad);
            multiply(g.rows(), g.c, width, direct, packed, epilogue, out, |first, count, rows| {
                turned.gather(grad, first, count, rows, width);
            });
        });
    }
    let depth = g.columns();
    with_scratch(packed_matrix_len::<f32>([g.o, depth]), |packed: &mut [f32]| {
        with_reordered(g, weight, |weight| pack_matrix(weight, [g.o, depth], [depth, 1], packed));
        scatter_grad(g, grad, packed, add, out);
    });
}

/// [`input_grad`] image by image, from packed weights: the columns' gradients, added up where columns overlap.
fn scatter_grad<E: Element>(g: Geometry, grad: &[E], packed: &[f32], add: Option<&[E]>, out: &mut [E]) {
    let (image, pixels, columns) = (g.h * g.w * g.c, g.out_h() * g.out_w(), panel_columns());
    if out.is_empty() {
        return;
    }
    let width = g.columns().next_multiple_of(columns);
    // An image too small for the kernel has no outputs.
    let packed = if pixels == 0 { &[] } else { packed };
    out.par_chunks_mut(image).enumerate().for_each(|(i, out)| {
        let [columns_len, sums_len, grad_len] = g.scattered();
        with_scratch(sums_len, |sums: &mut [f32]| {
            sums.fill(0.0);
            with_scratch(columns_len, |col: &mut [f32]| {
                with_scratch(grad_len, |wide: &mut [f32]| {
                    let grad = &grad[i * grad_len..][..grad_len];
                    wide.iter_mut().zip(grad).for_each(|(wide, v)| *wide = v.to_f32());
                    let lhs = Left { data: wide, rows: pixels, cells: g.o, row_stride: g.o, cell_stride: 1 };
                    for (p, packed) in packed.chunks_exact(g.o * columns).enumerate() {
                        product(&mut col[p * columns..], width, lhs, Panel::packed(packed), false);
                    }
                    g.scatter(col, width, sums);
                });
            });
            if let Some(add) = add {
                sums.iter_mut().zip(&add[i * image..]).for_each(|(sum, v)| *sum += v.to_f32());
            }
            out.iter_mut().zip(sums).for_each(|(d, &mut s)| *d = E::from_f32(s));
        });
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::kept_bytes;
    use crate::{Conv2d, Padding};
    use half::bf16;

    /// Bytes that a pass left with the threads of a new pool.
    fn taken<E: Element>(g: Geometry, pass: Pass, threads: usize) -> usize {
        let one = E::from_f32(1.0);
        let (mut x, mut y) = (vec![one; g.input_len()], vec![one; g.output_len()]);
        let (mut weight, mut bias) = (vec![1.0; g.weight_len()], vec![1.0; g.o]);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a thread pool");
        pool.install(|| match pass {
            Pass::Forward => {
                forward(g, &x, &weight, Epilogue { bias: Some(&bias), residual: None, relu: false }, &mut y);
            }
            Pass::InputGrad => input_grad(g, &y, &weight, None, &mut x),
            Pass::WeightGrad => weight_grad(g, &x, &y, &mut weight, &mut bias),
        });
        pool.broadcast(|_| kept_bytes()).into_iter().sum()
    }

    #[test]
    fn scratch_is_bounded() {
        let same = |k, stride| Conv2d::same([k; 2], stride);
        let after = Conv2d { padding: Padding::After, ..same(3, 2) };
        for (conv, input, o) in [
            (same(3, 1), [4, 32, 32, 20], 40),
            (same(3, 1), [2, 5, 7, 300], 70),
            (same(3, 1), [1, 1, 1, 1], 1),
            (same(3, 2), [3, 31, 33, 37], 70),
            (after, [3, 32, 32, 36], 35),
            (same(1, 1), [3, 16, 17, 33], 130),
            (same(1, 1), [3, 16, 17, 64], 64),
            (same(1, 2), [3, 16, 17, 9], 12),
            (same(5, 1), [2, 9, 9, 16], 20),
        ] {
            let g = Geometry::new(conv, input, o);
            for pass in [Pass::Forward, Pass::InputGrad, Pass::WeightGrad] {
                for threads in [1, 3] {
                    for (taken, bound) in [
                        (taken::<f32>(g, pass, threads), g.scratch_bytes::<f32>(pass, threads)),
                        (taken::<bf16>(g, pass, threads), g.scratch_bytes::<bf16>(pass, threads)),
                    ] {
                        assert!(taken <= bound, "{taken} bytes, beyond {bound}: {pass:?} on {threads} of {g:?}");
                        // One thread does all of the work: the bound is not idle.
                        assert!(
                            threads > 1 || 3 * taken + 100_000 >= bound,
                            "{taken} bytes, far from {bound}: {pass:?} of {g:?}"
                        );
                    }
                }
            }
        }
    }
}
