//! Sampling chains as programs: which network calls a sampler makes, at which noise levels, and how each step mixes what it
//! has into the next x.
//!
//! A chain leaves one index of a [`Schedule`] after the other, from the noisiest to 0, and ends at the data, where ᾱ = 1. Every
//! step is one [`Stage`], or two where a sampler calls the network twice. Past DDPM and DDIM a stage mixes linearly: x, the x
//! that was kept from an earlier stage, the newest predictions of x_0, and noise. So all solvers are tables of
//! coefficients, computed here once in f64, and nothing else in the program knows one from the other.
//!
//! With α = √ᾱ, σ = √(1 − ᾱ), λ = log(α/σ), s the level that a step leaves, t where it goes, h = λ_t − λ_s:
//!
//! | sampler | step | source |
//! | --- | --- | --- |
//! | DDPM | the posterior's mean and the model's variance | Ho et al. 2020, algorithm 2 |
//! | DDIM | see [`DdimStep`] | Song et al. 2020, eq. 12 |
//! | DPM-Solver++ (2M) | (σ_t/σ_s) x + α_t (1 − e^{−h}) D, D = m₀ + (m₀ − m₁)/2r | Lu et al. 2022, arXiv 2211.01095, algorithm 2 |
//! | its SDE form | (σ_t/σ_s) e^{−h} x + α_t (1 − e^{−2h}) D + σ_t √(1 − e^{−2h}) z | the same, eq. 18 |
//! | `UniPC` of order 2 (B₂) | predicts as the 2M step, corrects with the next prediction | Zhao et al. 2023, arXiv 2302.04867 |
//! | Heun | EDM's algorithm 2, in x/α and σ/α | Karras et al. 2022, arXiv 2206.00364 |
//!
//! with m₀, m₁ the predictions of x_0 at s and before, and r the step before over h, in λ. Where there is no prediction
//! before, and in the last step, D = m₀.

use crate::schedule::{Level, Schedule};
use crate::step::DdimStep;

/// Which sampler.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// Ancestral sampling.
    Ddpm,
    /// Song et al.'s family.
    Ddim {
        /// η: 0 is deterministic, 1 has the variance of DDPM's posterior.
        eta: f64,
    },
    /// DPM-Solver++ with two predictions.
    DpmSolver {
        /// Whether it is the SDE's: then every step adds noise.
        stochastic: bool,
    },
    /// `UniPC` of order 2.
    UniPc,
    /// Heun's method as in EDM: two network calls a step, but for the last.
    Heun(Churn),
}

/// How much noise EDM's sampler adds before a step, and at which noise levels σ/α.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Churn {
    /// `S_churn`, over all steps; 0 is deterministic.
    pub amount: f64,
    /// `S_tmin`.
    pub least: f64,
    /// `S_tmax`; 0 for no limit.
    pub most: f64,
}

/// One network call, and what follows from it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stage {
    /// The step it belongs to, from 0.
    pub step: usize,
    /// The schedule's index that the step leaves.
    pub index: usize,
    /// Whether the step is done after it.
    pub ends_step: bool,
    /// The schedule's index at which the network is called.
    pub called_at: usize,
    /// The noise level at which the network is called: that of the index, unless noise was added before.
    pub level: Level,
    /// Before the call x becomes the first times itself plus the second times a standard normal draw.
    pub churn: Option<[f64; 2]>,
    /// What makes the next x.
    pub update: Update,
}

/// What a stage does with the network's answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Update {
    /// Draws from p(x_{t−1} | x_t).
    Ddpm,
    /// DDIM's step.
    Ddim(DdimStep),
    /// Mixes linearly.
    Mix {
        /// Replaces x before anything else, with this call's prediction.
        corrector: Option<Mixture>,
        /// Whether (the corrected) x is kept for later stages.
        keeps: bool,
        /// The next x.
        next: Mixture,
    },
}

