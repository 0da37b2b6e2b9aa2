//! Group normalisation with feature-wise scale and shift, SiLU and dropout, channels last, as one operation each way.
//!
//! With x̂ = (x − mean)/std over a group, the layer computes `act(x̂·a + b)` where a = weight·(1 + scale) and
//! b = bias·(1 + scale) + shift are per image and channel. Statistics are two-pass and summed in f64.

#![allow(unsafe_code, reason = "vectors, and tasks that share an output")]
#![expect(clippy::inline_always, reason = "compiled for the caller's instruction set")]

use crate::GroupNorm;
use crate::buffer::{Shared, with_scratch};
use crate::dropout::Mask;
use crate::element::Element;
use crate::math::sigmoid;
use crate::simd::{Simd, each_vector, multiversion};
use rayon::prelude::*;

/// Sizes of one call: `n` images of `pixels` pixels with `c` channels.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Images.
    pub n: usize,
    /// Pixels of an image.
    pub pixels: usize,
    /// Channels, a multiple of the groups.
    pub c: usize,
    /// What is done.
    pub norm: GroupNorm,
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
    fn statistics<E: Element>(&self, x: &[E], stats: &mut [f32], partial: &mut [f32]) {
        let (mean, rstd) = stats.split_at_mut(self.c);
        with_scratch(self.c, |sums: &mut [f64]| {
            sums.fill(0.0);
            sum_channels(x, sums, partial);
            self.group_means(sums, mean);
            sums.fill(0.0);
            sum_squared_deviations(x, mean, sums, partial);
            self.group_means(sums, rstd);
        });
        for var in rstd {
            *var = 1.0 / (*var + self.norm.eps).sqrt();
        }
    }

    /// # Panics
    /// If the groups do not divide the channels, or `values` `[N, pixels, C]`, `statistics` `[N, 2, C]` or the parameters are
    /// of another size.
    fn check(&self, values: [usize; 2], statistics: usize, affine: &Affine) {
        let Self { n, c, norm: GroupNorm { groups, .. }, .. } = *self;
        assert!(groups > 0 && c > 0 && c.is_multiple_of(groups), "{groups} groups do not divide {c} channels");
        assert_eq!(values, [n * self.image(); 2], "values of {self:?}");
        assert_eq!(statistics, n * 2 * c, "statistics of {self:?}");
        assert_eq!([affine.weight.len(), affine.bias.len()], [c; 2], "weight and bias for {c} channels");
        assert!(
            affine.film.is_none_or(|film| film.len() == n * 2 * c),
            "scale and shift for another size than {self:?}"
        );
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
pub struct Affine<'a> {
    /// `[C]`.
    pub weight: &'a [f32],
    /// `[C]`.
    pub bias: &'a [f32],
    /// Scale, then shift: `[N, 2C]`.
    pub film: Option<&'a [f32]>,
}

impl<'a> Affine<'a> {
    /// Scale and shift of an image with `c` channels.
    fn of(&self, image: usize, c: usize) -> Option<[&'a [f32]; 2]> {
        self.film.map(|film| {
            let (scale, shift) = film[image * 2 * c..][..2 * c].split_at(c);
            [scale, shift]
        })
    }
}

/// `N` rows of `c` values.
fn rows<const N: usize>(values: &mut [f32], c: usize) -> [&mut [f32]; N] {
    let mut rows = values.chunks_exact_mut(c);
    std::array::from_fn(|_| rows.next().expect("as many rows as values were asked for"))
}

multiversion! {
    /// Per channel of one image: the slope and offset that take x straight to the activation's input.
    fn slopes<S>(affine: Affine<'_>, image: usize, stats: &[f32], slope: &mut [f32], offset: &mut [f32]) {
        let c = slope.len();
        let (mean, rstd) = (&stats[..c], &stats[c..][..c]);
        let (weight, bias, offset) = (&affine.weight[..c], &affine.bias[..c], &mut offset[..c]);
        slope.copy_from_slice(weight);
        offset.copy_from_slice(bias);
        if let Some([scale, shift]) = affine.of(image, c) {
            for i in 0..c {
                slope[i] *= 1.0 + scale[i];
                offset[i] = offset[i] * (1.0 + scale[i]) + shift[i];
            }
        }
        for i in 0..c {
            slope[i] *= rstd[i];
            offset[i] -= mean[i] * slope[i];
        }
    }
}

