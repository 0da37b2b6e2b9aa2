//! Group normalisation with feature-wise scale and shift, SiLU and dropout, channels last, as one operation each way.
//!
//! With x̂ = (x − mean)/std over a group, the layer computes `act(x̂·a + b)` where a = weight·(1 + scale) and
//! b = bias·(1 + scale) + shift are per image and channel. Statistics are two-pass and summed in f64.

#![allow(unsafe_code, reason = "outputs that are written before they are read")]

use super::buffer::{Shared, filled, with_scratch};
use super::dropout::Mask;
use super::element::{Element, store_all};
use super::math::sigmoid;
use super::simd::multiversion;
use crate::GroupNorm;
use rayon::prelude::*;

/// Sizes of one call: `n` images of `pixels` pixels with `c` channels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    pub(crate) n: usize,
    pub(crate) pixels: usize,
    pub(crate) c: usize,
    pub(crate) norm: GroupNorm,
}

impl Extent {
    fn image(&self) -> usize {
        self.pixels * self.c
    }

    fn per_group(&self) -> usize {
        self.c / self.norm.groups
    }

    /// Replaces per-channel sums by their group's mean.
    fn group_means(&self, sums: &[f64], means: &mut [f32]) {
        let count = (self.per_group() * self.pixels) as f64;
        for (sums, means) in sums.chunks_exact(self.per_group()).zip(means.chunks_exact_mut(self.per_group())) {
            means.fill((sums.iter().sum::<f64>() / count) as f32);
        }
    }

    /// Of one image: mean, then 1/√(var + eps) of each channel's group, into `[2, C]`.
    fn statistics<E: Element>(&self, x: &[E], stats: &mut [f32], work: &mut Work) {
        let (mean, rstd) = stats.split_at_mut(self.c);
        work.sums.fill(0.0);
        sum_channels(x, &mut work.sums, &mut work.row);
        self.group_means(&work.sums, mean);
        work.sums.fill(0.0);
        sum_squared_deviations(x, mean, &mut work.sums, &mut work.row);
        self.group_means(&work.sums, rstd);
        for var in rstd {
            *var = 1.0 / (*var + self.norm.eps).sqrt();
        }
    }

    /// Values of some pixels that are done together: few enough for a first-level cache where that is possible, and a
    /// multiple of what the dropout draws at once.
    fn chunk(&self) -> usize {
        let draw = Mask::<'_>::DRAW;
        let whole = self.c * (draw >> self.c.trailing_zeros().min(draw.trailing_zeros()));
        whole * (2048 / whole).max(1)
    }
}

/// The layer's parameters, as slices.
#[derive(Clone, Copy)]
pub(crate) struct Affine<'a> {
    /// `[C]`.
    pub(crate) weight: &'a [f32],
    /// `[C]`.
    pub(crate) bias: &'a [f32],
    /// Scale, then shift: `[N, 2C]`.
    pub(crate) film: &'a [f32],
}

/// Channels that a task works with, image after image.
struct Work {
    sums: Vec<f64>,
    row: Vec<f32>,
    slope: Vec<f32>,
    offset: Vec<f32>,
    m1: Vec<f32>,
    m2: Vec<f32>,
}

impl Work {
    fn new(c: usize) -> Self {
        let zeros = || vec![0.0; c];
        Self { sums: vec![0.0; c], row: zeros(), slope: zeros(), offset: zeros(), m1: zeros(), m2: zeros() }
    }
}

multiversion! {
    /// Per channel of one image: the slope and offset that take x straight to the activation's input.
    fn slopes<S>(affine: Affine<'_>, stats: &[f32], film: &[f32], slope: &mut [f32], offset: &mut [f32]) {
        let c = slope.len();
        let (mean, rstd) = (&stats[..c], &stats[c..][..c]);
        let (scale, shift) = (&film[..c], &film[c..][..c]);
        let (weight, bias, offset) = (&affine.weight[..c], &affine.bias[..c], &mut offset[..c]);
        for i in 0..c {
            let (a, b) = (weight[i] * (1.0 + scale[i]), bias[i] * (1.0 + scale[i]) + shift[i]);
            slope[i] = rstd[i] * a;
            offset[i] = b - mean[i] * rstd[i] * a;
        }
    }
}

