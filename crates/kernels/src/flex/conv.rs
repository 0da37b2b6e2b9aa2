//! Channels-last convolution as tiled im2col and matrix products.
//!
//! Columns are ordered (ky, kx, c): the taps of one kernel row are neighbours in memory, so building a column is a few
//! long copies. Weights are kept in PyTorch's `[O, C, k, k]` and repacked per call.

use super::gemm::{Mat, matmul};
use rayon::prelude::*;

/// The geometry of one convolution with a square odd kernel and padding `k / 2`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Geometry {
    pub(crate) n: usize,
    pub(crate) h: usize,
    pub(crate) w: usize,
    pub(crate) c: usize,
    pub(crate) o: usize,
    pub(crate) k: usize,
    pub(crate) stride: usize,
}

/// Values a column tile may hold: half of a small L2 cache.
const TILE_VALUES: usize = 32 * 1024;

/// Slices that the weight gradient is split into at most: each has a copy of the weights to sum into.
const MAX_PARTIALS: usize = 16;

impl Geometry {
    fn out_h(&self) -> usize {
        self.h.div_ceil(self.stride)
    }

    fn out_w(&self) -> usize {
        self.w.div_ceil(self.stride)
    }

    /// Output pixels over the whole batch.
    pub(crate) fn rows(&self) -> usize {
        self.n * self.out_h() * self.out_w()
    }

    /// Values in one column: all taps of one output pixel.
    fn columns(&self) -> usize {
        self.k * self.k * self.c
    }

    /// Output pixels in one tile. It depends on the layer alone: every product has the same shape, so a pixel's value
    /// does not depend on how many images share the batch.
    fn tile_rows(&self) -> usize {
        (TILE_VALUES / self.columns()).next_multiple_of(16).clamp(16, 128)
    }

    /// Whether a column is the pixel itself.
    fn is_pointwise(&self) -> bool {
        self.k == 1 && self.stride == 1
    }

    /// Writes the columns of output pixels `first .. first + count` into `col`, zeros where the kernel hangs over the
    /// border.
    fn gather(&self, x: &[f32], first: usize, count: usize, col: &mut [f32]) {
        let (c, k, pad) = (self.c, self.k, self.k / 2);
        let (oh, ow) = (self.out_h(), self.out_w());
        for (row, dst) in (first..first + count).zip(col.chunks_exact_mut(self.columns())) {
            let (image, oy, ox) = (row / (oh * ow), row / ow % oh, row % ow);
            let left = (ox * self.stride) as isize - pad as isize;
            let skip = (-left).max(0) as usize;
            let end = k.min((self.w as isize - left) as usize);
            for (ky, dst) in dst.chunks_exact_mut(k * c).enumerate() {
                let y = (oy * self.stride + ky) as isize - pad as isize;
                if y < 0 || y >= self.h as isize {
                    dst.fill(0.0);
                    continue;
                }
                let start = ((image * self.h + y as usize) * self.w) * c;
                let from = start + (left + skip as isize) as usize * c;
                dst[..skip * c].fill(0.0);
                dst[skip * c..end * c].copy_from_slice(&x[from..from + (end - skip) * c]);
                dst[end * c..].fill(0.0);
            }
        }
    }

    /// The transpose of [`gather`](Self::gather) for one image: adds columns back onto its pixels.
    fn scatter(&self, col: &[f32], image: &mut [f32]) {
        let (c, k, pad, ow) = (self.c, self.k, self.k / 2, self.out_w());
        for (row, src) in col.chunks_exact(self.columns()).enumerate() {
            let (oy, ox) = (row / ow, row % ow);
            for (tap, src) in src.chunks_exact(c).enumerate() {
                let y = (oy * self.stride + tap / k) as isize - pad as isize;
                let x = (ox * self.stride + tap % k) as isize - pad as isize;
                if y >= 0 && y < self.h as isize && x >= 0 && x < self.w as isize {
                    let at = (y as usize * self.w + x as usize) * c;
                    image[at..at + c].iter_mut().zip(src).for_each(|(a, b)| *a += b);
                }
            }
        }
    }
}

/// `[O, C, k, k]` to `[O, (ky, kx, C)]`.
fn pack(weight: &[f32], c: usize, taps: usize) -> Vec<f32> {
    let mut packed = vec![0.0; weight.len()];
    packed.par_chunks_mut(taps * c).zip(weight.par_chunks(taps * c)).for_each(|(dst, src)| {
        for (i, src) in src.chunks_exact(taps).enumerate() {
            src.iter().enumerate().for_each(|(tap, &v)| dst[tap * c + i] = v);
        }
    });
    packed
}

/// The inverse of [`pack`].
fn unpack(packed: &[f32], c: usize, taps: usize) -> Vec<f32> {
    let mut weight = vec![0.0; packed.len()];
    weight.par_chunks_mut(taps * c).zip(packed.par_chunks(taps * c)).for_each(|(dst, src)| {
        for (tap, src) in src.chunks_exact(c).enumerate() {
            src.iter().enumerate().for_each(|(i, &v)| dst[i * taps + tap] = v);
        }
    });
    weight
}

