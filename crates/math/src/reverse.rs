//! The reverse process pixel by pixel: what a network's output says about x_{t−1}, and one step of a sampling chain.
//!
//! Every function takes the numbers of one pixel. What depends on the timestep alone is computed once, in f64, and
//! rounded at the end as the reference does.

use crate::real::Real;
use crate::schedule::Schedule;
use crate::step::{ddim_step, learned_range, x_start_from_eps, x_start_from_previous};
use crate::variance::{Prediction, Variance};

/// How a network's output is read at one timestep: prediction kind, variance kind and that timestep's coefficients.
///
/// Its terms of the training loss are in [`loss`](crate::loss).
#[derive(Clone, Copy, Debug)]
pub struct Reading<R> {
    prediction: Prediction,
    /// Whether this is t = 0, whose term of the bound is the decoder's.
    pub(crate) first: bool,
    /// x̂_0 is the first times the prediction plus the second times x_t.
    x_start: [R; 2],
    /// The posterior's mean is the first times x_0 plus the second times x_t.
    posterior_mean: [R; 2],
    /// log β̃_t, clipped.
    pub(crate) posterior_log_variance: R,
    log_variance: LogVariance<R>,
    /// ε = (a·x_t − x_0) / b.
    eps: [R; 2],
    /// Derivative of the mean by the prediction, where nothing is clipped.
    pub(crate) mean_slope: R,
    /// Derivative of the log variance by the variance channel.
    pub(crate) log_variance_slope: R,
}

/// Where log σ²_t comes from.
#[derive(Clone, Copy, Debug)]
enum LogVariance<R> {
    Fixed(R),
    Learned,
    Range { least: R, greatest: R },
}

/// Mean, log variance and predicted clean pixel of p(x_{t−1} | x_t).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Moments<R> {
    /// The mean of x_{t−1}.
    pub mean: R,
    /// log σ²_t.
    pub log_variance: R,
    /// x̂_0.
    pub x_start: R,
}

impl<R: Real> Reading<R> {
    /// The reading at index `i` of a schedule.
    ///
    /// # Panics
    /// If `i` is not below [`Schedule::len`].
    pub fn new(schedule: &Schedule, prediction: Prediction, variance: Variance, i: usize) -> Self {
        let posterior_mean = [schedule.posterior_mean_coef1[i], schedule.posterior_mean_coef2[i]];
        let (a, b) = x_start_from_eps(schedule, i);
        let x_start = match prediction {
            Prediction::Epsilon => [-b, a],
            Prediction::XStart => [1.0, 0.0],
            Prediction::PreviousX => {
                let (a, b) = x_start_from_previous(schedule, i);
                [a, -b]
            }
        };
        let (least, greatest) = learned_range(schedule, i);
        let (log_variance, log_variance_slope) = match variance {
            Variance::FixedSmall => (LogVariance::Fixed(R::of(schedule.fixed_log_variance_at(false, i))), 0.0),
            Variance::FixedLarge => (LogVariance::Fixed(R::of(schedule.fixed_log_variance_at(true, i))), 0.0),
            Variance::Learned => (LogVariance::Learned, 1.0),
            Variance::LearnedRange => {
                (LogVariance::Range { least: R::of(least), greatest: R::of(greatest) }, 0.5 * (greatest - least))
            }
        };
        let mean_slope = match prediction {
            Prediction::PreviousX => 1.0,
            Prediction::Epsilon | Prediction::XStart => posterior_mean[0] * x_start[0],
        };
        Self {
            prediction,
            first: i == 0,
            x_start: x_start.map(R::of),
            posterior_mean: posterior_mean.map(R::of),
            posterior_log_variance: R::of(schedule.posterior_log_variance_clipped[i]),
            log_variance,
            eps: [a, b].map(R::of),
            mean_slope: R::of(mean_slope),
            log_variance_slope: R::of(log_variance_slope),
        }
    }

    /// Mean, log variance and x̂_0 of p(x_{t−1} | x_t). `values` is the variance channel's output, ignored where the
    /// variance is fixed. With `clip` x̂_0 is clipped to [−1, 1], and the mean formed from that; a network that predicts
    /// the mean itself has it as it is.
    #[inline]
    pub fn moments(&self, x_t: R, prediction: R, values: R, clip: bool) -> Moments<R> {
        let x_start = prediction * self.x_start[0] + x_t * self.x_start[1];
        let x_start = if clip { clipped(x_start) } else { x_start };
        let mean = match self.prediction {
            Prediction::PreviousX => prediction,
            Prediction::Epsilon | Prediction::XStart => self.posterior_mean(x_start, x_t),
        };
        let log_variance = match self.log_variance {
            LogVariance::Fixed(log_variance) => log_variance,
            LogVariance::Learned => values,
            LogVariance::Range { least, greatest } => {
                let weight = (values + R::of(1.0)) * R::of(0.5);
                weight * greatest + (R::of(1.0) - weight) * least
            }
        };
        Moments { mean, log_variance, x_start }
    }

