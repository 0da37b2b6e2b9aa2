//! Training losses pixel by pixel, and of whole images, with their derivatives by the network's output.
//!
//! The bound's term at t is L_{t−1} = KL(q(x_{t−1} | x_t, x_0) ‖ p(x_{t−1} | x_t)), and at t = 0 the decoder's
//! −log p(x_0 | x_1) (Ho et al. 2020, eq. 5), here in bits. Both look at the perturbed x_t, as the reference does. With m
//! and v the mean and the log variance of p, and m̃ and ṽ those of q,
//!
//! ```text
//! KL     = ½ (v − ṽ − 1 + e^{ṽ−v} + (m̃ − m)² e^{−v})
//! ∂KL/∂m = −(m̃ − m) e^{−v}
//! ∂KL/∂v = ½ (1 − e^{ṽ−v} − (m̃ − m)² e^{−v})
//! ```
//!
//! and by the chain rule ∂/∂prediction = ∂m/∂prediction · ∂/∂m, ∂/∂values = ∂v/∂values · ∂/∂v: p is linear in the
//! network's output, so that these two factors are constants of the timestep. Sums over pixels are in f64.

use std::f64::consts::{FRAC_2_PI, LN_2};

use crate::gaussian::{EDGE, HALF_LEVEL, MIN_PROBABILITY, normal_kl};
use crate::real::Real;
use crate::reverse::{Moments, Reading};
use crate::schedule::Schedule;
use crate::variance::{LossKind, Prediction, Variance};

/// From nats to bits.
const IN_BITS: f64 = 1.0 / LN_2;

/// A value and its derivatives by the two parts of a network's output.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Graded<R> {
    /// The value.
    pub value: R,
    /// Its derivative by the prediction.
    pub by_prediction: R,
    /// Its derivative by the variance channel; 0 where the variance is fixed.
    pub by_values: R,
}

/// A term of the bound in nats, and its derivatives by the moments of p.
struct Term<R> {
    value: R,
    by_mean: R,
    by_log_variance: R,
}

impl<R: Real> Reading<R> {
    /// The bound's term at this pixel, in bits: the decoder's negative log-likelihood at t = 0, else the divergence of p
    /// from the posterior. `clip` is that of [`moments`](Self::moments).
    #[inline]
    pub fn bound(&self, x_start: R, x_t: R, prediction: R, values: R, clip: bool) -> R {
        self.term(x_start, x_t, self.moments(x_t, prediction, values, clip.then(|| R::of(1.0)))).value * R::of(IN_BITS)
    }

    /// [`bound`](Self::bound) without clipping, and its derivatives.
    #[inline]
    pub fn bound_grad(&self, x_start: R, x_t: R, prediction: R, values: R) -> Graded<R> {
        let term = self.term(x_start, x_t, self.moments(x_t, prediction, values, None));
        Graded {
            value: term.value * R::of(IN_BITS),
            by_prediction: term.by_mean * R::of(IN_BITS) * self.mean_slope,
            by_values: term.by_log_variance * R::of(IN_BITS) * self.log_variance_slope,
        }
    }

    /// The square error of the clean pixel `predicted`, and of the noise that it implies.
    #[inline]
    pub fn square_errors(&self, x_start: R, x_t: R, eps: R, predicted: R) -> [R; 2] {
        [predicted - x_start, self.eps(predicted, x_t) - eps].map(|error| error * error)
    }

    #[inline]
    fn term(&self, x_start: R, x_t: R, p: Moments<R>) -> Term<R> {
        if self.first {
            decoder(x_start, p.mean, p.log_variance)
        } else {
            divergence(self.posterior_mean(x_start, x_t), self.posterior_log_variance, p.mean, p.log_variance)
        }
    }
}

/// KL(N(mean1, e^logvar1) ‖ N(mean2, e^logvar2)), with its derivatives by the second one.
///
/// The order of the sum is the reference's, not that of [`normal_kl`], which keeps more digits.
#[inline]
fn divergence<R: Real>(mean1: R, logvar1: R, mean2: R, logvar2: R) -> Term<R> {
    let (one, half) = (R::of(1.0), R::of(0.5));
    let distance = mean1 - mean2;
    let precision = (-logvar2).exp();
    let ratio = (logvar1 - logvar2).exp();
    let squared = distance * distance * precision;
    Term {
        value: (logvar2 - logvar1 - one + ratio + squared) * half,
        by_mean: -(distance * precision),
        by_log_variance: (one - ratio - squared) * half,
    }
}

