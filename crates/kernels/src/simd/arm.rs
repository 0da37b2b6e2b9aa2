//! Vectors of 64-bit ARM.

#![allow(clippy::wildcard_imports, reason = "the intrinsics have prefixes of their own")]

use super::{ONE, Simd};
use std::arch::aarch64::*;

/// Two vectors of 128 bits: their products hide each other's latency, and a panel is wide enough to be worth its rows.
#[derive(Clone, Copy)]
pub(crate) struct Neon;

/// A function of both halves.
macro_rules! halves {
    ($function:ident($($v:expr),*)) => {
        // SAFETY: every 64-bit ARM has NEON.
        unsafe { float32x4x2_t($function($($v.0),*), $function($($v.1),*)) }
    };
}

/// Four values rounded to bf16.
///
/// # Safety
/// Needs NEON.
#[inline(always)]
unsafe fn round(v: float32x4_t) -> uint16x4_t {
    // SAFETY: every 64-bit ARM has NEON.
    unsafe {
        let bits = vreinterpretq_u32_f32(v);
        let odd = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
        let rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
        let number = vceqq_f32(v, v);
        vshrn_n_u32::<16>(vbslq_u32(number, rounded, vdupq_n_u32(0x7fc0_0000)))
    }
}

/// # Safety
/// Needs NEON.
#[inline(always)]
unsafe fn dot(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
    // SAFETY: every 64-bit ARM has NEON.
    unsafe {
        let (a, b) = (vreinterpretq_u32_f32(a), vreinterpretq_u32_f32(b));
        let low = |v| vreinterpretq_f32_u32(vshlq_n_u32::<16>(v));
        let high = |v| vreinterpretq_f32_u32(vandq_u32(v, vdupq_n_u32(0xffff_0000)));
        vfmaq_f32(vfmaq_f32(c, low(a), low(b)), high(a), high(b))
    }
}

/// # Safety
/// Needs NEON.
#[inline(always)]
unsafe fn power_of_two(n: float32x4_t) -> float32x4_t {
    // SAFETY: every 64-bit ARM has NEON.
    unsafe {
        let exponent = vshlq_n_u32::<23>(vreinterpretq_u32_f32(n));
        vreinterpretq_f32_u32(vaddq_u32(exponent, vdupq_n_u32(ONE)))
    }
}

/// The larger; b if one is NaN, where the instruction would give NaN for either.
///
/// # Safety
/// Needs NEON.
#[inline(always)]
unsafe fn max(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    // SAFETY: every 64-bit ARM has NEON.
    unsafe { vbslq_f32(vcgtq_f32(a, b), a, b) }
}

/// # Safety
/// Needs NEON.
#[inline(always)]
unsafe fn min(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    // SAFETY: every 64-bit ARM has NEON.
    unsafe { vbslq_f32(vcltq_f32(a, b), a, b) }
}

/// # Safety
/// Needs NEON; the pointers are valid for four rows of four values.
#[inline(always)]
unsafe fn transpose4(from: *const f32, stride: usize, to: *mut f32, to_stride: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        let a = vtrnq_f32(vld1q_f32(from), vld1q_f32(from.add(stride)));
        let b = vtrnq_f32(vld1q_f32(from.add(2 * stride)), vld1q_f32(from.add(3 * stride)));
        vst1q_f32(to, vcombine_f32(vget_low_f32(a.0), vget_low_f32(b.0)));
        vst1q_f32(to.add(to_stride), vcombine_f32(vget_low_f32(a.1), vget_low_f32(b.1)));
        vst1q_f32(to.add(2 * to_stride), vcombine_f32(vget_high_f32(a.0), vget_high_f32(b.0)));
        vst1q_f32(to.add(3 * to_stride), vcombine_f32(vget_high_f32(a.1), vget_high_f32(b.1)));
    }
}

impl Simd for Neon {
    const LANES: usize = 8;
    const ROWS: usize = 6;
    type V = float32x4x2_t;

