use super::*;
use crate::beta::NoiseSchedule;
use crate::respace::Respacing;
use crate::sampler::{Churn, Rule};

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

/// The stage from index `i`.
fn stage<R: Real>(s: &Schedule, prediction: Prediction, variance: Variance, rule: Rule, i: usize) -> ReverseStep<R> {
    ReverseStep::new(s, prediction, variance, &rule.stages(s, i)[0])
}

fn pixel<R: Real>(x: R, prediction: R, values: R, noise: R) -> Pixel<R> {
    let nothing = R::of(f64::NAN);
    Pixel { x, prediction, values, guidance: None, noise, x_start: [nothing; 2], kept: nothing }
}

/// The next x and x̂_0.
fn unguided(step: &ReverseStep<f64>, x: f64, prediction: f64, values: f64, noise: f64, clip: bool) -> (f64, f64) {
    let stepped = step.step(pixel(x, prediction, values, noise), clip.then_some(1.0));
    (stepped.next, stepped.x_start)
}

#[test]
fn a_right_answer_gives_the_clean_pixel_and_the_posteriors_mean() {
    let s = schedule();
    let (x_start, eps) = (0.7, -1.3);
    for &prediction in Prediction::ALL {
        for i in 0..s.len() {
            let reading = Reading::<f64>::new(&s, prediction, Variance::FixedSmall, i);
            let x = noised(&s, i, x_start, eps);
            let m = reading.moments(x, reading.target(x_start, x, eps), f64::NAN, Some(1.0));
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
            Reading::<f64>::new(&s, Prediction::Epsilon, variance, i).moments(0.1, 0.2, values, None).log_variance
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
        let m = reading.moments(0.3, prediction, 0.0, Some(1.0));
        assert_eq!((m.x_start, m.mean), (expected, reading.posterior_mean(expected, 0.3)));
        assert_eq!(reading.moments(0.3, prediction, 0.0, None).x_start, prediction);
        // A mean that is predicted itself stays.
        let previous = Reading::<f64>::new(&s, Prediction::PreviousX, Variance::FixedLarge, 20);
        assert_eq!(previous.moments(0.3, 3.0, 0.0, Some(1.0)).mean, 3.0);
    }
}

#[test]
fn noise_is_added_by_every_step_but_the_last_unless_ddim_is_deterministic() {
    let s = schedule();
    let draws = |rule, i| {
        let step = stage::<f64>(&s, Prediction::Epsilon, Variance::LearnedRange, rule, i);
        let next = |noise| unguided(&step, 0.3, 0.2, 0.1, noise, true).0;
        let draws = rule.stages(&s, i)[0].draws();
        assert_eq!(draws, next(1.0) != next(0.0));
        assert_eq!(draws, next(f64::NAN).is_nan());
        draws
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
        let step = stage(&s, Prediction::Epsilon, variance, Rule::Ddpm, 30);
        let m = reading.moments(0.4, 0.6, -0.2, Some(1.0));
        let (next, x_start) = unguided(&step, 0.4, 0.6, -0.2, -1.5, true);
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
                    .map(|rule| stage::<f64>(&s, prediction, Variance::FixedSmall, rule, i));
                for noise in [0.0, 1.7] {
                    let (expected, x_start) = unguided(&ddpm, 0.4, 0.9, 0.0, noise, clip);
                    let actual = unguided(&ddim, 0.4, 0.9, 0.0, noise, clip);
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
            let step = stage(&s, prediction, Variance::FixedLarge, DDIM, i);
            assert_close(unguided(&step, x, answer, 0.0, 0.0, true).0, noised(&s, i - 1, x_start, eps));
        }
    }
}

#[test]
fn guidance_moves_the_mean_of_ddpm_and_the_score_of_ddim() {
    let s = schedule();
    let (x, prediction, gradient, i) = (0.4, 0.6, 0.3, 30);
    let step = |rule| stage::<f64>(&s, Prediction::Epsilon, Variance::FixedLarge, rule, i);
    let guided = |step: &ReverseStep<f64>, prediction, noise, clip: bool| {
        let pixel =
            Pixel { guidance: Some(gradient), x_start: [0.0; 2], kept: 0.0, ..pixel(x, prediction, 0.0, noise) };
        let stepped = step.step(pixel, clip.then_some(1.0));
        (stepped.next, stepped.x_start)
    };

    let ddpm = step(Rule::Ddpm);
    let moved = guided(&ddpm, prediction, 0.5, true).0;
    let plain = unguided(&ddpm, x, prediction, 0.0, 0.5, true).0;
    assert_close(moved - plain, s.betas[i] * gradient);

    // Without clipping, the step of a network that had answered the moved ε.
    for rule in [DDIM, Rule::Heun(Churn::default()), Rule::UniPc, Rule::DpmSolver { stochastic: true }] {
        let step = step(rule);
        let (next, x_start) = guided(&step, prediction, 0.4, false);
        let as_if = prediction - s.sqrt_one_minus_alpha_bar[i] * gradient;
        let as_if = Pixel { x_start: [0.0; 2], kept: 0.0, ..pixel(x, as_if, 0.0, 0.4) };
        let expected = step.step(as_if, None);
        assert_close(next, expected.next);
        assert_close(x_start, expected.x_start);

        // What is moved is clipped before and not after.
        let (_, x_start) = guided(&step, -9.0, 0.0, true);
        let ratio = s.sqrt_recipm1_alpha_bar[i] * s.sqrt_one_minus_alpha_bar[i];
        assert_close(x_start, 1.0 + ratio * gradient);
    }
}

#[test]
fn a_wider_limit_clips_there_and_scales_back() {
    let s = schedule();
    let reading = Reading::<f64>::new(&s, Prediction::XStart, Variance::FixedLarge, 20);
    for (prediction, expected) in [(3.0, 1.0), (-3.0, -1.0), (1.0, 0.5)] {
        assert_eq!(reading.x_start(0.3, prediction, Some(2.0)), expected);
    }
    assert!(reading.x_start(0.3, f64::NAN, Some(2.0)).is_nan());
}

#[test]
fn a_reading_can_be_moved_to_another_noise_level() {
    let s = schedule();
    let level = Level { time: 333.3, alpha_bar: 0.3 };
    let (x_start, eps) = (0.6, -0.9);
    let x = level.alpha() * x_start + level.sigma() * eps;
    for prediction in [Prediction::Epsilon, Prediction::XStart] {
        let reading = Reading::<f64>::new(&s, prediction, Variance::FixedLarge, 20).moved(level);
        assert_close(reading.x_start(x, reading.target(x_start, x, eps), None), x_start);
        assert_close(reading.eps(x_start, x), eps);
    }
}

#[test]
fn single_precision_agrees_with_double() {
    let s = Schedule::new(NoiseSchedule::Linear, 1000, &Respacing::Full).unwrap();
    for rule in [Rule::Ddpm, DDIM, Rule::Ddim { eta: 0.7 }] {
        for &prediction in Prediction::ALL {
            for i in [0, 1, 500, 999] {
                let single = stage::<f32>(&s, prediction, Variance::LearnedRange, rule, i);
                let double = stage::<f64>(&s, prediction, Variance::LearnedRange, rule, i);
                let guided = Pixel { guidance: Some(0.5), ..pixel(0.25, 0.375, -0.125, 0.75) };
                let actual = single.step(guided, Some(1.0));
                let guided = Pixel { guidance: Some(0.5), ..pixel(0.25, 0.375, -0.125, 0.75) };
                let expected = double.step(guided, Some(1.0));
                for (a, e) in [(actual.next, expected.next), (actual.x_start, expected.x_start)] {
                    assert!((f64::from(a) - e).abs() < 1e-5 * (1.0 + e.abs()), "{rule:?}, {prediction}, {i}: {a} {e}");
                }
            }
        }
    }
}
