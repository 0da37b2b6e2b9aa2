//! Input perturbation, the heart of this project (Ning et al., *Input Perturbation Reduces Exposure Bias in Diffusion
//! Models*, ICML 2023, arXiv 2301.11706).
//!
//! # The method
//!
//! A diffusion network is trained on true noisy images but sampled on its own predictions, whose errors add up: exposure
//! bias. Input perturbation shows the network such errors during training. With ε, ξ ~ N(0, I) independent and a
//! strength γ, it trains on
//!
//! ```text
//! y_t = √ᾱ_t · x_0 + β̄_t · (ε + γξ)              what the network f sees at time t
//! L_IP = mean ‖ε − f(y_t, t)‖²                    the target stays ε
//! ```
//!
//! and samples as always. That is [`Mode::Sampled`], the published code.
//!
//! # The equivalent loss
//!
//! Only the sum ε + γξ reaches the network. Rotate the two draws, with s = √(1 + γ²):
//!
//! ```text
//! ε' = (ε + γξ) / s        ε = (ε' + γζ) / s
//! ζ  = (γε − ξ) / s        ξ = (γε' − ζ) / s
//! ```
//!
//! (ε', ζ) is again i.i.d. N(0, I), and y_t = √ᾱ_t · x_0 + β̄_t · s · ε' holds no ζ. So ζ can be averaged out of the loss on
//! paper instead of by sampling. With c = γ² / (1 + γ²),
//!
//! ```text
//! E_ζ L_IP = L_eq + c,        L_eq = mean ‖ε'/s − f(y_t, t)‖²
//! ```
//!
//! which is [`Mode::Equivalent`]: a noise level larger by s, and a target shrunk by s. Draw by draw,
//!
//! ```text
//! L_IP − L_eq = c · mean ζ² + 2(γ/s) · mean(ζ · (ε'/s − f))
//! ```
//!
//! so both have the same expected gradient, and the second term, whose mean is 0, is variance that `Sampled` has and
//! `Equivalent` lacks (Rao-Blackwell). It also draws half the noise. The constant c is [`Mix::constant`]: add it to the
//! mean squared error to compare with curves of the published code.
//!
//! - The variational term depends on (x_0, y_t, t) alone, so both modes have the same one, taken at the *perturbed* y_t.
//! - Losses on x_0 itself, and those that are nothing but the variational bound, do not see ε: they are the same in both
//!   modes without any constant.
//! - A sampler of t that learns from losses must be told L_eq + c, or its distribution changes.
//!
//! # The ablation
//!
//! [`Mode::TargetScaled`] shows the network the same y_t but asks for ε' (DDPM-y in the paper): a larger noise
//! level alone, without the mismatch of input and target. It is worse than no perturbation, which shows that the mismatch
//! is what helps.
//!
//! | mode | noise | xi | target | constant |
//! | --- | --- | --- | --- | --- |
//! | `Sampled` | 1 | γ | 1 | 0 |
//! | `Equivalent` | s | 0 | 1/s | c |
//! | `TargetScaled` | s | 0 | 1 | 0 |
//!
//! with y_t = √ᾱ_t · x_0 + β̄_t · (noise · ε + xi · ξ) and target · ε as the regression target, see [`Mix`]. At γ = 0 every
//! row is exactly (1, 0, 1, 0), ordinary training.
//!
//! # Noise that is not scaled, and perturbation at random
//!
//! Where [`Perturbation::scaled`] is false, `gamma` is the deviation g of noise that is added as it is:
//!
//! ```text
//! y_t = √ᾱ_t · x_0 + β̄_t · ε + g · ξ              so γ_t = g / β̄_t
//! ```
//!
//! and all of the above holds with γ_t in place of γ. The perturbation is strongest at small t, where β̄_t is small.
//!
//! CIOP (AAAI 2026) does this with g² = 0.1, for an image with probability p = 0.8 ([`Strength::Switched`]), and adds
//! another noise η ~ N(0, I) to the target. y_t does not depend on it, so
//!
//! ```text
//! E_η mean ‖ε + gη − f(y_t, t)‖² = mean ‖ε − f(y_t, t)‖² + g²
//! ```
//!
//! and the gradient's expectation is that of input perturbation, switched on at random and not scaled.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

use crate::name::named_enum;
use crate::schedule::Schedule;

