//! What has a closed form is read as that: all instruments on Gaussian data, with whatever network and sampler.

use super::exact::{Case, Data, Exact, assert_within, diffusion, reverse};
use super::expected::{Joint, Normal, chains, energies, eps, norm, over_pixels, truth, x_start};
use ddpm_ip::bias::Estimate;
use ddpm_math::{Domain, Rule, Stream, Variance};

/// Asserts that all readings are what mean and covariance of the chains say.
pub(crate) fn assert_as_expected(case: &Case) {
    let Case { network, reverse: sampler, .. } = case;
    let (data, schedule) = (network.data, &network.diffusion.schedule);
    let levels = schedule.len();
    let found = case.measure();

    let (joints, _) = chains(network, sampler, levels - 1);
    let stages = sampler.rule.stages(schedule, levels - 1);
    let level = |i: usize| stages.iter().find(|stage| stage.called_at == i && stage.index == i).unwrap().level;
    let states = |i: usize| joints[i].iter().map(Joint::x).collect::<Vec<Normal>>();
    let variance = |i: usize, true_one: bool| {
        let pixels = if true_one { truth(network, level(i)) } else { states(i) };
        over_pixels(&pixels, |_, variance| variance)
    };
    // One call.
    let error = |i: usize| {
        let (level, own) = (level(i), network);
        let of_pixel = |p: usize| {
            // x̂_0 − x_0 of x_t = α x_0 + σ z.
            let eps = |x: f64| own.eps(p, x, data.modes[0][p], level.time);
            let gain = (1.0 - level.sigma() * (eps(1.0) - eps(0.0))) / level.alpha();
            let variance = data.variance[p] * (gain * level.alpha() - 1.0).powi(2) + (gain * level.sigma()).powi(2);
            let x = level.alpha() * data.modes[0][p];
            [(x - level.sigma() * eps(x)) / level.alpha() - data.modes[0][p], variance]
        };
        (0..data.len()).map(of_pixel).collect::<Vec<Normal>>()
    };
    assert_within("prediction_error", &found.prediction_error, 0.02, |i| over_pixels(&error(i), |_, v| v.sqrt()));
    assert_within("squared_error", &found.squared_error, 0.02, |i| over_pixels(&error(i), |mean, v| mean * mean + v));
    let norm_training = |i: usize| norm(&eps(network, &truth(network, level(i)), level(i).time));
    assert_within("norm_training", &found.norm_training, 0.04, norm_training);
    for (i, &gradient) in found.input_gradient.value.iter().enumerate() {
        // Pixels do not mix, so signs of directions do not matter.
        let slopes = eps(network, &vec![[0.0, 1.0]; data.len()], level(i).time);
        let expected = slopes.iter().map(|[_, square]| square).sum::<f64>().sqrt();
        assert!((gradient / expected - 1.0).abs() < 1e-5, "input_gradient {gradient}, expected {expected}");
    }
    // States of chains.
    let norm_sampling = |i: usize| norm(&eps(network, &states(i), level(i).time));
    assert_within("norm_sampling", &found.norm_sampling, 0.04, norm_sampling);
    let variance_excess = |i: usize| variance(i, false) - variance(i, true);
    assert_within("variance_excess", &found.variance_excess, 0.02, variance_excess);
    let spread = |pixels: &[Normal], i: usize| (over_pixels(pixels, |_, v| v.sqrt()) - level(i).sigma()).powi(2);
    let residuals = |i: usize| joints[i].iter().map(|j| j.residual(level(i).alpha())).collect::<Vec<Normal>>();
    let forgotten = |i: usize| {
        let of_pixel = |v: &f64| [0.0, level(i).sigma().powi(2) + 2.0 * level(i).alpha_bar * v];
        spread(&data.variance.iter().map(of_pixel).collect::<Vec<Normal>>(), i)
    };
    let excess = |i: usize| spread(&residuals(i), i) - forgotten(i);
    assert_within("variance_error_excess", &found.variance_error_excess, 0.01, excess);
    for (i, floor) in found.variance_error_floor.iter().enumerate() {
        assert!((floor - forgotten(i)).abs() < 1e-12, "floor {floor}, expected {}", forgotten(i));
        assert_eq!(found.variance_error.value[i] - floor, found.variance_error_excess.value[i]);
    }
    for band in [0, 1] {
        let ratio = |sampled: &[Normal], true_ones: &[Normal]| {
            energies(sampled, data.shape)[band] / energies(true_ones, data.shape)[band] - 1.0
        };
        let state = |i: usize| ratio(&states(i), &truth(network, level(i)));
        assert_within(["state low", "state high"][band], &found.state_energy[band], 0.06, state);
        let of_x_start = |i: usize| {
            let clean = |x: &[Normal]| x_start(network, x, level(i));
            ratio(&clean(&states(i)), &clean(&truth(network, level(i))))
        };
        assert_within(["x_start low", "x_start high"][band], &found.x_start_energy[band], 0.06, of_x_start);
    }
    let shift = |i: usize| {
        let (t, wanted) = (level(i).time, norm_sampling(i));
        let gap = |s: f64| norm(&eps(network, &truth(network, schedule.level_at(s)), t)) - wanted;
        let [mut low, mut high] = [0.0, 999.0];
        if gap(low) * gap(high) > 0.0 {
            return f64::NAN;
        }
        for _ in 0..40 {
            let middle = 0.5 * (low + high);
            if gap(low) * gap(middle) > 0.0 { low = middle } else { high = middle }
        }
        low - t
    };
    assert_within("effective_shift", &found.effective_shift, 100.0, shift);
    // Chains begun elsewhere. They end before noise is added for the next call, and what is expected is after it.
    if stages.iter().all(|stage| stage.churn.is_none()) {
        let short = |i: usize| {
            let (joints, _) = chains(network, sampler, i + 3);
            let residuals: Vec<Normal> = joints[i].iter().map(|j| j.residual(level(i).alpha())).collect();
            over_pixels(&residuals, |_, variance| variance)
        };
        let measured = (0..levels - 3).map(|i| found.short_variance.at(i)).collect();
        assert_within("short_variance", &measured, 0.02, short);
    }
    for start in &found.start {
        let index = schedule.times.iter().position(|&t| t == start.t).unwrap();
        for (rule, [value, error]) in [(Rule::Ddim { eta: 0.0 }, start.deterministic), (Rule::Ddpm, start.stochastic)] {
            let (_, end) = chains(network, &reverse(rule, &sampler.corrections.to_string()), index);
            let expected = norm(&end.iter().map(|j| j.residual(1.0)).collect::<Vec<_>>()) / (data.len() as f64).sqrt();
            let off = Estimate { value, error }.deviations_from(expected);
            assert!(off.abs() < 4.0 && error < 0.01, "from {} with {rule:?}: {value}, expected {expected}", start.t);
        }
    }
}

