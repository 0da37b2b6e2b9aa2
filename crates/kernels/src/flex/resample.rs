//! Doubling and halving of image sides, channels last. Each is the other's transpose up to a factor.

use super::element::Element;
use super::simd::multiversion;
use rayon::prelude::*;

/// Repeats every pixel in a 2x2 square, times `scale`: `[N, h, w, C]` to `[N, 2h, 2w, C]`.
pub(crate) fn repeat<E: Element>(x: &[E], [w, c]: [usize; 2], scale: f32) -> Vec<E> {
    let mut out = vec![E::default(); x.len() * 4];
    out.par_chunks_mut(4 * w * c).zip(x.par_chunks(w * c)).for_each(|(rows, x)| {
        let (first, second) = rows.split_at_mut(2 * w * c);
        repeat_row(first, x, c, scale);
        second.copy_from_slice(first);
    });
    out
}

multiversion! {
    fn repeat_row<S, E: Element>(out: &mut [E], x: &[E], c: usize, scale: f32) {
        for (pair, x) in out.chunks_exact_mut(2 * c).zip(x.chunks_exact(c)) {
            let (left, right) = pair.split_at_mut(c);
            left.iter_mut().zip(x).for_each(|(y, x)| *y = E::from_f32(x.to_f32() * scale));
            right.copy_from_slice(left);
        }
    }
}

/// Sums every 2x2 square of pixels, times `scale`: `[N, 2h, 2w, C]` to `[N, h, w, C]`, with `w` the output's width.
pub(crate) fn sum<E: Element>(x: &[E], [w, c]: [usize; 2], scale: f32) -> Vec<E> {
    let mut out = vec![E::default(); x.len() / 4];
    out.par_chunks_mut(w * c).zip(x.par_chunks(4 * w * c)).for_each(|(out, rows)| {
        let (first, second) = rows.split_at(2 * w * c);
        sum_rows(out, first, second, c, scale);
    });
    out
}

multiversion! {
    fn sum_rows<S, E: Element>(out: &mut [E], first: &[E], second: &[E], c: usize, scale: f32) {
        for ((y, a), b) in out.chunks_exact_mut(c).zip(first.chunks_exact(2 * c)).zip(second.chunks_exact(2 * c)) {
            let ((a0, a1), (b0, b1)) = (a.split_at(c), b.split_at(c));
            for ((((y, a0), a1), b0), b1) in y.iter_mut().zip(a0).zip(a1).zip(b0).zip(b1) {
                *y = E::from_f32((a0.to_f32() + a1.to_f32() + b0.to_f32() + b1.to_f32()) * scale);
            }
        }
    }
}

/// The channels of `a`, then those of `b`, pixel by pixel.
pub(crate) fn concat<E: Element>(a: &[E], b: &[E], [ca, cb]: [usize; 2]) -> Vec<E> {
    /// Pixels of one task.
    const PIXELS: usize = 256;
    let mut out = vec![E::default(); a.len() + b.len()];
    out.par_chunks_mut(PIXELS * (ca + cb)).zip(a.par_chunks(PIXELS * ca).zip(b.par_chunks(PIXELS * cb))).for_each(
        |(out, (a, b))| {
            for (out, (a, b)) in out.chunks_exact_mut(ca + cb).zip(a.chunks_exact(ca).zip(b.chunks_exact(cb))) {
                out[..ca].copy_from_slice(a);
                out[ca..].copy_from_slice(b);
            }
        },
    );
    out
}

/// The channels `from .. from + count` of every pixel of `x`, which has `c`.
pub(crate) fn channels<E: Element>(x: &[E], c: usize, from: usize, count: usize) -> Vec<E> {
    /// Pixels of one task.
    const PIXELS: usize = 256;
    let mut out = vec![E::default(); x.len() / c * count];
    out.par_chunks_mut(PIXELS * count).zip(x.par_chunks(PIXELS * c)).for_each(|(out, x)| {
        for (out, x) in out.chunks_exact_mut(count).zip(x.chunks_exact(c)) {
            out.copy_from_slice(&x[from..from + count]);
        }
    });
    out
}
