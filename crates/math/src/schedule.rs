//! Every per-timestep table of a diffusion process, in f64.
//!
//! Index i of a table belongs to the i-th *kept* timestep of a respaced process; `times[i]` is what it was called in
//! training. A time between two timesteps has the ᾱ that lies between theirs on a straight line in the logarithm of the
//! signal-to-noise ratio. Names and formulas follow Ho et al. 2020; a respaced process gets
//! β_i = 1 − ᾱ_i / ᾱ_{i−1} from the ᾱ of the timesteps it keeps (Nichol & Dhariwal 2021, eq. 19).

use crate::beta::{NoiseSchedule, betas};
use crate::respace::{Respacing, RespacingError, Spacing};

/// The tables of one process. All vectors have the same length T', the number of timesteps that are kept.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    /// β_i, the variance of q(x_i | x_{i−1}).
    pub betas: Vec<f64>,
    /// ᾱ_i = Π_{j≤i} (1 − β_j), the signal's share of the variance of x_i.
    pub alpha_bar: Vec<f64>,
    /// ᾱ_{i−1}, and 1 at i = 0.
    pub alpha_bar_prev: Vec<f64>,
    /// ᾱ_{i+1}, and 0 at the last i.
    pub alpha_bar_next: Vec<f64>,
    /// √ᾱ_i, what x_0 is multiplied by in x_i.
    pub sqrt_alpha_bar: Vec<f64>,
    /// β̄_i = √(1 − ᾱ_i), what the noise is multiplied by in x_i.
    pub sqrt_one_minus_alpha_bar: Vec<f64>,
    /// log(1 − ᾱ_i), the log variance of q(x_i | x_0).
    pub log_one_minus_alpha_bar: Vec<f64>,
    /// √(1/ᾱ_i).
    pub sqrt_recip_alpha_bar: Vec<f64>,
    /// √(1/ᾱ_i − 1).
    pub sqrt_recipm1_alpha_bar: Vec<f64>,
    /// β̃_i = β_i (1 − ᾱ_{i−1}) / (1 − ᾱ_i), the variance of q(x_{i−1} | x_i, x_0); 0 at i = 0
    /// (Ho et al. 2020, eq. 7).
    pub posterior_variance: Vec<f64>,
    /// log β̃_i, with the entry at i = 0, which would be −∞, replaced by the one at i = 1. A process of a single step
    /// has no such neighbour and takes log β_0.
    pub posterior_log_variance_clipped: Vec<f64>,
    /// What x_0 is multiplied by in the mean of q(x_{i−1} | x_i, x_0): √ᾱ_{i−1} β_i / (1 − ᾱ_i).
    pub posterior_mean_coef1: Vec<f64>,
    /// What x_i is multiplied by in the mean of q(x_{i−1} | x_i, x_0): √(1 − β_i) (1 − ᾱ_{i−1}) / (1 − ᾱ_i).
    pub posterior_mean_coef2: Vec<f64>,
    /// The time of each index in the full process, ascending: a timestep, or between two.
    pub times: Vec<f64>,
    /// ᾱ of the full process at each of its T timesteps.
    pub full_alpha_bar: Vec<f64>,
}

/// A noise level of the full process, also between two of its timesteps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Level {
    /// t, from 0 to T − 1.
    pub time: f64,
    /// ᾱ, the signal's share of the variance.
    pub alpha_bar: f64,
}

impl Level {
    /// α = √ᾱ, what x_0 is multiplied by.
    pub fn alpha(self) -> f64 {
        self.alpha_bar.sqrt()
    }

    /// σ = √(1 − ᾱ), what the noise is multiplied by.
    pub fn sigma(self) -> f64 {
        (1.0 - self.alpha_bar).sqrt()
    }

    /// λ = log(α/σ), half the logarithm of the signal-to-noise ratio.
    pub fn lambda(self) -> f64 {
        0.5 * log_snr(self.alpha_bar)
    }
}

/// log(ᾱ/(1 − ᾱ)).
pub(crate) fn log_snr(alpha_bar: f64) -> f64 {
    libm::log(alpha_bar) - libm::log1p(-alpha_bar)
}

/// The inverse of [`log_snr`].
pub(crate) fn alpha_bar_of(log_snr: f64) -> f64 {
    1.0 / (1.0 + libm::exp(-log_snr))
}

