//! Vectors of x86-64.

#![allow(clippy::wildcard_imports, reason = "the intrinsics have prefixes of their own")]

use super::{ONE, Simd};
use std::arch::x86_64::*;

#[derive(Clone, Copy)]
pub(crate) struct Avx2;

/// The upper halves of eight values rounded to bf16, in the low halves of 32-bit lanes.
///
/// # Safety
/// Needs AVX2.
#[inline(always)]
unsafe fn round_avx2(v: __m256) -> __m256i {
    // SAFETY: the caller's machine has AVX2.
    unsafe {
        let bits = _mm256_castps_si256(v);
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
        let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(v, v));
        let rounded = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0_0000), nan);
        _mm256_srli_epi32::<16>(rounded)
    }
}

impl Simd for Avx2 {
    const LANES: usize = 8;
    const ROWS: usize = 6;
    type V = __m256;

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m256 {
        // SAFETY: the caller's machine has AVX2 (here and in the following functions, which pass on the caller's pointers).
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m256 {
        // SAFETY: as `splat`.
        unsafe { _mm256_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: __m256) {
        // SAFETY: as `splat`.
        unsafe { _mm256_storeu_ps(to, v) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> __m256 {
        // SAFETY: as `splat`.
        unsafe {
            let words = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(to: *mut u16, v: __m256) {
        // SAFETY: as `splat`.
        unsafe {
            let words = round_avx2(v);
            let packed = _mm256_permute4x64_epi64::<0b1000>(_mm256_packus_epi32(words, words));
            _mm_storeu_si128(to.cast(), _mm256_castsi256_si128(packed));
        }
    }
    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        // SAFETY: as `splat`.
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m256, b: __m256) -> __m256 {
        // SAFETY: as `splat`.
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        // SAFETY: as `splat`.
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: __m256, b: __m256) -> __m256 {
        // SAFETY: as `splat`.
        unsafe { _mm256_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul_add(a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: as `splat`.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn max(a: __m256, b: __m256) -> __m256 {
        // SAFETY: as `splat`. Of a NaN and another operand the instruction takes the second.
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: __m256, b: __m256) -> __m256 {
        // SAFETY: as `max`.
        unsafe { _mm256_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn power_of_two(n: __m256) -> __m256 {
        // SAFETY: as `splat`.
        unsafe {
            let exponent = _mm256_slli_epi32::<23>(_mm256_castps_si256(n));
            _mm256_castsi256_ps(_mm256_add_epi32(exponent, _mm256_set1_epi32(ONE as i32)))
        }
    }
    #[inline(always)]
    unsafe fn dot_bf16(a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: as `splat`.
        unsafe {
            let low_a = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_castps_si256(a)));
            let low_b = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_castps_si256(b)));
            let mask = _mm256_castsi256_ps(_mm256_set1_epi32(0xffff_0000_u32 as i32));
            let sum = _mm256_fmadd_ps(low_a, low_b, c);
            _mm256_fmadd_ps(_mm256_and_ps(a, mask), _mm256_and_ps(b, mask), sum)
        }
    }
    #[inline(always)]
    unsafe fn transpose(from: *const f32, stride: usize, to: *mut f32, to_stride: usize) {
        // SAFETY: as `splat`.
        unsafe {
            let mut rows = [_mm256_setzero_ps(); 8];
            for (i, row) in rows.iter_mut().enumerate() {
                *row = _mm256_loadu_ps(from.add(i * stride));
            }
            // Squares of two, then of four, then of eight.
            let mut twos = rows;
            for i in [0, 2, 4, 6] {
                twos[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
                twos[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
            }
            let mut fours = rows;
            for i in [0, 4] {
                fours[i] = _mm256_shuffle_ps::<0x44>(twos[i], twos[i + 2]);
                fours[i + 1] = _mm256_shuffle_ps::<0xee>(twos[i], twos[i + 2]);
                fours[i + 2] = _mm256_shuffle_ps::<0x44>(twos[i + 1], twos[i + 3]);
                fours[i + 3] = _mm256_shuffle_ps::<0xee>(twos[i + 1], twos[i + 3]);
            }
            for i in 0..4 {
                let (low, high) = (fours[i], fours[i + 4]);
                _mm256_storeu_ps(to.add(i * to_stride), _mm256_permute2f128_ps::<0x20>(low, high));
                _mm256_storeu_ps(to.add((i + 4) * to_stride), _mm256_permute2f128_ps::<0x31>(low, high));
            }
        }
    }
    #[inline(always)]
    unsafe fn store_pairs(to: *mut u16, even: __m256, odd: __m256) {
        // SAFETY: as `splat`.
        unsafe {
            let pairs = _mm256_or_si256(round_avx2(even), _mm256_slli_epi32::<16>(round_avx2(odd)));
            _mm256_storeu_si256(to.cast(), pairs);
        }
    }
    #[inline(always)]
    unsafe fn pair_bf16(to: *mut u16, even: *const u16, odd: *const u16) {
        // SAFETY: as `splat`.
        unsafe {
            let even = _mm256_cvtepu16_epi32(_mm_loadu_si128(even.cast()));
            let odd = _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(odd.cast())));
            _mm256_storeu_si256(to.cast(), _mm256_or_si256(even, odd));
        }
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Avx512;

/// As [`round_avx2`], for sixteen values.
///
/// # Safety
/// Needs AVX-512F.
#[inline(always)]
unsafe fn round_avx512(v: __m512) -> __m512i {
    // SAFETY: the caller's machine has AVX-512F.
    unsafe {
        let bits = _mm512_castps_si512(v);
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
        let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
        let rounded = _mm512_mask_blend_epi32(nan, rounded, _mm512_set1_epi32(0x7fc0_0000));
        _mm512_srli_epi32::<16>(rounded)
    }
}

/// What both kinds of AVX-512 share.
macro_rules! avx512 {
    () => {
        const LANES: usize = 16;
        const ROWS: usize = 12;
        type V = __m512;

        #[inline(always)]
        unsafe fn splat(x: f32) -> __m512 {
            // SAFETY: the caller's machine has AVX-512 (here and in the following functions, which pass on the caller's pointers).
            unsafe { _mm512_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> __m512 {
            // SAFETY: as `splat`.
            unsafe { _mm512_loadu_ps(from) }
        }
        #[inline(always)]
        unsafe fn store(to: *mut f32, v: __m512) {
            // SAFETY: as `splat`.
            unsafe { _mm512_storeu_ps(to, v) }
        }
        #[inline(always)]
        unsafe fn load_bf16(from: *const u16) -> __m512 {
            // SAFETY: as `splat`.
            unsafe {
                let words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words))
            }
        }
        #[inline(always)]
        unsafe fn add(a: __m512, b: __m512) -> __m512 {
            // SAFETY: as `splat`.
            unsafe { _mm512_add_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn sub(a: __m512, b: __m512) -> __m512 {
            // SAFETY: as `splat`.
            unsafe { _mm512_sub_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn mul(a: __m512, b: __m512) -> __m512 {
            // SAFETY: as `splat`.
            unsafe { _mm512_mul_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn div(a: __m512, b: __m512) -> __m512 {
            // SAFETY: as `splat`.
            unsafe { _mm512_div_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 {
            // SAFETY: as `splat`.
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn transpose(from: *const f32, stride: usize, to: *mut f32, to_stride: usize) {
            // SAFETY: as `splat`.
            unsafe {
                let mut rows = [_mm512_setzero_ps(); 16];
                for (i, row) in rows.iter_mut().enumerate() {
                    *row = _mm512_loadu_ps(from.add(i * stride));
                }
                // Squares of two, then of four, inside quarters of the vectors.
                let mut twos = rows;
                for i in [0, 2, 4, 6, 8, 10, 12, 14] {
                    twos[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
                    twos[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
                }
                let mut fours = rows;
                for i in [0, 4, 8, 12] {
                    fours[i] = _mm512_shuffle_ps::<0x44>(twos[i], twos[i + 2]);
                    fours[i + 1] = _mm512_shuffle_ps::<0xee>(twos[i], twos[i + 2]);
                    fours[i + 2] = _mm512_shuffle_ps::<0x44>(twos[i + 1], twos[i + 3]);
                    fours[i + 3] = _mm512_shuffle_ps::<0xee>(twos[i + 1], twos[i + 3]);
                }
                // Quarters of four vectors: the even ones, the odd ones, of both the even and the odd.
                for i in 0..4 {
                    let (a, b, c, d) = (fours[i], fours[i + 4], fours[i + 8], fours[i + 12]);
                    let (even_ab, odd_ab) = (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b));
                    let (even_cd, odd_cd) = (_mm512_shuffle_f32x4::<0x88>(c, d), _mm512_shuffle_f32x4::<0xdd>(c, d));
                    _mm512_storeu_ps(to.add(i * to_stride), _mm512_shuffle_f32x4::<0x88>(even_ab, even_cd));
                    _mm512_storeu_ps(to.add((i + 4) * to_stride), _mm512_shuffle_f32x4::<0x88>(odd_ab, odd_cd));
                    _mm512_storeu_ps(to.add((i + 8) * to_stride), _mm512_shuffle_f32x4::<0xdd>(even_ab, even_cd));
                    _mm512_storeu_ps(to.add((i + 12) * to_stride), _mm512_shuffle_f32x4::<0xdd>(odd_ab, odd_cd));
                }
            }
        }
        #[inline(always)]
        unsafe fn max(a: __m512, b: __m512) -> __m512 {
            // SAFETY: as `splat`. Of a NaN and another operand the instruction takes the second.
            unsafe { _mm512_max_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn min(a: __m512, b: __m512) -> __m512 {
            // SAFETY: as `max`.
            unsafe { _mm512_min_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn power_of_two(n: __m512) -> __m512 {
            // SAFETY: as `splat`.
            unsafe {
                let exponent = _mm512_slli_epi32::<23>(_mm512_castps_si512(n));
                _mm512_castsi512_ps(_mm512_add_epi32(exponent, _mm512_set1_epi32(ONE as i32)))
            }
        }
        #[inline(always)]
        unsafe fn pair_bf16(to: *mut u16, even: *const u16, odd: *const u16) {
            // SAFETY: as `splat`.
            unsafe {
                let even = _mm512_cvtepu16_epi32(_mm256_loadu_si256(even.cast()));
                let odd = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(odd.cast())));
                _mm512_storeu_si512(to.cast(), _mm512_or_si512(even, odd));
            }
        }
    };
}

impl Simd for Avx512 {
    avx512!();

    #[inline(always)]
    unsafe fn store_bf16(to: *mut u16, v: __m512) {
        // SAFETY: as `splat`.
        unsafe { _mm256_storeu_si256(to.cast(), _mm512_cvtepi32_epi16(round_avx512(v))) }
    }
    #[inline(always)]
    unsafe fn dot_bf16(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: as `splat`.
        unsafe {
            let low_a = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_castps_si512(a)));
            let low_b = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_castps_si512(b)));
            let mask = _mm512_castsi512_ps(_mm512_set1_epi32(0xffff_0000_u32 as i32));
            let sum = _mm512_fmadd_ps(low_a, low_b, c);
            _mm512_fmadd_ps(_mm512_and_ps(a, mask), _mm512_and_ps(b, mask), sum)
        }
    }
    #[inline(always)]
    unsafe fn store_pairs(to: *mut u16, even: __m512, odd: __m512) {
        // SAFETY: as `splat`.
        unsafe {
            let pairs = _mm512_or_si512(round_avx512(even), _mm512_slli_epi32::<16>(round_avx512(odd)));
            _mm512_storeu_si512(to.cast(), pairs);
        }
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Avx512Bf16;

impl Simd for Avx512Bf16 {
    avx512!();

    #[inline(always)]
    unsafe fn store_bf16(to: *mut u16, v: __m512) {
        // SAFETY: as `splat`; a vector of bf16 is 256 bits.
        unsafe { _mm256_storeu_si256(to.cast(), std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(v))) }
    }
    #[inline(always)]
    unsafe fn dot_bf16(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: as `splat`; the three types are 512 bits.
        unsafe {
            let a = std::mem::transmute::<__m512, __m512bh>(a);
            let b = std::mem::transmute::<__m512, __m512bh>(b);
            _mm512_dpbf16_ps(c, a, b)
        }
    }
    #[inline(always)]
    unsafe fn store_pairs(to: *mut u16, even: __m512, odd: __m512) {
        // SAFETY: as `splat`; a vector of bf16 is 256 bits.
        unsafe {
            let even = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(even));
            let odd = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(odd));
            let odd = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(odd));
            _mm512_storeu_si512(to.cast(), _mm512_or_si512(_mm512_cvtepu16_epi32(even), odd));
        }
    }
}
