//! Between the types of values.
//!
//! Few CPUs multiply f16 into f32 sums, so kernels have no variant of their own for it. What enters one is widened, which
//! is exact, and what leaves it is rounded once; beyond 65 504 that is infinity.

use crate::element::Element;
use crate::simd::multiversion;
use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

/// Values that a task converts.
const CHUNK: usize = 1 << 14;

/// `convert` of every chunk.
fn by_chunk<A: Sync, B: Send>(from: &[A], to: &mut [B], convert: impl Fn(&[A], &mut [B]) + Sync) {
    assert_eq!(from.len(), to.len(), "lengths of values and converted ones");
    to.par_chunks_mut(CHUNK).zip(from.par_chunks(CHUNK)).for_each(|(to, from)| convert(from, to));
}

/// f16 to f32.
pub fn widen(from: &[f16], to: &mut [f32]) {
    by_chunk(from, to, HalfFloatSliceExt::convert_to_f32_slice);
}

/// f32 to the nearest f16, ties to even.
pub fn narrow(from: &[f32], to: &mut [f16]) {
    by_chunk(from, to, |from, to| to.convert_from_f32_slice(from));
}

/// f32 to the nearest value of an activation's type, ties to even.
pub fn round<E: Element>(from: &[f32], to: &mut [E]) {
    by_chunk(from, to, round_chunk);
}

/// Activations to f32.
pub fn to_f32<E: Element>(from: &[E], to: &mut [f32]) {
    by_chunk(from, to, to_f32_chunk);
}

multiversion! {
    fn round_chunk<S, E: Element>(from: &[f32], to: &mut [E]) {
        to.iter_mut().zip(from).for_each(|(to, &from)| *to = E::from_f32(from));
    }
}

multiversion! {
    fn to_f32_chunk<S, E: Element>(from: &[E], to: &mut [f32]) {
        to.iter_mut().zip(from).for_each(|(to, from)| *to = from.to_f32());
    }
}