/// Why there is no such process.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ScheduleError {
    /// The timesteps cannot be chosen.
    #[error(transparent)]
    Respacing(#[from] RespacingError),
    /// The schedule would have to remove more than everything, or nothing, in one step.
    #[error(
        "the {schedule} noise schedule over {steps} diffusion steps needs beta = {beta:.4} at step {index}, but beta must \
         be above 0 and at most 1: {}",
        if *.beta > 1.0 { "use at least 20 diffusion steps, or the cosine schedule" } else { "use fewer diffusion steps" }
    )]
    BetaOutOfRange {
        /// The family.
        schedule: NoiseSchedule,
        /// T.
        steps: usize,
        /// Where the first offending β is.
        index: usize,
        /// The offending β.
        beta: f64,
    },
}

impl Schedule {
    /// The tables of a process of `steps` timesteps (T), of which `respacing` keeps some.
    ///
    /// # Errors
    ///
    /// The respacing does not fit, or the family has no valid β for so few steps: the linear one needs at least 20. At
    /// exactly 20 its last ᾱ is 0, see [`Schedule::ends_in_pure_noise`].
    pub fn new(noise_schedule: NoiseSchedule, steps: usize, respacing: &Respacing) -> Result<Self, ScheduleError> {
        let times = respacing.select(steps)?;
        Self::over(noise_schedule, steps, |_| times.iter().map(|&t| t as f64).collect())
    }

    /// The tables of a process of `steps` timesteps (T), at `count` times spaced as `spacing` says.
    ///
    /// # Errors
    ///
    /// As [`Self::new`]; no time at all, or more than there are timesteps.
    pub fn spaced(
        noise_schedule: NoiseSchedule,
        steps: usize,
        spacing: Spacing,
        count: usize,
    ) -> Result<Self, ScheduleError> {
        Spacing::check(steps, count)?;
        Self::over(noise_schedule, steps, |alpha_bar| spacing.times(alpha_bar, count))
    }

    /// The tables at the times that `choose` takes, ascending, given the full process's ᾱ.
    fn over(
        noise_schedule: NoiseSchedule,
        steps: usize,
        choose: impl FnOnce(&[f64]) -> Vec<f64>,
    ) -> Result<Self, ScheduleError> {
        let check = |betas: &[f64]| match betas.iter().position(|&beta| !(beta > 0.0 && beta <= 1.0)) {
            Some(index) => {
                Err(ScheduleError::BetaOutOfRange { schedule: noise_schedule, steps, index, beta: betas[index] })
            }
            None => Ok(()),
        };
        let base = betas(noise_schedule, steps);
        check(&base)?;

        // Even where every step is kept the betas are formed anew: the reference does, and the last digits differ.
        let full_alpha_bar = cumulative_signal(&base);
        let times = choose(&full_alpha_bar);
        let mut last = 1.0;
        let respaced: Vec<f64> = times
            .iter()
            .map(|&t| {
                let alpha_bar = alpha_bar_at(&full_alpha_bar, t);
                let beta = 1.0 - alpha_bar / last;
                last = alpha_bar;
                beta
            })
            .collect();
        check(&respaced)?;
        Ok(Self::from_betas(respaced, times, full_alpha_bar))
    }

    fn from_betas(betas: Vec<f64>, times: Vec<f64>, full_alpha_bar: Vec<f64>) -> Self {
        let alpha_bar = cumulative_signal(&betas);
        let alpha_bar_prev = [&[1.0], &alpha_bar[..alpha_bar.len() - 1]].concat();
        let alpha_bar_next = [&alpha_bar[1..], &[0.0]].concat();
        let each = |value: &dyn Fn(f64) -> f64| alpha_bar.iter().map(|&a| value(a)).collect::<Vec<f64>>();
        // (β, ᾱ, ᾱ_prev) → a value.
        let each_step = |value: &dyn Fn(f64, f64, f64) -> f64| {
            betas.iter().zip(&alpha_bar).zip(&alpha_bar_prev).map(|((&b, &a), &p)| value(b, a, p)).collect::<Vec<f64>>()
        };

        let posterior_variance = each_step(&|beta, a, prev| beta * (1.0 - prev) / (1.0 - a));
        let mut posterior_log_variance_clipped: Vec<f64> = posterior_variance.iter().map(|&v| libm::log(v)).collect();
        posterior_log_variance_clipped[0] = libm::log(*posterior_variance.get(1).unwrap_or(&betas[0]));
        Self {
            sqrt_alpha_bar: each(&f64::sqrt),
            sqrt_one_minus_alpha_bar: each(&|a| (1.0 - a).sqrt()),
            log_one_minus_alpha_bar: each(&|a| libm::log(1.0 - a)),
            sqrt_recip_alpha_bar: each(&|a| (1.0 / a).sqrt()),
            sqrt_recipm1_alpha_bar: each(&|a| (1.0 / a - 1.0).sqrt()),
            posterior_mean_coef1: each_step(&|beta, a, prev| beta * prev.sqrt() / (1.0 - a)),
            posterior_mean_coef2: each_step(&|beta, a, prev| (1.0 - prev) * (1.0 - beta).sqrt() / (1.0 - a)),
            posterior_variance,
            posterior_log_variance_clipped,
            betas,
            alpha_bar,
            alpha_bar_prev,
            alpha_bar_next,
            times,
            full_alpha_bar,
        }
    }

