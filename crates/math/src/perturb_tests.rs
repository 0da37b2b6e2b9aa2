use proptest::prelude::*;

use super::*;
use crate::beta::NoiseSchedule;
use crate::philox::{Domain, Stream};
use crate::respace::Respacing;

const GAMMAS: [f64; 6] = [0.0, 0.05, 0.1, 0.15, 0.2, 1.5];

/// Draws for one image, and a stand-in for the network: a vector f that depends on y_t alone, here on nothing at all, so
/// that it can be the same for every loss that shares y_t.
struct Draws {
    eps: Vec<f64>,
    xi: Vec<f64>,
    f: Vec<f64>,
}

impl Draws {
    const LENGTH: usize = 3 * 8 * 8;

    fn new(index: u64) -> Self {
        let draw = |domain| {
            let mut stream = Stream::new(17, domain, index, 0);
            (0..Self::LENGTH).map(|_| f64::from(stream.normal())).collect()
        };
        Self { eps: draw(Domain::Noise), xi: draw(Domain::Perturbation), f: draw(Domain::Init) }
    }

    /// ε' and ζ.
    fn rotated(&self, gamma: f64) -> (Vec<f64>, Vec<f64>) {
        self.eps.iter().zip(&self.xi).map(|(&eps, &xi)| rotate(eps, xi, gamma)).unzip()
    }
}

fn schedule(steps: usize) -> Schedule {
    Schedule::new(NoiseSchedule::Cosine, steps, &Respacing::Full).unwrap()
}

fn perturbation(mode: Mode) -> Perturbation {
    Perturbation { mode, ..Perturbation::default() }
}

/// The noise part of y_t, in units of β̄_t.
fn input_noise(mix: Mix, eps: &[f64], xi: &[f64]) -> Vec<f64> {
    eps.iter().zip(xi).map(|(eps, xi)| mix.noise * eps + mix.xi * xi).collect()
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let n = values.len() as f64;
    values.sum::<f64>() / n
}

/// mean ‖target·ε − f‖².
fn loss(mix: Mix, eps: &[f64], f: &[f64]) -> f64 {
    mean(eps.iter().zip(f).map(|(eps, f)| (mix.target * eps - f).powi(2)))
}

/// The gradient of [`loss`] with respect to f.
fn gradient(mix: Mix, eps: &[f64], f: &[f64]) -> Vec<f64> {
    let n = f.len() as f64;
    eps.iter().zip(f).map(|(eps, f)| -2.0 * (mix.target * eps - f) / n).collect()
}

fn assert_close(actual: f64, expected: f64, tolerance: f64) {
    assert!((actual - expected).abs() <= tolerance, "{actual} is not {expected}");
}

#[test]
fn a_the_rotation_inverts() {
    let draws = Draws::new(0);
    for gamma in GAMMAS {
        for (&eps, &xi) in draws.eps.iter().zip(&draws.xi) {
            let (eps_prime, zeta) = rotate(eps, xi, gamma);
            let (eps_again, xi_again) = unrotate(eps_prime, zeta, gamma);
            assert_close(eps_again, eps, 1e-12);
            assert_close(xi_again, xi, 1e-12);
            assert_close(eps_prime.hypot(zeta), eps.hypot(xi), 1e-12);
        }
    }
}

#[test]
fn a_the_constants_have_their_published_values() {
    for (gamma, c) in [(0.05, 0.002494), (0.1, 0.009901), (0.15, 0.022005), (0.2, 0.038462)] {
        assert_close(loss_constant(gamma), c, 5e-7);
        assert_eq!(perturbation(Mode::Equivalent).mix(gamma).constant, loss_constant(gamma));
    }
}

#[test]
fn b_all_modes_show_the_network_the_same_input() {
    for (index, gamma) in GAMMAS.into_iter().enumerate() {
        let draws = Draws::new(index as u64);
        let (eps_prime, zeta) = draws.rotated(gamma);
        let sampled = input_noise(perturbation(Mode::Sampled).mix(gamma), &draws.eps, &draws.xi);
        for mode in [Mode::Equivalent, Mode::TargetScaled] {
            // ζ stands where ξ would: its coefficient must be 0.
            let rotated = input_noise(perturbation(mode).mix(gamma), &eps_prime, &zeta);
            for (a, b) in sampled.iter().zip(&rotated) {
                assert_close(*a, *b, 1e-12);
            }
        }
    }
}

