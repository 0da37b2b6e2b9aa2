//! Vectors of f32, one type per instruction set, and the dispatch that compiles a function for each.
//!
//! A kernel is written once, over [`Simd`]; [`multiversion!`] compiles it for every instruction set and runs the one that
//! [`Isa::current`](crate::Isa) names. What needs no explicit vectors leaves them out and is vectorised by the compiler.

#![allow(unsafe_code, reason = "vector instructions")]
#![expect(clippy::inline_always, reason = "only what is inlined into the dispatch is compiled for its instruction set")]

/// Vectors of an instruction set.
///
/// # Safety
/// All functions: the machine has the instruction set, and pointers are valid for `LANES` values of their type; they
/// need no alignment.
pub(crate) trait Simd: Copy {
    /// Values in a vector.
    const LANES: usize;
    /// Rows of a tile of a matrix product: with two vectors each they fill the registers.
    const ROWS: usize;
    /// The vector.
    type V: Copy;

    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(from: *const f32) -> Self::V;
    unsafe fn store(to: *mut f32, v: Self::V);
    unsafe fn load_bf16(from: *const u16) -> Self::V;
    /// Rounds to nearest even.
    unsafe fn store_bf16(to: *mut u16, v: Self::V);
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// a·b + c.
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger; b if one is NaN.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// The smaller; b if one is NaN.
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// 2ⁿ where the lowest bits of the value are the integer n, between −126 and 127.
    unsafe fn power_of_two(n: Self::V) -> Self::V;
    /// Per lane, c + the product of two pairs of bf16, the even one in the low half.
    unsafe fn dot_bf16(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Writes the transpose of `LANES` rows of `LANES` values, `stride` apart, to rows `to_stride` apart.
    unsafe fn transpose(from: *const f32, stride: usize, to: *mut f32, to_stride: usize);
    /// Writes pairs of bf16, `even` in the low halves, as `2·LANES` values.
    unsafe fn store_pairs(to: *mut u16, even: Self::V, odd: Self::V);
}

/// Rounds to the nearest bf16, ties to even; NaN stays NaN.
#[inline(always)]
pub(crate) fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16;
    if x.is_nan() { 0x7fc0 } else { rounded }
}

/// The value of a bf16.
#[inline(always)]
pub(crate) fn from_bf16(x: u16) -> f32 {
    f32::from_bits(u32::from(x) << 16)
}

/// Plain arrays of N values: the compiler finds the vectors.
#[derive(Clone, Copy)]
pub(crate) struct Lanes<const N: usize>;

/// a·b + c, fused where the baseline of the architecture has the instruction.
#[inline(always)]
fn mul_add(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(target_arch = "aarch64") { a.mul_add(b, c) } else { a * b + c }
}

/// The bits of 1.
const ONE: u32 = 0x3f80_0000;

/// The low half of a cell of two bf16.
#[inline(always)]
fn low(cell: f32) -> f32 {
    f32::from_bits(cell.to_bits() << 16)
}

/// The high half of a cell of two bf16.
#[inline(always)]
fn high(cell: f32) -> f32 {
    f32::from_bits(cell.to_bits() & 0xffff_0000)
}

/// An array of N values, index by index: a closure would not be compiled for the caller's instruction set.
macro_rules! lanes {
    ($i:ident => $value:expr) => {{
        let mut values = [0.0; N];
        for $i in 0..N {
            values[$i] = $value;
        }
        values
    }};
}

impl<const N: usize> Simd for Lanes<N> {
    const LANES: usize = N;
    const ROWS: usize = 4;
    type V = [f32; N];

