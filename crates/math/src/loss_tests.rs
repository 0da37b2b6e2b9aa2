use super::*;
use crate::beta::NoiseSchedule;
use crate::gaussian::discretized_gaussian_log_likelihood;
use crate::philox::{Domain, Stream};
use crate::respace::Respacing;

const LENGTH: usize = 8;

fn schedules() -> [Schedule; 2] {
    [
        Schedule::new(NoiseSchedule::Linear, 1000, &Respacing::Full).unwrap(),
        Schedule::new(NoiseSchedule::Cosine, 1000, &"ddim50".parse().unwrap()).unwrap(),
    ]
}

/// Index 0, a small one, one in the middle and the last.
fn indices(schedule: &Schedule) -> [usize; 4] {
    [0, 1, schedule.len() / 2, schedule.len() - 1]
}

fn normals(seed: u64, count: usize) -> Vec<f64> {
    let mut stream = Stream::new(seed, Domain::Noise, 0, 0);
    (0..count).map(|_| f64::from(stream.normal())).collect()
}

/// An image with its noise, and the output of a network that is not far off.
#[derive(Clone)]
struct Image {
    x_start: Vec<f64>,
    x_t: Vec<f64>,
    eps: Vec<f64>,
    output: Vec<f64>,
}

impl Image {
    /// Two black and two white pixels, and grey ones.
    fn new(schedule: &Schedule, prediction: Prediction, variance: Variance, i: usize) -> Self {
        let levels = [0, 255, 0, 255, 1, 100, 128, 254];
        let x_start = levels.map(|level| f64::from(level) / 127.5 - 1.0).to_vec();
        let eps = normals(1, LENGTH);
        let (signal, noise) = (schedule.sqrt_alpha_bar[i], schedule.sqrt_one_minus_alpha_bar[i]);
        let x_t: Vec<f64> = (0..LENGTH).map(|p| signal * x_start[p] + noise * 1.01 * eps[p]).collect();
        let reading = Reading::<f64>::new(schedule, prediction, variance, i);
        let off = normals(2, LENGTH);
        // So far off that it shows, and not so far that the decoder's probabilities are clamped.
        let size = 0.5 * (0.5 * reading.posterior_log_variance).exp() / reading.mean_slope.abs().max(1e-2);
        let mut output: Vec<f64> =
            (0..LENGTH).map(|p| reading.target(x_start[p], x_t[p], eps[p]) + size * off[p]).collect();
        let values = normals(3, LENGTH);
        match variance {
            Variance::FixedSmall | Variance::FixedLarge => {}
            Variance::LearnedRange => output.extend(values),
            Variance::Learned => output.extend(values.iter().map(|v| reading.posterior_log_variance + 0.3 * v)),
        }
        Self { x_start, x_t, eps, output }
    }

    fn evaluate(&self, loss: &ImageLoss<f64>) -> Terms {
        loss.evaluate(&self.x_start, &self.x_t, &self.eps, &self.output, 1.0, None)
    }

    fn grad(&self, loss: &ImageLoss<f64>, weight: f64) -> Vec<f64> {
        let mut grad = vec![f64::NAN; self.output.len()];
        loss.evaluate(&self.x_start, &self.x_t, &self.eps, &self.output, weight, Some(&mut grad));
        grad
    }
}

/// Every schedule, prediction, variance and index.
fn for_each_reading(mut check: impl FnMut(&Schedule, Prediction, Variance, usize)) {
    for schedule in &schedules() {
        for &prediction in Prediction::ALL {
            for &variance in Variance::ALL {
                for i in indices(schedule) {
                    check(schedule, prediction, variance, i);
                }
            }
        }
    }
}

fn for_each_loss(mut check: impl FnMut(&Schedule, Prediction, Variance, LossKind, usize)) {
    for_each_reading(|schedule, prediction, variance, i| {
        for &kind in LossKind::ALL {
            check(schedule, prediction, variance, kind, i);
        }
    });
}

/// Within `tolerance` of the greatest value expected.
fn assert_close(what: &str, actual: &[f64], expected: &[f64], tolerance: f64) {
    assert_close_or_below(what, actual, expected, tolerance, 0.0);
}

/// Within `tolerance` of the greatest value expected, or off by no more than `floor`.
fn assert_close_or_below(what: &str, actual: &[f64], expected: &[f64], tolerance: f64, floor: f64) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    let size = expected.iter().fold(0.0_f64, |size, e| size.max(e.abs()));
    for (a, e) in actual.iter().zip(expected) {
        assert!(
            (a - e).abs() <= tolerance * size + floor,
            "{what}: {a:e} is not {e:e}, of {actual:?} and {expected:?}"
        );
    }
}

