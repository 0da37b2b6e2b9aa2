//! Multi-head self-attention over `[N, T, 3C]` queries, keys and values, channels last.
//!
//! The scores of one head fit in a second-level cache at the sizes of these networks, so they are made whole, and again
//! in the backward pass, but never kept.

use super::conv::pair_rows;
use super::element::Element;
use super::math::exp;
use super::product::{Rows, panel_columns, product};
use super::simd::multiversion;
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
    pub(crate) fn c(&self) -> usize {
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

    fn scale(&self) -> f32 {
        1.0 / (self.ch as f32).sqrt()
    }
}

/// A matrix `[rows, columns]` in the layouts that products take, zeros where cells and panels reach beyond it.
struct Operand<E> {
    rows: usize,
    columns: usize,
    values: Vec<E>,
}

impl<E: Element> Operand<E> {
    /// Copies `columns` values from `offset` of every row of `stride` values.
    fn of_rows(values: &[E], stride: usize, offset: usize, columns: usize) -> Self {
        let rows = values.len() / stride;
        let values = values.chunks_exact(stride).flat_map(|row| &row[offset..offset + columns]).copied().collect();
        Self { rows, columns, values }
    }

    /// As a left-hand side with cells along the columns, padded: to be multiplied with [`right`](Self::right) of the same
    /// number of columns, transposed, or [`right_rows`](Self::right_rows) of as many rows.
    fn left(&self) -> Vec<E> {
        let width = self.columns.next_multiple_of(E::STEP);
        let mut out = vec![E::default(); self.rows * width];
        for (out, row) in out.chunks_exact_mut(width).zip(self.values.chunks_exact(self.columns)) {
            out[..self.columns].copy_from_slice(row);
        }
        out
    }

    /// The transpose as a left-hand side, with cells along the rows.
    fn left_transposed(&self) -> Vec<E> {
        let mut out = vec![E::default(); self.rows.next_multiple_of(E::STEP) * self.columns];
        pair_rows(&self.values, self.columns, self.columns, self.columns, &mut out);
        out
    }

    /// As a right-hand side: panels of its columns, with cells along the rows.
    fn right(&self) -> Vec<E> {
        let wide = panel_columns();
        let mut out = vec![E::default(); self.rows.next_multiple_of(E::STEP) * self.columns.next_multiple_of(wide)];
        pair_rows(&self.values, self.columns, self.columns, wide, &mut out);
        out
    }

    /// The transpose as a right-hand side: panels of its rows, with cells along the columns.
    fn right_transposed(&self) -> Vec<E> {
        let wide = panel_columns();
        let cells = self.columns.div_ceil(E::STEP);
        let mut out = vec![E::default(); self.rows.next_multiple_of(wide) * cells * E::STEP];
        for (r, row) in self.values.chunks_exact(self.columns).enumerate() {
            let panel = &mut out[r / wide * wide * cells * E::STEP..];
            for (k, &v) in row.iter().enumerate() {
                panel[(k / E::STEP * wide + r % wide) * E::STEP + k % E::STEP] = v;
            }
        }
        out
    }
}

/// `left · right` for `rows` rows and `depth` summed values; `transposed` says that the left-hand side is
/// [`Operand::left_transposed`]. The result's rows have whole panels.
fn multiply<E: Element>(left: &[E], rows: usize, depth: usize, transposed: bool, right: &[E], out: &mut Vec<f32>) {
    let wide = panel_columns();
    let cells = depth.div_ceil(E::STEP);
    let panel = cells * E::STEP * wide;
    let width = right.len() / panel * wide;
    out.resize(rows * width, 0.0);
    let (row_stride, cell_stride) = if transposed { (E::STEP, rows * E::STEP) } else { (cells * E::STEP, E::STEP) };
    let lhs = Rows { data: left, rows, cells, row_stride, cell_stride };
    for (p, right) in right.chunks_exact(panel).enumerate() {
        product(&mut out[p * wide..], width, lhs, right, false);
    }
}

/// Rounds the first `columns` values of every row of whole panels.
fn round<E: Element>(values: &[f32], rows: usize, columns: usize) -> Operand<E> {
    let mut rounded = vec![E::default(); rows * columns];
    round_rows(values, values.len() / rows, &mut rounded, columns);
    Operand { rows, columns, values: rounded }
}

multiversion! {
    fn round_rows<S, E: Element>(values: &[f32], stride: usize, out: &mut [E], columns: usize) {
        for (out, row) in out.chunks_exact_mut(columns).zip(values.chunks_exact(stride)) {
            out.iter_mut().zip(row).for_each(|(d, &s)| *d = E::from_f32(s));
        }
    }
}

