//! Channels-last convolution: 3x3 with stride 1 by Winograd's algorithm, all others as products of gathered patches.
//!
//! Columns are ordered (ky, kx, c): the taps of one kernel row are neighbours in memory, so building a column is a few
//! long copies. Weights are kept in PyTorch's `[O, C, k, l]` and repacked per call.

#![allow(unsafe_code, reason = "vectors, and tasks that share an output")]

use super::buffer::{Shared, filled, with_scratch};
use super::element::Element;
use super::product::{Left, Panel, panel_columns, product};
use super::simd::{Lanes, Simd, each_vector, multiversion};
use super::transpose::transpose;
use super::winograd::{self, Direction};
use rayon::prelude::*;

/// The geometry of one convolution. Pairs are rows and columns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Geometry {
    pub(crate) n: usize,
    pub(crate) h: usize,
    pub(crate) w: usize,
    pub(crate) c: usize,
    pub(crate) o: usize,
    pub(crate) kernel: [usize; 2],
    /// Zeros on each side.
    pub(crate) padding: [usize; 2],
    pub(crate) stride: usize,
}

/// Output pixels of a block: enough to use a panel of weights well, few enough for a second-level cache.
const BLOCK_ROWS: usize = 96;

impl Geometry {
    pub(crate) fn out_h(&self) -> usize {
        (self.h + 2 * self.padding[0] + self.stride).saturating_sub(self.kernel[0]) / self.stride
    }

    pub(crate) fn out_w(&self) -> usize {
        (self.w + 2 * self.padding[1] + self.stride).saturating_sub(self.kernel[1]) / self.stride
    }

    fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// Output pixels over the whole batch.
    pub(crate) fn rows(&self) -> usize {
        self.n * self.out_h() * self.out_w()
    }

    /// Values of the input.
    pub(crate) fn input_len(&self) -> usize {
        self.n * self.h * self.w * self.c
    }

    /// Values of the output.
    pub(crate) fn output_len(&self) -> usize {
        self.rows() * self.o
    }

    /// Operations of the plain algorithm, a multiply-add counted as two.
    pub(crate) fn flop(&self) -> f64 {
        2.0 * self.rows() as f64 * self.columns() as f64 * self.o as f64
    }

    /// How it is computed.
    pub(crate) fn method(&self) -> &'static str {
        if self.is_winograd() {
            "Winograd"
        } else if self.is_pointwise() {
            "product"
        } else {
            "no kernel of its own: gathered"
        }
    }

    /// Values in one column: all taps of one output pixel.
    fn columns(&self) -> usize {
        self.taps() * self.c
    }

    /// Whether a column is the pixel itself.
    fn is_pointwise(&self) -> bool {
        self.kernel == [1, 1] && self.stride == 1 && self.padding == [0, 0]
    }

    /// Whether Winograd's algorithm applies.
    fn is_winograd(&self) -> bool {
        self.kernel == [3, 3] && self.stride == 1 && self.padding[0] == self.padding[1]
    }

    /// Writes the columns of output pixels `first .. first + count` into `col`, `width` values apart, zeros where the
    /// kernel hangs over the border.
    fn gather<E: Element>(&self, x: &[E], first: usize, count: usize, col: &mut [E], width: usize) {
        let (c, [_, k], [top, side], zero) = (self.c, self.kernel, self.padding, E::default());
        let (oh, ow) = (self.out_h(), self.out_w());
        for (row, dst) in (first..first + count).zip(col.chunks_exact_mut(width)) {
            let (image, oy, ox) = (row / (oh * ow), row / ow % oh, row % ow);
            let left = (ox * self.stride) as isize - side as isize;
            let skip = k.min((-left).max(0) as usize);
            let end = k.min((self.w as isize - left).max(0) as usize).max(skip);
            for (ky, dst) in dst[..self.columns()].chunks_exact_mut(k * c).enumerate() {
                let y = (oy * self.stride + ky) as isize - top as isize;
                if y < 0 || y >= self.h as isize {
                    dst.fill(zero);
                    continue;
                }
                let start = ((image * self.h + y as usize) * self.w) * c;
                let from = start + (left + skip as isize) as usize * c;
                dst[..skip * c].fill(zero);
                dst[skip * c..end * c].copy_from_slice(&x[from..from + (end - skip) * c]);
                dst[end * c..].fill(zero);
            }
        }
    }

    /// The transpose of [`gather`](Self::gather) for one image: adds columns, `width` apart, back onto its pixels.
    fn scatter(&self, col: &[f32], width: usize, image: &mut [f32]) {
        let (c, [_, k], [top, side], ow) = (self.c, self.kernel, self.padding, self.out_w());
        for (row, src) in col.chunks_exact(width).enumerate() {
            let (oy, ox) = (row / ow, row % ow);
            for (tap, src) in src[..self.columns()].chunks_exact(c).enumerate() {
                let y = (oy * self.stride + tap / k) as isize - top as isize;
                let x = (ox * self.stride + tap % k) as isize - side as isize;
                if y >= 0 && y < self.h as isize && x >= 0 && x < self.w as isize {
                    let at = (y as usize * self.w + x as usize) * c;
                    image[at..at + c].iter_mut().zip(src).for_each(|(a, b)| *a += b);
                }
            }
        }
    }
}