/// −log P(x) for one of the 256 levels x, with its derivatives:
/// [`discretized_gaussian_log_likelihood`](crate::gaussian::discretized_gaussian_log_likelihood).
#[inline]
fn decoder<R: Real>(x: R, mean: R, log_variance: R) -> Term<R> {
    let (zero, one, half, least) = (R::of(0.0), R::of(1.0), R::of(0.5), R::of(MIN_PROBABILITY));
    let centered = x - mean;
    let inverse = (-(log_variance * half)).exp();
    let upper = inverse * (centered + R::of(HALF_LEVEL));
    let lower = inverse * (centered - R::of(HALF_LEVEL));
    let ((above, above_slope), (below, below_slope)) = (normal_cdf(upper), normal_cdf(lower));
    // The first level reaches down to −∞ and the last up to ∞, where the distribution function is flat.
    let (black, white) = (x < R::of(-EDGE), x > R::of(EDGE));
    let below_slope = if black { zero } else { below_slope };
    let above_slope = if white { zero } else { above_slope };
    let inside = above - below;
    let probability = if white { one - below } else { inside };
    let probability = if black { above } else { probability };
    // A clamped probability has no derivative. NaN is not below the least one, and stays.
    let clamped = probability < least;
    let probability = if clamped { least } else { probability };
    let recip = if clamped { zero } else { one / probability };
    // upper and lower are e^{−v/2}·(x − m ± 1/255): their derivatives are −e^{−v/2} by m and minus half of themselves by v.
    Term {
        value: -probability.ln(),
        by_mean: (above_slope - below_slope) * inverse * recip,
        by_log_variance: (above_slope * upper - below_slope * lower) * half * recip,
    }
}

/// [`approx_standard_normal_cdf`](crate::gaussian::approx_standard_normal_cdf) and its derivative.
#[inline]
fn normal_cdf<R: Real>(x: R) -> (R, R) {
    let (one, half) = (R::of(1.0), R::of(0.5));
    let (root, cubic) = (R::of(FRAC_2_PI.sqrt()), R::of(0.044715));
    let tanh = ((x + x * x * x * cubic) * root).tanh();
    let slope = (one - tanh * tanh) * half * root * (one + x * x * cubic * R::of(3.0));
    ((tanh + one) * half, slope)
}

/// The parts of an image's loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Terms {
    /// What is minimised.
    pub loss: f64,
    /// Mean squared error of the prediction, unless the loss is a pure bound.
    pub mse: Option<f64>,
    /// The bound's term in bits per value, times [`LossKind::vb_factor`], as it enters the loss; only where the variance is
    /// learned beside an MSE.
    pub vb: Option<f64>,
}

/// The loss of one image at its timestep.
#[derive(Clone, Copy, Debug)]
pub struct ImageLoss<R> {
    reading: Reading<R>,
    kind: LossKind,
    learned: bool,
    vb_factor: f64,
}

impl<R: Real> ImageLoss<R> {
    /// The loss at index `i` of a schedule.
    ///
    /// # Panics
    /// If `i` is not below [`Schedule::len`].
    pub fn new(schedule: &Schedule, prediction: Prediction, variance: Variance, kind: LossKind, i: usize) -> Self {
        Self {
            reading: Reading::new(schedule, prediction, variance, i),
            kind,
            learned: variance.is_learned(),
            vb_factor: kind.vb_factor(schedule.len()),
        }
    }

