//! Values as the tiles multiply them: bf16 as it is, f32 as the sum of two.
//!
//! f32 x is h + l, where h is the nearest bf16 to x and l the nearest to x − h: at most 2⁻¹⁶ of x is missing. A product of x and y is then
//! h·h + h·l + l·h, three products of bf16 that are summed in f32; the product of both lows, 2⁻¹⁶ of all at most, is left out
//! (Henry, Tang and Heinecke, arXiv 1904.06376). What is infinite becomes NaN.

#![allow(unsafe_code, reason = "vectors")]
#![expect(clippy::inline_always, reason = "compiled for the caller's instruction set")]

use crate::element::Element;
use crate::simd::{Simd, each_vector, multiversion};
use half::bf16;

/// Products of bf16 that make up one of the type.
pub(super) const fn products<E: Element>() -> usize {
    if E::STEP == 2 { 1 } else { 3 }
}

/// Values of bf16 that make up one of the type.
pub(super) const fn halves<E: Element>() -> usize {
    if E::STEP == 2 { 1 } else { 2 }
}

/// Which of the two a product takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Half {
    High,
    Low,
}

/// What a product takes of the left-hand and the right-hand side.
pub(super) fn of_product(product: usize) -> [Half; 2] {
    [[Half::High, Half::High], [Half::High, Half::Low], [Half::Low, Half::High]][product]
}

/// Writes one half of each value.
pub(super) fn take<E: Element>(from: &[E], half: Half, to: &mut [bf16]) {
    if E::STEP == 2 {
        to.copy_from_slice(bytemuck::cast_slice(from));
    } else {
        split(bytemuck::cast_slice(from), half == Half::Low, to);
    }
}

multiversion! {
    fn split<S>(from: &[f32], low: bool, to: &mut [bf16]) {
        assert_eq!(from.len(), to.len(), "values of another number");
        let (count, from, to) = (from.len(), from.as_ptr(), to.as_mut_ptr());
        // SAFETY: the vectors lie in both slices.
        unsafe { each_vector!(S, count, j => split_vector::<bf16>(from.add(j), to.add(j), low)) };
    }
}

/// # Safety
/// Both are valid for a vector of values, and the machine has the instruction set.
#[inline(always)]
unsafe fn split_vector<S: Simd, E: Element>(from: *const f32, to: *mut E, low: bool) {
    // SAFETY: the caller's promise.
    unsafe {
        let v = S::load(from);
        E::store::<S>(to, if low { rest::<S>(v) } else { v });
    }
}

/// What the nearest bf16 leaves of a value.
///
/// # Safety
/// The machine has the instruction set.
#[inline(always)]
pub(super) unsafe fn rest<S: Simd>(v: S::V) -> S::V {
    let mut high = [0u16; 16];
    assert!(S::LANES <= high.len());
    // SAFETY: the array has room for a vector.
    unsafe {
        S::store_bf16(high.as_mut_ptr(), v);
        S::sub(v, S::load_bf16(high.as_ptr()))
    }
}
