//! Group normalisation with feature-wise scale and shift and SiLU, channels last, as one operation each way.
//!
//! With x̂ = (x − mean)/std over a group, the layer computes `act(x̂·a + b)` where a = weight·(1 + scale) and
//! b = bias·(1 + scale) + shift are per image and channel. Statistics are two-pass and summed in f64.

use super::math::{multiversion, sigmoid};
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
        let mut sums = vec![0.0f64; e.c];
        sum_channels(x, &mut sums);
        let mean = e.group_means(&sums);
        sums.fill(0.0);
        sum_squared_deviations(x, &mean, &mut sums);
        let (means, rstds) = stats.split_at_mut(e.c);
        means.copy_from_slice(&mean);
        rstds.iter_mut().zip(e.group_means(&sums)).for_each(|(r, var)| *r = 1.0 / (var + eps).sqrt());
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
            if silu {
                modulate_silu(out, x, &slope, &offset);
            } else {
                modulate(out, x, &slope, &offset);
            }
        });
    out
}

/// Pixels summed in f32 before f64 takes over: few enough to lose nothing that matters, enough to be fast.
const PIXELS: usize = 16;

multiversion! {
    /// Adds each channel's sum over all pixels to `sums`.
    fn sum_channels(x: &[f32], sums: &mut [f64]) {
        let c = sums.len();
        let mut partial = vec![0.0f32; c];
        for pixels in x.chunks(PIXELS * c) {
            partial.fill(0.0);
            for pixel in pixels.chunks_exact(c) {
                partial.iter_mut().zip(pixel).for_each(|(s, v)| *s += v);
            }
            sums.iter_mut().zip(&partial).for_each(|(s, &p)| *s += f64::from(p));
        }
    }
}

multiversion! {
    /// Adds each channel's sum of squared deviations from `mean` over all pixels to `sums`.
    fn sum_squared_deviations(x: &[f32], mean: &[f32], sums: &mut [f64]) {
        let c = sums.len();
        let mut partial = vec![0.0f32; c];
        for pixels in x.chunks(PIXELS * c) {
            partial.fill(0.0);
            for pixel in pixels.chunks_exact(c) {
                partial.iter_mut().zip(pixel).zip(mean).for_each(|((s, v), m)| *s += (v - m) * (v - m));
            }
            sums.iter_mut().zip(&partial).for_each(|(s, &p)| *s += f64::from(p));
        }
    }
}

multiversion! {
    /// `out = x·slope + offset`, channel by channel.
    fn modulate(out: &mut [f32], x: &[f32], slope: &[f32], offset: &[f32]) {
        for (out, x) in out.chunks_exact_mut(slope.len()).zip(x.chunks_exact(slope.len())) {
            for (((y, &x), a), b) in out.iter_mut().zip(x).zip(slope).zip(offset) {
                *y = x * a + b;
            }
        }
    }
}

multiversion! {
    /// `out = silu(x·slope + offset)`, channel by channel.
    fn modulate_silu(out: &mut [f32], x: &[f32], slope: &[f32], offset: &[f32]) {
        for (out, x) in out.chunks_exact_mut(slope.len()).zip(x.chunks_exact(slope.len())) {
            for (((y, &x), a), b) in out.iter_mut().zip(x).zip(slope).zip(offset) {
                let u = x * a + b;
                *y = u * sigmoid(u);
            }
        }
    }
}

multiversion! {
    /// `dx = grad·silu'(x·slope + offset)`, channel by channel.
    fn silu_grad(dx: &mut [f32], grad: &[f32], x: &[f32], slope: &[f32], offset: &[f32]) {
        let c = slope.len();
        for ((dx, grad), x) in dx.chunks_exact_mut(c).zip(grad.chunks_exact(c)).zip(x.chunks_exact(c)) {
            for ((((dx, grad), &x), a), b) in dx.iter_mut().zip(grad).zip(x).zip(slope).zip(offset) {
                let u = x * a + b;
                let s = sigmoid(u);
                *dx = grad * (s * (1.0 + u * (1.0 - s)));
            }
        }
    }
}

multiversion! {
    /// Σ du and Σ du·x̂ of each channel over all pixels, added to `sums` and `normal_sums`.
    fn sum_grads(
        du: &[f32],
        x: &[f32],
        mean: &[f32],
        rstd: &[f32],
        sums: &mut [f32],
        normal_sums: &mut [f32],
    ) {
        let c = sums.len();
        for (du, x) in du.chunks_exact(c).zip(x.chunks_exact(c)) {
            let normal = x.iter().zip(mean).zip(rstd).map(|((x, m), r)| (x - m) * r);
            for (((s, ns), du), normal) in sums.iter_mut().zip(normal_sums.iter_mut()).zip(du).zip(normal) {
                *s += du;
                *ns += du * normal;
            }
        }
    }
}

multiversion! {
    /// From du in `dx` to rstd·(a·du − m1 − x̂·m2), channel by channel.
    fn input_grad(
        dx: &mut [f32],
        x: &[f32],
        mean: &[f32],
        rstd: &[f32],
        slope: &[f32],
        m1: &[f32],
        m2: &[f32],
    ) {
        let c = mean.len();
        for (dx, x) in dx.chunks_exact_mut(c).zip(x.chunks_exact(c)) {
            let group = mean.iter().zip(rstd).zip(slope).zip(m1.iter().zip(m2));
            for ((dx, x), (((mean, rstd), slope), (m1, m2))) in dx.iter_mut().zip(x).zip(group) {
                *dx = slope * *dx - rstd * (m1 + (x - mean) * rstd * m2);
            }
        }
    }
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
            // First du = grad·act'(u), kept in dx, and its sums.
            if silu {
                silu_grad(dx, grad, x, &slope, &offset);
            } else {
                dx.copy_from_slice(grad);
            }
            sum_grads(dx, x, mean, rstd, du_sum, dux_sum);
            let scaled = |sums: &[f32]| -> Vec<f32> {
                let scaled =
                    sums.iter().zip(weight).zip(film).map(|((s, w), scale)| f64::from(s * (w * (1.0 + scale))));
                e.group_means(&scaled.collect::<Vec<_>>())
            };
            let (m1, m2) = (scaled(du_sum), scaled(dux_sum));
            // Then dx = rstd·(a·du − mean(a·du) − x̂·mean(a·du·x̂)).
            input_grad(dx, x, mean, rstd, &slope, &m1, &m2);
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