/// What happens to the sums of a convolution before they are written.
#[derive(Clone, Copy)]
pub(crate) struct Epilogue<'a, E> {
    /// Added to every pixel `[O]`.
    pub(crate) bias: Option<&'a [f32]>,
    /// Added to the output, shaped as it.
    pub(crate) residual: Option<&'a [E]>,
    /// Whether ReLU follows.
    pub(crate) relu: bool,
}

/// The bias with zeros to a whole number of panels.
pub(crate) fn padded_bias(bias: Option<&[f32]>, len: usize) -> Vec<f32> {
    let mut padded = bias.unwrap_or_default().to_vec();
    padded.resize(len, 0.0);
    padded
}

/// `[O, C, k, l]` to `[O, (ky, kx, C)]`.
fn reorder(weight: &[f32], c: usize, taps: usize) -> Vec<f32> {
    let mut packed = vec![0.0; weight.len()];
    packed.par_chunks_mut(taps * c).zip(weight.par_chunks(taps * c)).for_each(|(dst, src)| {
        for (i, src) in src.chunks_exact(taps).enumerate() {
            src.iter().enumerate().for_each(|(tap, &v)| dst[tap * c + i] = v);
        }
    });
    packed
}

/// The inverse of [`reorder`].
fn restore(packed: &[f32], c: usize, taps: usize) -> Vec<f32> {
    let mut weight = vec![0.0; packed.len()];
    weight.par_chunks_mut(taps * c).zip(packed.par_chunks(taps * c)).for_each(|(dst, src)| {
        for (tap, src) in src.chunks_exact(c).enumerate() {
            src.iter().enumerate().for_each(|(i, &v)| dst[i * taps + tap] = v);
        }
    });
    weight
}