named_enum! {
    /// How the perturbation enters the loss; see the [module](self).
    pub enum Mode as "perturbation mode" {
        /// Draws ξ, as the published code does.
        #[default]
        Sampled = "sampled",
        /// Has ξ averaged out: the same expected gradient with less variance and half the noise.
        Equivalent = "equivalent",
        /// Perturbs the target along with the input (DDPM-y): an ablation, worse than no perturbation.
        TargetScaled = "target-scaled",
    }
}

named_enum! {
    /// How γ varies over timesteps, images and training.
    pub enum Strength as "perturbation strength" {
        /// γ everywhere, as published.
        #[default]
        Constant = "constant",
        /// From `gamma_start` at t = 0 to γ at t = T − 1, in proportion to t.
        Linear = "linear",
        /// From `gamma_start` at t = 0 to γ at t = T − 1, along half a cosine: slow at both ends.
        Cosine = "cosine",
        /// Uniform between 0 and γ, drawn for each image.
        Uniform = "uniform",
        /// γ at the start of training, falling linearly to 0 over `decay_steps` training steps.
        Decay = "decay",
        /// γ with a probability, else 0, drawn for each image.
        Switched = "switched",
    }
}

/// The configuration of input perturbation. The default is none: γ = 0.
///
/// Published strengths γ: 0.15 in the CIFAR-10 recipe; 0.1 for ImageNet 32, LSUN tower 64, CelebA 64 and FFHQ 128.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Perturbation {
    /// How the perturbation enters the loss.
    pub mode: Mode,
    /// γ ≥ 0, the strength, in units of the noise level β̄_t; the deviation g where `scaled` is false.
    pub gamma: f64,
    /// γ at t = 0 for [`Strength::Linear`] and [`Strength::Cosine`]; not used by the others.
    pub gamma_start: f64,
    /// How γ varies.
    pub strength: Strength,
    /// For [`Strength::Linear`] and [`Strength::Cosine`]: no perturbation where t/(T − 1) is greater. In [0, 1].
    pub cutoff: f64,
    /// For [`Strength::Decay`]: training steps until γ is 0.
    pub decay_steps: u64,
    /// For [`Strength::Switched`]: the probability that an image is perturbed. In [0, 1].
    pub probability: f64,
    /// Whether strengths are in units of β̄_t, rather than deviations of noise that is added as it is: γ_t = g/β̄_t.
    pub scaled: bool,
}

impl Default for Perturbation {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            gamma: 0.0,
            gamma_start: 0.0,
            strength: Strength::default(),
            cutoff: 1.0,
            decay_steps: 0,
            probability: 0.8,
            scaled: true,
        }
    }
}

/// Why a configuration makes no sense.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PerturbationError {
    /// A strength is negative, NaN or infinite.
    #[error("the perturbation's {name} is {value}: it must be 0 or a positive number, such as 0.1")]
    Strength {
        /// Which strength: "gamma" or "gamma_start".
        name: &'static str,
        /// Its value.
        value: f64,
    },
    /// The cutoff is no share of the timesteps.
    #[error("the perturbation's cutoff is {value}: it must be between 0 and 1, where 1 perturbs at all timesteps")]
    Cutoff {
        /// Its value.
        value: f64,
    },
    /// Decay over no time.
    #[error("a decaying perturbation needs to know over how many training steps: set decay_steps to at least 1")]
    NoDecaySteps,
    /// The probability is none.
    #[error("the perturbation's probability is {value}: it must be between 0 and 1, where 1 perturbs every image")]
    Probability {
        /// Its value.
        value: f64,
    },
}

impl Perturbation {
    /// Checks that every number is in its range.
    ///
    /// # Errors
    ///
    /// A [`PerturbationError`] names the first that is not.
    pub fn validate(&self) -> Result<(), PerturbationError> {
        for (name, value) in [("gamma", self.gamma), ("gamma_start", self.gamma_start)] {
            if !(value >= 0.0 && value.is_finite()) {
                return Err(PerturbationError::Strength { name, value });
            }
        }
        if !(0.0..=1.0).contains(&self.cutoff) {
            return Err(PerturbationError::Cutoff { value: self.cutoff });
        }
        if self.strength == Strength::Decay && self.decay_steps == 0 {
            return Err(PerturbationError::NoDecaySteps);
        }
        if !(0.0..=1.0).contains(&self.probability) {
            return Err(PerturbationError::Probability { value: self.probability });
        }
        Ok(())
    }