/// A linear combination of what a chain holds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Mixture {
    /// What x is multiplied by.
    pub x: f64,
    /// What the x that was kept last is multiplied by.
    pub kept: f64,
    /// What the predictions of x_0 are multiplied by: this call's, the one before, the one before that.
    pub x_start: [f64; 3],
    /// What a standard normal draw is multiplied by.
    pub noise: f64,
}

/// Where every chain ends.
const DATA: Level = Level { time: 0.0, alpha_bar: 1.0 };

impl Rule {
    /// Whether steps add noise that has nothing to do with x_T.
    pub fn is_stochastic(self) -> bool {
        match self {
            Self::Ddpm | Self::DpmSolver { stochastic: true } => true,
            Self::Ddim { eta } => eta > 0.0,
            Self::Heun(churn) => churn.amount > 0.0,
            Self::DpmSolver { stochastic: false } | Self::UniPc => false,
        }
    }

    /// Whether a network's own variance enters the steps.
    pub fn uses_variance(self) -> bool {
        self == Self::Ddpm
    }

    /// The stages of a chain that begins at index `first` of a schedule.
    ///
    /// # Panics
    /// If `first` is not below [`Schedule::len`].
    pub fn stages(self, schedule: &Schedule, first: usize) -> Vec<Stage> {
        (0..=first).flat_map(|step| self.step(schedule, first, step)).collect()
    }

    /// The stages of one step.
    fn step(self, schedule: &Schedule, first: usize, step: usize) -> Vec<Stage> {
        let index = first - step;
        let level = schedule.level(index);
        let next = if index > 0 { schedule.level(index - 1) } else { DATA };
        // The level that the step before left.
        let before = (step > 0).then(|| schedule.level(index + 1));
        let stage = |update| Stage { step, index, ends_step: true, called_at: index, level, churn: None, update };
        let mix = |next| Update::Mix { corrector: None, keeps: false, next };
        match self {
            Self::Ddpm => vec![stage(Update::Ddpm)],
            Self::Ddim { eta } => vec![stage(Update::Ddim(DdimStep::between(level.alpha_bar, next.alpha_bar, eta)))],
            Self::DpmSolver { stochastic } => {
                vec![stage(mix(multistep(level, next, before.filter(|_| index > 0), stochastic)))]
            }
            Self::UniPc => {
                let corrector = before.map(|from| {
                    let earlier = (step > 1).then(|| schedule.level(index + 2));
                    // From pure noise a step is infinitely long, and says nothing of the slope.
                    unipc_corrector(from, level, earlier.filter(|level| level.alpha_bar > 0.0))
                });
                let next = multistep(level, next, before.filter(|_| index > 0), false);
                vec![stage(Update::Mix { corrector, keeps: true, next })]
            }
            Self::Heun(churn) => {
                let (churned, mixture) = churn.apply(schedule, level);
                let euler = Update::Mix { corrector: None, keeps: true, next: euler(churned, next) };
                let first = Stage { level: churned, churn: mixture, ends_step: index == 0, ..stage(euler) };
                let second = || Stage { called_at: index - 1, level: next, ..stage(mix(heun(churned, next))) };
                if index == 0 { vec![first] } else { vec![first, second()] }
            }
        }
    }
}

impl Stage {
    /// Whether the stage adds noise after its call.
    pub fn draws(&self) -> bool {
        match self.update {
            Update::Ddpm => self.index > 0,
            Update::Ddim(step) => self.index > 0 && step.noise > 0.0,
            Update::Mix { next, .. } => next.noise > 0.0,
        }
    }
}