    /// The loss of an image, given as planes `[C·H·W]`: the clean `x_start`, the noisy `x_t` that the network saw, and
    /// `eps`, what a network that predicts ε should answer. `output` is `[C·H·W]`, or `[2·C·H·W]` where the variance is
    /// learned: the prediction, then the variance channels.
    ///
    /// `grad`, shaped as `output`, is overwritten with the derivative of `weight` times the loss. Beside a squared error,
    /// the bound trains the variance and does not touch the prediction (Nichol & Dhariwal 2021, section 3.1).
    ///
    /// # Panics
    /// If the lengths do not fit each other, or are 0.
    pub fn evaluate(
        &self,
        x_start: &[R],
        x_t: &[R],
        eps: &[R],
        output: &[R],
        weight: f64,
        mut grad: Option<&mut [R]>,
    ) -> Terms {
        let pixels = Pixels::new(x_start, x_t, eps, output, self.learned);
        let count = x_start.len();
        assert!(grad.as_ref().is_none_or(|g| g.len() == output.len()), "the gradient has the shape of the output");
        let has_error = !self.kind.is_vb();
        let has_bound = self.learned || !has_error;
        let [error_weight, bound_weight] = self.weights(weight, count).map(R::of);
        let (mut squares, mut bounds) = (0.0, 0.0);
        for i in 0..count {
            let Pixel { x_start, x_t, eps, prediction, values } = pixels.at(i);
            let (mut by_prediction, mut by_values) = (R::of(0.0), R::of(0.0));
            if has_bound {
                let bound = self.reading.bound_grad(x_start, x_t, prediction, values);
                bounds += bound.value.to_f64();
                by_prediction = bound.by_prediction * bound_weight;
                by_values = bound.by_values * bound_weight;
            }
            if has_error {
                let error = prediction - self.reading.target(x_start, x_t, eps);
                squares += (error * error).to_f64();
                by_prediction = error * error_weight;
            }
            if let Some(grad) = &mut grad {
                grad[i] = by_prediction;
                if self.learned {
                    grad[count + i] = by_values;
                }
            }
        }
        self.terms([squares, bounds], count)
    }

    /// What the derivatives of a pixel's square error and of its bound are multiplied by.
    fn weights(&self, weight: f64, count: usize) -> [f64; 2] {
        let share = weight * self.kind.scale(count) / count as f64;
        [2.0 * share, share * self.vb_factor]
    }

    /// The terms of an image of `count` values, from the sums of its square errors and of its bound in bits.
    pub fn terms(&self, [squares, bounds]: [f64; 2], count: usize) -> Terms {
        let mse = squares / count as f64;
        let vb = bounds / count as f64 * self.vb_factor;
        if self.kind.is_vb() {
            return Terms { loss: vb, mse: None, vb: None };
        }
        let vb = self.learned.then_some(vb);
        Terms { loss: (mse + vb.unwrap_or(0.0)) * self.kind.scale(count), mse: Some(mse), vb }
    }
}

impl ImageLoss<f32> {
    /// What a GPU's kernel is told of an image of `count` values: the reading, and what the derivatives are multiplied by.
    pub fn words(&self, weight: f64, count: usize) -> [u32; 16] {
        let mut words = [0; 16];
        words[..14].copy_from_slice(&self.reading.words());
        let weights = self.weights(weight, count).map(|v| (v as f32).to_bits());
        words[14..].copy_from_slice(&weights);
        words
    }
}

/// One image's values, and how they are read.
struct Pixels<'a, R> {
    x_start: &'a [R],
    x_t: &'a [R],
    eps: &'a [R],
    prediction: &'a [R],
    values: &'a [R],
}

/// The numbers of one pixel.
struct Pixel<R> {
    x_start: R,
    x_t: R,
    eps: R,
    prediction: R,
    values: R,
}

impl<'a, R: Real> Pixels<'a, R> {
    fn new(x_start: &'a [R], x_t: &'a [R], eps: &'a [R], output: &'a [R], learned: bool) -> Self {
        let count = x_start.len();
        assert!(count > 0, "an image has pixels");
        assert!(x_t.len() == count && eps.len() == count, "x_start, x_t and eps are planes of one image");
        let channels = if learned { 2 } else { 1 };
        assert!(output.len() == channels * count, "the output has a prediction, and the variance where it is learned");
        // Where the variance is fixed `values` is not looked at, and may be anything of this length.
        Self { x_start, x_t, eps, prediction: &output[..count], values: &output[output.len() - count..] }
    }