    #[inline(always)]
    unsafe fn splat(x: f32) -> [f32; N] {
        [x; N]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> [f32; N] {
        // SAFETY: the caller's pointer is valid for N values.
        unsafe { from.cast::<[f32; N]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: [f32; N]) {
        // SAFETY: the caller's pointer is valid for N values.
        unsafe { to.cast::<[f32; N]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> [f32; N] {
        // SAFETY: the caller's pointer is valid for N values.
        let words = unsafe { from.cast::<[u16; N]>().read_unaligned() };
        lanes!(i => from_bf16(words[i]))
    }
    #[inline(always)]
    unsafe fn store_bf16(to: *mut u16, v: [f32; N]) {
        let mut words = [0; N];
        for i in 0..N {
            words[i] = to_bf16(v[i]);
        }
        // SAFETY: the caller's pointer is valid for N values.
        unsafe { to.cast::<[u16; N]>().write_unaligned(words) }
    }
    #[inline(always)]
    unsafe fn add(a: [f32; N], b: [f32; N]) -> [f32; N] {
        lanes!(i => a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn sub(a: [f32; N], b: [f32; N]) -> [f32; N] {
        lanes!(i => a[i] - b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: [f32; N], b: [f32; N]) -> [f32; N] {
        lanes!(i => a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn div(a: [f32; N], b: [f32; N]) -> [f32; N] {
        lanes!(i => a[i] / b[i])
    }
    #[inline(always)]
    unsafe fn mul_add(a: [f32; N], b: [f32; N], c: [f32; N]) -> [f32; N] {
        lanes!(i => mul_add(a[i], b[i], c[i]))
    }
    #[inline(always)]
    unsafe fn max(a: [f32; N], b: [f32; N]) -> [f32; N] {
        lanes!(i => if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn min(a: [f32; N], b: [f32; N]) -> [f32; N] {
        lanes!(i => if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn power_of_two(n: [f32; N]) -> [f32; N] {
        lanes!(i => f32::from_bits((n[i].to_bits() << 23).wrapping_add(ONE)))
    }
    #[inline(always)]
    unsafe fn dot_bf16(a: [f32; N], b: [f32; N], c: [f32; N]) -> [f32; N] {
        lanes!(i => mul_add(high(a[i]), high(b[i]), mul_add(low(a[i]), low(b[i]), c[i])))
    }
    #[inline(always)]
    unsafe fn transpose(from: *const f32, stride: usize, to: *mut f32, to_stride: usize) {
        for i in 0..N {
            for j in 0..N {
                // SAFETY: the caller's pointers are valid for N rows.
                unsafe { to.add(j * to_stride + i).write(from.add(i * stride + j).read()) };
            }
        }
    }
    #[inline(always)]
    unsafe fn store_pairs(to: *mut u16, even: [f32; N], odd: [f32; N]) {
        let mut pairs = [[0; 2]; N];
        for i in 0..N {
            pairs[i] = [to_bf16(even[i]), to_bf16(odd[i])];
        }
        // SAFETY: the caller's pointer is valid for 2·N values.
        unsafe { to.cast::<[[u16; 2]; N]>().write_unaligned(pairs) }
    }
}

/// What a machine without wider vectors uses.
pub(crate) type Portable = Lanes<4>;

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512, Avx512Bf16};

#[cfg(target_arch = "x86_64")]
mod x86 {
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
                        let (even_ab, odd_ab) =
                            (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b));
                        let (even_cd, odd_cd) =
                            (_mm512_shuffle_f32x4::<0x88>(c, d), _mm512_shuffle_f32x4::<0xdd>(c, d));
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
}

#[cfg(target_arch = "aarch64")]
pub(crate) use arm::Neon;

#[cfg(target_arch = "aarch64")]
mod arm {
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
    }
}

/// Compiles a function once for each instruction set and runs the version that [`Isa::current`](crate::Isa) names. The
/// first generic parameter is the [`Simd`] type; callers do not give it. Nothing but `Simd::mul_add`, `Simd::dot_bf16` and
/// (for subnormal numbers) the rounding to bf16 differs from one set to another.
macro_rules! multiversion {
    ($(#[$meta:meta])* $vis:vis fn $name:ident<$S:ident $(, $T:ident: $Bound:path)*>($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(unsafe_code, clippy::inline_always, clippy::too_many_arguments, reason = "instruction sets are chosen at run time")]
        $vis fn $name<$($T: $Bound),*>($($arg: $ty),*) $(-> $ret)? {
            #[allow(clippy::extra_unused_type_parameters, reason = "what the compiler vectorises does not name vectors")]
            #[inline(always)]
            fn body<$S: $crate::flex::simd::Simd $(, $T: $Bound)*>($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                use $crate::Isa;
                #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx512bf16,avx2,fma")]
                fn avx512_bf16<$($T: $Bound),*>($($arg: $ty),*) $(-> $ret)? {
                    body::<$crate::flex::simd::Avx512Bf16 $(, $T)*>($($arg),*)
                }
                #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
                fn avx512<$($T: $Bound),*>($($arg: $ty),*) $(-> $ret)? {
                    body::<$crate::flex::simd::Avx512 $(, $T)*>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2<$($T: $Bound),*>($($arg: $ty),*) $(-> $ret)? {
                    body::<$crate::flex::simd::Avx2 $(, $T)*>($($arg),*)
                }
                match Isa::current() {
                    // SAFETY: an instruction set is only selected on a machine that has all of it.
                    Isa::Avx512Bf16 | Isa::AmxBf16 => return unsafe { avx512_bf16::<$($T),*>($($arg),*) },
                    // SAFETY: as above.
                    Isa::Avx512 => return unsafe { avx512::<$($T),*>($($arg),*) },
                    // SAFETY: as above.
                    Isa::Avx2 => return unsafe { avx2::<$($T),*>($($arg),*) },
                    Isa::Portable => {}
                }
            }
            #[cfg(target_arch = "aarch64")]
            if $crate::Isa::current() == $crate::Isa::Neon {
                return body::<$crate::flex::simd::Neon $(, $T)*>($($arg),*);
            }
            body::<$crate::flex::simd::Portable $(, $T)*>($($arg),*)
        }
    };
}
pub(crate) use multiversion;

/// Calls a function for every vector of `count` values: with the instruction set's vectors, then for each of the last values
/// alone. `j` names where a vector begins.
macro_rules! each_vector {
    ($S:ident, $count:expr, $j:ident => $function:ident::<$E:ident>($($arg:expr),* $(,)?)) => {{
        let mut $j = 0;
        while $j + $S::LANES <= $count {
            $function::<$S, $E>($($arg),*);
            $j += $S::LANES;
        }
        while $j < $count {
            $function::<$crate::flex::simd::Lanes<1>, $E>($($arg),*);
            $j += 1;
        }
    }};
}
pub(crate) use each_vector;