#[test]
fn the_best_network_is_read_as_what_follows_from_its_formula() {
    let data = Data::gaussian();
    let diffusion = diffusion("20", Variance::Learned);
    for rule in [Rule::Ddpm, Rule::Ddim { eta: 0.0 }, Rule::DpmSolver { stochastic: false }, Rule::UniPc] {
        let network = Exact::new(&data, &diffusion);
        assert_as_expected(&Case { network, reverse: reverse(rule, ""), images: 1500, seed: 3 });
    }
}

#[test]
fn a_mixture_is_read_as_fresh_images_say() {
    let data = Data::mixture();
    let diffusion = diffusion("ddim10", Variance::FixedLarge);
    let network = Exact::new(&data, &diffusion);
    let found = Case { network, reverse: reverse(Rule::Ddim { eta: 0.0 }, ""), images: 2000, seed: 6 }.measure();
    let (x_start, _) = data.draw(2000, 99);
    for (i, &time) in diffusion.schedule.times.iter().enumerate() {
        let level = diffusion.schedule.level(i);
        let (mut errors, mut gradients) = (Vec::new(), Vec::new());
        for (image, x_start) in x_start.chunks_exact(16).enumerate() {
            let mut x = vec![0.0; 16];
            Stream::new(98, Domain::Noise, image as u64, i as u32).fill_normal(&mut x);
            x.iter_mut().zip(x_start).for_each(|(x, x_0)| *x = level.alpha() as f32 * x_0 + level.sigma() as f32 * *x);
            let likely = network.likely(&x, level, None);
            let of_pixel = |p: usize| {
                let within = network.posterior_variance(p, level);
                let means = data.modes.iter().zip(&likely).map(|(mode, r)| (mode[p], r));
                let [mean, square] = means.fold([0.0; 2], |[a, b], (m, r)| [a + r * m, b + r * m * m]);
                // Of the mean of x_0 given mode and x_t, the part that depends on the mode.
                within + (square - mean * mean) * (within / data.variance[p]).powi(2)
            };
            errors.push((0..16).map(of_pixel).sum::<f64>() / 16.0);
            gradients.push(network.gradient(&x, time));
        }
        let [error, gradient] = [errors, gradients].map(|values| Estimate::mean(&values));
        let pairs = [
            (found.squared_error.at(i), error),
            (
                found.input_gradient.at(i),
                Estimate { value: gradient.value.sqrt(), error: 0.5 * gradient.error / gradient.value.sqrt() },
            ),
        ];
        for (found, fresh) in pairs {
            let off = (found.value - fresh.value) / found.error.hypot(fresh.error).max(1e-6 * fresh.value);
            assert!(off.abs() < 3.5 && found.error < 0.05 * found.value, "t = {time}: {found:?}, fresh {fresh:?}");
        }
    }
}

#[test]
fn errors_are_normal_where_the_data_is_and_are_not_between_modes() {
    let (gaussian, mixture) = (Data::gaussian(), Data::mixture());
    let diffusion = diffusion("ddim10", Variance::FixedLarge);
    let found = |data: &Data, index: usize, seed| {
        let case = Case { network: Exact::new(data, &diffusion), reverse: reverse(Rule::Ddpm, ""), images: 300, seed };
        case.with(|subject| subject.measure_states(index, subject.x_start)).not_normal[0]
    };
    let share = (0..60).map(|seed| found(&gaussian, 3, seed)).sum::<f64>() / 60.0;
    assert!((share - 0.05).abs() < 0.02, "{share}");
    let between: Vec<f64> = (0..10).map(|index| found(&mixture, index, 0)).collect();
    assert!(between[0] < 0.2 && between[5] > 0.7, "{between:?}");
}