    #[inline]
    fn at(&self, i: usize) -> Pixel<R> {
        Pixel {
            x_start: self.x_start[i],
            x_t: self.x_t[i],
            eps: self.eps[i],
            prediction: self.prediction[i],
            values: self.values[i],
        }
    }
}

/// What the likelihood of an image takes from one timestep, each a mean over its values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BoundTerms {
    /// The bound's term, in bits.
    pub vb: f64,
    /// Square error of the clean image predicted.
    pub xstart_mse: f64,
    /// Square error of the noise that it implies.
    pub mse: f64,
}

/// The terms of one image's likelihood at one timestep.
#[derive(Clone, Copy, Debug)]
pub struct ImageBound<R> {
    reading: Reading<R>,
    learned: bool,
}

impl<R: Real> ImageBound<R> {
    /// The terms at index `i` of a schedule.
    ///
    /// # Panics
    /// If `i` is not below [`Schedule::len`].
    pub fn new(schedule: &Schedule, prediction: Prediction, variance: Variance, i: usize) -> Self {
        Self { reading: Reading::new(schedule, prediction, variance, i), learned: variance.is_learned() }
    }

    /// The terms of an image, given as [`ImageLoss::evaluate`] has it; `clip` says whether x̂_0 is clipped to [−1, 1].
    ///
    /// # Panics
    /// If the lengths do not fit each other, or are 0.
    pub fn evaluate(&self, x_start: &[R], x_t: &[R], eps: &[R], output: &[R], clip: bool) -> BoundTerms {
        let pixels = Pixels::new(x_start, x_t, eps, output, self.learned);
        let count = x_start.len();
        let (mut bounds, mut x_start_squares, mut eps_squares) = (0.0, 0.0, 0.0);
        for i in 0..count {
            let Pixel { x_start, x_t, eps, prediction, values } = pixels.at(i);
            bounds += self.reading.bound(x_start, x_t, prediction, values, clip).to_f64();
            let predicted = self.reading.x_start(x_t, prediction, clip.then(|| R::of(1.0)));
            let [x_start_square, eps_square] = self.reading.square_errors(x_start, x_t, eps, predicted);
            x_start_squares += x_start_square.to_f64();
            eps_squares += eps_square.to_f64();
        }
        let [vb, xstart_mse, mse] = [bounds, x_start_squares, eps_squares].map(|sum| sum / count as f64);
        BoundTerms { vb, xstart_mse, mse }
    }
}

/// The term of the bound that no network changes, in bits per value: the divergence of q(x_T | x_0) from the standard
/// normal.
///
/// It is the small difference of numbers near 1, and computed in f64.
pub fn prior_bound(schedule: &Schedule, x_start: &[f32]) -> f64 {
    let last = schedule.len() - 1;
    let (scale, log_variance) = (schedule.sqrt_alpha_bar[last], schedule.log_one_minus_alpha_bar[last]);
    let sum: f64 = x_start.iter().map(|&x| normal_kl(f64::from(x) * scale, log_variance, 0.0, 0.0)).sum();
    sum / x_start.len() as f64 * IN_BITS
}

/// −log of the softmax of `logits` at `label`, in nats. `grad`, as long as `logits`, is overwritten with the
/// derivative of `weight` times that.
///
/// # Panics
/// If `label` is none of the classes, or `grad` of another length.
pub fn cross_entropy(logits: &[f32], label: usize, weight: f64, grad: Option<&mut [f32]>) -> f64 {
    // Relative to the greatest logit no exponential overflows, and one of them is 1.
    let greatest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let relative = |&logit: &f32| f64::from(logit) - greatest;
    let log_sum = libm::log(logits.iter().map(|logit| libm::exp(relative(logit))).sum());
    if let Some(grad) = grad {
        assert!(grad.len() == logits.len(), "the gradient has the shape of the logits");
        for (class, (grad, logit)) in grad.iter_mut().zip(logits).enumerate() {
            let hot = if class == label { 1.0 } else { 0.0 };
            *grad = (weight * (libm::exp(relative(logit) - log_sum) - hot)) as f32;
        }
    }
    log_sum - relative(&logits[label])
}

#[cfg(test)]
#[path = "loss_tests.rs"]
mod tests;
