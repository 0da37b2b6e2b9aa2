//! Multi-head self-attention over `[N, T, 3C]` queries, keys and values, channels last.

use super::gemm::{Mat, matmul};
use super::math::{exp, multiversion};
use crate::HeadOrder;
use rayon::prelude::*;

/// Sizes of one call: `n` images of `t` positions, `heads` heads of `ch` channels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    pub(crate) n: usize,
    pub(crate) t: usize,
    pub(crate) heads: usize,
    pub(crate) ch: usize,
    pub(crate) order: HeadOrder,
}

impl Extent {
    /// Channels of the output.
    fn c(&self) -> usize {
        self.heads * self.ch
    }

    /// First channel of queries, keys and values of a head.
    fn offsets(&self, head: usize) -> [usize; 3] {
        let ch = self.ch;
        match self.order {
            HeadOrder::HeadsFirst => [0, 1, 2].map(|i| (head * 3 + i) * ch),
            HeadOrder::QkvFirst => [0, 1, 2].map(|i| i * self.c() + head * ch),
        }
    }

    /// One head's `[T, ch]` matrix in an image's `[T, width]` values.
    fn head<'a>(&self, values: &'a [f32], width: usize, offset: usize) -> Mat<'a> {
        Mat { data: &values[offset..], rows: self.t, cols: self.ch, row_stride: width, col_stride: 1 }
    }

    /// Softmax of the scaled scores of one head, `[T, T]`.
    fn weights(&self, q: Mat, k: Mat, p: &mut [f32]) {
        matmul(p, self.t, q, k.t(), false);
        softmax_rows(p, self.t, self.scale());
    }

    fn scale(&self) -> f32 {
        1.0 / (self.ch as f32).sqrt()
    }
}

/// `softmax(QKᵀ/√ch)·V` per head: `[N, T, 3C]` to `[N, T, C]`.
pub(crate) fn forward(e: Extent, qkv: &[f32]) -> Vec<f32> {
    let (t, c) = (e.t, e.c());
    let mut out = vec![0.0; e.n * t * c];
    if out.is_empty() {
        return out;
    }
    out.par_chunks_mut(t * c).zip(qkv.par_chunks(t * 3 * c)).for_each_init(
        || vec![0.0; t * t],
        |p, (out, qkv)| {
            for head in 0..e.heads {
                let [q, k, v] = e.offsets(head).map(|offset| e.head(qkv, 3 * c, offset));
                e.weights(q, k, p);
                matmul(&mut out[head * e.ch..], c, Mat::row_major(p, t, t), v, false);
            }
        },
    );
    out
}

/// Gradient of [`forward`]'s input; the attention weights are computed again rather than kept.
pub(crate) fn backward(e: Extent, grad: &[f32], qkv: &[f32]) -> Vec<f32> {
    let (t, c) = (e.t, e.c());
    let mut out = vec![0.0; qkv.len()];
    if out.is_empty() {
        return out;
    }
    out.par_chunks_mut(t * 3 * c).zip(qkv.par_chunks(t * 3 * c).zip(grad.par_chunks(t * c))).for_each_init(
        || (vec![0.0; t * t], vec![0.0; t * t]),
        |(p, ds), (out, (qkv, grad))| {
            for head in 0..e.heads {
                let offsets = e.offsets(head);
                let [q, k, v] = offsets.map(|offset| e.head(qkv, 3 * c, offset));
                let dout = e.head(grad, c, head * e.ch);
                e.weights(q, k, p);
                matmul(&mut out[offsets[2]..], 3 * c, Mat::row_major(p, t, t).t(), dout, false);
                matmul(ds, t, dout, v.t(), false);
                let scale = e.scale();
                softmax_rows_grad(ds, p, t, scale);
                let ds = Mat::row_major(ds, t, t);
                matmul(&mut out[offsets[0]..], 3 * c, ds, k, false);
                matmul(&mut out[offsets[1]..], 3 * c, ds.t(), q, false);
            }
        },
    );
    out
}

/// Partial sums kept apart, so that a sum can be vectorised; their number is fixed, so that it is the same everywhere.
const LANES: usize = 16;

/// Σ f(a, b), in a fixed order.
#[expect(clippy::inline_always, reason = "compiled for the caller's instruction set")]
#[inline(always)]
fn sum_pairs(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    for (a, b) in a.chunks(LANES).zip(b.chunks(LANES)) {
        lanes.iter_mut().zip(a).zip(b).for_each(|((l, &a), &b)| *l += f(a, b));
    }
    lanes.iter().sum()
}

multiversion! {
    /// Softmax of every row of `t` values, times `scale` before.
    fn softmax_rows(p: &mut [f32], t: usize, scale: f32) {
        for row in p.chunks_exact_mut(t) {
            let max = row.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a || b.is_nan() { b } else { a });
            for v in row.iter_mut() {
                *v = exp((*v - max) * scale);
            }
            let norm = 1.0 / sum_pairs(row, row, |v, _| v);
            for v in row.iter_mut() {
                *v *= norm;
            }
        }
    }
}

multiversion! {
    /// From the gradient of the softmax `p` in `ds` to that of the scores.
    fn softmax_rows_grad(ds: &mut [f32], p: &[f32], t: usize, scale: f32) {
        for (ds, p) in ds.chunks_exact_mut(t).zip(p.chunks_exact(t)) {
            let dot = sum_pairs(ds, p, |d, p| d * p);
            ds.iter_mut().zip(p).for_each(|(d, p)| *d = p * (*d - dot) * scale);
        }
    }
}
