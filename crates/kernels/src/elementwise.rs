//! What is done value by value, and sums over the pixels of an image.

#![allow(unsafe_code, reason = "vectors")]
#![expect(clippy::inline_always, reason = "compiled for the caller's instruction set")]

use crate::element::Element;
use crate::math::sigmoid;
use crate::simd::{Simd, each_vector, multiversion};
use rayon::prelude::*;

/// Values that a task computes.
const CHUNK: usize = 1 << 14;

/// `run` of every chunk of `x` and `out`.
fn by_chunk<E: Element>(x: &[E], out: &mut [E], run: impl Fn(&[E], &mut [E]) + Sync) {
    assert_eq!(x.len(), out.len(), "lengths of input and output");
    out.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(out, x)| run(x, out));
}

/// `run` of every chunk of `a`, `b` and `out`.
fn by_chunks<E: Element>(a: &[E], b: &[E], out: &mut [E], run: impl Fn(&[E], &[E], &mut [E]) + Sync) {
    assert_eq!([a.len(), b.len()], [out.len(); 2], "lengths of inputs and output");
    let inputs = a.par_chunks(CHUNK).zip(b.par_chunks(CHUNK));
    out.par_chunks_mut(CHUNK).zip(inputs).for_each(|(out, (a, b))| run(a, b, out));
}

/// a + b, summed in f32 and rounded once.
pub fn add<E: Element>(a: &[E], b: &[E], out: &mut [E]) {
    by_chunks(a, b, out, add_chunk);
}

multiversion! {
    fn add_chunk<S, E: Element>(a: &[E], b: &[E], out: &mut [E]) {
        out.iter_mut().zip(a.iter().zip(b)).for_each(|(out, (a, b))| *out = E::from_f32(a.to_f32() + b.to_f32()));
    }
}

/// SiLU: x·σ(x).
pub fn silu<E: Element>(x: &[E], out: &mut [E]) {
    by_chunk(x, out, silu_chunk);
}

multiversion! {
    fn silu_chunk<S, E: Element>(x: &[E], out: &mut [E]) {
        assert_eq!(x.len(), out.len(), "other values");
        let (count, x, out) = (out.len(), x.as_ptr(), out.as_mut_ptr());
        // SAFETY: the vectors lie in both slices, which are as long.
        unsafe { each_vector!(S, count, j => silu_vector::<E>(x.add(j), out.add(j))) };
    }
}

/// # Safety
/// Both are valid for a vector, and the machine has the instruction set.
#[inline(always)]
unsafe fn silu_vector<S: Simd, E: Element>(x: *const E, out: *mut E) {
    // SAFETY: the caller's promise.
    unsafe {
        let x = E::load::<S>(x);
        E::store::<S>(out, S::mul(x, sigmoid::<S>(x)));
    }
}

/// Gradient of [`silu`]'s input `x`, from that of its output.
pub fn silu_grad<E: Element>(grad: &[E], x: &[E], out: &mut [E]) {
    by_chunks(grad, x, out, silu_grad_chunk);
}

multiversion! {
    fn silu_grad_chunk<S, E: Element>(grad: &[E], x: &[E], out: &mut [E]) {
        assert_eq!([grad.len(), x.len()], [out.len(); 2], "other values");
        let (count, grad, x, out) = (out.len(), grad.as_ptr(), x.as_ptr(), out.as_mut_ptr());
        // SAFETY: the vectors lie in the three slices, which are as long.
        unsafe { each_vector!(S, count, j => silu_grad_vector::<E>(grad.add(j), x.add(j), out.add(j))) };
    }
}

/// # Safety
/// All are valid for a vector, and the machine has the instruction set.
#[inline(always)]
unsafe fn silu_grad_vector<S: Simd, E: Element>(grad: *const E, x: *const E, out: *mut E) {
    // SAFETY: the caller's promise.
    unsafe {
        let (x, one) = (E::load::<S>(x), S::splat(1.0));
        let s = sigmoid::<S>(x);
        let slope = S::mul(s, S::mul_add(x, S::sub(one, s), one));
        E::store::<S>(out, S::mul(E::load::<S>(grad), slope));
    }
}

/// ReLU: what is above zero, and NaN.
pub fn relu<E: Element>(x: &[E], out: &mut [E]) {
    by_chunk(x, out, relu_chunk);
}

multiversion! {
    fn relu_chunk<S, E: Element>(x: &[E], out: &mut [E]) {
        // A comparison with NaN is false.
        out.iter_mut().zip(x).for_each(|(out, &x)| *out = if x.to_f32() < 0.0 { E::default() } else { x });
    }
}

/// Gradient of [`relu`]'s input `x`, from that of its output: as it is where `x` is above zero or NaN, else zero.
pub fn relu_grad<E: Element>(grad: &[E], x: &[E], out: &mut [E]) {
    by_chunks(grad, x, out, relu_grad_chunk);
}

multiversion! {
    fn relu_grad_chunk<S, E: Element>(grad: &[E], x: &[E], out: &mut [E]) {
        for (out, (&grad, x)) in out.iter_mut().zip(grad.iter().zip(x)) {
            *out = if x.to_f32() <= 0.0 { E::default() } else { grad };
        }
    }
}