/// The derivative of `f` at `at`, by differences of fourth order over steps in proportion to `scale`.
fn difference(at: f64, scale: f64, f: impl Fn(f64) -> f64) -> f64 {
    let h = 2e-3 * scale;
    let two_sided = |h: f64| f(at + h) - f(at - h);
    (8.0 * two_sided(h) - two_sided(2.0 * h)) / (12.0 * h)
}

fn to_f32(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&v| v as f32).collect()
}

#[test]
fn the_derivatives_are_those_of_differences() {
    for_each_loss(|schedule, prediction, variance, kind, i| {
        let what = format!("{} steps, {prediction}, {variance}, {kind}, index {i}", schedule.len());
        let loss = ImageLoss::<f64>::new(schedule, prediction, variance, kind, i);
        let image = Image::new(schedule, prediction, variance, i);
        let weight = 0.7;
        let deviation = (0.5 * loss.reading.posterior_log_variance).exp();
        // A step that moves the mean by a small part of its standard deviation.
        let scale = (deviation / loss.reading.mean_slope.abs()).min(1.0);
        let numeric = |at: usize| {
            let scale = if at < LENGTH { scale } else { 1.0 };
            difference(image.output[at], scale, |value| {
                let mut moved = image.clone();
                moved.output[at] = value;
                let terms = moved.evaluate(&loss);
                // Beside a squared error the bound does not reach the prediction.
                let by_error = terms.mse.filter(|_| at < LENGTH).map(|mse| mse * kind.scale(LENGTH));
                weight * by_error.unwrap_or(terms.loss)
            })
        };
        let grad = image.grad(&loss, weight);
        let expected: Vec<f64> = (0..grad.len()).map(numeric).collect();
        for (grad, expected) in grad.chunks(LENGTH).zip(expected.chunks(LENGTH)) {
            assert!(grad.iter().all(|&g| g != 0.0), "{what}: {grad:?}");
            // What differences lose to rounding: of the loss, and of the numbers near 1 that a divergence is made of.
            let floor = (1e-12 * image.evaluate(&loss).loss.abs() + 1e-14 * loss.vb_factor) / scale;
            assert_close_or_below(&what, grad, expected, 1e-6, floor);
        }
    });
}

#[test]
fn the_bound_is_made_of_the_scalar_divergence_and_likelihood() {
    for_each_reading(|schedule, prediction, variance, i| {
        let reading = Reading::<f64>::new(schedule, prediction, variance, i);
        let image = Image::new(schedule, prediction, variance, i);
        let values = &image.output[image.output.len() - LENGTH..];
        for clip in [false, true] {
            let both = (0..LENGTH).map(|p| {
                let (x_start, x_t, output) = (image.x_start[p], image.x_t[p], image.output[p]);
                let m = reading.moments(x_t, output, values[p], clip.then_some(1.0));
                let expected = if i == 0 {
                    -discretized_gaussian_log_likelihood(x_start, m.mean, 0.5 * m.log_variance)
                } else {
                    let logvar = schedule.posterior_log_variance_clipped[i];
                    normal_kl(reading.posterior_mean(x_start, x_t), logvar, m.mean, m.log_variance)
                };
                (reading.bound(x_start, x_t, output, values[p], clip), expected / LN_2)
            });
            let (actual, expected): (Vec<f64>, Vec<f64>) = both.unzip();
            let what = format!("{prediction}, {variance}, index {i}");
            // The orders of their sums differ.
            assert_close_or_below(&what, &actual, &expected, 1e-12, 1e-14);
        }
        let graded = reading.bound_grad(image.x_start[5], image.x_t[5], image.output[5], values[5]);
        assert_eq!(graded.value, reading.bound(image.x_start[5], image.x_t[5], image.output[5], values[5], false));
        assert_eq!(graded.by_values == 0.0, !variance.is_learned());
    });
}

#[test]
fn single_precision_agrees_with_double() {
    for_each_loss(|schedule, prediction, variance, kind, i| {
        let what = format!("{} steps, {prediction}, {variance}, {kind}, index {i}", schedule.len());
        let mut image = Image::new(schedule, prediction, variance, i);
        let [x_start, x_t, eps, output] = [&image.x_start, &image.x_t, &image.eps, &image.output].map(|v| to_f32(v));
        // Both start from the same numbers, or their rounding would be counted too.
        let back = |values: &[f32]| values.iter().map(|&v| f64::from(v)).collect();
        (image.x_start, image.x_t, image.eps, image.output) = (back(&x_start), back(&x_t), back(&eps), back(&output));
        let expected = ImageLoss::<f64>::new(schedule, prediction, variance, kind, i);
        let loss = ImageLoss::<f32>::new(schedule, prediction, variance, kind, i);
        let mut grad = vec![f32::NAN; output.len()];
        let terms = loss.evaluate(&x_start, &x_t, &eps, &output, 1.0, Some(&mut grad));
        let all = |t: &Terms| [t.loss, t.mse.unwrap_or(0.0), t.vb.unwrap_or(0.0)];
        // The means are told apart in units of their small deviation.
        let tolerance = 1e-4;
        assert_close(&what, &all(&terms), &all(&image.evaluate(&expected)), tolerance);
        assert_close(&what, &back(&grad), &image.grad(&expected, 1.0), tolerance);
    });
}