    /// Mean of q(x_{t−1} | x_t, x_0) (Ho et al. 2020, eq. 7).
    #[inline]
    pub fn posterior_mean(&self, x_start: R, x_t: R) -> R {
        x_start * self.posterior_mean[0] + x_t * self.posterior_mean[1]
    }

    /// The noise in x_t that follows from x_0 (Ho et al. 2020, eq. 15, solved for ε).
    #[inline]
    pub fn eps(&self, x_start: R, x_t: R) -> R {
        (x_t * self.eps[0] - x_start) / self.eps[1]
    }

    /// What a network with this kind of prediction should answer, where `eps` is that answer if it predicts ε.
    #[inline]
    pub fn target(&self, x_start: R, x_t: R, eps: R) -> R {
        match self.prediction {
            Prediction::Epsilon => eps,
            Prediction::XStart => x_start,
            Prediction::PreviousX => self.posterior_mean(x_start, x_t),
        }
    }
}

/// `x` clipped to [−1, 1]. Unlike with `min` and `max`, NaN stays NaN and is seen.
fn clipped<R: Real>(x: R) -> R {
    let (least, greatest) = (R::of(-1.0), R::of(1.0));
    let x = if x < least { least } else { x };
    if x > greatest { greatest } else { x }
}

/// The rule of a sampling chain's steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// Ho et al. 2020, algorithm 2.
    Ddpm,
    /// Song et al. 2020, eq. 12.
    Ddim {
        /// η: 0 is deterministic, 1 has the variance of DDPM's posterior.
        eta: f64,
    },
}

/// One step of a sampling chain, from x_t to x_{t−1}.
#[derive(Clone, Copy, Debug)]
pub struct ReverseStep<R> {
    reading: Reading<R>,
    clip: bool,
    draws: bool,
    way: Way<R>,
}

/// A rule with its coefficients.
#[derive(Clone, Copy, Debug)]
enum Way<R> {
    Ddpm,
    Ddim {
        /// x_{t−1} is these times x̂_0, ε̂ and noise.
        next: [R; 3],
        /// How far a classifier's gradient moves ε̂.
        guidance: R,
    },
}

impl<R: Real> ReverseStep<R> {
    /// The step from index `i` of a schedule; `clip` says whether x̂_0 is clipped to [−1, 1].
    ///
    /// # Panics
    /// If `i` is not below [`Schedule::len`].
    pub fn new(
        schedule: &Schedule,
        prediction: Prediction,
        variance: Variance,
        sampler: Rule,
        clip: bool,
        i: usize,
    ) -> Self {
        let (way, noisy) = match sampler {
            Rule::Ddpm => (Way::Ddpm, true),
            Rule::Ddim { eta } => {
                let step = ddim_step(schedule, i, eta);
                let way = Way::Ddim {
                    next: [step.x_start, step.eps, step.noise].map(R::of),
                    guidance: R::of(schedule.sqrt_one_minus_alpha_bar[i]),
                };
                (way, eta > 0.0)
            }
        };
        Self { reading: Reading::new(schedule, prediction, variance, i), clip, draws: i > 0 && noisy, way }
    }

    /// Whether the step adds noise.
    pub fn draws(&self) -> bool {
        self.draws
    }

    /// From a pixel of x_t and the network's output for it (`values` is the variance channel's, ignored where the variance
    /// is fixed) to that of x_{t−1}, and x̂_0.
    ///
    /// `noise` is a standard normal draw, ignored unless [`draws`](Self::draws). `guidance` is the derivative of a
    /// classifier's log-probability, ignored unless `guided`: it moves DDPM's mean by the variance times itself, and is
    /// added to the score of DDIM (Dhariwal & Nichol, arXiv 2105.05233, algorithms 1 and 2), where x̂_0 is not clipped
    /// again.
    #[inline]
    pub fn step(&self, x: R, prediction: R, values: R, guidance: R, guided: bool, noise: R) -> (R, R) {
        let p = self.reading.moments(x, prediction, values, self.clip);
        let (mean, x_start) = match &self.way {
            Way::Ddpm if guided => (p.mean + p.log_variance.exp() * guidance, p.x_start),
            Way::Ddpm => (p.mean, p.x_start),
            Way::Ddim { next, guidance: by } => {
                // Not the network's ε, but the one that fits the perhaps clipped x̂_0.
                let mut eps = self.reading.eps(p.x_start, x);
                let mut x_start = p.x_start;
                if guided {
                    eps = eps - guidance * *by;
                    x_start = x * self.reading.eps[0] - eps * self.reading.eps[1];
                }
                (x_start * next[0] + eps * next[1], x_start)
            }
        };
        if !self.draws {
            return (mean, x_start);
        }
        let sigma = match &self.way {
            Way::Ddpm => (p.log_variance * R::of(0.5)).exp(),
            Way::Ddim { next, .. } => next[2],
        };
        (mean + sigma * noise, x_start)
    }
}

#[cfg(test)]
#[path = "reverse_tests.rs"]
mod tests;
