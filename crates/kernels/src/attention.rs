//! Multi-head self-attention over `[N, T, 3C]` queries, keys and values, channels last.
//!
//! The scores of one head fit in a second-level cache at the sizes of these networks, so they are made whole, and again
//! in the backward pass, but never kept.

#![allow(unsafe_code, reason = "vectors")]

use crate::HeadOrder;
use crate::buffer::with_kept;
use crate::element::Element;
use crate::math::exp;
use crate::pair::pair_rows;
use crate::product::{Left, Panel, panel_columns, product};
use crate::simd::{Simd, each_vector, multiversion};
use crate::transpose::transpose;
use rayon::prelude::*;

/// Sizes of one call: `n` images of `t` positions, `heads` heads of `ch` channels.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Images.
    pub n: usize,
    /// Positions of an image.
    pub t: usize,
    /// Heads.
    pub heads: usize,
    /// Channels of a head.
    pub ch: usize,
    /// How a pixel's queries, keys and values follow each other.
    pub order: HeadOrder,
}

impl Extent {
    /// Channels of the output.
    pub fn c(&self) -> usize {
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

    /// One head's matrix `[T, ch]` in an image's values.
    fn view<'a, E>(&self, values: &'a [E], stride: usize, offset: usize) -> View<'a, E> {
        View { values, rows: self.t, stride, offset, columns: self.ch }
    }

    /// Operations of one of the products, over all heads and images.
    pub fn product_flop(&self) -> f64 {
        2.0 * (self.n * self.heads * self.ch) as f64 * (self.t * self.t) as f64
    }

    /// # Panics
    /// If queries, keys and values or what belongs to the output have other lengths.
    fn check(&self, qkv: usize, output: usize) {
        let len = self.n * self.t * self.c();
        assert_eq!(qkv, 3 * len, "queries, keys and values of {self:?}");
        assert_eq!(output, len, "output of {self:?}");
    }

    fn scale(&self) -> f32 {
        1.0 / (self.ch as f32).sqrt()
    }
}

/// `columns` values from `offset` on of every row of `stride`: a matrix inside a larger one.
#[derive(Clone, Copy)]
struct View<'a, E> {
    values: &'a [E],
    rows: usize,
    stride: usize,
    offset: usize,
    columns: usize,
}

impl<'a, E: Element> View<'a, E> {
    /// As a left-hand side with cells along the columns; they are copied to `scratch` if the last has a single value.
    fn left<'b>(&self, scratch: &'b mut Vec<E>) -> Left<'b, E>
    where
        'a: 'b,
    {
        let (rows, cells) = (self.rows, self.columns.div_ceil(E::STEP));
        if self.columns.is_multiple_of(E::STEP) {
            let data = &self.values[self.offset..];
            return Left { data, rows, cells, row_stride: self.stride, cell_stride: E::STEP };
        }
        scratch.clear();
        for row in self.values.chunks_exact(self.stride) {
            scratch.extend_from_slice(&row[self.offset..self.offset + self.columns]);
            scratch.push(E::default());
        }
        Left { data: scratch, rows, cells, row_stride: cells * E::STEP, cell_stride: E::STEP }
    }

    /// The transpose as a left-hand side, with cells along the rows.
    fn left_transposed<'b>(&self, scratch: &'b mut Vec<E>) -> Left<'b, E> {
        let cells = self.rows.div_ceil(E::STEP);
        scratch.resize(cells * E::STEP * self.columns, E::default());
        pair_rows(self.values, self.stride, self.offset, self.columns, self.columns, scratch);
        let cell_stride = self.columns * E::STEP;
        Left { data: scratch, rows: self.columns, cells, row_stride: E::STEP, cell_stride }
    }

    /// As a right-hand side: panels of its columns, with cells along the rows.
    fn right(&self, scratch: &mut Vec<E>) {
        let wide = panel_columns();
        scratch.resize(self.rows.next_multiple_of(E::STEP) * self.columns.next_multiple_of(wide), E::default());
        pair_rows(self.values, self.stride, self.offset, self.columns, wide, scratch);
    }

    /// The transpose as a right-hand side: panels of its rows, with cells along the columns.
    fn right_transposed(&self, scratch: &mut Vec<E>) {
        let wide = panel_columns();
        let deep = self.columns.next_multiple_of(E::STEP);
        scratch.resize(self.rows.next_multiple_of(wide) * deep, E::default());
        for (rows, panel) in self.values.chunks(wide * self.stride).zip(scratch.chunks_exact_mut(wide * deep)) {
            let count = rows.len() / self.stride;
            // Cells of 32 bits change places whole.
            let [columns, stride] = [self.columns, self.stride].map(|length| length / E::STEP);
            let even = (self.columns | self.stride | self.offset).is_multiple_of(E::STEP);
            let used = self.offset..self.offset + (count - 1) * self.stride + self.columns;
            let cells = bytemuck::try_cast_slice::<E, f32>(&rows[used]).ok().filter(|_| even);
            if let (Some(cells), Ok(to)) = (cells, bytemuck::try_cast_slice_mut::<E, f32>(panel)) {
                transpose(cells, stride, [count, columns], to, wide);
            } else {
                panel.fill(E::default());
                pair_columns(rows, self.stride, self.offset, self.columns, panel);
            }
        }
    }
}

