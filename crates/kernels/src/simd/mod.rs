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
pub trait Simd: Copy {
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
    /// As `store_pairs`, from `LANES` values of bf16 each.
    unsafe fn pair_bf16(to: *mut u16, even: *const u16, odd: *const u16);
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
    #[inline(always)]
    unsafe fn pair_bf16(to: *mut u16, even: *const u16, odd: *const u16) {
        for i in 0..N {
            // SAFETY: the caller's pointers are valid for N values, and twice as many.
            unsafe {
                to.add(2 * i).write(even.add(i).read());
                to.add(2 * i + 1).write(odd.add(i).read());
            }
        }
    }
}

/// What a machine without wider vectors uses.
pub(crate) type Portable = Lanes<4>;

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512, Avx512Bf16};

#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "aarch64")]
pub(crate) use arm::Neon;

#[cfg(target_arch = "aarch64")]
mod arm;

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
            fn body<$S: $crate::simd::Simd $(, $T: $Bound)*>($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                use $crate::Isa;
                #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx512bf16,avx2,fma")]
                fn avx512_bf16<$($T: $Bound),*>($($arg: $ty),*) $(-> $ret)? {
                    body::<$crate::simd::Avx512Bf16 $(, $T)*>($($arg),*)
                }
                #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
                fn avx512<$($T: $Bound),*>($($arg: $ty),*) $(-> $ret)? {
                    body::<$crate::simd::Avx512 $(, $T)*>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2<$($T: $Bound),*>($($arg: $ty),*) $(-> $ret)? {
                    body::<$crate::simd::Avx2 $(, $T)*>($($arg),*)
                }
                match Isa::current() {
                    // SAFETY: an instruction set is only selected on a machine that has all of it.
                    Isa::Avx512Bf16 | Isa::AmxBf16 => return unsafe { avx512_bf16::<$($T),*>($($arg),*) },
                    // SAFETY: as above.
                    Isa::Avx512 | Isa::AmxEmulated => return unsafe { avx512::<$($T),*>($($arg),*) },
                    // SAFETY: as above.
                    Isa::Avx2 => return unsafe { avx2::<$($T),*>($($arg),*) },
                    Isa::Portable => {}
                }
            }
            #[cfg(target_arch = "aarch64")]
            if $crate::Isa::current() == $crate::Isa::Neon {
                return body::<$crate::simd::Neon $(, $T)*>($($arg),*);
            }
            body::<$crate::simd::Portable $(, $T)*>($($arg),*)
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
            $function::<$crate::simd::Lanes<1>, $E>($($arg),*);
            $j += 1;
        }
    }};
}
pub(crate) use each_vector;