#[test]
fn c_the_losses_differ_pathwise_by_the_stated_terms() {
    for (index, gamma) in GAMMAS.into_iter().enumerate() {
        let draws = Draws::new(index as u64);
        let (eps_prime, zeta) = draws.rotated(gamma);
        let sampled = loss(perturbation(Mode::Sampled).mix(gamma), &draws.eps, &draws.f);
        let equivalent = loss(perturbation(Mode::Equivalent).mix(gamma), &eps_prime, &draws.f);
        // s and c from their definitions, not from the code under test.
        let s = (1.0 + gamma * gamma).sqrt();
        let c = gamma * gamma / (1.0 + gamma * gamma);
        let mean_square = mean(zeta.iter().map(|z| z * z));
        let cross = mean(zeta.iter().zip(&eps_prime).zip(&draws.f).map(|((z, e), f)| z * (e / s - f)));
        assert_close(sampled - equivalent, c * mean_square + 2.0 * (gamma / s) * cross, 1e-12);
    }
}

#[test]
fn d_averaging_over_opposite_zetas_leaves_the_equivalent_loss_and_exactly_its_gradient() {
    for (index, gamma) in GAMMAS.into_iter().enumerate() {
        let draws = Draws::new(100 + index as u64);
        let (eps_prime, zeta) = draws.rotated(gamma);
        let sampled_mix = perturbation(Mode::Sampled).mix(gamma);
        let equivalent_mix = perturbation(Mode::Equivalent).mix(gamma);
        let c = gamma * gamma / (1.0 + gamma * gamma);

        // The mirrored draw has the same ε', hence the same y_t and f, and the opposite ζ.
        let (mirrored_eps, mirrored_xi): (Vec<f64>, Vec<f64>) =
            eps_prime.iter().zip(&zeta).map(|(&e, &z)| unrotate(e, -z, gamma)).unzip();
        let (input, mirrored_input) =
            (input_noise(sampled_mix, &draws.eps, &draws.xi), input_noise(sampled_mix, &mirrored_eps, &mirrored_xi));
        for (a, b) in input.iter().zip(&mirrored_input) {
            assert_close(*a, *b, 1e-12);
        }

        let averaged = |f: &[f64]| 0.5 * (loss(sampled_mix, &draws.eps, f) + loss(sampled_mix, &mirrored_eps, f));
        let equivalent = |f: &[f64]| loss(equivalent_mix, &eps_prime, f);
        let mean_square = mean(zeta.iter().map(|z| z * z));
        assert_close(averaged(&draws.f), equivalent(&draws.f) + c * mean_square, 1e-12);

        let one = gradient(sampled_mix, &draws.eps, &draws.f);
        let other = gradient(sampled_mix, &mirrored_eps, &draws.f);
        let expected = gradient(equivalent_mix, &eps_prime, &draws.f);
        for k in 0..Draws::LENGTH {
            assert_close(0.5 * (one[k] + other[k]), expected[k], 1e-15);
        }
        // The analytic gradients are those of the losses: both are quadratic, so central differences are exact.
        for k in [0, 7, Draws::LENGTH - 1] {
            let difference = |loss: &dyn Fn(&[f64]) -> f64| {
                let (mut up, mut down) = (draws.f.clone(), draws.f.clone());
                up[k] += 0.5;
                down[k] -= 0.5;
                loss(&up) - loss(&down)
            };
            assert_close(difference(&averaged), expected[k], 1e-12);
            assert_close(difference(&equivalent), expected[k], 1e-12);
        }
    }
}

#[test]
fn e_without_strength_every_mode_is_ordinary_training_bit_for_bit() {
    let plain = Mix { noise: 1.0, xi: 0.0, target: 1.0, constant: 0.0 };
    let draws = Draws::new(9);
    for &mode in Mode::ALL {
        let mix = perturbation(mode).mix(0.0);
        assert_eq!(mix, plain);
        assert_eq!(input_noise(mix, &draws.eps, &draws.xi), draws.eps);
        assert_eq!(loss(mix, &draws.eps, &draws.f), loss(plain, &draws.eps, &draws.f));
    }
}