/// The layer's output, shaped as `x`, and the statistics `[N, 2, C]` that the backward pass needs.
pub(crate) fn forward<E: Element>(e: Extent, x: &[E], affine: Affine) -> (Vec<E>, Vec<f32>) {
    assert_eq!((x.len(), affine.film.len()), (e.n * e.image(), e.n * 2 * e.c), "values of other sizes");
    let mut stats = vec![0.0; e.n * 2 * e.c];
    let write = |out: Shared<E>| {
        stats
            .par_chunks_mut(2 * e.c)
            .zip(x.par_chunks(e.image()).zip(affine.film.par_chunks(2 * e.c)))
            .enumerate()
            .for_each_init(
                || Work::new(e.c),
                |work, (i, (stats, (x, film)))| {
                    e.statistics(x, stats, work);
                    let Work { row, slope, offset, .. } = work;
                    slopes(affine, stats, film, slope, offset);
                    let mut mask = Mask::new(e.norm.dropout.as_ref(), i);
                    for (chunk, x) in x.chunks(e.chunk()).enumerate() {
                        let at = i * e.image() + chunk * e.chunk();
                        modulate(&out, at, x, mask.next(x.len()), slope, offset, row, e.norm.silu);
                    }
                },
            );
    };
    // SAFETY: every value of `x` lies in one image and chunk, and `modulate` writes the output at its place.
    let out = unsafe { filled(x.len(), write) };
    (out, stats)
}

/// Pixels summed in f32 before f64 takes over: few enough to lose nothing that matters, enough to be fast.
const PIXELS: usize = 16;

multiversion! {
    /// Adds each channel's sum over all pixels to `sums`.
    fn sum_channels<S, E: Element>(x: &[E], sums: &mut [f64], partial: &mut [f32]) {
        let c = sums.len();
        for pixels in x.chunks(PIXELS * c) {
            partial.fill(0.0);
            for pixel in pixels.chunks_exact(c) {
                partial.iter_mut().zip(pixel).for_each(|(s, v)| *s += v.to_f32());
            }
            sums.iter_mut().zip(partial.iter()).for_each(|(s, &p)| *s += f64::from(p));
        }
    }
}

multiversion! {
    /// Adds each channel's sum of squared deviations from `mean` over all pixels to `sums`.
    fn sum_squared_deviations<S, E: Element>(x: &[E], mean: &[f32], sums: &mut [f64], partial: &mut [f32]) {
        let c = sums.len();
        for pixels in x.chunks(PIXELS * c) {
            partial.fill(0.0);
            for pixel in pixels.chunks_exact(c) {
                for ((s, v), m) in partial.iter_mut().zip(pixel).zip(mean) {
                    let deviation = v.to_f32() - m;
                    *s += deviation * deviation;
                }
            }
            sums.iter_mut().zip(partial.iter()).for_each(|(s, &p)| *s += f64::from(p));
        }
    }
}

multiversion! {
    /// `act(x·slope + offset)`, channel by channel, times the dropout's `factors`, into `out` from `at` on.
    fn modulate<S, E: Element>(
        out: &Shared<E>,
        at: usize,
        x: &[E],
        factors: Option<&[f32]>,
        slope: &[f32],
        offset: &[f32],
        row: &mut [f32],
        silu: bool,
    ) {
        out.assert_inside(at + x.len());
        let c = slope.len();
        let row = &mut row[..c];
        for (pixel, x) in x.chunks_exact(c).enumerate() {
            let values = row.iter_mut().zip(x).zip(slope).zip(offset);
            if silu {
                for (((y, x), a), b) in values {
                    let u = x.to_f32() * a + b;
                    *y = u * sigmoid(u);
                }
            } else {
                values.for_each(|(((y, x), a), b)| *y = x.to_f32() * a + b);
            }
            if let Some(factors) = factors {
                row.iter_mut().zip(&factors[pixel * c..]).for_each(|(y, f)| *y *= f);
            }
            // SAFETY: the pixel lies inside the buffer (checked above), and is this task's.
            unsafe { store_all::<S, E>(out.pointer().add(at + pixel * c), row) };
        }
    }
}

multiversion! {
    /// du = grad·act'(x·slope + offset), channel by channel; `factors` are those of the dropout.
    fn activation_grad<S, E: Element>(
        du: &mut [f32],
        grad: &[E],
        x: &[E],
        factors: Option<&[f32]>,
        slope: &[f32],
        offset: &[f32],
        silu: bool,
    ) {
        let c = slope.len();
        match factors {
            Some(factors) => {
                du.iter_mut().zip(grad).zip(factors).for_each(|((d, g), f)| *d = g.to_f32() * f);
            }
            None => du.iter_mut().zip(grad).for_each(|(d, g)| *d = g.to_f32()),
        }
        if silu {
            for (du, x) in du.chunks_exact_mut(c).zip(x.chunks_exact(c)) {
                for (((du, x), a), b) in du.iter_mut().zip(x).zip(slope).zip(offset) {
                    let u = x.to_f32() * a + b;
                    let s = sigmoid(u);
                    *du *= s * (1.0 + u * (1.0 - s));
                }
            }
        }
    }
}

