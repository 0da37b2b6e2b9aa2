//! What the instruments read.

use super::curve::{Curve, numbers, pair};
use serde::{Deserialize, Serialize};

/// What the instruments read, at each noise level from the data's end on. Energies are means over
/// the values of squares.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Readings {
    /// The network's times t.
    #[serde(deserialize_with = "numbers")]
    pub t: Vec<f64>,
    /// ᾱ.
    #[serde(deserialize_with = "numbers")]
    pub alpha_bar: Vec<f64>,
    /// ν_t: the mean over pixels of the standard deviation over images of x̂_0(x_t) − x_0, one call from a true x_t
    /// (Ning et al. 2023, section 3).
    pub prediction_error: Curve,
    /// The share of pixels in which these errors are not normal: p < 0.05 by Shapiro and Wilk's test. Were they normal, 5 %
    /// would be.
    #[serde(deserialize_with = "numbers")]
    pub not_normal: Vec<f64>,
    /// E(x̂_0(x_t) − x_0)², mean over pixels: not less than E Var(x_0 | x_t).
    pub squared_error: Curve,
    /// δ_t = (σ̂_t − √(1 − ᾱ_t))², with σ̂_t the mean over pixels of the standard deviation of x̂_t − √ᾱ_t x_0 in chains that
    /// begin at q(x_T | x_0) (Ning et al. 2024, arXiv 2308.15321).
    pub variance_error: Curve,
    /// What δ_t is for a perfect sampler, which has forgotten x_0: (mean √(1 − ᾱ_t + 2ᾱ_t v) − √(1 − ᾱ_t))² over pixels of
    /// variance v.
    #[serde(deserialize_with = "numbers")]
    pub variance_error_floor: Vec<f64>,
    /// δ_t less its floor.
    pub variance_error_excess: Curve,
    /// Var(x̂_t) − (ᾱ_t v + 1 − ᾱ_t), mean over pixels: needs no pairs.
    pub variance_excess: Curve,
    /// Of chains begun a few levels above t at q(x_s | x_0): Var(x̂_t − √ᾱ_t x_0), mean over pixels.
    pub short_variance: Curve,
    /// At most what that is for a perfect ancestral sampler: 1 − ᾱ_t + 2b √ᾱ_t V, b = √ᾱ_t (1 − ᾱ_s/ᾱ_t)/(1 − ᾱ_s), with the
    /// network's own squared error at s for V = E Var(x_0 | x_s). NaN where the sampler is not ancestral.
    #[serde(deserialize_with = "numbers")]
    pub short_variance_floor: Vec<f64>,
    /// The difference: a lower bound of the excess. NaN where the sampler is not ancestral: more noise or less than an ancestral
    /// one's changes it without any bias.
    pub short_variance_excess: Curve,
    /// Mean ‖ε_θ‖₂ on true x_t.
    pub norm_training: Curve,
    /// Mean ‖ε_θ‖₂ on sampled x_t.
    pub norm_sampling: Curve,
    /// s − t for the s at which the network, told t, has on states of q(x_s | x_0) the norm that it has on sampled ones. NaN
    /// where the norm does not change measurably with s, or so little that s is not known to a tenth of the process, or where
    /// no s has that norm.
    pub effective_shift: Curve,
    /// Energy of sampled x_t over that of true x_t, less 1: low Haar band, high bands.
    pub state_energy: [Curve; 2],
    /// The same of x̂_0.
    pub x_start_energy: [Curve; 2],
    /// ‖J_x‖_F, J_x the derivative of the network's prediction by its input, at true x_t: the root of the mean over images.
    pub input_gradient: Curve,
    /// Chains that begin at q(x_t | x_0): how far they end from x_0, root mean square over values, mean over images.
    pub start: Vec<StartStep>,
}

impl Readings {
    /// All curves and lists by name; errors as `NAME_error`.
    pub fn arrays(&self) -> Vec<(String, &[f64])> {
        let [state_low, state_high] = &self.state_energy;
        let [x_start_low, x_start_high] = &self.x_start_energy;
        let curves = [
            ("prediction_error", &self.prediction_error),
            ("squared_error", &self.squared_error),
            ("variance_error", &self.variance_error),
            ("variance_error_excess", &self.variance_error_excess),
            ("variance_excess", &self.variance_excess),
            ("short_variance", &self.short_variance),
            ("short_variance_excess", &self.short_variance_excess),
            ("norm_training", &self.norm_training),
            ("norm_sampling", &self.norm_sampling),
            ("effective_shift", &self.effective_shift),
            ("state_energy_low", state_low),
            ("state_energy_high", state_high),
            ("x_start_energy_low", x_start_low),
            ("x_start_energy_high", x_start_high),
            ("input_gradient", &self.input_gradient),
        ];
        let lists = [
            ("t", &self.t),
            ("alpha_bar", &self.alpha_bar),
            ("not_normal", &self.not_normal),
            ("variance_error_floor", &self.variance_error_floor),
            ("short_variance_floor", &self.short_variance_floor),
        ];
        let lists = lists.into_iter().map(|(name, values)| (name.to_string(), values.as_slice()));
        let curves = curves.into_iter().flat_map(|(name, curve)| {
            [(name.to_string(), curve.value.as_slice()), (format!("{name}_error"), curve.error.as_slice())]
        });
        lists.chain(curves).collect()
    }
}

/// Chains from one level to the end.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct StartStep {
    /// Where they begin.
    pub t: f64,
    /// DDIM's with η = 0: mean and error.
    #[serde(deserialize_with = "pair")]
    pub deterministic: [f64; 2],
    /// DDPM's: mean and error.
    #[serde(deserialize_with = "pair")]
    pub stochastic: [f64; 2],
    /// The Fréchet distances of their ends from real images, where they were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frechet: Option<[f64; 2]>,
}
