//! What moments and the Fréchet distance must satisfy for any features.

#![allow(clippy::unwrap_used)]

use fidelity::{FidelityError, Gaussian, Moments, frechet_distance, frechet_parts};
use proptest::prelude::*;

fn moments(features: &[f64], width: usize) -> Moments {
    let mut moments = Moments::new(width);
    moments.push(features, [features.len() / width, width]).unwrap();
    moments
}

fn distance(a: &Moments, b: &Moments) -> Result<f64, FidelityError> {
    frechet_distance(&a.gaussian()?, &b.gaussian()?)
}

fn assert_close(found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= tolerance, "{found} instead of {expected}");
    }
}

/// Mean `[d]` and covariance `[d, d]` in two plain passes.
fn two_pass(features: &[f64], width: usize) -> (Vec<f64>, Vec<f64>) {
    let rows = (features.len() / width) as f64;
    let column = |j: usize| features.iter().skip(j).step_by(width);
    let mean: Vec<f64> = (0..width).map(|j| column(j).sum::<f64>() / rows).collect();
    let product = |i: usize, j: usize| -> f64 {
        column(i).zip(column(j)).map(|(x, y)| (x - mean[i]) * (y - mean[j])).sum::<f64>() / (rows - 1.0)
    };
    let covariance = (0..width * width).map(|k| product(k / width, k % width)).collect();
    (mean, covariance)
}

/// What the roots of up to a dozen eigenvalues near zero may add or lose.
fn rounding(a: &Moments, b: &Moments) -> f64 {
    let trace = |moments: &Moments| -> f64 { moments.covariance().unwrap().iter().step_by(moments.width() + 1).sum() };
    1e-6 * (trace(a) + trace(b))
}

