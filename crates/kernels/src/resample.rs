//! Doubling and halving of image sides, channels last. Each is the other's transpose up to a factor.

#![allow(unsafe_code, reason = "vectors, and tasks that share an output")]

use crate::buffer::Shared;
use crate::element::Element;
use crate::simd::{Simd, each_vector, multiversion};
use rayon::prelude::*;
use std::ops::Range;

/// Repeats every pixel in a 2x2 square, times `scale`: `[N, h, w, C]` to `[N, 2h, 2w, C]`.
pub fn repeat<E: Element>(x: &[E], [w, c]: [usize; 2], scale: f32, out: &mut [E]) {
    assert_eq!(out.len(), 4 * x.len(), "values of an image to be doubled and of the doubled one");
    if x.is_empty() {
        return;
    }
    assert!(x.len().is_multiple_of(w * c), "an image of {} values in rows of {w} pixels of {c}", x.len());
    out.par_chunks_mut(4 * w * c).zip(x.par_chunks(w * c)).for_each(|(rows, x)| {
        let (first, second) = rows.split_at_mut(2 * w * c);
        repeat_row(first, x, c, scale);
        second.copy_from_slice(first);
    });
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
pub fn sum<E: Element>(x: &[E], [w, c]: [usize; 2], scale: f32, out: &mut [E]) {
    assert_eq!(x.len(), 4 * out.len(), "values of an image to be halved and of the halved one");
    if x.is_empty() {
        return;
    }
    assert!(out.len().is_multiple_of(w * c), "an image of {} values in rows of {w} pixels of {c}", out.len());
    out.par_chunks_mut(w * c).zip(x.par_chunks(4 * w * c)).for_each(|(out, rows)| {
        let (first, second) = rows.split_at(2 * w * c);
        sum_rows(out, first, second, c, scale);
    });
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

/// Pixels of one task where channels are copied.
const PIXELS: usize = 256;

/// Writes the channels of `x`, which has `c`, as the channels from `at` on of every pixel of `out`, which has `out_c`. The other
/// channels of `out` stay.
pub fn place_channels<E: Element>(x: &[E], c: usize, out: &mut [E], out_c: usize, at: usize) {
    assert!(c > 0 && at + c <= out_c, "channels {at} to {} of {out_c}", at + c);
    assert!(x.len().is_multiple_of(c) && out.len() == x.len() / c * out_c, "other numbers of pixels");
    let out = Shared::new(out);
    x.par_chunks(PIXELS * c).enumerate().for_each(|(task, x)| {
        copy_channels(x, c, 0..c, &out, task * PIXELS * out_c + at, out_c);
    });
}

/// The channels `from .. from + count` of every pixel of `x`, which has `c`.
pub fn take_channels<E: Element>(x: &[E], c: usize, from: usize, count: usize, out: &mut [E]) {
    assert!(c > 0 && from + count <= c, "channels {from} to {} of {c}", from + count);
    assert!(x.len().is_multiple_of(c) && out.len() == x.len() / c * count, "other numbers of pixels");
    let out = Shared::new(out);
    x.par_chunks(PIXELS * c).enumerate().for_each(|(task, x)| {
        copy_channels(x, c, from..from + count, &out, task * PIXELS * count, count);
    });
}

multiversion! {
    /// Some channels of every pixel of `x`, which has `c`, to places `stride` apart from `at` on.
    fn copy_channels<S, E: Element>(x: &[E], c: usize, which: Range<usize>, out: &Shared<E>, at: usize, stride: usize) {
        let (pixels, count) = (x.len() / c, which.len());
        assert!(which.end <= c && count <= stride, "channels that are not there");
        out.assert_inside(at + pixels.saturating_sub(1) * stride + count);
        // SAFETY: the channels of every pixel lie in `x`, and their place in the buffer (checked above) is this task's.
        unsafe {
            let (from, to) = (x.as_ptr().add(which.start), out.pointer().add(at));
            for i in 0..pixels {
                each_vector!(S, count, j => copy_vector::<E>(from.add(i * c + j), to.add(i * stride + j)));
            }
        }
    }
}

/// # Safety
/// Both are valid for a vector, and the machine has the instruction set.
#[expect(clippy::inline_always, reason = "compiled for the caller's instruction set")]
#[inline(always)]
unsafe fn copy_vector<S: Simd, E: Element>(from: *const E, to: *mut E) {
    // SAFETY: the caller's promise. Values that came from E round to themselves.
    unsafe { E::store::<S>(to, E::load::<S>(from)) }
}
