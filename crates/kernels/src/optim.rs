//! In-place updates over whole parameters.

use crate::simd::multiversion;
use crate::{AdamW, AdamWCoefficients};
use rayon::prelude::*;

/// Values one task updates: enough to be worth a task, small enough to balance.
pub const CHUNK: usize = 1 << 16;

/// One AdamW step in place, operation by operation as PyTorch's `torch.optim.AdamW` rounds it, and then each of the averages
/// (rate, values): `values·rate + param·(1 − rate)`, from the new parameter. What is read for one is still in a cache for the
/// other.
pub fn adamw(
    settings: &AdamW,
    param: &mut [f32],
    grad: &[f32],
    m: &mut [f32],
    v: &mut [f32],
    averages: &mut [(f64, &mut [f32])],
) {
    assert_eq!([grad.len(), m.len(), v.len()], [param.len(); 3], "lengths of gradient and moments");
    assert!(averages.iter().all(|(_, values)| values.len() == param.len()), "lengths of parameter and averages");
    let c = settings.coefficients();
    // By chunk, its part of every average, with the factors of both.
    let mut parts: Vec<Vec<(f32, f32, &mut [f32])>> = Vec::new();
    parts.resize_with(param.len().div_ceil(CHUNK), || Vec::with_capacity(averages.len()));
    for (rate, values) in averages {
        let (rate, rest) = (*rate as f32, (1.0 - *rate) as f32);
        for (parts, values) in parts.iter_mut().zip(values.chunks_mut(CHUNK)) {
            parts.push((rate, rest, values));
        }
    }
    param
        .par_chunks_mut(CHUNK)
        .zip(m.par_chunks_mut(CHUNK).zip(v.par_chunks_mut(CHUNK)))
        .zip(grad.par_chunks(CHUNK).zip(parts))
        .for_each(|((param, (m, v)), (grad, averages))| {
            adamw_chunk(&c, param, grad, m, v);
            for (rate, rest, values) in averages {
                ema_chunk(values, param, rate, rest);
            }
        });
}

multiversion! {
    fn adamw_chunk<S>(c: &AdamWCoefficients, param: &mut [f32], grad: &[f32], m: &mut [f32], v: &mut [f32]) {
        for (((p, m), v), &g) in param.iter_mut().zip(m).zip(v).zip(grad) {
            let g = g * c.grad_scale;
            *m += c.one_minus_beta1 * (g - *m);
            *v = *v * c.beta2 + c.one_minus_beta2 * g * g;
            *p = *p * c.decay - c.step_size * *m / (v.sqrt() / c.sqrt_correction2 + c.eps);
        }
    }
}

multiversion! {
    /// `target = target·rate + source·rest` in place.
    fn ema_chunk<S>(target: &mut [f32], source: &[f32], rate: f32, rest: f32) {
        target.iter_mut().zip(source).for_each(|(t, s)| *t = *t * rate + s * rest);
    }
}

/// Σ x², summed in f64 over fixed pieces, so that it does not depend on the number of threads.
pub fn sum_squares(x: &[f32]) -> f64 {
    squares(x).iter().sum()
}

/// Σ x² of each [`CHUNK`] of values.
pub fn squares(x: &[f32]) -> Vec<f64> {
    x.par_chunks(CHUNK).map(sum_squares_chunk).collect()
}

multiversion! {
    fn sum_squares_chunk<S>(x: &[f32]) -> f64 {
        let mut lanes = [0.0f64; 32];
        let chunks = x.chunks_exact(32);
        let rest: f64 = chunks.remainder().iter().map(|&v| f64::from(v) * f64::from(v)).sum();
        for x in chunks {
            for i in 0..32 {
                lanes[i] += f64::from(x[i]) * f64::from(x[i]);
            }
        }
        lanes.iter().sum::<f64>() + rest
    }
}