#[test]
fn the_sampled_loss_averages_to_the_equivalent_one_plus_its_constant() {
    let gamma = 0.2;
    let draws = Draws::new(3);
    let (eps_prime, _) = draws.rotated(gamma);
    let mut stream = Stream::new(4, Domain::Perturbation, 0, 0);
    let rounds = 4000;
    let total: f64 = (0..rounds)
        .map(|_| {
            let eps: Vec<f64> = eps_prime.iter().map(|&e| unrotate(e, f64::from(stream.normal()), gamma).0).collect();
            loss(perturbation(Mode::Sampled).mix(gamma), &eps, &draws.f)
        })
        .sum();
    let mix = perturbation(Mode::Equivalent).mix(gamma);
    // The standard error is about 2 (γ/s) rms(ε'/s − f) / √(192 · 4000) ≈ 6e-4.
    assert_close(total / f64::from(rounds), loss(mix, &eps_prime, &draws.f) + mix.constant, 3e-3);
}

#[test]
fn target_scaling_asks_for_the_rotated_noise() {
    assert_eq!(perturbation(Mode::TargetScaled).mix(0.75), Mix { noise: 1.25, xi: 0.0, target: 1.0, constant: 0.0 });
    let equivalent = Mix { noise: 1.25, xi: 0.0, target: 0.8, constant: 0.36 };
    let mix = perturbation(Mode::Equivalent).mix(0.75);
    assert_eq!((mix.noise, mix.xi, mix.target), (equivalent.noise, equivalent.xi, equivalent.target));
    assert_close(mix.constant, equivalent.constant, 1e-15);
}

#[test]
fn strengths_follow_their_formulas() {
    let base = Perturbation { gamma: 0.2, gamma_start: 0.1, decay_steps: 100, ..Perturbation::default() };
    let schedule = schedule(1001);
    let gamma = |strength, t, train_step, u| Perturbation { strength, ..base }.gamma_for(t, &schedule, train_step, u);
    assert_eq!(gamma(Strength::Constant, 900, 50, 0.3), 0.2);
    for (t, expected) in [(0, 0.1), (250, 0.125), (500, 0.15), (1000, 0.2)] {
        assert_close(gamma(Strength::Linear, t, 50, 0.3), expected, 1e-15);
    }
    let quarter = 0.1 + 0.1 * 0.5 * (1.0 - std::f64::consts::FRAC_1_SQRT_2);
    for (t, expected) in [(0, 0.1), (250, quarter), (500, 0.15), (1000, 0.2)] {
        assert_close(gamma(Strength::Cosine, t, 50, 0.3), expected, 1e-15);
    }
    assert_eq!(gamma(Strength::Linear, 0, 0, 0.0), 0.1);
    assert_eq!((gamma(Strength::Linear, 1000, 0, 0.0), gamma(Strength::Cosine, 1000, 0, 0.0)), (0.2, 0.2));
    assert_eq!(gamma(Strength::Uniform, 900, 50, 0.25), 0.05);
    for (train_step, expected) in [(0, 0.2), (25, 0.15), (100, 0.0), (u64::MAX, 0.0)] {
        assert_close(gamma(Strength::Decay, 900, train_step, 0.3), expected, 1e-15);
    }
    for (u, expected) in [(0.0, 0.2), (0.79, 0.2), (0.8, 0.0), (0.99, 0.0)] {
        assert_eq!(gamma(Strength::Switched, 900, 50, u), expected);
    }
}

#[test]
fn an_image_is_perturbed_as_often_as_its_probability_says() {
    let count = 20_000;
    for probability in [0.0, 0.3, 0.8, 1.0] {
        let rule = Perturbation { strength: Strength::Switched, gamma: 0.2, probability, ..Perturbation::default() };
        let on = (0..count)
            .filter(|&i| rule.gamma_for(3, &schedule(20), 0, Stream::new(5, Domain::Gamma, i, 0).uniform()) == 0.2)
            .count();
        let deviation = (probability * (1.0 - probability) / count as f64).sqrt();
        assert_close(on as f64 / count as f64, probability, 4.0 * deviation);
    }
}

#[test]
fn strengths_that_are_not_scaled_are_deviations_of_the_added_noise() {
    let schedule = schedule(101);
    for &strength in Strength::ALL {
        let scaled = Perturbation { strength, gamma: 0.3, gamma_start: 0.1, decay_steps: 9, ..Perturbation::default() };
        for t in [0, 40, 100] {
            let [deviation, gamma] =
                [true, false].map(|scaled_| Perturbation { scaled: scaled_, ..scaled }.gamma_for(t, &schedule, 3, 0.4));
            assert!(gamma > 0.0);
            assert_close(gamma * (1.0 - schedule.alpha_bar[t]).sqrt(), deviation, 1e-15);
        }
    }
}