impl Churn {
    /// The level after noise is added, and how: EDM's algorithm 2, lines 5 and 6. A chain that begins further down adds as
    /// much in each step as one over the whole schedule.
    fn apply(self, schedule: &Schedule, level: Level) -> (Level, Option<[f64; 2]>) {
        let ratio = level.sigma() / level.alpha();
        let within = ratio >= self.least && (self.most == 0.0 || ratio <= self.most);
        let gamma =
            if within { (self.amount / schedule.len() as f64).min(std::f64::consts::SQRT_2 - 1.0) } else { 0.0 };
        if gamma == 0.0 {
            return (level, None);
        }
        let churned = ratio * (1.0 + gamma);
        let level_after = schedule.level_of(1.0 / (1.0 + churned * churned));
        let alpha = level_after.alpha();
        (level_after, Some([alpha / level.alpha(), alpha * (churned * churned - ratio * ratio).sqrt()]))
    }
}

/// The step of DPM-Solver++ from `from` to `to`; `before` is where the step before came from, if two predictions are used.
fn multistep(from: Level, to: Level, before: Option<Level>, stochastic: bool) -> Mixture {
    let h = to.lambda() - from.lambda();
    let decay = to.sigma() / from.sigma();
    // 1 − e^{−h} or, of the SDE, 1 − e^{−2h}.
    let share = -libm::expm1(if stochastic { -2.0 * h } else { -h });
    let gain = to.alpha() * share;
    // 1/2r.
    let slope = before.map_or(0.0, |before| 0.5 * h / (from.lambda() - before.lambda()));
    Mixture {
        x: if stochastic { decay * libm::exp(-h) } else { decay },
        kept: 0.0,
        x_start: [gain * (1.0 + slope), -gain * slope, 0.0],
        noise: if stochastic { to.sigma() * share.sqrt() } else { 0.0 },
    }
}

/// What `UniPC` makes of the step from `from` to `to` once the prediction at `to` is there; `before` is where the step before
/// came from, if it has order 2. The kept x is the one at `from`.
fn unipc_corrector(from: Level, to: Level, before: Option<Level>) -> Mixture {
    let h = to.lambda() - from.lambda();
    let share = libm::expm1(-h);
    let gain = -to.alpha() * share;
    // ρ of m_t − m₀ and of (m₁ − m₀)/r, with r the distance from m₀ to m₁ in units of h, which is negative.
    let (newest, oldest) = match before {
        None => (0.5, 0.0),
        Some(before) => {
            let r = (before.lambda() - from.lambda()) / h;
            let g1 = share / -h - 1.0;
            let g2 = g1 / -h - 0.5;
            let (b1, b2) = (g1 / share, 2.0 * g2 / share);
            ((b2 - r * b1) / (1.0 - r), (b1 - b2) / (1.0 - r) / r)
        }
    };
    Mixture {
        x: 0.0,
        kept: to.sigma() / from.sigma(),
        x_start: [gain * newest, gain * (1.0 - newest - oldest), gain * oldest],
        noise: 0.0,
    }
}

/// Euler's step of the ODE in x/α and σ/α, which is DDIM's with η = 0.
fn euler(from: Level, to: Level) -> Mixture {
    let decay = to.sigma() / from.sigma();
    Mixture { x: decay, x_start: [to.alpha() - decay * from.alpha(), 0.0, 0.0], ..Mixture::default() }
}

/// The step with the mean of the slopes at both ends; x is where [`euler`] led, the kept x where the step began.
fn heun(from: Level, to: Level) -> Mixture {
    let decay = to.sigma() / from.sigma();
    // Half of the ratio of (σ_t/α_t − σ_s/α_s) to σ_s/α_s and to σ_t/α_t, times α_t.
    let of_from = 0.5 * (decay * from.alpha() - to.alpha());
    let of_to = 0.5 * (to.alpha() - to.alpha().powi(2) / (from.alpha() * decay));
    Mixture {
        x: of_to / to.alpha(),
        kept: (to.alpha() + of_from) / from.alpha(),
        x_start: [-of_to, -of_from, 0.0],
        noise: 0.0,
    }
}

#[cfg(test)]
#[path = "sampler_tests.rs"]
mod tests;