/// The layer's output, shaped as `x` `[N, pixels, C]` (Wu & He, arXiv 1803.08494): normalised, times `weight` and plus `bias`,
/// then `·(1 + scale) + shift` if there is a film, then SiLU and dropout if the settings say so. Into `statistics` `[N, 2, C]`
/// go the mean and 1/√(variance + eps) of each image and channel's group, which the backward pass needs.
pub fn forward<E: Element>(e: Extent, x: &[E], affine: Affine, out: &mut [E], statistics: &mut [f32]) {
    e.check([x.len(), out.len()], statistics.len(), &affine);
    if x.is_empty() {
        // Images without a pixel have no mean.
        statistics.fill(0.0);
        return;
    }
    let out = Shared::new(out);
    statistics.par_chunks_mut(2 * e.c).zip(x.par_chunks(e.image())).enumerate().for_each(|(i, (stats, x))| {
        with_scratch(3 * e.c, |work| {
            let [partial, slope, offset] = rows(work, e.c);
            e.statistics(x, stats, partial);
            slopes(affine, i, stats, slope, offset);
            let mut mask = Mask::new(e.norm.dropout.as_ref(), i);
            for (chunk, x) in x.chunks(e.chunk()).enumerate() {
                let at = i * e.image() + chunk * e.chunk();
                modulate(&out, at, x, mask.next(x.len()), slope, offset, e.norm.silu);
            }
        });
    });
}

/// Pixels summed in f32 before f64 takes over: few enough to lose nothing that matters, enough to be fast.
const PIXELS: usize = 16;

/// Whole pixels of `c` channels.
#[derive(Clone, Copy)]
struct Pixels {
    count: usize,
    c: usize,
}

impl Pixels {
    fn of<E>(x: &[E], c: usize) -> Self {
        assert!(x.len().is_multiple_of(c), "part of a pixel");
        Self { count: x.len() / c, c }
    }
}

multiversion! {
    /// Adds each channel's sum over all pixels to `sums`.
    fn sum_channels<S, E: Element>(x: &[E], sums: &mut [f64], partial: &mut [f32]) {
        let c = sums.len();
        assert_eq!(partial.len(), c, "sums of other channels");
        for x in x.chunks(PIXELS * c) {
            let pixels = Pixels::of(x, c);
            // SAFETY: the vector of every pixel lies in `x`, and in `partial`.
            unsafe { each_vector!(S, c, j => sum_vector::<E>(x.as_ptr().add(j), pixels, partial.as_mut_ptr().add(j))) };
            sums.iter_mut().zip(partial.iter()).for_each(|(s, &p)| *s += f64::from(p));
        }
    }
}

/// # Safety
/// `x` is valid for a vector of every pixel, `sum` for one; the machine has the instruction set.
#[inline(always)]
unsafe fn sum_vector<S: Simd, E: Element>(x: *const E, pixels: Pixels, sum: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut all = S::splat(0.0);
        for i in 0..pixels.count {
            all = S::add(all, E::load::<S>(x.add(i * pixels.c)));
        }
        S::store(sum, all);
    }
}

multiversion! {
    /// Adds each channel's sum of squared deviations from `mean` over all pixels to `sums`.
    fn sum_squared_deviations<S, E: Element>(x: &[E], mean: &[f32], sums: &mut [f64], partial: &mut [f32]) {
        let c = sums.len();
        assert!(partial.len() == c && mean.len() == c, "sums of other channels");
        for x in x.chunks(PIXELS * c) {
            let pixels = Pixels::of(x, c);
            // SAFETY: the vector of every pixel lies in `x`, and in `mean` and `partial`.
            unsafe {
                let (mean, to) = (mean.as_ptr(), partial.as_mut_ptr());
                each_vector!(S, c, j => square_vector::<E>(x.as_ptr().add(j), pixels, mean.add(j), to.add(j)));
            }
            sums.iter_mut().zip(partial.iter()).for_each(|(s, &p)| *s += f64::from(p));
        }
    }
}