/// `[O, C, k, k]` to `[C, (ky, kx, O)]` with the kernel turned by half a turn: the weights whose convolution with the
/// output's gradient is the input's gradient.
fn pack_turned(weight: &[f32], o: usize, c: usize, taps: usize) -> Vec<f32> {
    /// Input channels done together, so that the scattered writes stay in the first-level cache.
    const BLOCK: usize = 16;
    let mut packed = vec![0.0; weight.len()];
    packed.par_chunks_mut(BLOCK * taps * o).enumerate().for_each(|(block, dst)| {
        for j in 0..o {
            let from = (j * c + block * BLOCK) * taps;
            for (i, src) in weight[from..from + dst.len() / o].chunks_exact(taps).enumerate() {
                src.iter().enumerate().for_each(|(tap, &v)| dst[(i * taps + taps - 1 - tap) * o + j] = v);
            }
        }
    });
    packed
}

/// `y[pixel, o] = Σ col[pixel, j] packed[o, j] + bias[o]` for every output pixel, with `packed` as `[O, (ky, kx, C)]`.
fn apply(g: Geometry, x: &[f32], packed: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
    let (tile, columns, rows) = (g.tile_rows(), g.columns(), g.rows());
    let rhs = Mat::row_major(packed, g.o, columns).t();
    let mut out = vec![0.0; rows * g.o];
    out.par_chunks_mut(tile * g.o).enumerate().for_each_init(Vec::new, |scratch: &mut Vec<f32>, (i, out)| {
        let (first, count) = (i * tile, out.len() / g.o);
        let whole = count == tile;
        let col: &[f32] = if g.is_pointwise() && whole {
            &x[first * columns..(first + count) * columns]
        } else {
            scratch.resize(tile * columns, 0.0);
            scratch[count * columns..].fill(0.0);
            g.gather(x, first, count, &mut scratch[..count * columns]);
            scratch
        };
        let lhs = Mat::row_major(col, tile, columns);
        if whole {
            matmul(out, g.o, lhs, rhs, false);
        } else {
            // The product keeps its full shape and the surplus rows are dropped: see `tile_rows`.
            let mut padded = vec![0.0; tile * g.o];
            matmul(&mut padded, g.o, lhs, rhs, false);
            out.copy_from_slice(&padded[..count * g.o]);
        }
        if let Some(bias) = bias {
            for pixel in out.chunks_exact_mut(g.o) {
                pixel.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
            }
        }
    });
    out
}

/// Convolution: `x` `[N, H, W, C]`, `weight` `[O, C, k, k]`, `bias` `[O]` to `[N, H', W', O]`.
pub(crate) fn forward(g: Geometry, x: &[f32], weight: &[f32], bias: &[f32]) -> Vec<f32> {
    if g.k == 1 { apply(g, x, weight, Some(bias)) } else { apply(g, x, &pack(weight, g.c, g.k * g.k), Some(bias)) }
}

/// Gradient of the convolution's input: `grad` `[N, H', W', O]` to `[N, H, W, C]`.
pub(crate) fn input_grad(g: Geometry, grad: &[f32], weight: &[f32]) -> Vec<f32> {
    let taps = g.k * g.k;
    if g.stride == 1 {
        let turned = Geometry { c: g.o, o: g.c, ..g };
        return apply(turned, grad, &pack_turned(weight, g.o, g.c, taps), None);
    }
    let (pixels, columns) = (g.out_h() * g.out_w(), g.columns());
    let packed = pack(weight, g.c, taps);
    let mut out = vec![0.0; g.n * g.h * g.w * g.c];
    out.par_chunks_mut(g.h * g.w * g.c).zip(grad.par_chunks(pixels * g.o)).for_each_init(
        || vec![0.0; pixels * columns],
        |col, (image, grad)| {
            let lhs = Mat::row_major(grad, pixels, g.o);
            matmul(col, columns, lhs, Mat::row_major(&packed, g.o, columns), false);
            g.scatter(col, image);
        },
    );
    out
}

/// Gradients of the weights `[O, C, k, k]` and the bias `[O]`.
pub(crate) fn weight_grad(g: Geometry, x: &[f32], grad: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let (tile, columns, rows) = (g.tile_rows(), g.columns(), g.rows());
    let tiles = rows.div_ceil(tile);
    let per_partial = tiles.div_ceil(MAX_PARTIALS).max(4);
    let partials: Vec<(Vec<f32>, Vec<f32>)> = (0..tiles.div_ceil(per_partial))
        .into_par_iter()
        .map(|p| {
            let mut weight = vec![0.0; g.o * columns];
            let mut bias = vec![0.0; g.o];
            let mut scratch = if g.is_pointwise() { Vec::new() } else { vec![0.0; tile * columns] };
            for i in p * per_partial..((p + 1) * per_partial).min(tiles) {
                let first = i * tile;
                let count = tile.min(rows - first);
                let col = if g.is_pointwise() {
                    &x[first * columns..(first + count) * columns]
                } else {
                    g.gather(x, first, count, &mut scratch[..count * columns]);
                    &scratch[..count * columns]
                };
                let grad = &grad[first * g.o..(first + count) * g.o];
                let lhs = Mat::row_major(grad, count, g.o).t();
                matmul(&mut weight, columns, lhs, Mat::row_major(col, count, columns), true);
                for pixel in grad.chunks_exact(g.o) {
                    bias.iter_mut().zip(pixel).for_each(|(b, v)| *b += v);
                }
            }
            (weight, bias)
        })
        .collect();
    let sum = |a: &mut Vec<f32>, b: &[f32]| a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
    let (weight, bias) = partials
        .into_iter()
        .reduce(|mut a, b| {
            sum(&mut a.0, &b.0);
            sum(&mut a.1, &b.1);
            a
        })
        .unwrap_or_else(|| (vec![0.0; g.o * columns], vec![0.0; g.o]));
    (if g.k == 1 { weight } else { unpack(&weight, g.c, g.k * g.k) }, bias)
}
