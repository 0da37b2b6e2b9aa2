//! Channels-last convolution: 3x3 with stride 1 by Winograd's algorithm, all others as products of gathered patches.
//!
//! Columns are ordered (ky, kx, c): the taps of one kernel row are neighbours in memory, so building a column is a few
//! long copies. Weights are kept in PyTorch's `[O, C, k, l]` and repacked per call.

#![allow(unsafe_code, reason = "vectors, and tasks that share an output")]

use crate::Conv2d;
#[cfg(target_arch = "x86_64")]
use crate::amx;
use crate::buffer::{Shared, scratch_bytes, with_scratch};
use crate::element::Element;
use crate::product::{Left, Panel, panel_columns, product};
use crate::simd::{Lanes, Simd, each_vector, multiversion};
use crate::transpose::transpose;
use crate::winograd::{self, Direction};
use rayon::prelude::*;
use std::ops::Range;

/// Sizes of one convolution. Pairs are rows and columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Images.
    pub n: usize,
    /// Height of the input.
    pub h: usize,
    /// Width of the input.
    pub w: usize,
    /// Channels of the input.
    pub c: usize,
    /// Channels of the output.
    pub o: usize,
    /// Sides of the kernel.
    pub kernel: [usize; 2],
    /// Zeros before and after the input's pixels, by axis.
    pub padding: [[usize; 2]; 2],
    /// Step between output pixels, in input pixels.
    pub stride: usize,
}

/// One of a convolution's three products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// [`forward`].
    Forward,
    /// [`input_grad`].
    InputGrad,
    /// [`weight_grad`].
    WeightGrad,
}

/// Output pixels of a block: enough to use a panel of weights well, few enough for a second-level cache.
const BLOCK_ROWS: usize = 96;

impl Geometry {
    /// Of a convolution of `[N, H, W, C]`, or of rows as images of one pixel, to `o` channels.
    ///
    /// # Panics
    /// If a side of the kernel is even.
    pub fn new(conv: Conv2d, [n, h, w, c]: [usize; 4], o: usize) -> Self {
        let Conv2d { kernel, stride, padding } = conv;
        assert!(kernel.iter().all(|k| k % 2 == 1), "a kernel {kernel:?} with an even side");
        Self { n, h, w, c, o, kernel, padding: kernel.map(|k| padding.pixels(k)), stride }
    }

    fn places(&self, size: usize, axis: usize) -> usize {
        let [before, after] = self.padding[axis];
        (before + size + after + self.stride).saturating_sub(self.kernel[axis]) / self.stride
    }

    /// Height of the output.
    pub fn out_h(&self) -> usize {
        self.places(self.h, 0)
    }

    /// Width of the output.
    pub fn out_w(&self) -> usize {
        self.places(self.w, 1)
    }

    fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// Output pixels over the whole batch.
    pub fn rows(&self) -> usize {
        self.n * self.out_h() * self.out_w()
    }

    /// Values of the input.
    pub fn input_len(&self) -> usize {
        self.n * self.h * self.w * self.c
    }

    /// Values of the output.
    pub fn output_len(&self) -> usize {
        self.rows() * self.o
    }

    /// Values of the weight.
    pub fn weight_len(&self) -> usize {
        self.o * self.columns()
    }

    /// Operations of the plain algorithm, a multiply-add counted as two.
    pub fn flop(&self) -> f64 {
        2.0 * self.rows() as f64 * self.columns() as f64 * self.o as f64
    }

    /// How it is computed.
    pub fn method<E: Element>(&self) -> &'static str {
        if self.is_in_tiles::<E>(Pass::Forward) {
            "implicit product"
        } else if self.is_winograd() {
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
        self.kernel == [1, 1] && self.stride == 1 && self.padding == [[0, 0]; 2]
    }

    /// Whether Winograd's algorithm applies.
    fn is_winograd(&self) -> bool {
        let zeros = self.padding[0][0];
        self.kernel == [3, 3] && self.stride == 1 && zeros <= 2 && self.padding == [[zeros; 2]; 2]
    }

    /// Whether a pass has a kernel for tiles of AMX: by the instruction set and the layer alone. With few channels most of a tile were
    /// zeros.
    fn is_in_tiles<E: Element>(&self, pass: Pass) -> bool {
        let has_kernel = self.is_winograd() || pass == Pass::WeightGrad && self.is_pointwise();
        has_kernel && self.c.min(self.o) >= 16 && E::STEP == 2 && crate::Isa::has_tiles()
    }

