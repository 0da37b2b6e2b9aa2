//! The matrices of both forms.

use crate::simd::Simd;

/// The most pixels along the side of a tile's inputs.
pub(super) const SIDE: usize = 6;

/// One vector for each place along a side; a form with a shorter side leaves the last ones alone.
pub(super) type Line<V> = [V; SIDE];

/// A square of vectors.
pub(super) type Square<V> = [Line<V>; SIDE];

/// F(`OUT` x `OUT`, 3x3): how many pixels a tile has, and the matrices of one dimension.
///
/// # Safety
/// All functions: as [`Simd`].
pub(super) trait Form: Copy + Send + Sync + 'static {
    /// Output pixels along a tile's side.
    const OUT: usize;
    /// Input pixels that they see.
    const IN: usize = Self::OUT + 2;
    /// Points of a transformed tile.
    const POINTS: usize = Self::IN * Self::IN;

    /// Bᵀ times `IN` vectors.
    unsafe fn b_transposed<S: Simd>(d: Line<S::V>) -> Line<S::V>;
    /// Aᵀ times `IN` vectors: `OUT` of them.
    unsafe fn a_transposed<S: Simd>(m: Line<S::V>) -> Line<S::V>;
    /// A times `OUT` vectors: `IN` of them.
    unsafe fn a<S: Simd>(y: Line<S::V>) -> Line<S::V>;
    /// G times three vectors: `IN` of them.
    unsafe fn g<S: Simd>(w: Line<S::V>) -> Line<S::V>;
    /// Gᵀ times `IN` vectors: three of them.
    unsafe fn g_transposed<S: Simd>(u: Line<S::V>) -> Line<S::V>;
}

/// F(2x2, 3x3): the points 0, ±1, ∞.
#[derive(Clone, Copy)]
pub(super) struct F2;

impl Form for F2 {
    const OUT: usize = 2;

    #[inline(always)]
    unsafe fn b_transposed<S: Simd>(d: Line<S::V>) -> Line<S::V> {
        // SAFETY: the caller's promise (here and below).
        unsafe { [S::sub(d[0], d[2]), S::add(d[1], d[2]), S::sub(d[2], d[1]), S::sub(d[1], d[3]), d[4], d[5]] }
    }
    #[inline(always)]
    unsafe fn a_transposed<S: Simd>(m: Line<S::V>) -> Line<S::V> {
        // SAFETY: as above.
        unsafe { [S::add(S::add(m[0], m[1]), m[2]), S::sub(S::sub(m[1], m[2]), m[3]), m[2], m[3], m[4], m[5]] }
    }
    #[inline(always)]
    unsafe fn a<S: Simd>(y: Line<S::V>) -> Line<S::V> {
        // SAFETY: as above.
        unsafe { [y[0], S::add(y[0], y[1]), S::sub(y[0], y[1]), S::sub(S::splat(0.0), y[1]), y[4], y[5]] }
    }
    #[inline(always)]
    unsafe fn g<S: Simd>(w: Line<S::V>) -> Line<S::V> {
        // SAFETY: as above.
        unsafe {
            let half = S::splat(0.5);
            let (outer, inner) = (S::mul(S::add(w[0], w[2]), half), S::mul(w[1], half));
            [w[0], S::add(outer, inner), S::sub(outer, inner), w[2], w[4], w[5]]
        }
    }
    #[inline(always)]
    unsafe fn g_transposed<S: Simd>(u: Line<S::V>) -> Line<S::V> {
        // SAFETY: as above.
        unsafe {
            let half = S::splat(0.5);
            let sum = S::mul(S::add(u[1], u[2]), half);
            [S::add(u[0], sum), S::mul(S::sub(u[1], u[2]), half), S::add(u[3], sum), u[3], u[4], u[5]]
        }
    }
}

/// F(4x4, 3x3): the points 0, ±p, ±q, ∞.
#[derive(Clone, Copy)]
pub(super) struct F4;

/// 5/8 and 3/2 lose the least among simple numbers: a convolution of random values is off by twice what a plain sum in
/// f32 is off by, with the usual 1 and 2 by four times (`docs/winograd.py`). Their powers in the matrices are exact.
const P: f32 = 0.625;
const Q: f32 = 1.5;
const P2: f32 = P * P;
const Q2: f32 = Q * Q;
/// Products of differences of a point with the others: Lagrange's denominators at 0, ±p and ±q.
const AT_0: f32 = 1.0 / (P2 * Q2);
const AT_P: f32 = 1.0 / (2.0 * P2 * (P2 - Q2));
const AT_Q: f32 = 1.0 / (2.0 * Q2 * (Q2 - P2));

