use super::*;
use crate::beta::NoiseSchedule;
use crate::respace::Respacing;

const DDIM: Rule = Rule::Ddim { eta: 0.0 };

fn schedule() -> Schedule {
    Schedule::new(NoiseSchedule::Linear, 1000, &"ddim50".parse().unwrap()).unwrap()
}

fn assert_close(actual: f64, expected: f64) {
    assert!((actual - expected).abs() <= 1e-9 * expected.abs().max(1.0), "{actual} is not {expected}");
}

fn noised(s: &Schedule, i: usize, x_start: f64, eps: f64) -> f64 {
    s.sqrt_alpha_bar[i] * x_start + s.sqrt_one_minus_alpha_bar[i] * eps
}

fn unguided(step: &ReverseStep<f64>, x: f64, prediction: f64, values: f64, noise: f64) -> (f64, f64) {
    step.step(x, prediction, values, f64::NAN, false, noise)
}

#[test]
fn a_right_answer_gives_the_clean_pixel_and_the_posteriors_mean() {
    let s = schedule();
    let (x_start, eps) = (0.7, -1.3);
    for &prediction in Prediction::ALL {
        for i in 0..s.len() {
            let reading = Reading::<f64>::new(&s, prediction, Variance::FixedSmall, i);
            let x = noised(&s, i, x_start, eps);
            let m = reading.moments(x, reading.target(x_start, x, eps), f64::NAN, true);
            assert_close(m.x_start, x_start);
            assert_close(m.mean, s.posterior_mean_coef1[i] * x_start + s.posterior_mean_coef2[i] * x);
            assert_close(reading.eps(x_start, x), eps);
        }
    }
}

#[test]
fn each_variance_is_read_as_it_is_meant() {
    let s = schedule();
    for i in [0, 1, 25, 49] {
        let at = |variance, values| {
            Reading::<f64>::new(&s, Prediction::Epsilon, variance, i).moments(0.1, 0.2, values, false).log_variance
        };
        let (least, greatest) = (s.posterior_log_variance_clipped[i], libm::log(s.betas[i]));
        assert_eq!(at(Variance::FixedSmall, 9.0), least);
        assert_eq!(at(Variance::FixedLarge, 9.0), if i == 0 { least } else { greatest });
        assert_eq!(at(Variance::Learned, -3.5), -3.5);
        // From −1 to 1, and on beyond.
        assert_close(at(Variance::LearnedRange, -1.0), least);
        assert_close(at(Variance::LearnedRange, 1.0), greatest);
        assert_close(at(Variance::LearnedRange, 3.0), 2.0 * greatest - least);
    }
}

#[test]
fn clipping_keeps_the_clean_pixel_in_range() {
    let s = schedule();
    for (prediction, expected) in [(3.0, 1.0), (-3.0, -1.0), (0.5, 0.5)] {
        let reading = Reading::<f64>::new(&s, Prediction::XStart, Variance::FixedLarge, 20);
        let m = reading.moments(0.3, prediction, 0.0, true);
        assert_eq!((m.x_start, m.mean), (expected, reading.posterior_mean(expected, 0.3)));
        assert_eq!(reading.moments(0.3, prediction, 0.0, false).x_start, prediction);
        // A mean that is predicted itself stays.
        let previous = Reading::<f64>::new(&s, Prediction::PreviousX, Variance::FixedLarge, 20);
        assert_eq!(previous.moments(0.3, 3.0, 0.0, true).mean, 3.0);
    }
}

#[test]
fn noise_is_added_by_every_step_but_the_last_unless_ddim_is_deterministic() {
    let s = schedule();
    let draws = |rule, i| {
        let step = ReverseStep::<f64>::new(&s, Prediction::Epsilon, Variance::LearnedRange, rule, true, i);
        let next = |noise| unguided(&step, 0.3, 0.2, 0.1, noise).0;
        assert_eq!(step.draws(), next(1.0) != next(0.0));
        assert_eq!(step.draws(), next(f64::NAN).is_nan());
        step.draws()
    };
    let noisy = Rule::Ddim { eta: 0.5 };
    assert!(!draws(Rule::Ddpm, 0) && !draws(DDIM, 0) && !draws(noisy, 0));
    assert!(draws(Rule::Ddpm, 1) && !draws(DDIM, 1) && draws(noisy, 1));
}

#[test]
fn ddpm_adds_noise_of_its_deviation_to_its_mean() {
    let s = schedule();
    for &variance in Variance::ALL {
        let reading = Reading::<f64>::new(&s, Prediction::Epsilon, variance, 30);
        let step = ReverseStep::new(&s, Prediction::Epsilon, variance, Rule::Ddpm, true, 30);
        let m = reading.moments(0.4, 0.6, -0.2, true);
        let (next, x_start) = unguided(&step, 0.4, 0.6, -0.2, -1.5);
        assert_close(next, m.mean - 1.5 * m.log_variance.exp().sqrt());
        assert_eq!(x_start, m.x_start);
    }
}