/// # Safety
/// As [`sum_vector`]; `mean` is valid for a vector.
#[inline(always)]
unsafe fn square_vector<S: Simd, E: Element>(x: *const E, pixels: Pixels, mean: *const f32, sum: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe {
        let (mean, mut all) = (S::load(mean), S::splat(0.0));
        for i in 0..pixels.count {
            let deviation = S::sub(E::load::<S>(x.add(i * pixels.c)), mean);
            all = S::mul_add(deviation, deviation, all);
        }
        S::store(sum, all);
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
        silu: bool,
    ) {
        let c = slope.len();
        let pixels = Pixels::of(x, c);
        out.assert_inside(at + x.len());
        assert!(offset.len() == c && factors.is_none_or(|f| f.len() == x.len()), "other channels or pixels");
        // SAFETY: the vector of every pixel lies in `x`, in the factors and in the buffer, where it is this task's; that of
        // the channels in slope and offset.
        unsafe {
            let (x, slope, offset, out) = (x.as_ptr(), slope.as_ptr(), offset.as_ptr(), out.pointer().add(at));
            each_vector!(S, c, j => modulate_vector::<E>(
                out.add(j), x.add(j), factors.map(|f| f.as_ptr().add(j)), pixels, slope.add(j), offset.add(j), silu
            ));
        }
    }
}

/// # Safety
/// As [`sum_vector`]; so are `out` and `factors` valid, and slope and offset for a vector.
#[inline(always)]
unsafe fn modulate_vector<S: Simd, E: Element>(
    out: *mut E,
    x: *const E,
    factors: Option<*const f32>,
    pixels: Pixels,
    slope: *const f32,
    offset: *const f32,
    silu: bool,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let (slope, offset) = (S::load(slope), S::load(offset));
        for i in 0..pixels.count {
            let at = i * pixels.c;
            let mut y = S::mul_add(E::load::<S>(x.add(at)), slope, offset);
            if silu {
                y = S::mul(y, sigmoid::<S>(y));
            }
            if let Some(factors) = factors {
                y = S::mul(y, S::load(factors.add(at)));
            }
            E::store::<S>(out.add(at), y);
        }
    }
}

/// What the backward pass knows of each channel of an image.
#[derive(Clone, Copy)]
struct Channels<'a> {
    mean: &'a [f32],
    rstd: &'a [f32],
    /// From x to the activation's input.
    slope: &'a [f32],
    offset: &'a [f32],
}

impl Channels<'_> {
    fn assert_all(&self, c: usize) {
        let lengths = [self.mean.len(), self.rstd.len(), self.slope.len(), self.offset.len()];
        assert_eq!(lengths, [c; 4], "other channels");
    }
}

multiversion! {
    /// du = grad·act'(x·slope + offset), channel by channel; `factors` are those of the dropout. Adds Σ du and Σ du·x̂
    /// over the pixels to `sums` and `normal_sums`.
    fn activation_grad<S, E: Element>(
        du: &mut [f32],
        grad: &[E],
        x: &[E],
        factors: Option<&[f32]>,
        channels: Channels,
        silu: bool,
        sums: &mut [f32],
        normal_sums: &mut [f32],
    ) {
        let c = sums.len();
        let pixels = Pixels::of(x, c);
        channels.assert_all(c);
        assert!(du.len() == x.len() && grad.len() == x.len() && normal_sums.len() == c, "other channels or pixels");
        assert!(factors.is_none_or(|f| f.len() == x.len()), "factors of other pixels");
        // SAFETY: the vector of every pixel lies in `du`, `grad`, `x` and the factors, that of the channels in the sums and
        // in `channels`.
        unsafe {
            let (du, grad, x) = (du.as_mut_ptr(), grad.as_ptr(), x.as_ptr());
            let sums = [sums.as_mut_ptr(), normal_sums.as_mut_ptr()];
            each_vector!(S, c, j => grad_vector::<E>(
                du.add(j), grad.add(j), x.add(j), factors.map(|f| f.as_ptr().add(j)), pixels, channels, silu,
                [sums[0].add(j), sums[1].add(j)], j
            ));
        }
    }
}