    /// The convolution of the output's gradient to the input's channels, where every input pixel sees the outputs whose windows
    /// reach it: what a window of three lacked on a side is there twice.
    pub(crate) fn turned(&self) -> Self {
        let padding = if self.is_winograd() { self.padding.map(|zeros| zeros.map(|p| 2 - p)) } else { self.padding };
        Self { h: self.out_h(), w: self.out_w(), c: self.o, o: self.c, padding, ..*self }
    }

    /// # Panics
    /// If there are no channels, or the operands of a pass have other lengths.
    fn check(&self, input: usize, weight: usize, output: usize) {
        let Self { c, o, kernel: [k, l], stride, .. } = *self;
        assert!(c > 0 && o > 0 && k > 0 && l > 0 && stride > 0, "a convolution of nothing: {self:?}");
        let lengths = [self.input_len(), self.weight_len(), self.output_len()];
        assert!(
            [input, weight, output] == lengths,
            "a kernel of {weight} values for an input of {input} and an output of {output}, not {lengths:?}: {self:?}"
        );
    }

    /// Bytes of scratch that a pass takes at most on `threads` threads, packed weights and blocks of work, with the instruction
    /// set of this process.
    pub fn scratch_bytes<E: Element>(&self, pass: Pass, threads: usize) -> usize {
        let (depth, wide, threads) = (self.columns(), panel_columns(), threads.max(1));
        let reordered = if self.taps() == 1 { 0 } else { scratch_bytes::<f32>(self.weight_len()) };
        // As `multiply` and its packed weights.
        let multiplied = |outputs: usize, depth: usize, gathers: bool| {
            let (block, deep) = (block(self.rows(), threads), depth.next_multiple_of(E::STEP));
            let gathered = if gathers { scratch_bytes::<E>(block * deep) } else { 0 };
            let packed = scratch_bytes::<E>(packed_len::<E>([depth, outputs]));
            packed + threads * (gathered + scratch_bytes::<f32>(block * wide))
        };
        let whole = |depth: usize| depth.is_multiple_of(E::STEP);
        match pass {
            #[cfg(target_arch = "x86_64")]
            Pass::Forward if self.is_in_tiles::<E>(pass) => amx::convolve_scratch::<E>(*self, threads),
            #[cfg(target_arch = "x86_64")]
            Pass::InputGrad if self.is_in_tiles::<E>(pass) => amx::convolve_scratch::<E>(self.turned(), threads),
            #[cfg(target_arch = "x86_64")]
            Pass::WeightGrad if self.is_in_tiles::<E>(pass) => amx::weight_grad_scratch::<E>(*self, threads),
            Pass::Forward if self.is_winograd() => winograd::convolve_scratch::<E>(*self, threads),
            Pass::Forward => reordered + multiplied(self.o, depth, !(self.is_pointwise() && whole(depth))),
            Pass::InputGrad if self.is_winograd() => winograd::convolve_scratch::<E>(self.turned(), threads),
            Pass::InputGrad if self.is_pointwise() => multiplied(self.c, self.o, !whole(self.o)),
            Pass::InputGrad => {
                let each = self.scattered().map(scratch_bytes::<f32>).iter().sum::<usize>();
                reordered + scratch_bytes::<f32>(packed_len::<f32>([self.o, depth])) + threads * each
            }
            Pass::WeightGrad if self.is_winograd() => winograd::weight_grad_scratch::<E>(*self, threads),
            Pass::WeightGrad => {
                let outputs = SUMMED_OUTPUTS.min(self.o);
                let (sums, blocks) = self.summed::<E>(outputs);
                // A product in tiles of AMX turns its left-hand side.
                let turned = outputs * BLOCK_ROWS;
                let each =
                    scratch_bytes::<f32>(sums) + scratch_bytes::<E>(blocks.iter().sum()) + scratch_bytes::<f32>(turned);
                threads * each
            }
        }
    }

    /// Values that a task of [`weight_grad`] takes for so many output channels: its sums, and of a block of rows what is
    /// gathered, its panels and the gradient's cells, as far as they are not there already.
    fn summed<E: Element>(&self, outputs: usize) -> (usize, [usize; 3]) {
        let depth = self.columns();
        let width = depth.next_multiple_of(panel_columns());
        let gathered = if self.is_pointwise() { 0 } else { BLOCK_ROWS * depth };
        let panels = if E::STEP == 1 && width == depth { 0 } else { BLOCK_ROWS * width };
        let grads = if E::STEP == 1 { 0 } else { BLOCK_ROWS * outputs };
        (outputs * width, [gathered, panels, grads])
    }