#[test]
fn each_loss_reports_its_terms() {
    for_each_loss(|schedule, prediction, variance, kind, i| {
        let loss = ImageLoss::<f64>::new(schedule, prediction, variance, kind, i);
        let image = Image::new(schedule, prediction, variance, i);
        let terms = image.evaluate(&loss);
        let reading = &loss.reading;
        let values = &image.output[image.output.len() - LENGTH..];
        let mean = |value: &dyn Fn(usize) -> f64| (0..LENGTH).map(value).sum::<f64>() / LENGTH as f64;
        let mse = mean(&|p| (image.output[p] - reading.target(image.x_start[p], image.x_t[p], image.eps[p])).powi(2));
        let vb = mean(&|p| reading.bound(image.x_start[p], image.x_t[p], image.output[p], values[p], false));
        let t = schedule.len() as f64;
        let learned = variance.is_learned();
        let (loss, mse, vb) = match kind {
            LossKind::Kl => (vb, None, None),
            LossKind::RescaledKl => (vb * t, None, None),
            _ if !learned && kind == LossKind::SumMse => (mse * LENGTH as f64, Some(mse), None),
            _ if !learned => (mse, Some(mse), None),
            LossKind::Mse => (mse + vb, Some(mse), Some(vb)),
            LossKind::RescaledMse => (mse + vb * t / 1000.0, Some(mse), Some(vb * t / 1000.0)),
            LossKind::SumMse => ((mse + vb) * LENGTH as f64, Some(mse), Some(vb)),
        };
        assert_eq!((terms.mse.is_some(), terms.vb.is_some()), (mse.is_some(), vb.is_some()));
        for (actual, expected) in [(Some(terms.loss), Some(loss)), (terms.mse, mse), (terms.vb, vb)] {
            assert_close(kind.name(), actual.as_slice(), expected.as_slice(), 1e-12);
        }
    });
}

#[test]
fn beside_an_error_the_bound_leaves_the_prediction_alone() {
    let schedule = &schedules()[0];
    for kind in [LossKind::Mse, LossKind::RescaledMse, LossKind::SumMse] {
        for i in indices(schedule) {
            let image = Image::new(schedule, Prediction::Epsilon, Variance::Learned, i);
            let grad = image.grad(&ImageLoss::new(schedule, Prediction::Epsilon, Variance::Learned, kind, i), 1.0);
            let mut plain = image.clone();
            plain.output.truncate(LENGTH);
            let fixed = ImageLoss::new(schedule, Prediction::Epsilon, Variance::FixedSmall, kind, i);
            assert_eq!(grad[..LENGTH], plain.grad(&fixed, 1.0));
            assert!(grad[LENGTH..].iter().all(|&g| g != 0.0));
        }
    }
}

#[test]
fn clamped_probabilities_have_no_derivative() {
    let reading = Reading::<f64>::new(&schedules()[0], Prediction::XStart, Variance::Learned, 0);
    // At black, at white and between, each just below the least probability, and just above it.
    for (x_start, prediction) in [(-1.0, 5.6), (1.0, -5.6), (0.0, 6.3)] {
        let graded = reading.bound_grad(x_start, x_start, prediction, 0.0);
        assert_eq!(graded, Graded { value: -1e-12_f64.ln() * IN_BITS, by_prediction: 0.0, by_values: 0.0 });
        let graded = reading.bound_grad(x_start, x_start, 0.8 * prediction, 0.0);
        assert!(graded.by_prediction != 0.0 && graded.by_values != 0.0);
    }
    // A certain level has none either: nothing can be gained.
    let certain = reading.bound_grad(1.0, 1.0, 3.0, -9.0);
    assert_eq!((certain.value, certain.by_prediction, certain.by_values), (0.0, 0.0, 0.0));
}

