//! Input perturbation for networks of any kind: what is shown to them, and what is asked of them.
//!
//! A network sees an image x_0 under noise, a·x_0 + b·n, and is asked for something linear in x_0 and the noise. Diffusion,
//! flow matching and EDM differ in a, b and the target alone:
//!
//! | network predicts | a, b | target = x·x_0 + n·ε | |
//! | --- | --- | --- | --- |
//! | ε | √ᾱ, √(1−ᾱ) | ε | Ho et al. 2020 |
//! | x_0 | √ᾱ, √(1−ᾱ) | x_0 | |
//! | v | √ᾱ, √(1−ᾱ) | a·ε − b·x_0 | Salimans & Ho 2022 |
//! | the flow's velocity | 1−t, t | ε − x_0 | Lipman et al. 2023; Liu et al. 2023 |
//! | the denoised image at σ | 1, σ | x_0 | Karras et al. 2022 (EDM) |
//! | the score | √ᾱ, √(1−ᾱ), or 1, σ | −ε/b | Song et al. 2021 |
//!
//! Perturbation replaces ε in the **input** by ε + γξ, and leaves it in the target ([`Mode::Sampled`]). As in
//! [`perturb`](crate::perturb), rotate the draws, with s = √(1+γ²): ε + γξ = s·ε' and ε = (ε' + γζ)/s, where ζ is independent of
//! all that the network sees. A target with n·ε in it is then
//!
//! ```text
//! x·x_0 + n·ε = (x·x_0 + (n/s)·ε') + (n γ/s)·ζ
//! ```
//!
//! and the mean over ζ of the squared error is that to the term in brackets plus n²·γ²/s² = n²·c. So with c = γ²/(1+γ²) the
//! **equivalent** form asks for x·x_0 + (n/s)·ε' at the input a·x_0 + b·s·ε', and n²·c is the constant between both losses: c for
//! ε and for the velocity, a²·c for v, c/b² for the score, 0 where x_0 is asked for. A weight w(t) of the loss, as of min-SNR
//! (Hang et al. 2023), multiplies the constant as it multiplies the loss, and stays what it is without perturbation. Latents take
//! the place of x_0, and what a network is told besides (classes, text) changes nothing.
//!
//! A network that predicts F of EDM's preconditioning, D = c_skip·y + c_out·F, asks for x_0 of D: it has the row of the denoised
//! image with c_skip, c_out, c_in and λ of the unperturbed σ, whatever F is.

use crate::name::named_enum;
#[cfg(any(test, doc))]
use crate::perturb::Mode;
use crate::perturb::{Mix, Perturbation};

named_enum! {
    /// What a network is asked for; see the [module](self).
    pub enum Target as "target" {
        /// The noise ε.
        #[default]
        Epsilon = "epsilon",
        /// The image x_0; also EDM's denoised image.
        XStart = "x-start",
        /// v = a·ε − b·x_0.
        V = "v",
        /// The velocity of a straight flow, ε − x_0.
        Velocity = "velocity",
        /// The score, −ε/b.
        Score = "score",
    }
}

impl Target {
    /// What x_0 and ε are multiplied by in the target, at a signal `a` and a noise `b`.
    pub fn coefficients(self, a: f64, b: f64) -> [f64; 2] {
        match self {
            Self::Epsilon => [0.0, 1.0],
            Self::XStart => [1.0, 0.0],
            Self::V => [-b, a],
            Self::Velocity => [-1.0, 1.0],
            Self::Score => [0.0, -1.0 / b],
        }
    }
}

/// What an image's draws are multiplied by for one noise level: the network sees
/// `input[0]`·x_0 + `input[1]`·ε + `input[2]`·ξ and is to predict `target[0]`·x_0 + `target[1]`·ε. For [`Mode::Equivalent`] and
/// [`Mode::TargetScaled`] the one noise that is drawn is ε', in the place of ε.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Recipe {
    /// Coefficients of x_0, ε and ξ in the input. Where that of ξ is 0, it need not be drawn.
    pub input: [f64; 3],
    /// Coefficients of x_0 and ε in the target.
    pub target: [f64; 2],
    /// What the mean squared error must be raised by to compare with [`Mode::Sampled`], and for whatever learns from losses, as
    /// samplers of t by importance do. It has no gradient.
    pub constant: f64,
}

