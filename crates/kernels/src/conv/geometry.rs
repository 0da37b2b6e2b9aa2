//! Sizes of a convolution, how it is computed, and its patches.

use super::weight_grad::SUMMED_OUTPUTS;
use super::{BLOCK_ROWS, block, packed_matrix_len};
use crate::Conv2d;
#[cfg(target_arch = "x86_64")]
use crate::amx;
use crate::buffer::scratch_bytes;
use crate::element::Element;
use crate::product::panel_columns;
use crate::winograd;

/// Sizes of one convolution. Pairs are rows and columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
    /// Whether f32 may be multiplied as the sum of two bf16, in tiles of AMX: with an error of at most 3·2⁻¹⁶ of each product. Kernels that
    /// have no tiles do not look at it.
    pub split: bool,
}

/// One of a convolution's three products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// [`forward`](super::forward).
    Forward,
    /// [`input_grad`](super::input_grad).
    InputGrad,
    /// [`weight_grad`](super::weight_grad()).
    WeightGrad,
}

impl Geometry {
    /// Of a convolution of `[N, H, W, C]`, or of rows as images of one pixel, to `o` channels.
    ///
    /// # Panics
    /// If a side of the kernel is even.
    pub fn new(conv: Conv2d, [n, h, w, c]: [usize; 4], o: usize) -> Self {
        let Conv2d { kernel, stride, padding } = conv;
        assert!(kernel.iter().all(|k| k % 2 == 1), "a kernel {kernel:?} with an even side");
        Self { n, h, w, c, o, kernel, padding: kernel.map(|k| padding.pixels(k)), stride, split: false }
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

    pub(super) fn taps(&self) -> usize {
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
        if self.is_in_tiles::<E>(Pass::Forward) && !self.is_pointwise() {
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
    pub(super) fn columns(&self) -> usize {
        self.taps() * self.c
    }

    /// Whether a column is the pixel itself.
    pub(super) fn is_pointwise(&self) -> bool {
        self.kernel == [1, 1] && self.stride == 1 && self.padding == [[0, 0]; 2]
    }

    /// Whether Winograd's algorithm applies.
    pub(super) fn is_winograd(&self) -> bool {
        let zeros = self.padding[0][0];
        self.kernel == [3, 3] && self.stride == 1 && zeros <= 2 && self.padding == [[zeros; 2]; 2]
    }

    /// Whether a pass has a kernel for tiles of AMX: by the instruction set and the layer alone. With few channels most of a tile were
    /// zeros. In bf16 1x1 convolutions are products in tiles without one, except for the weights' gradient.
    pub(super) fn is_in_tiles<E: Element>(&self, pass: Pass) -> bool {
        let is_bf16 = E::STEP == 2;
        let has_kernel = self.is_winograd() || self.is_pointwise() && (!is_bf16 || pass == Pass::WeightGrad);
        has_kernel && (is_bf16 || self.split) && self.c.min(self.o) >= 16 && crate::Isa::has_tiles()
    }

    /// Values of the weights as [`pack`](super::pack) lays them out. They depend on the size of an image, not on how many there are.
    pub fn packed_len<E: Element>(&self) -> usize {
        #[cfg(target_arch = "x86_64")]
        if self.is_in_tiles::<E>(Pass::Forward) {
            return amx::packed_len::<E>(*self);
        }
        if self.is_winograd() {
            return winograd::packed_len::<E>(*self);
        }
        packed_matrix_len::<E>([self.columns(), self.o])
    }

    /// The convolution of the output's gradient to the input's channels, where every input pixel sees the outputs whose windows
    /// reach it: what a window of three lacked on a side is there twice.
    pub(crate) fn turned(&self) -> Self {
        let padding = if self.is_winograd() { self.padding.map(|zeros| zeros.map(|p| 2 - p)) } else { self.padding };
        Self { h: self.out_h(), w: self.out_w(), c: self.o, o: self.c, padding, ..*self }
    }

    /// # Panics
    /// If there are no channels, or the operands of a pass have other lengths.
    pub(super) fn check(&self, input: usize, weight: usize, output: usize) {
        let Self { c, o, kernel: [k, l], stride, .. } = *self;
        assert!(c > 0 && o > 0 && k > 0 && l > 0 && stride > 0, "a convolution of nothing: {self:?}");
        let lengths = [self.input_len(), self.weight_len(), self.output_len()];
        assert!(
            [input, weight, output] == lengths,
            "a kernel of {weight} values for an input of {input} and an output of {output}, not {lengths:?}: {self:?}"
        );
    }

    /// Bytes of scratch that a pass takes at most on `threads` threads, packed weights and blocks of work, with the instruction
    /// set of this process. A forward pass with weights that are packed takes less by those.
    pub fn scratch_bytes<E: Element>(&self, pass: Pass, threads: usize) -> usize {
        let (depth, wide, threads) = (self.columns(), panel_columns(), threads.max(1));
        let reordered = if self.taps() == 1 { 0 } else { scratch_bytes::<f32>(self.weight_len()) };
        // As `multiply` and its packed weights.
        let multiplied = |outputs: usize, depth: usize, gathers: bool| {
            let (block, deep) = (block(self.rows(), threads), depth.next_multiple_of(E::STEP));
            let gathered = if gathers { scratch_bytes::<E>(block * deep) } else { 0 };
            let packed = scratch_bytes::<E>(packed_matrix_len::<E>([depth, outputs]));
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
                reordered + scratch_bytes::<f32>(packed_matrix_len::<f32>([self.o, depth])) + threads * each
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

    /// Values that a task of [`weight_grad`](super::weight_grad()) takes for so many output channels: its sums, and of a block of rows what is
    /// gathered, its panels and the gradient's cells, as far as they are not there already.
    pub(super) fn summed<E: Element>(&self, outputs: usize) -> (usize, [usize; 3]) {
        let depth = self.columns();
        let width = depth.next_multiple_of(panel_columns());
        let gathered = if self.is_pointwise() { 0 } else { BLOCK_ROWS * depth };
        let panels = if E::STEP == 1 && width == depth { 0 } else { BLOCK_ROWS * width };
        let grads = if E::STEP == 1 { 0 } else { BLOCK_ROWS * outputs };
        (outputs * width, [gathered, panels, grads])
    }

    /// Values that an image's gradient takes where it is scattered: columns, sums and the output's gradient.
    pub(super) fn scattered(&self) -> [usize; 3] {
        let pixels = self.out_h() * self.out_w();
        [pixels * self.columns().next_multiple_of(panel_columns()), self.h * self.w * self.c, pixels * self.o]
    }

    /// Writes the columns of output pixels `first .. first + count` into `col`, `width` values apart, zeros where the
    /// kernel hangs over the border and beyond the column.
    pub(super) fn gather<E: Element>(&self, x: &[E], first: usize, count: usize, col: &mut [E], width: usize) {
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
    pub(super) fn scatter(&self, col: &[f32], width: usize, image: &mut [f32]) {
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