multiversion! {
    /// `columns` values from `offset` on of every row of `stride`, as the columns of a panel whose cells go along them.
    fn pair_columns<S, E: Element>(rows: &[E], stride: usize, offset: usize, columns: usize, panel: &mut [E]) {
        for (r, row) in rows.chunks_exact(stride).enumerate() {
            for (k, &v) in row[offset..offset + columns].iter().enumerate() {
                panel[(k / E::STEP * 2 * S::LANES + r) * E::STEP + k % E::STEP] = v;
            }
        }
    }
}

/// `left · right` into rows of whole panels; returns their width.
fn multiply<E: Element>(left: Left<E>, right: &[E], out: &mut Vec<f32>) -> usize {
    let wide = panel_columns();
    let panel = left.cells * E::STEP * wide;
    let width = right.len() / panel * wide;
    out.resize(left.rows * width, 0.0);
    for (p, right) in right.chunks_exact(panel).enumerate() {
        product(&mut out[p * wide..], width, left, Panel::packed(right), false);
    }
    width
}

multiversion! {
    /// Rounds `columns` values of every row of `stride` into the channels from `at` on of every row of `out`.
    fn round<S, E: Element>(values: &[f32], stride: usize, columns: usize, out: &mut [E], out_stride: usize, at: usize) {
        for (out, row) in out.chunks_exact_mut(out_stride).zip(values.chunks_exact(stride)) {
            out[at..at + columns].iter_mut().zip(row).for_each(|(d, &s)| *d = E::from_f32(s));
        }
    }
}

/// Memory that a thread uses again for every head.
#[derive(Default)]
struct Scratch<E> {
    left: Vec<E>,
    right: Vec<E>,
    /// Scores, then weights.
    p: Vec<f32>,
    rounded: Vec<E>,
    ds: Vec<f32>,
    sums: Vec<f32>,
}

impl<E: Element> Scratch<E> {
    /// The softmax of the scaled scores of one head in `p`; returns the stride of its rows.
    fn weights(&mut self, e: Extent, q: View<E>, k: View<E>) -> usize {
        k.right_transposed(&mut self.right);
        let stride = multiply(q.left(&mut self.left), &self.right, &mut self.p);
        softmax_rows(&mut self.p, stride, e.t, e.scale());
        stride
    }

    /// Writes `left · right` as a head's channels of `out`.
    fn finish(&mut self, e: Extent, left: Left<E>, out: &mut [E], out_stride: usize, at: usize) {
        let stride = multiply(left, &self.right, &mut self.sums);
        round(&self.sums, stride, e.ch, out, out_stride, at);
    }
}

/// Rows of scores as a matrix `[T, T]`, rounded where they are not of that type already.
fn rounded<'a, E: Element>(e: Extent, values: &'a [f32], stride: usize, to: &'a mut Vec<E>) -> View<'a, E> {
    if E::STEP == 1 {
        return View { values: bytemuck::cast_slice(values), rows: e.t, stride, offset: 0, columns: e.t };
    }
    to.resize(e.t * e.t, E::default());
    round(values, stride, e.t, to, e.t, 0);
    View { values: to, rows: e.t, stride: e.t, offset: 0, columns: e.t }
}

/// `softmax(QKᵀ/√ch)·V` per head: `[N, T, 3C]` to `[N, T, C]`.
pub fn forward<E: Element>(e: Extent, qkv: &[E], out: &mut [E]) {
    let (t, c) = (e.t, e.c());
    e.check(qkv.len(), out.len());
    if out.is_empty() {
        return;
    }
    out.par_chunks_mut(t * c).zip(qkv.par_chunks(t * 3 * c)).for_each(|(out, qkv)| {
        with_kept(|scratch: &mut Scratch<E>| {
            for head in 0..e.heads {
                let [q, k, v] = e.offsets(head).map(|offset| e.view(qkv, 3 * c, offset));
                let stride = scratch.weights(e, q, k);
                let [mut buffer, mut left] = [&mut scratch.rounded, &mut scratch.left].map(std::mem::take);
                let weights = std::mem::take(&mut scratch.p);
                let p = rounded(e, &weights, stride, &mut buffer);
                v.right(&mut scratch.right);
                scratch.finish(e, p.left(&mut left), out, c, head * e.ch);
                (scratch.rounded, scratch.left, scratch.p) = (buffer, left, weights);
            }
        });
    });
}

