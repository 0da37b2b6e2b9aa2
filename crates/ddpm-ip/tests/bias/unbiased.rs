//! Without bias the instruments read zero.

use super::exact::{Case, Data, Exact, assert_within, deviations, diffusion, log_snr, reverse, rms};
use ddpm_ip::bias::{Curve, Estimate, Readings};
use ddpm_math::{Churn, Rule, Variance};

/// The sampled norm less the one on true states.
fn norm_excess(readings: &Readings) -> Curve {
    let pairs = (0..readings.t.len()).map(|i| (readings.norm_sampling.at(i), readings.norm_training.at(i)));
    pairs.map(|(s, t)| Estimate { value: s.value - t.value, error: s.error.hypot(t.error) }).collect()
}

/// All that is zero without bias, and how well 1000 images tell it.
fn excesses(readings: &Readings) -> [(&'static str, Curve, f64); 9] {
    let Readings { state_energy: [state_low, state_high], x_start_energy: [low, high], .. } = readings.clone();
    [
        ("variance_error_excess", readings.variance_error_excess.clone(), 0.005),
        ("variance_excess", readings.variance_excess.clone(), 0.02),
        ("short_variance_excess", readings.short_variance_excess.clone(), 0.02),
        ("norm", norm_excess(readings), 0.04),
        ("effective_shift", readings.effective_shift.clone(), 100.0),
        ("state_energy low", state_low, 0.04),
        ("state_energy high", state_high, 0.03),
        ("x_start_energy low", low, 0.04),
        ("x_start_energy high", high, 0.03),
    ]
}

fn assert_unbiased(case: &Case) {
    let readings = case.measure();
    for (name, curve, error) in excesses(&readings) {
        if name != "short_variance_excess" || is_ancestral(case.reverse.rule) {
            let error = error * (1000.0 / case.images as f64).sqrt();
            assert_within(&format!("{:?}: {name}", case.reverse.rule), &curve, error, |_| 0.0);
        } else {
            assert!(curve.value.iter().all(|value| value.is_nan()), "{curve:?}");
        }
    }
}

/// Whether short chains have a floor.
fn is_ancestral(rule: Rule) -> bool {
    matches!(rule, Rule::Ddpm | Rule::DpmSolver { stochastic: true })
}

#[test]
fn ancestral_sampling_with_the_best_mean_and_variance_has_no_bias() {
    // Exact on Gaussian data, with any number of steps.
    let (data, diffusion) = (Data::gaussian(), diffusion("40", Variance::Learned));
    let network = Exact::new(&data, &diffusion);
    assert_unbiased(&Case { network, reverse: reverse(Rule::Ddpm, ""), images: 1000, seed: 1 });
}

#[test]
fn samplers_that_take_many_steps_have_no_bias() {
    let data = Data::gaussian();
    // Enough of them for what they miss of the process to be below the errors.
    for (rule, diffusion, images) in [
        (Rule::Ddpm, diffusion("250", Variance::FixedLarge), 300),
        (Rule::Ddim { eta: 0.0 }, diffusion("250", Variance::FixedLarge), 300),
        (Rule::DpmSolver { stochastic: false }, log_snr(40), 1000),
        (Rule::DpmSolver { stochastic: true }, log_snr(60), 500),
        (Rule::UniPc, log_snr(40), 1000),
        (Rule::Heun(Churn::default()), log_snr(40), 1000),
        (Rule::Heun(Churn { amount: 10.0, least: 0.0, most: 0.0 }), log_snr(60), 500),
    ] {
        assert_unbiased(&Case { network: Exact::new(&data, &diffusion), reverse: reverse(rule, ""), images, seed: 1 });
    }
}

#[test]
fn classes_with_means_of_their_own_are_no_bias() {
    let (data, diffusion) = (Data::mixture(), diffusion("20", Variance::Learned));
    let network = Exact { labelled: true, ..Exact::new(&data, &diffusion) };
    assert_unbiased(&Case { network, reverse: reverse(Rule::Ddpm, ""), images: 1000, seed: 2 });
}

#[test]
fn errors_are_as_large_as_readings_differ_from_seed_to_seed() {
    let (data, diffusion) = (Data::gaussian(), diffusion("8", Variance::Learned));
    let network = Exact::new(&data, &diffusion);
    let mut off: [Vec<f64>; 9] = Default::default();
    for seed in 0..40 {
        let readings = Case { network, reverse: reverse(Rule::Ddpm, ""), images: 200, seed }.measure();
        for (off, (_, curve, _)) in off.iter_mut().zip(excesses(&readings)) {
            off.extend(deviations(&curve, |_| 0.0));
        }
    }
    let rms = off.map(|off| rms(&off));
    // Errors of squares and of shifts are upper bounds.
    for (i, rms) in rms.into_iter().enumerate() {
        assert!(rms < 1.2 && rms > if i == 0 || i == 4 { 0.5 } else { 0.85 }, "{i}: {rms}");
    }
}