    /// T', the number of timesteps that are kept.
    pub fn len(&self) -> usize {
        self.betas.len()
    }

    /// Whether no timestep is kept; never so for what [`Schedule::new`] returns.
    pub fn is_empty(&self) -> bool {
        self.betas.is_empty()
    }

    /// T, the timesteps of the full process.
    pub fn original_steps(&self) -> usize {
        self.full_alpha_bar.len()
    }

    /// The noise level at an index below [`len`](Self::len).
    pub fn level(&self, index: usize) -> Level {
        Level { time: self.times[index], alpha_bar: self.alpha_bar[index] }
    }

    /// The noise level at a time of the full process; one beyond its ends counts as the end.
    pub fn level_at(&self, time: f64) -> Level {
        let time = time.clamp(0.0, (self.original_steps() - 1) as f64);
        Level { time, alpha_bar: alpha_bar_at(&self.full_alpha_bar, time) }
    }

    /// The noise level with that ᾱ; its time is that of the end where the full process has no such level.
    pub fn level_of(&self, alpha_bar: f64) -> Level {
        Level { time: time_of(&self.full_alpha_bar, log_snr(alpha_bar)), alpha_bar }
    }

    /// What the network is told of a time: itself, times 1000/T if `rescale`, in f32 as the network sees it.
    pub fn model_time(&self, time: f64, rescale: bool) -> f32 {
        let time = time as f32;
        if rescale { time * (1000.0 / self.original_steps() as f64) as f32 } else { time }
    }

    /// log σ²_i of a model with fixed variance, at every index.
    pub fn fixed_log_variance(&self, large: bool) -> Vec<f64> {
        (0..self.len()).map(|i| self.fixed_log_variance_at(large, i)).collect()
    }

    /// log σ²_i of a model with fixed variance.
    ///
    /// Small: [`posterior_log_variance_clipped`](Self::posterior_log_variance_clipped). Large: log β_i, except that
    /// index 0 takes the small one, which gives a better likelihood of the decoder at t = 0.
    pub fn fixed_log_variance_at(&self, large: bool, i: usize) -> f64 {
        if large && i > 0 { libm::log(self.betas[i]) } else { self.posterior_log_variance_clipped[i] }
    }

    /// Whether x at the last timestep holds no signal at all, ᾱ = 0. Then x_0 cannot be computed from ε there: a network
    /// that predicts ε cannot be sampled, one that predicts x_0 can.
    pub fn ends_in_pure_noise(&self) -> bool {
        self.alpha_bar.last() == Some(&0.0)
    }
}

/// ᾱ at a time from 0 to T − 1.
fn alpha_bar_at(full_alpha_bar: &[f64], time: f64) -> f64 {
    let below = time.floor();
    let (i, part) = (below as usize, time - below);
    if part == 0.0 {
        return full_alpha_bar[i];
    }
    let [a, b] = [i, i + 1].map(|i| log_snr(full_alpha_bar[i]));
    alpha_bar_of(a + part * (b - a))
}

/// The time, from 0 to T − 1, at which a process has that log(ᾱ/(1 − ᾱ)), or the nearer end.
pub(crate) fn time_of(full_alpha_bar: &[f64], log: f64) -> f64 {
    // log-SNR falls with time.
    let after = full_alpha_bar.partition_point(|&alpha_bar| log_snr(alpha_bar) > log);
    if after == 0 || after == full_alpha_bar.len() {
        return after.min(full_alpha_bar.len() - 1) as f64;
    }
    let [a, b] = [after - 1, after].map(|i| log_snr(full_alpha_bar[i]));
    (after - 1) as f64 + (a - log) / (a - b)
}

