//! Pooling over 3x3 windows, channels last.

use crate::element::Element;
use crate::simd::multiversion;
use crate::{Pool2d, PoolKind};
use rayon::prelude::*;

/// Side of the windows.
const SIDE: usize = 3;

/// Height and width of the output for an input's.
pub fn output_size(pool: Pool2d, input: [usize; 2]) -> [usize; 2] {
    input.map(|size| pool.padding.places(size, SIDE, pool.stride))
}

/// `[N, H, W, C]` to `[N, H', W', C]`, with H' and W' from [`output_size`].
pub fn forward<E: Element>(pool: Pool2d, x: &[E], [n, h, w, c]: [usize; 4], [oh, ow]: [usize; 2], out: &mut [E]) {
    assert_eq!([oh, ow], output_size(pool, [h, w]), "size of a pooled image");
    assert_eq!(
        [x.len(), out.len()],
        [n * h * w * c, n * oh * ow * c],
        "values of images to be pooled and of pooled ones"
    );
    if out.is_empty() {
        return;
    }
    let [before, _] = pool.padding.pixels(SIDE);
    // The window at `place` of an axis, cut at its ends.
    let window = |place: usize, size: usize| {
        let from = place * pool.stride;
        from.saturating_sub(before)..size.min(from + SIDE - before)
    };
    out.par_chunks_mut(ow * c).enumerate().for_each_init(
        || vec![0.0f32; c],
        |sums, (line, out)| {
            let (image, rows) = (line / oh, window(line % oh, h));
            for (ox, out) in out.chunks_exact_mut(c).enumerate() {
                let columns = window(ox, w);
                sums.fill(if pool.kind == PoolKind::Max { f32::NEG_INFINITY } else { 0.0 });
                for y in rows.clone() {
                    let start = (image * h + y) * w;
                    add(&x[(start + columns.start) * c..(start + columns.end) * c], pool.kind == PoolKind::Max, sums);
                }
                let count = rows.len() * columns.len();
                finish(sums, if pool.kind == PoolKind::Max { 1.0 } else { count as f32 }, out);
            }
        },
    );
}

multiversion! {
    /// Adds pixels to sums, or takes the larger of both.
    fn add<S, E: Element>(pixels: &[E], largest: bool, sums: &mut [f32]) {
        for pixel in pixels.chunks_exact(sums.len()) {
            if largest {
                for (sum, v) in sums.iter_mut().zip(pixel) {
                    let v = v.to_f32();
                    // Comparisons with NaN are false: it takes the place of anything, and nothing takes its.
                    *sum = if *sum >= v || sum.is_nan() { *sum } else { v };
                }
            } else {
                sums.iter_mut().zip(pixel).for_each(|(sum, v)| *sum += v.to_f32());
            }
        }
    }
}

multiversion! {
    fn finish<S, E: Element>(sums: &[f32], divisor: f32, out: &mut [E]) {
        out.iter_mut().zip(sums).for_each(|(out, sum)| *out = E::from_f32(sum / divisor));
    }
}
