//! In-place updates over whole parameters.

use super::simd::multiversion;
use crate::{AdamW, AdamWCoefficients};
use rayon::prelude::*;

/// Values one task updates: enough to be worth a task, small enough to balance.
const CHUNK: usize = 1 << 16;

/// One AdamW step in place, operation by operation as PyTorch's `torch.optim.AdamW` rounds it.
pub(crate) fn adamw(h: &AdamW, param: &mut [f32], grad: &[f32], m: &mut [f32], v: &mut [f32]) {
    let c = h.coefficients();
    param
        .par_chunks_mut(CHUNK)
        .zip(m.par_chunks_mut(CHUNK).zip(v.par_chunks_mut(CHUNK)))
        .zip(grad.par_chunks(CHUNK))
        .for_each(|((param, (m, v)), grad)| adamw_chunk(&c, param, grad, m, v));
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

/// `target = target·rate + source·(1 − rate)` in place.
pub(crate) fn ema(target: &mut [f32], source: &[f32], rate: f64) {
    let (rate, rest) = (rate as f32, (1.0 - rate) as f32);
    target.par_chunks_mut(CHUNK).zip(source.par_chunks(CHUNK)).for_each(|(target, source)| {
        ema_chunk(target, source, rate, rest);
    });
}

multiversion! {
    fn ema_chunk<S>(target: &mut [f32], source: &[f32], rate: f32, rest: f32) {
        target.iter_mut().zip(source).for_each(|(t, s)| *t = *t * rate + s * rest);
    }
}

/// Σ x², summed in f64 over fixed pieces, so that it does not depend on the number of threads.
pub(crate) fn sum_squares(x: &[f32]) -> f64 {
    let pieces: Vec<f64> = x.par_chunks(CHUNK).map(sum_squares_chunk).collect();
    pieces.iter().sum()
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