/// ᾱ from β.
fn cumulative_signal(betas: &[f64]) -> Vec<f64> {
    betas
        .iter()
        .scan(1.0, |product, &beta| {
            *product *= 1.0 - beta;
            Some(*product)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(noise_schedule: NoiseSchedule, steps: usize, respacing: &str) -> Schedule {
        Schedule::new(noise_schedule, steps, &respacing.parse().unwrap()).unwrap()
    }

    fn assert_close(actual: f64, expected: f64) {
        assert!((actual - expected).abs() <= 1e-9 * expected.abs().max(1e-9), "{actual} is not {expected}");
    }

    #[test]
    fn respacing_keeps_the_signal_of_the_timesteps_it_keeps() {
        let full = schedule(NoiseSchedule::Cosine, 1000, "");
        let respaced = schedule(NoiseSchedule::Cosine, 1000, "10,15,20");
        assert_eq!((full.len(), respaced.len(), respaced.original_steps()), (1000, 45, 1000));
        for (i, &t) in respaced.times.iter().enumerate() {
            let t = t as usize;
            assert_close(respaced.alpha_bar[i], full.alpha_bar[t]);
        }
    }

    #[test]
    fn the_posterior_is_the_one_bayes_rule_gives() {
        let s = schedule(NoiseSchedule::Linear, 100, "");
        for i in 1..s.len() {
            // q(x_{i−1} | x_0) times q(x_i | x_{i−1}): precisions add.
            let precision = 1.0 / (1.0 - s.alpha_bar_prev[i]) + (1.0 - s.betas[i]) / s.betas[i];
            assert_close(s.posterior_variance[i], 1.0 / precision);
            assert_close(s.posterior_mean_coef1[i], s.sqrt_alpha_bar[i - 1] / (1.0 - s.alpha_bar_prev[i]) / precision);
            assert_close(s.posterior_mean_coef2[i], (1.0 - s.betas[i]).sqrt() / s.betas[i] / precision);
        }
        assert_eq!((s.posterior_variance[0], s.posterior_mean_coef2[0]), (0.0, 0.0));
        assert_close(s.posterior_mean_coef1[0], 1.0);
    }

    #[test]
    fn neighbours_are_shifted_copies_with_fixed_ends() {
        let s = schedule(NoiseSchedule::Cosine, 1000, "ddim50");
        assert_eq!((s.alpha_bar_prev[0], s.alpha_bar_next[49]), (1.0, 0.0));
        assert_eq!(s.alpha_bar_prev[1..], s.alpha_bar[..49]);
        assert_eq!(s.alpha_bar_next[..49], s.alpha_bar[1..]);
        assert!(s.alpha_bar.is_sorted_by(|a, b| a > b));
    }

    #[test]
    fn fixed_variances_differ_beyond_the_first_step_only() {
        let s = schedule(NoiseSchedule::Linear, 100, "10");
        let (small, large) = (s.fixed_log_variance(false), s.fixed_log_variance(true));
        assert_eq!(small[0], large[0]);
        assert_eq!(small[0], small[1]);
        for i in 1..10 {
            assert!(small[i] < large[i]);
            assert_close(large[i].exp(), s.betas[i]);
        }
    }

    #[test]
    fn a_single_step_has_finite_tables() {
        for s in [schedule(NoiseSchedule::Cosine, 1, ""), schedule(NoiseSchedule::Linear, 1000, "1")] {
            assert_eq!(s.len(), 1);
            assert_close(s.posterior_log_variance_clipped[0].exp(), s.betas[0]);
            for table in [s.fixed_log_variance(true), s.fixed_log_variance(false), s.sqrt_recip_alpha_bar] {
                assert!(table.len() == 1 && table[0].is_finite());
            }
        }
    }

    #[test]
    fn the_network_is_told_the_original_time() {
        let s = schedule(NoiseSchedule::Cosine, 4000, "ddim40");
        assert_eq!(s.times[3], 300.0);
        assert_eq!((s.model_time(300.0, false), s.model_time(300.0, true)), (300.0, 75.0));
        assert_eq!(s.model_time(2.5, false), 2.5);
    }

    #[test]
    fn between_timesteps_the_logarithm_of_the_signal_to_noise_ratio_is_straight() {
        for noise_schedule in [NoiseSchedule::Linear, NoiseSchedule::Cosine] {
            let s = schedule(noise_schedule, 1000, "");
            for (i, part) in [(0, 0.25), (499, 0.5), (998, 0.9)] {
                let (a, b, between) = (s.level(i), s.level(i + 1), s.level_at(i as f64 + part));
                assert_close(between.lambda(), (1.0 - part) * a.lambda() + part * b.lambda());
                let back = s.level_of(between.alpha_bar);
                assert!((back.time - between.time).abs() < 1e-6, "{back:?}");
                assert_close(between.alpha().powi(2) + between.sigma().powi(2), 1.0);
            }
            // At a timestep not a bit differs, and beyond the ends there is nothing.
            assert_eq!(s.level_at(17.0).alpha_bar, s.full_alpha_bar[17]);
            assert_eq!((s.level_at(-3.0).time, s.level_at(1e9).time), (0.0, 999.0));
            assert_eq!((s.level_of(1.0 - 1e-9).time, s.level_of(1e-12).time), (0.0, 999.0));
        }
    }

    #[test]
    fn spaced_times_are_spaced_as_they_are_named() {
        let spaced = |spacing, count| Schedule::spaced(NoiseSchedule::Linear, 1000, spacing, count).unwrap();
        let differences = |values: Vec<f64>| values.windows(2).map(|w| w[1] - w[0]).collect::<Vec<f64>>();
        let even = |values: Vec<f64>| differences(values).windows(2).all(|d| (d[1] / d[0] - 1.0).abs() < 1e-6);
        let uniform = spaced(Spacing::Uniform, 10);
        assert_eq!(spaced(Spacing::Uniform, 1).times, [0.0]);
        assert_eq!(uniform, schedule(NoiseSchedule::Linear, 1000, "10"));
        let quadratic = spaced(Spacing::Quadratic, 10);
        assert!(even(quadratic.times.iter().map(|t| t.sqrt()).collect()));
        let log_snr = spaced(Spacing::LogSnr, 10);
        assert!(even((0..10).map(|i| log_snr.level(i).lambda()).collect()));
        let karras = spaced(Spacing::Karras, 10);
        let root = |i| (karras.level(i).sigma() / karras.level(i).alpha()).powf(1.0 / 7.0);
        assert!(even((0..10).map(root).collect()));
        for s in [uniform, quadratic, log_snr, karras] {
            assert_eq!((s.times[0], s.times[9], s.len()), (0.0, 999.0, 10));
            assert!(s.times.is_sorted_by(|a, b| a < b));
            assert!((s.alpha_bar[9] - s.full_alpha_bar[999]).abs() < 1e-12);
        }
        assert_eq!(spaced(Spacing::Karras, 1).times, [999.0]);
        for count in [0, 1001] {
            assert!(Schedule::spaced(NoiseSchedule::Linear, 1000, Spacing::LogSnr, count).is_err());
        }
        // A process that ends in pure noise has no last signal-to-noise ratio: the one before is taken.
        let s = Schedule::spaced(NoiseSchedule::Linear, 20, Spacing::LogSnr, 5).unwrap();
        assert_eq!(s.times[4], 18.0);
    }

    #[test]
    fn too_few_linear_steps_are_refused_with_advice() {
        let error = Schedule::new(NoiseSchedule::Linear, 10, &Respacing::Full).unwrap_err().to_string();
        assert_eq!(
            error,
            "the linear noise schedule over 10 diffusion steps needs beta = 1.1156 at step 5, but beta must be above 0 and \
             at most 1: use at least 20 diffusion steps, or the cosine schedule"
        );
        assert!(Schedule::new(NoiseSchedule::Linear, 19, &Respacing::Full).is_err());
        assert!(Schedule::new(NoiseSchedule::Linear, 0, &Respacing::Full).is_err());
        assert!(Schedule::new(NoiseSchedule::Cosine, usize::MAX, &Respacing::Full).is_err());
    }

    #[test]
    fn pure_noise_at_the_end_is_reported() {
        assert!(schedule(NoiseSchedule::Linear, 20, "").ends_in_pure_noise());
        assert!(!schedule(NoiseSchedule::Linear, 21, "").ends_in_pure_noise());
        assert!(!schedule(NoiseSchedule::Cosine, 20, "").ends_in_pure_noise());
    }
}