    /// Values that an image's gradient takes where it is scattered: columns, sums and the output's gradient.
    fn scattered(&self) -> [usize; 3] {
        let pixels = self.out_h() * self.out_w();
        [pixels * self.columns().next_multiple_of(panel_columns()), self.h * self.w * self.c, pixels * self.o]
    }

    /// Writes the columns of output pixels `first .. first + count` into `col`, `width` values apart, zeros where the
    /// kernel hangs over the border and beyond the column.
    fn gather<E: Element>(&self, x: &[E], first: usize, count: usize, col: &mut [E], width: usize) {
        let (c, [_, k], [[top, _], [side, _]], zero) = (self.c, self.kernel, self.padding, E::default());
        let (oh, ow) = (self.out_h(), self.out_w());
        for (row, dst) in (first..first + count).zip(col.chunks_exact_mut(width)) {
            let (image, oy, ox) = (row / (oh * ow), row / ow % oh, row % ow);
            let (dst, beyond) = dst.split_at_mut(self.columns());
            // The last cell's second value meets a weight of zero, but must be a number.
            beyond.fill(zero);
            let left = (ox * self.stride) as isize - side as isize;
            let skip = k.min((-left).max(0) as usize);
            let end = k.min((self.w as isize - left).max(0) as usize).max(skip);
            for (ky, dst) in dst.chunks_exact_mut(k * c).enumerate() {
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
        let (c, [_, k], [[top, _], [side, _]], ow) = (self.c, self.kernel, self.padding, self.out_w());
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
fn packed_len<E: Element>([depth, columns]: [usize; 2]) -> usize {
    columns.next_multiple_of(panel_columns()) * depth.next_multiple_of(E::STEP)
}

/// A matrix `[depth, columns]` with strides, one of which is 1, as panels `[panel][depth / STEP][column][STEP]` with zeros
/// beyond the depth and anything beyond the last column.
fn pack<E: Element>(
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

/// Convolution: `x` `[N, H, W, C]` with `weight` `[O, C, k, l]` into `out` `[N, H', W', O]`, after what the epilogue says.
pub fn forward<E: Element>(g: Geometry, x: &[E], weight: &[f32], epilogue: Epilogue<E>, out: &mut [E]) {
    g.check(x.len(), weight.len(), out.len());
    assert!(epilogue.bias.is_none_or(|bias| bias.len() == g.o), "a bias for another number of channels than {}", g.o);
    assert!(epilogue.residual.is_none_or(|r| r.len() == out.len()), "shape of the residual");
    #[cfg(target_arch = "x86_64")]
    if g.is_in_tiles::<E>(Pass::Forward) {
        // SAFETY: that instruction set was selected, so that the process has the tiles (here and below).
        return unsafe { amx::convolve::<amx::Amx, E>(g, x, weight, Direction::Forward, epilogue, out) };
    }
    if g.is_winograd() {
        return winograd::convolve(g, x, weight, Direction::Forward, epilogue, out);
    }
    let (depth, width) = (g.columns(), g.columns().next_multiple_of(E::STEP));
    with_scratch(packed_len::<E>([depth, g.o]), |packed: &mut [E]| {
        with_reordered(g, weight, |weight| pack(weight, [depth, g.o], [1, depth], packed));
        let direct = (g.is_pointwise() && depth == width).then_some(x);
        multiply(g.rows(), g.o, width, direct, packed, epilogue, out, |first, count, rows| {
            g.gather(x, first, count, rows, width);
        });
    });
}

/// Gradient of the convolution's input: `grad` `[N, H', W', O]` to `out` `[N, H, W, C]`. What `add` has, shaped as the input, is
/// added to it before that is rounded.
pub fn input_grad<E: Element>(g: Geometry, grad: &[E], weight: &[f32], add: Option<&[E]>, out: &mut [E]) {
    g.check(out.len(), weight.len(), grad.len());
    assert!(add.is_none_or(|add| add.len() == out.len()), "shape of what is added to the input's gradient");
    let epilogue = Epilogue { bias: None, residual: add, relu: false };
    #[cfg(target_arch = "x86_64")]
    if g.is_in_tiles::<E>(Pass::InputGrad) {
        // SAFETY: as above.
        return unsafe { amx::convolve::<amx::Amx, E>(g.turned(), grad, weight, Direction::Backward, epilogue, out) };
    }
    if g.is_winograd() {
        return winograd::convolve(g.turned(), grad, weight, Direction::Backward, epilogue, out);
    }
    if g.is_pointwise() {
        let width = g.o.next_multiple_of(E::STEP);
        return with_scratch(packed_len::<E>([g.o, g.c]), |packed: &mut [E]| {
            pack(weight, [g.o, g.c], [g.c, 1], packed);
            let direct = (g.o == width).then_some(grad);
            multiply(g.rows(), g.c, width, direct, packed, epilogue, out, |first, count, rows| {
                g.turned().gather(grad, first, count, rows, width);
            });
        });
    }
    let depth = g.columns();
    with_scratch(packed_len::<f32>([g.o, depth]), |packed: &mut [f32]| {
        with_reordered(g, weight, |weight| pack(weight, [g.o, depth], [depth, 1], packed));
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
        let (count, cells) = (rows.len() / stride, (rows.len() / stride).div_ceil(E::STEP));
        assert!(offset + width <= stride, "columns beyond their rows");
        // After the last row of an odd number.
        let zeros = vec![E::default(); if count.is_multiple_of(E::STEP) { 0 } else { width }];
        for cell in 0..cells {
            let [first, last] = [cell * E::STEP, cell * E::STEP + E::STEP - 1].map(|row| row * stride + offset);
            let second = if last < rows.len() { &rows[last..][..width] } else { &zeros };
            let out = &mut out[cell * columns * E::STEP..];
            pair_row::<S, E>(&rows[first..][..width], second, columns, out, cells * columns * E::STEP);
        }
    }
}

multiversion! {
    /// [`pair_rows`] of whole rows that lie anywhere, an even number of them. Panels begin `panel` values apart.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn pair_slices<S, E: Element>(rows: &[&[E]], columns: usize, out: &mut [E], panel: usize) {
        for (cell, rows) in rows.chunks_exact(E::STEP).enumerate() {
            let out = &mut out[cell * columns * E::STEP..];
            pair_row::<S, E>(rows[0], rows[E::STEP - 1], columns, out, panel);
        }
    }
}

/// Two rows of [`pair_rows`], to a cell of each panel: they begin `panel` values apart in `out`.
#[expect(clippy::inline_always, reason = "compiled for the caller's instruction set")]
#[inline(always)]
fn pair_row<S: Simd, E: Element>(first: &[E], second: &[E], columns: usize, out: &mut [E], panel: usize) {
    let width = first.len();
    assert_eq!(second.len(), width, "rows of another width");
    for p in 0..width.div_ceil(columns) {
        let own = columns.min(width - p * columns);
        let (cell, beyond) = out[p * panel..][..columns * E::STEP].split_at_mut(own * E::STEP);
        // SAFETY: the vectors lie in these columns of both rows, and in the cell; the machine has the instruction set.
        unsafe {
            let [first, second] = [first, second].map(|row| row.as_ptr().add(p * columns));
            let to = cell.as_mut_ptr();
            each_vector!(S, own, j => pair_vector::<E>(to.add(j * E::STEP), first.add(j), second.add(j)));
        }
        beyond.fill(E::default());
    }
}

/// # Safety
/// As [`pair`](crate::element::Vectors::pair).
#[expect(clippy::inline_always, reason = "compiled for the caller's instruction set")]
#[inline(always)]
unsafe fn pair_vector<S: Simd, E: Element>(to: *mut E, first: *const E, second: *const E) {
    // SAFETY: the caller's promise.
    unsafe { E::pair::<S>(to, first, second) }
}

/// Output channels of one task of the weight gradient.
const SUMMED_OUTPUTS: usize = 64;

/// Gradients of the weights `[O, C, k, l]` and the bias `[O]`, from the input and the output's gradient.
pub fn weight_grad<E: Element>(g: Geometry, x: &[E], grad: &[E], weight: &mut [f32], bias: &mut [f32]) {
    g.check(x.len(), weight.len(), grad.len());
    assert_eq!(bias.len(), g.o, "gradient of a bias for {} channels", g.o);
    column_sums(grad, bias);
    #[cfg(target_arch = "x86_64")]
    if g.is_in_tiles::<E>(Pass::WeightGrad) {
        // SAFETY: as above.
        return unsafe { amx::weight_grad::<amx::Amx, E>(g, x, grad, weight) };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Padding;
    use crate::buffer::kept_bytes;
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
