//! Group normalisation with feature-wise scale and shift and SiLU, channels last, in one pass each way.
//!
//! With x̂ = (x − mean)/std over a group, the layer computes `act(x̂·a + b)` where a = weight·(1 + scale) and
//! b = bias·(1 + scale) + shift are per image and channel. Statistics are two-pass and summed in f64.

use super::math::{sigmoid, vectorised};
use rayon::prelude::*;

/// Sizes of one call: `n` images of `pixels` pixels with `c` channels in `groups` groups.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    pub(crate) n: usize,
    pub(crate) pixels: usize,
    pub(crate) c: usize,
    pub(crate) groups: usize,
}

impl Extent {
    fn image(&self) -> usize {
        self.pixels * self.c
    }

    fn per_group(&self) -> usize {
        self.c / self.groups
    }

    /// Per-channel sums over one image, where `add` adds a pixel's terms to partial sums: in f32 over a few pixels, then
    /// in f64, so that a large mean over many pixels loses no digits.
    fn sums(&self, x: &[f32], add: impl Fn(&mut [f32], &[f32])) -> Vec<f64> {
        const PIXELS: usize = 16;
        let (mut sums, mut partial) = (vec![0.0f64; self.c], vec![0.0f32; self.c]);
        vectorised(|| {
            for pixels in x.chunks(PIXELS * self.c) {
                partial.fill(0.0);
                pixels.chunks_exact(self.c).for_each(|pixel| add(&mut partial, pixel));
                sums.iter_mut().zip(&partial).for_each(|(s, &p)| *s += f64::from(p));
            }
        });
        sums
    }

    /// Means of per-channel sums over each group, spread back to the channels.
    fn group_means(&self, sums: &[f64]) -> Vec<f32> {
        let count = (self.per_group() * self.pixels) as f64;
        sums.chunks_exact(self.per_group())
            .flat_map(|group| {
                let mean = group.iter().sum::<f64>() / count;
                std::iter::repeat_n(mean as f32, self.per_group())
            })
            .collect()
    }
}

/// Per image and channel: mean, then 1/√(var + eps), as `[N, 2, C]`.
pub(crate) fn statistics(e: Extent, x: &[f32], eps: f32) -> Vec<f32> {
    let mut stats = vec![0.0; e.n * 2 * e.c];
    stats.par_chunks_mut(2 * e.c).zip(x.par_chunks(e.image())).for_each(|(stats, x)| {
        let mean = e.group_means(&e.sums(x, |sums, pixel| sums.iter_mut().zip(pixel).for_each(|(s, v)| *s += v)));
        let squares = e.sums(x, |sums, pixel| {
            sums.iter_mut().zip(pixel).zip(&mean).for_each(|((s, v), m)| *s += (v - m) * (v - m));
        });
        let (means, rstds) = stats.split_at_mut(e.c);
        means.copy_from_slice(&mean);
        rstds.iter_mut().zip(e.group_means(&squares)).for_each(|(r, var)| *r = 1.0 / (var + eps).sqrt());
    });
    stats
}

/// Per channel of one image: the slope and offset that take x straight to the activation's input.
fn affine(e: Extent, stats: &[f32], film: &[f32], weight: &[f32], bias: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let (mean, rstd) = stats.split_at(e.c);
    let (scale, shift) = film.split_at(e.c);
    (0..e.c)
        .map(|i| {
            let (a, b) = (weight[i] * (1.0 + scale[i]), bias[i] * (1.0 + scale[i]) + shift[i]);
            (rstd[i] * a, b - mean[i] * rstd[i] * a)
        })
        .unzip()
}

/// The layer's output, shaped as `x`. `film` is `[N, 2C]`: scale, then shift.
pub(crate) fn apply(
    e: Extent,
    x: &[f32],
    stats: &[f32],
    weight: &[f32],
    bias: &[f32],
    film: &[f32],
    silu: bool,
) -> Vec<f32> {
    let mut out = vec![0.0; x.len()];
    out.par_chunks_mut(e.image())
        .zip(x.par_chunks(e.image()))
        .zip(stats.par_chunks(2 * e.c).zip(film.par_chunks(2 * e.c)))
        .for_each(|((out, x), (stats, film))| {
            let (slope, offset) = affine(e, stats, film, weight, bias);
            vectorised(|| {
                for (out, x) in out.chunks_exact_mut(e.c).zip(x.chunks_exact(e.c)) {
                    for (((y, &x), a), b) in out.iter_mut().zip(x).zip(&slope).zip(&offset) {
                        let u = x * a + b;
                        *y = if silu { u * sigmoid(u) } else { u };
                    }
                }
            });
        });
    out
}