/// # Panics
/// If `x` is not whole images of `pixels` pixels with `c` channels, or `rows` not a row for each of them.
fn check_rows(x: usize, rows: usize, pixels: usize, c: usize) {
    assert!(pixels > 0 && c > 0, "images of {pixels} pixels of {c} channels");
    assert!(x.is_multiple_of(pixels * c), "{x} values in images of {pixels} pixels of {c} channels");
    assert_eq!(rows, x / pixels, "values of rows of {c} channels for images of {pixels} pixels");
}

/// `x` `[N, pixels, C]` + `rows` `[N, C]`: a row to every pixel of its image. Summed in f32, rounded once.
pub fn add_rows<E: Element>(x: &[E], rows: &[f32], pixels: usize, c: usize, out: &mut [E]) {
    check_rows(x.len(), rows.len(), pixels, c);
    assert_eq!(out.len(), x.len(), "lengths of input and output");
    let images = x.par_chunks(pixels * c).zip(rows.par_chunks(c));
    out.par_chunks_mut(pixels * c).zip(images).for_each(|(out, (x, row))| add_row(x, row, out));
}

multiversion! {
    fn add_row<S, E: Element>(x: &[E], row: &[f32], out: &mut [E]) {
        for (out, x) in out.chunks_exact_mut(row.len()).zip(x.chunks_exact(row.len())) {
            out.iter_mut().zip(x.iter().zip(row)).for_each(|(out, (x, row))| *out = E::from_f32(x.to_f32() + row));
        }
    }
}

/// Sums over the pixels, times `scale`: `x` `[N, pixels, C]` to `[N, C]`. In f32, from the first pixel to the last.
pub fn sum_pixels<E: Element>(x: &[E], pixels: usize, c: usize, scale: f32, out: &mut [f32]) {
    check_rows(x.len(), out.len(), pixels, c);
    out.par_chunks_mut(c).zip(x.par_chunks(pixels * c)).for_each(|(sums, x)| sum_image(x, scale, sums));
}

multiversion! {
    fn sum_image<S, E: Element>(x: &[E], scale: f32, sums: &mut [f32]) {
        sums.fill(0.0);
        for pixel in x.chunks_exact(sums.len()) {
            sums.iter_mut().zip(pixel).for_each(|(sum, v)| *sum += v.to_f32());
        }
        for sum in sums {
            *sum *= scale;
        }
    }
}

/// The transpose of [`sum_pixels`]: a row, times `scale`, as every pixel of its image. `[N, C]` to `[N, pixels, C]`.
pub fn spread_rows<E: Element>(rows: &[f32], pixels: usize, c: usize, scale: f32, out: &mut [E]) {
    check_rows(out.len(), rows.len(), pixels, c);
    out.par_chunks_mut(pixels * c).zip(rows.par_chunks(c)).for_each(|(out, row)| spread_row(row, scale, out));
}

multiversion! {
    fn spread_row<S, E: Element>(row: &[f32], scale: f32, out: &mut [E]) {
        let (first, others) = out.split_at_mut(row.len());
        first.iter_mut().zip(row).for_each(|(out, v)| *out = E::from_f32(v * scale));
        others.chunks_exact_mut(row.len()).for_each(|out| out.copy_from_slice(first));
    }
}

/// # Panics
/// If there are no images of `pixels` pixels with `c` planes, or not as many of pixels with `wide` channels, of which
/// `at .. at + c` are meant.
fn check_planes(planes: usize, values: usize, pixels: usize, [c, at, wide]: [usize; 3]) {
    assert!(pixels > 0 && c > 0 && at + c <= wide, "{pixels} pixels with the channels {at} to {} of {wide}", at + c);
    assert!(planes.is_multiple_of(pixels * c), "{planes} values in images of {c} planes of {pixels} pixels");
    assert_eq!(values, planes / c * wide, "values of as many pixels of {wide} channels");
}

/// Images of `c` planes, `[N, C, pixels]`, as the channels from `at` on of every pixel of `out`, which has `out_c`. The other
/// channels of `out` stay.
pub fn planes_to_pixels<E: Element>(planes: &[f32], c: usize, pixels: usize, out: &mut [E], out_c: usize, at: usize) {
    check_planes(planes.len(), out.len(), pixels, [c, at, out_c]);
    out.par_chunks_mut(pixels * out_c).zip(planes.par_chunks(pixels * c)).for_each(|(out, planes)| {
        for (i, plane) in planes.chunks_exact(pixels).enumerate() {
            let channel = out[at + i..].iter_mut().step_by(out_c);
            channel.zip(plane).for_each(|(out, &v)| *out = E::from_f32(v));
        }
    });
}

/// The inverse of [`planes_to_pixels`]: the channels `at .. at + c` of every pixel of `x`, which has `x_c`, as planes
/// `[N, C, pixels]`.
pub fn pixels_to_planes<E: Element>(x: &[E], x_c: usize, at: usize, c: usize, pixels: usize, planes: &mut [f32]) {
    check_planes(planes.len(), x.len(), pixels, [c, at, x_c]);
    planes.par_chunks_mut(pixels * c).zip(x.par_chunks(pixels * x_c)).for_each(|(planes, x)| {
        for (i, plane) in planes.chunks_exact_mut(pixels).enumerate() {
            let channel = x[at + i..].iter().step_by(x_c);
            plane.iter_mut().zip(channel).for_each(|(to, v)| *to = v.to_f32());
        }
    });
}