impl Form for F4 {
    const OUT: usize = 4;

    #[inline(always)]
    unsafe fn b_transposed<S: Simd>(d: Line<S::V>) -> Line<S::V> {
        // SAFETY: the caller's promise (here and below).
        unsafe {
            let (p, q) = (S::splat(P), S::splat(Q));
            let (minus_p2, minus_q2) = (S::splat(-P2), S::splat(-Q2));
            let (product, minus_sum) = (S::splat(P2 * Q2), S::splat(-P2 - Q2));
            let (even_p, odd_p) = (S::mul_add(minus_q2, d[2], d[4]), S::mul(p, S::mul_add(minus_q2, d[1], d[3])));
            let (even_q, odd_q) = (S::mul_add(minus_p2, d[2], d[4]), S::mul(q, S::mul_add(minus_p2, d[1], d[3])));
            [
                S::mul_add(product, d[0], S::mul_add(minus_sum, d[2], d[4])),
                S::add(even_p, odd_p),
                S::sub(even_p, odd_p),
                S::add(even_q, odd_q),
                S::sub(even_q, odd_q),
                S::mul_add(product, d[1], S::mul_add(minus_sum, d[3], d[5])),
            ]
        }
    }
    #[inline(always)]
    unsafe fn a_transposed<S: Simd>(m: Line<S::V>) -> Line<S::V> {
        // SAFETY: as above.
        unsafe {
            let (even_p, odd_p) = (S::add(m[1], m[2]), S::sub(m[1], m[2]));
            let (even_q, odd_q) = (S::add(m[3], m[4]), S::sub(m[3], m[4]));
            [
                S::add(S::add(m[0], even_p), even_q),
                S::mul_add(S::splat(P), odd_p, S::mul(S::splat(Q), odd_q)),
                S::mul_add(S::splat(P2), even_p, S::mul(S::splat(Q2), even_q)),
                S::mul_add(S::splat(P * P2), odd_p, S::mul_add(S::splat(Q * Q2), odd_q, m[5])),
                m[4],
                m[5],
            ]
        }
    }
    #[inline(always)]
    unsafe fn a<S: Simd>(y: Line<S::V>) -> Line<S::V> {
        // SAFETY: as above.
        unsafe {
            let (p2, q2) = (S::splat(P2), S::splat(Q2));
            let (even_p, odd_p) = (S::mul_add(p2, y[2], y[0]), S::mul(S::splat(P), S::mul_add(p2, y[3], y[1])));
            let (even_q, odd_q) = (S::mul_add(q2, y[2], y[0]), S::mul(S::splat(Q), S::mul_add(q2, y[3], y[1])));
            [y[0], S::add(even_p, odd_p), S::sub(even_p, odd_p), S::add(even_q, odd_q), S::sub(even_q, odd_q), y[3]]
        }
    }
    #[inline(always)]
    unsafe fn g<S: Simd>(w: Line<S::V>) -> Line<S::V> {
        // SAFETY: as above.
        unsafe {
            let even_p = S::mul(S::splat(AT_P), S::mul_add(S::splat(P2), w[2], w[0]));
            let even_q = S::mul(S::splat(AT_Q), S::mul_add(S::splat(Q2), w[2], w[0]));
            let (odd_p, odd_q) = (S::mul(S::splat(AT_P * P), w[1]), S::mul(S::splat(AT_Q * Q), w[1]));
            [
                S::mul(S::splat(AT_0), w[0]),
                S::add(even_p, odd_p),
                S::sub(even_p, odd_p),
                S::add(even_q, odd_q),
                S::sub(even_q, odd_q),
                w[2],
            ]
        }
    }
    #[inline(always)]
    unsafe fn g_transposed<S: Simd>(u: Line<S::V>) -> Line<S::V> {
        // SAFETY: as above.
        unsafe {
            let even_p = S::mul(S::splat(AT_P), S::add(u[1], u[2]));
            let even_q = S::mul(S::splat(AT_Q), S::add(u[3], u[4]));
            let (odd_p, odd_q) = (S::sub(u[1], u[2]), S::sub(u[3], u[4]));
            [
                S::add(S::mul_add(S::splat(AT_0), u[0], even_p), even_q),
                S::mul_add(S::splat(AT_P * P), odd_p, S::mul(S::splat(AT_Q * Q), odd_q)),
                S::mul_add(S::splat(P2), even_p, S::mul_add(S::splat(Q2), even_q, u[5])),
                u[3],
                u[4],
                u[5],
            ]
        }
    }
}