/// Gradient of [`forward`]'s input, from that of its output; the attention weights are computed again rather than kept.
pub fn backward<E: Element>(e: Extent, grad: &[E], qkv: &[E], out: &mut [E]) {
    let (t, c) = (e.t, e.c());
    e.check(qkv.len(), grad.len());
    e.check(out.len(), grad.len());
    if out.is_empty() {
        return;
    }
    let images = out.par_chunks_mut(t * 3 * c).zip(qkv.par_chunks(t * 3 * c).zip(grad.par_chunks(t * c)));
    images.for_each(|(out, (qkv, grad))| {
        with_kept(|scratch: &mut Scratch<E>| {
            for head in 0..e.heads {
                let offsets = e.offsets(head);
                let [q, k, v] = offsets.map(|offset| e.view(qkv, 3 * c, offset));
                let dout = e.view(grad, c, head * e.ch);
                let stride = scratch.weights(e, q, k);
                let [mut buffer, mut left] = [&mut scratch.rounded, &mut scratch.left].map(std::mem::take);
                let [weights, mut scores] = [&mut scratch.p, &mut scratch.ds].map(std::mem::take);
                let p = rounded(e, &weights, stride, &mut buffer);
                dout.right(&mut scratch.right);
                scratch.finish(e, p.left_transposed(&mut left), out, 3 * c, offsets[2]);
                v.right_transposed(&mut scratch.right);
                multiply(dout.left(&mut left), &scratch.right, &mut scores);
                softmax_rows_grad(&mut scores, &weights, stride, t, e.scale());
                let ds = rounded(e, &scores, stride, &mut buffer);
                k.right(&mut scratch.right);
                scratch.finish(e, ds.left(&mut left), out, 3 * c, offsets[0]);
                q.right(&mut scratch.right);
                scratch.finish(e, ds.left_transposed(&mut left), out, 3 * c, offsets[1]);
                (scratch.rounded, scratch.left) = (buffer, left);
                (scratch.p, scratch.ds) = (weights, scores);
            }
        });
    });
}

/// Partial sums kept apart, so that a sum can be vectorised; their number is fixed, so that it is the same everywhere.
const LANES: usize = 16;

/// Σ f(a, b), in a fixed order.
#[expect(clippy::inline_always, reason = "compiled for the caller's instruction set")]
#[inline(always)]
fn sum_pairs(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (a, b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f32 = a.remainder().iter().zip(b.remainder()).map(|(&a, &b)| f(a, b)).sum();
    for (a, b) in a.zip(b) {
        for i in 0..LANES {
            lanes[i] += f(a[i], b[i]);
        }
    }
    lanes.iter().sum::<f32>() + rest
}

/// The largest value; NaN is passed over.
#[expect(clippy::inline_always, reason = "compiled for the caller's instruction set")]
#[inline(always)]
fn max(row: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let chunks = row.chunks_exact(LANES);
    let rest = chunks.remainder().iter().copied().fold(f32::NEG_INFINITY, larger);
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = larger(lanes[i], chunk[i]);
        }
    }
    lanes.into_iter().fold(rest, larger)
}

multiversion! {
    /// Softmax of the first `t` values of every row of `stride`, times `scale` before.
    fn softmax_rows<S>(p: &mut [f32], stride: usize, t: usize, scale: f32) {
        for row in p.chunks_exact_mut(stride) {
            let row = &mut row[..t];
            // A NaN among the scores makes its whole row NaN by the sum.
            let max = max(row);
            // SAFETY: the vectors lie in the row, and the machine has the instruction set.
            unsafe { each_vector!(S, t, j => exp_vector::<f32>(row.as_mut_ptr().add(j), max, scale)) };
            let norm = 1.0 / sum_pairs(row, row, |v, _| v);
            for v in row.iter_mut() {
                *v *= norm;
            }
        }
    }
}

/// e^((v − max)·scale), in place.
///
/// # Safety
/// `at` is valid for a vector, and the machine has the instruction set.
#[expect(clippy::inline_always, reason = "compiled for the caller's instruction set")]
#[inline(always)]
unsafe fn exp_vector<S: Simd, E: Element>(at: *mut E, max: f32, scale: f32) {
    // SAFETY: the caller's promise.
    unsafe {
        let below = S::sub(E::load::<S>(at), S::splat(max));
        E::store::<S>(at, exp::<S>(S::mul(below, S::splat(scale))));
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