/// # Safety
/// As [`sum_vector`]; so are `du`, `grad` and `factors` valid, both sums for a vector, and the channels for one at `j`.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "the places of one vector in each")]
unsafe fn grad_vector<S: Simd, E: Element>(
    du: *mut f32,
    grad: *const E,
    x: *const E,
    factors: Option<*const f32>,
    pixels: Pixels,
    channels: Channels,
    silu: bool,
    sums: [*mut f32; 2],
    j: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let (slope, offset) = (S::load(channels.slope.as_ptr().add(j)), S::load(channels.offset.as_ptr().add(j)));
        let (mean, one) = (S::load(channels.mean.as_ptr().add(j)), S::splat(1.0));
        let (mut sum, mut deviations) = (S::splat(0.0), S::splat(0.0));
        for i in 0..pixels.count {
            let at = i * pixels.c;
            let x = E::load::<S>(x.add(at));
            let mut g = E::load::<S>(grad.add(at));
            if let Some(factors) = factors {
                g = S::mul(g, S::load(factors.add(at)));
            }
            if silu {
                let u = S::mul_add(x, slope, offset);
                let s = sigmoid::<S>(u);
                g = S::mul(g, S::mul(s, S::mul_add(u, S::sub(one, s), one)));
            }
            S::store(du.add(at), g);
            sum = S::add(sum, g);
            deviations = S::mul_add(g, S::sub(x, mean), deviations);
        }
        let rstd = S::load(channels.rstd.as_ptr().add(j));
        S::store(sums[0], S::add(S::load(sums[0]), sum));
        S::store(sums[1], S::mul_add(deviations, rstd, S::load(sums[1])));
    }
}

multiversion! {
    /// dx = slope·du − rstd·(m1 + x̂·m2), channel by channel, and what `add` has for each value, into `out` from `at` on.
    fn input_grad<S, E: Element>(
        out: &Shared<E>,
        at: usize,
        du: &[f32],
        x: &[E],
        add: Option<&[E]>,
        channels: Channels,
        m1: &[f32],
        m2: &[f32],
    ) {
        let c = m1.len();
        let pixels = Pixels::of(x, c);
        channels.assert_all(c);
        out.assert_inside(at + x.len());
        assert!(du.len() == x.len() && m2.len() == c, "other channels or pixels");
        assert!(add.is_none_or(|add| add.len() == x.len()), "something of another size to be added");
        // SAFETY: the vector of every pixel lies in `du`, `x`, `add` and the buffer, where it is this task's; that of the
        // channels in `channels` and the means.
        unsafe {
            let (out, du, x) = (out.pointer().add(at), du.as_ptr(), x.as_ptr());
            let means = [m1.as_ptr(), m2.as_ptr()];
            each_vector!(S, c, j => input_vector::<E>(
                out.add(j), du.add(j), x.add(j), add.map(|add| add.as_ptr().add(j)), pixels, channels,
                [means[0].add(j), means[1].add(j)], j
            ));
        }
    }
}

/// # Safety
/// As [`sum_vector`]; so are `out`, `du` and `add` valid, both means for a vector, and the channels for one at `j`.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "the places of one vector in each")]
unsafe fn input_vector<S: Simd, E: Element>(
    out: *mut E,
    du: *const f32,
    x: *const E,
    add: Option<*const E>,
    pixels: Pixels,
    channels: Channels,
    means: [*const f32; 2],
    j: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let (slope, mean) = (S::load(channels.slope.as_ptr().add(j)), S::load(channels.mean.as_ptr().add(j)));
        let minus_rstd = S::sub(S::splat(0.0), S::load(channels.rstd.as_ptr().add(j)));
        let constant = S::mul(S::load(means[0]), minus_rstd);
        let factor = S::sub(S::splat(0.0), S::mul(S::load(means[1]), S::mul(minus_rstd, minus_rstd)));
        for i in 0..pixels.count {
            let at = i * pixels.c;
            let deviation = S::sub(E::load::<S>(x.add(at)), mean);
            let mut dx = S::mul_add(slope, S::load(du.add(at)), S::mul_add(deviation, factor, constant));
            if let Some(add) = add {
                dx = S::add(dx, E::load::<S>(add.add(at)));
            }
            E::store::<S>(out.add(at), dx);
        }
    }
}

/// Where the gradients go.
pub struct Grads<'a, E> {
    /// Of the input, shaped as it.
    pub x: &'a mut [E],
    /// `[C]`.
    pub weight: &'a mut [f32],
    /// `[C]`.
    pub bias: &'a mut [f32],
    /// Of scale and shift, `[N, 2C]`, where the layer has them.
    pub film: Option<&'a mut [f32]>,
}