/// A matrix `[depth, columns]` with strides, one of which is 1, as panels `[panel][depth / STEP][column][STEP]` with zeros
/// beyond the depth and anything beyond the last column.
fn pack<E: Element>(values: &[f32], [depth, columns]: [usize; 2], [depth_stride, column_stride]: [usize; 2]) -> Vec<E> {
    let (wide, deep) = (panel_columns(), depth.next_multiple_of(E::STEP));
    let mut packed = vec![E::default(); columns.next_multiple_of(wide) * deep];
    packed.par_chunks_mut(wide * deep).enumerate().for_each(|(p, panel)| {
        let from = &values[p * wide * column_stride..];
        let columns = columns.min((p + 1) * wide) - p * wide;
        if depth_stride == 1 && E::STEP == 1 {
            transpose(from, column_stride, [columns, depth], bytemuck::cast_slice_mut(panel), wide);
        } else {
            pack_panel(from, [depth, columns], [depth_stride, column_stride], panel);
        }
    });
    packed
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

/// Products of rows with packed weights and their epilogue: `gather(first, count, buffer)` writes the rows, `width` apart,
/// or nothing, if they are `direct`ly there.
fn multiply<E: Element>(
    rows: usize,
    outputs: usize,
    width: usize,
    direct: Option<&[E]>,
    packed: &[E],
    epilogue: Epilogue<E>,
    gather: impl Fn(usize, usize, &mut [E]) + Sync,
) -> Vec<E> {
    let columns = panel_columns();
    let bias = padded_bias(epilogue.bias, outputs.next_multiple_of(columns));
    let shared = rows.div_ceil(2 * rayon::current_num_threads());
    let block = shared.clamp(12, BLOCK_ROWS).next_multiple_of(12);
    let gathered = if direct.is_some() { 0 } else { block * width };
    let write = |out: Shared<E>| {
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
    };
    // SAFETY: the blocks cover all rows, the panels all outputs, and `finish` writes those of each.
    unsafe { filled(rows * outputs, write) }
}

multiversion! {
    /// Adds bias and residual to sums and writes them as `channels` of the given rows.
    fn finish<S, E: Element>(
        sums: &[f32],
        stride: usize,
        rows: std::ops::Range<usize>,
        outputs: usize,
        channels: std::ops::Range<usize>,
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

/// Convolution: `x` `[N, H, W, C]`, `weight` `[O, C, k, l]`, `bias` `[O]` and perhaps a residual to `[N, H', W', O]`.
pub(crate) fn forward<E: Element>(g: Geometry, x: &[E], weight: &[f32], epilogue: Epilogue<E>) -> Vec<E> {
    if g.is_winograd() {
        return winograd::convolve(g, x, weight, Direction::Forward, epilogue);
    }
    let (depth, width) = (g.columns(), g.columns().next_multiple_of(E::STEP));
    let reordered;
    let weight = if g.taps() == 1 {
        weight
    } else {
        reordered = reorder(weight, g.c, g.taps());
        &reordered
    };
    let packed = pack(weight, [depth, g.o], [1, depth]);
    let direct = (g.is_pointwise() && depth == width).then_some(x);
    multiply(g.rows(), g.o, width, direct, &packed, epilogue, |first, count, rows| {
        g.gather(x, first, count, rows, width);
    })
}

/// Gradient of the convolution's input: `grad` `[N, H', W', O]` to `[N, H, W, C]`.
pub(crate) fn input_grad<E: Element>(g: Geometry, grad: &[E], weight: &[f32]) -> Vec<E> {
    let plain = Epilogue { bias: None, residual: None, relu: false };
    let turned = Geometry { h: g.out_h(), w: g.out_w(), c: g.o, o: g.c, ..g };
    if g.is_winograd() {
        // Every input sees the outputs whose windows reach it: what the window lacked on a side is there twice.
        let turned = Geometry { padding: g.padding.map(|p| 2 - p), ..turned };
        return winograd::convolve(turned, grad, weight, Direction::Backward, plain);
    }
    let width = g.o.next_multiple_of(E::STEP);
    if g.is_pointwise() {
        let packed = pack(weight, [g.o, g.c], [g.c, 1]);
        let direct = (g.o == width).then_some(grad);
        return multiply(g.rows(), g.c, width, direct, &packed, plain, |first, count, rows| {
            turned.gather(grad, first, count, rows, width);
        });
    }
    let (pixels, depth) = (g.out_h() * g.out_w(), g.columns());
    let packed: Vec<f32> = pack(&reorder(weight, g.c, g.taps()), [g.o, depth], [depth, 1]);
    let columns = panel_columns();
    let col_width = depth.next_multiple_of(columns);
    let mut out = vec![E::default(); g.n * g.h * g.w * g.c];
    out.par_chunks_mut(g.h * g.w * g.c).zip(grad.par_chunks(pixels * g.o)).for_each_init(
        || (vec![0.0f32; pixels * col_width], vec![0.0f32; g.h * g.w * g.c]),
        |(col, sums), (image, grad)| {
            let grad: Vec<f32> = grad.iter().map(|v| v.to_f32()).collect();
            let lhs = Left { data: &grad, rows: pixels, cells: g.o, row_stride: g.o, cell_stride: 1 };
            for (p, packed) in packed.chunks_exact(g.o * columns).enumerate() {
                product(&mut col[p * columns..], col_width, lhs, Panel::packed(packed), false);
            }
            sums.fill(0.0);
            g.scatter(col, col_width, sums);
            image.iter_mut().zip(sums).for_each(|(d, &mut s)| *d = E::from_f32(s));
        },
    );
    out
}

multiversion! {
    /// Rows to cells along them: `width` values from `offset` on of every row of `stride`, as
    /// `[panel][row / STEP][column][STEP]` with zeros beyond the last row and column.
    pub(crate) fn pair_rows<S, E: Element>(
        rows: &[E],
        stride: usize,
        offset: usize,
        width: usize,
        columns: usize,
        out: &mut [E],
    ) {
        let count = rows.len() / stride;
        let cells = count.div_ceil(E::STEP);
        let zeros = vec![E::default(); width];
        for cell in 0..cells {
            let first = &rows[cell * E::STEP * stride + offset..][..width];
            let second = match rows.get((cell * E::STEP + E::STEP - 1) * stride + offset..) {
                Some(row) if !row.is_empty() => &row[..width],
                _ => &zeros,
            };
            for p in 0..width.div_ceil(columns) {
                let own = columns.min(width - p * columns);
                let to = &mut out[(p * cells + cell) * columns * E::STEP..][..columns * E::STEP];
                let (first, second) = (&first[p * columns..][..own], &second[p * columns..][..own]);
                let (to, beyond) = to.split_at_mut(own * E::STEP);
                if E::STEP == 1 {
                    to.copy_from_slice(first);
                } else {
                    for ((to, &first), &second) in to.chunks_exact_mut(2).zip(first).zip(second) {
                        to[0] = first;
                        to[1] = second;
                    }
                }
                beyond.fill(E::default());
            }
        }
    }
}

/// Output channels of one task of the weight gradient.
const SUMMED_OUTPUTS: usize = 64;

/// Gradients of the weights `[O, C, k, l]` and the bias `[O]`.
pub(crate) fn weight_grad<E: Element>(g: Geometry, x: &[E], grad: &[E]) -> (Vec<f32>, Vec<f32>) {
    let bias = column_sums(grad, g.o);
    if g.is_winograd() {
        return (winograd::weight_grad(g, x, grad), bias);
    }
    let (depth, rows, columns) = (g.columns(), g.rows(), panel_columns());
    let width = depth.next_multiple_of(columns);
    let mut weight = vec![0.0; g.o * depth];
    weight.par_chunks_mut(SUMMED_OUTPUTS * depth).enumerate().for_each(|(task, weight)| {
        let (from, outputs) = (task * SUMMED_OUTPUTS, weight.len() / depth);
        let mut sums = vec![0.0; outputs * width];
        let mut gathered = if g.is_pointwise() { Vec::new() } else { vec![E::default(); BLOCK_ROWS * depth] };
        let (mut panels, mut grads) = (Vec::new(), Vec::new());
        for first in (0..rows).step_by(BLOCK_ROWS) {
            let count = BLOCK_ROWS.min(rows - first);
            let col = if g.is_pointwise() {
                &x[first * depth..(first + count) * depth]
            } else {
                g.gather(x, first, count, &mut gathered, depth);
                &gathered[..count * depth]
            };
            let cells = count.div_ceil(E::STEP);
            let grad = &grad[first * g.o..(first + count) * g.o];
            let lhs = if E::STEP == 1 {
                // A cell is a value: the matrix is there.
                Left { data: &grad[from..], rows: outputs, cells, row_stride: 1, cell_stride: g.o }
            } else {
                grads.resize(BLOCK_ROWS * outputs, E::default());
                pair_rows(grad, g.o, from, outputs, outputs, &mut grads);
                Left { data: &grads, rows: outputs, cells, row_stride: E::STEP, cell_stride: outputs * E::STEP }
            };
            let whole = E::STEP == 1 && width == depth;
            if !whole {
                panels.resize(BLOCK_ROWS * width, E::default());
                pair_rows(col, depth, 0, depth, columns, &mut panels);
            }
            for p in 0..width / columns {
                let panel = if whole {
                    Panel { data: &col[p * columns..], stride: depth }
                } else {
                    Panel::packed(&panels[p * cells * E::STEP * columns..])
                };
                product(&mut sums[p * columns..], width, lhs, panel, true);
            }
        }
        for (weight, sums) in weight.chunks_exact_mut(depth).zip(sums.chunks_exact(width)) {
            weight.copy_from_slice(&sums[..depth]);
        }
    });
    (if g.taps() == 1 { weight } else { restore(&weight, g.c, g.taps()) }, bias)
}

/// Rows whose sum is one task's.
const SUMMED_ROWS: usize = 1024;

/// Σ over rows of `[rows, width]`.
fn column_sums<E: Element>(values: &[E], width: usize) -> Vec<f32> {
    let parts: Vec<Vec<f32>> = values
        .par_chunks(SUMMED_ROWS * width)
        .map(|rows| {
            let mut sums = vec![0.0; width];
            add_rows(rows, &mut sums);
            sums
        })
        .collect();
    let mut sums = vec![0.0; width];
    for part in &parts {
        sums.iter_mut().zip(part).for_each(|(a, b)| *a += b);
    }
    sums
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