/// Gradients of the layer.
pub(crate) struct Grads {
    pub(crate) x: Vec<f32>,
    pub(crate) weight: Vec<f32>,
    pub(crate) bias: Vec<f32>,
    pub(crate) film: Vec<f32>,
}

/// The backward pass, from the output's gradient and what the forward pass saw.
#[expect(clippy::too_many_arguments, reason = "the forward's arguments and the gradient")]
pub(crate) fn backward(
    e: Extent,
    grad: &[f32],
    x: &[f32],
    stats: &[f32],
    weight: &[f32],
    bias: &[f32],
    film: &[f32],
    silu: bool,
) -> Grads {
    let c = e.c;
    let mut dx = vec![0.0; x.len()];
    let mut dfilm = vec![0.0; film.len()];
    // Per image and channel: Σ du and Σ du·x̂, from which the parameters' gradients follow.
    let mut sums = vec![0.0f32; e.n * 2 * c];
    dx.par_chunks_mut(e.image())
        .zip(dfilm.par_chunks_mut(2 * c).zip(sums.par_chunks_mut(2 * c)))
        .zip(grad.par_chunks(e.image()).zip(x.par_chunks(e.image())))
        .zip(stats.par_chunks(2 * c).zip(film.par_chunks(2 * c)))
        .for_each(|(((dx, (dfilm, sums)), (grad, x)), (stats, film))| {
            let (mean, rstd) = stats.split_at(c);
            let (slope, offset) = affine(e, stats, film, weight, bias);
            let (du_sum, dux_sum) = sums.split_at_mut(c);
            // First pass: du = grad·act'(u), kept in dx, and its sums.
            vectorised(|| {
                for ((dx, grad), x) in dx.chunks_exact_mut(c).zip(grad.chunks_exact(c)).zip(x.chunks_exact(c)) {
                    for i in 0..c {
                        let du = if silu {
                            let u = x[i] * slope[i] + offset[i];
                            let s = sigmoid(u);
                            grad[i] * (s * (1.0 + u * (1.0 - s)))
                        } else {
                            grad[i]
                        };
                        dx[i] = du;
                        du_sum[i] += du;
                        dux_sum[i] += du * ((x[i] - mean[i]) * rstd[i]);
                    }
                }
            });
            let scaled = |sums: &[f32]| -> Vec<f32> {
                let scaled =
                    sums.iter().zip(weight).zip(film).map(|((s, w), scale)| f64::from(s * (w * (1.0 + scale))));
                e.group_means(&scaled.collect::<Vec<_>>())
            };
            let (m1, m2) = (scaled(du_sum), scaled(dux_sum));
            // Second pass: dx = rstd·(a·du − mean(a·du) − x̂·mean(a·du·x̂)).
            vectorised(|| {
                for (dx, x) in dx.chunks_exact_mut(c).zip(x.chunks_exact(c)) {
                    for i in 0..c {
                        let normal = (x[i] - mean[i]) * rstd[i];
                        dx[i] = slope[i] * dx[i] - rstd[i] * (m1[i] + normal * m2[i]);
                    }
                }
            });
            for i in 0..c {
                dfilm[i] = weight[i] * dux_sum[i] + bias[i] * du_sum[i];
                dfilm[c + i] = du_sum[i];
            }
        });
    let mut dweight = vec![0.0; c];
    let mut dbias = vec![0.0; c];
    for (sums, film) in sums.chunks_exact(2 * c).zip(film.chunks_exact(2 * c)) {
        for i in 0..c {
            dweight[i] += (1.0 + film[i]) * sums[c + i];
            dbias[i] += (1.0 + film[i]) * sums[i];
        }
    }
    Grads { x: dx, weight: dweight, bias: dbias, film: dfilm }
}