#[test]
fn ddim_at_eta_one_is_ddpm_with_the_posteriors_variance() {
    let s = schedule();
    for &prediction in Prediction::ALL {
        // A mean that is predicted does not follow the clipped x̂_0, so there is nothing to compare.
        for clip in [false, prediction != Prediction::PreviousX] {
            for i in 0..s.len() {
                let [ddpm, ddim] = [Rule::Ddpm, Rule::Ddim { eta: 1.0 }]
                    .map(|rule| ReverseStep::<f64>::new(&s, prediction, Variance::FixedSmall, rule, clip, i));
                for noise in [0.0, 1.7] {
                    let (expected, x_start) = unguided(&ddpm, 0.4, 0.9, 0.0, noise);
                    let actual = unguided(&ddim, 0.4, 0.9, 0.0, noise);
                    assert_close(actual.0, expected);
                    assert_eq!(actual.1, x_start);
                }
            }
        }
    }
}

#[test]
fn deterministic_ddim_with_right_answers_follows_the_noise() {
    let s = schedule();
    let (x_start, eps) = (-0.4, 0.8);
    for &prediction in Prediction::ALL {
        for i in 1..s.len() {
            let x = noised(&s, i, x_start, eps);
            let answer = Reading::<f64>::new(&s, prediction, Variance::FixedLarge, i).target(x_start, x, eps);
            let step = ReverseStep::new(&s, prediction, Variance::FixedLarge, DDIM, true, i);
            assert_close(unguided(&step, x, answer, 0.0, 0.0).0, noised(&s, i - 1, x_start, eps));
        }
    }
}

#[test]
fn guidance_moves_the_mean_of_ddpm_and_the_score_of_ddim() {
    let s = schedule();
    let (x, prediction, gradient, i) = (0.4, 0.6, 0.3, 30);
    let step = |rule, clip| ReverseStep::<f64>::new(&s, Prediction::Epsilon, Variance::FixedLarge, rule, clip, i);

    let ddpm = step(Rule::Ddpm, true);
    let moved = ddpm.step(x, prediction, 0.0, gradient, true, 0.5).0;
    let plain = unguided(&ddpm, x, prediction, 0.0, 0.5).0;
    assert_close(moved - plain, s.betas[i] * gradient);

    // Without clipping, the step of a network that had answered the moved ε.
    let ddim = step(DDIM, false);
    let (next, x_start) = ddim.step(x, prediction, 0.0, gradient, true, 0.0);
    let as_if = prediction - s.sqrt_one_minus_alpha_bar[i] * gradient;
    let expected = unguided(&ddim, x, as_if, 0.0, 0.0);
    assert_close(next, expected.0);
    assert_close(x_start, expected.1);

    // What is moved is clipped before and not after.
    let clipping = step(DDIM, true);
    let (_, x_start) = clipping.step(x, -9.0, 0.0, gradient, true, 0.0);
    let ratio = s.sqrt_recipm1_alpha_bar[i] * s.sqrt_one_minus_alpha_bar[i];
    assert_close(x_start, 1.0 + ratio * gradient);
}

#[test]
fn without_guidance_no_bit_changes() {
    let s = schedule();
    for rule in [Rule::Ddpm, DDIM, Rule::Ddim { eta: 0.7 }] {
        for i in [0, 1, 49] {
            let step = ReverseStep::<f32>::new(&s, Prediction::Epsilon, Variance::LearnedRange, rule, true, i);
            let at = |guidance| step.step(0.31, 0.77, -0.13, guidance, false, 0.9);
            assert_eq!(at(2.5), at(f32::NAN));
        }
    }
}

#[test]
fn single_precision_agrees_with_double() {
    let s = Schedule::new(NoiseSchedule::Linear, 1000, &Respacing::Full).unwrap();
    for rule in [Rule::Ddpm, DDIM, Rule::Ddim { eta: 0.7 }] {
        for &prediction in Prediction::ALL {
            for i in [0, 1, 500, 999] {
                let single = ReverseStep::<f32>::new(&s, prediction, Variance::LearnedRange, rule, true, i);
                let double = ReverseStep::<f64>::new(&s, prediction, Variance::LearnedRange, rule, true, i);
                let actual = single.step(0.25, 0.375, -0.125, 0.5, true, 0.75);
                let expected = double.step(0.25, 0.375, -0.125, 0.5, true, 0.75);
                for (a, e) in [(actual.0, expected.0), (actual.1, expected.1)] {
                    assert!((f64::from(a) - e).abs() < 1e-5 * (1.0 + e.abs()), "{rule:?}, {prediction}, {i}: {a} {e}");
                }
            }
        }
    }
}
