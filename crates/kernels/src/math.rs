//! Elementary functions of vectors.

#![allow(unsafe_code, reason = "vectors")]
#![expect(clippy::inline_always, reason = "compiled for the caller's instruction set")]

use crate::simd::Simd;

/// eˣ with a relative error below 2⁻²², without branches: eˣ = 2ⁿ·eʳ with r in ±ln 2 / 2 and a polynomial for eʳ.
/// Saturates near 1e±38 instead of overflowing; NaN stays NaN.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
pub(crate) unsafe fn exp<S: Simd>(x: S::V) -> S::V {
    // −ln 2 in two parts, so that x − n·ln 2 loses nothing (Cody and Waite).
    const LN2_HI: f32 = -0.693_359_4;
    const LN2_LO: f32 = 2.121_944_4e-4;
    // Adding 1.5·2²³ rounds to the nearest integer and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // SAFETY: the caller's promise.
    unsafe {
        let x = S::min(S::splat(88.0), S::max(S::splat(-87.0), x));
        let shifted = S::mul_add(x, S::splat(std::f32::consts::LOG2_E), S::splat(ROUND));
        let n = S::sub(shifted, S::splat(ROUND));
        let r = S::mul_add(n, S::splat(LN2_LO), S::mul_add(n, S::splat(LN2_HI), x));
        let mut p = S::splat(1.0 / 5040.0);
        for factor in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
            p = S::mul_add(p, r, S::splat(factor));
        }
        S::mul(p, S::power_of_two(shifted))
    }
}

/// The logistic function 1/(1 + e⁻ˣ).
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
pub(crate) unsafe fn sigmoid<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the caller's promise.
    unsafe {
        let one = S::splat(1.0);
        S::div(one, S::add(one, exp::<S>(S::sub(S::splat(0.0), x))))
    }
}

#[cfg(test)]
mod tests {
    use crate::simd::Lanes;

    fn exp(x: f32) -> f32 {
        // SAFETY: an array needs no instruction set.
        unsafe { super::exp::<Lanes<1>>([x])[0] }
    }

    #[test]
    fn exp_is_within_a_few_ulp() {
        let mut worst = 0.0f64;
        for i in -870_000..=880_000 {
            let x = i as f32 * 1e-4;
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - exact).abs() / exact);
        }
        assert!(worst < 2.4e-7, "worst relative error {worst:e}");
        assert!(exp(1000.0).is_finite() && exp(-1000.0) > 0.0);
        assert!(exp(f32::NAN).is_nan());
    }
}
