//! Corrections as the instruments see them.

use super::closed::assert_as_expected;
use super::exact::{Case, Data, Exact, assert_within, diffusion, reverse};
use super::expected::{Joint, chains, eps, norm, truth};
use ddpm_ip::bias::{ScaleError, find_scale};
use ddpm_ip::sample::{Chain, Seeded, Subjects};
use ddpm_math::{Rule, Variance};

#[test]
fn corrected_chains_are_read_as_the_network_sees_their_states_without_the_correction() {
    let data = Data::gaussian();
    let diffusion = diffusion("ddim20", Variance::FixedLarge);
    let network = Exact::new(&data, &diffusion);
    for corrections in ["es:1.03", "shift:15", "ideal-ip:0.3", "es-linear:0.002,1"] {
        let reverse = reverse(Rule::Ddim { eta: 0.0 }, corrections);
        assert_as_expected(&Case { network, reverse, images: 1000, seed: 8 });
    }
}

#[test]
fn scaling_takes_back_what_the_network_scales() {
    let data = Data::gaussian();
    let diffusion = diffusion("40", Variance::Learned);
    let network = Exact { scale: 1.02, ..Exact::new(&data, &diffusion) };
    let found =
        |corrections| Case { network, reverse: reverse(Rule::Ddpm, corrections), images: 3000, seed: 9 }.measure();
    let corrected = found("es:1.02");
    assert_within("variance_excess", &corrected.variance_excess, 0.02, |_| 0.0);
    assert_within("norm", &corrected.norm_sampling, 0.04, |i| {
        norm(&eps(&network, &truth(&network, diffusion.schedule.level(i)), diffusion.schedule.times[i]))
    });
    let plain = found("").variance_excess;
    let off: Vec<f64> = (10..18).map(|i| plain.at(i).deviations_from(0.0)).collect();
    assert!(off.iter().all(|off| off.abs() > 5.0), "{off:?}");
}

/// The norms of ε in training, as they are.
fn training(network: &Exact) -> Vec<f64> {
    let schedule = &network.diffusion.schedule;
    (0..schedule.len()).map(|i| norm(&eps(network, &truth(network, schedule.level(i)), schedule.times[i]))).collect()
}

fn scale(network: &Exact, rule: Rule, training: &[f64]) -> Result<f64, ScaleError> {
    let images: Vec<u64> = (0..3000).collect();
    let subjects = Subjects { images: &images, labels: None, low_res: None, draws: &Seeded(4) };
    let reverse = reverse(rule, "");
    let Exact { data, diffusion, .. } = *network;
    let chain = Chain { diffusion, network, reverse: &reverse, guide: None, guidance: None, shape: data.shape };
    find_scale(&chain, &[subjects], training, &mut || true)
}

#[test]
fn the_scale_that_is_found_is_the_one_that_was_planted() {
    let data = Data::gaussian();
    for (rule, respacing, variance) in
        [(Rule::Ddpm, "40", Variance::Learned), (Rule::DpmSolver { stochastic: false }, "50", Variance::FixedLarge)]
    {
        let diffusion = diffusion(respacing, variance);
        for planted in [1.0, 1.02, 0.97] {
            let network = Exact { scale: planted, ..Exact::new(&data, &diffusion) };
            let found = scale(&network, rule, &training(&network)).unwrap();
            assert!((found - planted).abs() < 0.003, "{rule:?}: {found}, planted {planted}");
        }
    }
}

#[test]
fn without_such_a_scale_the_gaps_at_both_ends_are_told() {
    let data = Data::gaussian();
    let diffusion = diffusion("40", Variance::Learned);
    let network = Exact::new(&data, &diffusion);
    let tripled: Vec<f64> = training(&network).into_iter().map(|norm| 3.0 * norm).collect();
    let error = scale(&network, Rule::Ddpm, &tripled).unwrap_err();
    let ScaleError::NoRoot(found) = error else { panic!("{error}") };
    for (found, b) in found.into_iter().zip(["es:0.95", "es:1.1"]) {
        let (joints, _) = chains(&network, &reverse(Rule::Ddpm, b), diffusion.schedule.len() - 1);
        let gap = |(i, wanted): (usize, &f64)| {
            let states: Vec<_> = joints[i].iter().map(Joint::x).collect();
            (norm(&eps(&network, &states, diffusion.schedule.times[i])) / wanted).ln()
        };
        let expected = tripled.iter().enumerate().map(gap).sum::<f64>() / tripled.len() as f64;
        assert!((found - expected).abs() < 0.005, "{b}: {found}, expected {expected}");
        assert!(error.to_string().contains(&format!("{found:.4}")), "{error}");
    }
}

/// Where chains from index `first` end.
fn ends(network: &Exact, rule: Rule, corrections: &str) -> Vec<f32> {
    let Exact { data, diffusion, .. } = *network;
    let reverse = reverse(rule, corrections);
    let chain = Chain { diffusion, network, reverse: &reverse, guide: None, guidance: None, shape: data.shape };
    let images: Vec<u64> = (0..50).collect();
    let subjects = Subjects { images: &images, labels: None, low_res: None, draws: &Seeded(2) };
    chain.run(subjects, |_, _, _| true).unwrap()
}

#[test]
fn ideal_input_perturbation_samples_as_the_best_network_that_was_trained_with_it() {
    // No level whose perturbed one lies beyond the last timestep.
    let diffusion = diffusion("ddim50", Variance::FixedLarge);
    for data in [Data::gaussian(), Data::mixture()] {
        let plain = Exact::new(&data, &diffusion);
        for gamma in [0.1, 0.2] {
            let trained = Exact { s: f64::hypot(1.0, gamma), ..plain };
            for rule in [Rule::Ddpm, Rule::Ddim { eta: 0.0 }, Rule::UniPc] {
                let corrected = ends(&plain, rule, &format!("ideal-ip:{gamma}"));
                let off =
                    |ends: &[f32]| corrected.iter().zip(ends).fold(0.0, |most, (a, b)| f32::max(most, (a - b).abs()));
                let (same, different) = (off(&ends(&trained, rule, "")), off(&ends(&plain, rule, "")));
                assert!(
                    same < 3e-6 && different > 1e-3,
                    "{rule:?}, {gamma}: {same} from the trained one, {different} else"
                );
            }
        }
    }
}