    #[inline(always)]
    unsafe fn splat(x: f32) -> float32x4x2_t {
        // SAFETY: every 64-bit ARM has NEON (here and in the following functions, which pass on the caller's pointers).
        unsafe { float32x4x2_t(vdupq_n_f32(x), vdupq_n_f32(x)) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> float32x4x2_t {
        // SAFETY: as `splat`.
        unsafe { float32x4x2_t(vld1q_f32(from), vld1q_f32(from.add(4))) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: float32x4x2_t) {
        // SAFETY: as `splat`.
        unsafe {
            vst1q_f32(to, v.0);
            vst1q_f32(to.add(4), v.1);
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> float32x4x2_t {
        // SAFETY: as `splat`.
        unsafe {
            let words = vld1q_u16(from);
            let low = vshll_n_u16::<16>(vget_low_u16(words));
            let high = vshll_n_u16::<16>(vget_high_u16(words));
            float32x4x2_t(vreinterpretq_f32_u32(low), vreinterpretq_f32_u32(high))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(to: *mut u16, v: float32x4x2_t) {
        // SAFETY: as `splat`.
        unsafe { vst1q_u16(to, vcombine_u16(round(v.0), round(v.1))) }
    }
    #[inline(always)]
    unsafe fn add(a: float32x4x2_t, b: float32x4x2_t) -> float32x4x2_t {
        halves!(vaddq_f32(a, b))
    }
    #[inline(always)]
    unsafe fn sub(a: float32x4x2_t, b: float32x4x2_t) -> float32x4x2_t {
        halves!(vsubq_f32(a, b))
    }
    #[inline(always)]
    unsafe fn mul(a: float32x4x2_t, b: float32x4x2_t) -> float32x4x2_t {
        halves!(vmulq_f32(a, b))
    }
    #[inline(always)]
    unsafe fn div(a: float32x4x2_t, b: float32x4x2_t) -> float32x4x2_t {
        halves!(vdivq_f32(a, b))
    }
    #[inline(always)]
    unsafe fn mul_add(a: float32x4x2_t, b: float32x4x2_t, c: float32x4x2_t) -> float32x4x2_t {
        halves!(vfmaq_f32(c, a, b))
    }
    #[inline(always)]
    unsafe fn max(a: float32x4x2_t, b: float32x4x2_t) -> float32x4x2_t {
        halves!(max(a, b))
    }
    #[inline(always)]
    unsafe fn min(a: float32x4x2_t, b: float32x4x2_t) -> float32x4x2_t {
        halves!(min(a, b))
    }
    #[inline(always)]
    unsafe fn power_of_two(n: float32x4x2_t) -> float32x4x2_t {
        halves!(power_of_two(n))
    }
    #[inline(always)]
    unsafe fn dot_bf16(a: float32x4x2_t, b: float32x4x2_t, c: float32x4x2_t) -> float32x4x2_t {
        halves!(dot(a, b, c))
    }
    #[inline(always)]
    unsafe fn transpose(from: *const f32, stride: usize, to: *mut f32, to_stride: usize) {
        for i in [0, 4] {
            for j in [0, 4] {
                // SAFETY: as `splat`: quarters of a square of eight rows.
                unsafe { transpose4(from.add(i * stride + j), stride, to.add(j * to_stride + i), to_stride) };
            }
        }
    }
    #[inline(always)]
    unsafe fn store_pairs(to: *mut u16, even: float32x4x2_t, odd: float32x4x2_t) {
        // SAFETY: as `splat`.
        unsafe {
            vst2_u16(to, uint16x4x2_t(round(even.0), round(odd.0)));
            vst2_u16(to.add(8), uint16x4x2_t(round(even.1), round(odd.1)));
        }
    }
    #[inline(always)]
    unsafe fn pair_bf16(to: *mut u16, even: *const u16, odd: *const u16) {
        // SAFETY: as `splat`.
        unsafe { vst2q_u16(to, uint16x8x2_t(vld1q_u16(even), vld1q_u16(odd))) }
    }
}
