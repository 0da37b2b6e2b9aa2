//! The reverse process pixel by pixel: what a network's output says about x_{t−1}, and one step of a sampling chain.
//!
//! Every function takes the numbers of one pixel. What depends on the timestep alone is computed once, in f64, and
//! rounded at the end as the reference does.

use crate::real::Real;
use crate::sampler::{Mixture, Stage, Update};
use crate::schedule::{Level, Schedule};
use crate::step::{DdimStep, learned_range, x_start_from_eps, x_start_from_previous};
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

    /// The same reading where x_t has another noise level than the index. Only x̂_0 and ε have a meaning then, and only for
    /// networks that predict one of them.
    #[must_use]
    pub fn moved(self, level: Level) -> Self {
        let (alpha, sigma) = (level.alpha(), level.sigma());
        let eps = [1.0 / alpha, sigma / alpha];
        let x_start = match self.prediction {
            Prediction::Epsilon => [-eps[1], eps[0]].map(R::of),
            Prediction::XStart | Prediction::PreviousX => self.x_start,
        };
        Self { eps: eps.map(R::of), x_start, ..self }
    }

    /// x̂_0, clipped to [−`limit`, `limit`] and divided by it if there is a limit.
    #[inline]
    pub fn x_start(&self, x_t: R, prediction: R, limit: Option<R>) -> R {
        let x_start = prediction * self.x_start[0] + x_t * self.x_start[1];
        limit.map_or(x_start, |limit| clipped(x_start, limit) / limit)
    }

    /// Mean, log variance and x̂_0 of p(x_{t−1} | x_t). `values` is the variance channel's output, ignored where the
    /// variance is fixed. With a `limit` x̂_0 is clipped to ±that and divided by it (1: the reference's clipping), and the
    /// mean formed from the result; a network that predicts the mean itself has it as it is.
    #[inline]
    pub fn moments(&self, x_t: R, prediction: R, values: R, limit: Option<R>) -> Moments<R> {
        let x_start = self.x_start(x_t, prediction, limit);
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

    /// The ε that the network's answer to x_t implies.
    #[inline]
    pub fn implied_eps(&self, x_t: R, prediction: R) -> R {
        match self.prediction {
            Prediction::Epsilon => prediction,
            Prediction::XStart | Prediction::PreviousX => self.eps(self.x_start(x_t, prediction, None), x_t),
        }
    }

    /// What the network would answer if what it said of x/κ, read by `seen`, were said of x by this reading, with its ε
    /// divided by `divisor`; `input` is 1/κ.
    #[inline]
    pub fn corrected(&self, x: R, prediction: R, seen: &Self, input: R, divisor: R) -> R {
        let eps = seen.implied_eps(x * input, prediction) / divisor;
        self.target(x * self.eps[0] - eps * self.eps[1], x, eps)
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

impl Reading<f32> {
    /// What a GPU's kernel is told.
    pub fn words(&self) -> [u32; 14] {
        let prediction = match self.prediction {
            Prediction::Epsilon => 0,
            Prediction::XStart => 1,
            Prediction::PreviousX => 2,
        };
        let (variance, least, greatest) = match self.log_variance {
            LogVariance::Fixed(log_variance) => (0, log_variance, 0.0),
            LogVariance::Learned => (1, 0.0, 0.0),
            LogVariance::Range { least, greatest } => (2, least, greatest),
        };
        let ([a, b], [c, d], [e, f]) = (self.x_start, self.posterior_mean, self.eps);
        let floats =
            [a, b, c, d, self.posterior_log_variance, least, greatest, e, f, self.mean_slope, self.log_variance_slope];
        let mut words = [prediction, u32::from(self.first), variance, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        words[3..].copy_from_slice(&floats.map(f32::to_bits));
        words
    }
}

impl ReverseStep<f32> {
    /// What a GPU's kernel is told of a stage; `limit` is that of predicted images.
    pub fn words(&self, limit: Option<f32>) -> [u32; 32] {
        let none = [0.0; 6];
        let (way, corrector, keeps, next) = match self.way {
            Way::Ddpm => (0, None, false, none),
            Way::Ddim { next: [a, b, c] } => (1, None, false, [a, b, c, 0.0, 0.0, 0.0]),
            Way::Mix { corrector, keeps, next } => (2, corrector, keeps, next),
        };
        let mut words = [0; 32];
        words[..14].copy_from_slice(&self.reading.words());
        words[14..18].copy_from_slice(&[self.draws.into(), way, corrector.is_some().into(), keeps.into()]);
        words[18..24].copy_from_slice(&corrector.unwrap_or(none).map(f32::to_bits));
        words[24..30].copy_from_slice(&next.map(f32::to_bits));
        words[30..].copy_from_slice(&[limit.unwrap_or(0.0), self.guidance].map(f32::to_bits));
        words
    }
}

/// `x` clipped to [−`limit`, `limit`]. Unlike with `min` and `max`, NaN stays NaN and is seen.
fn clipped<R: Real>(x: R, limit: R) -> R {
    let least = R::of(0.0) - limit;
    let x = if x < least { least } else { x };
    if x > limit { limit } else { x }
}

/// What a stage of a chain is given for one pixel.
#[derive(Clone, Copy, Debug)]
pub struct Pixel<R> {
    /// x at the stage's noise level.
    pub x: R,
    /// The network's answer.
    pub prediction: R,
    /// The answer's variance channel, ignored where the variance is fixed.
    pub values: R,
    /// The derivative of a classifier's log-probability, where one guides.
    pub guidance: Option<R>,
    /// A standard normal draw, ignored unless [`Stage::draws`].
    pub noise: R,
    /// Earlier predictions of x_0, the newest first, ignored unless the stage is an [`Update::Mix`].
    pub x_start: [R; 2],
    /// The x that was kept last, ignored unless the stage is an [`Update::Mix`].
    pub kept: R,
}

/// What a stage of a chain makes of one pixel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stepped<R> {
    /// The next x.
    pub next: R,
    /// x̂_0.
    pub x_start: R,
    /// The x that is kept from here on.
    pub kept: R,
}

/// One stage of a sampling chain, pixel by pixel.
#[derive(Clone, Copy, Debug)]
pub struct ReverseStep<R> {
    reading: Reading<R>,
    /// How far a classifier's gradient moves ε̂: σ.
    guidance: R,
    draws: bool,
    way: Way<R>,
}

/// A rule with its coefficients.
#[derive(Clone, Copy, Debug)]
enum Way<R> {
    Ddpm,
    Ddim {
        /// The next x is these times x̂_0, ε̂ and noise.
        next: [R; 3],
    },
    Mix {
        corrector: Option<[R; 6]>,
        keeps: bool,
        next: [R; 6],
    },
}

impl<R: Real> ReverseStep<R> {
    /// A stage of a chain over a schedule.
    ///
    /// # Panics
    /// If the stage is not of this schedule.
    pub fn new(schedule: &Schedule, prediction: Prediction, variance: Variance, stage: &Stage) -> Self {
        let reading = Reading::new(schedule, prediction, variance, stage.called_at);
        let reading = if stage.churn.is_some() { reading.moved(stage.level) } else { reading };
        let way = match stage.update {
            Update::Ddpm => Way::Ddpm,
            Update::Ddim(step) => Way::Ddim { next: ddim(step) },
            Update::Mix { corrector, keeps, next } => {
                Way::Mix { corrector: corrector.map(mixture), keeps, next: mixture(next) }
            }
        };
        Self { reading, guidance: R::of(stage.level.sigma()), draws: stage.draws(), way }
    }

    /// The same stage of DDIM with another end.
    #[must_use]
    pub fn with_ddim(self, step: DdimStep) -> Self {
        Self { way: Way::Ddim { next: ddim(step) }, ..self }
    }

    /// How the network's answer is read.
    pub fn reading(&self) -> &Reading<R> {
        &self.reading
    }

    /// The stage for one pixel; `limit` clips x̂_0 as in [`Reading::x_start`].
    ///
    /// A classifier's gradient moves DDPM's mean by the variance times itself, and is added to the score of all others
    /// (Dhariwal & Nichol, arXiv 2105.05233, algorithms 1 and 2), where x̂_0 is not clipped again.
    #[inline]
    pub fn step(&self, pixel: Pixel<R>, limit: Option<R>) -> Stepped<R> {
        let Pixel { x, prediction, values, guidance, noise, .. } = pixel;
        let at = &self.reading;
        match &self.way {
            Way::Ddpm => {
                let p = at.moments(x, prediction, values, limit);
                let mean = guidance.map_or(p.mean, |guidance| p.mean + p.log_variance.exp() * guidance);
                let next = if self.draws { mean + (p.log_variance * R::of(0.5)).exp() * noise } else { mean };
                Stepped { next, x_start: p.x_start, kept: x }
            }
            Way::Ddim { next } => {
                let mut x_start = at.x_start(x, prediction, limit);
                // Not the network's ε, but the one that fits the perhaps clipped x̂_0.
                let mut eps = at.eps(x_start, x);
                if let Some(guidance) = guidance {
                    eps = eps - guidance * self.guidance;
                    x_start = x * at.eps[0] - eps * at.eps[1];
                }
                let mean = x_start * next[0] + eps * next[1];
                Stepped { next: if self.draws { mean + next[2] * noise } else { mean }, x_start, kept: x }
            }
            Way::Mix { corrector, keeps, next } => {
                let mut x_start = at.x_start(x, prediction, limit);
                if let Some(guidance) = guidance {
                    let eps = at.eps(x_start, x) - guidance * self.guidance;
                    x_start = x * at.eps[0] - eps * at.eps[1];
                }
                let noise = if self.draws { noise } else { R::of(0.0) };
                let mixed = |m: &[R; 6], x, kept| {
                    let [newer, older] = pixel.x_start;
                    x * m[0] + kept * m[1] + x_start * m[2] + newer * m[3] + older * m[4] + noise * m[5]
                };
                let x = corrector.map_or(x, |corrector| mixed(&corrector, x, pixel.kept));
                let kept = if *keeps { x } else { pixel.kept };
                Stepped { next: mixed(next, x, kept), x_start, kept }
            }
        }
    }
}

fn ddim<R: Real>(step: DdimStep) -> [R; 3] {
    [step.x_start, step.eps, step.noise].map(R::of)
}

fn mixture<R: Real>(m: Mixture) -> [R; 6] {
    let [a, b, c] = m.x_start;
    [m.x, m.kept, a, b, c, m.noise].map(R::of)
}

#[cfg(test)]
#[path = "reverse_tests.rs"]
mod tests;
