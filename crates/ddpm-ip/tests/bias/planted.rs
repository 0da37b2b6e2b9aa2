//! Bias that was planted is read as what it is.

use super::closed::assert_as_expected;
use super::exact::{Case, Data, Exact, diffusion, reverse};
use ddpm_math::{Bands, Churn, Domain, Rule, Stream, Variance, haar_correct};

/// States of q(x_s | x_0), with noise of their own.
fn noised(network: &Exact, x_start: &[f32], s: f64) -> Vec<f32> {
    let level = network.diffusion.schedule.level_at(s);
    let d = network.data.len();
    let mut x = vec![0.0; x_start.len()];
    for (image, (x, x_start)) in x.chunks_exact_mut(d).zip(x_start.chunks_exact(d)).enumerate() {
        Stream::new(77, Domain::Noise, image as u64, 1).fill_normal(x);
        x.iter_mut().zip(x_start).for_each(|(x, x_0)| *x = level.alpha() as f32 * x_0 + level.sigma() as f32 * *x);
    }
    x
}

#[test]
fn states_that_are_some_steps_late_or_early_are_read_as_that() {
    let data = Data::gaussian();
    let diffusion = diffusion("ddim50", Variance::FixedLarge);
    let network = Exact::new(&data, &diffusion);
    let case = Case { network, reverse: reverse(Rule::Ddpm, ""), images: 6000, seed: 1 };
    for (index, shift, most) in [(2, 5.0, 0.8), (5, 5.0, 0.8), (5, -5.0, 0.8), (10, 40.0, 2.0), (25, -60.0, 10.0)] {
        let found = case.with(|subject| {
            let t = diffusion.schedule.times[index];
            subject.measure_states(index, &noised(&network, subject.x_start, t + shift))
        });
        let found = found.effective_shift.at(0);
        assert!(found.deviations_from(shift).abs() < 3.0 && found.error < most, "{found:?}, planted {shift}");
    }
}

#[test]
fn states_that_are_no_numbers_have_no_shift() {
    let data = Data::gaussian();
    let diffusion = diffusion("ddim50", Variance::FixedLarge);
    let network = Exact::new(&data, &diffusion);
    let case = Case { network, reverse: reverse(Rule::Ddpm, ""), images: 300, seed: 1 };
    let found = case.with(|subject| subject.measure_states(5, &vec![f32::NAN; subject.x_start.len()]));
    assert!(found.effective_shift.value[0].is_nan() && found.norm_training.value[0] > 0.0);
}

#[test]
fn a_scaled_band_is_read_as_that_one_alone() {
    let data = Data::gaussian();
    let diffusion = diffusion("ddim50", Variance::FixedLarge);
    let network = Exact::new(&data, &diffusion);
    let case = Case { network, reverse: reverse(Rule::Ddpm, ""), images: 300, seed: 1 };
    case.with(|subject| {
        let plain = noised(&network, subject.x_start, 200.0);
        let energies = |lambda: Bands<f32>| {
            let mut x = plain.clone();
            x.chunks_exact_mut(16).for_each(|x| haar_correct(x, &[0.0; 16], 4, 4, lambda));
            let found = subject.measure_states(10, &x);
            found.state_energy.map(|band| 1.0 + band.value[0])
        };
        let [low, high] = energies(Bands { low: 0.0, high: 0.0 });
        for lambda in [0.1_f32, -0.2] {
            let square = f64::from(1.0 + lambda).powi(2);
            for (bands, expected) in [
                (Bands { low: lambda, high: 0.0 }, [low * square, high]),
                (Bands { low: 0.0, high: lambda }, [low, high * square]),
            ] {
                let found = energies(bands);
                let near = |(a, b): (f64, f64)| (a / b - 1.0).abs() < 1e-6;
                assert!(found.into_iter().zip(expected).all(near), "{bands:?}: {found:?}, expected {expected:?}");
            }
        }
    });
}

#[test]
fn a_wrong_network_biases_its_chains_as_its_formula_says() {
    let data = Data::gaussian();
    let learned = diffusion("20", Variance::Learned);
    let fixed = diffusion("20", Variance::FixedLarge);
    let scaled = |diffusion| Exact { scale: 1.02, ..Exact::new(&data, diffusion) };
    let late = |diffusion| Exact { shift: 5.0, ..Exact::new(&data, diffusion) };
    let churn = Churn { amount: 4.0, least: 0.0, most: 0.0 };
    for (network, rule) in [
        (scaled(&learned), Rule::Ddpm),
        (late(&learned), Rule::Ddpm),
        (scaled(&fixed), Rule::Ddim { eta: 0.0 }),
        (late(&fixed), Rule::Ddim { eta: 0.5 }),
        (scaled(&fixed), Rule::DpmSolver { stochastic: false }),
        (late(&fixed), Rule::DpmSolver { stochastic: true }),
        (scaled(&fixed), Rule::UniPc),
        (scaled(&fixed), Rule::Heun(Churn::default())),
        (scaled(&fixed), Rule::Heun(churn)),
    ] {
        assert_as_expected(&Case { network, reverse: reverse(rule, ""), images: 1000, seed: 5 });
    }
}