#[test]
fn the_cutoff_ends_ramps_and_nothing_else() {
    let at = |strength, t| {
        Perturbation { gamma: 0.2, gamma_start: 0.1, cutoff: 0.5, strength, decay_steps: 9, ..Perturbation::default() }
            .gamma_for(t, &schedule(101), 0, 0.5)
    };
    for strength in [Strength::Linear, Strength::Cosine] {
        assert!(at(strength, 50) > 0.0);
        assert_eq!(at(strength, 51), 0.0);
    }
    for strength in [Strength::Constant, Strength::Uniform, Strength::Decay, Strength::Switched] {
        assert!(at(strength, 100) > 0.0);
    }
}

#[test]
fn degenerate_sizes_give_finite_strengths() {
    for &strength in Strength::ALL {
        for scaled in [true, false] {
            let perturbation = Perturbation { strength, gamma: 0.3, scaled, ..Perturbation::default() };
            assert!(perturbation.gamma_for(0, &schedule(1), 0, 0.5).is_finite());
        }
    }
}

#[test]
fn invalid_configurations_are_refused_with_advice() {
    let default = Perturbation::default();
    assert_eq!(default.validate(), Ok(()));
    for value in [-0.1, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        for broken in [Perturbation { gamma: value, ..default }, Perturbation { gamma_start: value, ..default }] {
            assert!(matches!(broken.validate(), Err(PerturbationError::Strength { .. })));
        }
    }
    for cutoff in [-0.1, 1.1, f64::NAN] {
        assert!(matches!(Perturbation { cutoff, ..default }.validate(), Err(PerturbationError::Cutoff { .. })));
    }
    for probability in [-0.1, 1.1, f64::NAN] {
        let broken = Perturbation { probability, ..default };
        assert!(matches!(broken.validate(), Err(PerturbationError::Probability { .. })));
    }
    assert_eq!(
        Perturbation { gamma: -0.1, ..default }.validate().unwrap_err().to_string(),
        "the perturbation's gamma is -0.1: it must be 0 or a positive number, such as 0.1"
    );
    let decay = Perturbation { strength: Strength::Decay, ..default };
    assert_eq!(decay.validate(), Err(PerturbationError::NoDecaySteps));
    assert_eq!(Perturbation { decay_steps: 1, ..decay }.validate(), Ok(()));
}

#[test]
fn configuration_reads_with_defaults_and_refuses_what_it_does_not_know() {
    let read = |json: &str| serde_json::from_str::<Perturbation>(json);
    assert_eq!(read("{}").unwrap(), Perturbation::default());
    // As files were before there were `probability` and `scaled`.
    let old = r#"{"mode":"sampled","gamma":0,"gamma_start":0,"strength":"constant","cutoff":1,"decay_steps":0}"#;
    assert_eq!(read(old).unwrap(), Perturbation::default());
    let expected = Perturbation { mode: Mode::TargetScaled, gamma: 0.1, ..Perturbation::default() };
    assert_eq!(read(r#"{"gamma": 0.1, "mode": "target-scaled"}"#).unwrap(), expected);
    assert_eq!(read(&serde_json::to_string(&expected).unwrap()).unwrap(), expected);
    assert!(read(r#"{"gama": 0.1}"#).unwrap_err().to_string().contains("gama"));
}

proptest! {
    #[test]
    fn the_rotation_is_orthogonal_and_its_own_inverse(eps in -5.0..5.0, xi in -5.0..5.0, gamma in 0.0..100.0) {
        let (eps_prime, zeta) = rotate(eps, xi, gamma);
        prop_assert!((eps_prime.hypot(zeta) - f64::hypot(eps, xi)).abs() < 1e-9);
        let (eps_again, xi_again) = unrotate(eps_prime, zeta, gamma);
        prop_assert!((eps_again - eps).abs() < 1e-6 && (xi_again - xi).abs() < 1e-6);
    }

    #[test]
    fn mixes_are_finite_for_any_valid_strength(gamma in 0.0..f64::MAX) {
        for &mode in Mode::ALL {
            let mix = Perturbation { mode, ..Perturbation::default() }.mix(gamma);
            prop_assert!([mix.noise, mix.xi, mix.target, mix.constant].iter().all(|v| v.is_finite() && *v >= 0.0));
        }
    }
}