multiversion! {
    /// Σ du and Σ du·x̂ of each channel over all pixels, added to `sums` and `normal_sums`.
    fn sum_grads<S, E: Element>(
        du: &[f32],
        x: &[E],
        mean: &[f32],
        rstd: &[f32],
        sums: &mut [f32],
        normal_sums: &mut [f32],
    ) {
        let c = sums.len();
        for (du, x) in du.chunks_exact(c).zip(x.chunks_exact(c)) {
            let normal = x.iter().zip(mean).zip(rstd).map(|((x, m), r)| (x.to_f32() - m) * r);
            for (((s, ns), du), normal) in sums.iter_mut().zip(normal_sums.iter_mut()).zip(du).zip(normal) {
                *s += du;
                *ns += du * normal;
            }
        }
    }
}

multiversion! {
    /// dx = rstd·(a·du − m1 − x̂·m2), channel by channel, into `out` from `at` on.
    fn input_grad<S, E: Element>(
        out: &Shared<E>,
        at: usize,
        du: &[f32],
        x: &[E],
        mean: &[f32],
        rstd: &[f32],
        slope: &[f32],
        m1: &[f32],
        m2: &[f32],
        row: &mut [f32],
    ) {
        out.assert_inside(at + x.len());
        let c = mean.len();
        let row = &mut row[..c];
        for ((pixel, du), x) in du.chunks_exact(c).enumerate().zip(x.chunks_exact(c)) {
            let group = mean.iter().zip(rstd).zip(slope).zip(m1.iter().zip(m2));
            for (((dx, du), x), (((mean, rstd), slope), (m1, m2))) in row.iter_mut().zip(du).zip(x).zip(group) {
                *dx = slope * du - rstd * (m1 + (x.to_f32() - mean) * rstd * m2);
            }
            // SAFETY: the pixel lies inside the buffer (checked above), and is this task's.
            unsafe { store_all::<S, E>(out.pointer().add(at + pixel * c), row) };
        }
    }
}

/// Gradients of the layer.
pub(crate) struct Grads<E> {
    pub(crate) x: Vec<E>,
    pub(crate) weight: Vec<f32>,
    pub(crate) bias: Vec<f32>,
    pub(crate) film: Vec<f32>,
}

/// The backward pass, from the output's gradient and what the forward pass saw.
pub(crate) fn backward<E: Element>(e: Extent, grad: &[E], x: &[E], stats: &[f32], affine: Affine) -> Grads<E> {
    let c = e.c;
    let Affine { weight, bias, film } = affine;
    let (image, pair) = (e.n * e.image(), e.n * 2 * c);
    assert_eq!([x.len(), grad.len(), stats.len(), film.len()], [image, image, pair, pair], "values of other sizes");
    let mut dfilm = vec![0.0; film.len()];
    // Per image and channel: Σ du and Σ du·x̂, from which the parameters' gradients follow.
    let mut sums = vec![0.0f32; e.n * 2 * c];
    let write = |dx: Shared<E>| {
        dfilm
            .par_chunks_mut(2 * c)
            .zip(sums.par_chunks_mut(2 * c))
            .zip(grad.par_chunks(e.image()).zip(x.par_chunks(e.image())))
            .zip(stats.par_chunks(2 * c).zip(film.par_chunks(2 * c)))
            .enumerate()
            .for_each_init(
                || Work::new(c),
                |work, (i, (((dfilm, sums), (grad, x)), (stats, film)))| {
                    let (mean, rstd) = stats.split_at(c);
                    let Work { sums: scaled, row, slope, offset, m1, m2 } = work;
                    slopes(affine, stats, film, slope, offset);
                    let (du_sum, dux_sum) = sums.split_at_mut(c);
                    let mut mask = Mask::new(e.norm.dropout.as_ref(), i);
                    with_scratch(e.image(), |du: &mut [f32]| {
                        let chunks = du.chunks_mut(e.chunk()).zip(grad.chunks(e.chunk())).zip(x.chunks(e.chunk()));
                        for ((du, grad), x) in chunks {
                            activation_grad(du, grad, x, mask.next(x.len()), slope, offset, e.norm.silu);
                            sum_grads(du, x, mean, rstd, du_sum, dux_sum);
                        }
                        for (sums, means) in [(&*du_sum, &mut *m1), (&*dux_sum, &mut *m2)] {
                            let values = sums.iter().zip(weight).zip(film);
                            for (scaled, ((s, w), scale)) in scaled.iter_mut().zip(values) {
                                *scaled = f64::from(s * (w * (1.0 + scale)));
                            }
                            e.group_means(scaled, means);
                        }
                        input_grad(&dx, i * e.image(), du, x, mean, rstd, slope, m1, m2, row);
                    });
                    for i in 0..c {
                        dfilm[i] = weight[i] * dux_sum[i] + bias[i] * du_sum[i];
                        dfilm[c + i] = du_sum[i];
                    }
                },
            );
    };
    // SAFETY: every value of `x` lies in one image, and `input_grad` writes the gradient at its place.
    let dx = unsafe { filled(x.len(), write) };
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