impl Perturbation {
    /// The recipe for a network that predicts `target` at a signal `a` and a noise `b`, for a strength `gamma`.
    ///
    /// | | input | target | constant |
    /// | --- | --- | --- | --- |
    /// | `Sampled` | a, b, bγ | x, n | 0 |
    /// | `Equivalent` | a, bs, 0 | x, n/s | n²c |
    /// | `TargetScaled` | a, bs, 0 | x, n | 0 |
    pub fn recipe(&self, target: Target, [a, b]: [f64; 2], gamma: f64) -> Recipe {
        let Mix { noise, xi, target: of_noise, constant } = self.mix(gamma);
        let [x, n] = target.coefficients(a, b);
        Recipe { input: [a, b * noise, b * xi], target: [x, n * of_noise], constant: n * n * constant }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::philox::{Domain, Stream};
    use crate::{loss_constant, noise_scale, rotate};

    const TARGETS: [Target; 5] = [Target::Epsilon, Target::XStart, Target::V, Target::Velocity, Target::Score];

    /// Signal and noise of diffusion, flow matching and EDM.
    const LEVELS: [[f64; 2]; 6] = [[0.8, 0.6], [0.28, 0.96], [0.7, 0.3], [0.1, 0.9], [1.0, 0.5], [1.0, 20.0]];

    fn with(mode: Mode) -> Perturbation {
        Perturbation { mode, ..Perturbation::default() }
    }

    fn sum(coefficients: &[f64], draws: &[f64]) -> f64 {
        coefficients.iter().zip(draws).map(|(c, d)| c * d).sum()
    }

    /// x_0 and pairs of noise.
    fn draws(count: usize) -> Vec<[f64; 3]> {
        let mut values = vec![0.0f32; 3 * count];
        Stream::new(7, Domain::Noise, 0, 0).fill_normal(&mut values);
        values.chunks_exact(3).map(|v| [f64::from(v[0]), f64::from(v[1]), f64::from(v[2])]).collect()
    }

    #[test]
    fn the_table_holds() {
        for [a, b] in LEVELS {
            for gamma in [0.0, 0.1, 0.15, 1.0] {
                let (s, c) = (noise_scale(gamma), loss_constant(gamma));
                let rows = [
                    (Target::Epsilon, [0.0, 1.0], [0.0, 1.0 / s], c),
                    (Target::XStart, [1.0, 0.0], [1.0, 0.0], 0.0),
                    (Target::V, [-b, a], [-b, a / s], a * a * c),
                    (Target::Velocity, [-1.0, 1.0], [-1.0, 1.0 / s], c),
                    (Target::Score, [0.0, -1.0 / b], [0.0, -1.0 / (b * s)], c / (b * b)),
                ];
                for (target, sampled, equivalent, constant) in rows {
                    let recipe = with(Mode::Sampled).recipe(target, [a, b], gamma);
                    assert_eq!((recipe.input, recipe.target, recipe.constant), ([a, b, b * gamma], sampled, 0.0));
                    let recipe = with(Mode::Equivalent).recipe(target, [a, b], gamma);
                    assert_eq!(recipe.input, [a, b * s, 0.0]);
                    let near = |x: f64, y: f64| (x - y).abs() <= 4.0 * f64::EPSILON * y.abs();
                    assert!(
                        near(recipe.target[0], equivalent[0]) && near(recipe.target[1], equivalent[1]),
                        "{target:?}"
                    );
                    assert!(near(recipe.constant, constant), "{target:?}");
                }
            }
        }
    }

    #[test]
    fn both_forms_show_the_same_and_differ_by_a_term_of_mean_zero_draw_by_draw() {
        let gamma = 0.3;
        let (s, answer) = (noise_scale(gamma), 0.37);
        for target in TARGETS {
            for [a, b] in LEVELS {
                let [sampled, equivalent] =
                    [Mode::Sampled, Mode::Equivalent].map(|mode| with(mode).recipe(target, [a, b], gamma));
                let [_, n] = target.coefficients(a, b);
                for [x, eps, xi] in draws(50) {
                    let (eps_prime, zeta) = rotate(eps, xi, gamma);
                    let (seen, same) = (sum(&sampled.input, &[x, eps, xi]), sum(&equivalent.input, &[x, eps_prime]));
                    assert!((seen - same).abs() < 1e-12 * (1.0 + seen.abs()), "{target:?}");
                    let [of_sampled, of_equivalent] =
                        [sum(&sampled.target, &[x, eps]), sum(&equivalent.target, &[x, eps_prime])].map(|t| t - answer);
                    let apart = of_sampled.powi(2) - of_equivalent.powi(2);
                    let expected = equivalent.constant * zeta * zeta + 2.0 * n * (gamma / s) * zeta * of_equivalent;
                    assert!((apart - expected).abs() < 1e-11 * (1.0 + apart.abs()), "{target:?}: {apart} {expected}");
                }
            }
        }
    }

    /// An answer that depends on what is seen, so that its gradient is tested, too: f = w·y, ∂L/∂w = 2 E y (f − target).
    #[test]
    fn both_forms_have_the_same_gradient_and_losses_apart_by_the_constant_on_average() {
        const COUNT: usize = 200_000;
        let (gamma, w) = (0.4, -0.3);
        let all = draws(COUNT);
        for target in TARGETS {
            for [a, b] in [[0.8, 0.6], [0.3, 0.7], [1.0, 0.5]] {
                // [loss, gradient] of each form, and their standard errors.
                let measure = |mode: Mode| {
                    let recipe = with(mode).recipe(target, [a, b], gamma);
                    let values = all.iter().map(|draws| {
                        let y = sum(&recipe.input, draws);
                        let error = w * y - sum(&recipe.target, draws);
                        [error * error + recipe.constant, 2.0 * y * error]
                    });
                    let (mut sums, mut squares) = ([0.0; 2], [0.0; 2]);
                    for value in values {
                        for i in 0..2 {
                            sums[i] += value[i];
                            squares[i] += value[i] * value[i];
                        }
                    }
                    let n = COUNT as f64;
                    [0, 1].map(|i| {
                        let mean = sums[i] / n;
                        [mean, ((squares[i] / n - mean * mean) / n).sqrt()]
                    })
                };
                for (sampled, equivalent) in measure(Mode::Sampled).into_iter().zip(measure(Mode::Equivalent)) {
                    let error = f64::hypot(sampled[1], equivalent[1]);
                    assert!((sampled[0] - equivalent[0]).abs() < 4.0 * error, "{target:?} {sampled:?} {equivalent:?}");
                }
            }
        }
    }

    #[test]
    fn without_perturbation_every_mode_is_ordinary_training() {
        for target in TARGETS {
            for mode in [Mode::Sampled, Mode::Equivalent, Mode::TargetScaled] {
                let recipe = with(mode).recipe(target, [0.8, 0.6], 0.0);
                assert_eq!(recipe.input, [0.8, 0.6, 0.0]);
                assert_eq!((recipe.target, recipe.constant), (target.coefficients(0.8, 0.6), 0.0));
            }
        }
    }
}