/// A width and two sets of 2 to 39 rows each: fewer and more rows than columns.
fn two_sets() -> impl Strategy<Value = (usize, Vec<f64>, Vec<f64>)> {
    (1..12_usize, 2..40_usize, 2..40_usize).prop_flat_map(|(width, n, m)| {
        let set = |rows| proptest::collection::vec(-4.0..4.0_f64, rows * width);
        (Just(width), set(n), set(m))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn batches_merge_and_two_passes_agree((width, a, b) in two_sets(), offset in -1e4..1e4_f64) {
        let shifted = |set: &[f64]| -> Vec<f64> { set.iter().map(|x| x + offset).collect() };
        let (a, b) = (shifted(&a), shifted(&b));
        let whole = [a.clone(), b.clone()].concat();
        let (mean, covariance) = two_pass(&whole, width);

        let mut merged = moments(&a, width);
        merged.merge(&moments(&b, width)).unwrap();
        let mut batched = moments(&a, width);
        batched.push(&b, [b.len() / width, width]).unwrap();
        for found in [moments(&whole, width), merged, batched] {
            prop_assert_eq!(found.count(), whole.len() / width);
            assert_close(found.mean().unwrap(), &mean, 1e-13 * (4.0 + offset.abs()));
            // A plain sum of squares would be wrong by 1e-8 here.
            assert_close(&found.covariance().unwrap(), &covariance, 1e-10);
        }
    }

    #[test]
    fn distance_to_itself_is_zero((width, a, _) in two_sets()) {
        let a = moments(&a, width);
        let gaussian = a.gaussian().unwrap();
        let parts = frechet_parts(&gaussian, &gaussian).unwrap();
        prop_assert_eq!((parts.means, parts.distance), (0.0, parts.covariances));
        prop_assert!((0.0..rounding(&a, &a)).contains(&parts.distance), "{:?}", parts);
    }

    #[test]
    fn shift_of_the_mean_adds_its_square((width, a, shift) in two_sets()) {
        let shift = &shift[..width];
        let moved: Vec<f64> = a.iter().zip(shift.iter().cycle()).map(|(x, v)| x + v).collect();
        let square: f64 = shift.iter().map(|v| v * v).sum();
        let (a, moved) = (moments(&a, width), moments(&moved, width));
        let distance = distance(&a, &moved).unwrap();
        prop_assert!((distance - square).abs() < rounding(&a, &moved), "{} instead of {}", distance, square);
    }

    #[test]
    fn a_shift_of_the_mean_is_in_the_part_from_means_alone((width, a, b) in two_sets()) {
        let (origin, shift) = (vec![0.0; width], &b[..width]);
        let around = |set: &[f64], mean: &[f64]| {
            Gaussian::new(mean.to_vec(), moments(set, width).covariance().unwrap()).unwrap()
        };
        let still = frechet_parts(&around(&a, &origin), &around(&b, &origin)).unwrap();
        let moved = frechet_parts(&around(&a, &origin), &around(&b, shift)).unwrap();
        prop_assert_eq!((still.means, still.distance), (0.0, still.covariances));
        prop_assert_eq!(moved.means, shift.iter().map(|v| v * v).sum::<f64>());
        prop_assert_eq!(moved.covariances, still.covariances);
        let sum = moved.means + moved.covariances;
        prop_assert!((moved.distance - sum).abs() < rounding(&moments(&a, width), &moments(&b, width)));
    }

    #[test]
    fn distance_is_symmetric((width, a, b) in two_sets()) {
        let (a, b) = (moments(&a, width), moments(&b, width));
        let (forth, back) = (distance(&a, &b).unwrap(), distance(&b, &a).unwrap());
        prop_assert!((forth - back).abs() < rounding(&a, &b), "{} and {}", forth, back);
    }
}

#[test]
fn batch_beyond_one_block_agrees_with_two_passes() {
    let width = 7;
    let features: Vec<f64> = (0..1300 * width).map(|i| (i as f64 * 0.37).sin() + (i % width) as f64 * 100.0).collect();
    let found = moments(&features, width);
    let (mean, covariance) = two_pass(&features, width);
    assert_close(found.mean().unwrap(), &mean, 1e-10);
    assert_close(&found.covariance().unwrap(), &covariance, 1e-10);
}

#[test]
fn scaled_singular_features_have_a_known_distance() {
    // Of x and 3x / 2 the covariances commute: the distance is (tr Σ + ‖μ‖²) / 4. Rank 7 of 20.
    let x: Vec<f64> = (0..8 * 20).map(|i| (i as f64).powi(2).sin()).collect();
    let scaled: Vec<f64> = x.iter().map(|x| 1.5 * x).collect();
    let (mean, covariance) = two_pass(&x, 20);
    let trace: f64 = covariance.iter().step_by(21).sum();
    let expected = 0.25 * (trace + mean.iter().map(|m| m * m).sum::<f64>());
    let distance = distance(&moments(&x, 20), &moments(&scaled, 20)).unwrap();
    assert!((distance / expected - 1.0).abs() < 1e-6, "{distance} instead of {expected}");
}

/// Fewer rows than columns: the trace is the sum of the singular values of the centred rows' products, with no covariance.
#[test]
fn singular_covariances_cost_few_digits() {
    let (width, rows) = (80, [30, 200]);
    let set = |rows: usize, phase: f64| -> Vec<f64> {
        (0..rows * width).map(|i| (phase + (i as f64).powf(1.5)).sin() / (1.0 + (i % width) as f64)).collect()
    };
    let [x, y] = [set(rows[0], 0.0), set(rows[1], 1.0)];
    let centred = |x: &[f64]| {
        let rows = x.len() / width;
        let mean = two_pass(x, width).0;
        faer::Mat::from_fn(rows, width, |i, j| (x[i * width + j] - mean[j]) / ((rows - 1) as f64).sqrt())
    };
    let (a, b) = (centred(&x), centred(&y));
    let trace: f64 = (&a * b.transpose()).singular_values().unwrap().iter().sum();
    let between: f64 = two_pass(&x, width).0.iter().zip(&two_pass(&y, width).0).map(|(a, b)| (a - b).powi(2)).sum();
    let expected = between + a.squared_norm_l2() + b.squared_norm_l2() - 2.0 * trace;
    for (first, second) in [(&x, &y), (&y, &x)] {
        let found = distance(&moments(first, width), &moments(second, width)).unwrap();
        assert!((found / expected - 1.0).abs() < 1e-7, "{found} instead of {expected}");
    }
}

#[test]
fn bad_batches_are_refused_and_leave_no_trace() {
    let mut found = Moments::new(2);
    found.push(&[1.0_f32, 2.0], [1, 2]).unwrap();
    let before = found.clone();

    let wrong_width = FidelityError::WidthMismatch { expected: 2, found: 3 };
    assert_eq!(found.push(&[0.0_f32; 6], [2, 3]), Err(wrong_width.clone()));
    assert_eq!(found.merge(&Moments::new(3)), Err(wrong_width.clone()));
    let short = FidelityError::ShapeMismatch { rows: 2, width: 2, found: 3 };
    assert_eq!(found.push(&[0.0_f64; 3], [2, 2]), Err(short));
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let non_finite = FidelityError::NonFinite { row: 1, column: 0 };
        assert_eq!(found.push(&[0.0, 0.0, bad, 0.0], [2, 2]), Err(non_finite));
    }
    assert_eq!(found, before);
}

#[test]
fn too_few_rows_and_huge_features_are_errors() {
    let mut found = Moments::new(1);
    assert_eq!(found.mean(), Err(FidelityError::TooFewRows { needed: 1, found: 0 }));
    found.push(&[1e200], [1, 1]).unwrap();
    assert_eq!(found.mean(), Ok(&[1e200][..]));
    let too_few = FidelityError::TooFewRows { needed: 2, found: 1 };
    assert_eq!(found.covariance(), Err(too_few.clone()));
    assert_eq!(distance(&found, &found), Err(too_few));
    found.push(&[-1e200], [1, 1]).unwrap();
    assert_eq!(found.covariance(), Err(FidelityError::Overflow));
    assert_eq!(distance(&moments(&[0.0, 1e120], 1), &moments(&[0.0, 1e120], 1)), Err(FidelityError::Overflow));
}

#[test]
fn what_is_no_covariance_is_refused() {
    let two = |covariance: [f64; 4]| Gaussian::new(vec![0.0, 1.0], covariance.to_vec());
    let good = two([2.0, 0.5, 0.5 + 1e-6, 1.0]).unwrap();
    assert!((good.covariance()[1] - good.covariance()[2]).abs() == 0.0 && good.width() == 2);
    let refused = |row, column| Err(FidelityError::NoCovariance { row, column });
    assert_eq!(two([2.0, 0.5, 0.4, 1.0]), refused(1, 0));
    assert_eq!(two([2.0, 0.0, 0.0, -1.0]), refused(1, 0));
    assert_eq!(two([f64::NAN, 0.0, 0.0, 1.0]), Err(FidelityError::NonFinite { row: 0, column: 0 }));
    let indefinite = two([1.0, 2.0, 2.0, 1.0]).unwrap();
    assert_eq!(frechet_distance(&good, &indefinite), Err(FidelityError::Indefinite));
    let short = FidelityError::ShapeMismatch { rows: 2, width: 2, found: 3 };
    assert_eq!(Gaussian::new(vec![0.0; 2], vec![1.0; 3]), Err(short));
    let one = Gaussian::new(vec![0.0], vec![1.0]).unwrap();
    assert_eq!(frechet_distance(&good, &one), Err(FidelityError::WidthMismatch { expected: 2, found: 1 }));
}

#[test]
fn nothing_wide_is_nothing_apart() {
    let mut found = Moments::new(0);
    found.push::<f64>(&[], [3, 0]).unwrap();
    found.merge(&found.clone()).unwrap();
    assert_eq!(found.count(), 6);
    assert_eq!(distance(&found, &found), Ok(0.0));
}