/// Writes rows of whole panels as `columns` channels from `at` on of every position, which has `stride`.
fn write<E: Element>(values: &[f32], columns: usize, out: &mut [E], stride: usize, at: usize) {
    let width = values.len() / (out.len() / stride);
    for (out, row) in out.chunks_exact_mut(stride).zip(values.chunks_exact(width)) {
        out[at..at + columns].iter_mut().zip(row).for_each(|(d, &s)| *d = E::from_f32(s));
    }
}

/// `softmax(QKᵀ/√ch)·V` per head: `[N, T, 3C]` to `[N, T, C]`.
pub(crate) fn forward<E: Element>(e: Extent, qkv: &[E]) -> Vec<E> {
    let (t, c) = (e.t, e.c());
    let mut out = vec![E::default(); e.n * t * c];
    if out.is_empty() {
        return out;
    }
    out.par_chunks_mut(t * c).zip(qkv.par_chunks(t * 3 * c)).for_each_init(
        || (Vec::new(), Vec::new()),
        |(scores, sums), (out, qkv)| {
            for head in 0..e.heads {
                let [q, k, v] = e.offsets(head).map(|offset| Operand::of_rows(qkv, 3 * c, offset, e.ch));
                let p = weights(e, &q, &k, scores);
                multiply(&p.left(), t, t, false, &v.right(), sums);
                write(sums, e.ch, out, c, head * e.ch);
            }
        },
    );
    out
}

/// Softmax of the scaled scores of one head, `[T, T]`.
fn weights<E: Element>(e: Extent, q: &Operand<E>, k: &Operand<E>, scores: &mut Vec<f32>) -> Operand<E> {
    multiply(&q.left(), e.t, e.ch, false, &k.right_transposed(), scores);
    let stride = scores.len() / e.t;
    softmax_rows(scores, stride, e.t, e.scale());
    round(scores, e.t, e.t)
}

/// Gradient of [`forward`]'s input; the attention weights are computed again rather than kept.
pub(crate) fn backward<E: Element>(e: Extent, grad: &[E], qkv: &[E]) -> Vec<E> {
    let (t, c) = (e.t, e.c());
    let mut out = vec![E::default(); qkv.len()];
    if out.is_empty() {
        return out;
    }
    out.par_chunks_mut(t * 3 * c).zip(qkv.par_chunks(t * 3 * c).zip(grad.par_chunks(t * c))).for_each_init(
        || (Vec::new(), Vec::new(), Vec::new()),
        |(p, ds, sums), (out, (qkv, grad))| {
            for head in 0..e.heads {
                let offsets = e.offsets(head);
                let [q, k, v] = offsets.map(|offset| Operand::of_rows(qkv, 3 * c, offset, e.ch));
                let dout = Operand::of_rows(grad, c, head * e.ch, e.ch);
                let rounded = weights(e, &q, &k, p);
                multiply(&rounded.left_transposed(), t, t, true, &dout.right(), sums);
                write(sums, e.ch, out, 3 * c, offsets[2]);
                multiply(&dout.left(), t, e.ch, false, &v.right_transposed(), ds);
                softmax_rows_grad(ds, p, p.len() / t, t, e.scale());
                let ds: Operand<E> = round(ds, t, t);
                multiply(&ds.left(), t, t, false, &k.right(), sums);
                write(sums, e.ch, out, 3 * c, offsets[0]);
                multiply(&ds.left_transposed(), t, t, true, &q.right(), sums);
                write(sums, e.ch, out, 3 * c, offsets[1]);
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
    /// Softmax of the first `t` values of every row of `stride`, times `scale` before.
    fn softmax_rows<S>(p: &mut [f32], stride: usize, t: usize, scale: f32) {
        for row in p.chunks_exact_mut(stride) {
            let row = &mut row[..t];
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
    /// From the gradient of the softmax `p` in `ds` to that of the scores, for the first `t` values of every row.
    fn softmax_rows_grad<S>(ds: &mut [f32], p: &[f32], stride: usize, t: usize, scale: f32) {
        for (ds, p) in ds.chunks_exact_mut(stride).zip(p.chunks_exact(stride)) {
            let (ds, p) = (&mut ds[..t], &p[..t]);
            let dot = sum_pairs(ds, p, |d, p| d * p);
            ds.iter_mut().zip(p).for_each(|(d, p)| *d = p * (*d - dot) * scale);
        }
    }
}
