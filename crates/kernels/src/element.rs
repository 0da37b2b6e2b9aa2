//! The two types of activations, and how products read them.

#![allow(unsafe_code, reason = "vector loads and stores")]
#![expect(clippy::inline_always, reason = "compiled for the caller's instruction set")]

use crate::simd::{Simd, from_bf16, to_bf16};
use half::bf16;

/// A type of activations: f32 or bf16. Matrix products take its values in cells of 32 bits: one f32, or two bf16 that are
/// neighbours along the summed dimension.
pub trait Element: Vectors {
    /// Values in a cell.
    const STEP: usize;

    /// The nearest value of the type, ties to even; NaN stays NaN.
    fn from_f32(x: f32) -> Self;

    /// The value, which f32 holds exactly.
    fn to_f32(self) -> f32;
}

/// What kernels do with values of the type, a vector at a time. Public in name alone: no other crate can reach it, so that
/// none makes an [`Element`] of another type.
pub trait Vectors: Copy + Default + Send + Sync + bytemuck::Pod {
    /// # Safety
    /// `from` is valid for a vector of values, and the machine has the instruction set.
    unsafe fn load<S: Simd>(from: *const Self) -> S::V;
    /// # Safety
    /// As [`load`](Self::load).
    unsafe fn store<S: Simd>(to: *mut Self, v: S::V);
    /// Writes one cell per lane from the values of [`STEP`](Element::STEP) vectors; a type with one value takes the first.
    ///
    /// # Safety
    /// As [`load`](Self::load), for `STEP` times as many values.
    unsafe fn store_cells<S: Simd>(to: *mut Self, first: S::V, second: S::V);
    /// As [`store_cells`](Self::store_cells), from values of the type.
    ///
    /// # Safety
    /// As [`store_cells`](Self::store_cells); all are valid for a vector of values.
    unsafe fn pair<S: Simd>(to: *mut Self, first: *const Self, second: *const Self);
    /// c + a·b, cell by cell.
    ///
    /// # Safety
    /// The machine has the instruction set.
    unsafe fn dot<S: Simd>(a: S::V, b: S::V, c: S::V) -> S::V;
}

impl Element for f32 {
    const STEP: usize = 1;

    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        x
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
}

impl Vectors for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const f32) -> S::V {
        // SAFETY: the caller's promise (here and below).
        unsafe { S::load(from) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(to: *mut f32, v: S::V) {
        // SAFETY: as `load`.
        unsafe { S::store(to, v) }
    }
    #[inline(always)]
    unsafe fn store_cells<S: Simd>(to: *mut f32, first: S::V, _: S::V) {
        // SAFETY: as `load`.
        unsafe { S::store(to, first) }
    }
    #[inline(always)]
    unsafe fn pair<S: Simd>(to: *mut f32, first: *const f32, _: *const f32) {
        // SAFETY: as `load`.
        unsafe { S::store(to, S::load(first)) }
    }
    #[inline(always)]
    unsafe fn dot<S: Simd>(a: S::V, b: S::V, c: S::V) -> S::V {
        // SAFETY: as `load`.
        unsafe { S::mul_add(a, b, c) }
    }
}

impl Element for bf16 {
    const STEP: usize = 2;

    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        bf16::from_bits(to_bf16(x))
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        from_bf16(self.to_bits())
    }
}

impl Vectors for bf16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const bf16) -> S::V {
        // SAFETY: the caller's promise (here and below); a bf16 is its 16 bits.
        unsafe { S::load_bf16(from.cast()) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(to: *mut bf16, v: S::V) {
        // SAFETY: as `load`.
        unsafe { S::store_bf16(to.cast(), v) }
    }
    #[inline(always)]
    unsafe fn store_cells<S: Simd>(to: *mut bf16, first: S::V, second: S::V) {
        // SAFETY: as `load`.
        unsafe { S::store_pairs(to.cast(), first, second) }
    }
    #[inline(always)]
    unsafe fn pair<S: Simd>(to: *mut bf16, first: *const bf16, second: *const bf16) {
        // SAFETY: as `load`.
        unsafe { S::pair_bf16(to.cast(), first.cast(), second.cast()) }
    }
    #[inline(always)]
    unsafe fn dot<S: Simd>(a: S::V, b: S::V, c: S::V) -> S::V {
        // SAFETY: as `load`.
        unsafe { S::dot_bf16(a, b, c) }
    }
}