    /// γ for an image at timestep `t` of a process of T timesteps, in training step `train_step`, with a uniform draw `u`
    /// in [0, 1) that is the image's own.
    ///
    /// | strength | γ |
    /// | --- | --- |
    /// | `Constant` | γ |
    /// | `Linear` | (1 − w) `gamma_start` + w γ, w = t/(T − 1) |
    /// | `Cosine` | the same with w = (1 − cos(π t/(T − 1)))/2 |
    /// | `Uniform` | u γ |
    /// | `Decay` | γ max(0, 1 − `train_step`/`decay_steps`) |
    /// | `Switched` | γ where u < `probability`, else 0 |
    ///
    /// `Linear` and `Cosine` give 0 where t/(T − 1) exceeds `cutoff`. Where `scaled` is false, each is divided by β̄_t.
    pub fn gamma_for(&self, t: usize, schedule: &Schedule, train_step: u64, u: f64) -> f64 {
        let strength = self.strength_for(t, schedule.len(), train_step, u);
        if self.scaled { strength } else { strength / schedule.sqrt_one_minus_alpha_bar[t] }
    }

    /// [`gamma_for`](Self::gamma_for) in the units of `gamma`.
    fn strength_for(&self, t: usize, steps: usize, train_step: u64, u: f64) -> f64 {
        // A process of one timestep has only a start.
        let progress = if steps > 1 { t as f64 / (steps - 1) as f64 } else { 0.0 };
        let ramp = |w: f64| {
            if progress > self.cutoff { 0.0 } else { (1.0 - w) * self.gamma_start + w * self.gamma }
        };
        match self.strength {
            Strength::Constant => self.gamma,
            Strength::Linear => ramp(progress),
            Strength::Cosine => ramp(0.5 * (1.0 - libm::cos(PI * progress))),
            Strength::Uniform => self.gamma * u,
            Strength::Decay if train_step >= self.decay_steps => 0.0,
            Strength::Decay => self.gamma * (1.0 - train_step as f64 / self.decay_steps as f64),
            Strength::Switched if u < self.probability => self.gamma,
            Strength::Switched => 0.0,
        }
    }

    /// The coefficients of one image's input and target for its γ.
    pub fn mix(&self, gamma: f64) -> Mix {
        let s = noise_scale(gamma);
        match self.mode {
            Mode::Sampled => Mix { noise: 1.0, xi: gamma, target: 1.0, constant: 0.0 },
            Mode::Equivalent => Mix { noise: s, xi: 0.0, target: 1.0 / s, constant: loss_constant(gamma) },
            Mode::TargetScaled => Mix { noise: s, xi: 0.0, target: 1.0, constant: 0.0 },
        }
    }
}

/// What an image's draws are multiplied by. With ε and ξ its noise and its perturbation, the network sees
/// y_t = √ᾱ_t · x_0 + β̄_t · (`noise` · ε + `xi` · ξ) and is to predict `target` · ε.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mix {
    /// Coefficient of ε in the input, in units of β̄_t.
    pub noise: f64,
    /// Coefficient of ξ in the input, in units of β̄_t. Where it is 0, ξ need not be drawn.
    pub xi: f64,
    /// Coefficient of ε in the target.
    pub target: f64,
    /// What the mean squared error must be raised by to compare with [`Mode::Sampled`]. It has no gradient.
    pub constant: f64,
}

/// s = √(1 + γ²), by how much the perturbed noise is larger. Exactly 1 at γ = 0.
pub fn noise_scale(gamma: f64) -> f64 {
    libm::hypot(1.0, gamma)
}

/// c = γ² / (1 + γ²), the constant between the sampled and the equivalent loss. Exactly 0 at γ = 0.
pub fn loss_constant(gamma: f64) -> f64 {
    let sine = gamma / noise_scale(gamma);
    sine * sine
}

/// (ε, ξ) → (ε', ζ) = ((ε + γξ)/s, (γε − ξ)/s). Independent standard normals stay independent standard normals.
pub fn rotate(eps: f64, xi: f64, gamma: f64) -> (f64, f64) {
    let s = noise_scale(gamma);
    ((eps + gamma * xi) / s, (gamma * eps - xi) / s)
}

/// (ε', ζ) → (ε, ξ) = ((ε' + γζ)/s, (γε' − ζ)/s): [`rotate`] backwards, and the same map, which is its own inverse.
pub fn unrotate(eps_prime: f64, zeta: f64, gamma: f64) -> (f64, f64) {
    rotate(eps_prime, zeta, gamma)
}

#[cfg(test)]
#[path = "perturb_tests.rs"]
mod tests;
