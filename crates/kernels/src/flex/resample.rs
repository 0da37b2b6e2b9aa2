//! Doubling and halving of image sides, channels last. Each is the other's transpose up to a factor.

use rayon::prelude::*;

/// Repeats every pixel in a 2x2 square, times `scale`: `[N, h, w, C]` to `[N, 2h, 2w, C]`.
pub(crate) fn repeat(x: &[f32], [w, c]: [usize; 2], scale: f32) -> Vec<f32> {
    let mut out = vec![0.0; x.len() * 4];
    out.par_chunks_mut(4 * w * c).zip(x.par_chunks(w * c)).for_each(|(rows, x)| {
        let (first, second) = rows.split_at_mut(2 * w * c);
        for (pair, x) in first.chunks_exact_mut(2 * c).zip(x.chunks_exact(c)) {
            let (left, right) = pair.split_at_mut(c);
            left.iter_mut().zip(x).for_each(|(y, x)| *y = x * scale);
            right.copy_from_slice(left);
        }
        second.copy_from_slice(first);
    });
    out
}

/// Sums every 2x2 square of pixels, times `scale`: `[N, 2h, 2w, C]` to `[N, h, w, C]`, with `w` the output's width.
pub(crate) fn sum(x: &[f32], [w, c]: [usize; 2], scale: f32) -> Vec<f32> {
    let mut out = vec![0.0; x.len() / 4];
    out.par_chunks_mut(w * c).zip(x.par_chunks(4 * w * c)).for_each(|(out, rows)| {
        let (first, second) = rows.split_at(2 * w * c);
        for ((y, a), b) in out.chunks_exact_mut(c).zip(first.chunks_exact(2 * c)).zip(second.chunks_exact(2 * c)) {
            for i in 0..c {
                y[i] = (a[i] + a[c + i] + b[i] + b[c + i]) * scale;
            }
        }
    });
    out
}