#[test]
fn nan_is_seen_and_not_clamped_away() {
    let schedule = &schedules()[0];
    for &kind in LossKind::ALL {
        for i in indices(schedule) {
            let mut image = Image::new(schedule, Prediction::Epsilon, Variance::LearnedRange, i);
            image.output[3] = f64::NAN;
            let loss = ImageLoss::new(schedule, Prediction::Epsilon, Variance::LearnedRange, kind, i);
            assert!(image.evaluate(&loss).loss.is_nan() && image.grad(&loss, 1.0)[3].is_nan());
        }
    }
    let reading = Reading::<f64>::new(schedule, Prediction::Epsilon, Variance::FixedLarge, 5);
    assert!(reading.moments(0.0, f64::NAN, 0.0, Some(1.0)).x_start.is_nan());
}

#[test]
fn the_likelihoods_terms_are_means_over_the_pixels() {
    for_each_reading(|schedule, prediction, variance, i| {
        let image = Image::new(schedule, prediction, variance, i);
        let reading = Reading::<f64>::new(schedule, prediction, variance, i);
        let values = &image.output[image.output.len() - LENGTH..];
        for clip in [false, true] {
            let terms = ImageBound::new(schedule, prediction, variance, i).evaluate(
                &image.x_start,
                &image.x_t,
                &image.eps,
                &image.output,
                clip,
            );
            let (mut vb, mut x_start_mse, mut mse) = (0.0, 0.0, 0.0);
            for (p, &value) in values.iter().enumerate() {
                let (x_start, x_t) = (image.x_start[p], image.x_t[p]);
                let predicted = reading.moments(x_t, image.output[p], value, clip.then_some(1.0)).x_start;
                assert!(!clip || predicted.abs() <= 1.0);
                let signal = schedule.sqrt_alpha_bar[i];
                let eps = (x_t - signal * predicted) / schedule.sqrt_one_minus_alpha_bar[i];
                vb += reading.bound(x_start, x_t, image.output[p], value, clip);
                x_start_mse += (predicted - x_start).powi(2);
                mse += (eps - image.eps[p]).powi(2);
            }
            for (actual, sum) in [(terms.vb, vb), (terms.xstart_mse, x_start_mse), (terms.mse, mse)] {
                assert_close(&format!("{prediction}, {variance}, index {i}"), &[actual * 8.0], &[sum], 1e-6);
            }
        }
    });
}

#[test]
fn the_prior_is_nearly_reached_at_the_last_step() {
    let schedule = &schedules()[0];
    let alpha_bar = schedule.alpha_bar[999];
    // ½ (ᾱ x² − ᾱ − ln(1 − ᾱ)), where the last two make ᾱ²/2.
    let expected = 0.5 * (alpha_bar * (1.0 + 0.25) / 2.0 + alpha_bar * alpha_bar / 2.0) / LN_2;
    assert_close("prior", &[prior_bound(schedule, &[1.0, -0.5])], &[expected], 1e-6);
}

#[test]
#[should_panic(expected = "the output has a prediction")]
fn an_output_without_its_variance_is_refused() {
    let schedule = &schedules()[0];
    let loss = ImageLoss::<f32>::new(schedule, Prediction::Epsilon, Variance::Learned, LossKind::Mse, 3);
    loss.evaluate(&[0.0], &[0.0], &[0.0], &[0.0], 1.0, None);
}

#[test]
fn the_cross_entropy_and_its_derivative() {
    let logits = [0.5_f32, -1.0, 2.0, 0.25];
    for label in 0..4 {
        let mut grad = [f32::NAN; 4];
        let loss = cross_entropy(&logits, label, -0.3, Some(&mut grad));
        let total: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
        assert!((loss - (total.ln() - f64::from(logits[label]))).abs() < 1e-14);
        for (class, grad) in grad.into_iter().enumerate() {
            // Exact steps in f32.
            let h = 1.0 / 256.0;
            let moved = |by: f32| {
                let mut logits = logits;
                logits[class] += by;
                cross_entropy(&logits, label, 1.0, None)
            };
            let expected = -0.3 * (moved(h) - moved(-h)) / f64::from(2.0 * h);
            assert!((f64::from(grad) - expected).abs() < 1e-6, "{grad} is not {expected}");
        }
    }
}

#[test]
fn extreme_logits_do_not_overflow() {
    let mut grad = [f32::NAN; 3];
    assert_eq!(cross_entropy(&[3e38, -3e38, 0.0], 0, 1.0, Some(&mut grad)), 0.0);
    assert_eq!(grad, [0.0; 3]);
    assert_eq!(cross_entropy(&[1e4, 0.0], 1, 1.0, None), 1e4);
    assert!(cross_entropy(&[f32::NAN, 0.0], 1, 1.0, None).is_nan());
}