/// The backward pass, from the output's gradient `grad` and what the forward pass saw and gave. What `add` has, shaped as `x`,
/// is added to the input's gradient before that is rounded.
pub fn backward<E: Element>(
    e: Extent,
    grad: &[E],
    x: &[E],
    statistics: &[f32],
    affine: Affine,
    add: Option<&[E]>,
    grads: Grads<E>,
) {
    let (c, pair) = (e.c, e.n * 2 * e.c);
    let Grads { x: dx, weight: dweight, bias: dbias, film: mut dfilm } = grads;
    e.check([x.len(), grad.len()], statistics.len(), &affine);
    assert!(dx.len() == x.len() && add.is_none_or(|add| add.len() == x.len()), "gradients of the input of {e:?}");
    assert_eq!([dweight.len(), dbias.len()], [c; 2], "gradients of weight and bias for {c} channels");
    let fits = |film: &&mut [f32]| affine.film.is_some() && film.len() == pair;
    assert!(dfilm.as_ref().is_none_or(fits), "a gradient of scale and shift that are not there, or of another size");
    // Per image and channel: Σ du and Σ du·x̂, from which the parameters' gradients follow.
    with_scratch(pair, |sums: &mut [f32]| {
        sums.fill(0.0);
        if !x.is_empty() {
            image_grads(e, grad, x, statistics, affine, add, &Shared::new(dx), sums);
        }
        dweight.fill(0.0);
        dbias.fill(0.0);
        for (i, sums) in sums.chunks_exact(2 * c).enumerate() {
            let (du, dux) = sums.split_at(c);
            let Some([scale, _]) = affine.of(i, c) else {
                dweight.iter_mut().zip(dux).for_each(|(d, s)| *d += s);
                dbias.iter_mut().zip(du).for_each(|(d, s)| *d += s);
                continue;
            };
            for j in 0..c {
                dweight[j] += (1.0 + scale[j]) * dux[j];
                dbias[j] += (1.0 + scale[j]) * du[j];
            }
            if let Some(dfilm) = &mut dfilm {
                let (dscale, dshift) = dfilm[i * 2 * c..][..2 * c].split_at_mut(c);
                for j in 0..c {
                    dscale[j] = affine.weight[j] * dux[j] + affine.bias[j] * du[j];
                    dshift[j] = du[j];
                }
            }
        }
    });
}

/// The part of [`backward`] that goes over the pixels, image by image.
#[expect(clippy::too_many_arguments, reason = "the parts of one pass")]
fn image_grads<E: Element>(
    e: Extent,
    grad: &[E],
    x: &[E],
    statistics: &[f32],
    affine: Affine,
    add: Option<&[E]>,
    dx: &Shared<E>,
    sums: &mut [f32],
) {
    let c = e.c;
    sums.par_chunks_mut(2 * c)
        .zip(grad.par_chunks(e.image()).zip(x.par_chunks(e.image())))
        .zip(statistics.par_chunks(2 * c))
        .enumerate()
        .for_each(|(i, ((sums, (grad, x)), stats))| {
            let (mean, rstd) = stats.split_at(c);
            let (du_sum, dux_sum) = sums.split_at_mut(c);
            let mut mask = Mask::new(e.norm.dropout.as_ref(), i);
            with_scratch(4 * c + e.image(), |work| {
                let (work, du) = work.split_at_mut(4 * c);
                let [slope, offset, m1, m2] = rows(work, c);
                slopes(affine, i, stats, slope, offset);
                let channels = Channels { mean, rstd, slope, offset };
                let chunks = du.chunks_mut(e.chunk()).zip(grad.chunks(e.chunk())).zip(x.chunks(e.chunk()));
                for ((du, grad), x) in chunks {
                    let factors = mask.next(x.len());
                    activation_grad(du, grad, x, factors, channels, e.norm.silu, du_sum, dux_sum);
                }
                with_scratch(c, |scaled: &mut [f64]| {
                    for (sums, means) in [(&*du_sum, &mut *m1), (&*dux_sum, &mut *m2)] {
                        for (scaled, (s, w)) in scaled.iter_mut().zip(sums.iter().zip(affine.weight)) {
                            *scaled = f64::from(s * w);
                        }
                        if let Some([scale, _]) = affine.of(i, c) {
                            scaled.iter_mut().zip(scale).for_each(|(s, &scale)| *s *= f64::from(1.0 + scale));
                        }
                        e.group_means(scaled, means);
                    }
                });
                for (chunk, (du, x)) in du.chunks(e.chunk()).zip(x.chunks(e.chunk())).enumerate() {
                    let at = i * e.image() + chunk * e.chunk();
                    let add = add.map(|add| &add[at..at + x.len()]);
                    input_grad(dx, at, du, x, add, channels, m1, m2);
                }
            });
        });
}
