//! Multi-head self-attention over `[N, T, 3C]` queries, keys and values, channels last.

use super::gemm::{Mat, matmul};
use super::math::{exp, vectorised};
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
        let scale = self.scale();
        vectorised(|| {
            for row in p.chunks_exact_mut(self.t) {
                let max = row.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a || b.is_nan() { b } else { a });
                let mut sum = 0.0;
                for v in row.iter_mut() {
                    *v = exp((*v - max) * scale);
                    sum += *v;
                }
                let norm = 1.0 / sum;
                for v in row.iter_mut() {
                    *v *= norm;
                }
            }
        });
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
                vectorised(|| {
                    for (ds, p) in ds.chunks_exact_mut(t).zip(p.chunks_exact(t)) {
                        let dot: f32 = ds.iter().zip(p).map(|(d, p)| d * p).sum();
                        ds.iter_mut().zip(p).for_each(|(d, p)| *d = p * (*d - dot) * scale);
                    }
                });
                let ds = Mat::row_major(ds, t, t);
                matmul(&mut out[offsets[0]..], 3 * c, ds, k, false);
                matmul(&mut out[offsets[1]..], 3 * c, ds.t(), q, false);
            }
        },
    );
    out
}
